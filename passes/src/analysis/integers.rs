//! Integers that a graph computes about shapes, as polynomials: what `Shape`, arithmetic on it and constants hold.

use crate::ir::{DType, Dim, Graph, NodeId, ValueId};

/// Largest tensor of integers that is followed, in elements.
const LARGEST: usize = 1 << 14;

/// Elements of an integer or boolean tensor (true is 1).
#[derive(Clone, Debug, PartialEq)]
pub struct Integers {
    /// Its shape.
    pub dims: Vec<i64>,
    /// Its elements, row-major.
    pub values: Vec<Dim>,
}

impl Integers {
    fn vector(values: Vec<Dim>) -> Integers {
        Integers { dims: vec![values.len() as i64], values }
    }

    /// The elements as numbers, if none has a symbol.
    pub fn numbers(&self) -> Option<Vec<i64>> {
        self.values.iter().map(Dim::known).collect()
    }
}

/// The elements of a small integer or boolean constant.
pub fn of_constant(g: &Graph, v: ValueId) -> Option<Integers> {
    let t = g.constant(v)?;
    if t.dtype().is_float() || t.dtype() == DType::Str || t.len() > LARGEST {
        return None;
    }
    let values = t.to_i64().ok().or_else(|| Some(t.to_f64().ok()?.iter().map(|v| *v as i64).collect()))?;
    Some(Integers { dims: t.dims().to_vec(), values: values.into_iter().map(Dim::from).collect() })
}

/// What is known where a node's integers are asked for.
pub trait Known {
    /// The elements of an operand.
    fn integers(&self, v: ValueId) -> Option<&Integers>;
    /// The shape of an operand.
    fn shape(&self, v: ValueId) -> Option<Vec<Dim>>;
    /// The shape of the node's result.
    fn result_dims(&self, v: ValueId) -> Option<Vec<i64>>;
}

/// The integers a node computes, as far as they can be told.
pub fn evaluate(g: &Graph, id: NodeId, about: &dyn Known) -> Option<Integers> {
    let op = g.op(id).filter(|op| op.domain.is_empty())?;
    let operands = g.operands(id);
    let operand = |i: usize| operands.get(i).copied().flatten();
    let get = |i: usize| about.integers(operand(i)?).map(|x| (x.dims.clone(), x.values.clone()));
    let known = |dims: Vec<i64>, values: Vec<Dim>| Some(Integers { dims, values });
    let result_dims = || about.result_dims(g.result(id, 0));
    match op.name.as_str() {
        "Constant" => of_constant(g, g.result(id, 0)),
        "Shape" => {
            let shape = about.shape(operand(0)?)?;
            let n = shape.len() as i64;
            let clamp = |v: i64| (if v < 0 { v + n } else { v }).clamp(0, n) as usize;
            let (start, end) = (clamp(op.attrs.int("start", 0)), clamp(op.attrs.int("end", n)));
            Some(Integers::vector(shape.get(start..end.max(start))?.to_vec()))
        }
        "Size" => {
            let shape = about.shape(operand(0)?)?;
            known(vec![], vec![shape.iter().fold(Dim::from(1), |p, d| &p * d)])
        }
        "Identity" => get(0).and_then(|(d, v)| known(d, v)),
        "Cast" => {
            let (dims, values) = get(0)?;
            let to = DType::from_onnx(op.attrs.int("to", 0) as i32)?;
            let cast = |v: &Dim| match (to, v.known()) {
                (DType::I64, _) | (DType::I32, None) => Some(v.clone()),
                (DType::I32, Some(n)) => i32::try_from(n).is_ok().then(|| v.clone()),
                (DType::Bool, Some(n)) => Some(Dim::from(i64::from(n != 0))),
                _ => None,
            };
            known(dims, values.iter().map(cast).collect::<Option<_>>()?)
        }
        "Unsqueeze" | "Squeeze" | "Reshape" | "Flatten" => {
            let (dims, values) = get(0)?;
            let dims =
                result_dims().or_else(|| (values.len() == 1 || dims.len() == 1).then(|| vec![values.len() as i64]))?;
            (dims.iter().product::<i64>() == values.len() as i64).then_some(Integers { dims, values })
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
            let n =
                shape.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?)).filter(|n| *n <= LARGEST)?;
            known(shape, vec![Dim::from(fill); n])
        }
        "Range" => {
            let one = |i: usize| get(i)?.1.first()?.known();
            let (start, end, step) = (one(0)?, one(1)?, one(2)?);
            let n = (end.checked_sub(start)? as f64 / step as f64).ceil().max(0.0);
            if step == 0 || n > LARGEST as f64 {
                return None;
            }
            let n = n as i64;
            Some(Integers::vector((0..n).map(|i| Dim::from(start + i * step)).collect()))
        }
        // Along a new last axis.
        "OneHot" if op.attrs.int("axis", -1) == -1 => {
            let ((mut dims, at), (_, depth), (_, values)) = (get(0)?, get(1)?, get(2)?);
            let (depth, [off, on]) = (depth.first()?.known()?, values.as_slice()) else { return None };
            if depth < 1 || depth as usize * at.len() > LARGEST {
                return None;
            }
            let mut hot = Vec::with_capacity(at.len() * depth as usize);
            for i in &at {
                let i = i.known()?;
                let i = if i < 0 { i + depth } else { i };
                hot.extend((0..depth).map(|k| if k == i { on.clone() } else { off.clone() }));
            }
            dims.push(depth);
            known(dims, hot)
        }
        "Neg" => get(0).and_then(|(d, v)| known(d, v.iter().map(|v| &Dim::from(0) - v).collect())),
        "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Equal" | "Min" | "Max" | "Less" | "Greater" | "LessOrEqual"
        | "GreaterOrEqual" => broadcast(get(0)?, get(1)?, |x, y| binary(&op.name, x, y)),
        "Where" => {
            let (c, x, y) = (get(0)?, get(1)?, get(2)?);
            let n = c.1.len().max(x.1.len()).max(y.1.len());
            let dims = [&c, &x, &y].into_iter().find(|p| p.1.len() == n)?.0.clone();
            let fits = |p: &Array| p.0 == dims || (p.1.len() == 1 && p.0.len() <= dims.len());
            if !fits(&c) || !fits(&x) || !fits(&y) {
                return None;
            }
            let at = |p: &Array, i: usize| p.1[if p.1.len() == 1 { 0 } else { i }].clone();
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
    Some(Integers { dims, values: values? })
}

