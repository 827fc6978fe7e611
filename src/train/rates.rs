//! The learning rate where none is given: by what is trained, or by a range test.

use super::data::Batches;
use super::graph::TrainingGraph;
use super::steps::Steps;
use super::trial::{self, Trial};
use crate::engine::EngineError;
use crate::engine::ort::stepper::DeviceState;
use crate::error::Failure;
use ancre_passes::contract::{StateKind, StateRecord};
use serde::Serialize;

/// What a run begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Begins {
    /// The weights are random.
    Scratch,
    /// The weights are trained, the last linear map is fresh.
    FreshHead,
    /// The weights are trained.
    Pretrained,
    /// Adapters of trained weights, perhaps with a fresh head.
    Adapters,
    /// The weights are trained and quantised.
    Quantised,
    /// Only what was made for this run trains: the last map, the router, or both.
    Probe,
}

impl Begins {
    /// Told by the graph's record of fresh tensors; without one by the weights themselves: a network that was never trained has
    /// biases and scales that are still constant, or matrices that are spread as libraries start them.
    pub(super) fn of(t: &TrainingGraph, state: &DeviceState) -> Begins {
        let fresh = |name: &str| t.fresh.tensors.iter().any(|f| f == name);
        let trained: Vec<_> = t.states.iter().filter(|s| s.trainable).collect();
        let old: Vec<_> = trained.iter().filter(|s| s.kind == StateKind::Parameter && !fresh(&s.name)).collect();
        if old.iter().any(|s| t.adapted.contains(&s.name)) {
            return Begins::Adapters;
        }
        if old.is_empty() {
            return Begins::Probe;
        }
        let axes = |s: &StateRecord| s.shape.iter().filter(|d| **d > 1).count();
        let of_file = |s: &StateRecord| Some(sample(t.default_of(s)?.to_f32()));
        let values = |s: &StateRecord| state.sample(&s.input, ELEMENTS).or_else(|| of_file(s));
        let nearly_all = |seen: Vec<bool>| seen.len() >= 4 && seen.iter().filter(|b| **b).count() * 10 >= seen.len() * 9;
        let constant = || old.iter().filter(|s| axes(s) == 1).filter_map(|s| Some(is_constant(&values(s)?))).collect();
        let matrices: Vec<_> = old.iter().filter(|s| axes(s) > 1).collect();
        let some = matrices.iter().step_by(matrices.len().div_ceil(LOOKED_AT).max(1));
        let random = || some.filter_map(|s| is_as_started(&s.shape, &values(s)?)).collect();
        if t.fresh.all || nearly_all(constant()) || nearly_all(random()) {
            Begins::Scratch
        } else if trained.iter().any(|s| fresh(&s.name)) {
            Begins::FreshHead
        } else if t.quantised.is_some() {
            Begins::Quantised
        } else {
            Begins::Pretrained
        }
    }

    /// The highest rate.
    pub(super) fn rate(self, optimizer: &str) -> f64 {
        let adam = match self {
            Begins::Scratch => 1e-3,
            // A fresh head's gradients are large at first and disturb what is trained.
            Begins::FreshHead => 3e-4,
            Begins::Pretrained => 5e-4,
            Begins::Adapters => 2e-3,
            // A step of a weight of 8 bits is some thousandths.
            Begins::Quantised => 2e-4,
            Begins::Probe => 1e-2,
        };
        if optimizer == "sgd" { 10.0 * adam } else { adam }
    }

    /// In words.
    pub(super) fn text(self) -> &'static str {
        match self {
            Begins::Scratch => "from scratch",
            Begins::FreshHead => "trained weights, fresh head",
            Begins::Pretrained => "trained weights",
            Begins::Adapters => "adapters",
            Begins::Quantised => "trained weights, quantised",
            Begins::Probe => "only fresh tensors train",
        }
    }
}

/// Some of the elements, from all over.
fn sample(values: Vec<f32>) -> Vec<f32> {
    let every = values.len().div_ceil(ELEMENTS).max(1);
    values.into_iter().step_by(every).collect()
}

fn is_constant(values: &[f32]) -> bool {
    values.iter().all(|v| (v - values[0]).abs() <= 1e-6)
}

/// Matrices that are looked at, and elements of each.
const LOOKED_AT: usize = 32;
const ELEMENTS: usize = 1 << 16;

