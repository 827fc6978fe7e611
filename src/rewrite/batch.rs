//! `--batch`: rebuilds the source, or the training graph alone, for another batch, and compares what comes of a batch with what
//! comes of each of its samples by itself in the source.

use crate::engine::{EngineError, Session, Tensors};
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use crate::verify::report::engine_name;
use crate::verify::{Comparison, ProofMode, Subject, VerifyOptions, numeric};
use ancre_passes::ir::{Dim, Graph, SharedBytes};
use ancre_passes::onnx;
use ancre_passes::pipeline;
use ancre_passes::transform::rebatch::{self, Batch, Current, Plan, Rebatched, Samples};
use indexmap::IndexMap;
use serde_json::{Value, json};
use std::path::Path;

/// Runs of the source that one batch is compared with.
const GROUPS: usize = 3;

/// What `--batch` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BatchRequest {
    /// No `--batch`: the forward graph keeps its batch, and the training graph takes any batch if samples come out alike.
    Default,
    /// Both graphs keep the source's.
    Keep,
    /// Both graphs take this one.
    Both(Batch),
}

/// How a graph came to its batch.
#[derive(Clone, Debug)]
pub struct BatchFacts {
    /// The source's.
    pub before: i64,
    /// The new one, a number or a symbol.
    pub batch: Dim,
    /// Shapes and constants that were rewritten.
    pub edits: usize,
    /// Engine, samples and distance of the comparison; `None`: by analysis alone.
    pub compared: Compared,
}

impl BatchFacts {
    pub fn json(&self) -> Value {
        let compared = self.compared.as_ref().map(
            |(engine, samples, c)| json!({"engine": engine, "samples": samples, "max_abs": c.max_abs, "max_rel": c.max_rel}),
        );
        json!({"before": self.before, "batch": dim_json(&self.batch), "edits": self.edits, "proof": compared})
    }
}

/// An extent as a JSON number, or as text where it is symbolic.
pub(super) fn dim_json(d: &Dim) -> Value {
    d.known().map_or_else(|| json!(d.to_string()), |n| json!(n))
}

/// Rebuilds the source for the batch that was asked for; `None` when it has that one already. Fails when the source cannot
/// be rebuilt, or a sample of the batch does not come out as by itself.
pub(super) fn rebuild_source(
    to: Batch,
    model: &Path,
    source: &mut Graph,
    how: Option<&VerifyOptions>,
) -> Result<Option<BatchFacts>, Failure> {
    let fail = |e: String| Failure::input(format!("--batch: {e}")).help("--batch keep leaves it as it is").at(model);
    let before = match (rebatch::current(source).map_err(|e| fail(e.to_string()))?, to) {
        (Current::Dynamic(_), Batch::Dynamic) => return Ok(None),
        (Current::Dynamic(symbol), Batch::Fixed(n)) => {
            rebatch::fix(source, &symbol, n);
            return Ok(Some(BatchFacts { before: n, batch: Dim::from(n), edits: 0, compared: None }));
        }
        (Current::Fixed(n), Batch::Fixed(m)) if n == m => return Ok(None),
        (Current::Fixed(n), _) => n,
    };
    let plan = rebatch::plan(source, before).map_err(|e| fail(cannot(before, &e.to_string())))?;
    let compared =
        compare(model, source, &plan, to, before, how).map_err(|e| Failure::check(format!("--batch: {e}")).at(model))?;
    let done = plan.apply(source, to).map_err(|e| fail(e.to_string()))?;
    pipeline::check(source, "rebatch")?;
    Ok(Some(facts(&done, compared)))
}

fn cannot(before: i64, why: &str) -> String {
    format!("the graph cannot be rebuilt for another batch than {before}: {why}")
}

fn facts(done: &Rebatched, compared: Compared) -> BatchFacts {
    BatchFacts { before: done.before, batch: done.batch.clone(), edits: done.edits, compared }
}

/// The batch of the training graph without `--batch`: any batch, if the source can be rebuilt and samples come out alike. The
/// error says why it keeps the source's.
pub(super) fn for_training(model: &Path, source: &Graph, how: Option<&VerifyOptions>) -> Result<Option<BatchFacts>, String> {
    let before = match rebatch::current(source).map_err(|e| e.to_string())? {
        Current::Dynamic(_) => return Ok(None),
        Current::Fixed(n) => n,
    };
    let plan = rebatch::plan(source, before).map_err(|e| e.to_string())?;
    let compared = compare(model, source, &plan, Batch::Dynamic, before, how)?;
    let done = plan.apply(&mut source.clone(), Batch::Dynamic).map_err(|e| e.to_string())?;
    Ok(Some(facts(&done, compared)))
}

