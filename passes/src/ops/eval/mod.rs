//! The evaluator of shape and integer arithmetic: what an operator makes of elements that are known.
//!
//! It is written once, for elements of any [`Domain`]: [`Exact`] for folding, which gives ONNX Runtime's result bit for bit or none;
//! [`Poly`] for shapes over symbolic extents; [`Bounded`] for proofs. Operators that move elements are [index maps](places).
//!
//! Sums and products of floats are not reduced, since engines order them differently.

mod domain;
mod movement;
mod number;
pub mod places;

pub use domain::{Bounded, Domain, Element, Exact, Poly};
pub use movement::{joined, part_sizes};

use crate::ir::{Attrs, DType, Dim, Graph, NodeId, Tensor, ValueId, ValueType};
use places::{Places, axis_of, common, count, expanded, strided, strides};
use std::borrow::Cow;

/// A tensor whose elements are known in a domain's way, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Array<D> {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub dims: Vec<i64>,
    /// Elements.
    pub elements: Vec<Element<D>>,
}

/// Operators that are evaluated.
pub const OPERATORS: &[&str] = &[
    "Abs",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Cast",
    "CastLike",
    "Ceil",
    "Clip",
    "Concat",
    "ConstantOfShape",
    "CumSum",
    "Div",
    "Equal",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Greater",
    "GreaterOrEqual",
    "Identity",
    "Less",
    "LessOrEqual",
    "Max",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "NonZero",
    "Not",
    "OneHot",
    "Or",
    "Pad",
    "Pow",
    "Range",
    "Reciprocal",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Shape",
    "Sigmoid",
    "Sign",
    "Size",
    "Slice",
    "Softmax",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Tanh",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
    "Xor",
];

/// Does the operator only choose, convert or place elements, so that a float comes out as it went in?
pub fn only_moves(name: &str) -> bool {
    const MOVES: &[&str] = &[
        "Cast",
        "CastLike",
        "Concat",
        "ConstantOfShape",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Pad",
        "Reshape",
        "ScatterElements",
        "ScatterND",
        "Shape",
        "Size",
        "Slice",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Trilu",
        "Unsqueeze",
        "Where",
    ];
    MOVES.contains(&name)
}

/// Is the operator evaluated from the type of this operand, whatever its elements are?
pub fn reads_type(name: &str, operand: usize) -> bool {
    matches!((name, operand), ("Shape" | "Size", 0) | ("CastLike", 1))
}

/// An operand of a [`Call`].
#[derive(Clone, Debug)]
pub enum Operand<'a, D> {
    /// An optional one that is left out.
    Missing,
    /// Its elements.
    Array(&'a Array<D>),
    /// Its type, where that is all the operator reads.
    Type(ValueType),
}

/// An operator of the standard domain and what is known of its operands.
pub struct Call<'a, D> {
    /// Its name.
    pub name: &'a str,
    /// Its attributes.
    pub attrs: &'a Attrs,
    /// Version of the operator set.
    pub opset: i64,
    /// Its operands.
    pub operands: &'a [Operand<'a, D>],
    /// Number of its results.
    pub results: usize,
    /// Largest result, in elements.
    pub most: usize,
}

/// What is known of a graph's values.
pub trait Facts<D: Domain> {
    /// The elements of a value.
    fn array(&self, v: ValueId) -> Option<Cow<'_, Array<D>>>;
    /// Its type.
    fn ty(&self, v: ValueId) -> ValueType;
}

/// The results of a node, if all it reads is known and they have at most so many elements.
pub fn evaluate_node<D: Domain>(g: &Graph, id: NodeId, facts: &dyn Facts<D>, most: usize) -> Option<Vec<Array<D>>> {
    let op = g.op(id).filter(|op| op.domain.is_empty() && OPERATORS.contains(&op.name.as_str()))?;
    let values = g.operands(id);
    let mut arrays = Vec::with_capacity(values.len());
    for (i, v) in values.iter().enumerate() {
        arrays.push(match v {
            Some(v) if !reads_type(&op.name, i) => Some(facts.array(*v)?),
            _ => None,
        });
    }
    let mut operands: Vec<Operand<D>> = Vec::with_capacity(values.len());
    for (v, array) in values.iter().zip(&arrays) {
        operands.push(match (v, array) {
            (_, Some(array)) => Operand::Array(array),
            (Some(v), None) => Operand::Type(facts.ty(*v)),
            (None, None) => Operand::Missing,
        });
    }
    let opset = g.opsets.get("").copied().unwrap_or(18);
    let results = g.node(id).results().len();
    evaluate(&Call { name: &op.name, attrs: &op.attrs, opset, operands: &operands, results, most })
}

