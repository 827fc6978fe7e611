//! A graph in double precision: finite differences of a float32 loss drown in its rounding.

use crate::ir::{
    Attr, Attrs, DType, Dim, Graph, Kind, NodeId, NodeSite, Op, Tensor, TensorError, TensorType, ValueId, ValueType,
};
use crate::ops::TypeError;
use crate::ops::build::{BuildError, Builder, Built};
use crate::ops::formula::{Term, formula};
use std::collections::HashSet;

/// Why a graph cannot be computed in double precision.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum DoubleError {
    #[error("{0} has a subgraph")]
    Subgraph(NodeSite),
    #[error("{0} has scales that are computed")]
    Scales(NodeSite),
    #[error("the graph has no output")]
    NoOutput,
    #[error("the first output `{0}` is no scalar loss but {1}")]
    NoLoss(String, ValueType),
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

fn is_narrow(t: DType) -> bool {
    matches!(t, DType::F32 | DType::F16 | DType::BF16)
}

/// Computes in float64 what the graph computes in narrower floats.
///
/// # Errors
/// Names what cannot be widened.
pub fn to_double(g: &mut Graph) -> Result<(), DoubleError> {
    let all: HashSet<ValueId> = g.nodes().flat_map(|n| g.results(n)).collect();
    g.forget_declarations(&all);
    for n in g.nodes().collect::<Vec<_>>() {
        widen_node(g, n)?;
        for v in g.results(n) {
            let ty = &g.value(v).ty;
            if ty.dtype.is_some_and(is_narrow) {
                let wide = ValueType { dtype: Some(DType::F64), shape: ty.shape.clone() };
                g.set_type(v, wide);
            }
        }
    }
    for n in g.nodes().collect::<Vec<_>>() {
        keep_narrow_operands(g, n)?;
    }
    Ok(())
}

/// Spells out what the embedded engine cannot do with float64, or with parameters that are fed. A node of which too little is known
/// stays as it is, for the engine to refuse.
pub fn spell_out(g: &mut Graph) {
    let mut b = Builder::new(g, "wide");
    for n in b.graph.nodes().collect::<Vec<_>>() {
        let _ = spell_node(&mut b, n);
    }
}

fn wide(t: &Tensor) -> Result<Tensor, TensorError> {
    Ok(Tensor::floats(DType::F64, t.dims(), &t.to_f64()?))
}

fn widen_node(g: &mut Graph, n: NodeId) -> Result<(), DoubleError> {
    let site = g.site(n);
    match &mut g.node_mut(n).kind {
        Kind::Input(_) => {}
        Kind::Initializer { tensor, overridable } => {
            if is_narrow(tensor.dtype()) {
                let (tensor, overridable) = (wide(tensor)?, *overridable);
                let v = g.result(n, 0);
                let shape = g.value(v).ty.shape.clone();
                g.set_initializer(v, tensor, overridable);
                // The declared shape may be symbolic where the default is a broadcastable zero.
                g.set_type(v, ValueType { dtype: Some(DType::F64), shape });
            }
        }
        Kind::Op(op) => {
            if op.attrs.0.values().any(|a| matches!(a, Attr::Opaque(p) if p.g.is_some() || !p.graphs.is_empty())) {
                return Err(DoubleError::Subgraph(site));
            }
            let mut changed = false;
            for key in ["to", "dtype", "stash_type"] {
                if let Some(Attr::Int(code)) = op.attrs.0.get_mut(key)
                    && DType::from_onnx(*code as i32).is_some_and(is_narrow)
                {
                    *code = DType::F64.onnx() as i64;
                    changed = true;
                }
            }
            if op.is("ConstantOfShape") && op.attrs.get("value").is_none() {
                op.attrs.0.insert("value".into(), Attr::Tensor(Tensor::floats(DType::F64, &[1], &[0.0])));
                changed = true;
            }
            if op.is("Constant") {
                let spelled = match (op.attrs.get("value_float"), op.attrs.get("value_floats")) {
                    (Some(Attr::Float(v)), _) => Some((vec![], vec![*v as f64])),
                    (_, Some(Attr::Floats(v))) => Some((vec![v.len() as i64], v.iter().map(|v| *v as f64).collect())),
                    _ => None,
                };
                if let Some((dims, values)) = spelled {
                    op.attrs = Attrs::new().with("value", Tensor::floats(DType::F64, &dims, &values));
                    changed = true;
                }
            }
            for a in op.attrs.0.values_mut() {
                if let Attr::Tensor(t) = a
                    && is_narrow(t.dtype())
                {
                    *a = Attr::Tensor(wide(t)?);
                    changed = true;
                }
            }
            op.attrs_changed |= changed;
        }
    }
    Ok(())
}

