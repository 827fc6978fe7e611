//! The verifier. Invariants of every graph, at every stage:
//!
//! 1. Every edge leads from an existing result, and the edges into a node are those that its list of operands names.
//! 2. Value names are unique and not empty where the value is read or is an output.
//! 3. The graph has no cycle.
//! 4. Graph outputs exist; a node listed as input is an input or an initializer.
//! 5. Where an operator's shape rule can tell its results' types, they agree with the recorded ones (symbolic dimensions agree
//!    with anything).
//! 6. A value captured by a subgraph still has the name the subgraph reads.
//! 7. A router's values exist, and an operator of a router (`ancre.Route…`) names one of the graph, whose logits and gate it
//!    reads; a route has a row of it, and as many sources as the row reads.
//!
//! At [`Stage::Legal`] also:
//!
//! 8. No abstract operator (`ancre.*`) is left.
//! 9. Every operator of the standard domain that a pass added exists in the graph's operator set, with its attributes, operands and
//!    types, and means there what it means in the newest operator set.

use crate::ir::{ANCRE, Attr, Dim, Graph, NodeId, RouterId, TensorType, ValueId};
use crate::onnx;
use crate::onnx::schema::{self, meaning::Use};
use crate::ops;
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
        let sound = check_edges(g, id, &mut found);
        for v in g.results(id) {
            let name = g.name(v);
            let read = g.is_needed(v);
            if name.is_empty() {
                if read {
                    found.push(format!("2: {} has a nameless result that is read", g.site(id)));
                }
            } else if !names.insert(name) || g.find(name) != Some(v) {
                found.push(format!("2: the name `{name}` is not unique or not registered"));
            }
        }
        if sound {
            check_types(g, id, &mut found);
            check_captures(g, id, &mut found);
            check_router(g, id, &mut found);
            if stage == Stage::Legal {
                check_legal(g, id, &mut found);
            }
        }
    }
    for (id, r) in &g.routers {
        let gone = r.values().filter(|v| !g.contains(*v)).count();
        if gone > 0 {
            found.push(format!("7: {gone} values of router {id} are gone"));
        }
    }
    for id in g.inputs().iter().filter(|id| g.op(**id).is_some()) {
        found.push(format!("4: {} is listed as an input", g.site(*id)));
    }
    for (i, o) in g.outputs().iter().enumerate() {
        if !g.contains(o.value) {
            found.push(format!("4: output {i} is result {} of a node that has fewer, or is gone", o.value.slot));
        }
    }
    if let Some(node) = g.node_on_cycle() {
        found.push(format!("3: {} is on a cycle", g.site(node)));
    }
    if found.is_empty() { Ok(()) } else { Err(found) }
}

/// Checks the edges into a node; returns whether its operands can be looked at.
fn check_edges(g: &Graph, id: NodeId, found: &mut Vec<String>) -> bool {
    let before = found.len();
    if !g.edges_agree(id) {
        found.push(format!("1: the edges into {} are not its list of operands", g.site(id)));
    }
    for v in g.reads(id) {
        if v.slot as usize >= g.node(v.node).results().len() {
            found.push(format!("1: {} reads result {} of {}, which has fewer", g.site(id), v.slot, g.site(v.node)));
        }
    }
    found.len() == before
}

fn check_types(g: &Graph, id: NodeId, found: &mut Vec<String>) {
    found.extend(mistyped(g, id).iter().map(|m| m.violation(g)));
}

/// A value that is recorded with another type than its operator's rule tells.
pub struct Mistyped {
    /// The value.
    pub value: ValueId,
    /// The type that is recorded.
    pub have: TensorType,
    /// What the rule tells.
    pub want: TensorType,
}

impl Mistyped {
    /// The violation in words.
    pub fn violation(&self, g: &Graph) -> String {
        let Mistyped { value, have, want } = self;
        format!("5: `{}` of {} is recorded as {have}, its rule says {want}", g.name(*value), g.site(value.node))
    }
}

/// The results of a node that violate invariant 5.
pub fn mistyped(g: &Graph, id: NodeId) -> Vec<Mistyped> {
    // It is no violation where the rule cannot tell the types: operands may have none, or values be computed in the graph.
    let inferred = g.op(id).and_then(|op| ops::result_types(op, g.operands(id), g)?.ok());
    let one = |(value, want): (ValueId, TensorType)| {
        let have = g.tensor_type(value).filter(|have| !have.may_be(&want))?;
        // Extents that nothing names have another name each time.
        let unnamed = |d: &Dim| if d.is_unnamed() { Dim::symbol("?") } else { d.clone() };
        let want = TensorType::new(want.dtype, want.shape.iter().map(unnamed).collect::<Vec<_>>());
        Some(Mistyped { value, have, want })
    };
    g.results(id).zip(inferred.unwrap_or_default()).filter_map(one).collect()
}

