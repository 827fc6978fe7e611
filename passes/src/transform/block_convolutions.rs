//! Lets convolutions compute on channels in blocks, ONNX Runtime's own layout, where the target has it.
//!
//! `y = Conv (x, w)` becomes `y = ReorderOutput (Conv (ReorderInput (x), w in blocks))`, the middle in the operator set
//! `com.microsoft.nchwc`: the same sums in another order. Constant weights stay: the runtime lays those out once, and keeps blocks from
//! one layer to the next.

use crate::ir::{Graph, Kind, NodeId};
use crate::ops::blocks::Blocks;
use crate::ops::build::{BuildError, Builder};
use crate::target::Target;

/// Puts the convolutions for which that is faster into blocks; returns how many.
///
/// # Errors
/// When a node cannot be built.
pub fn block_convolutions(g: &mut Graph, target: &'static Target) -> Result<usize, BuildError> {
    if target.blocked_weight == 0 {
        return Ok(0);
    }
    let varies = varying(g);
    let has_fed_weight = |n: &NodeId| g.operand(*n, 1).is_some_and(|w| varies[w.node.index()]);
    let convolutions: Vec<NodeId> = g.nodes().filter(|n| g.is_op(*n, "Conv") && has_fed_weight(n)).collect();
    let mut blocks = Blocks::default();
    let mut changed = 0;
    let mut b = Builder::on(g, "", target);
    for id in convolutions {
        b.prefix = b.graph.node(id).name.clone();
        b.graph.insert_at(Some(id));
        changed += usize::from(blocks.convolve(&mut b, id)?);
    }
    g.insert_at(None);
    Ok(changed)
}

/// By node: does it depend on anything that is fed?
fn varying(g: &Graph) -> Vec<bool> {
    let mut varies = vec![false; g.node_bound()];
    for id in g.topological_order() {
        varies[id.index()] = match &g.node(id).kind {
            Kind::Input(_) => true,
            Kind::Initializer { overridable, .. } => *overridable,
            Kind::Op(_) => g.reads(id).any(|v| varies[v.node.index()]),
        };
    }
    varies
}
