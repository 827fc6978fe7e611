//! Assembles training and evaluation graphs. The contract is the table of inputs and outputs in the README's "training graph".

use super::{Choice, Cx, EVAL, PREPARE, Pass, PassError, PassManager, TRAIN};
use crate::contract::StateRecord;
use crate::ir::Graph;
use crate::target::{self, Target};
use crate::transform::loss::{LossKind, LossOptions, loss_output};
use crate::transform::optimizer::{OptimizerKind, OptimizerOptions};
use crate::transform::rebatch::Batch;

/// Which initializers train.
#[derive(Clone, Debug, Default)]
pub struct TrainableChoice {
    /// Exactly these (and the router's own); `None`: by role.
    pub exactly: Option<Vec<String>>,
    /// Also these (globs), whatever their role.
    pub also: Vec<String>,
    /// Not these (globs).
    pub frozen: Vec<String>,
    /// By role, only what the last linear map before the output and what follows it read.
    pub head_only: bool,
}

/// How to build a training graph.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct TrainingOptions {
    pub loss: LossOptions,
    pub optimizer: OptimizerOptions,
    pub output: Option<String>,
    pub trainable: TrainableChoice,
    /// Operator set of the graph; `None`: 18, or the smallest later one that can express the source.
    pub opset: Option<i64>,
    /// Seed of the dropout masks.
    pub seed: u64,
    /// Another batch than the graph's number; the caller has seen that the source can be rebuilt for it.
    pub batch: Option<Batch>,
    pub grad_outputs: bool,
    /// Keep batch normalisation as in evaluation.
    pub frozen_bn: bool,
    /// The machine whose costs choose among formulations.
    pub target: &'static Target,
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
            optimizer,
            output: None,
            trainable: TrainableChoice::default(),
            opset: None,
            seed: 0,
            batch: None,
            grad_outputs: false,
            frozen_bn: false,
            target: &target::CPU,
        }
    }

    /// Does batch normalisation stay as in evaluation?
    pub(super) fn freezes_statistics(&self) -> bool {
        self.frozen_bn || self.trainable.head_only
    }
}

/// A training graph and what is worth reporting about it.
pub struct Training {
    /// The graph, legal and ready to be emitted.
    pub graph: Graph,
    /// State, in output order.
    pub states: Vec<StateRecord>,
    /// Trained tensors.
    pub trainable: Vec<String>,
    /// Float initializers that do not train, with the reason.
    pub frozen: Vec<(String, String)>,
    /// Name of the target input.
    pub target: String,
    /// Names of the source's dropouts, which are active.
    pub dropouts: Vec<String>,
    /// Number of half-precision tensors that have a float32 master copy.
    pub masters: usize,
    /// Number of bfloat16 operators that compute in float32, between casts.
    pub widened: usize,
}

/// Builds the training graph of a routed (not yet lowered) graph, which it consumes.
///
/// # Errors
/// When the loss does not fit, an operator has no derivative, or nothing would train.
pub fn build_training_graph(g: Graph, o: &TrainingOptions) -> Result<Training, PassError> {
    PassManager::default().training_graph(g, o)
}

impl PassManager<'_> {
    /// As [`build_training_graph`].
    ///
    /// # Errors
    /// When the loss does not fit, an operator has no derivative, or nothing would train.
    pub fn training_graph(&mut self, mut g: Graph, o: &TrainingOptions) -> Result<Training, PassError> {
        let mut cx = Cx { training: o.clone(), ..Cx::default() };
        self.prepared(TRAIN, &mut g, &mut cx)?;
        Ok(Training {
            graph: g,
            trainable: cx.trainable,
            states: cx.states,
            frozen: cx.frozen,
            target: cx.target,
            dropouts: cx.dropouts,
            masters: cx.masters,
            widened: cx.widened,
        })
    }

    /// Builds the evaluation graph of a routed graph, which it consumes: forward and loss, no updates. Normalisations and dropouts are
    /// as in evaluation; the state that a training graph carries (parameters, router, running statistics) can be fed under the same
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
        let mut cx = Cx { training: o.clone(), choice: Choice::State(states.to_vec()), ..Cx::default() };
        self.prepared(EVAL, &mut g, &mut cx)?;
        Ok(g)
    }

    fn prepared(&mut self, then: &[Pass], g: &mut Graph, cx: &mut Cx) -> Result<(), PassError> {
        // Says early what would be said late.
        loss_output(g, cx.training.output.as_deref())?;
        self.run(PREPARE, g, cx)?;
        self.run_to_emit(then, g, cx)
    }
}
