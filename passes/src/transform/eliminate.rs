//! Removes nodes whose results nobody reads. Graph inputs stay, unless their removal is asked for.

use crate::ir::{Graph, Kind, NodeId, ValueId};

/// Removes those graph inputs that nothing needs and whose names may go, so that they need not be fed.
pub fn eliminate_inputs(g: &mut Graph, may_go: impl Fn(&str) -> bool) {
    let dead = |v: ValueId| !g.is_needed(v) && may_go(g.name(v));
    let unread: Vec<NodeId> = g.inputs().iter().copied().filter(|n| dead(g.result(*n, 0))).collect();
    unread.into_iter().for_each(|n| g.remove(n));
}

/// Removes dead operators and initializers; returns how many. Those that `keep` holds of stay: nodes that the source itself left
/// unread, so that an untouched model is emitted whole.
pub fn eliminate_dead(g: &mut Graph, keep: impl Fn(&Graph, NodeId) -> bool) -> usize {
    let mut removed = 0;
    let order = g.topological_order();
    for id in order.into_iter().rev() {
        let dead = g.results(id).all(|v| !g.is_needed(v));
        let source = matches!(g.node(id).kind, Kind::Input(_));
        if dead && !source && !keep(g, id) {
            g.remove(id);
            removed += 1;
        }
    }
    g.drop_dead_routers();
    removed
}
