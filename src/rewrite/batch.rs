//! `--batch`: rebuilds the source, or the training graph alone, for another batch, and proves it by running each sample of a batch
//! by itself in the source.

use crate::cli::{RewriteArgs, VerifyArg};
use crate::engine::random_inputs::{self, Sizes};
use crate::engine::{self, Engine, EngineError, Tensors};
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use crate::rewrite::prove::ProofOptions;
use crate::verify::{Comparison, Tolerance, compare};
use ancre_passes::ir::{Dim, Graph};
use ancre_passes::onnx;
use ancre_passes::pipeline;
use ancre_passes::transform::rebatch::{self, Batch, Current, Plan, Rebatched, Samples};
use serde_json::{Value, json};
use std::path::Path;

/// Runs of the source by itself that one batch is compared with.
const GROUPS: usize = 3;

/// What `--batch` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Nothing was said: the forward graph keeps its batch, the training graph takes any if that can be proved.
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
    pub proof: Option<(&'static str, usize, Comparison)>,
}

impl BatchFacts {
    /// For the JSON report.
    pub fn json(&self) -> Value {
        let proof = self.proof.as_ref().map(
            |(engine, samples, c)| json!({"engine": engine, "samples": samples, "max_abs": c.max_abs, "max_rel": c.max_rel}),
        );
        json!({"before": self.before, "batch": dim_json(&self.batch), "edits": self.edits, "proof": proof})
    }
}

/// A number, or the text of a symbolic extent.
pub fn dim_json(d: &Dim) -> Value {
    d.known().map_or_else(|| json!(d.to_string()), |n| json!(n))
}

/// Reads `--batch`.
///
/// # Errors
/// When it is none of keep, dynamic and a positive number.
pub fn request(a: &RewriteArgs) -> Result<Request, Failure> {
    Ok(match a.batch.as_deref() {
        None => Request::Default,
        Some("keep") => Request::Keep,
        Some("dynamic") => Request::Both(Batch::Dynamic),
        Some(n) => match n.parse::<i64>() {
            Ok(n) if n > 0 => Request::Both(Batch::Fixed(n)),
            _ => return Err(Failure::input(format!("--batch `{n}` is not keep, dynamic or a positive number"))),
        },
    })
}

/// Rebuilds the source for the batch that was asked for; `None` when it has that one already.
///
/// # Errors
/// When the source cannot be rebuilt, or a sample of the batch does not come out as by itself.
pub fn rebuild_source(to: Batch, model: &Path, source: &mut Graph, o: &ProofOptions) -> Result<Option<BatchFacts>, Failure> {
    let fail = |e: String| Failure::input(format!("--batch: {e}")).help("--batch keep leaves it as it is").at(model);
    let before = match (rebatch::current(source).map_err(fail)?, to) {
        (Current::Dynamic(_), Batch::Dynamic) => return Ok(None),
        (Current::Dynamic(symbol), Batch::Fixed(n)) => {
            rebatch::fix(source, &symbol, n);
            return Ok(Some(BatchFacts { before: n, batch: Dim::from(n), edits: 0, proof: None }));
        }
        (Current::Fixed(n), Batch::Fixed(m)) if n == m => return Ok(None),
        (Current::Fixed(n), _) => n,
    };
    let plan = rebatch::plan(source, before).map_err(|e| fail(cannot(before, &e)))?;
    let proof = prove(model, source, &plan, to, before, o).map_err(|e| Failure::check(format!("--batch: {e}")).at(model))?;
    let done = plan.apply(source, to).map_err(|e| fail(e.to_string()))?;
    pipeline::check(source, "rebatch").map_err(Failure::input)?;
    Ok(Some(facts(&done, proof)))
}

fn cannot(before: i64, why: &str) -> String {
    format!("the graph cannot be rebuilt for another batch than {before}: {why}")
}

