//! Validation: forward and loss without an update, normalisations and dropouts as in evaluation.
//!
//! The graph for it is the first of: the one given or lying beside the training graph (`--eval-graph` writes it); the training
//! graph without its gradients, where nothing in it behaves otherwise in training; one made of the forward graph beside it.

use super::checkpoint::Sums;
use super::graph::{Term, TrainingGraph};
use super::metrics::{Batch, Seats, Tally};
use crate::cli::Metric;
use crate::engine::ort::device::Device;
use crate::engine::ort::stepper::{DeviceState, Stepper};
use crate::engine::ort::{OrtEngine, OrtSession};
use crate::engine::{EngineError, Tensors};
use crate::error::{Failure, sentence};
use crate::io::files;
use crate::rewrite;
use crate::verify::undefined;
use ancre_passes::contract::{self, StateKind};
use ancre_passes::ir::{DType, Graph, Kind, TensorType, ValueId};
use ancre_passes::pipeline::PassManager;
use ancre_passes::pipeline::training::TrainingOptions;
use ancre_passes::transform::loss::{ClassWeights, LossKind, LossOptions};
use ancre_passes::transform::optimizer::{OptimizerKind, OptimizerOptions};
use ancre_passes::transform::{eliminate, rebatch, separate};
use indexmap::IndexMap;
use std::collections::HashSet;
use std::path::Path;

/// A session that evaluates a state.
pub(super) struct Evaluator {
    stepper: Stepper,
    seats: Seats,
    /// Where its graph comes from.
    pub(super) origin: String,
    /// The batch, if the graph fixes it.
    pub(super) batch: Option<usize>,
    /// Figures asked for beside loss and accuracy.
    pub(super) tally: Tally,
}

impl Evaluator {
    /// Opens the evaluation of a training graph: `given`, or what can be found or made. Fails when there is none; the error
    /// says what to do.
    pub(super) fn open(
        t: &TrainingGraph,
        given: Option<&Path>,
        engine: &OrtEngine,
        metrics: &[Metric],
    ) -> Result<Evaluator, Failure> {
        let tally = Tally::new(metrics, t)?;
        Ok(Evaluator { tally, ..Evaluator::find(t, given, engine)? })
    }

    fn find(t: &TrainingGraph, given: Option<&Path>, engine: &OrtEngine) -> Result<Evaluator, Failure> {
        let beside = t.beside("eval", ".onnx");
        if let Some(path) = given.map(Path::to_path_buf).or(beside) {
            let (mut g, _) = files::read_model(&path)?;
            g.assumed_batch = t.graph.assumed_batch;
            check_fits(t, &g).map_err(|e| e.at(&path))?;
            let session = engine.open_file_safely(&path, &g).map_err(|e| cannot(e).at(&path))?;
            return Evaluator::new(t, &g, session, engine.device, path.display().to_string());
        }
        let other = match behaves_otherwise(t) {
            None => {
                let g = without_gradients(t)?;
                return Evaluator::of_graph(t, &g, engine, "the training graph without its gradients".into());
            }
            Some(what) => what,
        };
        let help = "emit the training graph with --eval-graph, or give the evaluation graph with --eval-graph FILE";
        let Some(forward) = t.beside("", ".onnx") else {
            return Err(Failure::input(format!(
                "--val needs an evaluation graph: the training graph {other}, and neither an evaluation graph nor the forward graph lies beside it"
            ))
            .at(&t.path)
            .help(help));
        };
        let g = of_forward(t, &forward)
            .map_err(|e| Failure::input(format!("no evaluation graph can be made of it: {e}")).at(&forward).help(help))?;
        Evaluator::of_graph(t, &g, engine, format!("made of {}", forward.display()))
    }

    fn of_graph(t: &TrainingGraph, g: &Graph, engine: &OrtEngine, origin: String) -> Result<Evaluator, Failure> {
        let session = engine.open_graph_safely(g, t.path.parent()).map_err(|e| cannot(e).at(&t.path))?;
        Evaluator::new(t, g, session, engine.device, origin)
    }

