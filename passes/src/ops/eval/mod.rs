//! The evaluator of shape and integer arithmetic: an operator's results from known elements.
//!
//! It is generic over the [`Domain`] of the elements. [`Exact`] is for folding: it gives ONNX Runtime's result bit for bit, or none.
//! [`Poly`] is for shapes with symbolic extents, [`Bounded`] for proofs. Operators that move elements are [index maps](places).
//!
//! Sums and products of floats are not reduced, since engines order them differently.

mod compute;
mod domain;
mod movement;
mod number;
pub mod places;

pub use domain::{Bounded, Domain, Element, Exact, Poly};
pub use movement::{joined, part_sizes};

use super::class::is_type_alone;
use crate::ir::{DType, Dim, Graph, NodeId, Op, Tensor, ValueId, ValueType};
use places::{Places, axis_of, common, expanded};
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

/// Operators that only choose, convert or place elements, so that no float is computed.
#[rustfmt::skip]
const MOVE: &[&str] = &[
    "Cast", "CastLike", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity",
    "OneHot", "Pad", "Reshape", "ScatterElements", "ScatterND", "Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "Transpose",
    "Trilu", "Unsqueeze", "Where",
];

/// Operators that compute.
#[rustfmt::skip]
const COMPUTE: &[&str] = &[
    "Abs", "Add", "And", "ArgMax", "ArgMin", "BitShift", "BitwiseAnd", "BitwiseNot", "BitwiseOr", "BitwiseXor", "Ceil", "Clip",
    "CumSum", "Div", "Equal", "Floor", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg",
    "NonZero", "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Round",
    "Sigmoid", "Sign", "Softmax", "Sqrt", "Sub", "Tanh", "Xor",
];

/// The operators that are evaluated.
pub fn operators() -> impl Iterator<Item = &'static str> {
    MOVE.iter().chain(COMPUTE).copied()
}

/// Does the operator only choose, convert or place elements?
pub fn only_moves(name: &str) -> bool {
    MOVE.contains(&name)
}

/// Is the operator evaluated?
pub fn is_evaluated(name: &str) -> bool {
    only_moves(name) || COMPUTE.contains(&name)
}

/// Does the operator read only the type of this operand?
pub fn reads_type(name: &str, operand: usize) -> bool {
    is_type_alone(name, operand) || matches!((name, operand), ("Shape" | "Size", 0))
}

/// An operand of a [`Call`].
#[derive(Clone, Debug)]
pub enum Operand<'a, D> {
    /// It is left out.
    Missing,
    /// Its elements.
    Array(&'a Array<D>),
    /// Its type, if the operator reads nothing else.
    Type(ValueType),
}

/// An operator of the standard domain and what is known of its operands.
pub struct Call<'a, D> {
    /// The operator.
    pub op: &'a Op,
    /// Version of the operator set.
    pub opset: i64,
    /// Its operands.
    pub operands: &'a [Operand<'a, D>],
    /// Number of its results.
    pub results: usize,
    /// Most elements of a result.
    pub most: usize,
}

/// What is known of a graph's values.
pub trait Facts<D: Domain> {
    /// The elements of a value.
    fn array(&self, v: ValueId) -> Option<Cow<'_, Array<D>>>;
    /// Its type.
    fn ty(&self, v: ValueId) -> ValueType;
}

/// The results of a node, if all it reads is known and no result has more than `most` elements.
pub fn evaluate_node<D: Domain>(g: &Graph, id: NodeId, facts: &dyn Facts<D>, most: usize) -> Option<Vec<Array<D>>> {
    let op = g.op(id).filter(|op| op.domain.is_empty() && is_evaluated(&op.name))?;
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
    evaluate(&Call { op, opset, operands: &operands, results, most })
}

/// The results of an operator, if known.
pub fn evaluate<D: Domain>(c: &Call<D>) -> Option<Vec<Array<D>>> {
    let results = if c.name() == "Split" { c.split()? } else { vec![c.single()?] };
    // What a damaged file reduces along an axis without elements has none either, whatever its extents are.
    let whole = |a: &Array<D>| places::count(&a.dims, c.most) == Some(a.elements.len());
    results.iter().all(whole).then_some(results)
}

