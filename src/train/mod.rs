//! `train`: a training graph run in ONNX Runtime, step by step, over a data set.
//!
//! [`train`] is the verb. For loops of one's own: [`graph::TrainingGraph`] reads what a training graph says about itself,
//! [`crate::engine::stepper::Stepper`] runs its steps, [`evaluation::Evaluator`] validates, [`checkpoint`] keeps states.

#[cfg(feature = "ort")]
pub mod args;
#[cfg(feature = "ort")]
pub mod checkpoint;
#[cfg(feature = "ort")]
pub mod course;
pub mod data;
#[cfg(feature = "ort")]
pub mod evaluation;
#[cfg(feature = "ort")]
pub mod graph;
#[cfg(feature = "ort")]
pub mod interrupt;
#[cfg(feature = "ort")]
pub mod log;
#[cfg(feature = "ort")]
pub mod metrics;
#[cfg(feature = "ort")]
pub mod outcome;
#[cfg(feature = "ort")]
pub mod progress;
#[cfg(feature = "ort")]
mod run;
#[cfg(feature = "ort")]
pub mod schedule;
#[cfg(feature = "ort")]
pub mod setup;
#[cfg(feature = "ort")]
pub mod topology;

#[cfg(feature = "ort")]
mod verb;

#[cfg(feature = "ort")]
pub use args::TrainArgs;
#[cfg(feature = "ort")]
pub use outcome::Outcome;
#[cfg(feature = "ort")]
pub use verb::{train, train_in_terminal};
