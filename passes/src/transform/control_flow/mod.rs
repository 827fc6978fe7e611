//! Puts in the place of a control flow node what it does, where that is decided before the graph runs.
//!
//!   before  y = If <then_branch: { t = Squeeze (x) }, else_branch: …> (c)      c: x has one column, as its type says
//!   after   y = Squeeze (x)
//!
//! Exporters write squeezes so. The condition is decided by the [evaluator](crate::ops::eval), from constants and types. A `Loop` or
//! `Scan` of a known number of steps becomes that many copies of its body, if floats go into it and come out of it: no gradient
//! passes a body. Exact.

mod lift;
mod splice;
mod unroll;

pub use lift::lift_weights;

use crate::analysis::types::{Walk, declared, is_resolved, is_unnamed, merge};
use crate::ir::{Attr, Graph, Kind, NodeId, ValueId, ValueType};
use crate::ops::eval::{Facts, reads_type};
use crate::refusal::{Applied, Why};
use indexmap::IndexSet;
use onnx_protobuf::GraphProto;
use splice::Spliced;
use std::collections::{HashMap, HashSet, VecDeque};

/// Nodes that unrolling one node may lead to.
pub const MOST_NODES: usize = 20_000;

/// Replaces every control flow node that can be, producers first, those that come out of others too.
pub fn inline_control_flow(g: &mut Graph, applied: &mut Applied) {
    if !g.nodes().any(|n| is_control_flow(g, n)) {
        return;
    }
    let order = g.topological_order();
    let mut inliner =
        Inliner { declared: declared(g), walk: Walk { g, arrays: HashMap::new() }, ours: HashSet::new(), applied };
    order.into_iter().for_each(|id| inliner.visit(id));
}

fn is_control_flow(g: &Graph, id: NodeId) -> bool {
    g.op(id).is_some_and(|op| op.domain.is_empty() && matches!(op.name.as_str(), "If" | "Loop" | "Scan"))
}

struct Inliner<'g, 'a> {
    walk: Walk<&'g mut Graph>,
    /// What the source declares of values, by name.
    declared: HashMap<String, ValueType>,
    /// Results of nodes that came out of subgraphs.
    ours: HashSet<ValueId>,
    applied: &'a mut Applied,
}

impl Inliner<'_, '_> {
    /// Types a node's results; replaces it first, if it is one that can be.
    fn visit(&mut self, id: NodeId) {
        let site = self.walk.g.site(id);
        if !is_control_flow(self.walk.g, id) || self.applied.left == Some(0) {
            return self.walk.visit(id, &self.declared, &mut None);
        }
        let replaced = match site.op.as_str() {
            "If" => self.branch(id),
            _ if !self.carries_floats(id) => Ok(None),
            "Loop" => self.repeat(id).map(Some),
            _ => self.scan(id).map(Some),
        };
        match replaced {
            Ok(Some(values)) => {
                self.install(id, &values);
                self.applied.allows(&site);
            }
            Ok(None) => self.walk.visit(id, &self.declared, &mut None),
            Err(why) => {
                self.applied.refused.push(why.at(site));
                self.walk.visit(id, &self.declared, &mut None);
            }
        }
    }

    /// What an `If` comes to, where its condition is decided.
    fn branch(&mut self, id: NodeId) -> Result<Option<Vec<ValueId>>, Why> {
        let Some(condition) = self.walk.g.operand(id, 0).and_then(|v| self.flag(v)) else {
            return Err(undecided(self.walk.g, id));
        };
        let branch = body(self.walk.g, id, if condition { "then_branch" } else { "else_branch" })?;
        self.body(&branch, &[], id).map(Some)
    }

    /// The values of a body's outputs, with its nodes put into the graph at `id`'s place.
    fn body(&mut self, body: &GraphProto, actual: &[ValueId], id: NodeId) -> Result<Vec<ValueId>, Why> {
        let Spliced { nodes, outputs } = splice::splice(self.walk.g, body, actual, id)?;
        self.ours.extend(nodes.iter().flat_map(|n| self.walk.g.results(*n)));
        nodes.into_iter().for_each(|node| self.visit(node));
        // Only now: what replaced a node of the body has taken its results' names.
        let find = |name: &String| self.walk.g.find(name);
        let values: Option<Vec<ValueId>> = outputs.iter().map(find).collect();
        values.ok_or_else(|| Why::Form("gives a value that nothing produces".into()))
    }