/// The results of an operator, if they can be told.
pub fn evaluate<D: Domain>(c: &Call<D>) -> Option<Vec<Array<D>>> {
    if c.name == "Split" {
        return c.split();
    }
    Some(vec![c.single()?])
}

impl<D: Domain> Array<D> {
    /// The elements of a constant in the file, if there are at most so many.
    pub fn of_tensor(t: &Tensor, most: usize) -> Option<Array<D>> {
        if t.len() > most || t.external().is_some() {
            return None;
        }
        Array::read(t)
    }

    /// The elements of a constant, wherever it is.
    pub fn read(t: &Tensor) -> Option<Array<D>> {
        let elements = if t.dtype().is_float() {
            t.to_f64().ok()?.into_iter().map(|v| D::admits(v).then_some(Element::Float(v))).collect::<Option<_>>()?
        } else {
            t.to_i64().ok()?.into_iter().map(Element::Int).collect()
        };
        Some(Array { dtype: t.dtype(), dims: t.dims().to_vec(), elements })
    }

    /// The constant of these elements, if all are numbers.
    pub fn to_tensor(&self) -> Option<Tensor> {
        if self.dtype.is_float() {
            let float = |e: &Element<D>| if let Element::Float(v) = e { Some(*v) } else { None };
            let values: Vec<f64> = self.elements.iter().map(float).collect::<Option<_>>()?;
            return Some(Tensor::floats(self.dtype, &self.dims, &values));
        }
        let size = self.dtype.size()?;
        let mut bytes = Vec::with_capacity(size * self.elements.len());
        for e in &self.elements {
            bytes.extend_from_slice(e.int()?.to_le_bytes().get(..size)?);
        }
        Some(Tensor::from_bytes(self.dtype, &self.dims, bytes))
    }

    /// A vector of 64-bit integers.
    pub fn vector(values: impl IntoIterator<Item = i64>) -> Array<D> {
        let elements: Vec<_> = values.into_iter().map(Element::Int).collect();
        Array { dtype: DType::I64, dims: vec![elements.len() as i64], elements }
    }

    /// The elements, if all are integers.
    pub fn ints(&self) -> Option<Vec<i64>> {
        self.elements.iter().map(Element::int).collect()
    }

    /// The elements, if all are integers or extents.
    pub fn extents(&self) -> Option<Vec<Dim>> {
        self.elements.iter().map(|e| D::as_extent(e, self.dtype)).collect()
    }

    /// Converted to another type.
    pub fn cast(&self, to: DType) -> Option<Array<D>> {
        let from = self.dtype;
        let float = |v: Option<f64>| v.filter(|v| D::admits(*v)).map(Element::Float);
        self.map(to, |e| match e {
            Element::Int(v) if to.is_float() => float(number::to_float(from, *v, to)),
            Element::Int(v) => number::wrap(to, *v).map(Element::Int),
            // From f64 to a half directly and by way of f32 may round differently.
            Element::Float(v) if to.is_float() => {
                float(number::round(to, *v).filter(|r| r == v || from != DType::F64 || to == DType::F32))
            }
            Element::Float(v) => number::to_int(*v, to).map(Element::Int),
            Element::Open(d) => d.cast(from, to),
        })
    }

    /// The elements in the places that an index map names.
    pub fn picked(&self, places: Places) -> Option<Array<D>> {
        self.picked_with(&[], places)
    }

