//! The loop.

use super::checkpoint::{Best, LAST, Position, Sums};
use super::data::{self, Batch, Batches};
use super::evaluation::MEND;
use super::graph::TrainingGraph;
use super::guard::{self, Guard};
use super::log::Entry;
use super::metrics::{self, Language};
use super::outcome::Outcome;
use super::progress::{Epoch, Reporter, Step};
use super::setup::Setup;
use super::statistics::{self, Recalibrated};
use super::topology;
use super::verdict::{self, Facts, Kind, Verdict};
use crate::cli::{FreezeArgs, Recalibrate};
use crate::engine::{self, Tensors};
use crate::error::Failure;
use crate::freeze;
use crate::io::tensor::NpTensor;
use crate::topology::weights::json_of;
use crate::verify::{Subject, VerifyOptions, undefined};
use ancre_passes::contract::StateRecord;
use ancre_passes::ir::DType;
use ancre_passes::transform::loss::LossKind;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// Batches that running statistics are taken from, at most.
const MOST_BATCHES: u64 = 50;
/// Longest time between two checkpoints.
const SAVE_EVERY: Duration = Duration::from_secs(600);

struct Run {
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
    /// Of that, waiting for batches.
    waited: Duration,
    /// Samples per second, lately.
    rate: f64,
    epoch_begun: Instant,
    /// The state that a jump goes back to, with its step and what the guard knew then.
    best: (Tensors, u64, Guard),
    /// Does only a fresh head train?
    alone: bool,
    /// What came of taking running statistics anew.
    recalibrated: Option<Recalibrated>,
    /// Did the validation stop getting better?
    stopped_early: bool,
    /// By label, how often the last validation met it.
    labels: HashMap<i64, u64>,
    /// Predictions of the last validation.
    predictions: u64,
    /// Its other figures.
    metrics: Vec<(String, f64)>,
}

/// Trains to the end, or until `stop` says so.
pub(super) fn run(setup: Setup, stop: &dyn Fn() -> bool, reporter: &mut dyn Reporter) -> Result<Outcome, Failure> {
    let now = Instant::now();
    let start = setup.state.tensors().map_err(|e| Failure::input(e.to_string()).at(&setup.graph.path))?;
    let mut run = Run {
        best: (start, setup.position.step, setup.position.guard.clone()),
        alone: false,
        recalibrated: None,
        stopped_early: false,
        labels: HashMap::new(),
        predictions: 0,
        metrics: Vec::new(),
        position: setup.position.clone(),
        saved: setup.resumed.as_ref().map(|_| setup.position.step),
        s: setup,
        saved_at: now,
        first_loss: None,
        last_epoch: Sums::default(),
        validation: None,
        samples: 0,
        busy: Duration::ZERO,
        waited: Duration::ZERO,
        rate: 0.0,
        epoch_begun: now,
    };
    let interrupted = run.steps(stop, reporter)?;
    let ranks = run.s.steps.ranks.clone();
    if !ranks.is_alone() {
        ranks.same(run.s.state_hash()?, "the state at the end")?;
        ranks.leave();
    }
    let verdicts = if interrupted || !ranks.is_first() { Vec::new() } else { run.verdicts()? };
    let topology = topology::weights_now(&run.s.graph, &run.s.state);
    let seconds = now.elapsed().as_secs_f64();
    let export = match (&run.s.a.course.export, &run.s.forward) {
        (Some(path), Some(forward)) if !interrupted && ranks.is_first() => {
            let best = run.s.validation.as_ref().and_then(|_| run.s.checkpoints.best());
            let from = best.unwrap_or_else(|| run.s.checkpoints.path(LAST));
            let how = run.s.set.preprocessing().map(|p| ("preprocessing", p.to_string()));
            let classes = run.s.set.classes().map(|c| ("classes", serde_json::json!(c).to_string()));
            let metadata: Vec<_> = how.into_iter().chain(classes).collect();
            let args = FreezeArgs {
                model: forward.clone(),
                state: Some(from.clone()),
                keep_router: false,
                keep_adapters: false,
                adapter: None,
                prune: run.s.a.course.prune,
                out: Some(path.clone()),
                json: false,
            };
            let frozen = freeze::freeze_with(&args, &metadata)?;
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
        waited: run.waited.as_secs_f64(),
        samples_per_second: run.samples as f64 / run.busy.as_secs_f64().max(1e-9),
        interrupted,
        stopped_early: run.stopped_early,
        recalibrated: run.recalibrated,
        verdicts,
        metrics: run.metrics,
        topology,
        export,
    })
}