/// Has a weight the deviation of a fresh one of its shape, and no heavier tails than a normal distribution? `None` where it has too few
/// elements to tell. The deviations are those of PyTorch's layers, torchvision, timm and transformers.
fn is_as_started(shape: &[i64], values: &[f32]) -> Option<bool> {
    let values: Vec<f64> = values.iter().map(|v| f64::from(*v)).collect();
    let n = values.len() as f64;
    if n < 256.0 {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    let moment = |k| values.iter().map(|v| (v - mean).powi(k)).sum::<f64>() / n;
    let (deviation, kurtosis) = (moment(2).sqrt(), moment(4) / moment(2).powi(2));
    // Four deviations of each figure of a normal sample.
    if mean.abs() > 4.0 * deviation / n.sqrt() || kurtosis > 3.0 + 4.0 * (24.0 / n).sqrt() {
        return Some(false);
    }
    let kernel: i64 = shape.iter().skip(2).product();
    let fans = [shape[0], shape[1]].map(|d| (d * kernel) as f64);
    // One for each of the first 99 depths: what adds to the state of a transformer, two a block, starts smaller.
    let deeper = (1..100).map(|blocks| 0.02 / f64::from(2 * blocks).sqrt());
    let by_fan = fans.iter().flat_map(|fan| [1.0 / 3.0, 1.0, 2.0].map(|gain| (gain / fan).sqrt()));
    let both = (2.0 / (fans[0] + fans[1])).sqrt();
    let known = [0.01, 0.02, 1.0, both].into_iter().chain(by_fan).chain(deeper);
    let near = 4.0 / (2.0 * n).sqrt();
    Some(known.into_iter().any(|d| (deviation / d - 1.0).abs() < near))
}

/// A rate and how it was found.
#[derive(Clone, Debug)]
pub(super) struct Rate {
    pub(super) lr: f64,
    /// In words.
    pub(super) why: String,
    /// The curve of the range test, if there was one.
    pub(super) range: Option<Vec<Point>>,
    /// The rates that were tried, if some were.
    pub(super) trial: Option<Trial>,
}

impl Rate {
    /// One that nothing has to find.
    pub(super) fn given(lr: f64, why: &str) -> Rate {
        Rate { lr, why: why.into(), range: None, trial: None }
    }

    /// By what the run begins with alone.
    pub(super) fn by_rule(t: &TrainingGraph, begins: Begins) -> Rate {
        Rate::given(begins.rate(&t.optimizer), &format!("default: {}", begins.text()))
    }

    /// By a range test; the rule's where that finds none. Fails as [`range_test`] does.
    pub(super) fn by_range_test(ground: &mut Ground, begins: Begins, notices: &mut Vec<String>) -> Result<Rate, Failure> {
        let curve = range_test(ground)?;
        let found = choose(&curve);
        if found.is_none() {
            notices.push("--lr auto: the loss fell at no rate by more than it is noisy; the rate is the default".into());
        }
        let lr = found.unwrap_or(begins.rate(&ground.t.optimizer));
        let why = format!("by a range test of {} steps", curve.len());
        Ok(Rate { range: Some(curve), ..Rate::given(lr, &why) })
    }

    /// By a trial of so many steps with each rate. Fails as [`trial::trial`] does.
    pub(super) fn by_trial(ground: &mut Ground, begins: Begins, steps: u64) -> Result<Rate, Failure> {
        let rule = Rate::by_rule(ground.t, begins);
        let trial = trial::trial(ground, rule.lr, steps)?;
        let n = trial.tried.len();
        let (lr, found) = match trial.lr {
            Some(lr) => (lr, format!("the best of {n} tried for {steps} steps")),
            None => (rule.lr, format!("since the loss of {n} that were tried begins at zero or jumps")),
        };
        let why = format!("{}, {found}", rule.why);
        Ok(Rate { trial: Some(trial), ..Rate::given(lr, &why) })
    }
}

/// Where rates are tried: on the run's own state, which is put back, and on its batches, which begin anew each time.
pub(super) struct Ground<'a> {
    pub(super) t: &'a TrainingGraph,
    pub(super) steps: &'a mut Steps,
    pub(super) state: &'a mut DeviceState,
    pub(super) batches: &'a dyn Fn() -> Batches,
}

/// Steps of a range test.
const RANGE: u64 = 48;
const LEAST: f64 = 1e-6;
const GREATEST: f64 = 1.0;

/// A point of a range test's curve.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Point {
    pub(super) lr: f64,
    /// Loss before the step with this rate.
    pub(super) loss: f64,
}