    /// As [`Array::picked`]; places past the last element are those of `more`.
    fn picked_with(&self, more: &[Element<D>], (dims, from): Places) -> Option<Array<D>> {
        let own = self.elements.len();
        let at = |i: &usize| if *i < own { self.elements.get(*i) } else { more.get(*i - own) };
        let elements = from.iter().map(|i| at(i).cloned()).collect::<Option<_>>()?;
        Some(Array { dtype: self.dtype, dims, elements })
    }

    fn map(&self, dtype: DType, f: impl Fn(&Element<D>) -> Option<Element<D>>) -> Option<Array<D>> {
        Some(Array { dtype, dims: self.dims.clone(), elements: self.elements.iter().map(f).collect::<Option<_>>()? })
    }

    fn unary(&self, name: &str) -> Option<Array<D>> {
        let t = self.dtype;
        self.map(t, |e| match e {
            Element::Int(v) => number::of_int(name, t, *v).map(Element::Int),
            // Not correctly rounded by any engine, but bounded.
            Element::Float(_) if matches!(name, "Sigmoid" | "Tanh") => D::within(t, 1.001),
            Element::Float(v) => rounded(t, number::of_float(name, *v)?),
            Element::Open(d) => d.unary(name, t),
        })
    }

    /// An operator on pairs of elements that broadcast.
    fn binary(&self, name: &str, attrs: &Attrs, other: &Array<D>, most: usize) -> Option<Array<D>> {
        let dims = common(&self.dims, &other.dims)?;
        let ((_, p), (_, q)) = (expanded(&self.dims, &dims, most)?, expanded(&other.dims, &dims, most)?);
        if self.dtype != other.dtype && name != "Pow" {
            return None;
        }
        let meet = Meet::of::<D>(name, attrs, self.dtype)?;
        let pairs = p.iter().zip(&q).map(|(i, j)| meet.apply(self.elements.get(*i)?, other.elements.get(*j)?));
        Some(Array { dtype: meet.result(), dims, elements: pairs.collect::<Option<_>>()? })
    }
}

/// A float result, rounded to its type.
fn rounded<D: Domain>(t: DType, v: f64) -> Option<Element<D>> {
    number::round(t, v).filter(|v| !v.is_nan() && D::admits(*v)).map(Element::Float)
}

/// What an operator makes of two elements.
struct Meet<'a> {
    name: &'a str,
    dtype: DType,
    ints: number::Ints,
    floats: number::Floats,
}

impl<'a> Meet<'a> {
    fn of<D: Domain>(name: &'a str, attrs: &Attrs, dtype: DType) -> Option<Meet<'a>> {
        let (ints, floats) = number::binary(name, attrs)?;
        Some(Meet { name, dtype, ints, floats })
    }

    fn result(&self) -> DType {
        if number::compares(self.name) { DType::Bool } else { self.dtype }
    }

    fn apply<D: Domain>(&self, x: &Element<D>, y: &Element<D>) -> Option<Element<D>> {
        let t = self.result();
        match (x, y) {
            (Element::Int(x), Element::Int(y)) => number::wrap(t, (self.ints)(self.dtype, *x, *y)?).map(Element::Int),
            (Element::Float(x), Element::Float(y)) if t == DType::Bool => Some(Element::Int((self.floats)(*x, *y)? as i64)),
            (Element::Float(x), Element::Float(y)) => rounded(t, (self.floats)(*x, *y)?),
            _ => D::binary(self.name, self.dtype, x, y),
        }
    }
}

impl<'a, D: Domain> Call<'a, D> {
    fn x(&self, i: usize) -> Option<&'a Array<D>> {
        match self.operands.get(i)? {
            Operand::Array(a) => Some(a),
            _ => None,
        }
    }

    fn is_there(&self, i: usize) -> bool {
        self.operands.get(i).is_some_and(|o| !matches!(o, Operand::Missing))
    }

    fn ty(&self, i: usize) -> Option<ValueType> {
        match self.operands.get(i)? {
            Operand::Missing => None,
            Operand::Array(a) => {
                let shape = a.dims.iter().map(|d| Dim::from(*d)).collect();
                Some(ValueType { dtype: Some(a.dtype), shape: Some(shape) })
            }
            Operand::Type(ty) => Some(ty.clone()),
        }
    }

