//! Lets convolutions compute on channels in blocks, ONNX Runtime's own layout, where the target has it.

use crate::ir::{Graph, NodeId};
use crate::ops::blocks::{Blocks, NCHWC};
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
    let convolutions: Vec<NodeId> = g.nodes().filter(|n| g.op(*n).is_some_and(|op| op.is("Conv"))).collect();
    let mut blocks = Blocks::default();
    let mut changed = 0;
    let mut b = Builder::on(g, "", target);
    for id in convolutions {
        b.prefix = b.graph.node(id).name.clone();
        b.graph.insert_at(Some(id));
        changed += usize::from(blocks.convolve(&mut b, id)?);
    }
    g.insert_at(None);
    if g.nodes().any(|n| g.op(n).is_some_and(|op| op.domain == NCHWC)) {
        g.opsets.insert(NCHWC.into(), 1);
    }
    Ok(changed)
}