fn check_router(g: &Graph, id: NodeId, found: &mut Vec<String>) {
    let Some(op) = g.op(id).filter(|o| o.domain == ANCRE && o.name.starts_with("Route")) else { return };
    let router = op.attrs.int("router").unwrap_or(-1);
    let Some(spec) = usize::try_from(router).ok().and_then(|id| g.routers.get(&RouterId(id))) else {
        found.push(format!("7: {} names router {router}, which the graph has not", g.site(id)));
        return;
    };
    if g.operand(id, 0) != Some(spec.logits) || g.operand(id, 1) != spec.gate {
        found.push(format!("7: {} does not read the logits and the gate of router {router}", g.site(id)));
    }
    let row = usize::try_from(op.attrs.int("row").unwrap_or(-1)).ok().filter(|row| *row < spec.blocks());
    let sources = g.node(id).operand_count().saturating_sub(ops::ROUTE_SOURCES);
    if op.name == "Route" && row.is_none_or(|row| spec.reads(row) != sources) {
        found.push(format!("7: {} has {sources} sources, its row in router {router} reads others", g.site(id)));
    }
}

fn check_captures(g: &Graph, id: NodeId, found: &mut Vec<String>) {
    let Some(op) = g.op(id).filter(|_| g.captures(id).next().is_some()) else { return };
    let mut read = Vec::new();
    let opaque = op.attrs.0.values().filter_map(|a| if let Attr::Opaque(a) = a { Some(a) } else { None });
    for graph in opaque.flat_map(|a| a.g.iter().chain(&a.graphs)) {
        // The import has checked how deep subgraphs are nested.
        let _ = onnx::free_names(graph, 1, &mut read, &mut HashSet::new());
    }
    for v in g.captures(id).filter(|v| !read.iter().any(|name| name == g.name(*v))) {
        found.push(format!("6: a subgraph of {} captures a value now named `{}`", g.site(id), g.name(v)));
    }
}

