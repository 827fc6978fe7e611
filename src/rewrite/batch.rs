//! `--batch`: rebuilds the source, or the training graph alone, for another batch, and compares what comes of a batch with what
//! comes of each of its samples by itself in the source.

use crate::engine::{self, EngineError, Session, Tensors};
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use crate::verify::numeric::{self, NumericReport};
use crate::verify::report::engine_name;
use crate::verify::{Comparison, ProofMode, Subject, VerifyOptions, unit};
use ancre_passes::ir::{Dim, Graph, SharedBytes};
use ancre_passes::onnx;
use ancre_passes::pipeline;
use ancre_passes::transform::fold;
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
    notices: &mut Vec<String>,
) -> Result<Option<BatchFacts>, Failure> {
    notices.extend(fix_defaults(source, "--batch"));
    notices.extend(fix_baked(source, "--batch"));
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
    let mut source = source.clone();
    fix_baked(&mut source, "");
    let before = match rebatch::current(&source).map_err(|e| e.to_string())? {
        Current::Dynamic(_) => return Ok(None),
        Current::Fixed(n) => n,
    };
    fix_defaults(&mut source, "");
    let plan = rebatch::plan(&source, before).map_err(|e| e.to_string())?;
    let compared = compare(model, &source, &plan, Batch::Dynamic, before, how)?;
    let done = plan.apply(&mut source, Batch::Dynamic).map_err(|e| e.to_string())?;
    Ok(Some(facts(&done, compared)))
}

/// Makes constants of inputs whose defaults steer shapes; the note that says so.
pub(super) fn fix_defaults(g: &mut Graph, what: &str) -> Option<String> {
    let fixed = fold::fix_defaults(g);
    let first = fixed.first()?;
    // Shapes that are computed from them are known now.
    engine::find_types(g);
    let more = if fixed.len() > 1 { format!(" and {} more", fixed.len() - 1) } else { String::new() };
    Some(format!("{what} takes the default of input `{first}`{more} for a constant, since shapes or indices come from it"))
}

/// Takes a batch that is declared to be free for 1, where the graph itself allows no other; the note that says so.
pub(super) fn fix_baked(g: &mut Graph, what: &str) -> Option<String> {
    let (symbol, node) = rebatch::baked(g)?;
    let note = format!(
        "{what} takes the batch `{symbol}`, which the file declares to be free, for 1: {} allows no other",
        g.site(node)
    );
    rebatch::fix(g, &symbol, 1);
    Some(note)
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
    let mut how = VerifyOptions { proof: ProofMode::Never, trials: 1, given: Tensors::new(), ..how.clone() };
    how.dims.extend(done.batch.symbols().map(|symbol| (symbol.to_string(), (groups * before) as i64)));
    let alone = onnx::emit(source).and_then(|e| e.to_bytes()).map_err(|e| e.to_string())?;
    let alone = SharedBytes::new(alone);
    let (inputs, outputs) = (done.inputs, done.outputs);
    let one_by_one = |change: Change| {
        let (inputs, outputs) = (inputs.clone(), outputs.clone());
        let subject = Subject::of_graph(rebuilt.clone(), model).run_as(alone.clone());
        subject.wrapped(Box::new(move |session| {
            Box::new(OneByOne { session, inputs: inputs.clone(), outputs: outputs.clone(), groups, change })
        }))
    };
    let (source, together) = (one_by_one(Change::None), Subject::of_graph(rebuilt.clone(), model));
    let found = numeric::compare_models(&source, &[&together], &how).map_err(|e| e.what)?.swap_remove(0);
    let (engine, mut worst) = (engine_name(&found), found.report.verdict.clone());
    if !worst.equivalent {
        let (rounded, moved) = (one_by_one(Change::Rounding), one_by_one(Change::Company));
        let measured = numeric::compare_models(&source, &[&together, &rounded, &moved], &how).map_err(|e| e.what)?;
        worst.equivalent = is_noise(&measured);
    }
    if !worst.equivalent {
        return Err(format!(
            "a sample in a batch does not come out as by itself ({engine}: outputs differ by up to {:.3e}, which is more than rounding does)",
            worst.max_abs
        ));
    }
    Ok(Some((engine, groups * before, worst)))
}

/// How many times as far as by one rounding of its inputs the source's outputs may go by the roundings of another batch. Each layer
/// rounds again, in another order of summation.
const ROUNDINGS: f64 = 16.0;

