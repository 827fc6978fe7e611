//! Form `input`: whatever leads from a block's input to its output reads the route in the input's place.

use super::RouterSpec;
use crate::ir::{Attrs, Graph, NodeId, Op, RouterId, ValueId};
use std::collections::{HashMap, HashSet};

/// A block that reads a route in the place of a state.
#[derive(Clone, Debug)]
pub(super) struct Fed {
    state: ValueId,
    route: ValueId,
    nodes: HashSet<NodeId>,
}

/// The nodes of each block of a chain, which lead from its input to its output.
pub(super) fn blocks(g: &Graph, states: &[ValueId]) -> Vec<HashSet<NodeId>> {
    let rank: HashMap<NodeId, usize> = g.topological_order().into_iter().enumerate().map(|(i, n)| (n, i)).collect();
    states.windows(2).map(|s| between(g, s[0], s[1], &rank)).collect()
}

fn between(g: &Graph, from: ValueId, to: ValueId, rank: &HashMap<NodeId, usize>) -> HashSet<NodeId> {
    let begins = rank.get(&from.node).copied();
    let (mut seen, mut next) = (HashSet::from([to.node]), vec![to.node]);
    while let Some(node) = next.pop() {
        for v in g.reads(node) {
            // What cannot run after the input does not read it.
            if rank.get(&v.node).copied() > begins && seen.insert(v.node) {
                next.push(v.node);
            }
        }
    }
    seen
}

/// Why blocks cannot read routes: a subgraph names what it reads.
pub(super) fn refusal(g: &Graph, states: &[ValueId], blocks: &[HashSet<NodeId>]) -> Option<String> {
    states.iter().zip(blocks).enumerate().find_map(|(k, (state, nodes))| {
        let captures = |(n, operand): &(NodeId, usize)| *operand >= g.node(*n).operand_count() && nodes.contains(n);
        let (node, _) = g.uses(*state).find(captures)?;
        Some(format!("a subgraph of {} in block {} reads its state `{}` by name", g.site(node), k + 1, g.name(*state)))
    })
}

/// What a chain's first block reads: the route of a block that the chain lies in, if that reads one.
pub(super) fn read(fed: &[Fed], states: &[ValueId]) -> Option<ValueId> {
    let holds = |f: &&Fed| f.state == states[0] && states.get(1).is_some_and(|end| f.nodes.contains(&end.node));
    fed.iter().rev().find(holds).map(|f| f.route)
}

/// Has a block's nodes read a route. A router that lies in the block has it for its first state from then on.
pub(super) fn feed(g: &mut Graph, state: ValueId, route: ValueId, nodes: HashSet<NodeId>) -> Fed {
    let is_inside = |r: &RouterSpec| !r.rows.is_empty() && r.rows.iter().all(|(_, v)| nodes.contains(&v.node));
    let (inner, others): (Vec<_>, Vec<_>) =
        g.routers.iter().partition(|(_, r)| r.states.first() == Some(&state) && is_inside(r));
    let inner: Vec<RouterId> = inner.into_iter().map(|(id, _)| *id).collect();
    let kept: HashSet<NodeId> = others.iter().flat_map(|(_, r)| r.rows.iter().map(|(_, v)| v.node)).collect();
    g.replace_uses(state, route, |n| nodes.contains(&n) && !kept.contains(&n));
    for id in inner {
        g.routers[&id].states[0] = route;
    }
    Fed { state, route, nodes }
}

/// Makes the value of an own column from the second on: what the last block added to what it read; in blocks of summaries together with what
/// those before it in its block added.
pub(super) fn add_delta(g: &mut Graph, router: &mut RouterSpec, id: usize, column: usize, [end, read]: [ValueId; 2]) {
    let ty = g.value(end).ty.clone();
    let mut make = |op: &str, what: &str, operands: [ValueId; 2]| {
        let name = format!("ancre/{id}/{what}_{column}");
        let node = g.add_op(&name, Op::new(op, Attrs::new()), &operands.map(Some));
        g.push_result(node, &name, ty.clone())
    };
    let begins = (column - 1).is_multiple_of(router.sparsity.summaries);
    let added = make("Sub", if begins { "delta" } else { "added" }, [end, read]);
    let before = router.deltas.last().copied().filter(|_| !begins);
    let delta = before.map_or(added, |before| make("Add", "delta", [before, added]));
    router.deltas.push(delta);
}
