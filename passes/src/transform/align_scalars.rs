//! Gives numbers that meet tensors with trailing axes of extent 1 as many axes.
//!
//! `w [O, C, 1, 1] * s []` becomes `w * s [1, 1, 1, 1]`. ONNX Runtime's CPU kernels pair axes from the last one on: a number that has
//! run out of axes before the first extent that is not 1 is taken anew for every element, which takes a hundred times as long. So
//! weights of pointwise convolutions and statistics along a last axis would be multiplied.

use crate::ir::{Dim, Graph, NodeId, Tensor, ValueId};
use crate::ops::build::{BuildError, Builder};
use std::collections::HashMap;

/// Element-wise operators whose operands broadcast both ways. `Pow` is not one: to whole powers it multiplies, but for single elements.
const BROADCAST: [&str; 9] = ["Add", "Div", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Mul", "Sub"];

/// Tensors of fewer elements gain less than a microsecond.
const SMALL: i64 = 256;

/// Reshapes such numbers; returns how many operands changed.
///
/// # Errors
/// When a node cannot be built.
pub fn align_scalars(g: &mut Graph) -> Result<usize, BuildError> {
    let mut changed = 0;
    let mut aligned: HashMap<(ValueId, usize), ValueId> = HashMap::new();
    let nodes: Vec<NodeId> = g.nodes().collect();
    let mut b = Builder::new(g, "align");
    for id in nodes {
        let Some((slot, number, rank)) = misaligned(b.graph, id) else { continue };
        b.graph.insert_at(Some(id));
        let wide = match aligned.get(&(number, rank)) {
            Some(v) => *v,
            None => {
                let v = with_axes(&mut b, number, rank)?;
                aligned.insert((number, rank), v);
                v
            }
        };
        b.graph.set_operand(id, slot, Some(wide));
        changed += 1;
    }
    g.insert_at(None);
    Ok(changed)
}

/// The operand that is one number with fewer axes than the result has trailing ones, and the result's rank. The operand beside it may
/// be a state, whose declared extents are symbols.
fn misaligned(g: &Graph, id: NodeId) -> Option<(usize, ValueId, usize)> {
    g.op(id).filter(|op| op.domain.is_empty() && BROADCAST.contains(&op.name.as_str()))?;
    let [Some(a), Some(b)] = g.operands(id)[..] else { return None };
    let result = g.tensor_type(g.result(id, 0))?;
    let trailing = result.shape.iter().rev().take_while(|d| d.is_one()).count();
    if trailing == 0 || trailing == result.rank() || result.elements().known().is_some_and(|n| n < SMALL) {
        return None;
    }
    let is_short = |v: ValueId| g.tensor_type(v).is_some_and(|ty| ty.shape.iter().all(Dim::is_one) && ty.rank() <= trailing);
    let (slot, number) = [a, b].into_iter().enumerate().find(|(_, v)| is_short(*v))?;
    Some((slot, number, result.rank()))
}

fn with_axes(b: &mut Builder, number: ValueId, rank: usize) -> Result<ValueId, BuildError> {
    let ty = b.ty(number)?;
    let stored = b.graph.constant(number).and_then(|t| t.bytes().ok()).map(|bytes| bytes.into_owned());
    if let Some(bytes) = stored {
        let name = b.graph.name(number).to_string();
        return Ok(b.constant(&name, Tensor::from_bytes(ty.dtype, &vec![1; rank], bytes)));
    }
    let axes: Vec<i64> = (0..(rank - ty.rank()) as i64).collect();
    b.unsqueeze(number, &axes)
}
