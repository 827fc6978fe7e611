//! Connectionist temporal classification in plain operators: the forward recursion over a known number of frames, in log space.
//!
//! ```text
//! z            blank, label 1, blank, label 2, … blank
//! α_0[s]     = log p_0[z_s] for the first two s, else nothing
//! α_t[s]     = log p_t[z_s] + log (e^α[s] + e^α[s−1] + e^α[s−2]) of t − 1; the last term where z_s is a label other than z_{s−2}
//! loss       = −log (e^α[2 n] + e^α[2 n − 1]) at the sample's last frame, n labels
//! ```
//!
//! Frames beyond a sample's own keep α. A sample whose frames are too few for its labels counts as 0, as PyTorch's `zero_infinity`.

use super::LossOptions;
use super::classes::in_float;
use super::reduce::Counting;
use crate::ir::{Attrs, DType, Tensor, ValueId};
use crate::ops::build::{BuildError, Builder, Built};
use crate::ops::formula::formula;

/// The logarithm of nothing. No sum of frames comes near it, and it can be added to itself.
const NOTHING: f64 = -1e30;

/// What the loss reads besides the logits.
pub(super) struct Sequences {
    /// Labels, [N, S] of int64, padded with anything.
    pub(super) labels: ValueId,
    /// Frames of each sample, [N] of int64.
    pub(super) frames: ValueId,
    /// Labels of each sample, [N] of int64.
    pub(super) counts: ValueId,
}

/// The loss of logits [N, T, C] with T known. `constant` gets values through which no gradient has to go.
///
/// # Errors
/// When the number of frames is not known.
pub(super) fn ctc(
    b: &mut Builder,
    logits: ValueId,
    s: &Sequences,
    o: &LossOptions,
    counting: &Counting,
    constant: &mut Vec<ValueId>,
) -> Built {
    let x = in_float(b, logits)?;
    let log_p = b.op_with("LogSoftmax", Attrs::new().with("axis", 2), &[x])?;
    let ty = b.ty(log_p)?;
    let dtype = ty.dtype;
    let frames = b.number(&ty.shape[1])?;
    let nothing = b.scalar(dtype, NOTHING);

    // The labels' positions, and what counts among them.
    let most = extent(b, s.labels, 1)?;
    let counts = b.op("Min", &[s.counts, most])?;
    let counts = b.unsqueeze(counts, &[1])?;
    let all_frames = b.int(frames);
    let own_frames = b.op("Min", &[s.frames, all_frames])?;
    let own_frames = b.unsqueeze(own_frames, &[1])?;
    let places = range(b, most)?;
    let there = b.op("Less", &[places, counts])?;
    let blank = b.int(o.blank);
    let labels = b.select(there, s.labels, blank)?;

    // z, with a blank before each label and at the end.
    let column = b.unsqueeze(labels, &[2])?;
    let zeros = b.sub(column, column)?;
    let blanks = b.add(zeros, blank)?;
    let pairs = b.concat(&[blanks, column], 2)?;
    let pairs = b.op_with("Flatten", Attrs::new().with("axis", 1), &[pairs])?;
    let last = first_columns(b, s.counts, 1, o.blank)?;
    let z = b.concat(&[pairs, last], 1)?;

    // log p_t[z_s], a frame at a time.
    let index = b.unsqueeze(z, &[1])?;
    let repeat = b.ints(&[1, frames, 1]);
    let index = b.op("Tile", &[index, repeat])?;
    let emitted = b.op_with("GatherElements", Attrs::new().with("axis", 2), &[log_p, index])?;
    let parts = match frames {
        1 => vec![emitted],
        _ => b.split(emitted, 1, &vec![1; usize::try_from(frames).unwrap_or(0)])?,
    };

    // Where a blank may be left out.
    let before = first_columns(b, s.counts, 2, o.blank)?;
    let z_less = b.slices(z, &[1], &[0], &[-2])?;
    let z_before = b.concat(&[before, z_less], 1)?;
    let same = b.op("Equal", &[z, z_before])?;
    let is_blank = b.op("Equal", &[z, blank])?;
    let stays = b.op("Or", &[same, is_blank])?;
    let zero = b.scalar(dtype, 0.0);
    let leap = b.select(stays, nothing, zero)?;

    let width = extent(b, z, 1)?;
    let at = range(b, width)?;
    let two = b.int(2);
    let begins = b.op("Less", &[at, two])?;
    let begin = b.select(begins, zero, nothing)?;
    let [one_before, two_before] = [1, 2].map(|n| first_floats(b, s.counts, n, dtype));
    let (one_before, two_before) = (one_before?, two_before?);
    let first = b.squeeze(parts[0], &[1])?;
    let mut alpha = b.add(first, begin)?;
    for (t, part) in parts.iter().enumerate().skip(1) {
        let e = b.squeeze(*part, &[1])?;
        let less = b.slices(alpha, &[1], &[0], &[-1])?;
        let a1 = b.concat(&[one_before, less], 1)?;
        let less = b.slices(alpha, &[1], &[0], &[-2])?;
        let a2 = b.concat(&[two_before, less], 1)?;
        let a2 = b.add(a2, leap)?;
        let highest = b.op("Max", &[alpha, a1, a2])?;
        // It cancels out of the sum's logarithm.
        constant.push(highest);
        let next = formula(b, [alpha, a1, a2, highest, e], |[a, a1, a2, m, e]| {
            e + m + ((a - m).op("Exp") + (a1 - m).op("Exp") + (a2 - m).op("Exp")).op("Log")
        })?;
        let number = b.int(t as i64);
        let runs = b.op("Less", &[number, own_frames])?;
        alpha = b.select(runs, next, alpha)?;
    }

    // The two ends: the last blank and the last label.
    let end = b.mul(counts, two)?;
    let with_blank = b.op_with("GatherElements", Attrs::new().with("axis", 1), &[alpha, end])?;
    let one = b.int(1);
    let none = b.int(0);
    let label = b.sub(end, one)?;
    let label = b.op("Max", &[label, none])?;
    let with_label = b.op_with("GatherElements", Attrs::new().with("axis", 1), &[alpha, label])?;
    let some = b.op("Less", &[none, counts])?;
    let with_label = b.select(some, with_label, nothing)?;
    let highest = b.op("Max", &[with_blank, with_label])?;
    constant.push(highest);
    let each =
        formula(b, [with_blank, with_label, highest], |[a, l, m]| -(m + ((a - m).op("Exp") + (l - m).op("Exp")).op("Log")))?;
    let far = b.scalar(dtype, -NOTHING / 10.0);
    let possible = b.op("Less", &[each, far])?;
    let each = b.select(possible, each, zero)?;
    let mut each = b.squeeze(each, &[1])?;
    if !counting.sum {
        // PyTorch's mean is over samples of their loss for each label.
        let n = b.squeeze(counts, &[1])?;
        let n = b.op("Max", &[n, one])?;
        let n = b.cast(n, dtype)?;
        each = b.div(each, n)?;
    }
    let counted = counting.weights(b, each, None)?;
    counting.reduce(b, each, counted, None)
}

