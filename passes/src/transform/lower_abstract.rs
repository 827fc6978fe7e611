//! Replaces those abstract operators (`ancre.*`) by plain ones that can be lowered one by one: batch normalisation in training mode,
//! gradients of convolutions' weights. Their rules choose by the target ([`OpRule::lower`](ops::OpRule::lower)).

use crate::ir::{ANCRE, Graph, NodeId};
use crate::ops::{
    self,
    build::{BuildError, Builder},
};
use crate::target::Target;

/// Lowers them all. The nodes that replace one stand at its place in the file.
///
/// # Errors
/// When a node cannot be built.
pub fn lower_abstract(g: &mut Graph, target: &'static Target) -> Result<(), BuildError> {
    let is_abstract = |n: &NodeId| g.op(*n).is_some_and(|op| op.domain == ANCRE && !op.name.starts_with("Route"));
    let nodes: Vec<NodeId> = g.nodes().filter(is_abstract).collect();
    let mut b = Builder::on(g, "", target);
    for &id in &nodes {
        let Some(rule) = b.graph.op(id).and_then(ops::rule) else { continue };
        b.prefix = b.graph.node(id).name.clone();
        b.graph.insert_at(Some(id));
        let plain = rule.lower(&mut b, id)?;
        for (slot, new) in plain.into_iter().enumerate() {
            let old = b.graph.result(id, slot as u32);
            b.graph.supplant(old, new);
        }
    }
    g.insert_at(None);
    // Nodes are removed last: a new node would get a freed node's number, and with it another place in the file.
    nodes.into_iter().for_each(|id| g.remove(id));
    Ok(())
}
