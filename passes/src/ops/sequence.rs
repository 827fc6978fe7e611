//! `SequenceAt` of a sequence whose parts are known, as plain operators.
//!
//! ```text
//! SequenceAt(SplitToSequence(x, split), i)   x[…, start of part i .. its end, …]
//! SequenceAt(SequenceConstruct(a, b, …), i)  the i-th operand
//! ```
//!
//! Exporters write this for `split` and `chunk`. Afterwards nothing reads the sequence.

use super::*;

/// Samples hold tensors only; the tests of `transform::legalize` cover this rule.
pub(super) const AT: Row = Row {
    name: "SequenceAt",
    infer: |_| Err(TypeError("the types of a sequence's parts are not known".into())),
    derivative: Derivative::Decompose("Slice; of a `SplitToSequence` or `SequenceConstruct` at a constant place"),
    decompose: at,
    samples: Vec::new,
    ..ROW
};

fn at(b: &mut Builder, s: &Source) -> Decomposed {
    let (sequence, place) = (s.need(0)?, s.need(1)?);
    let place = constant(b, place)?.first().copied().unwrap_or(0);
    if b.graph.is_op(sequence.node, "SequenceConstruct") {
        let parts = b.graph.operands(sequence.node);
        let part = parts.get(counted(place, parts.len() as i64)? as usize).copied().flatten();
        return Ok(vec![part.ok_or(Why::Missing(0))?]);
    }
    if !b.graph.is_op(sequence.node, "SplitToSequence") {
        return Err(unfit("reads from a sequence that is neither split from a tensor nor made of tensors next to it"));
    }
    part_of_split(b, sequence, place)
}

/// A place counted from the front.
fn counted(place: i64, count: i64) -> Result<i64, Why> {
    let from_front = if place < 0 { place + count } else { place };
    if (0..count).contains(&from_front) { Ok(from_front) } else { Err(unfit(format!("reads place {place} of {count}"))) }
}

fn part_of_split(b: &mut Builder, sequence: ValueId, place: i64) -> Decomposed {
    let split = Source::of(b.graph, sequence.node, b.opset());
    let x = split.need(0)?;
    let ty = type_of(b, x)?;
    let axis = ty.axis(split.op.int("axis")).ok_or_else(|| unfit(format!("reads a split whose axis {ty} does not have")))?;
    let sizes = match split.get(1) {
        Some(v) => constant(b, v)?,
        None => vec![1],
    };
    // A scalar is the size of every part but the last; a list has each part's size.
    let is_list = match split.get(1) {
        Some(v) => type_of(b, v)?.rank() == 1,
        None => false,
    };
    let (start, size) = if is_list {
        let i = counted(place, sizes.len() as i64)? as usize;
        (sizes[..i].iter().sum(), sizes[i])
    } else {
        let size = sizes.first().copied().unwrap_or(0).max(1);
        // A place counted from the end needs a known extent.
        let i = match ty.shape[axis].known() {
            None if place >= 0 => place,
            _ => counted(place, (extent(b, x, axis)? + size - 1) / size)?,
        };
        (i * size, size)
    };
    let mut y = b.slice(x, axis as i64, start, start + size)?;
    if split.get(1).is_none() && split.op.int("keepdims") == 0 {
        y = b.squeeze(y, &[axis as i64])?;
    }
    Ok(vec![y])
}
