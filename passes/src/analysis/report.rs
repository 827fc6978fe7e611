//! The residual structure for people and for programs.

use super::residual::{Chain, ResidualStructure};
use crate::ir::{Dim, Graph, NodeId};
use serde_json::{Value, json};
use std::fmt::Write;

/// Name of a node, or of its first result where it has none.
fn node_name(g: &Graph, n: NodeId) -> String {
    g.site(n).name
}

fn dim_json(d: &Dim) -> Value {
    match d.known() {
        Some(n) => n.into(),
        None => d.to_string().into(),
    }
}

/// The report of `inspect --json`.
pub fn inspect_json(g: &Graph, s: &ResidualStructure, model: &str) -> Value {
    let chains: Vec<Value> = s
        .chains
        .iter()
        .map(|c| {
            json!({
                "id": c.id,
                "blocks": c.joins.len(),
                "shape": c.ty.shape.as_ref().map(|s| s.iter().map(dim_json).collect::<Vec<_>>()),
                "dtype": c.ty.dtype.map(|t| t.name()),
                "post": c.post.name(),
                "scaled": c.scaled,
                "adds": c.joins.iter().map(|j| node_name(g, j.node)).collect::<Vec<_>>(),
                "states": c.states.iter().map(|v| g.name(*v)).collect::<Vec<_>>(),
                "signature": c.signature,
                "period": c.period.max(1),
            })
        })
        .collect();
    let (identity, projection) = (s.identity_count(), s.projections.len());
    json!({
        "model": model,
        "opset": g.opsets.get("").copied().unwrap_or(0),
        "residual_adds": identity + projection,
        "identity": identity,
        "projection": projection,
        "chains": chains,
    })
}

/// The report of `inspect`: the chains, then the blocks by their operators, then what is joined by a projection.
pub fn inspect_text(g: &Graph, s: &ResidualStructure) -> String {
    let mut text = String::new();
    let (identity, projection) = (s.identity_count(), s.projections.len());
    if identity + projection == 0 {
        let adds = match s.rejected.len() {
            0 => "it adds no floating-point values".to_string(),
            1 => "its only floating-point add is not one".to_string(),
            n => format!("none of its {n} floating-point adds is one"),
        };
        return format!("No residual adds: {adds}.\n");
    }
    let _ = writeln!(
        text,
        "{} residual {}: {identity} with an identity skip in {} {}, {projection} with a projected skip.",
        identity + projection,
        plural(identity + projection, "add", "adds"),
        s.chains.len(),
        plural(s.chains.len(), "chain", "chains"),
    );
    if !s.chains.is_empty() {
        let mut rows =
            vec![["chain", "blocks", "state", "after the add", "scaled", "unit", "first add", "last add"].map(String::from)];
        rows.extend(s.chains.iter().map(|c| {
            let ends = [c.joins.first(), c.joins.last()].map(|j| j.map(|j| node_name(g, j.node)).unwrap_or_default());
            let unit = match c.period {
                0 => "-".to_string(),
                n => format!("{n} {}", plural(n, "add", "adds")),
            };
            let [first, last] = ends;
            let scaled = if c.scaled { "yes" } else { "no" };
            [
                c.id.to_string(),
                c.joins.len().to_string(),
                c.ty.to_string(),
                c.post.name().into(),
                scaled.into(),
                unit,
                first,
                last,
            ]
        }));
        text.push('\n');
        table(&mut text, &rows);
        let mut rows = vec![["chain", "blocks", "branch"].map(String::from)];
        rows.extend(s.chains.iter().flat_map(blocks));
        text.push('\n');
        table(&mut text, &rows);
    }
    if projection > 0 {
        let mut rows = vec![["projected skip", "from", "to", "branch"].map(String::from)];
        rows.extend(s.projections.iter().map(|j| {
            let ty = |v| g.value(v).ty.to_string();
            [node_name(g, j.node), ty(j.state), ty(j.sum), j.signature.join("·")]
        }));
        text.push('\n');
        table(&mut text, &rows);
    }
    text
}

/// Runs of blocks with the same branch.
fn blocks(c: &Chain) -> Vec<[String; 3]> {
    let words: Vec<String> = c.joins.iter().map(|j| j.signature.join("·")).collect();
    let rows = |from: usize, to: usize, what: &str| {
        let range = if to - from == 1 { to.to_string() } else { format!("{} to {to}", from + 1) };
        [c.id.to_string(), range, what.to_string()]
    };
    // Units that repeat are said once.
    if c.period > 1 {
        let whole = c.joins.len();
        return (0..c.period).map(|i| [c.id.to_string(), every(i + 1, c.period, whole), words[i].clone()]).collect();
    }
    let mut out = Vec::new();
    let mut from = 0;
    for to in 1..=words.len() {
        if to == words.len() || words[to] != words[from] {
            out.push(rows(from, to, &words[from]));
            from = to;
        }
    }
    out
}

/// `1, 3, … 23`
fn every(first: usize, step: usize, last: usize) -> String {
    let all: Vec<usize> = (first..=last).step_by(step).collect();
    match all.as_slice() {
        [a, b, .., z] if all.len() > 3 => format!("{a}, {b}, … {z}"),
        some => some.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    }
}

fn plural<'a>(n: usize, one: &'a str, many: &'a str) -> &'a str {
    if n == 1 { one } else { many }
}

/// Columns aligned to their widest cell.
fn table<const N: usize>(text: &mut String, rows: &[[String; N]]) {
    let width: Vec<usize> = (0..N).map(|i| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0)).collect();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&width) {
            let pad = width - cell.chars().count();
            let _ = write!(line, "{cell}{}  ", " ".repeat(pad));
        }
        let _ = writeln!(text, "{}", line.trim_end());
    }
}
