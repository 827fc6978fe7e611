//! The log: one JSON object a step.

use super::tensorboard::Events;
use crate::error::Failure;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

/// A line of the log.
#[derive(Clone, Debug, Default, Serialize, PartialEq)]
pub(super) struct Entry {
    /// Steps done with this one.
    pub(super) step: u64,
    /// Epoch, from 1.
    pub(super) epoch: u64,
    /// Samples in the batch.
    pub(super) samples: usize,
    /// Loss before the update.
    pub(super) loss: f64,
    /// Share of right predictions, where there are labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) accuracy: Option<f64>,
    pub(super) lr: f64,
    /// Global norm of the gradients.
    pub(super) grad_norm: f64,
    /// Seconds the step took.
    pub(super) seconds: f64,
    /// Samples in the batch over these seconds.
    pub(super) samples_per_second: f64,
    /// The router's weights that the step began with, every so many steps: `[{"id", "K", "columns", "weights"}]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) topology: Option<Value>,
    /// Each of several losses, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) losses: BTreeMap<String, f64>,
    /// Accuracies by output, where several losses have labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) accuracies: BTreeMap<String, f64>,
    /// The same of the validation.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) val_losses: BTreeMap<String, f64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) val_accuracies: BTreeMap<String, f64>,
    /// Validation loss, at the end of an epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) val_loss: Option<f64>,
    /// Validation accuracy, at the end of an epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) val_accuracy: Option<f64>,
    /// Perplexity of the validation, of a language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) val_perplexity: Option<f64>,
    /// Bits for each byte of the validation's text, where it is known how much a token stands for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) val_bits_per_byte: Option<f64>,
    /// Other figures of the validation, by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) val_metrics: Option<BTreeMap<String, f64>>,
    /// The loss jumped: step of the state that the run went back to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) restored: Option<u64>,
}

pub(super) struct Log {
    path: PathBuf,
    /// Nothing where another rank of the run writes it.
    file: Option<BufWriter<File>>,
    /// The same for TensorBoard.
    pub(super) events: Option<Events>,
}

impl Log {
    /// A log that another rank of the run writes.
    pub(super) fn of_another(path: &Path) -> Log {
        Log { path: path.to_path_buf(), file: None, events: None }
    }

    /// Starts a log, or goes on with one after step `done`. Lines of later steps are dropped, since these steps are done again.
    pub(super) fn open(path: &Path, done: u64) -> Result<Log, Failure> {
        let fail = |e| cannot(path, e);
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            std::fs::create_dir_all(dir).map_err(fail)?;
        }
        let mut kept = Vec::new();
        if done > 0
            && let Ok(old) = File::open(path)
        {
            for line in BufReader::new(old).lines().map_while(Result::ok) {
                let step = serde_json::from_str::<Value>(&line).ok().and_then(|v| v["step"].as_u64());
                if step.is_some_and(|s| s <= done) {
                    kept.push(line);
                }
            }
        }
        let mut log =
            Log { path: path.to_path_buf(), file: Some(BufWriter::new(File::create(path).map_err(fail)?)), events: None };
        kept.iter().try_for_each(|line| log.write(line)).map_err(fail)?;
        log.flush()?;
        Ok(log)
    }

    pub(super) fn add(&mut self, e: &Entry) -> Result<(), Failure> {
        let line = serde_json::to_string(e).unwrap_or_default();
        self.write(&line).map_err(|e| cannot(&self.path, e))?;
        self.events.as_mut().map_or(Ok(()), |events| events.add(e))
    }

    fn write(&mut self, line: &str) -> std::io::Result<()> {
        self.file.as_mut().map_or(Ok(()), |file| writeln!(file, "{line}"))
    }

    /// Writes what was added.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.file.as_mut().map_or(Ok(()), Write::flush).map_err(|e| cannot(&self.path, e))?;
        self.events.as_mut().map_or(Ok(()), Events::flush)
    }
}

fn cannot(path: &Path, e: std::io::Error) -> Failure {
    Failure::input(format!("cannot be written: {e}")).at(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_log_has_each_step_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/log.jsonl");
        let entry = |step, loss| Entry {
            step,
            epoch: 1,
            samples: 4,
            loss,
            accuracy: None,
            lr: 0.1,
            grad_norm: 1.0,
            seconds: 0.5,
            samples_per_second: 8.0,
            val_accuracy: (step == 4).then_some(0.5),
            ..Entry::default()
        };
        let mut log = Log::open(&path, 0).unwrap();
        (1..=3).for_each(|s| log.add(&entry(s, 1.0)).unwrap());
        drop(log);
        std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"step\":4,\"lo").unwrap();
        let mut log = Log::open(&path, 2).unwrap();
        (3..=4).for_each(|s| log.add(&entry(s, 2.0)).unwrap());
        drop(log);
        let lines: Vec<Value> =
            std::fs::read_to_string(&path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let seen: Vec<_> = lines.iter().map(|l| (l["step"].as_u64().unwrap(), l["loss"].as_f64().unwrap())).collect();
        assert_eq!(seen, [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0)]);
        assert!(lines[3]["val_accuracy"] == 0.5 && lines[2].get("val_accuracy").is_none());
    }
}
