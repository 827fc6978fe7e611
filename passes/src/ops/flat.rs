//! Operators whose derivative is zero wherever it exists. One line of the table is one operator.

use super::*;
use crate::ir::Attr;

pub(super) static FLAT: &[Row] = &[
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
    flat("Not", bool_like_all, || vec![plain(vec![truths(&[3], &[true, false, true])])]),
    flat("And", bool_like_all, to_truths),
    flat("Or", bool_like_all, to_truths),
    flat("Xor", bool_like_all, to_truths),
    // Places of an extremum along an axis, and of the elements that are not 0 (a column each).
    flat("ArgMax", place_of_extremum, along_axes),
    flat("ArgMin", place_of_extremum, along_axes),
    flat("NonZero", columns, to_one),
    // The shape (from opset 15 on also a range of it), and the number of elements.
    flat("Shape", extents, ranges),
    flat("Size", |_| Ok(vec![TensorType::fixed(DType::I64, &[])]), to_one),
    // Values made from a shape: one number everywhere, ones on a diagonal, random numbers; and values that are given.
    flat("ConstantOfShape", filled, fillings),
    flat("Constant", constant, constants),
    flat("EyeLike", like_operand, to_one),
    flat("RandomNormal", of_shape, drawn),
    flat("RandomUniform", of_shape, drawn),
    flat("RandomNormalLike", like_operand, to_one),
    flat("RandomUniformLike", like_operand, to_one),
    // Draws by probabilities: 0 or 1 by an element, classes by a row of logarithms.
    flat("Bernoulli", like_operand, || vec![plain(vec![floats_in(&[2, 3], 0.0, 1.0)])]),
    flat("Multinomial", classes, || vec![sample(Attrs::new().with("sample_size", 4), vec![floats(&[2, 3])])]),
];

const fn flat(name: &'static str, infer: fn(&Infer) -> Types, samples: fn() -> Vec<Sample>) -> Row {
    Row { name, infer, derivative: Derivative::Zero, samples, ..ROW }
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
        let v = cx.attrs().int(name).unwrap_or(default);
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

fn constant(cx: &Infer) -> Types {
    let attrs = cx.attrs();
    let list = |dtype, n: usize| TensorType::fixed(dtype, &[n as i64]);
    let ty = match ["value", "value_float", "value_floats", "value_int", "value_ints"].into_iter().find_map(|n| attrs.get(n))
    {
        Some(Attr::Tensor(t)) => TensorType::fixed(t.dtype(), t.dims()),
        Some(Attr::Float(_)) => TensorType::fixed(DType::F32, &[]),
        Some(Attr::Floats(v)) => list(DType::F32, v.len()),
        Some(Attr::Int(_)) => TensorType::fixed(DType::I64, &[]),
        Some(Attr::Ints(v)) => list(DType::I64, v.len()),
        _ => return Err(TypeError("its value is neither a tensor nor numbers".into())),
    };
    Ok(vec![ty])
}

/// The operand's shape, with the element type that `dtype` asks for.
fn like_operand(cx: &Infer) -> Types {
    let ty = cx.ty(0)?;
    Ok(vec![TensorType::new(cx.asked_dtype(ty.dtype)?, ty.shape.clone())])
}

fn of_shape(cx: &Infer) -> Types {
    let shape = cx.attrs().ints("shape").ok_or_else(|| TypeError("no shape is given".into()))?;
    Ok(vec![TensorType::fixed(cx.asked_dtype(DType::F32)?, shape)])
}

fn classes(cx: &Infer) -> Types {
    let rows = cx.ty(0)?.shape.first().cloned().ok_or_else(|| TypeError("its operand has no rows".into()))?;
    Ok(vec![TensorType::new(cx.asked_dtype(DType::I32)?, vec![rows, Dim::from(cx.op.int("sample_size"))])])
}

fn to_one() -> Vec<Sample> {
    vec![plain(vec![floats(&[2, 3])])]
}

fn to_two() -> Vec<Sample> {
    vec![plain(vec![floats(&[2, 1, 3]), floats(&[4, 1])])]
}

fn to_truths() -> Vec<Sample> {
    vec![plain(vec![truths(&[3], &[true, false, true]), truths(&[2, 1], &[true, false])])]
}

fn along_axes() -> Vec<Sample> {
    let (kept, dropped) = (Attrs::new().with("axis", -1), Attrs::new().with("axis", 0).with("keepdims", 0));
    vec![sample(kept, vec![floats(&[2, 3, 4])]), sample(dropped, vec![floats(&[2, 3])])]
}

fn ranges() -> Vec<Sample> {
    let range = Attrs::new().with("start", -2).with("end", 2);
    vec![plain(vec![floats(&[2, 3])]), sample(range, vec![floats(&[2, 3, 4])])]
}

fn fillings() -> Vec<Sample> {
    let sevens = Attrs::new().with("value", Tensor::i64s(&[1], &[7]));
    vec![plain(vec![ints(&[2, 3])]), sample(sevens, vec![ints(&[2])])]
}

fn drawn() -> Vec<Sample> {
    vec![sample(Attrs::new().with("shape", vec![2, 3]), vec![])]
}

fn constants() -> Vec<Sample> {
    let of = |attrs| sample(attrs, vec![]);
    let tensor = Tensor::f32s(&[2, 1], &[1.0, 2.0]);
    vec![of(Attrs::new().with("value_ints", vec![1, 2])), of(Attrs::new().with("value", tensor))]
}