impl Run {
    /// The loop itself; says whether it was interrupted.
    fn steps(&mut self, stop: &dyn Fn() -> bool, reporter: &mut dyn Reporter) -> Result<bool, Failure> {
        let total = self.s.schedule.total;
        if self.position.step >= total {
            return Ok(false);
        }
        let Position { epoch, batch: from, .. } = self.position;
        let (set, seed) = (self.s.set.clone(), self.s.a.course.seed.unwrap_or(0));
        let part = self.s.steps.ranks.part();
        let mut batches = Batches::of_part(set, seed, self.s.batch, (epoch, from), self.s.drop_last, part);
        let mut epoch = self.position.sums.clone();
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
            self.hold_all_but_the_head();
            let asked = stop();
            let (mut entry, agreed) = self.step(&batch, begun, asked, &mut epoch, reporter)?;
            let ends = batch.last_of_epoch;
            self.position.step += 1;
            (self.position.epoch, self.position.batch) =
                if ends { (batch.epoch + 1, 0) } else { (batch.epoch, batch.index + 1) };
            self.position.sums = if ends { Default::default() } else { epoch.clone() };
            let told = Step {
                step: self.position.step,
                epoch: batch.epoch + 1,
                loss: epoch.loss().unwrap_or(entry.loss),
                accuracy: epoch.accuracy(),
                lr: entry.lr,
                rate: self.rate,
            };
            reporter.step(&told);
            if entry.restored.is_none() && self.position.guard.keeps(ends) {
                self.best = (self.state()?, self.position.step, self.position.guard.clone());
            }
            // Several ranks stop at the same step.
            let stopping = if self.s.steps.ranks.is_alone() { stop() } else { agreed };
            if self.position.step == total && !stopping {
                self.recalibrate(reporter)?;
            }
            if ends || self.position.step == total {
                self.end_epoch(&mut entry, &told, &mut epoch, stopping, reporter)?;
            }
            self.s.log.add(&entry)?;
            let due = self.s.a.save_every.is_some_and(|n| self.position.step.is_multiple_of(n))
                || self.saved_at.elapsed() >= SAVE_EVERY;
            if due || ends || stopping || self.position.step == total {
                self.save()?;
            }
            if stopping && self.position.step < total {
                return Ok(true);
            }
            if self.s.a.course.patience.is_some_and(|n| self.position.unimproved >= n) {
                self.stopped_early = self.position.step < total;
                return Ok(false);
            }
        }
        Ok(false)
    }

    /// In the first steps only a fresh head trains, if the options say so.
    fn hold_all_but_the_head(&mut self) {
        let alone = self.position.step < self.s.schedule.head;
        if alone != self.alone {
            self.alone = alone;
            let t = &self.s.graph;
            let stays = |s: &StateRecord| alone && s.trainable && !t.fresh.tensors.contains(&s.name);
            let held: HashSet<&str> = t.states.iter().filter(|s| stays(s)).map(|s| s.input.as_str()).collect();
            self.s.steps.hold(&self.s.state, |name| held.contains(name));
        }
    }

    /// One step; its line of the log, and whether any rank was asked to stop.
    fn step(
        &mut self,
        batch: &Batch,
        begun: Instant,
        stop: bool,
        epoch: &mut Sums,
        reporter: &mut dyn Reporter,
    ) -> Result<(Entry, bool), Failure> {
        let waited = begun.elapsed();
        let lr = self.rate_of(self.position.step);
        let due = self.position.step.is_multiple_of(self.s.schedule.total.div_ceil(topology::LOGGED));
        let topology = if due { topology::weights_now(&self.s.graph, &self.s.state) } else { None };
        let s = &mut self.s;
        let done = s.steps.step(&s.graph, (&batch.feeds, batch.samples), lr, stop, &mut s.state);
        let step = self.position.step + 1;
        let done = done.map_err(|e| Failure { what: format!("step {step}: {}", e.what), ..e }.at(&self.s.graph.path))?;
        let (loss, grad_norm, of_batch) = (done.loss, done.grad_norm, done.sums);
        let samples = if self.s.steps.ranks.is_alone() { batch.samples } else { of_batch.samples as usize };
        // Labels that are all ignored: the loss is no number, as in PyTorch, and its gradient is zero.
        let empty = loss.is_nan() && grad_norm == 0.0;
        let skipped = self.position.guard.skips(loss, grad_norm, self.s.graph.has_loss_scale());
        let jumped = if empty || skipped { None } else { self.position.guard.judge(loss, grad_norm) };
        let (accuracy, mut restored) = (of_batch.accuracy(), None);
        let (losses, accuracies) = (of_batch.losses(&self.s.graph), of_batch.accuracies(&self.s.graph));
        match jumped {
            Some(what) => {
                if !loss.is_finite() || !grad_norm.is_finite() {
                    self.blame(step, &what, &self.s.graph.with_rate(&batch.feeds, lr))?;
                }
                restored = Some(self.go_back(step, batch.epoch, &what, lr, reporter)?);
            }
            None => *epoch += of_batch,
        }
        if !empty {
            self.first_loss.get_or_insert(loss);
        }
        let took = begun.elapsed();
        self.busy += took;
        self.waited += waited;
        self.samples += samples as u64;
        let seconds = took.as_secs_f64();
        let samples_per_second = samples as f64 / seconds.max(1e-9);
        // A mean over about the last twenty steps.
        self.rate = if self.rate == 0.0 { samples_per_second } else { 1.0 / (0.95 / self.rate + 0.05 / samples_per_second) };
        let entry = Entry {
            step,
            epoch: batch.epoch + 1,
            samples,
            loss,
            accuracy,
            lr,
            grad_norm,
            seconds,
            samples_per_second,
            topology: topology.as_deref().map(json_of),
            losses,
            accuracies,
            restored,
            ..Entry::default()
        };
        Ok((entry, done.stopping))
    }

    /// The rate of a step, from 0.
    fn rate_of(&self, step: u64) -> f64 {
        self.s.schedule.rate(step) * self.position.guard.scale
    }

    /// Puts the best state back after a jump; returns its step. Fails when that has not helped a few times in a row.
    fn go_back(&mut self, step: u64, epoch: u64, what: &str, lr: f64, reporter: &mut dyn Reporter) -> Result<u64, Failure> {
        let (most, highest) = (self.s.a.course.guard.unwrap_or(guard::MOST), self.s.schedule.lr);
        let (state, restored, then) = &self.best;
        let Some(jump) = self.position.guard.back(then, step, what, *restored, highest, most) else {
            return Err(self.diverged(step, epoch, what, lr));
        };
        reporter.notice(&format!(
            "step {step}: {what}; the run goes back to the state {}, at a rate of {:.2e}",
            if *restored == 0 { "at its start".into() } else { format!("of step {restored}") },
            jump.lr
        ));
        self.s.state.put_back(state).map_err(|e| Failure::input(e.to_string()).at(&self.s.graph.path))?;
        Ok(*restored)
    }

    /// Fails where the batch gives no number with the last good state either: then no rate is at fault. The error names the tensor
    /// that went first.
    fn blame(&mut self, step: u64, what: &str, feeds: &Tensors) -> Result<(), Failure> {
        let (t, (state, restored, _)) = (&self.s.graph, &self.best);
        let mut graph = t.graph.clone();
        engine::find_types(&mut graph);
        let subject = Subject::of_graph(graph, &t.path);
        let mut inputs = state.clone();
        inputs.extend(feeds.clone());
        inputs.retain(|name, _| t.graph.find(name).is_some());
        let ends = [t.loss_output.as_str(), t.norm_output.as_str()];
        let ends: Vec<&str> = ends.into_iter().filter(|name| t.graph.find(name).is_some()).collect();
        let found = engine::ort()
            .ok()
            .and_then(|e| undefined::origin(e.as_ref(), &subject, &inputs, &ends, &VerifyOptions::default()).ok().flatten());
        let Some(origin) = found else { return Ok(()) };
        let of = if *restored == 0 { "the state of the start".into() } else { format!("the state of step {restored}") };
        let help = match feeds.contains_key(&origin.value) {
            true => MEND,
            false => {
                "see what the model does there, and whether inputs are prepared as it expects them (mean and deviation, padding, range); the rate is not the cause"
            }
        };
        let what = format!("step {step}: {what}, with {of} too: {origin}");
        let _ = self.s.log.flush();
        Err(Failure::check(what).at(&self.s.graph.path).help(help))
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
        let tried = match self.position.guard.jumps.len() {
            0 => String::new(),
            n => format!("; it went back to an earlier state {n} times, at lower rates, in vain"),
        };
        Failure::check(format!("the run diverged at step {step} (epoch {}): {what}{tried}; {kept}", epoch + 1))
            .at(&self.s.graph.path)
            .help(format!("a lower --lr (it was {lr:.2e}), a longer --warmup, or rewriting the model with --clip-norm 1"))
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
        if let Some(mut m) = found {
            let mut loss = m.loss().unwrap_or(f64::NAN);
            if !loss.is_finite() {
                let what = format!("the validation loss is {loss}");
                entry.restored = Some(self.go_back(told.step, told.epoch - 1, &what, told.lr, reporter)?);
                m = self.validate(reporter)?.unwrap_or_default();
                loss = m.loss().unwrap_or(f64::NAN);
            }
            if !loss.is_finite() {
                return Err(self.diverged(told.step, told.epoch - 1, &format!("the validation loss is {loss}"), told.lr));
            }
            let this = Best { step: told.step, epoch: told.epoch - 1, loss, accuracy: m.accuracy() };
            best = self.position.best.is_none_or(|b| loss < b.loss);
            self.position.unimproved = if best { 0 } else { self.position.unimproved + 1 };
            if best {
                self.position.best = Some(this);
            }
            self.validation = Some(this);
            (entry.val_loss, entry.val_accuracy) = (Some(loss), this.accuracy);
            (entry.val_losses, entry.val_accuracies) = (m.losses(&self.s.graph), m.accuracies(&self.s.graph));
            if let Some((_, evaluator)) = self.s.validation.as_ref().filter(|(_, evaluator)| !evaluator.tally.is_empty()) {
                self.metrics = evaluator.tally.figures(&m, &self.s.graph);
                entry.val_metrics = Some(self.metrics.iter().cloned().collect());
            }
        }
        let validation = self.validation.filter(|v| v.step == told.step).map(|v| (v.loss, v.accuracy));
        let seconds = self.epoch_begun.elapsed().as_secs_f64();
        let text = self.s.validation.as_ref().zip(validation);
        let language = text.and_then(|((set, _), (loss, _))| Language::of(loss, &self.s.graph, set.as_ref()));
        entry.val_perplexity = language.map(|l| l.perplexity);
        entry.val_bits_per_byte = language.and_then(|l| l.bits_per_byte);
        let each = match entry.val_losses.is_empty() {
            true => metrics::each(&epoch.losses(&self.s.graph), &epoch.accuracies(&self.s.graph)),
            false => metrics::each(&entry.val_losses, &entry.val_accuracies),
        };
        reporter.epoch(&Epoch { last: *told, each: &each, validation, language, metrics: &self.metrics, best, seconds });
        self.epoch_begun = Instant::now();
        self.last_epoch = std::mem::take(epoch);
        Ok(())
    }

    /// Loss and accuracy on the validation data, which the first rank has.
    fn validate(&mut self, reporter: &mut dyn Reporter) -> Result<Option<Sums>, Failure> {
        if self.s.steps.ranks.is_alone() || !self.s.validates {
            return self.validate_here(reporter);
        }
        let found = self.validate_here(reporter)?.unwrap_or_default();
        let all = self.s.steps.ranks.of_first(found.numbers())?;
        Ok(Some(Sums::of_numbers(&all, self.s.graph.losses.len())))
    }

    fn validate_here(&mut self, reporter: &mut dyn Reporter) -> Result<Option<Sums>, Failure> {
        let place = self.s.a.course.val.clone().unwrap_or_else(|| self.s.graph.path.clone());
        let Some((set, evaluator)) = &mut self.s.validation else { return Ok(None) };
        let (set, mut labels) = (set.clone(), HashMap::new());
        evaluator.tally.begin();
        let judged = judge(&mut self.s, &set, None, &mut |graph, batch, m| {
            for label in metrics::labels(graph, &batch.feeds) {
                *labels.entry(label).or_default() += 1;
            }
            reporter.validating(m.samples as usize, set.len());
        });
        let m = judged.map_err(|e| e.at(&place))?;
        self.labels = labels;
        self.predictions = m.predictions;
        Ok(Some(m))
    }

    /// Takes running statistics anew, if the options or their lag say so.
    fn recalibrate(&mut self, reporter: &mut dyn Reporter) -> Result<(), Failure> {
        let how = self.s.a.course.recalibrate_bn.unwrap_or_default();
        if how == Recalibrate::Off {
            return Ok(());
        }
        let most = self.s.steps_per_epoch.min(MOST_BATCHES).min((self.s.schedule.total / 4).max(8));
        let (set, seed) = (self.s.set.clone(), self.s.a.course.seed.unwrap_or(0));
        // As many samples as a rank takes statistics of.
        let batch = self.s.batch.div_ceil(self.s.steps.ranks.size());
        let mut batches = Batches::start(set, seed, batch, self.position.epoch, 0, self.s.drop_last, true);
        let s = &mut self.s;
        let found =
            statistics::recalibrate(&s.graph, &mut s.steps, &mut s.state, &mut batches, most, how == Recalibrate::On)?;
        if let Some(r) = found.filter(|r| r.replaced) {
            reporter.notice(&format!(
                "running statistics are taken anew from {} batches: they lagged behind by {:.2} deviations on average",
                r.batches, r.lag
            ));
        }
        self.recalibrated = found;
        Ok(())
    }

    /// What the run came to, in words.
    fn verdicts(&mut self) -> Result<Vec<Verdict>, Failure> {
        let used = self.position.best.filter(|_| self.s.validation.is_some());
        let all: u64 = self.labels.values().sum();
        let commonest = self.labels.values().max().map(|n| *n as f64 / all as f64);
        let has_statistics = self.s.graph.takes_statistics();
        let ahead =
            self.last_epoch.accuracy().zip(used.and_then(|b| b.accuracy)).is_some_and(|(t, v)| t - v > verdict::AHEAD);
        let set = self.s.set.clone();
        // Training data, judged as the validation is.
        let evaluated = match has_statistics && ahead {
            true => judge(&mut self.s, &set, Some(MOST_BATCHES / 2), &mut |_, _, _| ())?.accuracy(),
            false => None,
        };
        let facts = Facts {
            samples: self.s.set.len(),
            parameters: self.s.graph.parameters(),
            lr: self.s.schedule.lr * self.position.guard.scale,
            // A few steps say nothing yet.
            first_loss: self.first_loss.filter(|_| self.position.step >= 10),
            training: (self.last_epoch.loss(), self.last_epoch.accuracy()),
            validation: used.map(|b| (b.loss, b.accuracy)),
            predictions: self.predictions,
            commonest,
            evaluated,
            has_statistics,
            data: if self.s.graph.losses.iter().any(|t| t.kind == LossKind::NextToken) {
                Kind::Text
            } else if self.s.graph.wanted.inputs.iter().any(|s| s.image().is_some()) {
                Kind::Images
            } else {
                Kind::Other
            },
        };
        Ok(facts.judge())
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
        if !self.s.steps.ranks.is_first() {
            (self.saved, self.saved_at) = (Some(step), Instant::now());
            return Ok(());
        }
        let state = self.state()?;
        if let Some(name) = state.iter().find(|(_, t)| !is_finite(t)).map(|(n, _)| n.clone()) {
            let lr = self.rate_of(step - 1);
            return Err(self.diverged(step, self.position.epoch, &format!("`{name}` is no longer finite"), lr));
        }
        // The log must hold every step that the checkpoint counts.
        self.s.log.flush()?;
        self.s.checkpoints.save(&state, &self.position)?;
        (self.saved, self.saved_at) = (Some(step), Instant::now());
        Ok(())
    }
}

