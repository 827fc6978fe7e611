//! Reads from a sequence whose parts are known, as plain operators.
//!
//! ```text
//! SequenceAt(SplitToSequence(x, split), i)   x[…, start of part i .. its end, …]
//! SequenceAt(SequenceConstruct(a, b, …), i)  the i-th operand
//! ```
//!
//! This is what exporters write for `split` and `chunk` where nobody optimised the graph afterwards. The sequence itself is left
//! without readers.

use super::{Replaced, Source};
use crate::ir::{Dim, ValueId};
use crate::ops::build::Builder;
use crate::ops::constant_ints;

pub(super) fn at(b: &mut Builder, s: &Source) -> Replaced {
    let (sequence, place) = (s.need(0)?, s.need(1)?);
    let Some(place) = constant_ints(b.graph, place).and_then(|p| p.first().copied()) else { return Ok(None) };
    if b.graph.is_op(sequence.node, "SequenceConstruct") {
        let parts = b.graph.operands(sequence.node);
        let part = counted(place, parts.len() as i64).and_then(|i| parts.get(i as usize).copied().flatten());
        return Ok(part.map(|v| vec![v]));
    }
    if b.graph.is_op(sequence.node, "SplitToSequence") { part_of_split(b, sequence, place) } else { Ok(None) }
}

/// A place counted from the front, if it is there.
fn counted(place: i64, count: i64) -> Option<i64> {
    let place = if place < 0 { place + count } else { place };
    (0..count).contains(&place).then_some(place)
}

fn part_of_split(b: &mut Builder, sequence: ValueId, place: i64) -> Replaced {
    let operands = b.graph.operands(sequence.node);
    let Some(x) = operands.first().copied().flatten() else { return Ok(None) };
    let ty = b.ty(x)?;
    let attrs = b.graph.op(sequence.node).map(|op| op.attrs.clone()).unwrap_or_default();
    let Some(axis) = ty.axis(attrs.int("axis", 0)) else { return Ok(None) };
    let split = operands.get(1).copied().flatten();
    let sizes = match split {
        Some(v) => match constant_ints(b.graph, v) {
            Some(sizes) => sizes,
            None => return Ok(None),
        },
        None => vec![1],
    };
    // One number is the size of every part but the last, a list is each part's size.
    let is_list = match split {
        Some(v) => b.ty(v)?.rank() == 1,
        None => false,
    };
    let (start, size) = if is_list {
        let Some(i) = counted(place, sizes.len() as i64) else { return Ok(None) };
        (sizes[..i as usize].iter().sum(), sizes[i as usize])
    } else {
        let size = sizes.first().copied().unwrap_or(0).max(1);
        let count = ty.shape.get(axis).and_then(Dim::known).map(|n| (n + size - 1) / size);
        match (place, count) {
            (_, Some(n)) => match counted(place, n) {
                Some(i) => (i * size, size),
                None => return Ok(None),
            },
            (place, None) if place >= 0 => (place * size, size),
            _ => return Ok(None),
        }
    };
    let mut y = b.slice(x, axis as i64, start, start + size)?;
    if split.is_none() && attrs.int("keepdims", 1) == 0 {
        y = b.squeeze(y, &[axis as i64])?;
    }
    Ok(Some(vec![y]))
}
