//! Folds what is constant: shape arithmetic over known dimensions and small constant tensors. Exact.
//!
//! Values stay in the width they have in the file; float results are rounded to their type once per operator, as an engine
//! would. Large results are left to the runtime, so that folding never grows a file.

use crate::ir::{DType, Graph, Kind, NodeId, Op, Tensor, ValueId};

/// Largest result that is folded, in elements.
const LARGEST: usize = 1 << 16;

/// A small constant being computed with.
#[derive(Clone, Debug)]
struct Array {
    dtype: DType,
    dims: Vec<i64>,
    /// Elements; integers and booleans are exact in f64 up to 2^53. Beyond it only those are read that survive as they are, the
    /// largest and the smallest integer above all (bounds that mean "to the end"), and nothing is computed with them.
    values: Vec<f64>,
}

impl Array {
    fn read(t: &Tensor) -> Option<Array> {
        if t.len() > LARGEST || t.external().is_some() || !supported(t.dtype()) {
            return None;
        }
        let values = t.to_f64().ok()?;
        let survives = t.dtype().is_float() || t.to_i64().ok()?.iter().zip(&values).all(|(i, v)| *i == *v as i64);
        survives.then(|| Array { dtype: t.dtype(), dims: t.dims().to_vec(), values })
    }

    /// Can be computed with: no integer is so large that a sum or a product would not be exact.
    fn is_exact(&self) -> bool {
        self.dtype.is_float() || self.values.iter().all(|v| v.abs() < 9e15)
    }

    fn write(&self) -> Tensor {
        match self.dtype {
            DType::I64 => Tensor::i64s(&self.dims, &self.values.iter().map(|v| *v as i64).collect::<Vec<_>>()),
            DType::I32 => {
                let bytes = self.values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect();
                Tensor::from_bytes(DType::I32, &self.dims, bytes)
            }
            DType::Bool => Tensor::bools(&self.dims, &self.values.iter().map(|v| *v != 0.0).collect::<Vec<_>>()),
            other => Tensor::floats(other, &self.dims, &self.values),
        }
    }

    fn ints(&self) -> Vec<i64> {
        self.values.iter().map(|v| *v as i64).collect()
    }

    fn vector(values: Vec<i64>) -> Array {
        Array { dtype: DType::I64, dims: vec![values.len() as i64], values: values.into_iter().map(|v| v as f64).collect() }
    }
}

fn supported(t: DType) -> bool {
    matches!(t, DType::I64 | DType::I32 | DType::Bool | DType::F32 | DType::F64)
}

/// Folds every operator whose result is a small constant; returns how many. The operators themselves are left for
/// [`super::eliminate`].
pub fn fold_constants(g: &mut Graph) -> usize {
    let mut folded = 0;
    for id in g.topological_order() {
        let Kind::Op(op) = &g.node(id).kind else { continue };
        if op.is("Constant") || op.is("Identity") || !op.domain.is_empty() || g.node(id).results().len() != 1 {
            continue;
        }
        let Some(array) = evaluate(g, id) else { continue };
        if array.values.len() > LARGEST {
            continue;
        }
        let old = g.result(id, 0);
        if g.is_output(old) {
            continue;
        }
        let name = g.name(old).to_string();
        let new = g.add_initializer(&format!("{name}.folded"), array.write(), false);
        g.replace_uses(old, new, |_| true);
        folded += 1;
    }
    folded
}

fn constant(g: &Graph, v: ValueId) -> Option<Array> {
    // A float initializer the source itself carries may be a parameter: it is not folded into anything.
    if g.is_float(v) && matches!(g.node(v.node).kind, Kind::Initializer { .. }) && !g.name(v).ends_with(".folded") {
        let t = g.constant(v)?;
        if t.len() > 1 {
            return None;
        }
    }
    Array::read(g.constant(v)?)
}

