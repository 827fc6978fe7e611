//! Puts a route in the place of a block's skip, or adds it to the block.

use super::Router;
use crate::analysis::residual::Join;
use crate::ir::{Attrs, Graph, Kind, NodeId, Op, ValueId};

/// Nodes from the use where a join's skip path begins to the join, in order.
fn skip_path(g: &Graph, join: &Join) -> Vec<NodeId> {
    let mut path = vec![join.node];
    let mut at = join.node;
    while at != join.entry.0 {
        // Backwards along the operand that leads to the entry; skip paths are short.
        let Some(next) = g.operands(at).iter().flatten().map(|v| v.node).find(|n| reaches(g, join.entry.0, *n, 16)) else {
            break;
        };
        path.push(next);
        at = next;
    }
    path.reverse();
    path
}

fn reaches(g: &Graph, from: NodeId, to: NodeId, depth: usize) -> bool {
    from == to || (depth > 0 && g.operands(to).iter().flatten().any(|v| reaches(g, from, v.node, depth - 1)))
}

/// Copies the nodes of a skip path, starting from another value; returns the copy of the last node's result.
fn copy_path(g: &mut Graph, path: &[NodeId], entry: (NodeId, usize), start: ValueId) -> ValueId {
    let mut carried = start;
    let mut replaced: Option<ValueId> = None;
    for id in path {
        let mut operands = g.operands(*id);
        if *id == entry.0 {
            operands[entry.1] = Some(carried);
        } else {
            for v in operands.iter_mut().filter(|v| **v == replaced) {
                *v = Some(carried);
            }
        }
        let Kind::Op(op) = g.node(*id).kind.clone() else { break };
        let old = g.result(*id, 0);
        let ty = g.value(old).ty.clone();
        let name = format!("{}.routed", g.name(old));
        let node = g.add_op("", op, &operands);
        carried = g.push_result(node, &name, ty);
        g.node_mut(node).name = g.name(carried).to_string();
        replaced = Some(old);
    }
    carried
}

pub(super) fn reassign(g: &mut Graph, joins: &[Join], route: ValueId) {
    let mut carried = route;
    let Some((last, inner)) = joins.split_last() else { return };
    for join in inner {
        let path = skip_path(g, join);
        carried = copy_path(g, &path, join.entry, carried);
    }
    let path = skip_path(g, last);
    // What lies on the skip path may be read by others too (a cast of the state that the branch shares): those keep the original.
    let shared = path[..path.len() - 1].iter().any(|n| g.uses(g.result(*n, 0)).len() > 1);
    if !shared {
        g.set_operand(last.entry.0, last.entry.1, Some(carried));
        return;
    }
    let old = g.result(path[path.len() - 2], 0);
    let new = copy_path(g, &path[..path.len() - 1], last.entry, carried);
    g.replace_uses(old, new, |n| n == last.node);
}

pub(super) fn augment(g: &mut Graph, router: &mut Router, row: usize, route: ValueId) {
    let block = router.states[row + 1];
    let ty = g.value(block).ty.clone();
    let name = format!("ancre/{}/augment_{}", router.chain, row + 1);
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
    router.sums.push(add);
}
