//! `train`: a training graph run in ONNX Runtime, step by step, over a data set.
//!
//! `setup` decides, reads and checks everything before the first step, `run` is the loop, `outcome` what came of it.
//! [`graph::TrainingGraph`] is what a training graph says about itself, `evaluation` validates, [`checkpoint`] keeps states.

pub mod checkpoint;
mod course;
pub mod data;
mod evaluation;
pub mod graph;
mod guard;
pub mod interrupt;
mod log;
mod metrics;
mod outcome;
mod progress;
mod rates;
mod run;
mod schedule;
mod setup;
mod start;
mod statistics;
mod tensorboard;
mod topology;
mod trial;
mod verdict;

pub(crate) use course::Hash;
pub use outcome::Outcome;

use crate::cli::TrainArgs;
use crate::error::Failure;
use progress::{Reporter, Silent, Terminal};

/// Trains as the command line asks for, with progress on standard error. After Ctrl-C the run writes a checkpoint and ends as
/// interrupted. Errors have status 2 for bad usage or input, before the first step wherever that can be told, and 1 when the
/// run diverges.
pub fn train(a: &TrainArgs) -> Result<Outcome, Failure> {
    interrupt::watch();
    let mut reporter: Box<dyn Reporter> = if a.quiet { Box::new(Silent) } else { Box::new(Terminal::default()) };
    let setup = setup::Setup::new(a, reporter.as_mut())?;
    run::run(setup, &interrupt::came, reporter.as_mut())
}
