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
#[cfg(feature = "mpi")]
mod mpi;
mod outcome;
mod plan;
mod progress;
mod ranks;
mod rates;
mod run;
mod schedule;
mod sessions;
mod setup;
mod start;
mod statistics;
mod steps;
mod tensorboard;
mod topology;
mod trial;
mod verdict;

pub(crate) use course::Hash;
pub use outcome::Outcome;

use crate::cli::TrainArgs;
use crate::error::Failure;
use progress::{Reporter, Silent, Terminal};
use ranks::Ranks;

/// Trains as the command line asks for, with progress on standard error. After Ctrl-C the run writes a checkpoint and ends as
/// interrupted. Errors have status 2 for bad usage or input, before the first step wherever that can be told, and 1 when the
/// run diverges. Under `mpirun` this process is one of several that train together; the first one reports.
pub fn train(a: &TrainArgs) -> Result<Outcome, Failure> {
    interrupt::watch();
    let ranks = Ranks::of_this_process()?;
    if !ranks.is_alone() {
        interrupt::watch_as_one_of_many(ranks.rank(), ranks.size());
    }
    train_as(a, &ranks)
}

/// Trains as one rank of a run.
fn train_as(a: &TrainArgs, ranks: &Ranks) -> Result<Outcome, Failure> {
    /// What unwinds says no more than what fails.
    struct LastWord<'r>(&'r Ranks);
    impl Drop for LastWord<'_> {
        fn drop(&mut self) {
            if std::thread::panicking() {
                self.0.fail();
            }
        }
    }
    let _last_word = LastWord(ranks);
    let quiet = a.quiet || !ranks.is_first();
    let mut reporter: Box<dyn Reporter> = if quiet { Box::new(Silent) } else { Box::new(Terminal::default()) };
    let done = setup::Setup::new(a, ranks, reporter.as_mut())
        .and_then(|setup| run::run(setup, &interrupt::came, reporter.as_mut()));
    done.map_err(|e| {
        // The rank that is the first to leave has the others ended.
        interrupt::is_ending();
        ranks.fail();
        ranks.named(e)
    })
}