fn check_legal(g: &Graph, id: NodeId, found: &mut Vec<String>) {
    let Some(op) = g.op(id) else { return };
    if op.domain == ANCRE {
        found.push(format!("8: {} has not been lowered", g.site(id)));
    }
    let opset = g.opsets.get("").copied().unwrap_or(0);
    if op.domain.is_empty()
        && op.source.is_none()
        && let Some(node) = Use::of(g, id)
    {
        let before =
            || node.last_change(opset, schema::NEWEST, opset).map(|v| format!("means something else before opset {v}"));
        if let Some(what) = node.unfit(opset).or_else(before) {
            found.push(format!("9: {} {what}; the graph has opset {opset}", g.site(id)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, Op, Source};
    use crate::text::parse;
    use onnx_protobuf::{AttributeProto, GraphProto, NodeProto};

    const TEXT: &str = "g (float[2] x) => (float[2] b) { a = Relu (x)  b = Add (a, x) }";

    fn graph() -> Graph {
        let g = parse(TEXT).unwrap();
        assert_eq!(verify(&g, Stage::Legal), Ok(()));
        g
    }

    fn at(g: &Graph, name: &str) -> ValueId {
        g.find(name).unwrap()
    }

    /// Only this invariant is broken, once, and the message says where.
    fn breaks(g: &Graph, number: u32, part: &str) {
        let found = verify(g, Stage::Legal).unwrap_err();
        assert!(found.len() == 1 && found[0].starts_with(&format!("{number}: ")) && found[0].contains(part), "{found:#?}");
    }

    #[test]
    fn an_operand_is_an_existing_result() {
        let mut g = graph();
        let second = ValueId { slot: 1, ..at(&g, "x") };
        g.set_operand(at(&g, "b").node, 0, Some(second));
        breaks(&g, 1, "node `b` (Add) reads result 1 of node `x` (graph input)");
    }

    #[test]
    fn what_is_read_has_a_name() {
        let mut g = graph();
        let x = at(&g, "x");
        let node = g.add_op("nameless", Op::new("Relu", Attrs::new()), &[Some(x)]);
        let v = g.push_result(node, "", g.value(x).ty.clone());
        assert_eq!(verify(&g, Stage::Legal), Ok(()), "nobody reads it yet");
        g.set_operand(at(&g, "b").node, 0, Some(v));
        breaks(&g, 2, "node `nameless` (Relu) has a nameless result");
    }

    #[test]
    fn nothing_reads_itself() {
        let mut g = graph();
        let (a, b) = (at(&g, "a"), at(&g, "b"));
        g.set_operand(a.node, 0, Some(b));
        breaks(&g, 3, "is on a cycle");
    }

    #[test]
    fn outputs_exist() {
        let mut g = graph();
        g.add_output(ValueId { slot: 3, ..at(&g, "a") }, None);
        breaks(&g, 4, "output 1 is result 3");
    }

    #[test]
    fn inputs_are_sources() {
        let mut g = graph();
        let tensor = crate::ir::Tensor::f32s(&[2], &[0.0, 1.0]);
        let attrs = Attrs::new().with("value", tensor);
        g.replace_op(at(&g, "x").node, Op::new("Constant", attrs), &[]);
        breaks(&g, 4, "`x` (Constant) is listed as an input");
    }

    #[test]
    fn recorded_types_are_the_rules_types() {
        let mut g = graph();
        let (wrong, b) = (TensorType::fixed(crate::ir::DType::F32, &[3]), at(&g, "b"));
        g.set_type(b, wrong.into());
        breaks(&g, 5, "`b` of node `b` (Add) is recorded as f32[3], its rule says f32[2]");
    }

    #[test]
    fn captured_values_keep_their_names() {
        let mut g = graph();
        let x = at(&g, "x");
        let inner =
            NodeProto { input: vec!["a".into()], output: vec!["y".into()], op_type: "Relu".into(), ..Default::default() };
        let body = GraphProto { node: vec![inner], ..Default::default() };
        let branch = AttributeProto { name: "then_branch".into(), g: Some(body).into(), ..Default::default() };
        let branch = Attr::Opaque(Box::new(branch));
        let op = Op { source: Some(Default::default()), ..Op::new("If", Attrs::new().with("then_branch", branch)) };
        let node = g.add_op("if", op, &[Some(x)]);
        g.push_result(node, "y", g.value(x).ty.clone());
        let a = at(&g, "a");
        g.add_capture(node, a);
        assert_eq!(verify(&g, Stage::Legal), Ok(()));
        g.rename(a, "renamed");
        breaks(&g, 6, "node `if` (If) captures a value now named `renamed`");
    }

    #[test]
    fn operators_of_a_router_fit_it() {
        let text = r#"g (float[2] h0, float[2] f) => (float[2] h2) <float[2, 2] l = {…}> {
            h1 = Add (h0, f)  r = ancre.Route <router = 3, row = 1> (l, , h0, h1)  h2 = Add (r, f)
            @3 <form = "reassign", rule = "softmax", normalize = "incoming", scope = "stage"> (l, ) () () (h0, h1, h2) (, r) }"#;
        let breaks = |change: &dyn Fn(&mut Graph), part: &str| {
            let mut g = parse(text).unwrap();
            assert_eq!(verify(&g, Stage::Open), Ok(()));
            change(&mut g);
            let found = verify(&g, Stage::Open).unwrap_err();
            assert!(found.len() == 1 && found[0].starts_with("7: ") && found[0].contains(part), "{found:#?}");
        };
        breaks(&|g| g.routers.clear(), "names router 3, which the graph has not");
        breaks(&|g| g.routers[0].gate = g.find("f"), "does not read the logits and the gate");
        breaks(&|g| g.routers[0].states[0].slot = 9, "1 values of router 3 are gone");
        let extra = |g: &mut Graph| {
            let (state, value) = (at(g, "f"), at(g, "f"));
            g.routers[0].sources.push(Source { state, value });
        };
        breaks(&extra, "has 2 sources");
    }

    #[test]
    fn abstract_operators_are_lowered() {
        let mut g = graph();
        g.replace_op(at(&g, "a").node, Op::in_domain(ANCRE, "Strange", Attrs::new()), &[]);
        breaks(&g, 8, "node `a` (ancre.Strange) has not been lowered");
    }

    #[test]
    fn operators_exist_in_the_operator_set() {
        let mut g = graph();
        let (a, x) = (at(&g, "a"), at(&g, "x"));
        g.replace_op(a.node, Op::new("Gelu", Attrs::new()), &[Some(x)]);
        breaks(&g, 9, "node `a` (Gelu) exists from opset 20");
    }
}