/// The scales and the region of a `Resize` are float32 by definition, whatever the data is.
fn keep_narrow_operands(g: &mut Graph, n: NodeId) -> Result<(), DoubleError> {
    if !g.is_op(n, "Resize") {
        return Ok(());
    }
    for operand in 1..g.node(n).operand_count().min(3) {
        let Some(v) = g.operand(n, operand) else { continue };
        let t = g.constant(v).ok_or_else(|| DoubleError::Scales(g.site(n)))?;
        let t = Tensor::floats(DType::F32, t.dims(), &t.to_f64()?);
        let narrow = g.add_initializer("narrow", t, false);
        g.set_operand(n, operand, Some(narrow));
    }
    Ok(())
}

/// Writes a node in operators that the embedded engine computes in double precision. What cannot be built stays as it is.
fn spell_node(b: &mut Builder, n: NodeId) -> Result<(), BuildError> {
    let g = &mut *b.graph;
    let Some(op) = g.op(n).filter(|o| o.domain.is_empty()).cloned() else { return Ok(()) };
    let Some(x) = g.operand(n, 0) else { return Ok(()) };
    let (y, read) = (g.result(n, 0), g.value(x).ty.dtype);
    let single = g.results(n).skip(1).all(|v| !g.is_needed(v));
    let wide = g.value(y).ty.dtype == Some(DType::F64);
    let operands: Vec<ValueId> = g.operands(n).iter().map_while(|v| *v).collect();
    let new = match (op.name.as_str(), operands.as_slice()) {
        ("BatchNormalization", [x, parameters @ ..]) if parameters.len() == 4 && g.node(n).results().len() == 1 => {
            batch_norm(b, *x, parameters, op.float("epsilon") as f64)?
        }
        ("LayerNormalization", [x, scale, bias @ ..]) if wide && single => {
            layer_norm(b, *x, *scale, bias.first().copied(), &op)?
        }
        ("IsNaN", _) if read == Some(DType::F64) => {
            let equal = b.op("Equal", &[x, x])?;
            b.op("Not", &[equal])?
        }
        // To tract a shape is no number until it is cast.
        ("CumSum", _) if read == Some(DType::I64) => {
            let number = b.op_with("Cast", Attrs::new().with("to", DType::I64.onnx() as i64), &[x])?;
            b.graph.set_operand(n, 0, Some(number));
            return Ok(());
        }
        // tract's mean of squares is float32 whatever it is given. An `Abs` keeps it from finding one.
        ("ReduceMean" | "ReduceSum" | "GlobalAveragePool", _) if wide && is_square(g, x) => {
            let size = b.op("Abs", &[x])?;
            b.graph.set_operand(n, 0, Some(size));
            return Ok(());
        }
        (name @ ("ReduceSumSquare" | "ReduceL2"), [x, axes @ ..]) if wide => {
            let size = formula(b, [*x], |[x]| x.squared().op("Abs"))?;
            let sum = b.op_with("ReduceSum", op.attrs.clone(), &[&[size], axes].concat())?;
            if name == "ReduceL2" { b.sqrt(sum)? } else { sum }
        }
        (name, _) if wide => match function(b, name, x, &op)? {
            Some(new) => new,
            None => return Ok(()),
        },
        _ => return Ok(()),
    };
    b.graph.redirect(y, new);
    Ok(())
}

