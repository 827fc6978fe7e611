//! Weighted sums of states: the lowerings of a router, among which the target's costs choose.
//!
//! A router and its transpose are the same computation: `target_t = Σ_{s < n_t} A[t, s] · source_s`, with the targets in an order
//! in which each reads a prefix of the sources. Forwards the rows are the targets and the states the sources; backwards the states
//! are the targets and the row cotangents the sources, both reversed. The sums are computed in blocks of b sources. When a block is
//! full, one product adds its contribution to a carry for all later targets. Activation traffic falls from K² to about K²/b + K·b,
//! operators from K² to about 4K. With b ≥ K this is one product a row over stacked states.
//!
//! Inside a block a target takes one product over the block's few sources, stacked anew for every target, or what moves less and takes
//! more operators: a product for each full chunk of c sources, stacked once for all targets, and one for each source that is left. A
//! product over n sources for one target reads n + 1 states and writes one beside the copy of what it adds to.
//!
//! Routers of a few states take one multiplication and one addition a pair instead, which copies nothing.

use crate::ir::{Dim, ValueId};
use crate::ops::TypeError;
use crate::ops::build::{BuildError, Builder, Built, reshape_target};
use crate::target::Target;
use indexmap::IndexMap;

/// How a router's weighted sums are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lowering {
    /// One `Mul` a pair, then `Add`s.
    Pairwise,
    /// Blocks of so many sources, stacked and multiplied; inside a block chunks of so many, or all that a target reads.
    Blocks(usize, Option<usize>),
}

impl Lowering {
    /// The target's choice for a number of sources.
    pub(super) fn choose(target: &Target, sources: usize) -> Lowering {
        let costs = &target.router;
        let size = costs.blocks.iter().find(|(most, _)| sources <= *most).map(|(_, size)| *size);
        size.filter(|_| sources > costs.pairs).map_or(Lowering::Pairwise, |size| Lowering::Blocks(size, costs.chunk))
    }
}

/// `target_t = Σ_{s < n_t} A[row_t, s] · source_s` for targets (row_t, n_t). The n_t do not decrease, and the rows ascend by one.
pub(super) fn triangular(
    b: &mut Builder,
    lowering: Option<Lowering>,
    a: ValueId,
    targets: &[(i64, usize)],
    sources: &[ValueId],
) -> Result<Vec<ValueId>, BuildError> {
    let like = sources[0];
    let ty = b.ty(like)?;
    let a = b.cast(a, ty.dtype)?;
    let rows = b.ty(a)?.shape[0].known().unwrap_or(0);
    // The blocks of sums need rows that follow one another.
    let gaps = targets.windows(2).any(|t| t[0].0 + 1 != t[1].0);
    let lowering = if gaps { Some(Lowering::Pairwise) } else { lowering };
    let (size, chunk) = match lowering.unwrap_or_else(|| Lowering::choose(b.target, sources.len())) {
        Lowering::Pairwise => return pairwise(b, a, targets, sources),
        Lowering::Blocks(size, chunk) => (size, chunk),
    };
    let flat: Vec<ValueId> =
        sources.iter().map(|s| b.reshape(*s, &[1, -1], &[Dim::from(1), ty.elements()])).collect::<Result<_, _>>()?;
    // A product for few targets takes longer than the chunks of a block, which are stacked already.
    let fewest = chunk.map_or(1, |_| size / 2);
    let mut stacks: IndexMap<(usize, usize), ValueId> = IndexMap::new();
    let mut out = Vec::with_capacity(targets.len());
    // What full blocks give to the targets from `carry_row` on.
    let mut carry: Option<(i64, ValueId)> = None;
    let mut block = 0;
    for (t, &(row, reads)) in targets.iter().enumerate() {
        while block < (reads - 1) / size && targets.len() - t >= fewest {
            let (lo, hi) = (block * size, (block + 1) * size);
            let part = slice2(b, a, (row, rows), (lo as i64, hi as i64))?;
            let parts = pieces(lo, hi, chunk).into_iter().map(|(lo, hi)| stacked(b, &mut stacks, &flat, lo, hi));
            let parts: Vec<ValueId> = parts.collect::<Result<_, _>>()?;
            let whole = b.concat(&parts, 0)?;
            let earlier = match carry {
                Some((first, c)) if first < row => Some(slice2(b, c, (row - first, rows - first), (0, -1))?),
                Some((_, c)) => Some(c),
                None => None,
            };
            carry = Some((row, product(b, part, whole, earlier)?));
            block += 1;
        }
        let mut sum = match carry {
            Some((first, c)) => Some(slice2(b, c, (row - first, row - first + 1), (0, -1))?),
            None => None,
        };
        let pieces = pieces(block * size, reads, chunk);
        let parts = row_parts(b, a, (row, rows), &pieces)?;
        for ((lo, hi), part) in pieces.into_iter().zip(parts) {
            let source = stacked(b, &mut stacks, &flat, lo, hi)?;
            sum = Some(product(b, part, source, sum)?);
        }
        let Some(sum) = sum else { return Err(b.error("Route", TypeError("reads no state".into()))) };
        out.push(match reshape_target(&ty.shape) {
            Some(target) => b.reshape(sum, &target, &ty.shape)?,
            None => b.reshape_like(sum, like)?,
        });
    }
    Ok(out)
}

