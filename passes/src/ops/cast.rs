//! `Cast`, `CastLike` and `BitCast` change the element type.

use super::*;

pub(super) const CAST: Row = Row {
    name: "Cast",
    infer: |cx| {
        let to = cx.op.int("to");
        let to = i32::try_from(to)
            .ok()
            .and_then(DType::from_onnx)
            .ok_or_else(|| TypeError(format!("its `to` is {to}, which names no element type")))?;
        Ok(vec![TensorType::new(to, cx.ty(0)?.shape.clone())])
    },
    // x̄ = ȳ in x's type.
    pullback,
    samples: || {
        vec![
            sample(Attrs::new().with("to", DType::F64.onnx() as i64), vec![floats(&[2, 3])]).shape_only(),
            sample(Attrs::new().with("to", DType::F32.onnx() as i64), vec![floats(&[2, 3])]),
            sample(Attrs::new().with("to", DType::I64.onnx() as i64), vec![floats(&[2, 3])]).shape_only(),
        ]
    },
    ..ROW
};

pub(super) const CAST_LIKE: Row = Row {
    name: "CastLike",
    infer: |cx| Ok(vec![TensorType::new(cx.ty(1)?.dtype, cx.ty(0)?.shape.clone())]),
    // x̄ = ȳ in x's type.
    pullback,
    samples: || vec![plain(vec![floats(&[2, 3]), fixed(&[], &[0.0])])],
    ..ROW
};

/// The same bits as another type of their width (opset 26).
pub(super) const BIT_CAST: Row = Row {
    name: "BitCast",
    infer: |cx| CAST.infer(cx),
    derivative: Derivative::Zero,
    samples: || {
        let to = Attrs::new().with("to", DType::I32.onnx() as i64);
        vec![sample(to, vec![floats(&[2, 3])]).at(26).shape_only()]
    },
    ..ROW
};

fn pullback(p: &mut Pullback) -> Result<(), GradError> {
    let (ct, dtype) = (p.ct(0)?, p.ty(0)?.dtype);
    p.give(0, |b| b.cast(ct, dtype))
}
