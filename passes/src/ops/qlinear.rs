//! Operators on quantised values that hold their own scales: each is dequantised operands, the plain operator, and a quantised result.
//! The runtime's kernels compute with the integers and round once, so results differ by a step where the plain form is near a tie.

use super::global_pool::infer as pooled_to_one;
use super::listed::reduced;
use super::typed::{convolved, multiplied};
use super::window::pooled;
use super::*;

/// y = Q(Conv(DQ(x), DQ(w), DQ(B))), where B has the scale of x times that of w.
pub(super) const CONV: Row = Row {
    name: "QLinearConv",
    infer: |cx| convolved(cx, 3, |cx| Ok(cx.ty(7)?.dtype)),
    derivative: Derivative::Decompose("DequantizeLinear, Conv, QuantizeLinear"),
    decompose: |b, s| {
        channels_second(s)?;
        let (x, w) = (operand(b, s, 0, 0)?, operand(b, s, 3, 0)?);
        let bias = sum_operand(b, s, 8, 0)?;
        let y = b.node(Op::new("Conv", plain_attrs(s)), &[Some(x), Some(w), bias])?[0];
        result(b, s, y, 6)
    },
    ..ROW
};

pub(super) const CONTRIBUTED_CONV: Row = Row { domain: MICROSOFT, ..CONV };

/// y = Q(DQ(a) DQ(b)).
pub(super) const MATMUL: Row = Row {
    name: "QLinearMatMul",
    infer: |cx| multiplied(cx, 3, |cx| Ok(cx.ty(7)?.dtype)),
    derivative: Derivative::Decompose("DequantizeLinear, MatMul, QuantizeLinear"),
    decompose: |b, s| {
        let columns = type_of(b, s.need(3)?)?.rank() as i64 - 1;
        let rows = type_of(b, s.need(0)?)?.rank() as i64 - 2;
        let (x, w) = (operand(b, s, 0, rows)?, operand(b, s, 3, columns)?);
        let y = b.matmul(x, w)?;
        result(b, s, y, 6)
    },
    ..ROW
};

/// y = Q(op(DQ(A)) op(DQ(B)) + DQ(C)); floats where there is no scale for y. C has the scale of A times that of B.
pub(super) const GEMM: Row = Row {
    domain: MICROSOFT,
    name: "QGemm",
    infer: |cx| {
        let (a, b) = (cx.ty(0)?, cx.ty(3)?);
        cx.require(a.rank() == 2 && b.rank() == 2, || format!("it multiplies matrices, not {a} and {b}"))?;
        let (rows, columns) = (cx.op.int("transA") as usize & 1, 1 - (cx.op.int("transB") as usize & 1));
        let dtype = if (cx.present)(8) { cx.ty(8)?.dtype } else { DType::F32 };
        Ok(vec![TensorType::new(dtype, vec![a.shape[rows].clone(), b.shape[columns].clone()])])
    },
    derivative: Derivative::Decompose("DequantizeLinear, Gemm, QuantizeLinear"),
    decompose: |b, s| {
        let alpha = s.op.float("alpha");
        refuse_if(alpha != 1.0, Why::Attribute { attribute: "alpha", value: alpha.to_string() })?;
        let columns = 1 - (s.op.int("transB") & 1);
        let (x, w) = (operand(b, s, 0, 0)?, operand(b, s, 3, columns)?);
        let last = s.get(6).map(|c| type_of(b, c)).transpose()?.map_or(0, |c| c.rank() as i64 - 1);
        let c = sum_operand(b, s, 6, last)?;
        let y = b.node(Op::new("Gemm", plain_attrs(s)), &[Some(x), Some(w), c])?[0];
        if s.get(7).is_none() { Ok(vec![y]) } else { result(b, s, y, 7) }
    },
    ..ROW
};

/// Y = DQ(A) DQ(B) + bias, in floats.
pub(super) const MATMUL_TO_FLOAT: Row = Row {
    domain: MICROSOFT,
    name: "MatMulIntegerToFloat",
    infer: |cx| multiplied(cx, 1, |cx| Ok(cx.ty(2)?.dtype)),
    derivative: Derivative::Decompose("DequantizeLinear, MatMul, Add"),
    decompose: |b, s| {
        let x = dequantised(b, s.need(0)?, s.need(2)?, s.get(4), 0)?;
        product(b, x, [s.need(3)?, s.need(1)?], s.get(5), s.get(6))
    },
    ..ROW
};

