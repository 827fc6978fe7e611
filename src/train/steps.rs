//! One step of training: of one graph, or of two with a sum over the ranks of the run between them.

use super::checkpoint::Sums;
use super::graph::{Term, TrainingGraph};
use super::metrics::{Batch, Seats};
use super::ranks::{BUCKET, NUMBERS, Ranks};
use crate::engine::ort::OrtSession;
use crate::engine::ort::device::Device;
use crate::engine::ort::stepper::{DeviceState, Read, Stepper, Traffic};
use crate::engine::{EngineError, Tensors};
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use ancre_passes::contract::StateKind;
use ancre_passes::ir::DType;
use std::borrow::Cow;
use std::collections::HashSet;

/// What makes a run's steps.
pub(super) struct Steps {
    /// The whole graph, or the one of the gradients.
    first: Stepper,
    second: Option<Second>,
    /// Where the losses' outputs come back.
    seats: Seats,
    pub(super) ranks: Ranks,
}

/// From gradients to the next state.
struct Second {
    update: Stepper,
    gradients: Vec<String>,
    statistics: Vec<String>,
    /// The counter, if the gradients depend on it: dropout draws its masks by it.
    counter: Option<String>,
    bucket: Vec<f32>,
}

/// What a step came to, on all ranks together.
pub(super) struct Done {
    /// Before the update.
    pub(super) loss: f64,
    /// Before clipping.
    pub(super) grad_norm: f64,
    pub(super) sums: Sums,
    /// Was any rank asked to stop before it?
    pub(super) stopping: bool,
}

impl Steps {
    /// Wires the sessions of a training graph: one, or the gradients' and the update's.
    ///
    /// # Errors
    /// When a session lacks an output.
    pub(super) fn new(
        t: &TrainingGraph,
        session: OrtSession,
        update: Option<OrtSession>,
        device: Device,
        ranks: &Ranks,
    ) -> Result<(Steps, DeviceState), EngineError> {
        let carried = t.carried(!ranks.is_alone());
        let (loss, norm) = (t.loss_output.as_str(), t.norm_output.as_str());
        let mut of_first = if update.is_some() { vec![loss] } else { vec![loss, norm] };
        let small = |term: &Term| {
            let target = t.wanted.targets.iter().find(|t| Some(&t.slot.name) == term.record.target.as_ref());
            target.is_some_and(|t| t.slot.shape.is_empty())
        };
        let seats = Seats::of(t, &mut of_first, |term| {
            term.scores.as_ref().filter(|_| device == Device::Cpu || small(term)).map(|s| s.output.as_str())
        });
        let takes_counter = |s: &OrtSession, n: &str| s.inputs().iter().chain(s.optional_inputs()).any(|i| i == n);
        let counter = t.states.iter().find(|s| s.kind == StateKind::Counter && takes_counter(&session, &s.input));
        let (first, mut state) = Stepper::new(session, device, &carried, &of_first)?;
        state.owns(t.states.len());
        let second = match (update, &t.update) {
            (Some(update), Some(graph)) => {
                let (update, _) = Stepper::new(update, device, &carried, &[norm])?;
                Some(Second {
                    update,
                    gradients: graph.gradients.iter().map(|g| g.name.clone()).collect(),
                    statistics: t.statistics().map(|s| s.input.clone()).collect(),
                    counter: counter.map(|s| s.input.clone()),
                    bucket: Vec::new(),
                })
            }
            _ => None,
        };
        let steps = Steps { first, second, seats, ranks: ranks.clone() };
        if !ranks.is_alone() {
            state.set(&steps.zeros(t))?;
        }
        Ok((steps, state))
    }

    /// Gradients of a rank that has no row of a batch.
    fn zeros(&self, t: &TrainingGraph) -> Tensors {
        let gradients = t.update.iter().flat_map(|u| &u.gradients);
        let zero = |g: &ancre_passes::contract::GradientRecord| {
            let s = t.states.iter().find(|s| s.name == g.tensor)?;
            let shape: Vec<usize> = s.shape.iter().map(|d| *d as usize).collect();
            Some((g.name.clone(), NpTensor::zeros(DType::F32, &shape)?))
        };
        gradients.filter_map(zero).collect()
    }

    /// From now on a state of which `stays` is true is not changed by a step. States are named by their inputs.
    pub(super) fn hold(&mut self, state: &DeviceState, stays: impl Fn(&str) -> bool) {
        let passing: HashSet<&str> = self.second.iter().flat_map(|s| &s.gradients).map(String::as_str).collect();
        self.first.hold(state, |name| stays(name) && !passing.contains(name));
        if let Some(second) = &mut self.second {
            second.update.hold(state, stays);
        }
    }

    pub(super) fn traffic(&self) -> Traffic {
        let first = self.first.traffic();
        self.second.as_ref().map_or(first, |s| first + s.update.traffic())
    }

