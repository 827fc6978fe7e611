//! `train`: a training graph run in ONNX Runtime, step by step, over a data set.
//!
//! [`train`] is the verb. For loops of one's own: [`graph::TrainingGraph`] reads what a training graph says about itself,
//! [`crate::engine::ort::stepper::Stepper`] runs its steps, [`evaluation::Evaluator`] validates, [`checkpoint`] keeps states.

pub mod checkpoint;
pub mod course;
pub mod data;
pub mod evaluation;
pub mod graph;
pub mod interrupt;
pub mod log;
pub mod metrics;
pub mod outcome;
pub mod progress;
mod run;
pub mod schedule;
pub mod setup;
pub mod topology;
mod verb;

pub use outcome::Outcome;
pub use verb::{train, train_in_terminal};
