//! `ancre-rewrite` as a library: everything of the tool that touches the outside world. The graph work is in `ancre-passes`.

mod arrays;
pub mod auto_loss;
pub mod batch;
pub mod cli;
pub mod engine;
pub mod error;
pub mod files;
pub mod freeze;
pub mod inspect;
pub mod options;
pub mod outputs;
pub mod placement;
pub mod prove;
pub mod random_inputs;
pub mod report;
pub mod rewrite;
pub mod runtime;
pub mod start;
pub mod tensor;
#[cfg(feature = "ort")]
pub mod train;
pub mod training_files;
pub mod verify;
