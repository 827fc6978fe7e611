//! The loop.

use super::checkpoint::{Best, LAST, Position, Sums};
use super::data::{Batch, Batches};
use super::log::Entry;
use super::metrics;
use super::outcome::Outcome;
use super::progress::{Epoch, Reporter, Step};
use super::setup::Setup;
use super::topology;
use crate::cli::{FreezeArgs, TrainArgs};
use crate::engine::Tensors;
use crate::error::Failure;
use crate::freeze;
use crate::io::tensor::NpTensor;
use ancre_passes::ir::DType;
use std::time::{Duration, Instant};

/// Longest time between two checkpoints.
const SAVE_EVERY: Duration = Duration::from_secs(600);

struct Run<'a> {
    a: &'a TrainArgs,
    s: Setup,
    position: Position,
    /// Step of the newest checkpoint.
    saved: Option<u64>,
    saved_at: Instant,
    first_loss: Option<f64>,
    /// Figures of the last epoch that ended.
    last_epoch: Sums,
    validation: Option<Best>,
    /// Samples trained on and the time that took, validation and checkpoints apart.
    samples: u64,
    busy: Duration,
    /// Samples per second, lately.
    rate: f64,
    epoch_begun: Instant,
}

/// Trains to the end, or until `stop` says so.
pub(super) fn run(
    a: &TrainArgs,
    setup: Setup,
    stop: &dyn Fn() -> bool,
    reporter: &mut dyn Reporter,
) -> Result<Outcome, Failure> {
    let now = Instant::now();
    let mut run = Run {
        a,
        position: setup.position.clone(),
        saved: setup.resumed.as_ref().map(|_| setup.position.step),
        s: setup,
        saved_at: now,
        first_loss: None,
        last_epoch: Sums::default(),
        validation: None,
        samples: 0,
        busy: Duration::ZERO,
        rate: 0.0,
        epoch_begun: now,
    };
    let interrupted = run.steps(stop, reporter)?;
    let state = run.state()?;
    let shortcuts = run.s.graph.router.as_ref().and_then(|r| topology::shortcuts(r, &state));
    let seconds = now.elapsed().as_secs_f64();
    let export = match (&a.export, &run.s.forward) {
        (Some(path), Some(forward)) if !interrupted => {
            let best = run.s.validation.as_ref().and_then(|_| run.s.checkpoints.best());
            let from = best.unwrap_or_else(|| run.s.checkpoints.path(LAST));
            let frozen = freeze::freeze(&FreezeArgs {
                model: forward.clone(),
                state: Some(from.clone()),
                keep_router: false,
                prune: 0.0,
                out: Some(path.clone()),
                json: false,
            })?;
            Some((from, frozen))
        }
        _ => None,
    };
    Ok(Outcome {
        last: run.saved.map(|_| run.s.checkpoints.path(LAST)),
        setup: run.s,
        position: run.position,
        samples: run.samples,
        first_loss: run.first_loss,
        epoch: run.last_epoch,
        validation: run.validation,
        seconds,
        samples_per_second: run.samples as f64 / run.busy.as_secs_f64().max(1e-9),
        interrupted,
        shortcuts,
        export,
    })
}

