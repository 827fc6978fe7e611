//! What a training graph's file says about itself: its inputs, its state, its loss.

use super::checkpoint::{self, MOST_LOSSES};
use super::course::Hash;
use super::data::Wanted;
use crate::engine::Tensors;
use crate::engine::ort::stepper::Carried;
use crate::error::Failure;
use crate::io::files;
use crate::io::tensor::NpTensor;
use ancre_passes::contract::{
    AdaptersRecord, Fresh, GradientRecord, Half, HalfRecord, LossRecord, OptimizerRecord, Quantised, Record, RouterRecord,
    StateKind, StateRecord, States, Unreadable,
};
use ancre_passes::ir::{DType, Graph, Output, Shape, ValueId};
use ancre_passes::onnx::read_value_info;
use ancre_passes::transform::loss::LossKind;
use indexmap::IndexMap;
use std::borrow::Cow;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// Class scores among the outputs: where predictions are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scores {
    pub(super) output: String,
    /// Axis of the classes.
    pub(super) axis: usize,
    /// Number of classes, if it is fixed.
    pub(super) classes: Option<usize>,
    /// Is each position's label the next position's?
    pub(super) shifted: bool,
}

/// One of a graph's losses.
pub(super) struct Term {
    pub(super) record: LossRecord,
    pub(super) kind: LossKind,
    /// The class scores, if its target is a label.
    pub(super) scores: Option<Scores>,
}

impl Term {
    /// Its name among several: its output.
    pub(super) fn name(&self) -> &str {
        self.record.value.as_deref().unwrap_or(&self.record.kind)
    }
}

/// The graph from gradients to the next state, where a step is two graphs.
pub(super) struct UpdateGraph {
    pub(super) path: PathBuf,
    pub(super) graph: Graph,
    /// The gradients that it takes, each with its tensor.
    pub(super) gradients: Vec<GradientRecord>,
}

/// What the loop needs to know of a training graph.
pub struct TrainingGraph {
    pub(super) path: PathBuf,
    /// Hash of the file's bytes.
    pub(super) hash: String,
    /// The graph of the whole step, or of its gradients.
    pub(super) graph: Graph,
    /// The other graph, where a step is two.
    pub(super) update: Option<UpdateGraph>,
    pub(super) states: Vec<StateRecord>,
    /// Its losses, in order; `loss` is their weighted sum.
    pub(super) losses: Vec<Term>,
    /// What every step is fed besides data, state and rate: weights of classes.
    pub(super) constants: Tensors,
    pub(super) optimizer: String,
    pub(super) router: Option<RouterRecord>,
    /// Tensors that the main job made anew.
    pub(super) fresh: Fresh,
    /// Names of the adapters' tensors.
    pub(super) adapted: HashSet<String>,
    /// What is quantised, where that is trained.
    pub(super) quantised: Option<Quantised>,
    pub(super) lr: String,
    pub(super) loss_output: String,
    /// Output of the gradients' norm.
    pub(super) norm_output: String,
    /// What data it takes.
    pub wanted: Wanted,
}

impl TrainingGraph {
    /// The shape of an input or output, as far as the file tells it.
    pub(super) fn shape(&self, name: &str) -> Option<Shape> {
        let v = self.graph.find(name)?;
        let output = self.graph.outputs().iter().find(|o| o.value == v);
        output.map_or_else(|| self.graph.value(v).ty.shape.clone(), |o| declared(&self.graph, o))
    }