impl<D: Domain> Array<D> {
    /// The elements of a constant in the file, if there are at most `most`.
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
            // A cast from f64 to a half may round differently by way of f32.
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
            // Engines do not round these correctly, but the results are bounded.
            Element::Float(_) if matches!(name, "Sigmoid" | "Tanh") => D::within(t, 1.001),
            Element::Float(v) => rounded(t, number::of_float(name, *v)?),
            Element::Open(d) => d.unary(name, t),
        })
    }

    /// An operator on pairs of elements that broadcast.
    fn binary(&self, name: &str, op: &Op, other: &Array<D>, most: usize) -> Option<Array<D>> {
        let dims = common(&self.dims, &other.dims)?;
        let ((_, p), (_, q)) = (expanded(&self.dims, &dims, most)?, expanded(&other.dims, &dims, most)?);
        if self.dtype != other.dtype && name != "Pow" {
            return None;
        }
        let meet = Meet::of(name, op, self.dtype)?;
        let pairs = p.iter().zip(&q).map(|(i, j)| meet.apply(self.elements.get(*i)?, other.elements.get(*j)?));
        Some(Array { dtype: meet.result(), dims, elements: pairs.collect::<Option<_>>()? })
    }
}

/// A float result, rounded to its type.
fn rounded<D: Domain>(t: DType, v: f64) -> Option<Element<D>> {
    number::round(t, v).filter(|v| !v.is_nan() && D::admits(*v)).map(Element::Float)
}

/// An operator on two elements.
struct Meet<'a> {
    name: &'a str,
    dtype: DType,
    ints: number::Ints,
    floats: number::Floats,
}

impl<'a> Meet<'a> {
    fn of(name: &'a str, op: &Op, dtype: DType) -> Option<Meet<'a>> {
        let (ints, floats) = number::binary(name, op)?;
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
    fn name(&self) -> &'a str {
        &self.op.name
    }

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
        match self.op.attrs.ints(name) {
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
    fn axis(&self) -> Option<usize> {
        axis_of(self.op.int_at("axis", self.opset), self.x(0)?.dims.len())
    }

    fn binary(&self, x: &Array<D>, y: &Array<D>) -> Option<Array<D>> {
        x.binary(self.name(), self.op, y, self.most)
    }

    fn single(&self) -> Option<Array<D>> {
        match self.name() {
            "Shape" | "Size" => self.shape(),
            "Identity" => self.x(0).cloned(),
            "Cast" => self.x(0)?.cast(DType::from_onnx(self.op.int("to") as i32)?),
            "CastLike" => self.x(0)?.cast(self.ty(1)?.dtype?),
            "Neg" | "Abs" | "Sign" | "Not" | "BitwiseNot" | "Relu" | "Floor" | "Ceil" | "Round" | "Sqrt" | "Reciprocal"
            | "Sigmoid" | "Tanh" => self.x(0)?.unary(self.name()),
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
        if self.name() == "Size" {
            return int64(vec![], &[shape.iter().fold(Dim::from(1), |p, d| &p * d)]);
        }
        let n = shape.len() as i64;
        let (start, len) = places::range(n, self.op.int("start"), self.op.attrs.int("end").unwrap_or(n), 1)?;
        int64(vec![len], shape.get(start as usize..(start + len) as usize)?)
    }
}

/// Number of elements of a range of integers.
pub fn length(start: i64, end: i64, step: i64) -> Option<i128> {
    // The difference of two i64 may overflow an i64.
    let (span, step) = (i128::from(end) - i128::from(start), i128::from(step));
    let (span, step) = if step < 0 { (-span, -step) } else { (span, step) };
    (step != 0).then(|| (span + step - 1).div_euclid(step).max(0))
}

#[cfg(test)]
mod tests;
