//! The nodes of residual branches.

use super::{Join, JoinKind, ResidualStructure};
use crate::ir::{Graph, NodeId};
use std::collections::HashSet;

/// The nodes inside the residual branches of all joins: between a state and its add, without a projection on the skip.
pub fn branch_nodes(g: &Graph, found: &ResidualStructure) -> HashSet<NodeId> {
    let identities = found.chains.iter().flat_map(|c| &c.joins);
    identities.chain(&found.projections).flat_map(|j| branch_of(g, j)).collect()
}

fn branch_of(g: &Graph, j: &Join) -> Vec<NodeId> {
    let after = g.descendants([j.state.node]);
    let mut nodes: HashSet<NodeId> = g.ancestors([j.node]).intersection(&after).copied().collect();
    nodes.remove(&j.node);
    nodes.remove(&j.state.node);
    if j.kind == JoinKind::Projection {
        let from_entry = g.descendants([j.entry.0]);
        // The skip enters the first of the join's adds that reads it.
        let adds = j.also.iter().chain([&j.node]);
        let ends = adds.filter_map(|add| Some(g.operand(*add, j.skip_operand)?.node));
        if let Some(end) = ends.into_iter().find(|end| from_entry.contains(end)) {
            let skip = g.ancestors([end]);
            nodes.retain(|n| !(skip.contains(n) && from_entry.contains(n)));
        }
    }
    nodes.into_iter().collect()
}
