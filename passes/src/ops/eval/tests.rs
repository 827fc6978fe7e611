use super::*;
use crate::ir::{Attrs, Op, TensorType};

fn of<D: Domain>(op: &Op, arrays: &[Array<D>]) -> Option<Array<D>> {
    let operands: Vec<Operand<D>> = arrays.iter().map(Operand::Array).collect();
    let c = Call { op, opset: 18, operands: &operands, results: 1, most: 99 };
    evaluate(&c)?.pop()
}

fn op(name: &str) -> Op {
    Op::new(name, Attrs::new())
}

fn ints(dtype: DType, values: &[i64]) -> Array<Exact> {
    Array::vector(values.iter().copied()).cast(dtype).unwrap()
}

/// The elements of an operator over `Shape(x)` of [n, 6] and a constant.
fn over_shape(op: Op, constant: &[i64]) -> Option<Vec<Dim>> {
    let x = TensorType::new(DType::F32, [Dim::symbol("n"), Dim::from(6)]);
    let read = [Operand::Type(x.into())];
    let shape = Call { op: &self::op("Shape"), opset: 18, operands: &read, results: 1, most: 99 };
    let shape: Array<Poly> = evaluate(&shape)?.pop()?;
    of(&op, &[shape, Array::vector(constant.iter().copied())])?.extents()
}

#[test]
fn symbols_are_carried_and_what_depends_on_them_is_not_guessed() {
    let n = Dim::symbol("n");
    assert_eq!(over_shape(op("Mul"), &[4]), Some(vec![&n * &Dim::from(4), Dim::from(24)]));
    assert_eq!(over_shape(op("Gather"), &[-1, 0]), Some(vec![Dim::from(6), n.clone()]));
    let concat = Op::new("Concat", Attrs::new().with("axis", 0));
    assert_eq!(over_shape(concat, &[i64::MAX]), Some(vec![n.clone(), Dim::from(6), Dim::from(i64::MAX)]));
    // Neither n / 4 nor n = 4 can be told; an extent is at least 1, whatever n is.
    assert_eq!(over_shape(op("Div"), &[4]), None);
    assert_eq!(over_shape(op("Equal"), &[4]), None);
    assert_eq!(over_shape(op("Equal"), &[-1]), Some(vec![Dim::from(0), Dim::from(0)]));
    assert_eq!(over_shape(op("Max"), &[1]), Some(vec![n.clone(), Dim::from(6)]));
    assert_eq!(over_shape(op("Min"), &[i64::MAX]), Some(vec![n, Dim::from(6)]));
    assert_eq!(over_shape(op("Min"), &[4]), None);
    assert_eq!(over_shape(op("Gather"), &[2]), None);
}

#[test]
fn numbers_follow_the_operators_definitions() {
    let both = |op: &Op, x: i64, y: i64| of(op, &[ints(DType::I64, &[x]), ints(DType::I64, &[y])])?.ints();
    let (modulo, fmod) = (op("Mod"), Op::new("Mod", Attrs::new().with("fmod", 1)));
    assert_eq!((both(&modulo, -7, 3), both(&modulo, 7, -3)), (Some(vec![2]), Some(vec![-2])));
    assert_eq!((both(&fmod, -7, 3), both(&fmod, 7, -3)), (Some(vec![-1]), Some(vec![1])));
    assert_eq!((both(&op("Div"), -7, 2), both(&op("Div"), 7, 0)), (Some(vec![-3]), None));
    assert_eq!((both(&op("Div"), i64::MIN, -1), both(&modulo, i64::MIN, -1)), (None, None));
    assert_eq!(both(&op("Add"), i64::MAX, 1), Some(vec![i64::MIN]));
    assert_eq!((both(&op("Pow"), 3, 4), both(&op("Pow"), 2, 60)), (Some(vec![81]), None));
}

#[test]
fn integers_wrap_and_floats_out_of_range_are_left_open() {
    let wide = ints(DType::I64, &[(1 << 32) + 1, -1, 300]);
    let cast = |x: &Array<Exact>, to| x.cast(to).and_then(|x| x.ints());
    assert_eq!(cast(&wide, DType::I32), Some(vec![1, -1, 300]));
    assert_eq!(cast(&wide, DType::U8), Some(vec![1, 255, 44]));
    let floats = |v: f64| Array::<Exact> { dtype: DType::F32, dims: vec![], elements: vec![Element::Float(v)] };
    assert_eq!(cast(&floats(-2.7), DType::I32), Some(vec![-2]));
    assert_eq!((cast(&floats(3e9), DType::I32), cast(&floats(-1.0), DType::U8)), (None, None));
    assert_eq!(cast(&floats(f64::INFINITY), DType::I64), None);
    // Exact in float64, rounded once in float32.
    let near = ints(DType::I64, &[(1 << 24) + 1]).cast(DType::F32).unwrap();
    assert_eq!(near.elements, [Element::Float(16_777_216.0)]);
}

#[test]
fn a_saturated_softmax_is_exact_and_another_is_not() {
    let row = |v: &[f64]| {
        let elements = v.iter().map(|v| Element::Float(*v)).collect();
        let x = Array::<Bounded> { dtype: DType::F32, dims: vec![1, v.len() as i64], elements };
        of(&op("Softmax"), &[x]).unwrap().elements
    };
    let (zero, one, open) = (Element::Float(0.0), Element::Float(1.0), Element::Open(Bounded::Within(1.001)));
    assert_eq!(row(&[0.0, 128.0, -1e30]), [zero.clone(), one.clone(), zero.clone()]);
    assert_eq!(row(&[5.0]), [one]);
    assert_eq!(row(&[0.0, 100.0, -1e30]), [open.clone(), open.clone(), zero.clone()]);
    // What is known of it takes part in products and sums only.
    let half = Array::<Bounded> { dtype: DType::F32, dims: vec![], elements: vec![open] };
    let nothing = Array { elements: vec![zero.clone()], ..half.clone() };
    assert_eq!(of(&op("Mul"), &[half.clone(), nothing.clone()]).unwrap().elements, [zero]);
    assert_eq!(of(&op("Div"), &[half, nothing]), None);
}
