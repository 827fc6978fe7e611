//! The whole rewrite in one call: from a model's graph to the graphs of its files.

use super::split::Halves;
use super::training::{Training, TrainingOptions};
use super::{Cx, FORWARD, PassError, PassManager, ROUTE};
use crate::analysis::residual::{ResidualStructure, branch_nodes, find_residuals};
use crate::analysis::types::resolve_types;
use crate::contract::{Record, StateFrom, Ties};
use crate::ir::{Graph, RouterId, RouterSpec, SharedBytes, ValueId};
use crate::onnx::{self, ImportError, inline::inline};
use crate::ops::build::BuildError;
use crate::transform::adapters::AdapterOptions;
use crate::transform::initial_state::{FirstValue, init_graph, require_state};
use crate::transform::route::{self, RouteOptions, Routed};
use crate::transform::{control_flow, dropout, legalize, lift, tie};
use indexmap::IndexMap;
use std::path::Path;

/// Why a file cannot be read for a rewrite.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ReadError {
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Old(#[from] BuildError),
}

/// Reads a model file's bytes as a rewrite takes it: local functions inlined, operator sets before 7 upgraded, values typed as far as
/// our own rules go. External data starts at `root` and is not read here.
///
/// # Errors
/// When the bytes are no ONNX model, or functions call themselves, or an old operator has no newer form.
pub fn read_model(bytes: &SharedBytes, root: Option<&Path>) -> Result<Graph, ReadError> {
    let mut g = onnx::read(bytes, root)?;
    if !g.shell.functions.is_empty() {
        g = onnx::read_prepared(bytes, root.map(crate::ir::Home::from), |model| inline(model).map(|_| ()))?;
    }
    legalize::from_old(&mut g)?;
    resolve_types(&mut g, None);
    Ok(g)
}

/// What to make of a model. `RewriteOptions::default()` is the router of the default preset and no training graph.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RewriteOptions {
    /// The router.
    pub route: RouteOptions,
    /// The adapters, if any; with them [`TrainableChoice::adapters_only`](super::training::TrainableChoice) leaves the weights as they are.
    pub adapters: Option<AdapterOptions>,
    /// Operator set of the forward graph; `None`: the source's.
    pub opset: Option<i64>,
    /// The training graph; `None`: there is none.
    pub training: Option<TrainingOptions>,
    /// Is an evaluation graph wanted beside the training graph: forward and loss?
    pub evaluation: bool,
    /// Is an inference graph wanted beside the training graph: the model with its state as inputs?
    pub inference: bool,
    /// Where the state of these graphs starts from.
    pub state: StateFrom,
}

impl Default for RewriteOptions {
    fn default() -> RewriteOptions {
        RewriteOptions {
            route: RouteOptions::default(),
            adapters: None,
            opset: None,
            training: None,
            evaluation: false,
            inference: false,
            state: StateFrom::Init,
        }
    }
}

/// The graphs of a rewritten model, each ready for [`onnx::emit`], with the metadata by which `ancre-rewrite freeze` and `train` know them.
#[non_exhaustive]
pub struct Rewritten {
    /// The residual structure of the source.
    pub structure: ResidualStructure,
    /// The routers, by the ids of their chains.
    pub routers: IndexMap<RouterId, RouterSpec>,
    /// Notes, and chains that were left alone.
    pub routed: Routed,
    /// Values of the source whose type no rule gives. Chains behind them may not have been found.
    pub untyped: Vec<String>,
    /// The forward graph.
    pub forward: Graph,
    /// The training graph.
    pub training: Option<Training>,
    /// The training graph in two, where its options ask for that.
    pub halves: Option<Halves>,
    /// Forward and loss, without updates.
    pub evaluation: Option<Graph>,
    /// The model with its state as inputs.
    pub inference: Option<Graph>,
    /// The first state, unless it is in the graphs.
    pub first: Vec<FirstValue>,
    /// A graph without inputs that gives it, where the state starts from one.
    pub init: Option<Graph>,
}

