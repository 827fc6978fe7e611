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
                "post": c.post,
                "scaled": c.scaled,
                "adds": c.joins.iter().map(|j| node_name(g, j.node)).collect::<Vec<_>>(),
                "states": c.states.iter().map(|v| g.name(*v)).collect::<Vec<_>>(),
                "signature": c.signature,
                "period": c.period.max(1),
                "inside": c.joins.first().and_then(|j| j.inside).map(|n| node_name(g, n)),
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

/// The report of `inspect`: the chains, then their blocks by the operators in them, then the projected skips.
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
            let [first, last] = [c.joins.first(), c.joins.last()].map(|j| j.map_or(String::new(), |j| node_name(g, j.node)));
            let unit = match c.period {
                0 => "-".to_string(),
                n => format!("{n} {}", plural(n, "add", "adds")),
            };
            let scaled = if c.scaled { "yes" } else { "no" }.to_string();
            let [id, blocks] = [c.id, c.joins.len()].map(|n| n.to_string());
            [id, blocks, c.ty.to_string(), c.post.clone(), scaled, unit, first, last]
        }));
        table(&mut text, &rows);
        let mut rows = vec![["chain", "blocks", "branch"].map(String::from)];
        rows.extend(s.chains.iter().flat_map(blocks));
        table(&mut text, &rows);
        let rows: Vec<[String; 2]> = s.chains.iter().filter_map(|c| surroundings(g, s, c)).collect();
        if !rows.is_empty() {
            table(&mut text, &[vec![["chain", "inside the branch of"].map(String::from)], rows].concat());
        }
    }
    if projection > 0 {
        let mut rows = vec![["projected skip", "from", "to", "branch"].map(String::from)];
        rows.extend(s.projections.iter().map(|j| {
            let ty = |v| g.value(v).ty.to_string();
            [node_name(g, j.node), ty(j.state), ty(j.sum), j.signature.join("·")]
        }));
        table(&mut text, &rows);
    }
    text
}

/// The join in whose branch a chain stands.
fn surroundings(g: &Graph, s: &ResidualStructure, c: &Chain) -> Option<[String; 2]> {
    let around = c.joins.first()?.inside?;
    let block = |outer: &Chain| {
        let place = outer.joins.iter().position(|j| j.node == around)?;
        Some(format!("block {} of chain {}", place + 1, outer.id))
    };
    let place = s.chains.iter().find_map(block).unwrap_or_else(|| "a projected skip".into());
    Some([c.id.to_string(), format!("{place}, {}", node_name(g, around))])
}

/// Runs of blocks with the same branch.
fn blocks(c: &Chain) -> Vec<[String; 3]> {
    let words: Vec<String> = c.joins.iter().map(|j| j.signature.join("·")).collect();
    // Each block of a repeated unit has one row.
    if c.period > 1 {
        let row = |i: usize| [c.id.to_string(), every(i + 1, c.period, words.len()), words[i].clone()];
        return (0..c.period).map(row).collect();
    }
    let mut end = 0;
    let rows = words.chunk_by(|a, b| a == b).map(|run| {
        let from = end + 1;
        end += run.len();
        let range = if run.len() == 1 { end.to_string() } else { format!("{from} to {end}") };
        [c.id.to_string(), range, run[0].clone()]
    });
    rows.collect()
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

/// An empty line, then columns aligned to their widest cell.
fn table<const N: usize>(text: &mut String, rows: &[[String; N]]) {
    let width: Vec<usize> = (0..N).map(|i| rows.iter().map(|r| r[i].chars().count()).max().unwrap_or(0)).collect();
    text.push('\n');
    for row in rows {
        let line: String = row.iter().zip(&width).map(|(cell, width)| format!("{cell:width$}  ")).collect();
        let _ = writeln!(text, "{}", line.trim_end());
    }
}