    /// Reads the file of a training graph; of a step in two graphs either file names both.
    pub fn read(path: &Path) -> Result<TrainingGraph, Failure> {
        let (graph, bytes) = files::read_model(path)?;
        let mut hash = Hash::default();
        hash.add(&bytes);
        let record = HalfRecord::read(&graph).map_err(|e| Failure::input(e.to_string()).at(path))?;
        let Some(own) = record else {
            return TrainingGraph::of(graph, None, path, hash.text()).map_err(|e| e.at(path));
        };
        let kind = if own.half == Half::Update { "grad" } else { "update" };
        let lost = || {
            Failure::input(format!("is one of the two graphs of a step, and STEM.ancre.{kind}.onnx is not beside it"))
                .help("rewrite the model with --step split anew, or bring both files together")
                .at(path)
        };
        let other = files::beside(path, kind, ".onnx").ok_or_else(lost)?;
        if own.half == Half::Update {
            return TrainingGraph::read(&other);
        }
        let (update, bytes) = files::read_model(&other)?;
        hash.add(&bytes);
        let of_other = HalfRecord::read(&update).map_err(|e| Failure::input(e.to_string()).at(&other))?;
        let fits = |r: &HalfRecord| r.half == Half::Update && r.gradients == own.gradients;
        let Some(of_other) = of_other.filter(fits) else {
            return Err(Failure::input("is not the update that goes with the graph of the gradients beside it").at(&other));
        };
        let update = UpdateGraph { path: other, graph: update, gradients: of_other.gradients };
        TrainingGraph::of(graph, Some(update), path, hash.text()).map_err(|e| e.at(path))
    }

    fn of(graph: Graph, update: Option<UpdateGraph>, path: &Path, hash: String) -> Result<TrainingGraph, Failure> {
        let help = "train takes the file STEM.ancre.train.onnx that `ancre-rewrite MODEL.onnx` writes";
        let unread = |e: Unreadable| Failure::input(e.to_string());
        let missing = |key: &str| Failure::input(format!("is no training graph: it has no `{key}` metadata")).help(help);
        let mut states = States::read(&graph).map_err(unread)?.ok_or_else(|| missing(States::KEY))?.0;
        if let Some(update) = &update {
            let of_update = States::read(&update.graph).map_err(unread)?.ok_or_else(|| missing(States::KEY))?.0;
            states.retain(|s| !of_update.iter().any(|u| u.input == s.input));
            states = of_update.into_iter().chain(states).collect();
        }
        let loss = LossRecord::read(&graph).map_err(unread)?.ok_or_else(|| missing(LossRecord::KEY))?;
        let OptimizerRecord { kind: optimizer, .. } = OptimizerRecord::read(&graph)
            .map_err(unread)?
            .ok_or_else(|| Failure::input("is an evaluation graph: it makes no updates").help(help))?;
        if optimizer == "none" {
            return Err(Failure::input("was emitted with --optimizer none and makes no updates")
                .help("rewrite the model with --optimizer adamw, adam or sgd"));
        }
        // Where the model uses a name itself, ours begins with `ancre.`.
        let both = || [Some(&graph), update.as_ref().map(|u| &u.graph)].into_iter().flatten();
        let inputs: Vec<&str> = both().flat_map(|g| g.inputs().iter().map(|n| g.name(g.result(*n, 0)))).collect();
        let outputs: Vec<&str> = both().flat_map(|g| g.outputs().iter().map(|o| g.name(o.value))).collect();
        let ours = |name: &str, all: &[&str]| -> Result<String, Failure> {
            let second = format!("ancre.{name}");
            let found = [second.as_str(), name].into_iter().find(|n| all.contains(n));
            let found = found.map(str::to_string);
            found.ok_or_else(|| Failure::input(format!("is no training graph: it has no `{name}`")).help(help))
        };
        let (lr, loss_output) = (ours("lr", &inputs)?, ours("loss", &outputs)?);
        let norm_output = ours("grad_norm", &outputs)?;
        let mut losses = Vec::new();
        for record in loss.all() {
            let kind = LossKind::of_name(&record.kind)
                .ok_or_else(|| Failure::input(format!("its loss `{}` is unknown to this version", record.kind)))?;
            let scores = find_scores(&graph, &record, kind, &[&loss_output, &norm_output], &states);
            losses.push(Term { record, kind, scores });
        }
        let classes = |t: &Term| t.scores.as_ref().and_then(|s| s.classes);
        let wanted = Wanted::of(&graph, &losses.iter().map(|t| (&t.record, classes(t))).collect::<Vec<_>>())?;
        let router = RouterRecord::read(&graph).map_err(unread)?;
        let quantised = Quantised::read(&graph).map_err(unread)?;
        let fresh = Fresh::read(&graph).map_err(unread)?.unwrap_or_default();
        let adapters = AdaptersRecord::read(&graph).map_err(unread)?;
        let adapted = adapters.iter().flat_map(AdaptersRecord::tensors).map(String::from).collect();
        let path = path.to_path_buf();
        Ok(TrainingGraph {
            path,
            hash,
            states,
            losses,
            constants: Tensors::new(),
            optimizer,
            router,
            fresh,
            adapted,
            quantised,
            lr,
            loss_output,
            norm_output,
            wanted,
            update,
            graph,
        })
    }