    /// A list of integers given as an attribute or an operand, if it is given.
    fn listed(&self, name: &str, i: usize) -> Option<Option<Vec<i64>>> {
        match self.attrs.ints(name) {
            Some(list) => Some(Some(list.to_vec())),
            None if self.is_there(i) => Some(Some(self.x(i)?.ints()?)),
            None => Some(None),
        }
    }

    /// The only integer of an operand.
    fn one(&self, i: usize) -> Option<i64> {
        match self.x(i)?.elements.as_slice() {
            [e] => e.int(),
            _ => None,
        }
    }

    /// The attribute `axis`, counted from the front of the first operand.
    fn axis(&self, default: i64) -> Option<usize> {
        axis_of(self.attrs.int("axis", default), self.x(0)?.dims.len())
    }

    fn binary(&self, x: &Array<D>, y: &Array<D>) -> Option<Array<D>> {
        x.binary(self.name, self.attrs, y, self.most)
    }

    fn single(&self) -> Option<Array<D>> {
        match self.name {
            "Shape" | "Size" => self.shape(),
            "Identity" => self.x(0).cloned(),
            "Cast" => self.x(0)?.cast(DType::from_onnx(self.attrs.int("to", 0) as i32)?),
            "CastLike" => self.x(0)?.cast(self.ty(1)?.dtype?),
            "Neg" | "Abs" | "Sign" | "Not" | "BitwiseNot" | "Relu" | "Floor" | "Ceil" | "Round" | "Sqrt" | "Reciprocal"
            | "Sigmoid" | "Tanh" => self.x(0)?.unary(self.name),
            "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Pow" | "Equal" | "Less" | "LessOrEqual" | "Greater"
            | "GreaterOrEqual" | "And" | "Or" | "Xor" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" | "BitShift" => {
                self.binary(self.x(0)?, self.x(1)?)
            }
            "Min" | "Max" => (1..self.operands.len()).try_fold(self.x(0)?.clone(), |all, i| self.binary(&all, self.x(i)?)),
            "Clip" => self.clip(),
            "ReduceSum" | "ReduceProd" | "ReduceMax" | "ReduceMin" => self.reduce(),
            "CumSum" => self.running_sum(),
            "ArgMax" | "ArgMin" => self.place_of_largest(),
            "Range" => self.range(),
            "NonZero" => self.non_zero(),
            "Softmax" => self.softmax(),
            _ => self.moved(),
        }
    }

    fn shape(&self) -> Option<Array<D>> {
        let shape = self.ty(0)?.shape?;
        let int64 = |dims, extents: &[Dim]| {
            let elements = extents.iter().map(D::extent).collect::<Option<_>>()?;
            Some(Array { dtype: DType::I64, dims, elements })
        };
        if self.name == "Size" {
            return int64(vec![], &[shape.iter().fold(Dim::from(1), |p, d| &p * d)]);
        }
        let n = shape.len() as i64;
        let (start, len) = places::range(n, self.attrs.int("start", 0), self.attrs.int("end", n), 1)?;
        int64(vec![len], shape.get(start as usize..(start + len) as usize)?)
    }

    /// At least the first bound, then at most the second.
    fn clip(&self) -> Option<Array<D>> {
        let x = self.x(0)?;
        let mut clipped = x.clone();
        for (i, attr, name) in [(1, "min", "Max"), (2, "max", "Min")] {
            let bound = match self.attrs.get(attr) {
                None if !self.is_there(i) => continue,
                None => self.x(i)?.clone(),
                Some(_) => {
                    let v = f64::from(self.attrs.float(attr, 0.0));
                    Array { dtype: x.dtype, dims: vec![], elements: vec![rounded(x.dtype, v)?] }
                }
            };
            clipped = clipped.binary(name, self.attrs, &bound, self.most)?;
        }
        Some(clipped)
    }

    fn reduce(&self) -> Option<Array<D>> {
        let x = self.x(0)?;
        let rank = x.dims.len();
        let listed = self.listed("axes", 1)?.unwrap_or_default();
        if listed.is_empty() && self.attrs.int("noop_with_empty_axes", 0) != 0 {
            return Some(x.clone());
        }
        let mut gone = vec![listed.is_empty(); rank];
        for a in listed {
            gone[axis_of(a, rank)?] = true;
        }
        let kept: Vec<i64> = x.dims.iter().zip(&gone).map(|(d, gone)| if *gone { 1 } else { *d }).collect();
        let own = strides(&kept);
        let steps: Vec<i64> = own.iter().zip(&gone).map(|(s, gone)| if *gone { 0 } else { *s }).collect();
        let (_, into) = strided(x.dims.clone(), &steps, 0, usize::MAX)?;
        let n = count(&kept, self.most)?;
        let name = match self.name {
            "ReduceSum" => "Add",
            "ReduceProd" => "Mul",
            "ReduceMax" => "Max",
            _ => "Min",
        };
        if x.dtype.is_float() && matches!(name, "Add" | "Mul") && into.len() != n {
            return None;
        }
        let meet = Meet::of::<D>(name, self.attrs, x.dtype)?;
        let mut out: Vec<Option<Element<D>>> = vec![None; n];
        for (e, at) in x.elements.iter().zip(into) {
            let slot = out.get_mut(at)?;
            *slot = Some(match slot {
                Some(all) => meet.apply(all, e)?,
                None => e.clone(),
            });
        }
        let keep = self.attrs.int("keepdims", 1) != 0;
        let dims = kept.iter().zip(&gone).filter(|(_, gone)| keep || !**gone).map(|(d, _)| *d).collect();
        // Of no elements there is no largest one, and engines differ in what the sum is.
        Some(Array { dtype: x.dtype, dims, elements: out.into_iter().collect::<Option<_>>()? })
    }

    /// Lines along an axis: the places of each, one line after the other in the order of the other axes.
    fn lines(dims: &[i64], axis: usize) -> impl Iterator<Item = Vec<usize>> {
        let n = dims[axis].max(0) as usize;
        let inner = dims[axis + 1..].iter().product::<i64>().max(0) as usize;
        let outer = dims[..axis].iter().product::<i64>().max(0) as usize;
        (0..outer * inner).map(move |l| (0..n).map(|i| (l / inner * n + i) * inner + l % inner).collect())
    }

    fn running_sum(&self) -> Option<Array<D>> {
        let x = self.x(0)?;
        let axis = axis_of(self.one(1)?, x.dims.len())?;
        if x.dtype.is_float() {
            return None;
        }
        let (exclusive, reverse) = (self.attrs.int("exclusive", 0) != 0, self.attrs.int("reverse", 0) != 0);
        let meet = Meet::of::<D>("Add", self.attrs, x.dtype)?;
        let mut out = x.elements.clone();
        for mut line in Self::lines(&x.dims, axis) {
            if reverse {
                line.reverse();
            }
            let mut sum = Element::Int(0);
            for at in line {
                let next = meet.apply(&sum, &x.elements[at])?;
                out[at] = if exclusive { sum } else { next.clone() };
                sum = next;
            }
        }
        Some(Array { elements: out, ..x.clone() })
    }

    fn place_of_largest(&self) -> Option<Array<D>> {
        let x = self.x(0)?;
        let axis = self.axis(0)?;
        let last = self.attrs.int("select_last_index", 0) != 0;
        let name = match (self.name == "ArgMax", last) {
            (true, false) => "Greater",
            (true, true) => "GreaterOrEqual",
            (false, false) => "Less",
            (false, true) => "LessOrEqual",
        };
        let meet = Meet::of::<D>(name, self.attrs, x.dtype)?;
        let mut found = Vec::new();
        for line in Self::lines(&x.dims, axis) {
            let mut best = 0;
            for i in 1..line.len() {
                if meet.apply(&x.elements[line[i]], &x.elements[line[best]])?.int()? != 0 {
                    best = i;
                }
            }
            line.first()?;
            found.push(Element::Int(best as i64));
        }
        let mut dims = x.dims.clone();
        dims[axis] = 1;
        if self.attrs.int("keepdims", 1) == 0 {
            dims.remove(axis);
        }
        Some(Array { dtype: DType::I64, dims, elements: found })
    }

    fn range(&self) -> Option<Array<D>> {
        let t = self.x(0)?.dtype;
        if t.is_float() {
            let one = |i: usize| match self.x(i)?.elements.as_slice() {
                [Element::Float(v)] if v.is_finite() => Some(*v),
                _ => None,
            };
            let (start, end, step) = (one(0)?, one(1)?, one(2)?);
            let n = ((end - start) / step).ceil().max(0.0);
            let n = count(&[(n < 1e15).then_some(n as i64)?], self.most)?;
            // Added up or multiplied out: the same where nothing rounds.
            let exact = |v: &f64| (v * 1024.0).fract() == 0.0 && v.abs() < 2f64.powi(20) && number::round(t, *v) == Some(*v);
            let at = |i: usize| Some(start + i as f64 * step).filter(exact).map(Element::Float);
            [start, end, step, n as f64 * step].iter().all(exact).then_some(())?;
            return Some(Array { dtype: t, dims: vec![n as i64], elements: (0..n).map(at).collect::<Option<_>>()? });
        }
        let (start, end, step) = (self.one(0)?, self.one(1)?, self.one(2)?);
        let n = length(start, end, step).and_then(|n| count(&[i64::try_from(n).ok()?], self.most))?;
        let at = |i: usize| number::wrap(t, start.wrapping_add((i as i64).wrapping_mul(step))).map(Element::Int);
        Some(Array { dtype: t, dims: vec![n as i64], elements: (0..n).map(at).collect::<Option<_>>()? })
    }

    fn non_zero(&self) -> Option<Array<D>> {
        let x = self.x(0)?;
        let is_set = |e: &Element<D>| match e {
            Element::Int(v) => Some(*v != 0),
            Element::Float(v) => Some(*v != 0.0),
            Element::Open(_) => None,
        };
        let set: Vec<bool> = x.elements.iter().map(is_set).collect::<Option<_>>()?;
        let all = strides(&x.dims);
        let places: Vec<i64> = (0..set.len() as i64).filter(|i| set[*i as usize]).collect();
        let along = x.dims.iter().zip(&all).flat_map(|(d, s)| places.iter().map(move |p| Element::Int(p / s % d)));
        Some(Array { dtype: DType::I64, dims: vec![x.dims.len() as i64, places.len() as i64], elements: along.collect() })
    }

    /// Along the last axis. Where one entry is so much larger than the others that their exponentials underflow, the result is
    /// exactly one-hot; entries that underflow are exactly zero; others are only bounded.
    fn softmax(&self) -> Option<Array<D>> {
        let x = self.x(0)?;
        let axis = self.axis(if self.opset < 13 { 1 } else { -1 })?;
        let width = *x.dims.last()? as usize;
        if axis + 1 != x.dims.len() || width == 0 || !x.dtype.is_float() {
            return None;
        }
        // Far below ln(smallest denormal / 2), whatever way exp is computed.
        let gone = if x.dtype == DType::F64 { -760.0 } else { -110.0 };
        let float = |e: &Element<D>| if let Element::Float(v) = e { v.is_finite().then_some(*v) } else { None };
        let mut out = Vec::with_capacity(x.elements.len());
        for row in x.elements.chunks(width) {
            let row: Vec<f64> = row.iter().map(float).collect::<Option<_>>()?;
            let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let near = row.iter().filter(|v| **v - top > gone).count();
            for v in row {
                out.push(match (v - top > gone, near) {
                    (false, _) => Element::Float(0.0),
                    (true, 1) => Element::Float(1.0),
                    (true, _) => D::within(x.dtype, 1.001)?,
                });
            }
        }
        Some(Array { elements: out, ..x.clone() })
    }
}

/// Number of elements of a range of integers.
pub fn length(start: i64, end: i64, step: i64) -> Option<i128> {
    // In a width that no difference of two bounds leaves.
    let (span, step) = (i128::from(end) - i128::from(start), i128::from(step));
    let (span, step) = if step < 0 { (-span, -step) } else { (span, step) };
    (step != 0).then(|| (span + step - 1).div_euclid(step).max(0))
}

#[cfg(test)]
mod tests;
