//! Running statistics of batch normalisations anew, from training data under the weights as they are.
//!
//! A step mixes the statistics of its batch into the running ones, `next = m·old + (1 − m)·batch`. After few steps, or while the
//! weights move fast, the running ones lag behind, and validation, which uses them, falls apart. Fed with zeros a step gives
//! `(1 − m)·batch`, and fed with ones `m` more; so the mean over batches is found with the training graph itself, all else held.

use super::data::Batches;
use super::graph::TrainingGraph;
use super::steps::Steps;
use crate::engine::ort::stepper::DeviceState;
use crate::engine::{EngineError, Tensors};
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use ancre_passes::contract::StateRecord;
use ancre_passes::ir::DType;
use serde::Serialize;

/// A lag from which on the statistics are replaced without being asked.
const FAR: f64 = 0.25;

/// What came of a recalibration.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Recalibrated {
    /// Batches that were seen.
    pub(super) batches: u64,
    /// How far the running statistics were from the batches': see [`lag`].
    pub(super) lag: f64,
    /// Were they replaced?
    pub(super) replaced: bool,
}

/// Finds the mean statistics over some batches and puts them in place of the running ones, where these lag far behind or where it
/// is `asked` for. `None` where the graph has none. Fails when a step or a batch does.
pub(super) fn recalibrate(
    t: &TrainingGraph,
    steps: &mut Steps,
    state: &mut DeviceState,
    batches: &mut Batches,
    most: u64,
    asked: bool,
) -> Result<Option<Recalibrated>, Failure> {
    let moving: Vec<&StateRecord> = t.statistics().collect();
    if moving.is_empty() {
        return Ok(None);
    }
    let fail = |e: EngineError| Failure::input(format!("recalibration: {e}")).at(&t.path);
    let is_moving = |name: &str| moving.iter().any(|s| s.input == name);
    let before = state.some(is_moving).map_err(fail)?;
    let constant = |value: f64| -> Tensors {
        let shape = |s: &StateRecord| s.shape.iter().map(|d| *d as usize).collect::<Vec<_>>();
        let of = |s: &&StateRecord| {
            let dtype = before.get(&s.input).map_or(DType::F32, NpTensor::dtype);
            let shape = shape(s);
            let values = vec![value; shape.iter().product()];
            Some((s.input.clone(), NpTensor::from_f64s(dtype, &shape, &values)?))
        };
        moving.iter().filter_map(of).collect()
    };
    let (zeros, ones) = (constant(0.0), constant(1.0));
    steps.hold(state, |name| !is_moving(name));
    let mut see = |feeds: &Tensors, fed: &Tensors, state: &mut DeviceState| -> Result<Tensors, Failure> {
        state.set(fed).map_err(fail)?;
        steps.look(t, feeds, state).map_err(fail)?;
        state.some(is_moving).map_err(fail)
    };
    // By tensor: the part that is kept, and the sum over batches by their samples.
    let mut sums: Vec<(f64, Vec<f64>)> = Vec::new();
    let (mut seen, mut samples) = (0, 0.0);
    while seen < most {
        let Some(batch) = batches.next() else { break };
        let batch = batch?;
        let from_zero = see(&batch.feeds, &zeros, state)?;
        if seen == 0 {
            let from_one = see(&batch.feeds, &ones, state)?;
            let kept = |name: &str| {
                let (zero, one) = (from_zero[name].to_f64(), from_one[name].to_f64());
                one.iter().zip(&zero).map(|(o, z)| o - z).sum::<f64>() / zero.len().max(1) as f64
            };
            sums = moving.iter().map(|s| (kept(&s.input), vec![0.0; zeros[&s.input].len()])).collect();
        }
        let weight = batch.samples as f64;
        for (s, (kept, sum)) in moving.iter().zip(&mut sums) {
            // A part of one keeps everything: such statistics never move.
            let part = (1.0 - *kept).max(1e-6);
            sum.iter_mut().zip(from_zero[&s.input].to_f64()).for_each(|(sum, v)| *sum += weight * v / part);
        }
        (seen, samples) = (seen + 1, samples + weight);
    }
    steps.hold(state, |_| false);
    let mean = |(s, (kept, sum)): (&&StateRecord, &(f64, Vec<f64>))| {
        let old = before.get(&s.input).cloned().or_else(|| t.default_of(s))?;
        let values: Vec<f64> = sum.iter().map(|v| v / samples).collect();
        let moves = *kept < 1.0 - 1e-6;
        let new = if moves { NpTensor::from_f64s(old.dtype(), old.shape(), &values)? } else { old.clone() };
        Some((s.input.clone(), old, new))
    };
    let found: Vec<(String, NpTensor, NpTensor)> = moving.iter().zip(&sums).filter_map(mean).collect();
    let pairs = found.iter().map(|(name, old, new)| (name.as_str(), old.to_f64(), new.to_f64()));
    let lag = lag(&pairs.collect::<Vec<_>>());
    let replaced = seen > 0 && (asked || lag > FAR);
    let put: Tensors = found.into_iter().map(|(name, old, new)| (name, if replaced { new } else { old })).collect();
    state.set(&put).map_err(fail)?;
    steps.share(&put.keys().cloned().collect::<Vec<_>>(), state)?;
    Ok(Some(Recalibrated { batches: seen, lag, replaced }))
}

/// How far statistics are apart: for each pair of mean and variance, which follow each other, the mean over the channels of the
/// distance of the means, in deviations, and half the logarithm of the variances' quotient, whichever is larger; of these the mean.
fn lag(pairs: &[(&str, Vec<f64>, Vec<f64>)]) -> f64 {
    let mut all = Vec::new();
    for two in pairs.chunks_exact(2) {
        let [(_, a, b), (_, c, d)] = two else { continue };
        // Variances are positive, means of both signs; the order is the graph's.
        let is_variance = |v: &[f64], w: &[f64]| v.iter().chain(w).all(|x| *x >= 0.0);
        let ((m0, m1), (v0, v1)) = if is_variance(c, d) { ((a, b), (c, d)) } else { ((c, d), (a, b)) };
        if m0.len() != v0.len() || m0.is_empty() {
            continue;
        }
        let floor = 1e-5;
        let apart = |i: usize| {
            let distance = (m0[i] - m1[i]).abs() / (v1[i].max(0.0) + floor).sqrt();
            let quotient = 0.5 * ((v0[i].max(0.0) + floor) / (v1[i].max(0.0) + floor)).ln().abs();
            distance.max(quotient).min(10.0)
        };
        all.push((0..m0.len()).map(apart).sum::<f64>() / m0.len() as f64);
    }
    all.iter().sum::<f64>() / all.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_that_fit_do_not_lag_and_others_do() {
        let mean = |v: f64| ("m", vec![v, -1.0], vec![0.0, -1.0]);
        let variance = |v: f64| ("v", vec![v, 1.0], vec![1.0, 1.0]);
        assert!(lag(&[mean(0.01), variance(1.1)]) < 0.05);
        assert!(lag(&[mean(2.0), variance(1.0)]) > 0.9);
        assert!(lag(&[variance(0.01), mean(0.0)]) > 0.9);
        assert_eq!(lag(&[]), 0.0);
    }
}
