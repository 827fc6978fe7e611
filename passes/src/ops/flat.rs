//! Operators of which there is no more to say than their types: their derivative is zero wherever it exists. One line of the table
//! is one operator.

use super::sample::{floats, ints};
use super::*;
use crate::ir::Tensor;

/// One of them.
pub(super) struct Flat {
    name: &'static str,
    infer: fn(&Infer) -> Types,
    applied: fn() -> Vec<Application>,
}

/// Attributes and operands by which the types are tested.
type Application = (Attrs, Vec<SampleOperand>);

pub(super) static FLAT: &[Flat] = &[
    // Constant between their steps.
    flat("Sign", like_first, to_one),
    flat("Floor", like_first, to_one),
    flat("Ceil", like_first, to_one),
    flat("Round", like_first, to_one),
    // Comparisons, with broadcasting, and tests of elements.
    flat("Equal", bool_like_all, to_two),
    flat("Greater", bool_like_all, to_two),
    flat("Less", bool_like_all, to_two),
    flat("GreaterOrEqual", bool_like_all, to_two),
    flat("LessOrEqual", bool_like_all, to_two),
    flat("IsNaN", bool_like_all, to_one),
    flat("IsInf", bool_like_all, to_one),
    // Logic, with broadcasting.
    flat("Not", bool_like_all, || vec![(Attrs::new(), truths(1))]),
    flat("And", bool_like_all, || vec![(Attrs::new(), truths(2))]),
    flat("Or", bool_like_all, || vec![(Attrs::new(), truths(2))]),
    flat("Xor", bool_like_all, || vec![(Attrs::new(), truths(2))]),
    // Places: of an extremum along an axis, of the elements that are not 0 (a column each).
    flat("ArgMax", place_of_extremum, along_axes),
    flat("ArgMin", place_of_extremum, along_axes),
    flat("NonZero", columns, to_one),
    // The shape, or a range of it from opset 15, and the number of elements.
    flat("Shape", extents, ranges),
    flat("Size", |_| Ok(vec![TensorType::fixed(DType::I64, &[])]), to_one),
    // Values of a shape: one everywhere, ones on a diagonal, random ones. Of an operand they are like nothing else is read.
    flat("ConstantOfShape", filled, fillings),
    flat("EyeLike", like_operand, to_one),
    flat("RandomNormal", of_shape, || vec![(Attrs::new().with("shape", vec![2, 3]), vec![])]),
    flat("RandomUniform", of_shape, || vec![(Attrs::new().with("shape", vec![2, 3]), vec![])]),
    flat("RandomNormalLike", like_operand, to_one),
    flat("RandomUniformLike", like_operand, to_one),
];

const fn flat(name: &'static str, infer: fn(&Infer) -> Types, applied: fn() -> Vec<Application>) -> Flat {
    Flat { name, infer, applied }
}

fn place_of_extremum(cx: &Infer) -> Types {
    let (ty, axis) = (cx.ty(0)?, cx.axis()?);
    let mut shape = ty.shape.clone();
    if cx.op.int("keepdims") != 0 {
        shape[axis] = Dim::from(1);
    } else {
        shape.remove(axis);
    }
    Ok(vec![TensorType::new(DType::I64, shape)])
}

fn columns(cx: &Infer) -> Types {
    let rank = cx.ty(0)?.rank() as i64;
    Ok(vec![TensorType::new(DType::I64, vec![Dim::from(rank), unknown_dim("nonzero")])])
}

fn extents(cx: &Infer) -> Types {
    let rank = cx.ty(0)?.rank() as i64;
    let at = |name, default| {
        let v = cx.attrs().int(name, default);
        (if v < 0 { v + rank } else { v }).clamp(0, rank)
    };
    Ok(vec![TensorType::fixed(DType::I64, &[(at("end", rank) - at("start", 0)).max(0)])])
}

fn filled(cx: &Infer) -> Types {
    let dtype = cx.attrs().tensor("value").map_or(DType::F32, |t| t.dtype());
    let shape = cx.target(0, "fill")?;
    let negative = shape.iter().find(|d| d.known().is_some_and(|d| d < 0));
    cx.require(negative.is_none(), || format!("it asks for extents {shape:?}"))?;
    Ok(vec![TensorType::new(dtype, shape)])
}

/// Something of its operand's shape, of another element type where one is asked for.
fn like_operand(cx: &Infer) -> Types {
    let ty = cx.ty(0)?;
    Ok(vec![TensorType::new(cx.asked_dtype(ty.dtype)?, ty.shape.clone())])
}

fn of_shape(cx: &Infer) -> Types {
    let shape = cx.attrs().ints("shape").ok_or_else(|| TypeError("no shape is given".into()))?;
    Ok(vec![TensorType::fixed(cx.asked_dtype(DType::F32)?, shape)])
}

fn to_one() -> Vec<Application> {
    vec![(Attrs::new(), vec![floats(&[2, 3])])]
}

fn to_two() -> Vec<Application> {
    vec![(Attrs::new(), vec![floats(&[2, 1, 3]), floats(&[4, 1])])]
}

fn truths(operands: usize) -> Vec<SampleOperand> {
    let row = SampleOperand::Bools { dims: vec![3], values: vec![true, false, true] };
    let column = SampleOperand::Bools { dims: vec![2, 1], values: vec![true, false] };
    [row, column].into_iter().take(operands).collect()
}

fn along_axes() -> Vec<Application> {
    let (kept, dropped) = (Attrs::new().with("axis", -1), Attrs::new().with("axis", 0).with("keepdims", 0));
    vec![(kept, vec![floats(&[2, 3, 4])]), (dropped, vec![floats(&[2, 3])])]
}

fn ranges() -> Vec<Application> {
    let range = Attrs::new().with("start", -2).with("end", 2);
    vec![(Attrs::new(), vec![floats(&[2, 3])]), (range, vec![floats(&[2, 3, 4])])]
}

fn fillings() -> Vec<Application> {
    let sevens = Attrs::new().with("value", Tensor::i64s(&[1], &[7]));
    vec![(Attrs::new(), vec![ints(&[2, 3])]), (sevens, vec![ints(&[2])])]
}

impl OpRule for Flat {
    fn name(&self) -> &'static str {
        self.name
    }
    fn infer(&self, cx: &Infer) -> Types {
        (self.infer)(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        (self.applied)().into_iter().map(|(attrs, operands)| Sample::of(self.name, attrs, operands).shape_only()).collect()
    }
}
