//! Builds training and evaluation graphs. docs/training.md lists their inputs and outputs.

use super::{APPEND_LOSS, Choice, Cx, EVAL, INFER, PREPARE, PREPARE_TEACHER, Pass, PassError, PassManager, TRAIN};
use crate::contract::{StateRecord, StepForm};
use crate::ir::{Graph, NodeId, Op, ValueId};
use crate::onnx::schema::{self, meaning::Use};
use crate::ops;
use crate::target::{self, Target};
use crate::transform::loss::teacher::Teacher;
use crate::transform::loss::{LossError, LossKind, LossOptions, loss_output};
use crate::transform::narrow::Precision;
use crate::transform::optimizer::{OptimizerKind, OptimizerOptions};
use crate::transform::rebatch::{self, Batch, Current};
use crate::transform::recompute::Recompute;

/// Which initializers train.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct TrainableChoice {
    /// Exactly these (and the router's own); `None`: by role.
    pub exactly: Option<Vec<String>>,
    /// Also these (globs), whatever their role.
    pub also: Vec<String>,
    /// Not these (globs).
    pub frozen: Vec<String>,
    /// By role, but only tensors that the last linear map before the output reads, and the nodes after it.
    pub head_only: bool,
    /// Adapters, and of what the model had before what is fresh, or with `head_only` its head.
    pub adapters_only: bool,
}

/// How to build a training graph.
#[derive(Clone, Debug)]
#[non_exhaustive]
#[allow(missing_docs)]
pub struct TrainingOptions {
    /// The loss, or the first of several.
    pub loss: LossOptions,
    /// Losses beside it, which are added up with their weights.
    pub more: Vec<LossOptions>,
    /// Whom distillations learn from.
    pub teacher: Option<Teacher>,
    pub optimizer: OptimizerOptions,
    pub output: Option<String>,
    pub trainable: TrainableChoice,
    /// Operator set of the graph; `None`: 18, or the smallest later one that can express the source.
    pub opset: Option<i64>,
    /// Seed of the dropout masks.
    pub seed: u64,
    /// Integer inputs and extents of inputs, each with the one value it has in the training graph.
    pub fixed: Vec<(String, i64)>,
    /// Another batch than the graph's number; the caller has seen that the source can be rebuilt for it.
    pub batch: Option<Batch>,
    pub grad_outputs: bool,
    /// Is the graph to be split between gradients and update? Every gradient is an output then.
    pub step: StepForm,
    /// Keep batch normalisation as in evaluation.
    pub frozen_bn: bool,
    /// Part of the running statistics that a step keeps; `None`: what each node says, and 0.9 where that is 1.
    pub bn_momentum: Option<f32>,
    /// The type of products and convolutions.
    pub precision: Precision,
    /// Blocks whose inside the backward pass computes again; `None`: none.
    pub recompute: Option<Recompute>,
    /// Does a quantised model train, and what of it?
    pub qat: Qat,
    /// The machine whose costs choose among formulations.
    pub target: &'static Target,
}

/// Quantisation-aware training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Qat {
    /// Quantised values have no gradient.
    #[default]
    Off,
    /// Gradients go straight through rounding; weights that are stored as integers train as float32.
    Weights,
    /// So do the scales of quantised values.
    Scales,
}

impl Qat {
    /// Do scales train?
    pub fn trains_scales(self) -> bool {
        self == Qat::Scales
    }
}

impl Default for TrainingOptions {
    fn default() -> TrainingOptions {
        TrainingOptions::of(LossOptions::of(LossKind::Mse), OptimizerOptions::of(OptimizerKind::AdamW))
    }
}

impl TrainingOptions {
    /// A loss on the only output that fits it and an optimiser over everything that trains by its role.
    pub fn of(loss: LossOptions, optimizer: OptimizerOptions) -> TrainingOptions {
        TrainingOptions {
            loss,
            more: Vec::new(),
            teacher: None,
            optimizer,
            output: None,
            trainable: TrainableChoice::default(),
            opset: None,
            seed: 0,
            fixed: Vec::new(),
            batch: None,
            grad_outputs: false,
            step: StepForm::Whole,
            frozen_bn: false,
            bn_momentum: None,
            precision: Precision::Single,
            recompute: None,
            qat: Qat::Off,
            target: &target::CPU,
        }
    }

    /// All losses, in order.
    pub fn losses(&self) -> impl Iterator<Item = &LossOptions> {
        std::iter::once(&self.loss).chain(&self.more)
    }

    /// The output that a loss reads.
    ///
    /// # Errors
    /// When the choice is not clear.
    pub fn output_of(&self, g: &Graph, loss: &LossOptions) -> Result<ValueId, LossError> {
        loss_output(g, loss.output.as_deref().or(self.output.as_deref()))
    }

