//! Attention and rotary embeddings as plain operators.
//!
//! ```text
//! scores = softcap(scale · Q Kᵀ), where allowed, plus biases      Q [B,H,S,D], K [B,H,T,D], V [B,H,T,Dv]
//! Y      = softmax(scores) V
//! ```
//!
//! A forbidden key has the smallest finite score rather than −∞: in a row that may read nothing the result is then a mean of
//! all values instead of NaN, which would spoil every gradient.

use super::{Replaced, Source};
use crate::ir::{Attrs, DType, Dim, Op, Tensor, TensorType, ValueId};
use crate::ops::build::{BuildError, Builder, Built};

/// Scores under a mask or bias.
pub(super) enum Mask {
    /// True where a key may be read.
    Allowed(ValueId),
    /// Added to the scores.
    Bias(ValueId),
}

/// How scores become weights.
#[derive(Default)]
pub(super) struct Scores {
    pub(super) scale: f64,
    pub(super) softcap: f64,
    pub(super) causal: bool,
    pub(super) masks: Vec<Mask>,
    /// Type of the softmax, where it is not the operands'.
    pub(super) precision: Option<DType>,
}

/// Constants of this many elements are written into the graph; larger ones are computed there.
const LARGEST: i64 = 1 << 20;

/// The attention of `q` [B,H,S,D] to `k` [B,H,T,D] and `v` [B,H,T,Dv].
pub(super) fn attend(b: &mut Builder, q: ValueId, k: ValueId, v: ValueId, s: &Scores) -> Built {
    let q = b.scale(q, s.scale)?;
    let keys = b.transpose_last(k)?;
    let mut scores = b.matmul(q, keys)?;
    let dtype = b.ty(scores)?.dtype;
    if s.softcap != 0.0 {
        let small = b.scale(scores, 1.0 / s.softcap)?;
        let capped = b.op("Tanh", &[small])?;
        scores = b.scale(capped, s.softcap)?;
    }
    if s.causal {
        let allowed = causal(b, scores)?;
        scores = forbid(b, scores, allowed)?;
    }
    for mask in &s.masks {
        scores = match mask {
            Mask::Allowed(allowed) => forbid(b, scores, *allowed)?,
            Mask::Bias(bias) => b.add(scores, *bias)?,
        };
    }
    let scores = b.cast(scores, s.precision.unwrap_or(dtype))?;
    let weights = b.op_with("Softmax", Attrs::new().with("axis", -1), &[scores])?;
    let weights = b.cast(weights, dtype)?;
    b.matmul(weights, v)
}

fn forbid(b: &mut Builder, scores: ValueId, allowed: ValueId) -> Built {
    let dtype = b.ty(scores)?.dtype;
    let lowest = match dtype {
        DType::F16 => -65504.0,
        DType::F64 => f64::MIN,
        // The largest finite value of both single precision and bfloat16 that rounds to itself.
        _ => -3.3895313892515355e38,
    };
    let lowest = b.scalar(dtype, lowest);
    b.select(allowed, scores, lowest)
}

/// True on and below the diagonal of the last two axes.
fn causal(b: &mut Builder, scores: ValueId) -> Built {
    let ty = b.ty(scores)?;
    let (rows, columns) = (ty.rank() - 2, ty.rank() - 1);
    if let (Some(s), Some(t)) = (ty.shape[rows].known(), ty.shape[columns].known())
        && s * t <= LARGEST
    {
        let allowed: Vec<bool> = (0..s * t).map(|i| i % t <= i / t).collect();
        return Ok(b.constant(&format!("const/causal/{s}x{t}"), Tensor::bools(&[s, t], &allowed)));
    }
    let row = positions(b, scores, rows)?;
    let row = b.unsqueeze(row, &[1])?;
    let column = positions(b, scores, columns)?;
    b.op("LessOrEqual", &[column, row])
}

/// 0, 1, … for an axis, as indices.
pub(super) fn positions(b: &mut Builder, x: ValueId, axis: usize) -> Built {
    let extent = b.ty(x)?.shape[axis].clone();
    if let Some(n) = extent.known() {
        return Ok(b.ints(&(0..n).collect::<Vec<_>>()));
    }
    let n = b.dim_of(x, axis)?;
    let n = b.squeeze(n, &[0])?;
    let (zero, one) = (b.int(0), b.int(1));
    let v = b.op("Range", &[zero, n, one])?;
    b.graph.set_type(v, TensorType::new(DType::I64, [extent]).into());
    Ok(v)
}

/// [B,S,H·D] or [B,H,S,D] to [B,H,S,D].
pub(super) fn split_heads(b: &mut Builder, x: ValueId, heads: i64) -> Result<Option<ValueId>, BuildError> {
    let ty = b.ty(x)?;
    if ty.rank() == 4 {
        return Ok(Some(x));
    }
    let width = ty.shape.last().and_then(Dim::known);
    let Some(width) = width.filter(|w| ty.rank() == 3 && heads > 0 && w % heads == 0) else { return Ok(None) };
    let shape = [ty.shape[0].clone(), ty.shape[1].clone(), Dim::from(heads), Dim::from(width / heads)];
    let split = b.reshape(x, &[0, 0, heads, width / heads], &shape)?;
    b.transpose(split, &[0, 2, 1, 3]).map(Some)
}

