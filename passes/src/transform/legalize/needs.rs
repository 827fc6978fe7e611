//! The lowest operator set that a source's operators can be taken down to.

use crate::ir::{Attr, Graph, NodeId};
use crate::onnx::op_of;
use crate::onnx::schema::meaning::{RESPELLED, Use, says_nothing};
use crate::onnx::schema::{at, versions};
use onnx_protobuf::{AttributeProto, GraphProto};

/// The smallest operator set from `target` on (at most the source's own) that has every operator as it is used.
pub(super) fn smallest(g: &Graph, from: i64, target: i64) -> i64 {
    if from <= target {
        return target;
    }
    let needed = g.nodes().map(|id| of_node(g, id, from, target)).max().unwrap_or(target);
    needed.clamp(target, from)
}

/// A node that needs a later operator set than `to`, and that operator set.
pub(super) fn beyond(g: &Graph, from: i64, to: i64) -> Option<(NodeId, i64)> {
    let needed = |id: NodeId| (id, of_node(g, id, from, to));
    if from <= to { None } else { g.nodes().map(needed).find(|(_, n)| *n > to) }
}

fn of_node(g: &Graph, id: NodeId, from: i64, least: i64) -> i64 {
    let Some(node) = Use::of(g, id).filter(|u| u.op.domain.is_empty()) else { return least };
    let opaque = |a: &Attr| if let Attr::Opaque(a) = a { of_subgraphs(a, from, least) } else { least };
    let inside = node.op.attrs.0.values().map(opaque).max();
    node.lowest(from, least).max(inside.unwrap_or(least))
}

/// What the nodes of subgraphs need. Their types are not known here, and attributes that came later are not taken away.
fn of_subgraphs(a: &AttributeProto, from: i64, least: i64) -> i64 {
    let mut needed = least;
    for n in subgraphs(a).flat_map(|g| &g.node) {
        let op = op_of(n);
        if op.domain.is_empty() {
            needed = needed.max(Use::untyped(&op, n.input.len(), n.output.len()).lowest(from, least));
            let came = |name: &str| versions("", &op.name).iter().find(|s| s.attribute(name).is_some()).map(|s| s.since);
            needed = needed.max(op.attrs.0.keys().filter_map(|name| came(name)).max().unwrap_or(least));
        }
        needed = needed.max(n.attribute.iter().map(|a| of_subgraphs(a, from, least)).max().unwrap_or(least));
    }
    needed
}

/// The subgraphs that an attribute holds.
pub(super) fn subgraphs(a: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    a.g.as_ref().into_iter().chain(&a.graphs)
}

/// Removes attributes that the operator set does not know and that say nothing, and renames values that it spells differently.
pub(super) fn respell(g: &mut Graph, from: i64, opset: i64) {
    for id in g.nodes().collect::<Vec<_>>() {
        let Some(op) = g.op(id).filter(|op| op.domain.is_empty() && !op.attrs.0.is_empty()) else { continue };
        let Some(schema) = at("", &op.name, opset) else { continue };
        let silent = |(name, a): &(&String, &Attr)| schema.attribute(name).is_none() && says_nothing(op, name, a);
        let silent: Vec<String> = op.attrs.0.iter().filter(silent).map(|(name, _)| name.clone()).collect();
        let other = RESPELLED.iter().filter(|(name, ..)| *name == op.name).find_map(|(_, attr, since, old, new)| {
            let (here, there) = if from < *since { (old, new) } else { (new, old) };
            ((from < *since) != (opset < *since) && op.attrs.str(attr) == Some(*here)).then_some((*attr, *there))
        });
        if silent.is_empty() && other.is_none() {
            continue;
        }
        g.edit_attrs(id, |attrs| {
            attrs.0.retain(|name, _| !silent.contains(name));
            if let Some((attr, value)) = other {
                attrs.0.insert(attr.into(), value.into());
            }
        });
    }
}