    /// The graphs that a step runs, one after the other.
    fn graphs(&self) -> impl Iterator<Item = &Graph> {
        [Some(&self.graph), self.update.as_ref().map(|u| &u.graph)].into_iter().flatten()
    }

    /// The state inputs, each with what becomes of it in a step of one graph; then, if there are two, the gradients that pass from one to
    /// the other. `on_host` are those that the processes of a run sum up.
    pub(super) fn carried(&self, on_host: bool) -> IndexMap<String, Carried> {
        let carried = |s: &StateRecord| Carried {
            output: s.output.clone(),
            in_place: s.in_place,
            on_host: on_host && s.kind == StateKind::Statistic,
        };
        let states = self.states.iter().map(|s| (s.input.clone(), carried(s)));
        let gradient = |r: &GradientRecord| Carried { output: Some(r.name.clone()), in_place: true, on_host };
        let gradients = self.update.iter().flat_map(|u| &u.gradients).map(|r| (r.name.clone(), gradient(r)));
        states.chain(gradients).collect()
    }

    /// State inputs that have no default in the file.
    pub(super) fn without_default(&self) -> Vec<&StateRecord> {
        let required: Vec<&str> = self.graphs().flat_map(|g| g.required_inputs().map(|v| g.name(v))).collect();
        self.states.iter().filter(|s| required.contains(&s.input.as_str())).collect()
    }

    /// The running statistics that a step moves.
    pub(super) fn statistics(&self) -> impl Iterator<Item = &StateRecord> {
        self.states.iter().filter(|s| s.kind == StateKind::Statistic && s.output.is_some())
    }

    /// Does a step without finite gradients change nothing but the loss scale?
    pub(super) fn has_loss_scale(&self) -> bool {
        self.states.iter().any(|s| s.kind == StateKind::LossScale)
    }

    /// Does a step take statistics of its batch?
    pub(super) fn takes_statistics(&self) -> bool {
        self.statistics().next().is_some()
    }

    /// Number of elements that train.
    pub(super) fn parameters(&self) -> i64 {
        self.states.iter().filter(|s| s.trainable).map(|s| s.shape.iter().product::<i64>()).sum()
    }

    /// What a step is fed, with a learning rate.
    pub(super) fn with_rate(&self, feeds: &Tensors, lr: f64) -> Tensors {
        let mut feeds = self.with_constants(feeds).into_owned();
        feeds.extend(self.rate(lr));
        feeds
    }

    /// A learning rate, as the update takes it.
    pub(super) fn rate(&self, lr: f64) -> Tensors {
        NpTensor::from_f64s(DType::F32, &[], &[lr]).map(|v| (self.lr.clone(), v)).into_iter().collect()
    }

