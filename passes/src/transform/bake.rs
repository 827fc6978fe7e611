//! Bakes a router's weights into a deployable graph: every route becomes a sum with constant weights, in which a weight of
//! one costs nothing and a weight of zero drops its edge.

use super::route::{Normalize, Rule, reference_weights};
use crate::ir::{Dim, Graph, Tensor, ValueId};
use crate::ops::build::{BuildError, Builder, Built};
use serde::{Deserialize, Serialize};

/// The metadata `ancre.router`: what later tools need to read a routed graph.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct RouterRecord {
    pub form: super::route::Form,
    pub granularity: String,
    pub scope: super::route::Scope,
    pub parametrization: Rule,
    pub init: String,
    pub tau: f32,
    pub normalize: Normalize,
    pub chains: Vec<ChainRecord>,
}

/// One routed chain of [`RouterRecord`].
#[derive(Clone, Debug, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct ChainRecord {
    pub id: usize,
    #[serde(rename = "K")]
    pub blocks: usize,
    pub adds_per_block: usize,
    /// Initializer of the logits (or weights), [K, S + K].
    pub logits: String,
    /// Initializer of the gate, K elements.
    pub gate: Option<String>,
    /// Earlier chains' states that all rows read, S of them; their columns come first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceRecord>,
    /// Values of the states h_0 … h_K.
    pub states: Vec<String>,
    /// Row (0-based) and value of each route.
    pub rows: Vec<(usize, String)>,
}

/// An earlier chain's state among the sources of a [`ChainRecord`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Value of the state.
    pub state: String,
    /// Value of the state brought to the chain's shape, which the rows read.
    pub value: String,
}

impl ChainRecord {
    /// The values of the matrix's columns, in order.
    pub fn columns(&self) -> impl Iterator<Item = &String> {
        self.sources.iter().map(|s| &s.value).chain(&self.states).take(self.width())
    }

    /// Number of columns, S + K.
    pub fn width(&self) -> usize {
        self.sources.len() + self.blocks
    }

    /// Number of columns that a row (0-based) reads.
    pub fn reads(&self, row: usize) -> usize {
        self.sources.len() + row + 1
    }
}

/// What baking found wrong.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum BakeError {
    #[error(
        "the model has no readable `ancre.router` metadata: {0}; freeze takes the forward graph that ancre-rewrite wrote"
    )]
    Metadata(String),
    #[error("the model lacks `{0}`, which its `ancre.router` metadata names; it was changed after ancre-rewrite wrote it")]
    Missing(String),
    #[error("reading `{0}` failed: {1}")]
    Tensor(String, String),
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// The router record of a forward graph.
///
/// # Errors
/// When there is none or it cannot be read.
pub fn read_record(g: &Graph) -> Result<RouterRecord, BakeError> {
    let text = g.metadata.get("ancre.router").ok_or_else(|| BakeError::Metadata("there is none".into()))?;
    serde_json::from_str(text).map_err(|e| BakeError::Metadata(e.to_string()))
}

/// The K × (S + K) weights of a chain, from the logits and gate in the file.
///
/// # Errors
/// When they are missing or unreadable.
pub fn chain_weights(g: &Graph, record: &RouterRecord, chain: &ChainRecord) -> Result<Vec<f64>, BakeError> {
    let read = |name: &str| -> Result<Vec<f32>, BakeError> {
        let v = g.find(name).ok_or_else(|| BakeError::Missing(name.into()))?;
        let t = g.initializer(v).ok_or_else(|| BakeError::Missing(name.into()))?;
        t.to_f32().map_err(|e| BakeError::Tensor(name.into(), e.to_string()))
    };
    let logits = read(&chain.logits)?;
    if logits.len() != chain.blocks * chain.width() {
        return Err(BakeError::Tensor(
            chain.logits.clone(),
            format!("it has {} elements, expected {} x {}", logits.len(), chain.blocks, chain.width()),
        ));
    }
    let gate = chain.gate.as_deref().map(read).transpose()?;
    if let (Some(gate), Some(name)) = (&gate, &chain.gate)
        && gate.len() != chain.blocks
    {
        return Err(BakeError::Tensor(name.clone(), format!("it has {} elements, K is {}", gate.len(), chain.blocks)));
    }
    Ok(reference_weights(&logits, gate.as_deref(), chain.blocks, record.parametrization, record.normalize, record.tau))
}

