//! The learned topology: which earlier states the blocks came to read.

use super::graph::TrainingGraph;
use crate::engine::ort::stepper::DeviceState;
use crate::error::Failure;
use crate::topology::weights::weights;
use crate::topology::{Network, Weights};

/// How often the log tells the weights over a run, about.
pub(super) const LOGGED: u64 = 50;

/// With fewer shortcuts than this there is next to nothing to learn.
pub(super) const WORTH: usize = 2;

/// The routed network of a training graph, as checkpoints describe it.
pub(super) fn network(t: &TrainingGraph) -> Result<Option<Network>, Failure> {
    let name = t.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().replace(".train.", "."));
    Network::of(&t.graph, name).map_err(|e| Failure::input(e).at(&t.path))
}

/// The router's weights in a running state; `None` where the graph has no router, or the state lacks its tensors.
pub(super) fn weights_now(t: &TrainingGraph, state: &DeviceState) -> Option<Vec<Weights>> {
    let held = |name: &str| state.tensor(name).map(|t| t.to_f32());
    let default = |name: &str| t.graph.initializer(t.graph.find(name)?)?.to_f32().ok();
    weights(t.router.as_ref()?, &|name| held(name).or_else(|| default(name))).ok()
}
