//! Proves a rewrite by running source and result on the same inputs in an independent engine.
//!
//! * `one_hot`: the router set to one-hot must give the source's outputs. Under `augment`, which adds to every block, it is
//!   instead: the graph without its routes equals the source, and every row's weighted sum equals the one recomputed here, in
//!   f64, from the sources' values.
//! * `emitted`: the file as written against the source.

use crate::cli::VerifyArg;
use crate::engine::random_inputs;
use crate::engine::{self, Engine, Session, Tensors};
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use crate::verify::{Comparison, Tolerance, compare, compare_all};
use ancre_passes::ir::{Graph, Tensor};
use ancre_passes::onnx;
use ancre_passes::pipeline;
use ancre_passes::transform::bake;
use ancre_passes::transform::route::{Form, RouteOptions, Router, one_hot_parameters};
use std::path::Path;

/// What to prove with.
pub struct ProofOptions {
    /// Engine or engines.
    pub engine: VerifyArg,
    /// Random inputs.
    pub trials: usize,
    /// Their seed.
    pub seed: u64,
    /// Absolute tolerance.
    pub atol: f64,
    /// Tolerance relative to an output's largest value.
    pub rtol: f64,
    /// Extents of symbolic dimensions.
    pub dims: random_inputs::Sizes,
}

/// What was proved.
#[derive(Clone, Debug)]
pub struct Proof {
    /// `tract`, `ort` or `both`.
    pub engine: &'static str,
    /// Router at one-hot against the source.
    pub one_hot: Comparison,
    /// The file written against the source.
    pub emitted: Comparison,
    /// Random inputs used.
    pub trials: usize,
    /// Outputs in which the source itself has NaN, of which equality says little.
    pub undefined: Vec<String>,
}

/// Runs all comparisons.
///
/// # Errors
/// Status 1 when an engine cannot run the model or the one-hot check fails (which is a fault of this tool).
#[allow(clippy::too_many_arguments)]
pub fn prove(
    model: &Path,
    source: &Graph,
    source_bytes: &[u8],
    routed: &Graph,
    forward: &Graph,
    routers: &[Router],
    route: &RouteOptions,
    o: &ProofOptions,
) -> Result<Proof, Failure> {
    let engines: Vec<Box<dyn Engine>> = match o.engine {
        VerifyArg::Tract | VerifyArg::None => vec![engine::tract()],
        VerifyArg::Ort => vec![engine::ort().map_err(no_runtime)?],
        VerifyArg::Both => vec![engine::tract(), engine::ort().map_err(no_runtime)?],
    };
    let root = model.parent();
    let emitted = emit(forward)?;
    // Without routers the emitted graph is the one-hot graph.
    let one_hot = if routers.is_empty() { None } else { Some(one_hot_graph(routed, forward, routers, route)?) };
    let one_hot_bytes = one_hot.as_ref().map(emit).transpose()?;
    let observed = if route.form == Form::Augment && !routers.is_empty() {
        Some(observed_graph(forward, routed, routers))
    } else {
        None
    };
    let observed_bytes = observed.as_ref().map(emit).transpose()?;
    let tolerance = Tolerance { atol: o.atol, rtol: o.rtol };
    let mut proof = Proof {
        engine: match o.engine {
            VerifyArg::Both => "both",
            VerifyArg::Ort => "ort",
            _ => "tract",
        },
        one_hot: Comparison::default(),
        emitted: Comparison::default(),
        trials: o.trials,
        undefined: Vec::new(),
    };
    for e in engines {
        let fail = |what: &str, error: String| {
            let other = if e.name() == "tract" {
                "--verify ort (needs ONNX Runtime) or --verify none"
            } else {
                "--verify tract or --verify none"
            };
            Failure::check(format!("{} cannot run {what}: {error}; nothing was written", e.name())).help(other).at(model)
        };
        let load = |bytes: &[u8], what: &str| e.load(bytes, root).map_err(|error| fail(what, error.to_string()));
        let mut reference = load(source_bytes, "the model")?;
        let mut of_file = load(&emitted, "the rewritten model")?;
        let mut of_one_hot = one_hot_bytes.as_ref().map(|b| load(b, "the rewritten model")).transpose()?;
        let mut of_observed = observed_bytes.as_ref().map(|b| load(b, "the rewritten model")).transpose()?;
        let sizes = first_that_runs(source, reference.as_mut(), o).map_err(|error| fail("the model", error))?;
        for trial in 0..o.trials {
            let inputs = random_inputs::random_inputs(source, &sizes, o.seed + trial as u64)
                .map_err(|error| fail("the model", error))?;
            let run =
                |s: &mut Box<dyn Session>| s.run(&inputs).map_err(|error| fail("the rewritten model", error.to_string()));
            let want = run(&mut reference)?;
            for (name, t) in &want {
                if !proof.undefined.contains(name) && t.dtype().is_float() && t.to_f64().iter().any(|v| v.is_nan()) {
                    proof.undefined.push(name.clone());
                }
            }
            let got = run(&mut of_file)?;
            compare_all(&got, &want, tolerance).iter().for_each(|c| proof.emitted.and(&c.verdict));
            match &mut of_one_hot {
                Some(s) => {
                    let got = run(s)?;
                    compare_all(&got, &want, tolerance).iter().for_each(|c| proof.one_hot.and(&c.verdict));
                }
                None => proof.one_hot = proof.emitted.clone(),
            }
            if let (Some(s), Some(g)) = (&mut of_observed, &observed) {
                let values = run(s)?;
                proof.one_hot.and(&check_rows(g, &values, tolerance).map_err(|e| fail("the row check", e))?);
            }
        }
    }
    if !proof.one_hot.equivalent {
        return Err(Failure::check(format!(
            "the rewritten graph does not equal the source when the router is one-hot (outputs differ by up to {:.3e}); this is a fault of ancre-rewrite, nothing was written",
            proof.one_hot.max_abs
        ))
        .help("report the model's architecture; --chains IDS leaves a chain out")
        .at(model));
    }
    Ok(proof)
}

