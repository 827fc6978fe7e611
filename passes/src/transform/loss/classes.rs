//! Losses over classes that exclude each other.

use super::reduce::{Counting, product};
use super::{LossKind, LossOptions};
use crate::ir::{Attrs, DType, Dim, Tensor, TensorType, ValueId};
use crate::ops::build::{BuildError, Builder, Built};
use crate::ops::formula::formula;
use crate::ops::{Picked, TypeError, pick};

/// The most classes of a Dice loss, which numbers them in a constant.
const MOST_CLASSES: i64 = 1 << 20;

/// A loss of logits and labels; `axis` holds the classes. All but Dice are −w[label] log softmax(logits)[label], over all positions; focal
/// multiplies by (1 − p[label])^γ.
pub(super) fn of_labels(
    b: &mut Builder,
    logits: ValueId,
    labels: ValueId,
    axis: usize,
    kind: LossKind,
    o: &LossOptions,
    counting: &Counting,
) -> Built {
    if kind == LossKind::Dice {
        return dice(b, logits, labels, axis, o, counting);
    }
    let (mut logits, mut labels, mut counting) = (logits, labels, *counting);
    if kind == LossKind::NextToken {
        (logits, labels, counting) = of_next(b, logits, labels, &counting)?;
    }
    let x = rows(b, logits, axis)?;
    let ty = b.ty(x)?;
    let mask = counting.flat(b, labels, ty.dtype)?;
    let labels = b.reshape(labels, &[-1], std::slice::from_ref(&ty.shape[0]))?;
    let log_p = b.op_with("LogSoftmax", Attrs::new().with("axis", 1), &[x])?;
    let Picked { log_p: mut each, counted, labels } = pick(b, log_p, labels, o.ignore_index)?;
    let own = match counting.classes {
        None => None,
        Some(weights) => Some(b.op_with("Gather", Attrs::new().with("axis", 0), &[weights, labels])?),
    };
    if kind == LossKind::Focal {
        each = focal(b, each, o.gamma)?;
    }
    if let Some(own) = own {
        each = b.mul(each, own)?;
    }
    if o.smoothing > 0.0 && kind != LossKind::Focal {
        let weighted = counting.classes.map_or(Ok(log_p), |weights| b.mul(log_p, weights))?;
        let mean = b.reduce("ReduceMean", weighted, &[1], false)?;
        let (hard, soft) = (b.scale(each, 1.0 - o.smoothing)?, b.scale(mean, o.smoothing)?);
        each = b.add(hard, soft)?;
    }
    let counted = product(b, counted, mask)?;
    // As in PyTorch the mean is over the weights of the labels; a focal one is over the positions.
    let over = if kind == LossKind::Focal { counted } else { product(b, counted, own)? };
    let total = counting.reduce(b, each, counted, over)?;
    b.neg(total)
}

/// Logits [N, T, V] but for the last of each sequence, with the labels and weights of what follows.
fn of_next(
    b: &mut Builder,
    logits: ValueId,
    labels: ValueId,
    counting: &Counting,
) -> Result<(ValueId, ValueId, Counting), BuildError> {
    let ty = b.ty(logits)?;
    let shorter = &ty.shape[1] - &Dim::from(1);
    let x = b.slices(logits, &[1], &[0], &[-1])?;
    b.graph.set_type(x, TensorType::new(ty.dtype, vec![ty.shape[0].clone(), shorter.clone(), ty.shape[2].clone()]).into());
    let y = later(b, labels, &shorter)?;
    // The weight is the predicted token's.
    let mask = match counting.mask {
        Some(mask) if b.ty(mask)?.rank() == 2 => Some(later(b, mask, &shorter)?),
        mask => mask,
    };
    Ok((x, y, Counting { mask, ..*counting }))
}

/// All but the first of each sequence, [N, T − 1].
fn later(b: &mut Builder, v: ValueId, shorter: &Dim) -> Built {
    let ty = b.ty(v)?;
    let y = b.slices(v, &[1], &[1], &[i64::MAX])?;
    Ok(b.state(y, TensorType::new(ty.dtype, vec![ty.shape[0].clone(), shorter.clone()])))
}

/// Logits with the classes last, all positions end to end: [P, C], in float32 at least.
fn rows(b: &mut Builder, logits: ValueId, axis: usize) -> Built {
    let rank = b.ty(logits)?.rank();
    let perm: Vec<i64> = (0..rank).filter(|a| *a != axis).chain([axis]).map(|a| a as i64).collect();
    let mut x = b.transpose(logits, &perm)?;
    let ty = b.ty(x)?;
    let classes = ty.shape[ty.rank() - 1].clone();
    let positions = ty.shape[..ty.rank() - 1].iter().fold(Dim::from(1), |p, d| &p * d);
    if ty.rank() > 2 {
        let to = [positions, classes.clone()];
        x = match classes.known() {
            Some(count) => b.reshape(x, &[-1, count], &to)?,
            None => {
                let shape = b.op("Shape", &[x])?;
                let classes_dim = b.slices(shape, &[0], &[-1], &[i64::MAX])?;
                let minus = b.ints(&[-1]);
                let target = b.concat(&[minus, classes_dim], 0)?;
                b.reshape_dynamic(x, target, &to)?
            }
        };
    }
    in_float(b, x)
}

