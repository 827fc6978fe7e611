//! Attention and rotary embeddings, decomposed into plain operators.
//!
//! ```text
//! scores = softcap(scale · Q Kᵀ), where allowed, plus biases      Q [B,H,S,D], K [B,H,T,D], V [B,H,T,Dv]
//! Y      = softmax(scores) V
//! ```
//!
//! A forbidden key gets the smallest finite score, not −∞. With −∞, a row that may read no key would be NaN and spoil every
//! gradient; so it is the mean of all values.

mod fused;
mod rotary;
mod standard;

pub(super) use fused::{MULTI_HEAD, PACKED};
pub(super) use rotary::{FUSED as FUSED_ROTARY, ROTARY};
pub(super) use standard::ATTENTION;

use super::*;

/// A mask or bias of the scores.
enum Mask {
    /// True where a key may be read.
    Allowed(ValueId),
    /// Added to the scores.
    Bias(ValueId),
}

/// How scores become weights.
#[derive(Default)]
struct Scores {
    scale: f64,
    softcap: f64,
    causal: bool,
    masks: Vec<Mask>,
    /// Type of the softmax, if it is not that of the operands.
    precision: Option<DType>,
}

/// Most elements of a mask that is written as a constant; the graph computes larger ones.
const LARGEST: i64 = 1 << 20;

/// The attention of `q` [B,H,S,D] to `k` [B,H,T,D] and `v` [B,H,T,Dv].
fn attend(b: &mut Builder, q: ValueId, k: ValueId, v: ValueId, s: &Scores) -> Built {
    let q = b.scale(q, s.scale)?;
    let keys = b.transpose_last(k)?;
    let mut scores = b.matmul(q, keys)?;
    let dtype = b.ty(scores)?.dtype;
    if s.softcap != 0.0 {
        scores = formula(b, [scores], |[x]| (x * (1.0 / s.softcap)).op("Tanh") * s.softcap)?;
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
        // The lowest finite bfloat16, which single precision has too.
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

/// 0, 1, … for the elements of an axis.
pub(super) fn positions(b: &mut Builder, x: ValueId, axis: usize) -> Built {
    let ty = b.ty(x)?;
    let extent = ty.shape.get(axis).cloned();
    let extent = extent.ok_or_else(|| b.error("Range", TypeError(format!("{ty} has no axis {axis}"))))?;
    if let Some(n) = extent.known() {
        return Ok(b.ints(&(0..n).collect::<Vec<_>>()));
    }
    let n = b.dim_of(x, axis)?;
    let n = b.squeeze(n, &[0])?;
    let (zero, one) = (b.int(0), b.int(1));
    let v = b.op("Range", &[zero, n, one])?;
    Ok(b.state(v, TensorType::new(DType::I64, [extent])))
}

/// [B,S,H·D] or [B,H,S,D] to [B,H,S,D].
fn split_heads(b: &mut Builder, x: ValueId, heads: i64) -> Result<ValueId, Why> {
    let ty = type_of(b, x)?;
    if ty.rank() == 4 {
        return Ok(x);
    }
    refuse_if(ty.rank() != 3, unfit(format!("takes no operand of type {ty}")))?;
    let width = extent(b, x, 2)?;
    refuse_if(
        heads < 1 || width % heads != 0,
        unfit(format!("has rows of {width} elements, which {heads} heads do not divide")),
    )?;
    let shape = [ty.shape[0].clone(), ty.shape[1].clone(), Dim::from(heads), Dim::from(width / heads)];
    let split = b.reshape(x, &[0, 0, heads, width / heads], &shape)?;
    Ok(b.transpose(split, &[0, 2, 1, 3])?)
}

/// [B,H,S,D] to [B,S,H·D].
fn join_heads(b: &mut Builder, x: ValueId) -> Result<ValueId, Why> {
    let ty = type_of(b, x)?;
    let width = extent(b, x, 1)? * extent(b, x, 3)?;
    let rows = b.transpose(x, &[0, 2, 1, 3])?;
    let shape = [ty.shape[0].clone(), ty.shape[2].clone(), Dim::from(width)];
    Ok(b.reshape(rows, &[0, 0, width], &shape)?)
}

/// Repeats each head `times` times in a row: [B,H,T,D] to [B,H·times,T,D].
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

/// Parts of the last axis.
fn split_last(b: &mut Builder, x: ValueId, sizes: &[i64]) -> Result<Vec<ValueId>, Why> {
    let axis = b.ty(x)?.rank() as i64 - 1;
    Ok(b.split(x, axis, sizes)?)
}