/// Loss and accuracy on a set by the graph that validates; with a number, over so many batches that are drawn from all of it. Fails
/// where the run has no such graph.
fn judge(
    s: &mut Setup,
    set: &data::Shared,
    most: Option<u64>,
    seen: &mut dyn FnMut(&TrainingGraph, &Batch, &Sums),
) -> Result<Sums, Failure> {
    let Some((_, evaluator)) = &mut s.validation else { return Err(Failure::input("there is no validation")) };
    let fixed = evaluator.batch;
    let mut batches = Batches::start(set.clone(), 0, fixed.unwrap_or(s.batch), 0, 0, fixed.is_some(), most.is_some());
    let mut m = Sums::default();
    for _ in 0..most.unwrap_or(u64::MAX) {
        let Some(batch) = batches.next() else { break };
        let batch = batch?;
        evaluator.add(&s.graph, &batch.feeds, &mut s.state, &mut m)?;
        seen(&s.graph, &batch, &m);
        if batch.last_of_epoch {
            break;
        }
    }
    Ok(m)
}

fn is_finite(t: &NpTensor) -> bool {
    match t.dtype() {
        DType::F32 => t.bytes().as_chunks::<4>().0.iter().all(|c| f32::from_le_bytes(*c).is_finite()),
        d if d.is_float() => t.to_f64().iter().all(|v| v.is_finite()),
        _ => true,
    }
}
