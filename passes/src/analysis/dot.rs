//! The residual structure as a drawing.

use super::residual::{Join, ResidualStructure};
use crate::ir::{Graph, NodeId, ValueId};
use std::collections::HashMap;
use std::fmt::Write;

/// Draws states, branches and skips in Graphviz' language: `dot -Tsvg`.
pub fn draw(g: &Graph, s: &ResidualStructure) -> String {
    let mut text = String::from(
        "digraph residual {\n  rankdir=TB;\n  node [fontname=\"Helvetica\", fontsize=10];\n  edge [fontname=\"Helvetica\", fontsize=9];\n",
    );
    let mut drawn: HashMap<ValueId, String> = HashMap::new();
    let mut ends: HashMap<NodeId, String> = HashMap::new();
    for c in &s.chains {
        let _ = writeln!(text, "  subgraph cluster_chain{} {{", c.id);
        let (k, post) = (c.joins.len(), &c.post);
        let after = if post == "none" { String::new() } else { format!(", then {post}") };
        let title = format!("chain {}: {k} {}, {}{after}", c.id, if k == 1 { "block" } else { "blocks" }, c.ty);
        let _ = writeln!(text, "    label={}; style=rounded; color=gray;", quoted(&title));
        for (k, v) in c.states.iter().enumerate() {
            let id = format!("c{}h{k}", c.id);
            let label = format!("h{k}\n{}", g.name(*v));
            let _ = writeln!(text, "    {id} [shape=ellipse, label={}];", quoted(&label));
            drawn.entry(*v).or_insert(id);
        }
        for (k, j) in c.joins.iter().enumerate() {
            let (from, to) = (format!("c{}h{k}", c.id), format!("c{}h{}", c.id, k + 1));
            block(&mut text, g, j, &format!("c{}b{}", c.id, k + 1), &from, &to);
            ends.insert(j.node, to);
        }
        text.push_str("  }\n");
    }
    for (i, j) in s.projections.iter().enumerate() {
        let from = drawn.get(&j.state).cloned().unwrap_or_else(|| {
            let id = format!("p{i}from");
            let _ = writeln!(text, "  {id} [shape=ellipse, label={}];", quoted(g.name(j.state)));
            id
        });
        // The block's result is drawn already where it is the first state of a chain.
        let starts = s.chains.iter().find(|c| produces(g, j, c.states[0]));
        let to = starts.and_then(|c| drawn.get(&c.states[0])).cloned().unwrap_or_else(|| {
            let id = format!("p{i}to");
            let _ = writeln!(text, "  {id} [shape=ellipse, label={}];", quoted(g.name(j.sum)));
            id
        });
        block(&mut text, g, j, &format!("p{i}b"), &from, &to);
    }
    text.push_str("}\n");
    text
}

/// Is the value the join's sum, or one operator after it?
fn produces(g: &Graph, j: &Join, v: ValueId) -> bool {
    v.node == j.node || g.reads(v.node).any(|r| r.node == j.node)
}

fn block(text: &mut String, g: &Graph, j: &Join, id: &str, from: &str, to: &str) {
    let label = format!("{}\n{}", j.signature.join("·"), g.site(j.node).name);
    let _ = writeln!(text, "    {id} [shape=box, label={}];", quoted(&label));
    let gate = if j.scaled_branch { " [label=\"scaled\"]" } else { "" };
    let _ = writeln!(text, "    {from} -> {id};\n    {id} -> {to}{gate};");
    let skip = match (j.kind, j.scaled_skip) {
        (super::residual::JoinKind::Projection, _) => "label=\"projected\", style=dashed",
        (_, true) => "label=\"scaled\", style=bold",
        _ => "style=bold",
    };
    let _ = writeln!(text, "    {from} -> {to} [{skip}];");
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n"))
}