    fn new(t: &TrainingGraph, g: &Graph, session: OrtSession, device: Device, origin: String) -> Result<Evaluator, Failure> {
        let first = t.wanted.targets.first().map(|target| &target.slot).or(t.wanted.inputs.first());
        let batch = first
            .and_then(|slot| g.find(&slot.name))
            .and_then(|v| g.value(v).ty.shape.as_ref()?.first()?.known())
            .map(|n| n as usize);
        let loss = g.outputs().first().map(|o| g.name(o.value).to_string()).unwrap_or_default();
        let mut read = vec![loss.as_str()];
        let given: HashSet<&str> = session.outputs().collect();
        let seats = Seats::of(t, &mut read, |term| {
            let output = term.scores.as_ref().map(|s| s.output.as_str()).or(term.record.output.as_deref());
            output.filter(|o| given.contains(o))
        });
        let (stepper, _) = Stepper::new(session, device, &IndexMap::new(), &read).map_err(cannot)?;
        Ok(Evaluator { stepper, seats, origin, batch, tally: Tally::default() })
    }

    /// Adds a batch's figures under a state.
    pub(super) fn add(
        &mut self,
        t: &TrainingGraph,
        feeds: &Tensors,
        state: &mut DeviceState,
        m: &mut Sums,
    ) -> Result<(), Failure> {
        let feeds: &Tensors = &t.with_constants(feeds);
        let read = self.stepper.step(feeds, state).map_err(cannot)?;
        let loss = read[0].number();
        if let Some(what) = if loss.is_finite() { None } else { undefined::fed(feeds) } {
            return Err(Failure::check(format!("the loss in evaluation is {loss}: {what}")).help(MEND));
        }
        let batch = Batch { loss, read: &read, seats: &self.seats, feeds };
        m.add(&batch, t);
        self.tally.add(&batch, t);
        Ok(())
    }
}

/// What to do about data that are no numbers.
pub(super) const MEND: &str = "mend the data: every number of an input has to be finite";

fn cannot(e: EngineError) -> Failure {
    Failure::input(e.to_string())
}

/// An evaluation graph takes what the training graph takes, and its state.
fn check_fits(t: &TrainingGraph, g: &Graph) -> Result<(), Failure> {
    let takes = |name: &str| {
        g.find(name).is_some_and(|v| match g.node(v.node).kind {
            Kind::Input(_) => true,
            Kind::Initializer { overridable, .. } => overridable,
            Kind::Op(_) => false,
        })
    };
    let fed: HashSet<&str> =
        t.wanted.slots().map(|s| s.name.as_str()).chain(t.constants.keys().map(String::as_str)).collect();
    let states: HashSet<&str> = t.states.iter().map(|s| s.input.as_str()).collect();
    let unknown = g.required_inputs().map(|v| g.name(v)).find(|n| !fed.contains(n) && !states.contains(n));
    if let Some(name) = unknown {
        return Err(Failure::input(format!("is no evaluation graph of the training graph, which has no input `{name}`")));
    }
    let deployed = |k: StateKind| matches!(k, StateKind::Parameter | StateKind::Logits | StateKind::Gate);
    match t.states.iter().find(|s| deployed(s.kind) && !takes(&s.input)) {
        Some(s) => Err(Failure::input(format!(
            "is no evaluation graph of the training graph: it does not take the trained tensor `{}`",
            s.name
        ))),
        None => Ok(()),
    }
}

/// What the training graph does that evaluation does not.
fn behaves_otherwise(t: &TrainingGraph) -> Option<&'static str> {
    if t.takes_statistics() {
        return Some("normalises by the batch's own statistics");
    }
    // Dropout masks are drawn by the counter.
    let g = &t.graph;
    let counter = t.states.iter().find(|s| s.kind == StateKind::Counter).and_then(|s| g.find(&s.input))?;
    let read: Vec<ValueId> = read_outputs(t);
    g.ancestors(read.iter().map(|v| v.node)).contains(&counter.node).then_some("draws dropout masks")
}