fn facts(done: &Rebatched, proof: Option<(&'static str, usize, Comparison)>) -> BatchFacts {
    BatchFacts { before: done.before, batch: done.batch.clone(), edits: done.edits, proof }
}

/// The batch of the training graph when nothing was said: any, if the source can be rebuilt and that proves right.
///
/// # Errors
/// Why it keeps the source's.
pub fn for_training(model: &Path, source: &Graph, o: &ProofOptions) -> Result<Option<BatchFacts>, String> {
    let before = match rebatch::current(source)? {
        Current::Dynamic(_) => return Ok(None),
        Current::Fixed(n) => n,
    };
    let plan = rebatch::plan(source, before)?;
    let proof = prove(model, source, &plan, Batch::Dynamic, before, o)?;
    let done = plan.apply(&mut source.clone(), Batch::Dynamic).map_err(|e| e.to_string())?;
    Ok(Some(facts(&done, proof)))
}

type Proof = Option<(&'static str, usize, Comparison)>;

/// Runs a batch and each sample of it by itself.
fn prove(model: &Path, source: &Graph, plan: &Plan, to: Batch, before: i64, o: &ProofOptions) -> Result<Proof, String> {
    if o.engine == VerifyArg::None {
        return Ok(None);
    }
    // A large batch is proved by a small one of the same plan.
    let small = matches!(to, Batch::Fixed(n) if n % before == 0 && n / before <= GROUPS as i64 + 1);
    let tried = if small { to } else { Batch::Dynamic };
    let groups = match tried {
        Batch::Fixed(n) => (n / before) as usize,
        Batch::Dynamic => GROUPS,
    };
    let mut rebuilt = source.clone();
    let done = plan.apply(&mut rebuilt, tried).map_err(|e| e.to_string())?;
    pipeline::check(&rebuilt, "rebatch")?;
    let engines: Vec<Box<dyn Engine>> = match o.engine {
        VerifyArg::Ort => vec![engine::ort().map_err(|e| e.to_string())?],
        VerifyArg::Both => vec![engine::tract(), engine::ort().map_err(|e| e.to_string())?],
        _ => vec![engine::tract()],
    };
    let mut worst = Comparison::default();
    let mut name = "both";
    for e in &engines {
        if engines.len() == 1 {
            name = e.name();
        }
        let run = Run { model, source, rebuilt: &rebuilt, done: &done, groups, before: before as usize };
        worst.and(&run.compare(e.as_ref(), o)?);
    }
    if !worst.equivalent {
        return Err(format!(
            "a sample in a batch does not come out as by itself ({name}: outputs differ by up to {:.3e})",
            worst.max_abs
        ));
    }
    Ok(Some((name, groups * before as usize, worst)))
}

/// A batch of the rebuilt graph against runs of the source.
struct Run<'a> {
    model: &'a Path,
    source: &'a Graph,
    rebuilt: &'a Graph,
    done: &'a Rebatched,
    groups: usize,
    before: usize,
}

impl Run<'_> {
    fn compare(&self, e: &dyn Engine, o: &ProofOptions) -> Result<Comparison, String> {
        let root = self.model.parent();
        let load = |g: &Graph, what: &str| {
            let bytes = onnx::emit(g).and_then(|e| e.to_bytes()).map_err(|e| e.to_string())?;
            e.load(&bytes, root).map_err(|error| format!("{} cannot run {what}: {error}", e.name()))
        };
        let (mut alone, mut together) = (load(self.source, "the model")?, load(self.rebuilt, "it for a batch")?);
        let run_failed = |error: EngineError| format!("{} cannot run it for a batch: {error}", e.name());
        let (mut inputs, mut got, mut why) = (Tensors::new(), None, String::new());
        for mut sizes in random_inputs::sizes(self.rebuilt, &o.dims) {
            self.set_batch(&mut sizes);
            inputs = random_inputs::random_inputs(self.rebuilt, &sizes, o.seed)?;
            match together.run(&inputs).map_err(run_failed) {
                Ok(outputs) => {
                    got = Some(outputs);
                    break;
                }
                Err(e) => why = e,
            }
        }
        let got = got.ok_or(why)?;
        let mut worst = Comparison::default();
        for group in 0..self.groups {
            let own: Result<Tensors, String> =
                inputs.iter().map(|(name, t)| Ok((name.clone(), self.part(t, name, &self.done.inputs, group)?))).collect();
            let want = alone.run(&own?).map_err(|error| format!("{} cannot run the model: {error}", e.name()))?;
            for (name, reference) in &want {
                let Some(t) = got.get(name) else { return Err(format!("output `{name}` is missing for a batch")) };
                let part = self.part(t, name, &self.done.outputs, group)?;
                worst.and(&compare(name, &part, reference, Tolerance { atol: o.atol, rtol: o.rtol }).verdict);
            }
        }
        Ok(worst)
    }

    fn set_batch(&self, sizes: &mut Sizes) {
        for symbol in self.done.batch.symbols() {
            sizes.insert(symbol.to_string(), (self.groups * self.before) as i64);
        }
    }

    /// The part of a tensor that belongs to one run of the source; all of it where it carries no samples.
    fn part(&self, t: &NpTensor, name: &str, samples: &[Samples], group: usize) -> Result<NpTensor, String> {
        let Some(s) = samples.iter().find(|s| s.name == name) else { return Ok(t.clone()) };
        let width = self.before * s.inner as usize;
        let part = t.slice_runs(s.axis, s.outer as usize, group * width, width);
        part.ok_or_else(|| format!("`{name}` has shape {:?} for a batch", t.shape()))
    }
}