/// Are the distances of a batch, the first report, no larger than the source's own after a rounding of its inputs, the second one,
/// allows? They must be less than half of what the wrong sample would show, the third one.
fn is_noise(measured: &[NumericReport]) -> bool {
    let [batch, rounded, moved] = measured else { return false };
    let of = |r: &NumericReport, name: &str| r.report.outputs.iter().find(|o| o.name == name).map(|o| o.verdict.max_abs);
    batch.report.outputs.iter().filter(|o| !o.verdict.equivalent).all(|o| {
        let noise = of(rounded, &o.name).filter(|d| d.is_finite());
        let (noise, apart) = (noise.unwrap_or(0.0), of(moved, &o.name).unwrap_or(0.0));
        o.mismatch.is_none() && o.verdict.max_abs <= (ROUNDINGS * noise).min(apart / 2.0)
    })
}

/// Floats with every element moved by a unit in the last place of its type, up and down in turn.
fn neighbours(t: &NpTensor) -> Option<NpTensor> {
    let moved = |(i, v): (usize, &f64)| v * (1.0 + if i % 2 == 0 { unit(&t.dtype()) } else { -unit(&t.dtype()) });
    let values: Vec<f64> = t.to_f64().iter().enumerate().map(moved).collect();
    NpTensor::from_f64s(t.dtype(), t.shape(), &values)
}

/// What is done to the samples before the source runs on them.
#[derive(Clone, Copy, PartialEq)]
enum Change {
    None,
    /// Every float of the inputs is rounded otherwise.
    Rounding,
    /// Each sample gives its place to the next one.
    Company,
}

/// The source as a model of a larger batch: it runs one group of samples after the other.
struct OneByOne {
    session: Box<dyn Session>,
    inputs: Vec<Samples>,
    outputs: Vec<Samples>,
    groups: usize,
    change: Change,
}

impl Session for OneByOne {
    fn run(&mut self, inputs: &Tensors) -> Result<Tensors, EngineError> {
        let mut parts: IndexMap<String, Vec<NpTensor>> = IndexMap::new();
        let moved = usize::from(self.change == Change::Company);
        for group in (0..self.groups).map(|group| (group + moved) % self.groups) {
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
            let why = "the samples' parts of it do not have one shape, or what all samples should share differs";
            let apart = || EngineError::Output { name: name.clone(), why: why.into() };
            Ok((name.clone(), t.ok_or_else(apart)?))
        };
        parts.into_iter().map(whole).collect()
    }
}

impl OneByOne {
    /// The part of an input that belongs to one run of the source; the whole input where it carries no samples.
    fn part(&self, t: &NpTensor, name: &str, group: usize) -> Result<NpTensor, EngineError> {
        let is_rounded = self.change == Change::Rounding && t.dtype().is_float();
        let rounded = if is_rounded { neighbours(t) } else { None };
        let t = rounded.as_ref().unwrap_or(t);
        let Some(s) = self.inputs.iter().find(|s| s.name == name) else { return Ok(t.clone()) };
        let outer = s.outer as usize;
        let width = t.shape().get(s.axis).map_or(0, |n| n / (outer * self.groups));
        let part = t.slice_runs(s.axis, outer, group * width, width);
        let why = || EngineError::Input { name: name.into(), why: format!("it has shape {:?} for a batch", t.shape()) };
        part.ok_or_else(why)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::{Tolerance, compare};

    /// A rebuilt batch of mlsd, which ends in a comparison of floats, is off by 1.3e-3; one rounding of its inputs moves it by a tenth.
    #[test]
    fn mlsd_noise_is_told_from_a_sample_in_the_wrong_place() {
        let off = |by: f32| {
            let one = |v: f32| NpTensor::f32s(&[1], &[v]).unwrap();
            let mut r = NumericReport::default();
            r.report.add(vec![compare("y", &one(1.0 + by), &one(1.0), Tolerance::default())]);
            r
        };
        assert!(is_noise(&[off(1.3e-3), off(1.3e-4), off(0.5)]));
        assert!(!is_noise(&[off(1.3e-3), off(1.3e-6), off(0.5)]), "it is more than rounding does");
        assert!(!is_noise(&[off(1.3e-3), off(1.3e-4), off(2e-3)]), "another sample is not much further off");
        assert!(!is_noise(&[off(1.3e-3), off(1.3e-4)]), "nothing was measured");
    }

    #[test]
    fn a_rounding_moves_every_float_by_a_unit_of_its_type() {
        let t = NpTensor::f32s(&[2], &[1.0, -2.0]).unwrap();
        assert_eq!(neighbours(&t).unwrap().to_f64(), [1.0 + f64::from(f32::EPSILON), -2.0 + 2.0 * f64::from(f32::EPSILON)]);
    }
}