/// One extent as an int64 scalar.
fn extent(b: &mut Builder, v: ValueId, axis: usize) -> Built {
    if let Some(n) = b.ty(v)?.shape[axis].known() {
        return Ok(b.int(n));
    }
    let dim = b.dim_of(v, axis)?;
    b.squeeze(dim, &[0])
}

/// 0, 1, 2, … below a scalar.
fn range(b: &mut Builder, limit: ValueId) -> Built {
    if let Some(n) = b.graph.constant(limit).and_then(|t| t.to_i64().ok()?.first().copied()) {
        return Ok(b.ints(&(0..n).collect::<Vec<_>>()));
    }
    let (zero, one) = (b.int(0), b.int(1));
    b.op("Range", &[zero, limit, one])
}

/// [N, columns] of an int64 number, for as many samples as `like` [N] has.
fn first_columns(b: &mut Builder, like: ValueId, columns: i64, number: i64) -> Built {
    let row = b.constant("loss/row", Tensor::i64s(&[1, columns], &vec![number; columns as usize]));
    let zeros = b.sub(like, like)?;
    let zeros = b.unsqueeze(zeros, &[1])?;
    b.add(zeros, row)
}

/// The same of the logarithm of nothing.
fn first_floats(b: &mut Builder, like: ValueId, columns: i64, dtype: DType) -> Result<ValueId, BuildError> {
    let zeros = first_columns(b, like, columns, 0)?;
    let zeros = b.cast(zeros, dtype)?;
    b.shift(zeros, NOTHING)
}
