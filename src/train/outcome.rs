//! What a run came to, for people and as JSON.

use super::checkpoint::Best;
use super::metrics::Metrics;
use super::progress::{duration, percent, rate};
use super::topology::{self, Shortcut};
use crate::engine::ort::device::Device;
use crate::engine::ort::stepper::Traffic;
use crate::freeze::Frozen;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;

/// Shortcuts that people are shown.
const SHOWN: usize = 5;

/// A deployable model that was written.
pub struct Export {
    /// The checkpoint it is made of.
    pub from: PathBuf,
    /// What freezing did.
    pub frozen: Frozen,
}

/// What a run came to.
pub struct Outcome {
    /// The training graph.
    pub graph: PathBuf,
    /// Where it ran.
    pub device: Device,
    /// Steps done, those before a resumption too.
    pub steps: u64,
    /// Steps done by this process.
    pub steps_here: u64,
    /// Steps of the whole run.
    pub total: u64,
    /// Samples this process trained on.
    pub samples: u64,
    /// Samples in a batch.
    pub batch: usize,
    /// Loss of the first step.
    pub first_loss: Option<f64>,
    /// Figures of the last epoch.
    pub epoch: Metrics,
    /// The last validation.
    pub validation: Option<Best>,
    /// The best validation.
    pub best: Option<Best>,
    /// Seconds from the first step on, all told.
    pub seconds: f64,
    /// Samples per second, validation and checkpoints apart.
    pub samples_per_second: f64,
    /// Host bytes.
    pub traffic: Traffic,
    /// Was it stopped before its end?
    pub interrupted: bool,
    /// The checkpoint it went on from.
    pub resumed: Option<PathBuf>,
    /// The newest checkpoint.
    pub last: Option<PathBuf>,
    /// The best one.
    pub best_file: Option<PathBuf>,
    /// The log.
    pub log: PathBuf,
    /// The learned topology's shortcuts, the strongest first.
    pub shortcuts: Option<Vec<Shortcut>>,
    /// The deployable model.
    pub export: Option<Export>,
    /// What a person was told.
    pub notices: Vec<String>,
}

impl Outcome {
    fn bytes_per_step(&self, bytes: u64) -> u64 {
        bytes / self.traffic.runs.max(1)
    }

    /// The report as JSON.
    pub fn json(&self) -> Value {
        let best = |b: &Option<Best>| {
            b.map(|b| json!({"step": b.step, "epoch": b.epoch + 1, "loss": b.loss, "accuracy": b.accuracy}))
        };
        json!({
            "graph": self.graph, "device": self.device.to_string(), "steps": self.steps, "steps_here": self.steps_here,
            "total_steps": self.total, "samples": self.samples, "batch_size": self.batch,
            "loss": {"first": self.first_loss, "last_epoch": self.epoch.loss()}, "accuracy": self.epoch.accuracy(),
            "validation": best(&self.validation), "best": best(&self.best),
            "seconds": self.seconds, "samples_per_second": self.samples_per_second,
            "host_bytes_per_step": {"fed": self.bytes_per_step(self.traffic.fed), "read": self.bytes_per_step(self.traffic.read)},
            "interrupted": self.interrupted, "resumed": self.resumed,
            "checkpoints": {"last": self.last, "best": self.best_file}, "log": self.log,
            "shortcuts": self.shortcuts,
            "export": self.export.as_ref().map(|e| {
                let mut frozen = e.frozen.json();
                if let Some(o) = frozen.as_object_mut() {
                    o.insert("state".into(), json!(e.from));
                }
                frozen
            }),
            "notices": self.notices,
        })
    }

    /// The report for people.
    pub fn text(&self, verbose: bool) -> String {
        let mut t = String::new();
        let mut line = |name: &str, text: String| {
            let _ = writeln!(t, "{name:<10}{text}");
        };
        let what = if self.interrupted { "stopped" } else { "trained" };
        let of = if self.steps < self.total { format!(" of {}", self.total) } else { String::new() };
        line(
            what,
            format!(
                "{}{of} steps on {} in {} ({})",
                self.steps,
                self.device,
                duration(self.seconds),
                rate(self.samples_per_second)
            ),
        );
        let accuracy = |a: Option<f64>| a.map(|a| format!(", accuracy {}", percent(a))).unwrap_or_default();
        if let (Some(first), Some(last)) = (self.first_loss, self.epoch.loss()) {
            line(
                "loss",
                format!("{first:.4} at the first step, {last:.4} over the last epoch{}", accuracy(self.epoch.accuracy())),
            );
        }
        if let Some(v) = self.validation {
            let best = self
                .best
                .filter(|b| b.step != v.step)
                .map(|b| format!("; best {:.4} after epoch {}{}", b.loss, b.epoch + 1, accuracy(b.accuracy)));
            line("val", format!("loss {:.4}{}{}", v.loss, accuracy(v.accuracy), best.unwrap_or_default()));
        }
        if let Some(all) = &self.shortcuts {
            if all.is_empty() {
                line("topology", "no block has an earlier state to read but its skip's".into());
            }
            for (i, text) in topology::lines(all, SHOWN).lines().enumerate() {
                line(if i == 0 { "topology" } else { "" }, text.to_string());
            }
        }
        if let Some(last) = &self.last {
            let best = self.best_file.as_ref().map(|b| format!("; best {}", b.display())).unwrap_or_default();
            line("state", format!("{}{best}", last.display()));
        }
        line("log", self.log.display().to_string());
        if verbose {
            line(
                "host",
                format!(
                    "{} bytes fed and {} read a step; the state stayed in ONNX Runtime",
                    self.bytes_per_step(self.traffic.fed),
                    self.bytes_per_step(self.traffic.read)
                ),
            );
        }
        if let Some(e) = &self.export {
            let (f, from) = (&e.frozen, e.from.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default());
            line("exported", format!("{}  ({} bytes, {} nodes, from {from})", f.path.display(), f.bytes, f.nodes));
        } else if let (Some(last), false) = (self.best_file.as_ref().or(self.last.as_ref()), self.interrupted) {
            let forward = self.graph.display().to_string().replace(".train.onnx", ".onnx");
            line("next", format!("ancre-rewrite freeze {forward} --state {}", last.display()));
        }
        if self.interrupted {
            line("next", "the same command with --resume goes on from here".into());
        }
        t
    }
}