    /// What an evaluation is fed.
    pub(super) fn with_constants<'f>(&self, feeds: &'f Tensors) -> Cow<'f, Tensors> {
        if self.constants.is_empty() {
            return Cow::Borrowed(feeds);
        }
        let constants = self.constants.iter().map(|(name, t)| (name.clone(), t.clone()));
        Cow::Owned(feeds.clone().into_iter().chain(constants).collect())
    }

    /// The only loss, if there is no other.
    pub(super) fn single(&self) -> Option<&Term> {
        if let [one] = &self.losses[..] { Some(one) } else { None }
    }

    /// The losses in a few words.
    pub(super) fn losses_text(&self) -> String {
        self.losses.iter().map(|t| t.record.kind.as_str()).collect::<Vec<_>>().join(" + ")
    }

    /// Can several ranks sum up its gradients and statistics?
    ///
    /// # Errors
    /// When a step is one graph, or one of these is not float32.
    pub(super) fn can_be_summed(&self) -> Result<(), Failure> {
        let Some(update) = &self.update else {
            return Err(Failure::input(
                "makes a step in one graph, between whose gradients and update several ranks cannot sum up",
            )
            .at(&self.path)
            .help("rewrite the model with --step split, and give STEM.ancre.grad.onnx"));
        };
        if self.losses.len() > MOST_LOSSES {
            return Err(
                Failure::input(format!("has more than {MOST_LOSSES} losses, too many for several ranks")).at(&self.path)
            );
        }
        let sums = self.losses.iter().filter(|term| term.record.reduction == "sum").count();
        if sums != 0 && sums != self.losses.len() {
            return Err(Failure::input("adds up some losses and averages others, which several ranks cannot").at(&self.path));
        }
        let statistics = self.statistics().filter_map(|s| s.output.as_deref());
        let summed = update.gradients.iter().map(|r| r.name.as_str()).chain(statistics);
        let wide = |name: &&str| self.graph.find(name).is_none_or(|v| self.graph.value(v).ty.dtype != Some(DType::F32));
        match { summed }.find(wide) {
            Some(name) => {
                Err(Failure::input(format!("`{name}` is not float32; several ranks sum up float32 numbers only"))
                    .at(&self.path))
            }
            None => Ok(()),
        }
    }

    /// The value that the file gives a state tensor.
    pub(super) fn default_of(&self, s: &StateRecord) -> Option<NpTensor> {
        let held = self.graphs().find_map(|g| g.initializer(g.find(&s.input)?))?;
        NpTensor::from_constant(held).ok()
    }

    /// The state that the file itself holds, as a checkpoint of no steps: the bytes of a .safetensors file. State inputs without a default
    /// are not in it; a moment's default is spread over its whole shape.
    ///
    /// # Errors
    /// A router that the file describes wrongly.
    pub fn start(&self) -> Result<Vec<u8>, Failure> {
        let whole = |s: &StateRecord| {
            let t = self.default_of(s)?;
            Some((s.input.clone(), if t.len() == 1 { t.spread(&s.shape)? } else { t }))
        };
        let state: Tensors = self.states.iter().filter_map(whole).collect();
        let network = super::topology::network(self)?;
        checkpoint::at_start(&state, network.as_ref()).map_err(|e| e.at(&self.path))
    }

    /// The file of another kind that the main job wrote beside this one, if it is there; no kind is the forward graph.
    pub(super) fn beside(&self, kind: &str, suffix: &str) -> Option<PathBuf> {
        files::beside(&self.path, kind, suffix)
    }
}

