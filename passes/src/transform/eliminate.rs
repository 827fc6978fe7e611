//! Removes nodes whose results nobody reads. Graph inputs stay.

use crate::ir::{Graph, Kind, NodeId};

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