/// Trains with rates from the least to the greatest until the loss rises, and puts the state back. Fails when a step or a batch does.
fn range_test(Ground { t, steps, state, batches }: &mut Ground) -> Result<Vec<Point>, Failure> {
    let fail = |e: EngineError| Failure::input(format!("--lr auto: {e}")).at(&t.path);
    let before = state.tensors().map_err(fail)?;
    let (mut curve, mut batches) = (Vec::new(), batches());
    for step in 0..RANGE {
        let Some(batch) = batches.next() else { break };
        let lr = range_rate(step);
        let batch = batch?;
        let done = steps.step(t, (&batch.feeds, batch.samples), lr, false, state);
        let done = done.map_err(|e| Failure { what: format!("--lr auto: {}", e.what), ..e }.at(&t.path))?;
        curve.push(Point { lr, loss: done.loss });
        if has_ended(&curve) {
            break;
        }
    }
    state.put_back(&before).map_err(fail)?;
    Ok(curve)
}

/// The rate of a step of the range test, from 0.
fn range_rate(step: u64) -> f64 {
    LEAST * (GREATEST / LEAST).powf(step as f64 / (RANGE - 1) as f64)
}

/// Does the curve rise so far that no more is to be learned of it?
fn has_ended(curve: &[Point]) -> bool {
    let smooth = smoothed(curve);
    let (Some(first), Some(last)) = (smooth.first(), smooth.last()) else { return false };
    let least = smooth.iter().copied().fold(f64::INFINITY, f64::min);
    !curve.last().is_some_and(|p| p.loss.is_finite()) || last - least > 0.5 * first.abs().max(least.abs())
}

/// The rate that a curve tells: a fifth of the one with the lowest smoothed loss, where the loss still fell. `None` where it never
/// fell by more than it is noisy.
fn choose(curve: &[Point]) -> Option<f64> {
    let curve = &curve[..curve.iter().position(|p| !p.loss.is_finite()).unwrap_or(curve.len())];
    let smooth = smoothed(curve);
    let least = (0..smooth.len()).min_by(|a, b| smooth[*a].total_cmp(&smooth[*b]))?;
    let noise = curve.windows(2).take(RANGE as usize / 4).map(|w| (w[1].loss - w[0].loss).abs()).fold(0.0, f64::max);
    (smooth[0] - smooth[least] > noise / 2.0).then(|| curve[least].lr / 5.0)
}

/// Means over five steps.
fn smoothed(curve: &[Point]) -> Vec<f64> {
    let mean = |i: usize| {
        let window = &curve[i.saturating_sub(2)..(i + 3).min(curve.len())];
        window.iter().map(|p| p.loss).sum::<f64>() / window.len() as f64
    };
    (0..curve.len()).map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_test_chooses_a_rate_below_the_valley_and_none_where_there_is_none() {
        let curve = |loss: &dyn Fn(f64) -> f64| -> Vec<Point> {
            (0..RANGE).map(range_rate).map(|lr| Point { lr, loss: loss(lr.log10()) }).collect()
        };
        // Falls from 1e-4 on, rises from 1e-2 on.
        let valley = curve(&|x| {
            if x < -4.0 {
                2.0
            } else if x < -2.0 {
                2.0 - 0.5 * (x + 4.0)
            } else {
                1.0 + 5.0 * (x + 2.0)
            }
        });
        let chosen = choose(&valley).unwrap();
        assert!((1e-3..4e-3).contains(&chosen), "{chosen}");
        assert_eq!(choose(&curve(&|_| 1.0)), None);
        let mut broken = valley;
        broken[30].loss = f64::NAN;
        assert!(choose(&broken).unwrap() < broken[30].lr && has_ended(&broken[..31]) && !has_ended(&broken[..20]));
    }

    #[test]
    fn fresh_weights_are_known_by_their_deviation_and_their_tails() {
        // Normal by the sum of twelve uniform numbers.
        let mut seed = 1u64;
        let mut uniform = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 40) as f64 / (1u64 << 24) as f64 - 0.5
        };
        let shape = [96, 64];
        let mut normal = |std: f64| -> Vec<f32> {
            (0..96 * 64).map(|_| (std * (0..12).map(|_| uniform()).sum::<f64>()) as f32).collect()
        };
        for std in [0.02, 0.02 / 12f64.sqrt(), 1.0, (2.0f64 / 96.0).sqrt()] {
            assert_eq!(is_as_started(&shape, &normal(std)), Some(true), "{std}");
        }
        assert_eq!(is_as_started(&shape, &normal(0.035)), Some(false));
        // Training gives a few weights a long way.
        let mut trained = normal(0.02);
        trained.iter_mut().step_by(50).for_each(|v| *v *= 4.0);
        assert_eq!(is_as_started(&shape, &trained), Some(false));
        let bound = 1.0 / 64f64.sqrt();
        let linear: Vec<f32> = (0..96 * 64).map(|_| (2.0 * bound * uniform()) as f32).collect();
        assert_eq!(is_as_started(&shape, &linear), Some(true));
        assert_eq!(is_as_started(&[8, 8], &linear[..64]), None);
    }
}