/// The sources from `lo` to `hi`, cut into what is multiplied at once: full chunks, counted from the first source of all, and single
/// ones; or all of them.
fn pieces(lo: usize, hi: usize, chunk: Option<usize>) -> Vec<(usize, usize)> {
    let Some(chunk) = chunk else { return vec![(lo, hi)] };
    let mut out = Vec::new();
    let mut at = lo;
    while at < hi {
        let end = if at.is_multiple_of(chunk) && at + chunk <= hi { at + chunk } else { at + 1 };
        out.push((at, end));
        at = end;
    }
    out
}

/// Sources as the rows of a matrix, which is made once.
fn stacked(
    b: &mut Builder,
    stacks: &mut IndexMap<(usize, usize), ValueId>,
    flat: &[ValueId],
    lo: usize,
    hi: usize,
) -> Built {
    if let Some(known) = stacks.get(&(lo, hi)) {
        return Ok(*known);
    }
    let made = b.concat(&flat[lo..hi], 0)?;
    stacks.insert((lo, hi), made);
    Ok(made)
}

/// Pieces of the columns, one after the other, of one of a matrix' rows: [1, columns of the piece] each.
fn row_parts(
    b: &mut Builder,
    a: ValueId,
    (row, rows): (i64, i64),
    pieces: &[(usize, usize)],
) -> Result<Vec<ValueId>, BuildError> {
    let (Some((lo, _)), Some((_, hi))) = (pieces.first(), pieces.last()) else { return Ok(Vec::new()) };
    if let [(lo, hi)] = pieces {
        return Ok(vec![slice2(b, a, (row, row + 1), (*lo as i64, *hi as i64))?]);
    }
    let whole = if rows == 1 { a } else { slice2(b, a, (row, row + 1), (0, -1))? };
    let columns = b.ty(a)?.shape[1].known().unwrap_or(*hi as i64);
    let sizes: Vec<i64> = pieces.iter().map(|(lo, hi)| (hi - lo) as i64).collect();
    let (before, after) = (*lo as i64, columns - *hi as i64);
    let all: Vec<i64> = [before].into_iter().chain(sizes).chain([after]).filter(|n| *n > 0).collect();
    let parts = b.split(whole, 1, &all)?;
    Ok(parts.into_iter().skip((before > 0) as usize).take(pieces.len()).collect())
}

/// The same sums with one product a pair.
fn pairwise(b: &mut Builder, a: ValueId, targets: &[(i64, usize)], sources: &[ValueId]) -> Result<Vec<ValueId>, BuildError> {
    let rank = b.ty(sources[0])?.rank();
    let mut out = Vec::with_capacity(targets.len());
    for (row, reads) in targets {
        let mut sum: Option<ValueId> = None;
        for (column, source) in sources[..*reads].iter().enumerate() {
            let column = column as i64;
            let mut w = slice2(b, a, (*row, row + 1), (column, column + 1))?;
            if rank < 2 {
                w = b.reshape(w, &vec![1; rank], &vec![Dim::from(1); rank])?;
            }
            let term = b.mul(*source, w)?;
            sum = Some(match sum {
                Some(sum) => b.add(sum, term)?,
                None => term,
            });
        }
        out.extend(sum);
    }
    Ok(out)
}

/// a · b (+ c).
fn product(b: &mut Builder, x: ValueId, y: ValueId, c: Option<ValueId>) -> Built {
    match c {
        Some(c) => b.op("Gemm", &[x, y, c]),
        None => b.matmul(x, y),
    }
}

/// Rows and columns of a matrix; columns (0, −1) are all of them. The whole matrix costs nothing.
fn slice2(b: &mut Builder, a: ValueId, rows: (i64, i64), columns: (i64, i64)) -> Built {
    let ty = b.ty(a)?;
    let extent = |axis: usize| ty.shape[axis].known();
    let all_rows = rows.0 == 0 && extent(0) == Some(rows.1);
    let all_columns = columns == (0, -1) || (columns.0 == 0 && extent(1) == Some(columns.1));
    match (all_rows, all_columns) {
        (true, true) => Ok(a),
        (false, true) => b.slice(a, 0, rows.0, rows.1),
        (true, false) => b.slice(a, 1, columns.0, columns.1),
        (false, false) => b.slices(a, &[0, 1], &[rows.0, columns.0], &[rows.1, columns.1]),
    }
}