/// The loss, and of each loss the scores and its value.
fn read_outputs(t: &TrainingGraph) -> Vec<ValueId> {
    let spelt = |term: &Term| term.record.output.clone().filter(|_| term.kind == LossKind::Ctc);
    let scored = |term: &Term| term.scores.as_ref().map(|s| s.output.clone()).or_else(|| spelt(term));
    let of = |term: &'_ Term| [scored(term), term.record.value.clone()];
    let names = std::iter::once(t.loss_output.clone()).chain(t.losses.iter().flat_map(of).flatten());
    let mut values: Vec<ValueId> = Vec::new();
    for v in names.filter_map(|n| t.graph.find(&n)) {
        if !values.contains(&v) {
            values.push(v);
        }
    }
    values
}

/// The training graph's forward half. Its state is always fed, so that no second copy of it is held.
fn without_gradients(t: &TrainingGraph) -> Result<Graph, Failure> {
    let mut g = t.graph.clone();
    let outputs = read_outputs(t);
    let infos: Vec<_> =
        outputs.iter().map(|v| (*v, g.outputs().iter().find(|o| o.value == *v).and_then(|o| o.info.clone()))).collect();
    g.clear_outputs();
    infos.into_iter().for_each(|(v, info)| g.add_output(v, info));
    eliminate::eliminate_dead(&mut g, |_, _| false);
    eliminate::eliminate_inputs(&mut g, |name| name == t.lr || t.states.iter().any(|s| s.input == name));
    for s in &t.states {
        let Some(v) = g.find(&s.input).filter(|v| g.initializer(*v).is_some() && g.is_read(*v)) else { continue };
        let dtype = g.value(v).ty.dtype.unwrap_or(DType::F32);
        g.require_input(v, TensorType::fixed(dtype, &s.shape).into());
    }
    Ok(g)
}

/// An evaluation graph made of the forward graph.
fn of_forward(t: &TrainingGraph, forward: &Path) -> Result<Graph, String> {
    let (mut g, _) = rewrite::load(forward).map_err(|e| e.to_string())?;
    let deployed =
        |k: StateKind| matches!(k, StateKind::Parameter | StateKind::Logits | StateKind::Gate | StateKind::Statistic);
    let names = t.states.iter().filter(|s| deployed(s.kind)).map(|s| s.input.as_str());
    separate::separate_in_forward(&mut g, names)
        .map_err(|missing| format!("it has no `{}`, which the training graph trains", missing[0]))?;
    if t.losses.iter().any(|term| term.kind.has_teacher()) {
        return Err("a distillation's teacher is in the training graph alone".into());
    }
    let mut losses: Vec<LossOptions> = t.losses.iter().map(options).collect();
    let mut o = TrainingOptions::of(losses.remove(0), OptimizerOptions::of(OptimizerKind::None));
    o.more = losses;
    // The forward graph may have a batch of 1 where the training graph takes any.
    o.batch = rebatch::possible(&g);
    PassManager::default().evaluation_graph(g, &t.states, &o).map_err(|e| sentence(&e, e.hint()))
}

/// The options of a loss that a graph records.
fn options(term: &Term) -> LossOptions {
    let record = &term.record;
    let mut loss = LossOptions::of(term.kind);
    loss.sum = record.reduction == "sum";
    loss.smoothing = record.label_smoothing;
    loss.ignore_index = record.ignore_index;
    loss.huber_delta = record.huber_delta.unwrap_or(loss.huber_delta);
    loss.labels = record.target.clone();
    loss.class_axis = record.class_axis.map(|axis| axis as i64);
    loss.output = record.output.clone();
    loss.weight = record.weight.unwrap_or(loss.weight);
    loss.gamma = record.focal_gamma.unwrap_or(loss.gamma);
    loss.dice_smooth = record.dice_smooth.unwrap_or(loss.dice_smooth);
    loss.mask = record.mask.clone();
    loss.blank = record.blank.unwrap_or(loss.blank);
    loss.class_weights = match &record.class_weights {
        None => loss.class_weights,
        Some(contract::ClassWeights::Given(all)) => ClassWeights::Given(all.clone()),
        Some(contract::ClassWeights::Fed(_)) => ClassWeights::Fed,
    };
    loss
}