fn binary(name: &str, x: &Dim, y: &Dim) -> Option<Dim> {
    let both = x.known().zip(y.known());
    Some(match (name, both) {
        ("Add", _) => x + y,
        ("Sub", _) => x - y,
        ("Mul", _) => x * y,
        ("Div", Some((x, y))) => Dim::from(x.checked_div(y)?),
        ("Div", None) => x.div_exact(y)?,
        // The sign is the divisor's.
        ("Mod", Some((x, y))) => Dim::from(x.checked_rem(y).map(|r| if r != 0 && (r < 0) != (y < 0) { r + y } else { r })?),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, Op, Tensor, TensorType, ValueType};
    use std::collections::HashMap;

    struct Facts(HashMap<ValueId, Integers>, Vec<Dim>);

    impl Known for Facts {
        fn integers(&self, v: ValueId) -> Option<&Integers> {
            self.0.get(&v)
        }

        fn shape(&self, _: ValueId) -> Option<Vec<Dim>> {
            Some(self.1.clone())
        }

        fn result_dims(&self, _: ValueId) -> Option<Vec<i64>> {
            None
        }
    }

    /// The elements of an operator over `Shape(x)` of [n, 6] and a constant.
    fn over_shape(op: Op, constant: &[i64]) -> Option<Vec<Dim>> {
        let mut g = Graph::default();
        let shape = vec![Dim::symbol("n"), Dim::from(6)];
        let x = g.add_input("x", TensorType::new(DType::F32, shape.clone()).into(), None);
        let c = g.add_initializer("c", Tensor::i64s(&[constant.len() as i64], constant), false);
        let extents = g.add_op("", Op::new("Shape", Attrs::new()), &[Some(x)]);
        let v = g.push_result(extents, "extents", ValueType::default());
        let node = g.add_op("", op, &[Some(v), Some(c)]);
        g.push_result(node, "y", ValueType::default());
        let mut facts = Facts(HashMap::from([(c, of_constant(&g, c)?)]), shape);
        let found = evaluate(&g, extents, &facts)?;
        facts.0.insert(v, found);
        evaluate(&g, node, &facts).map(|i| i.values)
    }

    #[test]
    fn symbols_are_carried_and_what_depends_on_them_is_not_guessed() {
        let n = Dim::symbol("n");
        let op = |name: &str| Op::new(name, Attrs::new());
        assert_eq!(over_shape(op("Mul"), &[4]), Some(vec![&n * &Dim::from(4), Dim::from(24)]));
        assert_eq!(over_shape(op("Gather"), &[-1, 0]), Some(vec![Dim::from(6), n.clone()]));
        assert_eq!(over_shape(op("Concat"), &[i64::MAX]), Some(vec![n, Dim::from(6), Dim::from(i64::MAX)]));
        // Neither n / 4 nor n = 4 can be told; an extent is not negative, whatever n is.
        assert_eq!(over_shape(op("Div"), &[4]), None);
        assert_eq!(over_shape(op("Equal"), &[4]), None);
        assert_eq!(over_shape(op("Equal"), &[-1]), Some(vec![Dim::from(0), Dim::from(0)]));
        assert_eq!(over_shape(op("Gather"), &[2]), None);
    }

    #[test]
    fn numbers_follow_the_operators_definitions() {
        let both = |name: &str, x: i64, y: i64| binary(name, &Dim::from(x), &Dim::from(y)).and_then(|d| d.known());
        assert_eq!((both("Mod", -7, 3), both("Mod", 7, -3), both("Mod", 6, 3)), (Some(2), Some(-2), Some(0)));
        assert_eq!((both("Div", -7, 2), both("Div", 7, 0)), (Some(-3), None));
        assert_eq!((both("Div", i64::MIN, -1), both("Mod", i64::MIN, -1)), (None, None));
        assert_eq!((both("Less", 1, 2), both("Equal", 2, 2)), (Some(1), Some(1)));
    }
}
