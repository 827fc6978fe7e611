//! Losses of numbers, and of logits that are independent.

use super::classes::{focal, in_float, overlap};
use super::reduce::Counting;
use super::{LossKind, LossOptions};
use crate::ir::ValueId;
use crate::ops::build::{Builder, Built};
use crate::ops::formula::formula;

/// A loss of an output `y` and a target or a teacher's output `t` of the same shape.
pub(super) fn of_numbers(
    b: &mut Builder,
    y: ValueId,
    t: ValueId,
    kind: LossKind,
    o: &LossOptions,
    counting: &Counting,
) -> Built {
    let (t, rank) = (in_float(b, t)?, b.ty(y)?.rank());
    let dtype = b.ty(t)?.dtype;
    let y = b.cast(y, dtype)?;
    // Weights of positions go along the features: the last axis of three, the channels of images.
    let feature = match rank {
        0..=2 => None,
        3 => Some(2),
        _ => Some(1),
    };
    if kind == LossKind::BinaryDice {
        return binary_dice(b, y, t, feature, o, counting);
    }
    let each = element_loss(b, y, t, kind, o)?;
    let counted = counting.weights(b, each, feature)?;
    counting.reduce(b, each, counted, None)
}

fn element_loss(b: &mut Builder, y: ValueId, t: ValueId, kind: LossKind, o: &LossOptions) -> Built {
    let difference = |b: &mut Builder| b.sub(y, t);
    match kind {
        LossKind::L1 => {
            let d = difference(b)?;
            b.op("Abs", &[d])
        }
        LossKind::Huber => huber(b, y, t, o.huber_delta),
        LossKind::SmoothL1 => {
            let each = huber(b, y, t, o.huber_delta)?;
            b.scale(each, 1.0 / o.huber_delta)
        }
        LossKind::Bce => bce(b, y, t),
        LossKind::BinaryFocal => {
            // With the probability q of what is there: t (1 − q)^γ log q + (1 − t) q^γ log(1 − q).
            let log = |b: &mut Builder, sign: f64| formula(b, [y], |[y]| -softplus(y * -sign));
            let (of_one, of_zero) = (log(b, 1.0)?, log(b, -1.0)?);
            let (of_one, of_zero) = (focal(b, of_one, o.gamma)?, focal(b, of_zero, o.gamma)?);
            formula(b, [of_one, of_zero, t], |[of_one, of_zero, t]| -(t * of_one + (1.0 - t) * of_zero))
        }
        LossKind::DistillBce => {
            // KL of two coins: their cross-entropy without the teacher's entropy.
            let heat = o.temperature;
            let (y, t) = (b.scale(y, 1.0 / heat)?, b.scale(t, 1.0 / heat)?);
            let p = b.op("Sigmoid", &[t])?;
            let (across, own) = (bce(b, y, p)?, bce(b, t, p)?);
            let each = b.sub(across, own)?;
            b.scale(each, heat * heat)
        }
        _ => {
            let d = difference(b)?;
            b.mul(d, d)
        }
    }
}

/// ½ min(|d|, δ)² + δ (|d| − min(|d|, δ)) of d = y − t.
fn huber(b: &mut Builder, y: ValueId, t: ValueId, delta: f64) -> Built {
    let d = b.sub(y, t)?;
    let dtype = b.ty(d)?.dtype;
    let delta = b.scalar(dtype, delta);
    let size = b.op("Abs", &[d])?;
    let below = b.op("Min", &[size, delta])?;
    let square = b.mul(below, below)?;
    let square = b.scale(square, 0.5)?;
    let above = b.sub(size, below)?;
    let above = b.mul(above, delta)?;
    b.add(square, above)
}

/// max(y, 0) − y t + log(1 + e^{−|y|}), which is stable for both signs.
fn bce(b: &mut Builder, y: ValueId, t: ValueId) -> Built {
    formula(b, [y, t], |[y, t]| {
        let (floor, yt) = (y.op("Relu"), y * t);
        let log = ((-y.op("Abs")).op("Exp") + 1.0).op("Log");
        floor - yt + log
    })
}

/// log(1 + e^x), stable for both signs.
fn softplus(x: crate::ops::formula::Term) -> crate::ops::formula::Term {
    x.op("Relu") + ((-x.op("Abs")).op("Exp") + 1.0).op("Log")
}

/// 1 − (2 Σ p t + s) / (Σ p + Σ t + s), where p is the sigmoid. The sums are over the positions of a sample and a channel; of outputs
/// [N, K] over K.
fn binary_dice(
    b: &mut Builder,
    y: ValueId,
    t: ValueId,
    feature: Option<usize>,
    o: &LossOptions,
    counting: &Counting,
) -> Built {
    let (mut p, mut t) = (b.op("Sigmoid", &[y])?, t);
    let mut both = b.mul(p, t)?;
    if let Some(counted) = counting.weights(b, p, feature)? {
        (both, p, t) = (b.mul(both, counted)?, b.mul(p, counted)?, b.mul(t, counted)?);
    }
    let rank = b.ty(p)?.rank();
    let axes: Vec<i64> = (1..rank).filter(|a| Some(*a) != feature).map(|a| a as i64).collect();
    overlap(b, both, p, t, &axes, o, counting)
}
