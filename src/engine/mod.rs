//! Engines that run models: tract, embedded and independent of ONNX Runtime, and a stock ONNX Runtime of the user's. The tool
//! runs each in a process of its own ([`child`]); as a library, in this one.

// A build without engines keeps the limits and starts nothing.
#[cfg_attr(not(any(feature = "tract", feature = "ort")), allow(dead_code))]
pub mod child;
#[cfg_attr(not(any(feature = "tract", feature = "ort")), allow(dead_code))]
mod culprit;
pub mod memory;
pub mod opener;
#[cfg_attr(not(feature = "tract"), allow(dead_code))]
mod oracle;
#[cfg(feature = "ort")]
pub mod ort;
pub mod random_inputs;
#[cfg(test)]
#[cfg(feature = "tract")]
mod samples;
#[cfg(feature = "tract")]
pub mod tract;
#[cfg_attr(not(any(feature = "tract", feature = "ort")), allow(dead_code))]
mod wire;

pub use oracle::{find_types, notices};

use ancre_passes::ir::Graph;
use ancre_passes::onnx;
use std::path::Path;

pub use crate::io::tensor::Tensors;

/// What an engine may take so much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Limit {
    /// Time of loading or running a model.
    Time,
    /// Memory.
    Memory,
}

/// Why an engine could not do what was asked.
#[derive(Clone, Debug, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[allow(missing_docs)]
pub enum EngineError {
    #[error("{engine} cannot do `{operator}` (node `{node}`): {why}")]
    Unsupported {
        #[serde(skip)]
        engine: &'static str,
        operator: String,
        node: String,
        why: String,
    },
    #[error("{engine} cannot load the model: {why}")]
    Load {
        #[serde(skip)]
        engine: &'static str,
        why: String,
    },
    #[error("running the model in {engine} failed: {why}")]
    Run {
        #[serde(skip)]
        engine: &'static str,
        why: String,
    },
    #[error("input `{name}`: {why}")]
    Input { name: String, why: String },
    #[error("output `{name}`: {why}")]
    Output { name: String, why: String },
    #[error("{engine} {how}")]
    Died {
        #[serde(skip)]
        engine: &'static str,
        how: String,
        /// What it was ended for, if it did not end by itself.
        limit: Option<Limit>,
    },
    #[error("{engine} panicked: {why}")]
    Panicked {
        #[serde(skip)]
        engine: &'static str,
        why: String,
    },
    #[error("{0}")]
    NoRuntime(String),
}

/// Which engine runs the models.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum EngineChoice {
    Tract,
    Ort,
    Both,
}

/// Where a model's external data lies.
#[derive(Clone, Copy, Debug)]
pub struct ExternalData<'a> {
    /// The directory that its locations start from.
    pub root: &'a Path,
    /// Bytes of the files; they decide how much an engine may take.
    pub bytes: u64,
}

impl<'a> ExternalData<'a> {
    /// The external data of a model file.
    pub fn of(g: &Graph, file: &'a Path) -> Option<ExternalData<'a>> {
        let root = file.parent()?;
        let sizes = onnx::external_files(g).into_keys().filter_map(|l| Some(root.join(l).metadata().ok()?.len()));
        Some(ExternalData { root, bytes: sizes.sum() })
    }
}

/// An engine that runs ONNX models.
pub trait Engine {
    /// Name for reports: `tract`, `ort`.
    fn name(&self) -> &'static str;

    /// Loads a model, whose external data lies in `data`. Fails when the engine cannot take the model; the error names
    /// the operator if one is to blame.
    fn load(&self, model: &[u8], data: Option<ExternalData>) -> Result<Box<dyn Session>, EngineError>;

    /// Finds out whether the engine takes a model, at less cost than [`Engine::load`], and keeps nothing.
    fn open(&self, model: &[u8], data: Option<ExternalData>) -> Result<(), EngineError> {
        self.load(model, data).map(drop)
    }

    /// Prepares what every model needs, so that the first one is not late.
    fn warm_up(&self) {}
}

/// A loaded model.
pub trait Session {
    /// Runs the model. Every required input must be fed; an overridable initializer may be. All outputs come back, in the
    /// model's order. Fails when an input is missing, unknown or of a wrong type, or the engine fails.
    fn run(&mut self, inputs: &Tensors) -> Result<Tensors, EngineError>;
}

/// The embedded engine.
#[cfg(feature = "tract")]
pub fn tract() -> Box<dyn Engine> {
    child::engine(tract::NAME, None).unwrap_or_else(|| Box::new(tract::TractEngine))
}

/// The embedded engine of a build without it, which can load nothing.
#[cfg(not(feature = "tract"))]
pub fn tract() -> Box<dyn Engine> {
    struct Missing;

    impl Engine for Missing {
        fn name(&self) -> &'static str {
            "tract"
        }

        fn load(&self, _: &[u8], _: Option<ExternalData>) -> Result<Box<dyn Session>, EngineError> {
            Err(EngineError::NoRuntime("this build of ancre-rewrite has no embedded engine (feature `tract`)".into()))
        }
    }

    Box::new(Missing)
}

/// The user's ONNX Runtime. Fails when none is found, or the tool was built without it.
#[cfg(feature = "ort")]
pub fn ort() -> Result<Box<dyn Engine>, EngineError> {
    let found = ort::locate()?;
    Ok(child::engine(ort::NAME, Some(found.path)).unwrap_or_else(|| Box::new(ort::OrtEngine::default())))
}

/// The user's ONNX Runtime. Fails always: the tool was built without it.
#[cfg(not(feature = "ort"))]
pub fn ort() -> Result<Box<dyn Engine>, EngineError> {
    Err(EngineError::NoRuntime("this build of ancre-rewrite has no ONNX Runtime support (feature `ort`)".into()))
}