/// The same with A as floats, whose range decides its scale.
pub(super) const DYNAMIC_MATMUL: Row = Row {
    domain: MICROSOFT,
    name: "DynamicQuantizeMatMul",
    infer: |cx| multiplied(cx, 1, |cx| Ok(cx.ty(0)?.dtype)),
    derivative: Derivative::Decompose("DynamicQuantizeLinear, DequantizeLinear, MatMul, Add"),
    decompose: |b, s| {
        let a = b.node(Op::new("DynamicQuantizeLinear", Attrs::new()), &[Some(s.need(0)?)])?;
        let x = dequantised(b, a[0], a[1], Some(a[2]), 0)?;
        product(b, x, [s.need(2)?, s.need(1)?], s.get(3), s.get(4))
    },
    ..ROW
};

pub(super) const ADD: Row = Row {
    domain: MICROSOFT,
    name: "QLinearAdd",
    infer: |cx| {
        let (a, c) = (cx.ty(0)?, cx.ty(3)?);
        Ok(vec![TensorType::new(a.dtype, broadcast(&a.shape, &c.shape)?)])
    },
    derivative: Derivative::Decompose("DequantizeLinear, Add, QuantizeLinear"),
    decompose: |b, s| of_two(b, s, "Add"),
    ..ROW
};

pub(super) const MUL: Row = Row {
    name: "QLinearMul",
    derivative: Derivative::Decompose("DequantizeLinear, Mul, QuantizeLinear"),
    decompose: |b, s| of_two(b, s, "Mul"),
    ..ADD
};

pub(super) const AVERAGE_POOL: Row = Row {
    domain: MICROSOFT,
    name: "QLinearAveragePool",
    infer: |cx| {
        cx.require(cx.op.int("channels_last") == 0, || "its channels come last".into())?;
        Ok(vec![pooled(cx)?])
    },
    derivative: Derivative::Decompose("DequantizeLinear, AveragePool, QuantizeLinear"),
    decompose: |b, s| of_one(b, s, "AveragePool", plain_attrs(s)),
    ..ROW
};

pub(super) const GLOBAL_AVERAGE_POOL: Row = Row {
    domain: MICROSOFT,
    name: "QLinearGlobalAveragePool",
    infer: |cx| {
        cx.require(cx.op.int("channels_last") == 0, || "its channels come last".into())?;
        pooled_to_one(cx)
    },
    derivative: Derivative::Decompose("DequantizeLinear, GlobalAveragePool, QuantizeLinear"),
    decompose: |b, s| of_one(b, s, "GlobalAveragePool", Attrs::new()),
    ..ROW
};

pub(super) const LEAKY_RELU: Row = Row {
    domain: MICROSOFT,
    name: "QLinearLeakyRelu",
    derivative: Derivative::Decompose("DequantizeLinear, LeakyRelu, QuantizeLinear"),
    decompose: |b, s| of_one(b, s, "LeakyRelu", Attrs::new().with("alpha", s.op.float("alpha"))),
    ..ROW
};

pub(super) const SIGMOID: Row = Row {
    domain: MICROSOFT,
    name: "QLinearSigmoid",
    derivative: Derivative::Decompose("DequantizeLinear, Sigmoid, QuantizeLinear"),
    decompose: |b, s| of_one(b, s, "Sigmoid", Attrs::new()),
    ..ROW
};

pub(super) const SOFTMAX: Row = Row {
    domain: MICROSOFT,
    name: "QLinearSoftmax",
    derivative: Derivative::Decompose("DequantizeLinear, Softmax, QuantizeLinear"),
    decompose: |b, s| {
        let (axis, rank) = (s.op.int("axis"), type_of(b, s.need(0)?)?.rank() as i64);
        let coerces = s.op.int("opset") < 13 && axis != -1 && axis != rank - 1;
        refuse_if(coerces, Why::Feature("the form of before opset 13"))?;
        of_one(b, s, "Softmax", Attrs::new().with("axis", axis))
    },
    ..ROW
};

pub(super) const REDUCE_MEAN: Row = Row {
    domain: MICROSOFT,
    name: "QLinearReduceMean",
    infer: reduced,
    derivative: Derivative::Decompose("DequantizeLinear, ReduceMean, QuantizeLinear"),
    decompose: |b, s| {
        let x = operand(b, s, 0, 0)?;
        let y = b.reduce("ReduceMean", x, s.op.attrs.ints("axes").unwrap_or_default(), s.op.int("keepdims") != 0)?;
        result(b, s, y, 3)
    },
    ..ROW
};

