//! Proves a rewrite by running source and result on the same inputs in an independent engine.
//!
//! * `one_hot`: the router set to one-hot must give the source's outputs. Under `augment`, which adds to every block, it is
//!   instead: the graph without its routes equals the source, and every row's weighted sum equals the one recomputed here, in
//!   f64, from the states' values.
//! * `emitted`: the file as written against the source.

use crate::cli::VerifyArg;
use crate::engine::{self, Engine};
use crate::error::Failure;
use crate::random_inputs;
use crate::tensor::NpTensor;
use crate::verify::{Comparison, Tolerance, compare_all};
use ancre_passes::ir::{Graph, Tensor};
use ancre_passes::onnx;
use ancre_passes::pipeline;
use ancre_passes::transform::bake;
use ancre_passes::transform::route::{Form, RouteOptions, Router, Rule, one_hot_parameters};
use indexmap::IndexMap;
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
    pub dims: Vec<(String, i64)>,
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
}

type Values = IndexMap<String, NpTensor>;

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
        VerifyArg::Ort => vec![engine::ort()?],
        VerifyArg::Both => vec![engine::tract(), engine::ort()?],
    };
    let root = model.parent();
    let emitted = emit(forward)?;
    // Without routers the emitted graph is the one-hot graph.
    let one_hot = if routers.is_empty() { None } else { Some(one_hot_graph(routed, forward, routers, route)?) };
    let one_hot_bytes = one_hot.as_ref().map(emit).transpose()?;
    let observed = if route.form == Form::Augment && !routers.is_empty() { Some(observed_graph(forward, routed, routers)) } else { None };
    let observed_bytes = observed.as_ref().map(emit).transpose()?;
    let tolerance = Tolerance { atol: o.atol, rtol: o.rtol };
    let mut proof = Proof {
        engine: match o.engine {
            VerifyArg::Both => "both",
            VerifyArg::Ort => "ort",
            _ => "tract",
        },
        one_hot: Comparison::equal(),
        emitted: Comparison::equal(),
        trials: o.trials,
    };
    for e in engines {
        let fail = |what: &str, error: String| {
            Failure::check(format!("{} cannot run {what}: {error}; nothing was written", e.name()))
                .help("--verify ort (needs ONNX Runtime) or --verify none")
                .at(model)
        };
        for trial in 0..o.trials {
            let inputs = random_inputs::random_inputs(source, o.seed + trial as u64, &o.dims)
                .map_err(|e| Failure::check(format!("no random inputs could be made: {e}")).help("--dim NAME=N fixes a symbolic dimension").at(model))?;
            let run = |bytes: &[u8], what: &str| -> Result<Values, Failure> {
                e.load(bytes, root).and_then(|mut s| s.run(&inputs)).map_err(|error| fail(what, error.to_string()))
            };
            let want = run(source_bytes, "the model")?;
            let got = run(&emitted, "the rewritten model")?;
            proof.emitted.worsen(&compare_all(&got, &want, tolerance));
            match &one_hot_bytes {
                Some(bytes) => {
                    let got = run(bytes, "the rewritten model")?;
                    proof.one_hot.worsen(&compare_all(&got, &want, tolerance));
                }
                None => proof.one_hot = proof.emitted.clone(),
            }
            if let (Some(bytes), Some(g)) = (&observed_bytes, &observed) {
                let values = run(bytes, "the rewritten model")?;
                proof.one_hot.worsen(&check_rows(g, &values, tolerance).map_err(|e| fail("the row check", e))?);
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
            let (matrix, gate) = one_hot_parameters(r.blocks, o);
            let k = r.blocks as i64;
            g.set_initializer(r.logits, Tensor::f32s(&[k, k], &matrix), false);
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

/// The forward graph with all states and routes as outputs.
fn observed_graph(forward: &Graph, routed: &Graph, routers: &[Router]) -> Graph {
    let mut g = forward.clone();
    for r in routers {
        let all = r.states.iter().chain(r.rows.iter().map(|(_, v)| v));
        for v in all {
            if let Some(v) = g.find(routed.name(*v)).filter(|v| !g.is_output(*v)) {
                g.add_output(v, None);
            }
        }
    }
    g
}

/// Compares every route with Σ w·h recomputed from the observed states.
fn check_rows(g: &Graph, values: &Values, tolerance: Tolerance) -> Result<Comparison, String> {
    let record = bake::read_record(g).map_err(|e| e.to_string())?;
    let mut worst = Comparison::equal();
    let get = |name: &str| values.get(name).map(NpTensor::to_f64).ok_or_else(|| format!("`{name}` was not observed"));
    for chain in &record.chains {
        let weights = if record.parametrization == Rule::Constant || g.find(&chain.logits).is_some() {
            bake::chain_weights(g, &record, chain).map_err(|e| e.to_string())?
        } else {
            return Err(format!("`{}` is missing", chain.logits));
        };
        let states: Vec<Vec<f64>> = chain.states.iter().map(|s| get(s)).collect::<Result<_, _>>()?;
        for (row, name) in &chain.rows {
            let got = get(name)?;
            let mut want = vec![0f64; got.len()];
            for (column, state) in states.iter().enumerate().take(row + 1) {
                let w = weights[row * chain.blocks + column];
                want.iter_mut().zip(state).for_each(|(x, h)| *x += w * h);
            }
            worst.worsen(&Comparison::of(&got, &want, tolerance));
        }
    }
    Ok(worst)
}
