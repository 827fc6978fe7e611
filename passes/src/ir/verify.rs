//! The verifier. Invariants of every graph, at every stage:
//!
//! 1. Every edge leads from an existing result, and no operand of a node has two edges.
//! 2. Value names are unique and not empty where the value is read or is an output.
//! 3. The graph has no cycle.
//! 4. Graph outputs exist; a node listed as input is an input or an overridable initializer.
//! 5. Where an operator's shape rule can tell its results' types, they agree with the recorded ones (symbolic dimensions agree
//!    with anything).
//! 6. A value captured by a subgraph still has the name the subgraph reads.
//!
//! At [`Stage::Legal`] also:
//!
//! 7. No abstract operator (`ancre.*`) is left.
//! 8. Every operator of the standard domain that a rule describes exists in the graph's operator set, in the form it has.

use super::{ANCRE, Graph, Kind, NodeId, Op, TensorType};
use crate::ops::{self, Infer};
use std::collections::HashSet;

/// How far a graph has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// As imported or in the middle of the pipeline.
    Open,
    /// Ready to be emitted.
    Legal,
}

/// Checks all invariants and reports every violation.
pub fn verify(g: &Graph, stage: Stage) -> Result<(), Vec<String>> {
    let mut found = Vec::new();
    let mut names = HashSet::new();
    for id in g.nodes() {
        check_edges(g, id, &mut found);
        for v in g.results(id) {
            let name = g.name(v);
            let read = !g.uses(v).is_empty() || g.is_output(v);
            if name.is_empty() {
                if read {
                    found.push(format!("2: {} has a nameless result that is read", g.site(id)));
                }
            } else if !names.insert(name.to_string()) || g.find(name) != Some(v) {
                found.push(format!("2: the name `{name}` is not unique or not registered"));
            }
        }
        check_types(g, id, &mut found);
        check_captures(g, id, &mut found);
        if stage == Stage::Legal {
            check_legal(g, id, &mut found);
        }
    }
    for id in g.inputs() {
        if matches!(g.node(*id).kind, Kind::Op(_)) {
            found.push(format!("4: {} is listed as an input", g.site(*id)));
        }
    }
    if let Err(site) = g.topological_order() {
        found.push(format!("3: {site} is on a cycle"));
    }
    if found.is_empty() { Ok(()) } else { Err(found) }
}

fn check_edges(g: &Graph, id: NodeId, found: &mut Vec<String>) {
    let reads = g.reads(id);
    let distinct = g.operands(id).iter().flatten().count() + g.captures(id).len();
    if reads.len() != distinct {
        found.push(format!("1: {} has two edges for one operand, or an operand out of range", g.site(id)));
    }
    for v in reads {
        if v.slot as usize >= g.node(v.node).results().len() {
            found.push(format!("1: {} reads result {} of {}, which has fewer", g.site(id), v.slot, g.site(v.node)));
        }
    }
}

fn check_types(g: &Graph, id: NodeId, found: &mut Vec<String>) {
    let Some(op) = g.op(id) else { return };
    let Some(rule) = ops::rule(op) else { return };
    let operands = g.operands(id);
    let types: Vec<Option<TensorType>> = operands.iter().map(|v| v.and_then(|v| g.tensor_type(v))).collect();
    let ints = |i: usize| ops::constant_ints(g, operands.get(i).copied().flatten()?);
    let present = |i: usize| operands.get(i).is_some_and(Option::is_some);
    // A rule that cannot tell (operands of unknown type, values computed in the graph) is no violation.
    let Ok(inferred) = rule.infer(&Infer { op, types: &types, ints: &ints, present: &present }) else { return };
    for (v, want) in g.results(id).zip(inferred) {
        let Some(have) = g.tensor_type(v) else { continue };
        let agree = have.dtype == want.dtype
            && have.rank() == want.rank()
            && have.shape.iter().zip(&want.shape).all(|(a, b)| a == b || a.known().is_none() || b.known().is_none());
        if !agree {
            found.push(format!("5: `{}` of {} is recorded as {have}, its rule says {want}", g.name(v), g.site(id)));
        }
    }
}

fn check_captures(g: &Graph, id: NodeId, found: &mut Vec<String>) {
    let captures = g.captures(id);
    let Some(source) = g.op(id).and_then(|o| o.source.clone()) else { return };
    if captures.is_empty() {
        return;
    }
    let mut text = HashSet::new();
    for a in &source.attribute {
        for sub in a.g.as_ref().into_iter().chain(&a.graphs) {
            collect_names(sub, &mut text);
        }
    }
    for v in captures {
        if !text.contains(g.name(v)) {
            found.push(format!("6: a subgraph of {} captures a value now named `{}`", g.site(id), g.name(v)));
        }
    }
}

fn collect_names(graph: &onnx_protobuf::GraphProto, names: &mut HashSet<String>) {
    names.extend(graph.output.iter().map(|o| o.name.clone()));
    for n in &graph.node {
        names.extend(n.input.iter().cloned());
        for a in &n.attribute {
            for sub in a.g.as_ref().into_iter().chain(&a.graphs) {
                collect_names(sub, names);
            }
        }
    }
}

fn check_legal(g: &Graph, id: NodeId, found: &mut Vec<String>) {
    let Some(op) = g.op(id) else { return };
    if op.domain == ANCRE {
        found.push(format!("7: {} has not been lowered", g.site(id)));
    }
    let opset = g.opsets.get("").copied().unwrap_or(0);
    if op.domain.is_empty()
        && op.source.is_none()
        && let Some(rule) = ops::rule(op)
    {
        let (since, until) = forms(g, id, op, rule.since());
        if opset < since || until.is_some_and(|until| opset >= until) {
            let until = until.map(|v| format!(" until {v}")).unwrap_or_default();
            found.push(format!("8: {} exists from opset {since}{until} in this form, the graph has {opset}", g.site(id)));
        }
    }
}

/// First operator set that has an operator in the form a node of ours has, and the first that no longer has it. `since`: for the
/// form that the operator's rule describes, often a later one.
fn forms(g: &Graph, id: NodeId, op: &Op, since: i64) -> (i64, Option<i64>) {
    let listed = |name: &str| op.attrs.0.contains_key(name);
    let matrix = || g.operand(id, 0).and_then(|v| g.tensor_type(v)).is_some_and(|t| t.rank() == 2);
    match op.name.as_str() {
        // Before 13 the operand was taken for a matrix.
        "Softmax" | "LogSoftmax" if matrix() && op.attrs.int("axis", -1) == 1 => (1, None),
        "Slice" if listed("starts") => (1, Some(10)),
        "Squeeze" | "Unsqueeze" | "ReduceSum" if listed("axes") => (1, Some(13)),
        "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" if listed("axes") => (1, Some(18)),
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" if g.node(id).operand_count() == 1 => {
            (1, None)
        }
        "Pad" if listed("pads") => (2, Some(11)),
        // Before 7 operands were broadcast by attribute only.
        "Gemm" => (7, None),
        "MatMul" => (1, None),
        "AveragePool" if !listed("ceil_mode") && !listed("dilations") => (7, None),
        _ => (since, None),
    }
}
