//! The softmax or sigmoid that a loss contains itself.

use super::{LossError, LossKind};
use crate::ir::{Graph, NodeId, Op, ValueId, ValueType};
use crate::ops::{Along, Class, axes_of};

/// How logits become the probabilities that the source hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Squash {
    /// `Softmax` or `LogSoftmax`, over this axis.
    Softmax(usize),
    /// `Sigmoid`.
    Sigmoid,
}

/// The softmax or sigmoid an output comes out of, perhaps through a change of type or shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Squashed {
    /// Which function. The axis of a softmax is counted in the output.
    pub squash: Squash,
    /// The logits before it.
    pub logits: ValueId,
    /// Nodes after it that change the shape, the last first.
    shapes: Vec<NodeId>,
}

/// The softmax or sigmoid an output comes out of, and the logits before it.
pub fn squashed(g: &Graph, output: ValueId) -> Option<Squashed> {
    let (mut v, mut shapes) = (output, Vec::new());
    loop {
        let op = g.op(v.node).filter(|op| op.domain.is_empty())?;
        match op.name.as_str() {
            "Identity" => {}
            "Cast" if g.is_float(v) => {}
            _ if Class::of(op) == Class::Layout => shapes.push(v.node),
            _ => break,
        }
        v = g.operand(v.node, 0).filter(|from| g.is_float(*from))?;
    }
    let op = g.op(v.node)?;
    let logits = g.operand(v.node, 0)?;
    if op.is("Sigmoid") {
        return Some(Squashed { squash: Squash::Sigmoid, logits, shapes });
    }
    if !op.is("Softmax") && !op.is("LogSoftmax") {
        return None;
    }
    let (axes, ty) = (axes_of(g, v.node)?, g.tensor_type(v)?);
    // Before opset 13 all axes from one on are normalised together.
    let mut over = (0..ty.rank()).filter(|a| axes.along(axes.result(0)[*a]) == Along::Whole);
    let axis = over.next()?;
    if over.any(|a| !ty.shape[a].is_one()) {
        return None;
    }
    let axis = shapes.iter().rev().try_fold(axis, |axis, node| axes_of(g, *node)?.forward(0, axis))?;
    Some(Squashed { squash: Squash::Softmax(axis), logits, shapes })
}

/// The value a loss reads for a model output: the logits before a trailing softmax or sigmoid that the loss itself contains, in the
/// output's shape.
pub(super) fn logits_of(
    g: &mut Graph,
    output: ValueId,
    kind: LossKind,
    class_axis: Option<usize>,
) -> Result<ValueId, LossError> {
    let Some(found) = squashed(g, output) else { return Ok(output) };
    let why = match found.squash {
        Squash::Softmax(axis) if Some(axis) == class_axis => return Ok(reshaped(g, &found)),
        Squash::Sigmoid if kind.is_binary() => return Ok(reshaped(g, &found)),
        Squash::Softmax(_) if kind.is_binary() => {
            format!("a softmax, whose loss is cross-entropy; {} reads independent logits", kind.name())
        }
        Squash::Sigmoid if kind.has_classes() => {
            format!("a sigmoid, whose loss is bce; {} reads logits of exclusive classes", kind.name())
        }
        _ => return Ok(output),
    };
    Err(LossError::Unfit(format!("output `{}` comes out of {why}", g.name(output))))
}

/// The logits, with the changes of shape that the source applies after the squash.
fn reshaped(g: &mut Graph, found: &Squashed) -> ValueId {
    let mut v = found.logits;
    for node in found.shapes.iter().rev() {
        let Some(op) = g.op(*node).cloned() else { continue };
        let mut operands = g.operands(*node).to_vec();
        operands[0] = Some(v);
        let ty = g.value(g.result(*node, 0)).ty.clone();
        let dtype = g.value(v).ty.dtype;
        let new = g.add_op("", Op { source: None, ..op }, &operands);
        v = g.push_result(new, "loss/logits", ValueType { dtype, ..ty });
        g.node_mut(new).name = g.name(v).to_string();
    }
    v
}
