//! `verify`: are two models the same function? Interfaces first, then a proof, then outputs on chosen inputs; where outputs
//! differ, the earliest value at which the models part.

mod command;
mod compare;
mod divergence;
mod given;
mod gradient;
mod inputs;
mod junit;
mod memory;
pub(crate) mod numeric;
mod pairs;
pub(crate) mod report;
pub(crate) mod undefined;

pub use command::{verify, watch};
pub(crate) use compare::unit;
pub use compare::{Comparison, OutputComparison, Report, Tolerance, compare, compare_all};
pub(crate) use given::{read_inputs, read_inputs_among};

use crate::engine::EngineChoice;
use crate::engine::random_inputs::Sizes;
use crate::engine::{self, Engine, ExternalData, Session, Tensors};
use crate::error::Failure;
use crate::io::files;
use ancre_passes::ir::{Graph, SharedBytes};
use ancre_passes::onnx;
use ancre_passes::ops::is_random;
use ancre_passes::proof::interface::Difference;
use ancre_passes::proof::{Proof, ProofOptions, interface, prove_equal};
use divergence::Divergence;
use numeric::NumericReport;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Instant;

/// Wraps a loaded model's session, for example to run the model several times for one run.
pub type Wrap = Box<dyn Fn(Box<dyn Session>) -> Box<dyn Session>>;

/// A model to compare.
pub struct Subject {
    /// Its file; external data lies beside it.
    pub path: PathBuf,
    /// Its graph, with types and without calls of local functions.
    pub graph: Graph,
    /// The bytes that engines are given; made when they are first asked for.
    bytes: OnceLock<SharedBytes>,
    wrap: Option<Wrap>,
}

impl Subject {
    /// Reads a model file.
    pub fn read(path: &Path) -> Result<Subject, Failure> {
        let (graph, bytes) = files::read_model(path)?;
        Subject::of_file(graph, bytes, path)
    }

    /// Takes a model's bytes; `path` is where its external data lies and its name in messages.
    pub fn of_bytes(bytes: Vec<u8>, path: &Path) -> Result<Subject, Failure> {
        let bytes = SharedBytes::new(bytes);
        let graph = files::parse_model(&bytes, path)?;
        Subject::of_file(graph, bytes, path)
    }

    /// Takes a graph as it was read from these bytes.
    pub fn of_file(graph: Graph, bytes: SharedBytes, path: &Path) -> Result<Subject, Failure> {
        let (mut graph, is_inlined) = files::inlined(graph, &bytes, path)?;
        files::check_external(&graph, path)?;
        engine::find_types(&mut graph);
        let subject = Subject::of_graph(graph, path);
        Ok(if is_inlined { subject } else { subject.run_as(bytes) })
    }

    /// Takes a graph that has types. Engines run its emission.
    pub fn of_graph(graph: Graph, path: &Path) -> Subject {
        Subject { path: path.to_path_buf(), graph, bytes: OnceLock::new(), wrap: None }
    }

    /// The same model, run as these bytes.
    pub fn run_as(self, bytes: SharedBytes) -> Subject {
        Subject { bytes: bytes.into(), ..self }
    }

    /// The same model with a wrapped session.
    pub fn wrapped(self, wrap: Wrap) -> Subject {
        Subject { wrap: Some(wrap), ..self }
    }

    /// What engines are given.
    pub fn bytes(&self) -> Result<&SharedBytes, Failure> {
        if let Some(bytes) = self.bytes.get() {
            return Ok(bytes);
        }
        let emitted = onnx::emit(&self.graph).and_then(|e| e.to_bytes());
        let emitted = emitted.map_err(|e| Failure::input(e.to_string()).at(&self.path))?;
        Ok(self.bytes.get_or_init(|| SharedBytes::new(emitted)))
    }

    /// What engines are given where they read external data by its location, and the directory that locations start from if it is
    /// not the file's.
    pub(crate) fn placed(&self) -> Result<(SharedBytes, Option<PathBuf>), Failure> {
        let Some((dir, moved)) = onnx::linked_files(&self.graph) else { return Ok((self.bytes()?.clone(), None)) };
        let placement = onnx::Placement { moved, ..onnx::Placement::default() };
        let placed = onnx::emit(&self.graph).and_then(|e| e.placed(&placement)?.to_bytes());
        Ok((SharedBytes::new(placed.map_err(|e| Failure::input(e.to_string()).at(&self.path))?), Some(dir)))
    }

