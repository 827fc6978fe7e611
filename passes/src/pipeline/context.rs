//! The options of passes, and what they find beside the graph.

use super::PassError;
use super::gradient::Seed;
use super::training::TrainingOptions;
use crate::analysis::residual::Chain;
use crate::contract::{GradientRecord, LossRecord, Quantised, StateKind, StateRecord};
use crate::ir::{Graph, NodeId, ValueId};
use crate::refusal::{Applied, Refusal};
use crate::transform::Gradients;
use crate::transform::adapters::AdapterOptions;
use crate::transform::loss::teacher::Teacher;
use crate::transform::loss_scale::LossScale;
use crate::transform::narrow::Narrowed;
use crate::transform::optimizer::{StateTensor, Trained, Update};
use crate::transform::recompute::Recomputed;
use crate::transform::route::{RouteOptions, Routed};
use indexmap::IndexMap;
use std::collections::HashSet;

/// Which initializers become state.
#[derive(Clone, Debug, Default)]
pub enum Choice {
    /// Those that train by the training options.
    #[default]
    Training,
    /// The state of a training graph, for its evaluation graph.
    State(Vec<StateRecord>),
    /// These values, for their gradients.
    Named(Vec<String>),
}

/// What was asked for, and what earlier passes found.
#[derive(Default)]
pub struct Cx {
    /// How to route; the router's defaults where absent.
    pub route: RouteOptions,
    /// The chains that can be routed, where the caller has looked for them already.
    pub chains: Option<Vec<Chain>>,
    /// Which adapters to add, if any.
    pub adapters: Option<AdapterOptions>,
    /// The nodes inside the source's residual branches, where the caller has looked for them already.
    pub branches: Option<HashSet<NodeId>>,
    /// How to train.
    pub training: TrainingOptions,
    /// Which initializers become state.
    pub choice: Choice,
    /// The value that is differentiated, where it is not the loss.
    pub of: Option<String>,
    /// Outputs whose gradients are wanted, each with its cotangent.
    pub cotangents: Vec<(String, Seed)>,
    /// Operator set of the forward graph, if it is to be another one.
    pub opset: Option<i64>,
    /// Nodes that nobody reads but the source has. They stay.
    pub keep: HashSet<NodeId>,

    /// Notes on the routers.
    pub routed: Routed,
    /// What passes refused to change.
    pub refused: Vec<Refusal>,
    /// Names of separated and tied parameters, each with the other name its tensor has in the source.
    pub aliases: IndexMap<String, String>,
    /// The source's own initializers, by name.
    pub own: HashSet<String>,
    /// Initializers that became state.
    pub chosen: Vec<(ValueId, StateKind)>,
    /// Float initializers that do not train, with the reason.
    pub frozen: Vec<(String, String)>,
    /// Number of half-precision tensors that have a float32 master copy.
    pub masters: usize,
    /// What is quantised, where that is trained.
    pub quantised: Quantised,
    /// Names of the source's dropouts, which are active.
    pub dropouts: Vec<String>,
    /// Running statistics.
    pub statistics: Vec<StateTensor>,
    /// Number of batch normalisations whose momentum is 1 in the source.
    pub still: usize,
    /// The loss.
    pub loss: Option<ValueId>,
    /// The teacher of distillations, prepared.
    pub teacher: Option<Teacher>,
    /// Every loss by itself, in order: what is recorded of it, and its value.
    pub losses: Vec<(LossRecord, ValueId)>,
    /// Values through which no gradient goes.
    pub constant: Vec<ValueId>,
    /// What computes in a narrow type.
    pub narrowed: Option<Narrowed>,
    /// The loss scale.
    pub loss_scale: Option<LossScale>,
    /// Cotangents of all values on the way from what trains to the loss.
    pub cotangents_of: Gradients,
    /// What the backward pass computes again.
    pub recomputed: Option<Recomputed>,
    /// Tensors that train, with their gradients.
    pub trained: Vec<Trained>,
    /// The outputs that are their gradients, where there are such outputs.
    pub gradients: Vec<GradientRecord>,
    /// The optimiser's part.
    pub update: Option<Update>,
    /// Names of the tensors that train.
    pub trainable: Vec<String>,
    /// State, in output order.
    pub states: Vec<StateRecord>,

    /// Number of bfloat16 operators that compute in float32, between casts.
    pub widened: usize,

    /// Changes that are still allowed, where there is a limit.
    pub changes_left: Option<usize>,
}

impl Cx {
    /// A count of changes under the limit, if there is one.
    pub(super) fn count(&self) -> Applied {
        Applied { left: self.changes_left, ..Applied::default() }
    }

    /// The scalar that is differentiated.
    pub(super) fn loss(&self, g: &Graph) -> Result<ValueId, PassError> {
        match &self.of {
            Some(name) => value(g, name),
            None => self.loss.ok_or(PassError::Missing("loss")),
        }
    }
}

/// The value of a name that the caller gave.
pub(super) fn value(g: &Graph, name: &str) -> Result<ValueId, PassError> {
    g.find(name).ok_or_else(|| PassError::unfit(format!("the model has no value `{name}`")))
}
