//! `Clip`: y = max(low, min(high, x)); the bounds are attributes before opset 11, optional operands after.

use super::*;

pub(super) const CLIP: Row = Row {
    name: "Clip",
    infer: |cx| {
        cx.single_from(1)?;
        like_first(cx)
    },
    // x̄ = ȳ ⊙ [low < x < high]: 0 at both bounds. A bound gets the sum of ȳ over the elements that it cut off.
    pullback: |p| {
        let (x, ct, attrs) = (p.operand(0)?, p.ct(0)?, p.attrs());
        let dtype = p.ty(0)?.dtype;
        let attr = |name: &str| attrs.float(name).map(f64::from);
        let low = p.try_operand(1).or_else(|| attr("min").map(|c| p.b.scalar(dtype, c)));
        let high = p.try_operand(2).or_else(|| attr("max").map(|c| p.b.scalar(dtype, c)));
        p.give(0, |b| {
            if low.is_none() && high.is_none() {
                Ok(ct)
            } else {
                let inside = b.between(x, low, high)?;
                b.keep(ct, inside, true)
            }
        })?;
        for (i, op) in [(1, "Less"), (2, "Greater")] {
            let Some(bound) = p.try_operand(i) else { continue };
            p.give_broadcast(i, |b| {
                let cut = b.op(op, &[x, bound])?;
                b.keep(ct, cut, true)
            })?;
        }
        Ok(())
    },
    samples: || {
        vec![
            plain(vec![floats_in(&[2, 3], -0.9, 0.9), fixed(&[], &[-1.0]), fixed(&[], &[1.0])]),
            plain(vec![floats_in(&[2, 3], 1.2, 2.0), fixed(&[], &[-1.0]), fixed(&[], &[1.0])]),
            plain(vec![floats_in(&[2, 3], -0.9, 0.9), fixed(&[], &[0.95])]),
            plain(vec![floats_in(&[2, 3], 0.5, 0.9), SampleOperand::Missing, fixed(&[], &[0.2])]),
            plain(vec![floats_in(&[2, 3], 0.1, 0.9), floats_in(&[], 2.0, 3.0), floats_in(&[], 4.0, 5.0)]),
            sample(Attrs::new().with("min", -3.0f32), vec![floats(&[3])]).at(6).shape_only(),
        ]
    },
    ..ROW
};
