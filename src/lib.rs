//! `ancre-rewrite` as a library: everything of the tool that touches the outside world. The graph work is in `ancre-passes`.
//!
//! Each verb of the command line is one function on its arguments of [`cli`]: [`rewrite::rewrite`] for the main job,
//! [`inspect::inspect`], [`freeze::freeze`], [`verify::verify`], [`runtime::runtime`], and `train::train` where the feature
//! `ort` is on. Each returns what it found or an [`error::Failure`] with the exit status; none prints.
//!
//! Below them: [`files`] and [`outputs`] read models and write files that appear whole or not at all, [`engine`] runs graphs in
//! tract or ONNX Runtime, [`rewrite::verification`] says whether the rewrite equals its source, [`training_files`] writes the training graph and its companions,
//! [`report`] puts outcomes into words.

pub mod cli;
pub mod engine;
pub mod error;
pub mod freeze;
pub mod inspect;
pub mod io;
pub mod rewrite;
pub mod runtime;
#[cfg(feature = "ort")]
pub mod train;
pub mod verify;
