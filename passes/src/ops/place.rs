//! The transpose of slicing: zeros of the whole's shape with a block in its place.

use super::*;

/// Where a block starts along one axis.
pub(super) enum Start {
    /// At this place, which may depend on a symbolic extent.
    At(Dim),
    /// At a place that the graph computes: an int64 vector of length 1.
    Computed(ValueId),
}

/// Zeros of `like`'s shape with `part` at the given starts; the other axes must agree. It is one `Pad`, whose amounts are
/// constants where the extents are known.
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
                    // A start that depends on other extents too belongs to a block that reaches the end.
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
    Ok(b.state(v, outer))
}

/// A [`place`]d term of a sum: `part` lies at `start..start + len` of an axis of extent `whole`.
struct Block {
    part: ValueId,
    axis: usize,
    start: i64,
    len: i64,
    whole: i64,
}

impl Block {
    fn of(b: &Builder, v: ValueId) -> Option<Block> {
        if !b.graph.is_op(v.node, "Pad") || b.graph.node(v.node).operand_count() != 2 || b.graph.is_read(v) {
            return None;
        }
        if !b.graph.op(v.node)?.attrs.0.is_empty() {
            return None;
        }
        let (part, pads) = (b.graph.operand(v.node, 0)?, b.graph.operand(v.node, 1)?);
        let (pads, ty) = (constant_ints(b.graph, pads)?, b.ty(part).ok()?);
        let (before, after) = pads.split_at(ty.rank());
        let mut padded = (0..ty.rank()).filter(|i| before[*i] != 0 || after[*i] != 0);
        let (Some(axis), None) = (padded.next(), padded.next()) else { return None };
        let (start, len) = (before[axis], ty.shape[axis].known()?);
        (start >= 0 && after[axis] >= 0 && len > 0).then(|| Block {
            part,
            axis,
            start,
            len,
            whole: start + len + after[axis],
        })
    }
}

/// Sum of one or more terms of one type. If neighbouring blocks were sliced out of a value (the three parts of a fused
/// projection, the halves of a rotary embedding), one `Concat` joins their cotangents; each would otherwise be padded to full
/// size and added.
pub fn sum_terms(b: &mut Builder, terms: &[ValueId]) -> Built {
    let mut rest = Vec::with_capacity(terms.len());
    let mut blocks: Vec<Block> = Vec::new();
    for v in terms {
        match Block::of(b, *v) {
            // All blocks lie along the axis of the first.
            Some(block) if blocks.first().is_none_or(|f| (f.axis, f.whole) == (block.axis, block.whole)) => {
                blocks.push(block)
            }
            _ => rest.push(*v),
        }
    }
    blocks.sort_by_key(|block| (block.start, block.len));
    let neighbours = |w: &[Block]| (w[0].start, w[0].len) == (w[1].start, w[1].len) || w[0].start + w[0].len == w[1].start;
    if blocks.len() < 2 || !blocks.windows(2).all(neighbours) {
        return b.sum(terms);
    }
    let ty = b.ty(terms[0])?;
    let (axis, start, whole) = (blocks[0].axis, blocks[0].start, blocks[0].whole);
    let mut parts = Vec::new();
    let mut end = start;
    for same in blocks.chunk_by(|a, b| a.start == b.start) {
        // The cotangents of several readers of one block are added before they are joined.
        let same_parts: Vec<ValueId> = same.iter().map(|block| block.part).collect();
        parts.push(b.sum(&same_parts)?);
        end += same[0].len;
    }
    let mut joined = b.concat(&parts, axis as i64)?;
    if start != 0 || end != whole {
        let mut pads = vec![0; 2 * ty.rank()];
        (pads[axis], pads[ty.rank() + axis]) = (start, whole - end);
        let pads = b.ints(&pads);
        joined = b.op("Pad", &[joined, pads])?;
    }
    b.graph.set_type(joined, ty.into());
    rest.push(joined);
    b.sum(&rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(starts: &[(i64, i64)]) -> (Graph, ValueId) {
        let mut g = Graph::default();
        let batch = || Dim::symbol("batch");
        let like = g.add_input("x", TensorType::new(DType::F32, vec![batch(), Dim::from(6)]).into(), None);
        let ty = |n| TensorType::new(DType::F32, vec![batch(), Dim::from(n)]);
        let parts: Vec<ValueId> =
            starts.iter().enumerate().map(|(i, (_, n))| g.add_input(&format!("p{i}"), ty(*n).into(), None)).collect();
        let mut b = Builder::new(&mut g, "");
        let mut terms = Vec::new();
        for (part, (start, _)) in parts.iter().zip(starts) {
            terms.push(place(&mut b, *part, like, &[(1, Start::At(Dim::from(*start)))]).expect("placed"));
        }
        let sum = sum_terms(&mut b, &terms).expect("summed");
        (g, sum)
    }

    fn op_behind(starts: &[(i64, i64)]) -> String {
        let (g, sum) = placed(starts);
        assert_eq!(g.tensor_type(sum).map(|t| t.to_string()).as_deref(), Some("f32[batch,6]"));
        g.op(sum.node).map(|o| o.name.clone()).unwrap_or_default()
    }

    #[test]
    fn neighbouring_blocks_are_joined() {
        assert_eq!(op_behind(&[(4, 2), (0, 2), (2, 2)]), "Concat");
        assert_eq!(op_behind(&[(0, 3), (3, 3), (0, 3)]), "Concat");
        assert_eq!(op_behind(&[(1, 2), (3, 2)]), "Pad");
    }

    #[test]
    fn blocks_with_a_gap_or_an_overlap_are_added() {
        assert_eq!(op_behind(&[(0, 2), (4, 2)]), "Add");
        assert_eq!(op_behind(&[(0, 4), (2, 4)]), "Add");
    }
}
