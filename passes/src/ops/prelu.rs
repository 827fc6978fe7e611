//! `PRelu`: y = x for x > 0, slope ⊙ x otherwise; the slope broadcasts to x.

use super::*;

pub(super) const PRELU: Row = Row {
    name: "PRelu",
    infer: like_first,
    // x̄ = ȳ ⊙ (1 where x > 0, else slope), slope̅ = unbroadcast(ȳ ⊙ min(x, 0)).
    pullback: |p| {
        let (x, slope, ct) = (p.operand(0)?, p.operand(1)?, p.ct(0)?);
        p.give(0, |b| formula(b, [x, slope, ct], |[x, s, ct]| ct * (x.is("Greater", 0.0) * (1.0 - s) + s)))?;
        p.give_broadcast(1, |b| formula(b, [x, ct], |[x, ct]| ct * x.min(0.0)))
    },
    samples: || {
        vec![
            plain(vec![floats_in(&[2, 3, 2], -1.5, -0.2), floats(&[3, 1])]),
            plain(vec![floats_in(&[2, 3], 0.2, 1.5), floats(&[1])]),
        ]
    },
    ..ROW
};