/// [B,H,S,D] to [B,S,H·D].
pub(super) fn join_heads(b: &mut Builder, x: ValueId) -> Result<Option<ValueId>, BuildError> {
    let ty = b.ty(x)?;
    let (Some(heads), Some(width)) = (ty.shape[1].known(), ty.shape[3].known()) else { return Ok(None) };
    let rows = b.transpose(x, &[0, 2, 1, 3])?;
    let shape = [ty.shape[0].clone(), ty.shape[2].clone(), Dim::from(heads * width)];
    b.reshape(rows, &[0, 0, heads * width], &shape).map(Some)
}

/// Each head `times` times in a row: [B,H,T,D] to [B,H·times,T,D].
fn repeat_heads(b: &mut Builder, x: ValueId, times: i64) -> Built {
    if times == 1 {
        return Ok(x);
    }
    let ty = b.ty(x)?;
    let groups = b.unsqueeze(x, &[2])?;
    let to = b.ints(&[1, 1, times, 1, 1]);
    let copies = b.op("Expand", &[groups, to])?;
    let heads = &ty.shape[1] * &Dim::from(times);
    let mut shape = ty.shape.clone();
    shape[1] = heads;
    let target: Option<Vec<i64>> = [shape[1].known(), shape[3].known()].into_iter().collect();
    match target {
        Some(known) => b.reshape(copies, &[0, known[0], -1, known[1]], &shape),
        None => {
            let target = b.shape_of(x)?;
            let factor = b.ints(&[1, times, 1, 1]);
            let target = b.mul(target, factor)?;
            b.reshape_dynamic(copies, target, &shape)
        }
    }
}

/// `Attention` of opset 23 and later, without a key cache.
pub(super) fn standard(b: &mut Builder, s: &Source) -> Replaced {
    let cached = (4..7).any(|i| s.get(i).is_some());
    let windowed = ["left_window_size", "right_window_size"].iter().any(|a| s.attrs.int(a, -1) >= 0);
    if cached || windowed || s.reads_from(1) {
        return Ok(None);
    }
    let flat = b.ty(s.need(0)?)?.rank() == 3;
    let (q_heads, kv_heads) = (s.attrs.int("q_num_heads", 0), s.attrs.int("kv_num_heads", 0));
    let (Some(q), Some(k), Some(v)) =
        (split_heads(b, s.need(0)?, q_heads)?, split_heads(b, s.need(1)?, kv_heads)?, split_heads(b, s.need(2)?, kv_heads)?)
    else {
        return Ok(None);
    };
    let (tq, tk) = (b.ty(q)?, b.ty(k)?);
    let (Some(h), Some(groups), Some(depth)) = (tq.shape[1].known(), tk.shape[1].known(), tq.shape[3].known()) else {
        return Ok(None);
    };
    if groups == 0 || h % groups != 0 {
        return Ok(None);
    }
    let mut masks = Vec::new();
    if let Some(mask) = s.get(3) {
        let ty = b.ty(mask)?;
        // A mask narrower than the keys would have to be padded.
        let whole = ty.shape.last().is_some_and(|d| d.is_one() || *d == tk.shape[2]);
        if !whole {
            return Ok(None);
        }
        masks.push(if ty.dtype == DType::Bool { Mask::Allowed(mask) } else { Mask::Bias(mask) });
    }
    let scores = Scores {
        scale: s.attrs.get("scale").map_or(1.0 / (depth as f64).sqrt(), |_| s.attrs.float("scale", 0.0) as f64),
        softcap: s.attrs.float("softcap", 0.0) as f64,
        causal: s.attrs.int("is_causal", 0) == 1,
        masks,
        precision: DType::from_onnx(s.attrs.int("softmax_precision", 0) as i32),
    };
    let k = repeat_heads(b, k, h / groups)?;
    let v = repeat_heads(b, v, h / groups)?;
    let y = attend(b, q, k, v, &scores)?;
    let y = if flat { join_heads(b, y)? } else { Some(y) };
    Ok(y.map(|y| vec![y]))
}

/// `RotaryEmbedding` of opset 23: operands x, cosines, sines, positions.
pub(super) fn rotary(b: &mut Builder, s: &Source) -> Replaced {
    rotate(b, s, s.need(0)?, s.need(1)?, s.need(2)?, s.get(3))
}

