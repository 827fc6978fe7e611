//! Why an add is or is not a residual join, in sentences.

use super::residual::{Chain, Join, JoinKind, ResidualStructure};
use crate::ir::{Graph, NodeId, ValueId};
use std::fmt::Write;

/// Says why the node or value of that name is or is not a residual join; `None` when nothing has the name.
pub fn why(g: &Graph, s: &ResidualStructure, name: &str) -> Option<String> {
    let value = g.find(name);
    let named = g.nodes().filter(|n| g.op(*n).is_some() && g.node(*n).name == name);
    let mut nodes: Vec<NodeId> = named.collect();
    if let Some(v) = value
        && !nodes.contains(&v.node)
    {
        nodes.push(v.node);
    }
    if nodes.is_empty() {
        return None;
    }
    let mut text = String::new();
    for n in nodes {
        let _ = writeln!(text, "{}", about_node(g, s, n));
    }
    if let Some(line) = value.and_then(|v| about_state(g, s, v)) {
        let _ = writeln!(text, "{line}");
    }
    Some(text)
}

/// Lists every float add that joins nothing, with the reason.
pub fn rejected(g: &Graph, s: &ResidualStructure) -> String {
    if s.rejected.is_empty() {
        return "Every floating-point add is a residual add, or there is none.\n".into();
    }
    let mut text = String::new();
    for r in &s.rejected {
        let _ = writeln!(text, "{}: {}", g.site(r.node), r.reason);
    }
    text
}

fn about_node(g: &Graph, s: &ResidualStructure, n: NodeId) -> String {
    let joins_here = |j: &&Join| j.node == n || j.also.contains(&n);
    for c in &s.chains {
        if let Some(k) = c.joins.iter().position(|j| joins_here(&j)) {
            return join_text(g, &c.joins[k], n, Some((c, k + 1)));
        }
    }
    if let Some(j) = s.projections.iter().find(joins_here) {
        return join_text(g, j, n, None);
    }
    let site = g.site(n);
    if let Some(r) = s.rejected.iter().find(|r| r.node == n) {
        return format!("{site} is not a residual add: {}.", r.reason);
    }
    match g.op(n) {
        Some(op) if matches!(op.name.as_str(), "Add" | "Sum") => {
            format!("{site} is not a residual add: it adds integers, which is arithmetic on shapes or indices.")
        }
        _ => format!("{site} is no add, so it joins no skip."),
    }
}

fn join_text(g: &Graph, j: &Join, n: NodeId, place: Option<(&Chain, usize)>) -> String {
    let site = g.site(n);
    let kind = match j.kind {
        JoinKind::Identity => "an identity skip",
        JoinKind::Projection => "a projected skip",
    };
    let mut text =
        format!("{site} is a residual add with {kind}.\n  state   `{}` ({})", g.name(j.state), g.value(j.state).ty);
    let way = if j.direct {
        format!("is operand {} itself", j.skip_operand)
    } else {
        format!("starts at {}, arrives as operand {}", g.site(j.entry.0), j.skip_operand)
    };
    let scale = if j.scaled_skip { ", scaled on the way" } else { "" };
    let _ = write!(text, "\n  skip    {way}{scale}");
    let gate = if j.scaled_branch { ", multiplied by a scale or gate at its end" } else { "" };
    let _ = write!(text, "\n  branch  {} ({} nodes){gate}", j.signature.join("·"), j.branch_nodes);
    if let Some((c, k)) = place {
        let _ = write!(text, "\n  block   {k} of {} in chain {}, followed by: {}", c.joins.len(), c.id, c.post);
    }
    if !j.also.is_empty() {
        let all: Vec<String> = j.also.iter().chain([&j.node]).map(|n| format!("`{}`", g.site(*n).name)).collect();
        let _ = write!(text, "\n  one sum of several branches, written as {}", all.join(", "));
    }
    text
}

fn about_state(g: &Graph, s: &ResidualStructure, v: ValueId) -> Option<String> {
    let found: Vec<String> = s
        .chains
        .iter()
        .flat_map(|c| {
            c.states.iter().enumerate().filter(|(_, h)| **h == v).map(move |(k, _)| format!("h_{k} of chain {}", c.id))
        })
        .collect();
    (!found.is_empty()).then(|| format!("The value `{}` is the state {}.", g.name(v), found.join(" and ")))
}