/// What baking did.
#[derive(Clone, Debug, Default)]
pub struct Baked {
    /// Edges (nonzero weights) kept.
    pub kept: usize,
    /// Edges dropped.
    pub dropped: usize,
    /// Sum of the magnitudes dropped in the worst row.
    pub worst_drop: f64,
}

/// Replaces all routes by sums with constant weights; drops weights of magnitude below `prune`, renormalising a row only
/// where its weights are a softmax's. The lowered router is left dead for [`super::eliminate`].
///
/// # Errors
/// When metadata and graph disagree.
pub fn bake_router(g: &mut Graph, prune: f64) -> Result<Baked, BakeError> {
    let record = read_record(g)?;
    let mut baked = Baked::default();
    for chain in &record.chains {
        let weights = chain_weights(g, &record, chain)?;
        for (row, name) in &chain.rows {
            let old = g.find(name).ok_or_else(|| BakeError::Missing(name.clone()))?;
            let mut terms = Vec::new();
            let mut dropped = 0.0;
            let first = row * chain.width();
            for (w, source) in weights[first..first + chain.reads(*row)].iter().zip(chain.columns()) {
                // What float32 rounds to nothing beside the other weights is no edge: identity logits give exact zeros there.
                let w = *w as f32 as f64;
                if w == 0.0 || w.abs() < prune {
                    dropped += w.abs();
                    baked.dropped += 1;
                    continue;
                }
                terms.push((g.find(source).ok_or_else(|| BakeError::Missing(source.clone()))?, w));
            }
            let sums_to_one = record.normalize == Normalize::Incoming && record.parametrization == Rule::Softmax;
            let total: f64 = terms.iter().map(|(_, w)| w).sum();
            if prune > 0.0 && sums_to_one && total > 0.0 {
                terms.iter_mut().for_each(|(_, w)| *w /= total);
            }
            baked.kept += terms.len();
            baked.worst_drop = baked.worst_drop.max(dropped);
            let mut b = Builder::new(g, &format!("ancre/{}/baked_{}", chain.id, row + 1));
            let first_source = chain.columns().next().and_then(|name| b.graph.find(name)).unwrap_or(old);
            let new = weighted_sum(&mut b, &terms, first_source)?;
            g.replace_uses(old, new, |_| true);
            if g.is_output(old) {
                g.redirect_output(old, new);
                g.swap_names(old, new);
            }
        }
    }
    // What is deployed is no longer ours to read.
    g.metadata.retain(|key, _| !key.starts_with("ancre."));
    Ok(baked)
}

/// Σ w·h: a pass-through for a single weight of one, one product over stacked states otherwise. Without a weight: zeros of the
/// shape of `like`, a source, so that nothing of the trainable router stays alive.
fn weighted_sum(b: &mut Builder, terms: &[(ValueId, f64)], like: ValueId) -> Built {
    let ty = b.ty(like)?;
    match terms {
        [] => b.scale(like, 0.0),
        [(h, w)] => b.scale(*h, *w as f32 as f64),
        _ => {
            let flat: Vec<ValueId> = terms
                .iter()
                .map(|(h, _)| b.reshape(*h, &[1, -1], &[Dim::from(1), ty.elements()]))
                .collect::<Result<_, _>>()?;
            let stacked = b.concat(&flat, 0)?;
            let values: Vec<f64> = terms.iter().map(|(_, w)| *w).collect();
            let w =
                b.constant(&format!("{}/weights", b.prefix), Tensor::floats(ty.dtype, &[1, values.len() as i64], &values));
            let sum = b.matmul(w, stacked)?;
            b.reshape_like(sum, terms[0].0)
        }
    }
}
