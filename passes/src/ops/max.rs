//! `Max`, `Min` of any number of operands, with broadcasting.
//!
//! x̄ᵢ = unbroadcast([xᵢ = y] ⊙ ȳ / n) where n is the number of operands that attain the extremum: ties share evenly.

use super::*;

pub(super) const MAX: Row = Row {
    name: "Max",
    infer: like_all,
    pullback: |p| {
        let (y, ct, count) = (p.result(0), p.ct(0)?, p.operand_count());
        if count == 1 {
            return p.accumulate(0, ct);
        }
        let dtype = p.b.ty(y)?.dtype;
        let (mut attained, mut masks) = (Vec::with_capacity(count), Vec::with_capacity(count));
        for i in 0..count {
            let x = p.operand(i)?;
            let equal = p.b.op("Equal", &[x, y])?;
            attained.push(equal);
            masks.push(p.b.cast(equal, dtype)?);
        }
        let ties = p.b.sum(&masks)?;
        let share = p.b.div(ct, ties)?;
        attained.into_iter().zip(masks).enumerate().try_for_each(|(i, (equal, mask))| {
            p.give_broadcast(i, |b| if b.steep { b.keep(share, equal, true) } else { b.mul(share, mask) })
        })
    },
    samples: || {
        let four = |x: [f32; 4]| values(&[4], &x);
        vec![
            plain(vec![floats_in(&[2, 3], 0.0, 1.0), floats_in(&[3], 1.2, 2.0), floats_in(&[2, 1], -2.0, -0.2)]),
            plain(vec![floats_in(&[4], -1.0, -0.2), fixed(&[], &[0.0])]),
            plain(vec![four([0.3, -0.4, 2.0, 0.9]), four([0.7, -0.9, 1.0, 1.2])]),
        ]
    },
    ..ROW
};

pub(super) const MIN: Row = Row { name: "Min", ..MAX };