    /// One step on this rank's rows of a batch. `stop` says that this rank was asked to stop.
    ///
    /// # Errors
    /// When a graph cannot be run, here or on another rank.
    pub(super) fn step(
        &mut self,
        t: &TrainingGraph,
        batch: (&Tensors, usize),
        lr: f64,
        stop: bool,
        state: &mut DeviceState,
    ) -> Result<Done, Failure> {
        let (feeds, samples) = batch;
        let seats = &self.seats;
        let seen = |loss, read: &[Read], feeds: &Tensors| {
            let mut sums = Sums::default();
            sums.add(&Batch { loss, read, seats, feeds }, t);
            sums
        };
        let Some(second) = &mut self.second else {
            let feeds = t.with_rate(feeds, lr);
            let read = self.first.step(&feeds, state).map_err(failure)?;
            let (loss, grad_norm) = (read[0].number(), read[1].number());
            return Ok(Done { loss, grad_norm, sums: seen(loss, &read, &feeds), stopping: stop });
        };
        let alone = self.ranks.is_alone();
        let mut sums = Sums::default();
        let mut loss = f64::NAN;
        if samples > 0 {
            let mut own = t.with_constants(feeds);
            if let Some(counter) = second.counter.as_ref().filter(|_| !alone) {
                // Every rank draws masks of its own.
                let now = state.tensor(counter).map_or(0, |t| t.to_i64()[0]);
                let own_count = now.wrapping_mul(self.ranks.size() as i64) + self.ranks.rank() as i64;
                own.to_mut().extend(NpTensor::i64s(&[], &[own_count]).map(|t| (counter.clone(), t)));
            }
            let read = self.first.step(&own, state).map_err(failure)?;
            loss = read[0].number();
            sums = seen(loss, &read, &own);
        }
        let mut stopping = stop;
        if !alone {
            let is_sum = t.losses.iter().all(|term| term.record.reduction == "sum");
            let mine = sums.clone();
            let mut numbers = sums.numbers();
            let [.., of_stop, of_loss] = &mut numbers;
            (*of_stop, *of_loss) = (f64::from(u8::from(stop)), if samples > 0 && is_sum { loss } else { 0.0 });
            let all = self.ranks.meet(numbers)?;
            let [.., asked, total] = all;
            sums = Sums::of_numbers(&all, t.losses.len());
            stopping = asked > 0.0;
            loss = if is_sum { total } else { sums.loss().unwrap_or(f64::NAN) };
            // A mean over what this rank counts becomes its part of the mean over what all count. Where there are several losses, samples count.
            let part = match is_sum {
                true => f64::from(u8::from(mine.samples > 0)),
                false => mine.weight / sums.weight.max(f64::MIN_POSITIVE),
            };
            let ranks = &self.ranks;
            let weighted = |part: f64| {
                move |bucket: &mut [f32]| {
                    match part > 0.0 {
                        true => bucket.iter_mut().for_each(|v| *v *= part as f32),
                        // What is there may be of another batch, or no number.
                        false => bucket.fill(0.0),
                    }
                    ranks.sum(bucket);
                }
            };
            let bucket = &mut second.bucket;
            state.in_buckets(&second.gradients, BUCKET, bucket, &mut weighted(part)).map_err(failure)?;
            let part = mine.samples as f64 / (sums.samples as f64).max(1.0);
            state.in_buckets(&second.statistics, BUCKET, bucket, &mut weighted(part)).map_err(failure)?;
        }
        let read = second.update.step(&t.rate(lr), state).map_err(failure)?;
        Ok(Done { loss, grad_norm: read[0].number(), sums, stopping })
    }

    /// A run of the graph that reads a batch, which changes what is not held: running statistics.
    ///
    /// # Errors
    /// When it cannot be run.
    pub(super) fn look(&mut self, t: &TrainingGraph, feeds: &Tensors, state: &mut DeviceState) -> Result<(), EngineError> {
        let feeds = match self.second {
            Some(_) => t.with_constants(feeds),
            None => Cow::Owned(t.with_rate(feeds, 0.0)),
        };
        self.first.step(&feeds, state).map(drop)
    }

    /// Gives all ranks the first one's values of some states.
    ///
    /// # Errors
    /// When a rank has failed.
    pub(super) fn share(&mut self, names: &[String], state: &mut DeviceState) -> Result<(), Failure> {
        let Some(second) = self.second.as_mut().filter(|_| !self.ranks.is_alone()) else { return Ok(()) };
        self.ranks.meet([0.0; NUMBERS])?;
        let ranks = &self.ranks;
        let mut first = |bucket: &mut [f32]| {
            if !ranks.is_first() {
                bucket.fill(0.0);
            }
            ranks.sum(bucket);
        };
        state.in_buckets(names, BUCKET, &mut second.bucket, &mut first).map_err(failure)
    }
}

fn failure(e: EngineError) -> Failure {
    Failure::input(e.to_string())
}
