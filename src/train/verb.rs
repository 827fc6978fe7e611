//! The verb itself.

use super::outcome::Outcome;
use super::progress::{Reporter, Silent, Terminal};
use super::{interrupt, run, setup};
use crate::cli::TrainArgs;
use crate::error::Failure;

/// Trains as the command line asks for. `stop` is asked after each step: once it says yes, a checkpoint is written and the run
/// ends as interrupted.
///
/// # Errors
/// Status 2 for bad usage or input, before the first step wherever that can be told; 1 when the run diverges.
pub fn train(a: &TrainArgs, stop: &dyn Fn() -> bool, reporter: &mut dyn Reporter) -> Result<Outcome, Failure> {
    let setup = setup::Setup::new(a, reporter)?;
    run::run(a, setup, stop, reporter)
}

/// As [`train`], for a person at a terminal: progress on standard error, Ctrl-C stops.
///
/// # Errors
/// As [`train`].
pub fn train_in_terminal(a: &TrainArgs) -> Result<Outcome, Failure> {
    interrupt::watch();
    let mut reporter: Box<dyn Reporter> = if a.quiet { Box::new(Silent) } else { Box::new(Terminal::default()) };
    let done = train(a, &interrupt::came, reporter.as_mut());
    reporter.end();
    done
}
