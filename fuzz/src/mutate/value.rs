//! Changes after which a graph surely computes something else: an element of an initializer from which one path of sums and
//! moves leads to an output.

use crate::below;
use ancre_passes::random::Random;
use onnx_protobuf::{GraphProto, ModelProto, NodeProto, TensorProto};

/// Changes an element; false where no such path leads to one.
pub(super) fn change(m: &mut ModelProto, r: &mut Random) -> bool {
    let standard = m.functions.is_empty();
    let Some(g) = m.graph.as_mut().filter(|_| standard) else { return false };
    let Some(name) = parameter(g, r) else { return false };
    let Some(t) = g.initializer.iter_mut().find(|t| t.name == name) else { return false };
    add_one(t, r)
}

/// The initializer at the end of a path from an output that nothing leaves.
fn parameter(g: &GraphProto, r: &mut Random) -> Option<String> {
    let mut at = g.output.get(below(r, g.output.len()))?.name.clone();
    for _ in 0..24 {
        let uses = g.node.iter().flat_map(|n| &n.input).chain(g.output.iter().map(|o| &o.name)).filter(|n| **n == at);
        if uses.count() != 1 || is_captured(g, &at) {
            return None;
        }
        let Some(node) = g.node.iter().find(|n| n.output.contains(&at)) else {
            return (!g.input.iter().any(|i| i.name == at)).then_some(at);
        };
        at = operand(g, node, r)?;
    }
    None
}

fn is_captured(g: &GraphProto, name: &str) -> bool {
    let inner = g.node.iter().flat_map(|n| &n.attribute).flat_map(|a| a.g.as_ref().into_iter().chain(&a.graphs));
    inner.into_iter().any(|s| s.node.iter().any(|n| n.input.iter().any(|i| i == name)) || is_captured(s, name))
}

/// An operand on which the result depends wherever it is finite.
fn operand(g: &GraphProto, node: &NodeProto, r: &mut Random) -> Option<String> {
    if !node.domain.is_empty() {
        return None;
    }
    // An input with a default stands for its default.
    let has_default = |name: &String| g.initializer.iter().any(|t| t.name == *name);
    let is_input = |name: &String| g.input.iter().any(|i| i.name == *name) && !has_default(name);
    let at = match node.op_type.as_str() {
        "Add" | "Sub" | "Concat" | "Sum" => below(r, node.input.len()),
        "Neg" | "Identity" | "Reshape" | "Transpose" | "Flatten" | "Squeeze" | "Unsqueeze" => 0,
        "Mul" if node.input.iter().any(is_input) => node.input.iter().position(|i| !is_input(i))?,
        "MatMul" | "Gather" if node.input.first().is_some_and(is_input) => 1,
        "LayerNormalization" => 2,
        "Conv" => 2,
        _ => return None,
    };
    node.input.get(at).filter(|n| !n.is_empty()).cloned()
}

/// Adds one to an element of moderate size.
fn add_one(t: &mut TensorProto, r: &mut Random) -> bool {
    if t.data_type != 1 || t.data_location.value() == 1 {
        return false;
    }
    let changed = |old: f32| old.is_finite().then_some(if old.abs() < 1000.0 { old + 1.0 } else { 0.5 });
    let count = t.raw_data.len() / 4;
    let at = below(r, count.max(t.float_data.len()));
    if let Some(bytes) = t.raw_data.get_mut(4 * at..4 * at + 4)
        && let Ok(old) = bytes.try_into().map(f32::from_le_bytes)
        && let Some(new) = changed(old)
    {
        bytes.copy_from_slice(&new.to_le_bytes());
        return true;
    }
    match t.float_data.get(at).copied().and_then(changed) {
        Some(new) if count == 0 => {
            t.float_data[at] = new;
            true
        }
        _ => false,
    }
}