/// Operands: scale and zero point of the result, then each value with its own two.
pub(super) const CONCAT: Row = Row {
    domain: MICROSOFT,
    name: "QLinearConcat",
    infer: |cx| {
        let mut ty = cx.ty(2)?.clone();
        let axis = ty.axis(cx.op.int("axis")).ok_or_else(|| TypeError("its axis is out of range".into()))?;
        for i in (5..cx.types.len()).step_by(3) {
            let other = cx.ty(i)?;
            cx.require(other.rank() == ty.rank(), || format!("operand {i} is {other}, of another rank than {ty}"))?;
            ty.shape[axis] = &ty.shape[axis] + &other.shape[axis];
        }
        Ok(vec![TensorType::new(cx.ty(1)?.dtype, ty.shape)])
    },
    derivative: Derivative::Decompose("DequantizeLinear, Concat, QuantizeLinear"),
    decompose: |b, s| {
        let parts = (2..s.operands.len()).step_by(3).map(|i| operand(b, s, i, 0)).collect::<Result<Vec<_>, _>>()?;
        let y = b.concat(&parts, s.op.int("axis"))?;
        result(b, s, y, 0)
    },
    ..ROW
};

pub(super) const WHERE: Row = Row {
    domain: MICROSOFT,
    name: "QLinearWhere",
    infer: |cx| {
        let both = broadcast(&cx.ty(1)?.shape, &cx.ty(4)?.shape)?;
        Ok(vec![TensorType::new(cx.ty(1)?.dtype, broadcast(&cx.ty(0)?.shape, &both)?)])
    },
    derivative: Derivative::Decompose("DequantizeLinear, Where, QuantizeLinear"),
    decompose: |b, s| {
        let (condition, x, y) = (s.need(0)?, operand(b, s, 1, 0)?, operand(b, s, 4, 0)?);
        let z = b.select(condition, x, y)?;
        result(b, s, z, 7)
    },
    ..ROW
};

/// The product of floats with integers of a scale, and a bias of floats.
fn product(
    b: &mut Builder,
    x: ValueId,
    [scale, w]: [ValueId; 2],
    zero: Option<ValueId>,
    bias: Option<ValueId>,
) -> Decomposed {
    let columns = type_of(b, w)?.rank() as i64 - 1;
    let w = dequantised(b, w, scale, zero, columns)?;
    let y = b.matmul(x, w)?;
    match bias {
        Some(bias) => one(b.add(y, bias)),
        None => Ok(vec![y]),
    }
}

fn of_one(b: &mut Builder, s: &Source, op: &str, attrs: Attrs) -> Decomposed {
    channels_second(s)?;
    let x = operand(b, s, 0, 0)?;
    let y = b.op_with(op, attrs, &[x])?;
    result(b, s, y, 3)
}

fn of_two(b: &mut Builder, s: &Source, op: &str) -> Decomposed {
    let (x, y) = (operand(b, s, 0, 0)?, operand(b, s, 3, 0)?);
    let z = b.op(op, &[x, y])?;
    result(b, s, z, 6)
}

/// Operand `i`, whose scale and zero point are the next two, as floats. Several scales belong to the places along `axis`.
fn operand(b: &mut Builder, s: &Source, i: usize, axis: i64) -> Result<ValueId, Why> {
    let x = s.need(i)?;
    // A concatenation takes floats too.
    if b.graph.is_float(x) {
        return Ok(x);
    }
    dequantised(b, x, s.need(i + 1)?, s.get(i + 2), axis)
}

fn dequantised(b: &mut Builder, x: ValueId, scale: ValueId, zero: Option<ValueId>, axis: i64) -> Result<ValueId, Why> {
    let several = type_of(b, scale)?.elements().known() != Some(1);
    let attrs = if several { Attrs::new().with("axis", axis) } else { Attrs::new() };
    Ok(b.node(Op::new("DequantizeLinear", attrs), &[Some(x), Some(scale), zero])?[0])
}

/// Operand `i` of 32 bits, which is added to products of operands 0 and 3.
fn sum_operand(b: &mut Builder, s: &Source, i: usize, axis: i64) -> Result<Option<ValueId>, Why> {
    let Some(sum) = s.get(i) else { return Ok(None) };
    let scale = b.mul(s.need(1)?, s.need(4)?)?;
    dequantised(b, sum, scale, None, axis).map(Some)
}

/// The result as integers, by the scale that is operand `i` and the zero point behind it.
fn result(b: &mut Builder, s: &Source, y: ValueId, i: usize) -> Decomposed {
    Ok(vec![b.node(Op::new("QuantizeLinear", Attrs::new()), &[Some(y), Some(s.need(i)?), s.get(i + 1)])?[0]])
}

fn channels_second(s: &Source) -> Result<(), Why> {
    refuse_if(s.op.int("channels_last") != 0, Why::Feature("channels in the last place"))
}

/// The attributes that the plain operator has too.
fn plain_attrs(s: &Source) -> Attrs {
    let mut attrs = s.op.attrs.clone();
    attrs.0.retain(|name, _| name != "channels_last");
    attrs
}
