//! Integers that a graph computes about shapes, as polynomials: what `Shape`, arithmetic on it and constants hold.

use super::Analysis;
use crate::ir::{DType, Dim, Graph, NodeId, ValueId};

/// Largest tensor of integers that is followed.
const LARGEST: usize = 1 << 14;

/// Elements of an integer tensor for the new batch.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Integers {
    /// These.
    Known {
        /// Its shape.
        dims: Vec<i64>,
        /// Its elements.
        values: Vec<Dim>,
    },
    /// Something that depends on the batch in a way that cannot be told.
    Depends,
}

impl Integers {
    fn vector(values: Vec<Dim>) -> Integers {
        Integers::Known { dims: vec![values.len() as i64], values }
    }

    /// The elements, if they can be told.
    pub(super) fn values(&self) -> Option<&[Dim]> {
        match self {
            Integers::Known { values, .. } => Some(values),
            Integers::Depends => None,
        }
    }

    /// The elements as numbers.
    pub(super) fn numbers(&self) -> Option<Vec<i64>> {
        self.values()?.iter().map(Dim::known).collect()
    }

    /// Does any element depend on the batch?
    pub(super) fn depends(&self, batch: &Dim) -> bool {
        let symbol = batch.symbols().next().unwrap_or_default();
        self.values().is_none_or(|v| v.iter().any(|d| d.symbols().any(|s| s == symbol)))
    }
}

/// The elements of a small integer constant.
pub(super) fn of_constant(g: &Graph, v: ValueId) -> Option<(ValueId, Integers)> {
    let t = g.constant(v)?;
    if t.dtype().is_float() || t.dtype() == DType::Str || t.len() > LARGEST {
        return None;
    }
    let values = t.to_i64().ok().or_else(|| Some(t.to_f64().ok()?.iter().map(|v| *v as i64).collect()))?;
    Some((v, Integers::Known { dims: t.dims().to_vec(), values: values.into_iter().map(Dim::from).collect() }))
}

/// The integers a node computes, as far as they can be told.
pub(super) fn evaluate(a: &Analysis, id: NodeId) -> Option<Integers> {
    let g = a.g;
    let op = g.op(id).filter(|op| op.domain.is_empty())?;
    let operands = g.operands(id);
    let operand = |i: usize| operands.get(i).copied().flatten();
    let get = |i: usize| match a.integers.get(&operand(i)?)? {
        Integers::Known { dims, values } => Some((dims.clone(), values.clone())),
        Integers::Depends => None,
    };
    let known = |dims: Vec<i64>, values: Vec<Dim>| Some(Integers::Known { dims, values });
    let result_dims = || g.tensor_type(g.result(id, 0))?.known_dims();
    match op.name.as_str() {
        "Constant" => of_constant(g, g.result(id, 0)).map(|(_, i)| i),
        "Shape" => {
            let shape = a.new_shape(operand(0)?).ok()?;
            let n = shape.len() as i64;
            let clamp = |v: i64| (if v < 0 { v + n } else { v }).clamp(0, n) as usize;
            let (start, end) = (clamp(op.attrs.int("start", 0)), clamp(op.attrs.int("end", n)));
            Some(Integers::vector(shape.get(start..end.max(start))?.to_vec()))
        }
        "Size" => {
            let shape = a.new_shape(operand(0)?).ok()?;
            known(vec![], vec![shape.iter().fold(Dim::from(1), |p, d| &p * d)])
        }
        "Identity" => get(0).and_then(|(d, v)| known(d, v)),
        "Cast" => {
            let to = DType::from_onnx(op.attrs.int("to", 0) as i32)?;
            if to.is_float() {
                return None;
            }
            get(0).and_then(|(d, v)| known(d, v))
        }
        "Unsqueeze" | "Squeeze" | "Reshape" | "Flatten" => {
            let (dims, values) = get(0)?;
            let dims =
                result_dims().or_else(|| (values.len() == 1 || dims.len() == 1).then(|| vec![values.len() as i64]))?;
            (dims.iter().product::<i64>() == values.len() as i64).then_some(Integers::Known { dims, values })
        }
        "Concat" => {
            let mut all = Vec::new();
            for i in 0..operands.len() {
                let (dims, values) = get(i)?;
                if dims.len() != 1 {
                    return None;
                }
                all.extend(values);
            }
            Some(Integers::vector(all))
        }
        "Gather" => {
            let ((dims, values), (at_dims, at)) = (get(0)?, get(1)?);
            if dims.len() != 1 || op.attrs.int("axis", 0) > 0 {
                return None;
            }
            let n = values.len() as i64;
            let pick = |i: &Dim| {
                let i = i.known()?;
                values.get(usize::try_from(if i < 0 { i + n } else { i }).ok()?).cloned()
            };
            known(at_dims, at.iter().map(pick).collect::<Option<_>>()?)
        }
        "Slice" => {
            let (dims, values) = get(0)?;
            let one = |i: usize, name: &str| match op.attrs.ints(name) {
                Some(v) => v.first().copied(),
                None => get(i)?.1.first()?.known(),
            };
            if dims.len() != 1 || (operand(4).is_some() && one(4, "steps")? != 1) {
                return None;
            }
            let n = values.len() as i64;
            let clamp = |v: i64| (if v < 0 { v.saturating_add(n) } else { v }).clamp(0, n) as usize;
            let (start, end) = (clamp(one(1, "starts")?), clamp(one(2, "ends")?));
            Some(Integers::vector(values.get(start..end.max(start))?.to_vec()))
        }
        "ConstantOfShape" => {
            let shape: Vec<i64> = get(0)?.1.iter().map(Dim::known).collect::<Option<_>>()?;
            let fill = match op.attrs.tensor("value") {
                Some(t) if !t.dtype().is_float() => t.to_f64().ok()?.first().copied()? as i64,
                _ => return None,
            };
            let n = usize::try_from(shape.iter().product::<i64>()).ok().filter(|n| *n <= LARGEST)?;
            known(shape, vec![Dim::from(fill); n])
        }
        "Range" => {
            let one = |i: usize| get(i)?.1.first()?.known();
            let (start, end, step) = (one(0)?, one(1)?, one(2)?);
            if step == 0 || ((end - start) / step) as usize > LARGEST {
                return None;
            }
            let n = ((end - start) as f64 / step as f64).ceil().max(0.0) as i64;
            Some(Integers::vector((0..n).map(|i| Dim::from(start + i * step)).collect()))
        }
        "Neg" => get(0).and_then(|(d, v)| known(d, v.iter().map(|v| &Dim::from(0) - v).collect())),
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Equal" | "Min" | "Max" | "Less" | "Greater" | "LessOrEqual"
        | "GreaterOrEqual" => broadcast(get(0)?, get(1)?, |x, y| binary(&op.name, x, y)),
        "Where" => {
            let (c, x, y) = (get(0)?, get(1)?, get(2)?);
            let n = c.1.len().max(x.1.len()).max(y.1.len());
            let fits = |p: &(Vec<i64>, Vec<Dim>)| p.1.len() == n || p.1.len() == 1;
            if !fits(&c) || !fits(&x) || !fits(&y) {
                return None;
            }
            let dims = [&c, &x, &y].into_iter().find(|p| p.1.len() == n)?.0.clone();
            let at = |p: &(Vec<i64>, Vec<Dim>), i: usize| p.1[if p.1.len() == 1 { 0 } else { i }].clone();
            let pick = |i: usize| Some(if at(&c, i).known()? != 0 { at(&x, i) } else { at(&y, i) });
            known(dims, (0..n).map(pick).collect::<Option<_>>()?)
        }
        "ReduceProd" => {
            let (_, values) = get(0)?;
            let dims = result_dims().filter(|d| d.iter().product::<i64>() == 1)?;
            known(dims, vec![values.iter().fold(Dim::from(1), |p, d| &p * d)])
        }
        _ => None,
    }
}

