//! The residual structure for people and for programs.

use super::residual::ResidualStructure;
use crate::ir::{Dim, Graph, NodeId};
use serde_json::{Value, json};

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

/// The report of `inspect`.
pub fn inspect_text(_: &Graph, s: &ResidualStructure) -> String {
    format!("{} chains: {:?}\n", s.chains.len(), s.chains.iter().map(|c| c.joins.len()).collect::<Vec<_>>())
}
