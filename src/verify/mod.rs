//! `verify`: are two models the same function? Interfaces first, then a proof, then outputs on chosen inputs; where outputs
//! differ, the earliest value at which the models part.

pub mod command;
mod compare;
pub mod divergence;
mod given;
pub mod gradient;
pub mod inputs;
pub mod junit;
pub mod memory;
pub mod numeric;
pub mod report;

pub use command::verify;
pub use compare::{Comparison, OutputComparison, Report, Tolerance, compare, compare_all, run_trials};

use crate::cli::EngineArg;
use crate::engine::random_inputs::Sizes;
use crate::engine::{self, Tensors};
use crate::error::Failure;
use crate::io::files;
use ancre_passes::ir::{Graph, SharedBytes};
use ancre_passes::onnx;
use ancre_passes::proof::interface::Difference;
use ancre_passes::proof::{Proof, ProofOptions, interface, prove_equal};
use divergence::Divergence;
use numeric::NumericReport;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// A model to compare.
pub struct Subject {
    /// Its file; external data lies beside it.
    pub path: PathBuf,
    /// Its graph, with types and without calls of local functions.
    pub graph: Graph,
    /// What engines are given.
    pub bytes: SharedBytes,
}

impl Subject {
    /// Reads a model file.
    ///
    /// # Errors
    /// When it cannot be read, or data of it is missing.
    pub fn read(path: &Path) -> Result<Subject, Failure> {
        let (graph, bytes) = files::read_model(path)?;
        Subject::new(graph, bytes, path)
    }

    /// Takes a model's bytes; `path` is where its external data lies and its name in messages.
    ///
    /// # Errors
    /// As [`Subject::read`].
    pub fn of_bytes(bytes: Vec<u8>, path: &Path) -> Result<Subject, Failure> {
        let bytes = SharedBytes::new(bytes);
        let graph = files::parse_model(&bytes, path)?;
        Subject::new(graph, bytes, path)
    }

    fn new(mut graph: Graph, mut bytes: SharedBytes, path: &Path) -> Result<Subject, Failure> {
        if !graph.shell.functions.is_empty()
            && let Some(inlined) = files::parse_inlined(&bytes, path)?
        {
            graph = inlined;
            let emitted = onnx::emit(&graph).and_then(|e| e.to_bytes());
            bytes = SharedBytes::new(emitted.map_err(|e| Failure::input(e.to_string()).at(path))?);
        }
        files::check_external(&graph, path)?;
        engine::find_types(&mut graph);
        Ok(Subject { path: path.to_path_buf(), graph, bytes })
    }
}

/// What a proof is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ProofMode {
    /// Tried first; where none is found the models are run.
    #[default]
    First,
    /// Models without a proof are not equivalent.
    Only,
    /// Not tried.
    Never,
}

/// How to compare.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// What a proof is for.
    pub proof: ProofMode,
    /// May a proof take sums of floats for equal in whatever order they are added?
    pub reassociate: bool,
    /// Engine or engines of the numeric comparison; `None`: tract, or ONNX Runtime where tract cannot run a model.
    pub engine: Option<EngineArg>,
    /// Inputs to compare on.
    pub trials: usize,
    /// Seed of everything random.
    pub seed: u64,
    /// How far outputs may lie apart.
    pub tolerance: Tolerance,
    /// Extents of symbolic dimensions.
    pub dims: Sizes,
    /// Inputs that are fed as they are.
    pub given: Tensors,
    /// Most bytes of memory to use.
    pub max_memory: Option<u64>,
}

impl Default for VerifyOptions {
    fn default() -> VerifyOptions {
        VerifyOptions {
            proof: ProofMode::First,
            reassociate: false,
            engine: None,
            trials: 8,
            seed: 0,
            tolerance: Tolerance::default(),
            dims: Sizes::new(),
            given: Tensors::new(),
            max_memory: None,
        }
    }
}

/// What was found about two models.
#[derive(Clone, Debug)]
pub struct Verdict {
    /// Are they equivalent, by what was asked for?
    pub equivalent: bool,
    /// Differences of their interfaces.
    pub interface: Vec<Difference>,
    /// What came of looking for a proof; `None` when none was looked for.
    pub proof: Option<Proof>,
    /// Seconds that took.
    pub proof_seconds: f64,
    /// What running them showed; `None` when they were not run.
    pub numeric: Option<NumericReport>,
    /// Where they first part.
    pub divergence: Option<Divergence>,
}

impl Verdict {
    /// Was a proof found?
    pub fn proved(&self) -> bool {
        self.proof.as_ref().is_some_and(|p| p.proved)
    }
}

/// Compares two models.
///
/// # Errors
/// When they cannot be compared: an engine that cannot run one of them, inputs that cannot be made up.
pub fn compare_subjects(a: &Subject, b: &Subject, o: &VerifyOptions) -> Result<Verdict, Failure> {
    let interface = interface::differences(&a.graph, &b.graph);
    let breaks = interface.iter().any(|d| d.breaking);
    let mut verdict =
        Verdict { equivalent: !breaks, interface, proof: None, proof_seconds: 0.0, numeric: None, divergence: None };
    // Models that cannot be fed the same inputs cannot be run side by side.
    if verdict.interface.iter().any(|d| d.of_input) {
        return Ok(verdict);
    }
    if o.proof != ProofMode::Never && !breaks {
        let clock = Instant::now();
        let proof = prove_equal(&a.graph, &b.graph, &ProofOptions { reassociate: o.reassociate });
        verdict.proof_seconds = clock.elapsed().as_secs_f64();
        let proved = proof.proved;
        verdict.proof = Some(proof);
        if proved {
            return Ok(verdict);
        }
    }
    if o.proof == ProofMode::Only {
        verdict.equivalent = false;
        return Ok(verdict);
    }
    let mut numeric = numeric::compare_models(a, b, o)?;
    verdict.equivalent &= numeric.report.verdict.equivalent;
    if let Some(failing) = numeric.failing.as_ref().filter(|f| f.both_run) {
        match divergence::find(a, b, failing, o) {
            Ok(found) => verdict.divergence = found,
            Err(why) => numeric.notes.push(format!("the first value that differs was not found: {why}")),
        }
    }
    if !verdict.equivalent
        && let Some(what) = first_random(a).or_else(|| first_random(b))
    {
        numeric.notes.push(format!("{what} draws random numbers: outputs that depend on it differ from run to run"));
    }
    verdict.numeric = Some(numeric);
    Ok(verdict)
}

/// The first node of a model that draws random numbers.
fn first_random(s: &Subject) -> Option<String> {
    const RANDOM: [&str; 6] =
        ["RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"];
    let g = &s.graph;
    let node = g.nodes().find(|n| g.op(*n).is_some_and(|o| o.domain.is_empty() && RANDOM.contains(&o.name.as_str())))?;
    Some(format!("{}: {}", s.path.display(), g.site(node)))
}
