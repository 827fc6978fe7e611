//! Engines that run models: tract, embedded and independent of ONNX Runtime, and a stock ONNX Runtime of the user's. The tool
//! runs each in a process of its own ([`child`]); as a library, in this one.

// A build without engines keeps the limits and starts nothing.
#[cfg_attr(not(any(feature = "tract", feature = "ort")), allow(dead_code))]
pub mod child;
pub mod memory;
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

pub use oracle::notices;

use crate::io::tensor::NpTensor;
use ancre_passes::ir::Graph;
use indexmap::IndexMap;
use std::path::Path;

/// Tensors by name, of inputs or outputs.
pub type Tensors = IndexMap<String, NpTensor>;

/// Why an engine could not do what was asked.
#[derive(Clone, Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum EngineError {
    #[error("{engine} cannot do `{operator}` (node `{node}`): {why}")]
    Unsupported { engine: &'static str, operator: String, node: String, why: String },
    #[error("{engine} cannot load the model: {why}")]
    Load { engine: &'static str, why: String },
    #[error("running the model in {engine} failed: {why}")]
    Run { engine: &'static str, why: String },
    #[error("input `{name}`: {why}")]
    Input { name: String, why: String },
    #[error("{engine} {how}")]
    Died { engine: &'static str, how: String },
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

/// Something that can run ONNX models.
pub trait Engine {
    /// Name for reports: `tract`, `ort`.
    fn name(&self) -> &'static str;

    /// Loads a model. External data paths start from `root`.
    ///
    /// # Errors
    /// When the engine cannot take the model; the error names the operator if one is to blame.
    fn load(&self, model: &[u8], root: Option<&Path>) -> Result<Box<dyn Session>, EngineError>;
}

/// A loaded model.
pub trait Session {
    /// Runs the model. Every required input must be fed; an overridable initializer may be. All outputs come back, in the
    /// model's order.
    ///
    /// # Errors
    /// When an input is missing, unknown or of a wrong type, or the engine fails.
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

        fn load(&self, _: &[u8], _: Option<&Path>) -> Result<Box<dyn Session>, EngineError> {
            Err(EngineError::NoRuntime("this build of ancre-rewrite has no embedded engine (feature `tract`)".into()))
        }
    }

    Box::new(Missing)
}

/// The user's ONNX Runtime.
///
/// # Errors
/// When none is found, or the tool was built without it.
#[cfg(feature = "ort")]
pub fn ort() -> Result<Box<dyn Engine>, EngineError> {
    let found = ort::locate()?;
    Ok(child::engine(ort::NAME, Some(found.path)).unwrap_or_else(|| Box::new(ort::OrtEngine::default())))
}

/// The user's ONNX Runtime.
///
/// # Errors
/// Always: the tool was built without it.
#[cfg(not(feature = "ort"))]
pub fn ort() -> Result<Box<dyn Engine>, EngineError> {
    Err(EngineError::NoRuntime("this build of ancre-rewrite has no ONNX Runtime support (feature `ort`)".into()))
}

/// Finds the type of every value of a graph, as well as that can be known.
pub fn find_types(g: &mut Graph) {
    oracle::find_types(g);
}
