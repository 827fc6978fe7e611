//! `ancre-rewrite` as a library: everything of the tool that touches the outside world. The graph work is in `ancre-passes`.
//!
//! Each verb of the command line is one function on its arguments of [`cli`]: [`rewrite::rewrite`] for the main job,
//! [`inspect::inspect`], [`freeze::freeze`], [`grad::grad`], [`topology::topology`], [`text::tokenize`], [`verify::verify`], [`runtime::runtime`], and `train::train`
//! and `compare::compare` where the feature `ort` is on. Each returns what it found or an [`error::Failure`] with the exit status; none prints. [`tool::main`] prints.
//!
//! Below them: [`io`] reads models and writes files that appear whole or not at all, [`engine`] runs graphs in tract or ONNX
//! Runtime, each in a process of its own, `rewrite::verification` says whether the rewrite equals its source,
//! [`rewrite::training_files`] writes the training graph and its companions, [`rewrite::report`] puts outcomes into words.
//!
//! # Floor plan
//!
//! A module uses modules of lower floors only; `passes/tests/floors.rs` holds it.
//!
//! | floor | modules | what they are |
//! | --- | --- | --- |
//! | 10 | `tool` | a command line from its words to what it prints |
//! | 9 | `compare` | training with and without the router |
//! | 8 | `train` | training runs |
//! | 7 | `freeze`, `grad`, `inspect`, `runtime` | the smaller verbs |
//! | 6 | `text`, `topology` | text as tokens; the routers' weights, as numbers and as pictures |
//! | 5 | `rewrite` | the main job |
//! | 4 | `verify` | comparing models, checking gradients |
//! | 3 | `cli` | the command line's types |
//! | 2 | `engine` | tract, ONNX Runtime, inputs to run models on |
//! | 1 | `io` | files and arrays |
//! | 0 | `error` | failures and their exit status |

pub mod cli;
#[cfg(feature = "ort")]
pub mod compare;
pub mod engine;
pub mod error;
pub mod freeze;
pub mod grad;
pub mod inspect;
pub mod io;
pub mod rewrite;
pub mod runtime;
pub mod text;
pub mod tool;
pub mod topology;
#[cfg(feature = "ort")]
pub mod train;
pub mod verify;
