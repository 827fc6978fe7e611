//! Moves the weights that subgraphs hold to the graph itself, from where subgraphs read them by name.
//!
//!   before  y = If <then_branch: { w = {…} t = MatMul (x, w) }, …> (c)
//!   after   y = If <then_branch: { t = MatMul (x, w) }, …> (c)             with the initializer w
//!
//! What trains has to be a tensor of the graph, in the forward graph too: a trained state is put back by its name. Exact.

use super::is_control_flow;
use super::splice::{Names, rename_captures};
use crate::ir::{Graph, NodeId, Tensor};
use crate::onnx::{captured_names, operator, subgraphs, subgraphs_mut};
use onnx_protobuf::{GraphProto, NodeProto, TensorProto};
use std::collections::HashMap;

/// Moves every float tensor of more than one element; returns how many.
pub fn lift_weights(g: &mut Graph) -> usize {
    let nodes: Vec<NodeId> = g.topological_order().into_iter().filter(|n| is_control_flow(g, *n)).collect();
    let mut lifter = Lifter { count: HashMap::new(), lifted: Vec::new() };
    for source in nodes.iter().filter_map(|n| g.op(*n)?.source.clone()) {
        subgraphs(&source).for_each(|sub| count_names(sub, &mut lifter.count));
    }
    let mut moved = 0;
    for id in nodes {
        let Some(source) = g.op(id).and_then(|op| op.source.clone()) else { continue };
        let mut node = (*source).clone();
        subgraphs_mut(&mut node).for_each(|sub| lifter.take(g, sub));
        let lifted = std::mem::take(&mut lifter.lifted);
        if lifted.is_empty() {
            continue;
        }
        moved += lifted.len();
        install(g, id, node, lifted);
    }
    moved
}

struct Lifter {
    /// How many subgraphs define a name.
    count: HashMap<String, usize>,
    lifted: Vec<(String, Tensor)>,
}

impl Lifter {
    /// Takes the weights out of a subgraph and of those in it.
    fn take(&mut self, g: &mut Graph, sub: &mut GraphProto) {
        let home = g.home.clone();
        let given: Vec<String> = sub.output.iter().map(|o| o.name.clone()).collect();
        let mut names = Names::new();
        let mut lift = |g: &mut Graph, name: &str, t: &TensorProto| -> bool {
            let Some(tensor) =
                Tensor::from_proto(t.clone(), home.clone()).ok().filter(|t| t.dtype().is_float() && t.len() > 1)
            else {
                return false;
            };
            // An output of a subgraph has to be its own.
            if given.iter().any(|o| o == name) {
                return false;
            }
            if self.count.get(name) == Some(&1) {
                g.release(name);
            }
            let outer = g.fresh_name(name);
            g.reserve(&outer);
            names.insert(name.to_string(), outer.clone());
            self.lifted.push((outer, tensor));
            true
        };
        sub.initializer.retain(|t| !lift(g, &t.name.clone(), t));
        sub.node.retain(|n| {
            let constant = n.op_type == "Constant" && n.domain.is_empty();
            let value = n.attribute.iter().find(|a| a.name == "value").and_then(|a| a.t.as_ref()).filter(|_| constant);
            !n.output.first().zip(value).is_some_and(|(name, t)| lift(g, name, t))
        });
        for n in &mut sub.node {
            for name in &mut n.input {
                if let Some(outer) = names.get(name) {
                    name.clone_from(outer);
                }
            }
            rename_captures(n, &names);
            subgraphs_mut(n).for_each(|sub| self.take(g, sub));
        }
    }
}

/// Gives a node its subgraphs without the weights, which it captures now.
fn install(g: &mut Graph, id: NodeId, node: NodeProto, lifted: Vec<(String, Tensor)>) {
    g.insert_at(Some(id));
    for (name, tensor) in lifted {
        g.release(&name);
        g.add_initializer(&name, tensor, false);
    }
    g.insert_at(None);
    let operands = g.operands(id).to_vec();
    let captures = captured_names(&node).unwrap_or_default();
    if let Ok(op) = operator(node, g.home.clone()) {
        g.replace_op(id, op, &operands);
        for v in captures.iter().filter_map(|name| g.find(name)).collect::<Vec<_>>() {
            g.add_capture(id, v);
        }
    }
}

fn count_names(sub: &GraphProto, count: &mut HashMap<String, usize>) {
    let own = sub.initializer.iter().map(|t| &t.name).chain(sub.node.iter().flat_map(|n| &n.output));
    own.for_each(|name| *count.entry(name.clone()).or_default() += 1);
    sub.node.iter().flat_map(subgraphs).for_each(|sub| count_names(sub, count));
}
