//! What a run's log says: its curves, and the weights on the way.

use crate::error::Failure;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

/// A line of the log, as far as the pictures need it.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Line {
    pub(super) step: u64,
    /// Samples in the batch.
    pub(super) samples: Option<u64>,
    pub(super) loss: Option<f64>,
    pub(super) accuracy: Option<f64>,
    pub(super) lr: Option<f64>,
    pub(super) val_loss: Option<f64>,
    pub(super) val_accuracy: Option<f64>,
    #[serde(skip_serializing)]
    pub(super) topology: Vec<Logged>,
}

/// A chain's weights in a line of the log.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Logged {
    id: usize,
    weights: Vec<Vec<f32>>,
}

/// Rows of weights by chain.
pub(super) type Rows = Vec<(usize, Vec<Vec<f32>>)>;

/// A run as its log tells it.
#[derive(Clone, Debug, Default)]
pub(super) struct Course {
    pub(super) lines: Vec<Line>,
    /// The weights that steps began with: the steps done before, and the rows by chain.
    pub(super) weights: Vec<(u64, Rows)>,
    /// Steps done in the state that is shown.
    pub(super) step: Option<u64>,
}

impl Course {
    /// Reads a log. A last line that a killed run left unfinished is left out.
    pub(super) fn read(path: &Path) -> Result<Course, Failure> {
        let fail = |e: std::io::Error| Failure::input(format!("cannot be read: {e}")).at(path);
        let mut course = Course::default();
        for line in BufReader::new(File::open(path).map_err(fail)?).lines() {
            let Ok(mut line) = serde_json::from_str::<Line>(&line.map_err(fail)?) else { continue };
            if !line.topology.is_empty() {
                let rows = std::mem::take(&mut line.topology).into_iter().map(|l| (l.id, l.weights)).collect();
                course.weights.push((line.step.saturating_sub(1), rows));
            }
            course.lines.push(line);
        }
        Ok(course)
    }
}