impl Run<'_> {
    /// The loop itself; says whether it was interrupted.
    fn steps(&mut self, stop: &dyn Fn() -> bool, reporter: &mut dyn Reporter) -> Result<bool, Failure> {
        let total = self.s.schedule.total;
        if self.position.step >= total {
            return Ok(false);
        }
        let Position { epoch, batch: from, .. } = self.position;
        let mut batches = Batches::start(self.s.set.clone(), self.a.seed, self.s.batch, epoch, from, self.s.drop_last, true);
        let mut epoch = self.position.sums;
        while self.position.step < total {
            let begun = Instant::now();
            let batch = match batches.next() {
                Some(Ok(batch)) => batch,
                // A sample that cannot be read must not lose what was trained so far.
                Some(Err(e)) => {
                    self.save()?;
                    return Err(e);
                }
                None => return Err(Failure::input("the data ended before the run did; this is a fault of ancre-rewrite")),
            };
            let mut entry = self.step(&batch, begun, &mut epoch)?;
            let ends = batch.last_of_epoch;
            self.position.step += 1;
            (self.position.epoch, self.position.batch) =
                if ends { (batch.epoch + 1, 0) } else { (batch.epoch, batch.index + 1) };
            self.position.sums = if ends { Default::default() } else { epoch };
            let told = Step {
                step: self.position.step,
                epoch: batch.epoch + 1,
                loss: epoch.loss().unwrap_or(entry.loss),
                accuracy: epoch.accuracy(),
                lr: entry.lr,
                rate: self.rate,
            };
            reporter.step(&told);
            let stopping = stop();
            if ends || self.position.step == total {
                self.end_epoch(&mut entry, &told, &mut epoch, stopping, reporter)?;
            }
            self.s.log.add(&entry)?;
            let due = self.a.save_every.is_some_and(|n| self.position.step.is_multiple_of(n))
                || self.saved_at.elapsed() >= SAVE_EVERY;
            if due || ends || stopping || self.position.step == total {
                self.save()?;
            }
            if stopping && self.position.step < total {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// One step; its line of the log.
    fn step(&mut self, batch: &Batch, begun: Instant, epoch: &mut Sums) -> Result<Entry, Failure> {
        let lr = self.s.schedule.rate(self.position.step);
        let mut feeds = batch.feeds.clone();
        let scalar = NpTensor::from_f64s(DType::F32, &[], &[lr]);
        feeds.insert(self.s.graph.lr.clone(), scalar.ok_or_else(|| Failure::input("the learning rate is no number"))?);
        let read = self.s.stepper.step(&feeds, &mut self.s.state);
        let step = self.position.step + 1;
        let read = read.map_err(|e| Failure::input(format!("step {step}: {e}")).at(&self.s.graph.path))?;
        let number = |i: usize| read.get(i).and_then(|r| Some(f64::from(*r.f32s()?.1.first()?))).unwrap_or(f64::NAN);
        let (loss, grad_norm) = (number(0), number(1));
        // Labels that are all ignored: the loss is no number, as in PyTorch, and its gradient is zero.
        let empty = loss.is_nan() && grad_norm == 0.0;
        for (value, what) in [(loss, "loss"), (grad_norm, "gradients' norm")] {
            if !value.is_finite() && !empty {
                return Err(self.diverged(step, batch.epoch, &format!("the {what} is {value}"), lr));
            }
        }
        let labels = feeds.get(&self.s.graph.loss.target);
        let seen = metrics::Batch { loss, scores: read.get(2), labels };
        let before = (epoch.right, epoch.predictions);
        epoch.add(&seen, &self.s.graph);
        let counted = epoch.predictions - before.1;
        let accuracy = (counted > 0).then(|| (epoch.right - before.0) as f64 / counted as f64);
        if !empty {
            self.first_loss.get_or_insert(loss);
        }
        let took = begun.elapsed();
        self.busy += took;
        self.samples += batch.samples as u64;
        let seconds = took.as_secs_f64();
        let samples_per_second = batch.samples as f64 / seconds.max(1e-9);
        // A mean over about the last twenty steps.
        self.rate = if self.rate == 0.0 { samples_per_second } else { 1.0 / (0.95 / self.rate + 0.05 / samples_per_second) };
        Ok(Entry {
            step,
            epoch: batch.epoch + 1,
            loss,
            accuracy,
            lr,
            grad_norm,
            seconds,
            samples_per_second,
            val_loss: None,
            val_accuracy: None,
        })
    }

    fn diverged(&mut self, step: u64, epoch: u64, what: &str, lr: f64) -> Failure {
        // The log's lines show how the run came to diverge.
        let _ = self.s.log.flush();
        let kept = match self.saved {
            Some(at) => {
                format!("the last good checkpoint, of step {at}, is kept: {}", self.s.checkpoints.path(LAST).display())
            }
            None => "no checkpoint had been written yet".into(),
        };
        Failure::check(format!("the run diverged at step {step} (epoch {}): {what}; {kept}", epoch + 1))
            .at(&self.s.graph.path)
            .help(format!("a lower --lr (it was {lr:.2e}), --warmup, or rewriting the model with --clip-norm 1"))
    }

    /// Ends an epoch, or the run within one: validates and reports.
    fn end_epoch(
        &mut self,
        entry: &mut Entry,
        told: &Step,
        epoch: &mut Sums,
        stopping: bool,
        reporter: &mut dyn Reporter,
    ) -> Result<(), Failure> {
        // A run that was told to stop does not validate first.
        let found = if stopping && told.step < self.s.schedule.total { None } else { self.validate(reporter)? };
        let mut best = false;
        if let Some(m) = found {
            let loss = m.loss().unwrap_or(f64::NAN);
            if !loss.is_finite() {
                return Err(self.diverged(told.step, told.epoch - 1, &format!("the validation loss is {loss}"), told.lr));
            }
            let this = Best { step: told.step, epoch: told.epoch - 1, loss, accuracy: m.accuracy() };
            best = self.position.best.is_none_or(|b| loss < b.loss);
            if best {
                self.position.best = Some(this);
            }
            self.validation = Some(this);
            (entry.val_loss, entry.val_accuracy) = (Some(loss), this.accuracy);
        }
        let validation = self.validation.filter(|v| v.step == told.step).map(|v| (v.loss, v.accuracy));
        let seconds = self.epoch_begun.elapsed().as_secs_f64();
        reporter.epoch(&Epoch { last: *told, validation, best, seconds });
        self.epoch_begun = Instant::now();
        self.last_epoch = std::mem::take(epoch);
        Ok(())
    }

    /// Loss and accuracy on the validation data.
    fn validate(&mut self, reporter: &mut dyn Reporter) -> Result<Option<Sums>, Failure> {
        let Some((set, evaluator)) = &mut self.s.validation else { return Ok(None) };
        let fixed = evaluator.batch;
        let mut batches = Batches::start(set.clone(), 0, fixed.unwrap_or(self.s.batch), 0, 0, fixed.is_some(), false);
        let mut m = Sums::default();
        while let Some(batch) = batches.next() {
            let batch = batch?;
            evaluator.add(&self.s.graph, &batch.feeds, &mut self.s.state, &mut m)?;
            reporter.validating(m.samples as usize, set.len());
            if batch.last_of_epoch {
                break;
            }
        }
        Ok(Some(m))
    }

    fn state(&self) -> Result<Tensors, Failure> {
        self.s.state.tensors().map_err(|e| Failure::input(e.to_string()).at(&self.s.graph.path))
    }

    /// Writes a checkpoint unless this step has one. A state that is not finite is an error, since no run can go on from it.
    fn save(&mut self) -> Result<(), Failure> {
        let step = self.position.step;
        if step == 0 || self.saved == Some(step) {
            return Ok(());
        }
        let state = self.state()?;
        if let Some(name) = state.iter().find(|(_, t)| !is_finite(t)).map(|(n, _)| n.clone()) {
            let lr = self.s.schedule.rate(step - 1);
            return Err(self.diverged(step, self.position.epoch, &format!("`{name}` is no longer finite"), lr));
        }
        // The log must hold every step that the checkpoint counts.
        self.s.log.flush()?;
        self.s.checkpoints.save(&state, &self.position)?;
        (self.saved, self.saved_at) = (Some(step), Instant::now());
        Ok(())
    }
}

fn is_finite(t: &NpTensor) -> bool {
    match t.dtype() {
        DType::F32 => t.bytes().as_chunks::<4>().0.iter().all(|c| f32::from_le_bytes(*c).is_finite()),
        d if d.is_float() => t.to_f64().iter().all(|v| v.is_finite()),
        _ => true,
    }
}
