//! Forms `reassign` and `augment`: puts a route in the place of a block's skip, or adds it to the block.

use super::RouterSpec;
use crate::analysis::residual::Join;
use crate::ir::{Attrs, Graph, Kind, NodeId, Op, ValueId};
use indexmap::IndexMap;

/// Nodes from the use where a join's skip path begins to the join, in order.
fn skip_path(g: &Graph, join: &Join) -> Vec<NodeId> {
    let mut path = vec![join.node];
    let mut at = join.node;
    // The join's own adds come first, down to the add that the skip enters.
    while let Some(earlier) =
        g.operands(at).iter().flatten().map(|v| v.node).find(|n| join.also.contains(n) && !path.contains(n))
    {
        path.push(earlier);
        at = earlier;
    }
    if at != join.entry.0
        && let Some(skip) = g.operand(at, join.skip_operand)
    {
        path.extend(way_back(g, skip.node, join.entry.0));
    }
    path.reverse();
    path
}

/// A shortest way from a node back to another along operands, both included. Skip paths are short.
fn way_back(g: &Graph, from: NodeId, to: NodeId) -> Vec<NodeId> {
    let mut reader: IndexMap<NodeId, Option<NodeId>> = IndexMap::from([(from, None)]);
    let mut next = 0;
    while let Some((&node, _)) = reader.get_index(next) {
        next += 1;
        if node == to {
            let mut way = vec![node];
            while let Some(Some(n)) = way.last().and_then(|n| reader.get(n)) {
                way.push(*n);
            }
            way.reverse();
            return way;
        }
        for v in g.operands(node).iter().flatten() {
            reader.entry(v.node).or_insert(Some(node));
        }
    }
    Vec::new()
}

/// Copies the nodes of a skip path, starting from another value; returns the copy of `result`, one of the last node's results.
fn copy_path(g: &mut Graph, path: &[NodeId], entry: (NodeId, usize), start: ValueId, result: ValueId) -> ValueId {
    // The node copied before, and its copy.
    let mut before: Option<(NodeId, NodeId)> = None;
    for id in path {
        let mut operands = g.operands(*id).to_vec();
        if *id == entry.0 {
            operands[entry.1] = Some(start);
        } else if let Some((old, new)) = before {
            for v in operands.iter_mut().flatten().filter(|v| v.node == old) {
                v.node = new;
            }
        }
        let Kind::Op(op) = g.node(*id).kind.clone() else { break };
        let results = g.node(*id).results().to_vec();
        let copy = g.add_op("", op, &operands);
        for r in results {
            let name = if r.name.is_empty() { r.name } else { format!("{}.routed", r.name) };
            g.push_result(copy, &name, r.ty);
        }
        let name = g.results(copy).map(|v| g.name(v)).find(|name| !name.is_empty()).unwrap_or_default().to_string();
        g.node_mut(copy).name = name;
        before = Some((*id, copy));
    }
    before.map_or(start, |(_, copy)| ValueId { node: copy, ..result })
}

/// Puts a route in the place of the identity path through a block's adds.
pub(super) fn reassign(g: &mut Graph, joins: &[Join], route: ValueId) {
    let mut carried = route;
    let Some((last, inner)) = joins.split_last() else { return };
    for join in inner {
        let path = skip_path(g, join);
        carried = copy_path(g, &path, join.entry, carried, join.sum);
    }
    let path = skip_path(g, last);
    // Other nodes may read the skip path too (the branch may share a cast of the state). They keep the original.
    let shared = path[..path.len() - 1].iter().any(|n| g.results(*n).map(|v| g.uses(v).count()).sum::<usize>() > 1);
    if !shared {
        g.set_operand(last.entry.0, last.entry.1, Some(carried));
        return;
    }
    // The value that the join reads of the node before it.
    let before = path[path.len() - 2];
    let read: Vec<ValueId> = g.operands(last.node).iter().flatten().copied().filter(|v| v.node == before).collect();
    let Some(old) = read.first().copied() else { return };
    let new = copy_path(g, &path[..path.len() - 1], last.entry, carried, old);
    g.replace_uses(old, new, |n| n == last.node);
}

/// Adds a route to a block's output.
pub(super) fn augment(g: &mut Graph, router: &mut RouterSpec, id: usize, row: usize, route: ValueId) {
    let block = router.states[row + 1];
    let ty = g.value(block).ty.clone();
    let name = format!("ancre/{id}/augment_{}", row + 1);
    let add = g.add_op(&name, Op::new("Add", Attrs::new()), &[Some(block), Some(route)]);
    let block_name = format!("{}.block", g.name(block));
    let sum = g.push_result(add, &block_name, ty);
    let was_output = g.is_output(block);
    g.replace_uses(block, sum, |n| n != add);
    if was_output {
        g.redirect_output(block, sum);
    }
    g.swap_names(block, sum);
    router.states[row + 1] = sum;
}