/// Element-wise functions that tract has in float32 only.
fn function(b: &mut Builder, name: &str, x: ValueId, op: &Op) -> Result<Option<ValueId>, BuildError> {
    let attribute = |name: &str| op.float(name) as f64;
    Ok(Some(match name {
        "Erf" => formula(b, [x], |[x]| erf(x))?,
        "Sigmoid" => formula(b, [x], |[x]| (x * 0.5).op("Tanh") * 0.5 + 0.5)?,
        "HardSigmoid" => formula(b, [x], |[x]| (x * attribute("alpha") + attribute("beta")).max(0.0).min(1.0))?,
        "HardSwish" => formula(b, [x], |[x]| x * (x * (1.0 / 6.0) + 0.5).max(0.0).min(1.0))?,
        "LeakyRelu" => formula(b, [x], |[x]| x.max(0.0) + x.min(0.0) * attribute("alpha"))?,
        _ => return Ok(None),
    }))
}

/// Abramowitz and Stegun 7.1.26, within 1.5e-7: a smooth function whose differences are those of erf well within the check.
fn erf(x: Term<'_>) -> Term<'_> {
    const P: f64 = 0.3275911;
    const A: [f64; 5] = [0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429];
    let t = (x.op("Abs") * P + 1.0).op("Reciprocal");
    let sum = A[..4].iter().rev().fold(t * A[4], |sum, a| (sum + *a) * t);
    x.op("Sign") * (1.0 - sum * (-x.squared()).op("Exp"))
}

/// (x − mean) / √(var + ε) · scale + bias, with parameters along axis 1.
fn batch_norm(b: &mut Builder, x: ValueId, parameters: &[ValueId], epsilon: f64) -> Built {
    let rank = b.ty(x)?.rank();
    let mut target = vec![1; rank];
    *target.get_mut(1).ok_or_else(|| b.error("BatchNormalization", TypeError("it has no channels".into())))? = -1;
    let mut values = [x; 5];
    for (i, v) in parameters.iter().enumerate() {
        let channels = b.ty(*v)?.elements();
        let shape: Vec<Dim> = target.iter().map(|t| if *t == 1 { Dim::from(1) } else { channels.clone() }).collect();
        values[i + 1] = b.reshape(*v, &target, &shape)?;
    }
    formula(b, values, |[x, scale, bias, mean, var]| (x - mean) / (var + epsilon).sqrt() * scale + bias)
}

/// (x − mean) / √(mean |(x − mean)²| + ε) · scale + bias over the axes from `axis` on.
fn layer_norm(b: &mut Builder, x: ValueId, scale: ValueId, bias: Option<ValueId>, op: &Op) -> Built {
    let (axis, rank, epsilon) = (op.int("axis"), b.ty(x)?.rank() as i64, op.float("epsilon") as f64);
    let axes: Vec<i64> = (if axis < 0 { axis + rank } else { axis }..rank).collect();
    let mean = b.reduce("ReduceMean", x, &axes, true)?;
    let centred = b.sub(x, mean)?;
    let size = formula(b, [centred], |[c]| c.squared().op("Abs"))?;
    let variance = b.reduce("ReduceMean", size, &axes, true)?;
    let scaled = formula(b, [centred, variance, scale], |[c, v, scale]| c / (v + epsilon).sqrt() * scale)?;
    bias.map_or(Ok(scaled), |bias| b.add(scaled, bias))
}

/// Is a value the square of another?
fn is_square(g: &Graph, v: ValueId) -> bool {
    let Some(op) = g.op(v.node).filter(|o| o.domain.is_empty()) else { return false };
    let (x, y) = (g.operand(v.node, 0), g.operand(v.node, 1));
    match op.name.as_str() {
        "Mul" => x == y,
        "Pow" => y.and_then(|y| g.constant(y)?.scalar()) == Some(2.0),
        _ => false,
    }
}

/// A loss graph: the forward part of a training graph, up to its first output.
pub fn loss_graph(train: &Graph) -> Result<(Graph, String), DoubleError> {
    let loss = train.outputs().first().ok_or(DoubleError::NoOutput)?.value;
    let ty = train.tensor_type(loss).unwrap_or(TensorType::fixed(DType::F32, &[]));
    if ty.shape.iter().any(|d| !d.is_one()) || !ty.dtype.is_float() {
        return Err(DoubleError::NoLoss(train.name(loss).into(), ty.into()));
    }
    let mut g = train.clone();
    g.clear_outputs();
    g.add_output(loss, None);
    crate::transform::eliminate::eliminate_dead(&mut g, |_, _| false);
    let name = train.name(loss).to_string();
    Ok((g, name))
}
