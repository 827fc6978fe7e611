//! `Softmax`: y = exp(x) / Σ exp(x), and `LogSoftmax`, its logarithm, along one axis. Import rewrites the
//! form before opset 13, which coerces the operand to a matrix.

use super::*;

pub(super) const SOFTMAX: Row = Row {
    name: "Softmax",
    infer: |cx| {
        cx.axis()?;
        like_first(cx)
    },
    // x̄ = y ⊙ (ȳ − Σ ȳ ⊙ y). Only the result is read, so the operand need not stay alive.
    pullback: |p| {
        let (y, ct, axis) = (p.result(0), p.ct(0)?, p.op().int("axis"));
        p.give(0, |b| {
            formula(b, [y, ct], |[y, ct]| {
                let weighted = ct * y;
                weighted - y * weighted.over("ReduceSum", &[axis])
            })
        })
    },
    samples: || {
        let along = |axis: i64, dims: &[i64]| sample(Attrs::new().with("axis", axis), vec![floats(dims)]);
        vec![plain(vec![floats(&[3, 5])]), along(1, &[2, 4, 3]), along(0, &[3, 2]), along(-2, &[2, 3, 4])]
    },
    ..ROW
};

pub(super) const LOG_SOFTMAX: Row = Row {
    name: "LogSoftmax",
    // x̄ = ȳ − exp(y) Σ ȳ.
    pullback: |p| {
        let (y, ct, axis) = (p.result(0), p.ct(0)?, p.op().int("axis"));
        p.give(0, |b| formula(b, [y, ct], |[y, ct]| ct - y.op("Exp") * ct.over("ReduceSum", &[axis])))
    },
    ..SOFTMAX
};