fn evaluate(g: &Graph, id: NodeId) -> Option<Array> {
    let op = g.op(id)?;
    let operands = g.operands(id);
    let operand = |i: usize| operands.get(i).copied().flatten();
    // Operators that only move elements take every integer, the others those that are exact.
    let moves = matches!(op.name.as_str(), "Unsqueeze" | "Squeeze" | "Reshape" | "Flatten" | "Concat" | "Gather" | "Slice")
        || (op.name == "Cast" && casts_to_i64(op));
    let get = |i: usize| constant(g, operand(i)?).filter(|x| moves || x.is_exact());
    let a = &op.attrs;
    match op.name.as_str() {
        "Shape" => {
            let dims = g.tensor_type(operand(0)?)?.known_dims()?;
            let n = dims.len() as i64;
            let clamp = |v: i64| (if v < 0 { v + n } else { v }).clamp(0, n) as usize;
            let (start, end) = (clamp(a.int("start", 0)), clamp(a.int("end", n)));
            Some(Array::vector(dims.get(start..end.max(start))?.to_vec()))
        }
        "Size" => {
            let n = g.tensor_type(operand(0)?)?.elements().known()?;
            Some(Array { dtype: DType::I64, dims: vec![], values: vec![n as f64] })
        }
        "Cast" | "CastLike" => {
            let x = get(0)?;
            let to =
                if op.name == "Cast" { DType::from_onnx(a.int("to", 0) as i32)? } else { g.value(operand(1)?).ty.dtype? };
            if !supported(to) {
                return None;
            }
            let values = x.values.iter().map(|v| {
                if to.is_float() {
                    *v
                } else if to == DType::Bool {
                    (*v != 0.0) as u8 as f64
                } else {
                    v.trunc()
                }
            });
            Some(Array { dtype: to, values: values.collect(), dims: x.dims })
        }
        "Unsqueeze" | "Squeeze" | "Reshape" | "Flatten" => {
            let x = get(0)?;
            let dims = g
                .tensor_type(g.result(id, 0))
                .and_then(|t| t.known_dims())
                .or_else(|| reshaped(op.name.as_str(), &x, get(1), a))?;
            (dims.iter().product::<i64>() == x.values.len() as i64).then_some(Array { dims, ..x })
        }
        "Concat" => {
            let parts: Vec<Array> = (0..operands.len()).map(get).collect::<Option<_>>()?;
            if parts.iter().any(|p| p.dims.len() != 1) {
                return None;
            }
            let dtype = parts.first()?.dtype;
            let values: Vec<f64> = parts.iter().flat_map(|p| p.values.clone()).collect();
            Some(Array { dtype, dims: vec![values.len() as i64], values })
        }
        "Gather" => {
            let (x, at) = (get(0)?, get(1)?);
            if x.dims.len() != 1 || a.int("axis", 0) > 0 {
                return None;
            }
            let n = x.values.len() as i64;
            let values = at.ints().into_iter().map(|i| x.values.get((if i < 0 { i + n } else { i }) as usize).copied());
            Some(Array { dtype: x.dtype, dims: at.dims.clone(), values: values.collect::<Option<_>>()? })
        }
        "Slice" => {
            let x = get(0)?;
            if x.dims.len() != 1 {
                return None;
            }
            let bound = |i: usize, name: &str| match a.ints(name) {
                Some(v) => v.first().copied(),
                None => get(i)?.ints().first().copied(),
            };
            let (start, end) = (bound(1, "starts")?, bound(2, "ends")?);
            let step = if operand(4).is_some() { *get(4)?.ints().first()? } else { 1 };
            if step != 1 {
                return None;
            }
            let n = x.values.len() as i64;
            let clamp = |v: i64| (if v < 0 { v + n } else { v }).clamp(0, n) as usize;
            let values = x.values.get(clamp(start)..clamp(end).max(clamp(start)))?.to_vec();
            Some(Array { dtype: x.dtype, dims: vec![values.len() as i64], values })
        }
        "ConstantOfShape" | "Expand" => {
            let (fill, dims) = if op.name == "Expand" {
                let x = get(0)?;
                let to = get(1)?.ints();
                if x.values.len() != 1 || x.dims.len() > to.len() {
                    return None;
                }
                (x, to)
            } else {
                let fill = match a.tensor("value") {
                    Some(t) => Array::read(t)?,
                    None => Array { dtype: DType::F32, dims: vec![], values: vec![0.0] },
                };
                (fill, get(0)?.ints())
            };
            let n = dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?))?;
            let value = *fill.values.first()?;
            (n <= LARGEST).then(|| Array { dtype: fill.dtype, values: vec![value; n], dims })
        }
        "Range" => {
            let (start, end, step) = (get(0)?, get(1)?, get(2)?);
            if start.dtype != DType::I64 {
                return None;
            }
            let first = |a: &Array| a.values.first().copied();
            let (s, e, d) = (first(&start)?, first(&end)?, first(&step)?);
            let n = ((e - s) / d).ceil().max(0.0);
            if n > LARGEST as f64 {
                return None;
            }
            Some(Array::vector((0..n as i64).map(|i| (s + i as f64 * d) as i64).collect()))
        }
        "Add" | "Sub" | "Mul" | "Div" | "Equal" | "Min" | "Max" => {
            let (x, y) = (get(0)?, get(1)?);
            if operands.len() != 2 || x.dtype.is_float() {
                return None;
            }
            binary(op.name.as_str(), &x, &y)
        }
        "Where" => {
            let (c, x, y) = (get(0)?, get(1)?, get(2)?);
            let same = |p: &Array| p.dims == c.dims || p.values.len() == 1;
            if !same(&x) || !same(&y) || x.dims.len() > c.dims.len() || y.dims.len() > c.dims.len() {
                return None;
            }
            let at = |p: &Array, i: usize| p.values[if p.values.len() == 1 { 0 } else { i }];
            let values = c.values.iter().enumerate().map(|(i, v)| if *v != 0.0 { at(&x, i) } else { at(&y, i) }).collect();
            Some(Array { dtype: x.dtype, dims: c.dims.clone(), values })
        }
        "ReduceProd" => {
            let x = get(0)?;
            let n = g.tensor_type(g.result(id, 0))?.known_dims()?;
            (n.iter().product::<i64>() == 1 && !x.dtype.is_float()).then(|| Array {
                dtype: x.dtype,
                dims: n,
                values: vec![x.values.iter().product()],
            })
        }
        _ => None,
    }
}

