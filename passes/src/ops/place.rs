//! The transpose of taking a block out of a tensor: zeros of the whole's shape with the block in its place.

use super::*;
use crate::ir::build::{Builder, Built};

/// Where a block starts along one axis.
pub(super) enum Start {
    /// Here, possibly relative to a symbolic extent.
    At(Dim),
    /// At an int64 vector of length 1 that the graph computes.
    Computed(ValueId),
}

/// Zeros of `like`'s shape with `part` at the given starts; other axes must agree. A single `Pad`, whose amounts are constants
/// wherever the extents allow.
pub(super) fn place(b: &mut Builder, part: ValueId, like: ValueId, starts: &[(usize, Start)]) -> Built {
    let (inner, outer) = (b.ty(part)?, b.ty(like)?);
    let rank = outer.rank();
    let mut before: Vec<Option<ValueId>> = vec![None; rank];
    let mut after = before.clone();
    for (axis, start) in starts {
        let (d, n) = (&outer.shape[*axis], &inner.shape[*axis]);
        let first = match start {
            Start::At(start) => match (start.known(), (d - start).known()) {
                (Some(start), _) => b.ints(&[start]),
                (None, Some(from_end)) => {
                    let (d, k) = (b.dim_of(like, *axis)?, b.ints(&[from_end]));
                    b.sub(d, k)?
                }
                (None, None) => {
                    // The start depends on other extents too; then the block reaches to the end.
                    let (d, n) = (b.dim_of(like, *axis)?, b.dim_of(part, *axis)?);
                    b.sub(d, n)?
                }
            },
            Start::Computed(v) => *v,
        };
        let rest = match start {
            Start::At(start) => (&(d - start) - n).known(),
            Start::Computed(_) => None,
        };
        let last = match rest {
            Some(rest) => b.ints(&[rest]),
            None => {
                let (d, n) = (b.dim_of(like, *axis)?, b.dim_of(part, *axis)?);
                let end = b.add(first, n)?;
                b.sub(d, end)?
            }
        };
        (before[*axis], after[*axis]) = (Some(first), Some(last));
    }
    let none = b.ints(&[0]);
    let pads: Vec<ValueId> = before.into_iter().chain(after).map(|v| v.unwrap_or(none)).collect();
    let pads = b.shape_from(&pads)?;
    if constant_ints(b.graph, pads).is_some_and(|p| p.iter().all(|n| *n == 0)) {
        return Ok(part);
    }
    let v = b.op("Pad", &[part, pads])?;
    b.graph.set_type(v, outer.into());
    Ok(v)
}
