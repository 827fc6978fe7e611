//! `CumProd` (opset 26): running products along an axis (an operand), optionally reversed or without the element itself.
//!
//! It takes log₂ n steps. After the step of distance d, an element is the product of the 2d elements that end at it. No step
//! divides, so derivatives are right where an element is 0.

use super::*;

/// Most elements of an axis that is written out, in 20 steps.
const LONGEST: i64 = 1 << 20;

pub(super) const CUM_PROD: Row = Row {
    name: "CumProd",
    infer: like_first,
    derivative: Derivative::Decompose("Slice, Concat, Mul; along an axis of known length"),
    decompose: |b, s| {
        let x = s.need(0)?;
        let axis = constant(b, s.need(1)?)?;
        let axis =
            axis.first().and_then(|a| type_of(b, x).ok()?.axis(*a)).ok_or_else(|| unfit("has an axis out of range"))?;
        refuse_if(type_of(b, x)?.dtype == DType::Bool, unfit("multiplies booleans"))?;
        let n = extent(b, x, axis)?;
        refuse_if(!(1..=LONGEST).contains(&n), unfit(format!("runs over {n} elements; up to {LONGEST} are written out")))?;
        let (along, back) = (axis as i64, s.op.int("reverse") != 0);
        // The element `d` places before each one, or 1.
        let before = |b: &mut Builder, v: ValueId, d: i64| {
            let (first, last) = if back { (d, n) } else { (0, n - d) };
            let kept = b.slice(v, along, first, last)?;
            let rest = b.slice(v, along, 0, d)?;
            let zeros = b.zeros_like(rest)?;
            let ones = b.shift(zeros, 1.0)?;
            b.concat(&if back { [kept, ones] } else { [ones, kept] }, along)
        };
        let mut y = if s.op.int("exclusive") != 0 { before(b, x, 1)? } else { x };
        let mut d = 1;
        while d < n {
            let earlier = before(b, y, d)?;
            y = b.mul(y, earlier)?;
            d *= 2;
        }
        Ok(vec![y])
    },
    samples: || {
        let of = |attrs, dims: &[i64], axis: i64| {
            let axis = ints_of(&[], &[axis]);
            sample(attrs, vec![floats(dims), axis]).at(26)
        };
        let both = Attrs::new().with("exclusive", 1).with("reverse", 1);
        vec![
            of(Attrs::new(), &[2, 5], 1),
            of(Attrs::new().with("exclusive", 1), &[2, 3], -1),
            of(Attrs::new().with("reverse", 1), &[2, 4], 1),
            of(both, &[2, 2, 3], -2),
        ]
    },
    ..ROW
};