/// The output that holds class scores, if targets are labels: the one that the loss names, or the only one with an axis more
/// than the target.
fn find_scores(g: &Graph, loss: &LossRecord, kind: LossKind, ours: &[&str], states: &[StateRecord]) -> Option<Scores> {
    if !kind.weights_classes() {
        return None;
    }
    let target = g.find(loss.target.as_deref()?)?;
    let labels = g.value(target).ty.shape.as_ref()?;
    let rank = labels.len() + 1;
    let is_model = |o: &&Output| {
        let name = g.name(o.value);
        let next = states.iter().any(|s| s.output.as_deref() == Some(name));
        !ours.contains(&name) && !next && !name.ends_with(".grad") && g.is_float(o.value)
    };
    let mut floats = g.outputs().iter().filter(is_model).map(|o| (g.name(o.value), declared(g, o)));
    let (output, shape) = match &loss.output {
        Some(name) => floats.find(|(n, _)| n == name)?,
        None => {
            let mut fitting = floats.filter(|(_, shape)| shape.as_ref().is_none_or(|s| s.len() == rank));
            fitting.next().filter(|_| fitting.next().is_none())?
        }
    };
    let shifted = kind == LossKind::NextToken;
    let fits = |axis: usize| {
        shape.as_ref().is_some_and(|s| {
            s.len() == rank && s.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, d)| d).eq(labels.iter())
        })
    };
    // Token logits have their classes last; [N, C, d1, …] on axis 1.
    let axis = match rank {
        _ if loss.class_axis.is_some() => loss.class_axis.filter(|axis| *axis < rank)?,
        2 => 1,
        _ if shifted || (fits(rank - 1) && !fits(1)) => rank - 1,
        _ if fits(1) && !fits(rank - 1) => 1,
        3 if reads_ids(g, target, states) => 2,
        _ => 1,
    };
    let classes = shape.as_ref().and_then(|s| s.get(axis)?.known()).and_then(|n| usize::try_from(n).ok());
    Some(Scores { output: output.to_string(), axis, classes, shifted })
}

/// The shape of an output as the file declares it, else as it was found.
fn declared(g: &Graph, o: &Output) -> Option<Shape> {
    let declared = o.info.as_deref().and_then(read_value_info).and_then(|ty| ty.shape);
    declared.or_else(|| g.value(o.value).ty.shape.clone())
}

/// Does the model read integer ids beside the target? Token logits are [N, T, V] then.
fn reads_ids(g: &Graph, target: ValueId, states: &[StateRecord]) -> bool {
    let data = g.required_inputs().filter(|v| *v != target && !states.iter().any(|s| s.input == g.name(*v)));
    data.into_iter().any(|v| matches!(g.value(v).ty.dtype, Some(DType::I64 | DType::I32)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ancre_passes::text::parse;

    #[test]
    fn classes_are_on_the_axis_that_the_target_lacks() {
        let loss = |kind: &str| -> LossRecord {
            serde_json::from_value(serde_json::json!({"kind": kind, "reduction": "mean", "target": "t"})).unwrap()
        };
        for (inputs, kind, axis) in [
            ("float[n, 5, 8] x, int64[n, 5] t", "cross-entropy", 2),
            ("float[n, 8, 5] x, int64[n, 5] t", "cross-entropy", 1),
            ("float[n, 5, 5] x, int64[n, 5] t", "cross-entropy", 1),
            ("float[n, 5, 5] x, int64[n, 5] ids, int64[n, 5] t", "cross-entropy", 2),
            ("float[n, 5, 5] x, int64[n, 5] t", "next-token", 2),
            ("float[n, 8] x, int64[n] t", "cross-entropy", 1),
            ("float[n, 8, 4, 6] x, int64[n, 4, 6] t", "cross-entropy", 1),
        ] {
            let g = parse(&format!("g ({inputs}) => (s, loss) {{ s = Relu (x) loss = ReduceSum (x) }}")).unwrap();
            let loss = loss(kind);
            let found = find_scores(&g, &loss, LossKind::of_name(kind).unwrap(), &["loss"], &[]).unwrap();
            let shape = g.value(g.find("s").unwrap()).ty.shape.clone().unwrap();
            let classes = shape[axis].known().map(|n| n as usize);
            assert_eq!((found.output.as_str(), found.axis, found.classes), ("s", axis, classes), "{inputs}, {kind}");
        }
    }
}
