//! `CumSum`: running sums along an axis (an operand), optionally reversed or without the element itself.

use super::*;

pub(super) const CUM_SUM: Row = Row {
    name: "CumSum",
    infer: like_first,
    // x̄ = the running sum of ȳ in the other direction.
    pullback: |p| {
        let (ct, axis, op) = (p.ct(0)?, p.operand(1)?, p.op());
        let reverse = 1 - op.int("reverse");
        p.give(0, |b| b.op_with("CumSum", op.attrs.with("reverse", reverse), &[ct, axis]))
    },
    samples: || {
        vec![
            plain(vec![floats(&[2, 3]), ints_of(&[], &[1])]),
            sample(Attrs::new().with("exclusive", 1).with("reverse", 1), vec![floats(&[3, 2]), ints_of(&[], &[-2])]),
        ]
    },
    ..ROW
};