/// Turns pairs of features by angles that depend on the position: [B,S,H·D] or [B,H,S,D].
pub(super) fn rotate(
    b: &mut Builder,
    s: &Source,
    x: ValueId,
    cos: ValueId,
    sin: ValueId,
    positions: Option<ValueId>,
) -> Replaced {
    let ty = b.ty(x)?;
    let heads = s.attrs.int("num_heads", 0);
    let mut part = s.attrs.int("rotary_embedding_dim", 0);
    let width = match ty.rank() {
        4 => ty.shape[3].known(),
        // Without a number of heads the tables tell the width of one.
        3 => ty.shape[2].known().and_then(|w| match heads {
            0 if part == 0 => b.ty(cos).ok()?.shape.last()?.known().map(|half| 2 * half),
            0 => None,
            h => Some(w / h),
        }),
        _ => None,
    };
    let Some(width) = width.filter(|w| *w > 0) else { return Ok(None) };
    part = if part == 0 { width } else { part };
    // Rows of heads: [B,S,H,D] of a flat operand, where the angles are the same for axis 2, else for axis 1.
    let (grid, axis) = if ty.rank() == 4 {
        (x, 1)
    } else {
        let Some(heads) = ty.shape[2].known().map(|w| w / width) else { return Ok(None) };
        let shape = [ty.shape[0].clone(), ty.shape[1].clone(), Dim::from(heads), Dim::from(width)];
        (b.reshape(x, &[0, 0, heads, width], &shape)?, 2)
    };
    let angle = |b: &mut Builder, table: ValueId| -> Built {
        let rows = match positions {
            Some(at) => b.op_with("Gather", Attrs::new().with("axis", 0), &[table, at])?,
            None => table,
        };
        b.unsqueeze(rows, &[axis])
    };
    let (cos, sin) = (angle(b, cos)?, angle(b, sin)?);
    let turned = if part == width { grid } else { b.slice(grid, 3, 0, part)? };
    let turned = if s.attrs.int("interleaved", 0) == 1 {
        turn_pairs(b, turned, cos, sin, part)?
    } else {
        let (first, second) = (b.slice(turned, 3, 0, part / 2)?, b.slice(turned, 3, part / 2, part)?);
        let (first, second) = turn(b, first, second, cos, sin)?;
        b.concat(&[first, second], 3)?
    };
    let whole = if part == width {
        turned
    } else {
        let rest = b.slice(grid, 3, part, width)?;
        b.concat(&[turned, rest], 3)?
    };
    let y = if ty.rank() == 4 {
        whole
    } else {
        let Some(w) = ty.shape[2].known() else { return Ok(None) };
        b.reshape(whole, &[0, 0, w], &ty.shape)?
    };
    Ok(Some(vec![y]))
}

/// (x cos − y sin, x sin + y cos).
fn turn(b: &mut Builder, x: ValueId, y: ValueId, cos: ValueId, sin: ValueId) -> Result<(ValueId, ValueId), BuildError> {
    let (xc, ys) = (b.mul(x, cos)?, b.mul(y, sin)?);
    let (xs, yc) = (b.mul(x, sin)?, b.mul(y, cos)?);
    Ok((b.sub(xc, ys)?, b.add(xs, yc)?))
}

/// Turns neighbours: features 2i and 2i + 1.
fn turn_pairs(b: &mut Builder, x: ValueId, cos: ValueId, sin: ValueId, part: i64) -> Built {
    let ty = b.ty(x)?;
    let mut shape = ty.shape.clone();
    shape[3] = Dim::from(part / 2);
    shape.push(Dim::from(2));
    let pairs = b.reshape(x, &[0, 0, 0, part / 2, 2], &shape)?;
    let element = |b: &mut Builder, i: i64| -> Built {
        let one = b.slice(pairs, 4, i, i + 1)?;
        b.squeeze(one, &[4])
    };
    let (first, second) = (element(b, 0)?, element(b, 1)?);
    let (first, second) = turn(b, first, second, cos, sin)?;
    let (first, second) = (b.unsqueeze(first, &[4])?, b.unsqueeze(second, &[4])?);
    let joined = b.concat(&[first, second], 4)?;
    b.reshape(joined, &[0, 0, 0, part], &ty.shape)
}

/// Adds 0, 1, … to a single offset, or takes positions as they are: int64 positions of each row.
pub(super) fn positions_of(
    b: &mut Builder,
    given: ValueId,
    rows: ValueId,
    axis: usize,
) -> Result<Option<ValueId>, BuildError> {
    let ty = b.ty(given)?;
    if ty.rank() == 2 {
        return Ok(Some(given));
    }
    if ty.rank() != 1 || !ty.shape[0].is_one() {
        return Ok(None);
    }
    let steps = positions(b, rows, axis)?;
    let offset = b.cast(given, DType::I64)?;
    let at = b.add(steps, offset)?;
    b.unsqueeze(at, &[0]).map(Some)
}

/// Three equal or given parts of the last axis.
pub(super) fn split_last(b: &mut Builder, x: ValueId, sizes: &[i64]) -> Result<Vec<ValueId>, BuildError> {
    let axis = b.ty(x)?.rank() as i64 - 1;
    let sizes = b.ints(sizes);
    b.node(Op::new("Split", Attrs::new().with("axis", axis)), &[Some(x), Some(sizes)])
}