/// Rewrites a model that [`read_model`] read. Nothing is compared: [`prove_equal`](crate::proof::prove_equal) does that.
///
/// ```
/// use ancre_passes::pipeline::rewrite::{RewriteOptions, rewrite};
/// use ancre_passes::pipeline::training::TrainingOptions;
/// use ancre_passes::text::parse;
///
/// let text = "net (float[n, 4] x) => (h2) <float[4, 4] w = {…}, float[4, 4] v = {…}> {
///     f = MatMul (x, w)
///     h1 = Add (x, f)
///     g = MatMul (h1, v)
///     h2 = Add (h1, g)
/// }";
/// let mut options = RewriteOptions::default();
/// options.training = Some(TrainingOptions::default());
/// let made = rewrite(&parse(text).unwrap(), &options).unwrap();
/// assert_eq!(made.routers.len(), 1);
/// let training = made.training.unwrap();
/// assert!(training.cx.trainable.iter().any(|name| name == "w"));
/// assert!(made.init.is_some());
/// ```
///
/// # Errors
/// When the router or the training graph cannot be built as asked.
pub fn rewrite(source: &Graph, o: &RewriteOptions) -> Result<Rewritten, PassError> {
    let mut source = source.clone();
    control_flow::lift_weights(&mut source);
    lift::lift_constants(&mut source);
    dropout::evaluation_mode(&mut source);
    let untyped = resolve_types(&mut source, None).unresolved;
    let structure = find_residuals(&source);
    let mut manager = PassManager::default();
    manager.starts_from(&source);
    let mut graph = source.clone();
    let mut cx = Cx { route: o.route.clone(), chains: Some(structure.chains.clone()), ..Cx::default() };
    cx.adapters = o.adapters.clone();
    cx.branches = o.adapters.is_some().then(|| branch_nodes(&source, &structure));
    manager.run(ROUTE, &mut graph, &mut cx)?;
    let routed = std::mem::take(&mut cx.routed);
    route::describe(&mut graph, &structure.chains);
    let ties = tie::find_ties(&source);
    if !ties.is_empty() && o.training.is_some() {
        Ties(ties).write(&mut graph);
    }
    let mut forward = graph.clone();
    manager.run_to_emit(FORWARD, &mut forward, &mut Cx { opset: o.opset, ..Cx::default() })?;
    let routers = graph.routers.clone();
    let (training, mut evaluation, mut inference) = (None, None, None);
    let mut made = Rewritten {
        structure,
        routers,
        routed,
        untyped,
        forward,
        training,
        halves: None,
        evaluation: None,
        inference: None,
        first: Vec::new(),
        init: None,
    };
    let Some(mut options) = o.training.clone() else { return Ok(made) };
    if let Some(again) = options.recompute.as_mut().filter(|again| again.chains.is_empty()) {
        let name = |v: &ValueId| source.name(*v).to_string();
        again.chains = made.structure.chains.iter().map(|c| c.states.iter().map(name).collect()).collect();
    }
    let options = &options;
    let mut training = manager.training_graph(graph.clone(), options)?;
    let mut halves = manager.halves(&training)?;
    let states = training.cx.states.clone();
    if o.evaluation {
        evaluation = Some(manager.evaluation_graph(graph.clone(), &states, options)?);
    }
    if o.inference {
        inference = Some(manager.inference_graph(graph, &states, options)?);
    }
    if o.state != StateFrom::Inline {
        let others = evaluation.iter_mut().chain(&mut inference).chain(halves.iter_mut().flat_map(Halves::graphs));
        made.first = require_state(&mut training.graph, others, &states, o.state);
    }
    if o.state == StateFrom::Init {
        let init = init_graph(&training.graph, &made.first).map_err(|e| PassError::unfit(e.to_string()))?;
        made.init = Some(init);
    }
    Ok(Rewritten { training: Some(training), halves, evaluation, inference, ..made })
}
