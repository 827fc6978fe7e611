//! `LpNormalization`: y = x / ‖x‖ along one axis, with the 1- or the 2-norm; 0 where the norm is 0.

use super::*;

pub(super) const LP_NORMALIZATION: Row = Row {
    name: "LpNormalization",
    infer: |cx| {
        cx.axis()?;
        like_first(cx)
    },
    // x̄ = (ȳ − u Σ ȳ ⊙ y) / ‖x‖ with u = y for the 2-norm and u = sign(x) for the 1-norm; 0 where the norm is 0.
    pullback: |p| {
        let (ct, x, y, op) = (p.ct(0)?, p.operand(0)?, p.result(0), p.op());
        let (axis, sums) = (op.int("axis"), op.int("p") == 1);
        p.give(0, |b| {
            formula(b, [x, y, ct], |[x, y, ct]| {
                let norm = x.over(if sums { "ReduceL1" } else { "ReduceL2" }, &[axis]);
                let dot = (ct * y).over("ReduceSum", &[axis]);
                let direction = if sums { x.op("Sign") } else { y };
                ((ct - direction * dot) / norm).where_positive(norm)
            })
        })
    },
    samples: || {
        let of = |attrs: Attrs, x: &[i64]| sample(attrs, vec![floats(x)]);
        vec![
            of(Attrs::new(), &[3, 4]),
            of(Attrs::new().with("axis", 1), &[2, 3, 4]),
            of(Attrs::new().with("p", 1).with("axis", 0), &[3, 2]),
        ]
    },
    ..ROW
};