/// A value in float32, or in float64 if it is of that type.
pub(super) fn in_float(b: &mut Builder, x: ValueId) -> Built {
    let wide = if b.ty(x)?.dtype == DType::F64 { DType::F64 } else { DType::F32 };
    b.cast(x, wide)
}

/// (1 − p)^γ log p of a log p.
pub(super) fn focal(b: &mut Builder, log_p: ValueId, gamma: f64) -> Built {
    formula(b, [log_p], |[log_p]| {
        let missed = 1.0 - log_p.op("Exp");
        match gamma {
            0.0 => log_p,
            1.0 => missed * log_p,
            2.0 => missed * missed * log_p,
            // A power below one is infinitely steep at zero.
            _ => missed.max(1e-12).power(gamma) * log_p,
        }
    })
}

/// Mean over samples and classes of 1 − (2 Σ p t + s) / (Σ p + Σ t + s), where the sums are over a sample's positions, p is the softmax
/// and t one where the label is the class.
fn dice(b: &mut Builder, logits: ValueId, labels: ValueId, axis: usize, o: &LossOptions, counting: &Counting) -> Built {
    let rank = b.ty(logits)?.rank();
    let perm: Vec<i64> = [0, axis].into_iter().chain((1..rank).filter(|a| *a != axis)).map(|a| a as i64).collect();
    let x = b.transpose(logits, &perm)?;
    let x = in_float(b, x)?;
    let mut p = b.op_with("Softmax", Attrs::new().with("axis", 1), &[x])?;
    let ty = b.ty(p)?;
    let classes = b.number(&ty.shape[1])?;
    if classes > MOST_CLASSES {
        return Err(b.error(
            "Softmax",
            TypeError(format!("a Dice loss of {classes} classes is not made; {MOST_CLASSES} are the most")),
        ));
    }
    let column = b.unsqueeze(labels, &[1])?;
    let mut each_class = vec![1; rank];
    each_class[1] = classes;
    let numbers: Vec<i64> = (0..classes).collect();
    let numbers = b.constant("loss/classes", Tensor::i64s(&each_class, &numbers));
    let hit = b.op("Equal", &[column, numbers])?;
    let mut t = b.cast(hit, ty.dtype)?;
    let mut counted = counting.spread(b, labels, ty.dtype, None)?;
    if let Some(index) = o.ignore_index {
        let index = b.int(index);
        let ignored = b.op("Equal", &[labels, index])?;
        let kept = b.op("Not", &[ignored])?;
        let kept = b.cast(kept, ty.dtype)?;
        counted = product(b, counted, Some(kept))?;
    }
    let mut both = b.mul(p, t)?;
    if let Some(counted) = counted {
        let counted = b.unsqueeze(counted, &[1])?;
        (both, p, t) = (b.mul(both, counted)?, b.mul(p, counted)?, b.mul(t, counted)?);
    }
    overlap(b, both, p, t, &(2..rank as i64).collect::<Vec<_>>(), o, counting)
}

/// The Dice loss from p t, p and t, summed over the axes of a sample's positions.
pub(super) fn overlap(
    b: &mut Builder,
    both: ValueId,
    p: ValueId,
    t: ValueId,
    axes: &[i64],
    o: &LossOptions,
    counting: &Counting,
) -> Built {
    let [both, p, t] = [both, p, t].map(|v| b.reduce_sum(v, axes, false));
    let each = formula(b, [both?, p?, t?], |[both, p, t]| 1.0 - (both * 2.0 + o.dice_smooth) / (p + t + o.dice_smooth))?;
    let over = counting.classes.map(|weights| b.expand_like(weights, each)).transpose()?;
    counting.reduce(b, each, over, None)
}

/// KL(t ‖ softmax(logits)) of each position, where t is a distribution, or the softmax of other logits at a temperature.
pub(super) fn divergence(
    b: &mut Builder,
    logits: ValueId,
    other: ValueId,
    axis: usize,
    temperature: Option<f64>,
    counting: &Counting,
) -> Built {
    let x = in_float(b, logits)?;
    let t = in_float(b, other)?;
    let heat = temperature.unwrap_or(1.0);
    let log_softmax = |b: &mut Builder, v: ValueId| -> Built {
        let v = b.scale(v, 1.0 / heat)?;
        b.op_with("LogSoftmax", Attrs::new().with("axis", axis as i64), &[v])
    };
    let log_q = log_softmax(b, x)?;
    let inside = if temperature.is_some() {
        let log_t = log_softmax(b, t)?;
        formula(b, [log_t, log_q], |[log_t, log_q]| log_t.op("Exp") * (log_t - log_q))?
    } else {
        // What is not there adds nothing: 0 log 0 = 0.
        let tiny = if b.ty(t)?.dtype == DType::F64 { 1e-300 } else { 1e-38 };
        formula(b, [t, log_q], |[t, log_q]| t * (t.max(tiny).op("Log") - log_q))?
    };
    let mut each = b.reduce_sum(inside, &[axis as i64], false)?;
    each = b.scale(each, heat * heat)?;
    let counted = counting.weights(b, each, None)?;
    counting.reduce(b, each, counted, None)
}