    /// Gives what replaces a node's results their names and readers, and removes the node.
    fn install(&mut self, id: NodeId, values: &[ValueId]) {
        let g = &mut *self.walk.g;
        let mut named = Vec::new();
        for (old, new) in g.results(id).zip(values).filter(|(old, _)| !g.name(*old).is_empty()).collect::<Vec<_>>() {
            // A value's name can become another's once, and not while a subgraph reads it.
            let free = self.ours.remove(new) && !g.is_captured(*new);
            let new = if free { *new } else { splice::copy(g, *new, id) };
            let ty = merge(&g.value(old).ty, g.value(new).ty.clone());
            g.set_type(new, ty);
            g.take_over(old, new);
            named.push(new);
        }
        g.remove(id);
        self.ours.extend(named);
    }

    /// The truth of a value, if it is known.
    fn flag(&self, v: ValueId) -> Option<bool> {
        self.number(v).map(|n| n != 0)
    }

    /// The one integer that a value is, if it is known.
    fn number(&self, v: ValueId) -> Option<i64> {
        match self.walk.array(v)?.elements.as_slice() {
            [one] => one.int(),
            _ => None,
        }
    }

    /// Do floats that may be computed from weights go into a node, and floats come out of it?
    fn carries_floats(&self, id: NodeId) -> bool {
        let g = &*self.walk.g;
        let float = |v: ValueId| g.value(v).ty.dtype.is_none_or(|t| t.is_float());
        g.results(id).any(float) && g.reads(id).any(float)
    }
}

/// The graph that is an attribute of a node.
fn body(g: &Graph, id: NodeId, name: &str) -> Result<GraphProto, Why> {
    let attr = g.op(id).and_then(|op| op.attrs.get(name));
    let graph = if let Some(Attr::Opaque(a)) = attr { a.g.as_ref().cloned() } else { None };
    graph.ok_or_else(|| Why::Form(format!("has no graph `{name}`")))
}

/// Why a control flow node stays, in words that follow "it"; what it waits for is named.
pub(crate) fn refusal(g: &Graph, id: NodeId) -> Option<Why> {
    is_control_flow(g, id).then(|| undecided(g, id))
}

/// The nearest control flow node that stays among what a node is computed from by way of values of unknown types, and why it does.
pub(crate) fn before(g: &Graph, id: NodeId) -> Option<(NodeId, Why)> {
    let (mut queue, mut seen) = (VecDeque::from([id]), HashSet::from([id]));
    while let Some(node) = queue.pop_front() {
        if let Some(why) = refusal(g, node) {
            return Some((node, why));
        }
        let open = g.reads(node).filter(|v| !is_resolved(&g.value(*v).ty)).map(|v| v.node);
        queue.extend(open.filter(|n| seen.insert(*n)));
    }
    None
}

fn undecided(g: &Graph, id: NodeId) -> Why {
    let (what, operands, shape) = match g.op(id) {
        Some(op) if op.is("If") => ("which branch it takes", 1, false),
        Some(op) if op.is("Loop") => ("how many steps it runs", 2, false),
        _ => ("how many steps it runs", usize::MAX, true),
    };
    let operands = g.operands(id).iter().take(operands).flatten().map(|v| (*v, shape)).collect();
    let by: Vec<String> = open_facts(g, operands).into_iter().collect();
    let is_float =
        |name: &String| g.find(name).is_some_and(|v| matches!(g.node(v.node).kind, Kind::Input(_)) && g.is_float(v));
    let fixable = !by.is_empty() && !by.iter().any(is_float);
    Why::Undecided { what, by, fixable }
}

/// The inputs and the extents of inputs that values, or (where the flag says so) only their shapes, are computed from.
fn open_facts(g: &Graph, mut values: VecDeque<(ValueId, bool)>) -> IndexSet<String> {
    let (mut open, mut seen) = (IndexSet::new(), HashSet::new());
    while let Some((v, shape)) = values.pop_front() {
        if !seen.insert((v, shape)) {
            continue;
        }
        if shape
            && let Some(dims) = &g.value(v).ty.shape
            && !dims.iter().any(is_unnamed)
        {
            open.extend(dims.iter().flat_map(|d| d.symbols()).map(str::to_string));
            continue;
        }
        match &g.node(v.node).kind {
            Kind::Input(_) if !shape => _ = open.insert(g.name(v).to_string()),
            Kind::Op(op) => {
                let only_shape = |i: usize| shape || reads_type(&op.name, i);
                values.extend(g.reads(v.node).enumerate().map(|(i, v)| (v, only_shape(i))));
            }
            _ => {}
        }
    }
    open
}

#[cfg(test)]
mod tests;
