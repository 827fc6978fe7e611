//! The result of a run, for people and as JSON.

use super::checkpoint::{Best, Position, Sums};
use super::metrics::{self, Language};
use super::progress::{duration, percent, rate};
use super::setup::Setup;
use super::statistics::Recalibrated;
use super::topology;
use super::verdict::Verdict;
use crate::engine::memory::{self, bytes};
use crate::freeze::{self, Frozen};
use crate::io::lines::{Lines, put};
use crate::topology::weights::{Weights, json_of, shortcuts};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Shortcuts that people are shown.
const SHOWN: usize = 5;

/// The result of a run.
pub struct Outcome {
    pub(super) setup: Setup,
    /// Where the run stands now.
    pub(super) position: Position,
    /// Samples this process trained on.
    pub(super) samples: u64,
    pub(super) first_loss: Option<f64>,
    /// Figures of the last epoch.
    pub(super) epoch: Sums,
    /// The last validation.
    pub(super) validation: Option<Best>,
    /// Seconds from the first step on, all told.
    pub(super) seconds: f64,
    /// Seconds that steps waited for their batches.
    pub(super) waited: f64,
    /// Samples per second, validation and checkpoints apart.
    pub(super) samples_per_second: f64,
    /// Was the run stopped before its end?
    pub interrupted: bool,
    /// Did it end because the validation stopped getting better?
    pub(super) stopped_early: bool,
    /// What came of taking running statistics anew.
    pub(super) recalibrated: Option<Recalibrated>,
    /// Other figures of the last validation.
    pub(super) metrics: Vec<(String, f64)>,
    /// What the run came to, in words.
    pub(super) verdicts: Vec<Verdict>,
    /// The newest checkpoint.
    pub(super) last: Option<PathBuf>,
    /// The router's weights at the end.
    pub(super) topology: Option<Vec<Weights>>,
    /// The checkpoint that was deployed, and what `freeze` did.
    pub(super) export: Option<(PathBuf, Frozen)>,
}

impl Outcome {
    /// Bytes that a step fed to ONNX Runtime, and bytes that it read.
    fn bytes_per_step(&self) -> (u64, u64) {
        let traffic = self.setup.steps.traffic();
        let runs = traffic.runs.max(1);
        (traffic.fed / runs, traffic.read / runs)
    }

    /// Bytes that a rank gives to the sums of a step.
    fn summed_per_step(&self) -> u64 {
        self.setup.steps.ranks.summed() / self.setup.steps.traffic().runs.max(1)
    }

    /// Is it this process that reports? Of several that train together it is the first.
    pub fn is_told(&self) -> bool {
        self.setup.steps.ranks.is_first()
    }

    /// What a validation loss says about a language model.
    fn language(&self, loss: f64) -> Option<Language> {
        let (set, _) = self.setup.validation.as_ref()?;
        Language::of(loss, &self.setup.graph, set.as_ref())
    }

    /// The report as JSON.
    pub fn json(&self) -> Value {
        let best = |b: &Option<Best>| {
            b.map(|b| {
                let language = self.language(b.loss);
                json!({"step": b.step, "epoch": b.epoch + 1, "loss": b.loss, "accuracy": b.accuracy,
                       "perplexity": language.map(|l| l.perplexity), "bits_per_byte": language.and_then(|l| l.bits_per_byte)})
            })
        };
        let path = |p: Option<&PathBuf>| p.map(|p| p.to_string_lossy().into_owned());
        let (s, at) = (&self.setup, &self.position);
        let (fed, read) = self.bytes_per_step();
        json!({
            "graph": s.graph.path.to_string_lossy(), "device": s.device.to_string(), "in_blocks": s.in_blocks, "steps": at.step, "steps_here": at.step - s.position.step,
            "total_steps": s.schedule.total, "samples": self.samples, "batch_size": s.batch,
            "loss": {"first": self.first_loss, "last_epoch": self.epoch.loss()}, "accuracy": self.epoch.accuracy(),
            "losses": self.epoch.losses(&s.graph), "accuracies": self.epoch.accuracies(&s.graph),
            "validation": best(&self.validation), "best": best(&at.best),
            "lr": {"highest": s.schedule.lr, "begins": s.begins, "range_test": s.rate.range, "trial": s.rate.trial, "factor": at.guard.scale},
            "warmup": s.schedule.warmup, "jumps": at.guard.jumps,
            "seconds": self.seconds, "samples_per_second": self.samples_per_second, "waited_seconds": self.waited,
            "host_bytes_per_step": {"fed": fed, "read": read}, "peak_memory_bytes": memory::peak(),
            "ranks": s.steps.ranks.size(), "summed_bytes_per_step": self.summed_per_step(), "sum_seconds": s.steps.ranks.spent().as_secs_f64(),
            "interrupted": self.interrupted, "stopped_early": self.stopped_early, "recalibrated": self.recalibrated,
            "metrics": self.metrics.iter().cloned().collect::<BTreeMap<_, _>>(), "verdicts": self.verdicts, "resumed": path(s.resumed.as_ref()),
            "checkpoints": {"last": path(self.last.as_ref()), "best": path(s.checkpoints.best().as_ref())},
            "log": s.log_path.to_string_lossy(),
            "shortcuts": self.topology.as_deref().map(shortcuts), "topology": self.topology.as_deref().map(json_of),
            "export": self.export.as_ref().map(|(from, frozen)| {
                let mut report = frozen.json();
                report["state"] = json!(from.to_string_lossy());
                report
            }),
            "notices": s.notices,
        })
    }