fn casts_to_i64(op: &Op) -> bool {
    DType::from_onnx(op.attrs.int("to", 0) as i32) == Some(DType::I64)
}

fn reshaped(name: &str, x: &Array, shape: Option<Array>, a: &crate::ir::Attrs) -> Option<Vec<i64>> {
    let listed = a.ints("axes").map(<[i64]>::to_vec).or_else(|| shape.as_ref().map(Array::ints));
    match name {
        "Reshape" => {
            let mut to = shape?.ints();
            let n = x.values.len() as i64;
            for (i, d) in to.clone().into_iter().enumerate() {
                if d == 0 && a.int("allowzero", 0) == 0 {
                    to[i] = *x.dims.get(i)?;
                }
            }
            if let Some(i) = to.iter().position(|d| *d == -1) {
                let rest: i64 = to.iter().filter(|d| **d != -1).product();
                to[i] = if rest == 0 { return None } else { n / rest };
            }
            Some(to)
        }
        "Squeeze" => {
            let rank = x.dims.len() as i64;
            let axes = listed.map(|l| l.into_iter().map(|v| if v < 0 { v + rank } else { v }).collect::<Vec<_>>());
            let keep = |i: usize, d: i64| axes.as_ref().map_or(d != 1, |l| !l.contains(&(i as i64)));
            Some(x.dims.iter().enumerate().filter(|(i, d)| keep(*i, **d)).map(|(_, d)| *d).collect())
        }
        "Unsqueeze" => {
            let axes = listed?;
            let rank = (x.dims.len() + axes.len()) as i64;
            let axes: Vec<i64> = axes.into_iter().map(|v| if v < 0 { v + rank } else { v }).collect();
            let mut from = x.dims.iter();
            (0..rank).map(|i| if axes.contains(&i) { Some(1) } else { from.next().copied() }).collect()
        }
        _ => None,
    }
}

fn binary(name: &str, x: &Array, y: &Array) -> Option<Array> {
    let (long, short) = if x.values.len() >= y.values.len() { (x, y) } else { (y, x) };
    if short.values.len() != 1 && short.dims != long.dims {
        return None;
    }
    let at = |p: &Array, i: usize| p.values[if p.values.len() == 1 { 0 } else { i }];
    let values: Option<Vec<f64>> = (0..long.values.len())
        .map(|i| {
            let (p, q) = (at(x, i), at(y, i));
            Some(match name {
                "Add" => p + q,
                "Sub" => p - q,
                "Mul" => p * q,
                "Div" if q == 0.0 => return None,
                "Div" => (p / q).trunc(),
                "Min" => p.min(q),
                "Max" => p.max(q),
                _ => (p == q) as u8 as f64,
            })
        })
        .collect();
    let dtype = if name == "Equal" { DType::Bool } else { x.dtype };
    // A single element may have more axes than what it meets.
    let mut dims = vec![1; short.dims.len().saturating_sub(long.dims.len())];
    dims.extend(&long.dims);
    Some(Array { dtype, dims, values: values? }).filter(Array::is_exact)
}