    /// Loads it into an engine. Fails when the engine cannot take it.
    pub fn load(&self, engine: &dyn Engine) -> Result<Box<dyn Session>, Failure> {
        let (bytes, dir) = self.placed()?;
        let data = ExternalData::of(&self.graph, &self.path);
        let data = data.map(|d| ExternalData { root: dir.as_deref().unwrap_or(d.root), ..d });
        let session = engine.load(&bytes, data);
        let session = session.map_err(|e| numeric::engine_failure(engine, self, e.to_string()))?;
        Ok(match &self.wrap {
            Some(wrap) => wrap(session),
            None => session,
        })
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
    /// Tried, and the models are run all the same.
    Beside,
}

/// How to compare.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// What a proof is for.
    pub proof: ProofMode,
    /// May a proof take sums of floats for equal in whatever order they are added?
    pub reassociate: bool,
    /// Engine or engines of the numeric comparison; `None`: tract, or ONNX Runtime where tract cannot run a model.
    pub engine: Option<EngineChoice>,
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
    pub(crate) interface: Vec<Difference>,
    /// What came of looking for a proof; `None` when none was looked for.
    pub(crate) proof: Option<Proof>,
    /// Seconds that the search for a proof took.
    pub(crate) proof_seconds: f64,
    /// What running them showed; `None` when they were not run.
    pub numeric: Option<NumericReport>,
    /// The earliest value at which the models part.
    pub(crate) divergence: Option<Divergence>,
}

impl Verdict {
    /// Are the models still to be run?
    pub fn needs_numbers(&self, o: &VerifyOptions) -> bool {
        match o.proof {
            ProofMode::First => !self.proved(),
            ProofMode::Only => false,
            ProofMode::Never | ProofMode::Beside => true,
        }
    }

    /// Is what was looked for a proof alone, and none was found?
    pub(crate) fn is_unproved(&self) -> bool {
        self.numeric.is_none() && self.proof.as_ref().is_some_and(|p| !p.proved)
    }

    /// Was a proof found?
    pub fn proved(&self) -> bool {
        self.proof.as_ref().is_some_and(|p| p.proved)
    }
}

/// Compares two models. Fails when they cannot be compared: an engine that cannot run one of them, inputs that cannot be
/// made up.
pub fn compare_subjects(a: &Subject, b: &Subject, o: &VerifyOptions) -> Result<Verdict, Failure> {
    let mut verdict = prove(a, b, o);
    // Models that cannot be fed the same inputs cannot be run side by side.
    if verdict.needs_numbers(o) && !verdict.interface.iter().any(|d| d.of_input) {
        run(a, &[b], &mut [&mut verdict], o)?;
    }
    Ok(verdict)
}

/// The interfaces and the proof, without running anything.
pub fn prove(a: &Subject, b: &Subject, o: &VerifyOptions) -> Verdict {
    let interface = interface::differences(&a.graph, &b.graph);
    let breaks = interface.iter().any(|d| d.breaking);
    let mut verdict =
        Verdict { equivalent: !breaks, interface, proof: None, proof_seconds: 0.0, numeric: None, divergence: None };
    if o.proof != ProofMode::Never && !breaks {
        let clock = Instant::now();
        let mut how = ProofOptions::default();
        how.reassociate = o.reassociate;
        verdict.proof = Some(prove_equal(&a.graph, &b.graph, &how));
        verdict.proof_seconds = clock.elapsed().as_secs_f64();
    }
    verdict.equivalent &= o.proof != ProofMode::Only || verdict.proved();
    verdict
}

/// Runs A and each B on the same inputs and takes what that shows into the verdicts. Fails when an engine cannot run one of
/// them, or no input can be made up.
pub fn run(a: &Subject, bs: &[&Subject], verdicts: &mut [&mut Verdict], o: &VerifyOptions) -> Result<(), Failure> {
    let found = numeric::compare_models(a, bs, o)?;
    for ((b, verdict), mut numeric) in bs.iter().zip(verdicts).zip(found) {
        if !numeric.report.verdict.equivalent
            && let Some(what) = first_random(a).or_else(|| first_random(b))
        {
            numeric.notes.push(format!("{what} draws random numbers: outputs that depend on it differ from run to run"));
            // A proof takes the draws for the same; runs that draw anew do not refute it.
            numeric.report.verdict.equivalent = verdict.proved();
        }
        verdict.equivalent &= numeric.report.verdict.equivalent;
        if let Some(failing) = numeric.failing.as_ref().filter(|f| f.both_run) {
            match divergence::find(a, b, failing, o) {
                Ok(found) => verdict.divergence = found,
                Err(why) => numeric.notes.push(format!("the first value that differs was not found: {why}")),
            }
        }
        verdict.numeric = Some(numeric);
    }
    Ok(())
}

/// The first node of a model that draws random numbers.
fn first_random(s: &Subject) -> Option<String> {
    let g = &s.graph;
    let node = g.nodes().find(|n| g.op(*n).is_some_and(|o| is_random(&o.name)))?;
    Some(format!("{}: {}", s.path.display(), g.site(node)))
}