    /// The report for people.
    pub fn text(&self, verbose: bool) -> String {
        let (s, at) = (&self.setup, &self.position);
        let (total, best_file) = (s.schedule.total, s.checkpoints.best());
        let mut out = Lines::new(10);
        let what = if self.interrupted { "stopped" } else { "trained" };
        let size = |p: &PathBuf| std::fs::metadata(p).map_or(String::new(), |m| format!(" ({})", bytes(m.len())));
        let of = if at.step < total { format!(" of {total}") } else { String::new() };
        let enough = match self.stopped_early {
            true => format!("; {} validations in a row brought nothing better", at.unimproved),
            false => String::new(),
        };
        put!(
            out,
            what,
            "{}{of} steps on {} in {} ({}){enough}",
            at.step,
            s.device,
            duration(self.seconds),
            rate(self.samples_per_second)
        );
        let accuracy = |a: Option<f64>| a.map(|a| format!(", accuracy {}", percent(a))).unwrap_or_default();
        if let (Some(first), Some(last)) = (self.first_loss, self.epoch.loss()) {
            put!(
                out,
                "loss",
                "{first:.4} at the first step, {last:.4} over the last epoch{}",
                accuracy(self.epoch.accuracy())
            );
            let each = metrics::each(&self.epoch.losses(&s.graph), &self.epoch.accuracies(&s.graph));
            if !each.is_empty() {
                put!(out, "", "{each}");
            }
        }
        if let Some(v) = self.validation {
            let best = at
                .best
                .filter(|b| b.step != v.step)
                .map(|b| format!("; best {:.4} after epoch {}{}", b.loss, b.epoch + 1, accuracy(b.accuracy)));
            let language = self.language(v.loss).map(|l| format!(", {}", l.text())).unwrap_or_default();
            let others: String = self.metrics.iter().map(|(name, v)| format!(", {name} {v:.4}")).collect();
            put!(out, "val", "loss {:.4}{language}{}{others}{}", v.loss, accuracy(v.accuracy), best.unwrap_or_default());
        }
        if let Some(last) = at.guard.jumps.last() {
            let n = at.guard.jumps.len();
            let times = if n == 1 { "once".into() } else { format!("{n} times") };
            put!(
                out,
                "guard",
                "the loss jumped {times}; the run went back each time, and ended at a rate of at most {:.2e}",
                last.lr
            );
        }
        for v in &self.verdicts {
            put!(out, "verdict", "{}", v.text);
            put!(out, "try", "{}", v.advice);
        }
        if let Some(all) = self.topology.as_deref().map(shortcuts) {
            if all.is_empty() {
                put!(out, "topology", "no block has an earlier state to read but its skip's");
            } else if all.len() < topology::WORTH {
                put!(
                    out,
                    "topology",
                    "{} shortcut in all: the router has next to nothing to learn here; rewriting with --scope network lets blocks read across stages",
                    all.len()
                );
            }
            for (i, s) in all.iter().take(SHOWN).enumerate() {
                put!(out, if i == 0 { "topology" } else { "" }, "chain {}  {}", s.chain, s.text());
            }
        }
        if let Some(last) = &self.last {
            let best = best_file.as_ref().map(|b| format!("; best {}{}", b.display(), size(b))).unwrap_or_default();
            put!(out, "state", "{}{}{best}", last.display(), size(last));
        }
        put!(out, "log", "{}{}", s.log_path.display(), size(&s.log_path));
        if verbose {
            let (fed, read) = self.bytes_per_step();
            put!(out, "host", "{fed} bytes fed and {read} read a step; the state stayed in ONNX Runtime");
            put!(out, "", "steps waited {:.1} s for their batches", self.waited);
            if !s.steps.ranks.is_alone() {
                put!(out, "", "{} summed over {} ranks a step", bytes(self.summed_per_step()), s.steps.ranks.size());
            }
        }
        if let Some((from, f)) = &self.export {
            let from = from.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            put!(out, "exported", "{}  ({}, {} nodes, from {from})", f.path.display(), bytes(f.bytes), f.nodes);
            if let Some(first) = self.verdicts.first() {
                put!(out, "but", "{}", first.text);
            }
            out.text.push_str(&freeze::router_text(f));
        } else if let (Some(last), false) = (best_file.as_ref().or(self.last.as_ref()), self.interrupted) {
            let forward = s.graph.path.display().to_string().replace(".train.onnx", ".onnx").replace(".grad.onnx", ".onnx");
            put!(out, "next", "ancre-rewrite freeze {forward} --state {}", last.display());
        }
        if self.interrupted {
            put!(out, "next", "the same command with --resume goes on from here");
        }
        out.text
    }
}