    /// Does batch normalisation stay as in evaluation?
    pub(super) fn freezes_statistics(&self) -> bool {
        self.frozen_bn || self.trainable.head_only || self.trainable.adapters_only
    }
}

/// A training graph.
pub struct Training {
    /// The graph, legal and ready to be emitted.
    pub graph: Graph,
    /// What the passes found.
    pub cx: Cx,
}

impl PassManager<'_> {
    /// Builds the training graph of a routed (not yet lowered) graph, which it consumes.
    ///
    /// # Errors
    /// When the loss does not fit, an operator has no derivative, or nothing would train.
    pub fn training_graph(&mut self, mut g: Graph, o: &TrainingOptions) -> Result<Training, PassError> {
        let mut cx = Cx { training: o.clone(), ..Cx::default() };
        self.prepared(TRAIN, &mut g, &mut cx)?;
        Ok(Training { graph: g, cx })
    }

    /// Builds the evaluation graph of a routed graph, which it consumes: forward and loss, no updates. Normalisations and dropouts are
    /// as in evaluation. The state that a training graph carries (parameters, router, running statistics) can be fed under the same
    /// names.
    ///
    /// # Errors
    /// As for the training graph.
    pub fn evaluation_graph(
        &mut self,
        mut g: Graph,
        states: &[StateRecord],
        o: &TrainingOptions,
    ) -> Result<Graph, PassError> {
        self.with_state(EVAL, &mut g, states, o)?;
        Ok(g)
    }

    /// Builds the inference graph of a routed graph, which it consumes: the model's own inputs and outputs, and the state that a
    /// training graph carries under the same names.
    ///
    /// # Errors
    /// As for the training graph.
    pub fn inference_graph(
        &mut self,
        mut g: Graph,
        states: &[StateRecord],
        o: &TrainingOptions,
    ) -> Result<Graph, PassError> {
        self.with_state(INFER, &mut g, states, o)?;
        Ok(g)
    }

    fn with_state(
        &mut self,
        then: &[Pass],
        g: &mut Graph,
        states: &[StateRecord],
        o: &TrainingOptions,
    ) -> Result<(), PassError> {
        let mut cx = Cx { training: o.clone(), choice: Choice::State(states.to_vec()), ..Cx::default() };
        self.prepared(then, g, &mut cx)
    }

    fn prepared(&mut self, then: &[Pass], g: &mut Graph, cx: &mut Cx) -> Result<(), PassError> {
        // A fault of the output is reported before the work.
        for loss in cx.training.losses() {
            let output = cx.training.output_of(g, loss)?;
            if g.value(output).ty.shape.iter().flatten().any(|d| d.known() == Some(0)) {
                let (name, ty) = (g.name(output), &g.value(output).ty);
                return Err(PassError::unfit(format!("output `{name}` has no elements: {ty}")));
            }
        }
        if let Some((id, why)) = g.nodes().find_map(|id| Some((id, unfit(g, id)?))) {
            return Err(PassError::unfit(format!("{} {why}; no engine runs the model", g.site(id))));
        }
        self.run(PREPARE, g, cx)?;
        // An inference graph has no loss.
        if then.iter().any(|pass| pass.name == APPEND_LOSS.name) {
            cx.teacher = self.teacher(g, &cx.training)?;
        }
        self.run_to_emit(then, g, cx)
    }

    /// The teacher, brought to the student's operator set and batch.
    fn teacher(&mut self, student: &Graph, o: &TrainingOptions) -> Result<Option<Teacher>, PassError> {
        let Some(Teacher::Graph(teacher)) = &o.teacher else { return Ok(o.teacher.clone()) };
        let mut teacher = teacher.clone();
        let mut training = TrainingOptions { opset: student.opsets.get("").copied(), teacher: None, ..o.clone() };
        if matches!(rebatch::current(student), Ok(Current::Dynamic(_))) {
            training.batch = Some(Batch::Dynamic);
        }
        let mut cx = Cx { training, ..Cx::default() };
        self.run(PREPARE_TEACHER, &mut teacher, &mut cx)?;
        Ok(Some(Teacher::Graph(teacher)))
    }
}

/// Why no engine runs a node of the source, where that can be told.
fn unfit(g: &Graph, id: NodeId) -> Option<String> {
    let opset = *g.opsets.get("")?;
    let known = |op: &&Op| op.domain.is_empty() && schema::at("", &op.name, opset).is_some_and(|s| !s.deprecated());
    let stated = g.op(id).filter(known).and_then(|_| Use::of(g, id)?.unfit(opset));
    stated.or_else(|| ops::misfit(g, id).map(|e| format!("does not fit its operands: {e}")))
}