fn emit(g: &Graph) -> Result<Vec<u8>, Failure> {
    onnx::emit(g).and_then(|e| e.to_bytes()).map_err(|e| Failure::input(e.to_string()))
}

/// `reassign`: the forward graph with one-hot parameters. `augment`: the routed graph with every route replaced by zero.
fn one_hot_graph(routed: &Graph, forward: &Graph, routers: &[Router], o: &RouteOptions) -> Result<Graph, Failure> {
    if o.form == Form::Reassign {
        let mut g = forward.clone();
        for r in routers {
            let (matrix, gate) = one_hot_parameters(r.blocks, r.sources.len(), o);
            let k = r.blocks as i64;
            g.set_initializer(r.logits, Tensor::f32s(&[k, k + r.sources.len() as i64], &matrix), false);
            if let Some(v) = r.gate {
                g.set_initializer(v, Tensor::f32s(&[k], &gate), false);
            }
        }
        return Ok(g);
    }
    let mut g = routed.clone();
    for r in routers {
        let dtype = g.value(r.states[0]).ty.dtype.unwrap_or(ancre_passes::ir::DType::F32);
        let zero = g.add_initializer("ancre/zero", Tensor::floats(dtype, &[], &[0.0]), false);
        for sum in &r.sums {
            g.set_operand(*sum, 1, Some(zero));
        }
    }
    pipeline::lower_forward(&mut g, |_, _| false).map_err(Failure::input)?;
    Ok(g)
}

/// The forward graph with all sources and routes as outputs.
fn observed_graph(forward: &Graph, routed: &Graph, routers: &[Router]) -> Graph {
    let mut g = forward.clone();
    for r in routers {
        let all = r.sources.iter().map(|s| &s.value).chain(&r.states).chain(r.rows.iter().map(|(_, v)| v));
        for v in all {
            if let Some(v) = g.find(routed.name(*v)).filter(|v| !g.is_output(*v)) {
                g.add_output(v, None);
            }
        }
    }
    g
}

/// Sizes of the symbolic dimensions with which the source runs.
fn first_that_runs(g: &Graph, s: &mut dyn Session, o: &ProofOptions) -> Result<random_inputs::Sizes, String> {
    let mut first = None;
    for sizes in random_inputs::sizes(g, &o.dims) {
        match random_inputs::random_inputs(g, &sizes, o.seed).and_then(|i| s.run(&i).map_err(|e| e.to_string())) {
            Ok(_) => return Ok(sizes),
            Err(e) => first = first.or(Some(e)),
        }
    }
    Err(format!("{} (--dim NAME=N fixes a symbolic dimension)", first.unwrap_or_default()))
}

/// Compares every route with Σ w·h recomputed from the observed sources.
fn check_rows(g: &Graph, values: &Tensors, tolerance: Tolerance) -> Result<Comparison, String> {
    let record = bake::read_record(g).map_err(|e| e.to_string())?;
    let mut worst = Comparison::default();
    let get = |name: &str| values.get(name).ok_or_else(|| format!("`{name}` was not observed"));
    for chain in &record.chains {
        let weights = bake::chain_weights(g, &record, chain).map_err(|e| e.to_string())?;
        let sources: Vec<Vec<f64>> = chain.columns().map(|s| get(s).map(NpTensor::to_f64)).collect::<Result<_, _>>()?;
        for (row, name) in &chain.rows {
            let got = get(name)?;
            let first = row * chain.width();
            let mut want = vec![0f64; got.to_f64().len()];
            for (w, source) in weights[first..first + chain.reads(*row)].iter().zip(&sources) {
                want.iter_mut().zip(source).for_each(|(x, h)| *x += w * h);
            }
            let want =
                NpTensor::from_f64s(got.dtype(), got.shape(), &want).ok_or("a route and its states differ in shape")?;
            worst.and(&compare(name, got, &want, tolerance).verdict);
        }
    }
    Ok(worst)
}

fn no_runtime(e: engine::EngineError) -> Failure {
    Failure::input(e.to_string())
}