type Array = (Vec<i64>, Vec<Dim>);

fn broadcast(x: Array, y: Array, f: impl Fn(&Dim, &Dim) -> Option<Dim>) -> Option<Integers> {
    let rank = x.0.len().max(y.0.len());
    let padded = |d: &[i64]| [vec![1; rank - d.len()], d.to_vec()].concat();
    let (dx, dy) = (padded(&x.0), padded(&y.0));
    let dims: Vec<i64> = dx.iter().zip(&dy).map(|(a, b)| if *a == 1 { *b } else { *a }).collect();
    let n: i64 = dims.iter().product();
    if n as usize > LARGEST || dx.iter().zip(&dy).any(|(a, b)| a != b && *a != 1 && *b != 1) {
        return None;
    }
    let index = |of: &[i64], flat: i64| {
        let (mut rest, mut stride, mut at) = (flat, 1, 0);
        for axis in (0..rank).rev() {
            let i = rest % dims[axis];
            rest /= dims[axis];
            at += if of[axis] == 1 { 0 } else { i * stride };
            stride *= of[axis];
        }
        at as usize
    };
    let values: Option<Vec<Dim>> = (0..n).map(|i| f(x.1.get(index(&dx, i))?, y.1.get(index(&dy, i))?)).collect();
    Some(Integers::Known { dims, values: values? })
}

fn binary(name: &str, x: &Dim, y: &Dim) -> Option<Dim> {
    let both = x.known().zip(y.known());
    Some(match (name, both) {
        ("Add", _) => x + y,
        ("Sub", _) => x - y,
        ("Mul", _) => x * y,
        ("Div", Some((x, y))) if y != 0 => Dim::from(x / y),
        ("Div", None) => x.div_exact(y)?,
        ("Mod", Some((x, y))) if y != 0 => Dim::from(x.rem_euclid(y)),
        ("Equal", _) if x == y => Dim::from(1),
        ("Equal", Some(_)) => Dim::from(0),
        // An extent is no negative number.
        ("Equal", None) if [x, y].iter().any(|d| d.known().is_some_and(|n| n < 0)) => Dim::from(0),
        ("Less", Some((x, y))) => Dim::from((x < y) as i64),
        ("Greater", Some((x, y))) => Dim::from((x > y) as i64),
        ("LessOrEqual", Some((x, y))) => Dim::from((x <= y) as i64),
        ("GreaterOrEqual", Some((x, y))) => Dim::from((x >= y) as i64),
        ("Min", Some((x, y))) => Dim::from(x.min(y)),
        ("Max", Some((x, y))) => Dim::from(x.max(y)),
        _ => return None,
    })
}
