//! A graph in double precision: finite differences of a float32 loss drown in its rounding.

use crate::ir::{
    Attr, Attrs, DType, Graph, Kind, NodeId, NodeSite, Op, Tensor, TensorError, TensorType, ValueId, ValueType,
};
use std::collections::HashSet;

/// Why a graph cannot be computed in double precision.
#[derive(Debug, thiserror::Error)]
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
pub fn widen(g: &mut Graph) -> Result<(), DoubleError> {
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

/// Spells out what the embedded engine cannot do with float64, or with parameters that are fed.
pub fn spell_out(g: &mut Graph) {
    for n in g.nodes().collect::<Vec<_>>() {
        spell_node(g, n);
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

/// Some operands are float32 by definition, whatever the data is.
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

/// Appends operators on values of one type.
struct Formula<'g> {
    g: &'g mut Graph,
    ty: ValueType,
}

impl Formula<'_> {
    fn op(&mut self, name: &str, operands: &[ValueId]) -> ValueId {
        let operands: Vec<Option<ValueId>> = operands.iter().copied().map(Some).collect();
        let n = self.g.add_op("", Op::new(name, Attrs::new()), &operands);
        self.g.push_result(n, "wide", self.ty.clone())
    }

    fn number(&mut self, v: f64) -> ValueId {
        let dtype = self.ty.dtype.unwrap_or(DType::F64);
        self.g.add_initializer("number", Tensor::floats(dtype, &[], &[v]), false)
    }

    fn scale(&mut self, x: ValueId, c: f64) -> ValueId {
        let c = self.number(c);
        self.op("Mul", &[x, c])
    }

    fn shift(&mut self, x: ValueId, c: f64) -> ValueId {
        let c = self.number(c);
        self.op("Add", &[x, c])
    }

    fn between(&mut self, x: ValueId, low: f64, high: f64) -> ValueId {
        let (low, high) = (self.number(low), self.number(high));
        let x = self.op("Max", &[x, low]);
        self.op("Min", &[x, high])
    }

    /// A vector along axis 1 of values of this rank.
    fn along_channels(&mut self, v: ValueId, rank: usize) -> ValueId {
        let mut target = vec![1i64; rank];
        target[1] = -1;
        let target = self.g.add_initializer("channels", Tensor::i64s(&[rank as i64], &target), false);
        self.op("Reshape", &[v, target])
    }

    /// (x − mean) / √(var + ε) · scale + bias.
    fn batch_norm(&mut self, operands: &[ValueId], rank: usize, epsilon: f64) -> ValueId {
        let [scale, bias, mean, var] = [1, 2, 3, 4].map(|i| self.along_channels(operands[i], rank));
        let centred = self.op("Sub", &[operands[0], mean]);
        let var = self.shift(var, epsilon);
        let deviation = self.op("Sqrt", &[var]);
        let unit = self.op("Div", &[centred, deviation]);
        let scaled = self.op("Mul", &[unit, scale]);
        self.op("Add", &[scaled, bias])
    }

    /// Mean over the last axes, which stay with extent one.
    fn mean(&mut self, x: ValueId, axes: &[i64]) -> ValueId {
        let by_input = self.g.opsets.get("").is_none_or(|v| *v >= 18);
        let (attrs, operands) = if by_input {
            let axes = self.g.add_initializer("axes", Tensor::i64s(&[axes.len() as i64], axes), false);
            (Attrs::new(), vec![Some(x), Some(axes)])
        } else {
            (Attrs::new().with("axes", axes), vec![Some(x)])
        };
        let n = self.g.add_op("", Op::new("ReduceMean", attrs.with("keepdims", 1)), &operands);
        let ty = ValueType { dtype: self.ty.dtype, shape: None };
        self.g.push_result(n, "mean", ty)
    }

    /// (x − mean) / √(mean |(x − mean)²| + ε) · scale + bias over the axes from `axis` on.
    fn layer_norm(&mut self, operands: &[ValueId], axis: i64, rank: usize, epsilon: f64) -> ValueId {
        let first = if axis < 0 { axis + rank as i64 } else { axis };
        let axes: Vec<i64> = (first..rank as i64).collect();
        let mean = self.mean(operands[0], &axes);
        let centred = self.op("Sub", &[operands[0], mean]);
        let square = self.op("Mul", &[centred, centred]);
        let size = self.op("Abs", &[square]);
        let variance = self.mean(size, &axes);
        let variance = self.shift(variance, epsilon);
        let deviation = self.op("Sqrt", &[variance]);
        let unit = self.op("Div", &[centred, deviation]);
        let scaled = self.op("Mul", &[unit, operands[1]]);
        operands.get(2).map_or(scaled, |bias| self.op("Add", &[scaled, *bias]))
    }

    /// Σ|x²|: written so that tract, whose mean of squares is float32 whatever it is given, does not take it for one.
    fn sum_of_squares(&mut self, op: &Op, operands: &[Option<ValueId>]) -> Option<ValueId> {
        let x = (*operands.first()?)?;
        let x_ty = self.g.value(x).ty.clone();
        let result = std::mem::replace(&mut self.ty, x_ty);
        let square = self.op("Mul", &[x, x]);
        let size = self.op("Abs", &[square]);
        self.ty = result;
        let operands = [&[Some(size)], &operands[1..]].concat();
        let n = self.g.add_op("", Op::new("ReduceSum", op.attrs.clone()), &operands);
        Some(self.g.push_result(n, "wide", self.ty.clone()))
    }

    fn sigmoid(&mut self, x: ValueId) -> ValueId {
        let half = self.scale(x, 0.5);
        let t = self.op("Tanh", &[half]);
        let t = self.scale(t, 0.5);
        self.shift(t, 0.5)
    }

    /// Abramowitz and Stegun 7.1.26, within 1.5e-7: a smooth function whose differences are those of erf well within the check.
    fn erf(&mut self, x: ValueId) -> ValueId {
        const P: f64 = 0.3275911;
        const A: [f64; 5] = [0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429];
        let size = self.op("Abs", &[x]);
        let below = self.scale(size, P);
        let below = self.shift(below, 1.0);
        let t = self.op("Reciprocal", &[below]);
        let mut sum = self.scale(t, A[4]);
        for a in A[..4].iter().rev() {
            sum = self.shift(sum, *a);
            sum = self.op("Mul", &[sum, t]);
        }
        let square = self.op("Mul", &[x, x]);
        let square = self.scale(square, -1.0);
        let decay = self.op("Exp", &[square]);
        let tail = self.op("Mul", &[sum, decay]);
        let tail = self.scale(tail, -1.0);
        let size = self.shift(tail, 1.0);
        let sign = self.op("Sign", &[x]);
        self.op("Mul", &[sign, size])
    }
}

fn spell_node(g: &mut Graph, n: NodeId) {
    let Some(op) = g.op(n).filter(|o| o.domain.is_empty()).cloned() else { return };
    let operands: Option<Vec<ValueId>> = g.operands(n).iter().copied().collect();
    let Some(x) = g.operand(n, 0) else { return };
    let y = g.result(n, 0);
    let ty = g.value(y).ty.clone();
    let rank = ty.shape.as_ref().map_or(0, |s| s.len());
    let is_wide = ty.dtype == Some(DType::F64);
    let mut f = Formula { g, ty };
    if op.name == "BatchNormalization" {
        if let Some(operands) = operands.filter(|o| o.len() == 5 && rank >= 2 && f.g.node(n).results().len() == 1) {
            let new = f.batch_norm(&operands, rank, op.float("epsilon") as f64);
            f.g.redirect(y, new);
        }
        return;
    }
    let is_single = f.g.results(n).skip(1).all(|v| !f.g.is_read(v) && !f.g.is_output(v));
    if op.name == "LayerNormalization" && is_wide && is_single && rank > 0 {
        if let Some(operands) = operands.filter(|o| o.len() >= 2) {
            let new = f.layer_norm(&operands, op.int("axis"), rank, op.float("epsilon") as f64);
            f.g.redirect(y, new);
        }
        return;
    }
    if op.name == "IsNaN" && f.g.value(x).ty.dtype == Some(DType::F64) {
        let equal = f.op("Equal", &[x, x]);
        let new = f.op("Not", &[equal]);
        f.g.redirect(y, new);
        return;
    }
    if op.name == "CumSum" && f.g.value(x).ty.dtype == Some(DType::I64) {
        // To tract a shape is no number until it is cast.
        let attrs = Attrs::new().with("to", DType::I64.onnx() as i64);
        let cast = f.g.add_op("", Op::new("Cast", attrs), &[Some(x)]);
        let number = f.g.push_result(cast, "number", f.ty.clone());
        f.g.set_operand(n, 0, Some(number));
        return;
    }
    if !is_wide {
        return;
    }
    if ["ReduceMean", "ReduceSum", "GlobalAveragePool"].contains(&op.name.as_str()) && is_square(f.g, x) {
        f.ty = f.g.value(x).ty.clone();
        let size = f.op("Abs", &[x]);
        f.g.set_operand(n, 0, Some(size));
        return;
    }
    if op.name == "ReduceSumSquare" || op.name == "ReduceL2" {
        let operands = f.g.operands(n).to_vec();
        if let Some(mut new) = f.sum_of_squares(&op, &operands) {
            if op.name == "ReduceL2" {
                new = f.op("Sqrt", &[new]);
            }
            f.g.redirect(y, new);
        }
        return;
    }
    let new = match op.name.as_str() {
        "Erf" => f.erf(x),
        "Sigmoid" => f.sigmoid(x),
        "HardSigmoid" => {
            let line = f.scale(x, op.float("alpha") as f64);
            let line = f.shift(line, op.float("beta") as f64);
            f.between(line, 0.0, 1.0)
        }
        "HardSwish" => {
            let line = f.scale(x, 1.0 / 6.0);
            let line = f.shift(line, 0.5);
            let gate = f.between(line, 0.0, 1.0);
            f.op("Mul", &[x, gate])
        }
        "LeakyRelu" => {
            let zero = f.number(0.0);
            let above = f.op("Max", &[x, zero]);
            let below = f.op("Min", &[x, zero]);
            let below = f.scale(below, op.float("alpha") as f64);
            f.op("Add", &[above, below])
        }
        _ => return,
    };
    f.g.redirect(y, new);
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
