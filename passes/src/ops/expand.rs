//! `Expand`: the operand broadcast against a shape.

use super::*;

pub(super) const EXPAND: Row = Row {
    name: "Expand",
    infer: |cx| {
        let ty = cx.ty(0)?;
        Ok(vec![TensorType::new(ty.dtype, broadcast(&ty.shape, &cx.target(1, "expand")?)?)])
    },
    // x̄ = unbroadcast(ȳ).
    pullback: |p| {
        let ct = p.ct(0)?;
        p.accumulate_broadcast(0, ct)
    },
    samples: || {
        vec![
            plain(vec![floats(&[3, 1]), ints(&[2, 1, 4])]),
            plain(vec![floats(&[2, 3]), ints(&[1, 1])]),
            plain(vec![floats(&[]), ints(&[2])]),
        ]
    },
    ..ROW
};