type Compared = Option<(&'static str, usize, Comparison)>;

/// Compares a batch with each sample of it by itself; `None` when nothing is to be verified.
fn compare(
    model: &Path,
    source: &Graph,
    plan: &Plan,
    to: Batch,
    before: i64,
    how: Option<&VerifyOptions>,
) -> Result<Compared, String> {
    let Some(how) = how else { return Ok(None) };
    // A small batch of the same plan stands for a large one.
    let small = matches!(to, Batch::Fixed(n) if n % before == 0 && n / before <= GROUPS as i64 + 1);
    let tried = if small { to } else { Batch::Dynamic };
    let groups = match tried {
        Batch::Fixed(n) => (n / before) as usize,
        Batch::Dynamic => GROUPS,
    };
    let before = before as usize;
    let mut rebuilt = source.clone();
    let done = plan.apply(&mut rebuilt, tried).map_err(|e| e.to_string())?;
    pipeline::check(&rebuilt, "rebatch").map_err(|e| e.to_string())?;
    let mut how = VerifyOptions { proof: ProofMode::Never, trials: 1, ..how.clone() };
    how.dims.extend(done.batch.symbols().map(|symbol| (symbol.to_string(), (groups * before) as i64)));
    let alone = onnx::emit(source).and_then(|e| e.to_bytes()).map_err(|e| e.to_string())?;
    let one_by_one = Subject::of_graph(rebuilt.clone(), model).run_as(SharedBytes::new(alone));
    let (inputs, outputs) = (done.inputs, done.outputs);
    let one_by_one = one_by_one.wrapped(Box::new(move |session| {
        Box::new(OneByOne { session, inputs: inputs.clone(), outputs: outputs.clone(), groups, before })
    }));
    let together = Subject::of_graph(rebuilt, model);
    let found = numeric::compare_models(&one_by_one, &[&together], &how).map_err(|e| e.what)?.swap_remove(0);
    let (engine, worst) = (engine_name(&found), found.report.verdict);
    if !worst.equivalent {
        return Err(format!(
            "a sample in a batch does not come out as by itself ({engine}: outputs differ by up to {:.3e})",
            worst.max_abs
        ));
    }
    Ok(Some((engine, groups * before, worst)))
}

/// The source as a model of a larger batch: it runs one group of samples after the other.
struct OneByOne {
    session: Box<dyn Session>,
    inputs: Vec<Samples>,
    outputs: Vec<Samples>,
    groups: usize,
    before: usize,
}

impl Session for OneByOne {
    fn run(&mut self, inputs: &Tensors) -> Result<Tensors, EngineError> {
        let mut parts: IndexMap<String, Vec<NpTensor>> = IndexMap::new();
        for group in 0..self.groups {
            let own = inputs.iter().map(|(name, t)| Ok((name.clone(), self.part(t, name, group)?)));
            for (name, t) in self.session.run(&own.collect::<Result<_, EngineError>>()?)? {
                parts.entry(name).or_default().push(t);
            }
        }
        let whole = |(name, parts): (String, Vec<NpTensor>)| {
            let t = match self.outputs.iter().find(|s| s.name == name) {
                Some(s) => NpTensor::join_runs(&parts, s.axis, s.outer as usize),
                // An output that carries no samples is the same for all groups.
                None => parts.iter().all(|p| *p == parts[0]).then(|| parts[0].clone()),
            };
            let apart = || EngineError::Input { name: name.clone(), why: "samples do not come out alike".into() };
            Ok((name.clone(), t.ok_or_else(apart)?))
        };
        parts.into_iter().map(whole).collect()
    }
}

impl OneByOne {
    /// The part of an input that belongs to one run of the source; the whole input where it carries no samples.
    fn part(&self, t: &NpTensor, name: &str, group: usize) -> Result<NpTensor, EngineError> {
        let Some(s) = self.inputs.iter().find(|s| s.name == name) else { return Ok(t.clone()) };
        let width = self.before * s.inner as usize;
        let part = t.slice_runs(s.axis, s.outer as usize, group * width, width);
        let why = || EngineError::Input { name: name.into(), why: format!("it has shape {:?} for a batch", t.shape()) };
        part.ok_or_else(why)
    }
}
