//! Bakes a router's weights into a deployable graph: every route becomes a sum with constant weights, in which a weight of
//! one costs nothing and a weight of zero drops its edge.

use super::eliminate;
use super::route::{AttentionRow, Form, RouteOptions, one_hot_parameters, reference_weights};
use crate::contract::{self, Record, RouterRecord};
use crate::ir::{DType, Dim, Graph, Normalize, RouterId, RouterSpec, Rule, Tensor, ValueId};
use crate::ops::build::{BuildError, Builder, Built};
use indexmap::IndexMap;

/// Why a router cannot be baked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum BakeError {
    #[error(
        "the model has no readable `ancre.router` metadata: {0}; freeze takes the forward graph that ancre-rewrite wrote"
    )]
    Metadata(String),
    #[error("the model lacks `{0}`, which its `ancre.router` metadata names; it was changed after ancre-rewrite wrote it")]
    Missing(String),
    #[error("the route `{0}` has another type than its states; the model was changed after ancre-rewrite wrote it")]
    Changed(String),
    #[error("the state `{0}` is no sum with a route; the model was changed after ancre-rewrite wrote it")]
    NoSum(String),
    #[error("reading `{0}` failed: {1}")]
    Tensor(String, String),
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// The routers of a forward graph, by its metadata.
///
/// # Errors
/// When there are none or they cannot be read.
pub fn read_routers(g: &Graph) -> Result<IndexMap<RouterId, RouterSpec>, BakeError> {
    let record = RouterRecord::read(g).map_err(|e| BakeError::Metadata(e.why))?;
    let record = record.ok_or_else(|| BakeError::Metadata("there is none".into()))?;
    record.routers(g).map_err(|absent| BakeError::Missing(absent.0))
}

/// The graph that computes what the source does, if the rewrite is right. `reassign` and `input`: the graph with one-hot parameters,
/// or where there are none with the nearest state for every route; `augment`: with every route replaced by zero.
///
/// # Errors
/// When a state of `augment` is no sum with a route.
pub fn at_one_hot(forward: &Graph, routers: &IndexMap<RouterId, RouterSpec>, o: &RouteOptions) -> Result<Graph, BakeError> {
    let mut g = forward.clone();
    let mut gone: IndexMap<ValueId, ValueId> = IndexMap::new();
    for r in routers.values() {
        match o.form {
            Form::Augment => without_routes(&mut g, r)?,
            // Without its routes each block reads its nearest state again. The first one of a chain inside of a block is that block's route.
            _ if !r.has_one_hot() => {
                for (row, route) in &r.rows {
                    let nearest = r.states[*row];
                    let nearest = gone.get(&nearest).copied().unwrap_or(nearest);
                    g.redirect(*route, nearest);
                    gone.insert(*route, nearest);
                }
            }
            _ => {
                let (matrix, gate) = one_hot_parameters(r.blocks(), r.sources.len(), o);
                let (k, width) = (r.blocks() as i64, r.width() as i64);
                g.set_initializer(r.logits, Tensor::f32s(&[k, width], &matrix), false);
                if let Some(v) = r.gate {
                    g.set_initializer(v, Tensor::f32s(&[k], &gate), false);
                }
            }
        }
    }
    eliminate::eliminate_dead(&mut g, |_, _| false);
    Ok(g)
}

/// Puts zeros in the place of the routes that stand beside blocks.
fn without_routes(g: &mut Graph, r: &RouterSpec) -> Result<(), BakeError> {
    for state in r.states.iter().skip(1) {
        if !g.is_op(state.node, "Add") {
            return Err(BakeError::NoSum(g.name(*state).into()));
        }
        let dtype = g.value(*state).ty.dtype.unwrap_or(DType::F32);
        let zero = g.add_initializer("ancre/zero", Tensor::floats(dtype, &[], &[0.0]), false);
        g.set_operand(state.node, 1, Some(zero));
    }
    Ok(())
}

/// The K × (S + K) weights of a router, from the logits and gate in the file.
///
/// # Errors
/// When they are missing or unreadable.
pub fn router_weights(g: &Graph, r: &RouterSpec) -> Result<Vec<f64>, BakeError> {
    let read = |v: ValueId| -> Result<Vec<f32>, BakeError> {
        let t = g.initializer(v).ok_or_else(|| BakeError::Missing(g.name(v).into()))?;
        t.to_f32().map_err(|e| BakeError::Tensor(g.name(v).into(), e.to_string()))
    };
    let logits = read(r.logits)?;
    let (blocks, width) = (r.blocks(), r.width());
    let wrong = |v: ValueId, what: String| Err(BakeError::Tensor(g.name(v).into(), what));
    if logits.len() != blocks * width {
        return wrong(r.logits, format!("it has {} elements, expected {blocks} x {width}", logits.len()));
    }
    let gate = r.gate.map(read).transpose()?;
    if let (Some(gate), Some(v)) = (&gate, r.gate)
        && gate.len() != blocks
    {
        return wrong(v, format!("it has {} elements, K is {blocks}", gate.len()));
    }
    Ok(reference_weights(&logits, gate.as_deref(), blocks, r))
}

/// A row of a router under `attention`, from the query in the file.
///
/// # Errors
/// When it is missing or unreadable.
pub fn attention_row(g: &Graph, r: &RouterSpec, row: usize) -> Result<AttentionRow, BakeError> {
    let fail = |what: String| BakeError::Tensor(g.name(r.logits).into(), what);
    let t = g.initializer(r.logits).ok_or_else(|| BakeError::Missing(g.name(r.logits).into()))?;
    let queries = t.to_f32().map_err(|e| fail(e.to_string()))?;
    let rows = r.blocks().max(1);
    if queries.len() % rows != 0 || queries.is_empty() {
        return Err(fail(format!("it has {} elements for {rows} rows", queries.len())));
    }
    let query = queries.chunks(queries.len() / rows).nth(row).into_iter().flatten().map(|q| f64::from(*q)).collect();
    let weighed = r.weighed(row).map(|c| (c, r.delta_from(c))).collect();
    Ok(AttentionRow { query, axis: r.axis, weighed })
}

/// The edges of baked routers.
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
    let mut baked = Baked::default();
    for (id, router) in read_routers(g)? {
        if router.rule == Rule::Attention {
            // Its weights depend on the states: it stays as it is, in plain operators.
            baked.kept += router.rows.iter().map(|(row, _)| router.weighed(*row).count()).sum::<usize>();
            continue;
        }
        let weights = router_weights(g, &router)?;
        let columns: Vec<ValueId> = router.columns().collect();
        for &(row, old) in &router.rows {
            let mut terms = Vec::new();
            let mut dropped = 0.0;
            let first = row * router.width();
            for (column, source) in router.weighed(row).map(|c| (c, columns[c])) {
                // A weight that float32 rounds to zero is no edge: identity logits give exact zeros in float32.
                let w = weights[first + column] as f32 as f64;
                if w == 0.0 || w.abs() < prune {
                    dropped += w.abs();
                    baked.dropped += 1;
                    continue;
                }
                terms.push((source, w));
            }
            let sums_to_one =
                router.normalize == Normalize::Incoming && router.rule == Rule::Softmax && !router.weighs_differences();
            let total: f64 = terms.iter().map(|(_, w)| w).sum();
            if prune > 0.0 && sums_to_one && total > 0.0 {
                terms.iter_mut().for_each(|(_, w)| *w /= total);
            }
            baked.kept += terms.len();
            baked.worst_drop = baked.worst_drop.max(dropped);
            let mut b = Builder::new(g, &format!("ancre/{id}/baked_{}", row + 1));
            let new = weighted_sum(&mut b, &terms, columns.first().copied().unwrap_or(old))?;
            if let (Some(was), Some(is)) = (g.tensor_type(old), g.tensor_type(new))
                && !was.may_be(&is)
            {
                return Err(BakeError::Changed(g.name(old).into()));
            }
            g.redirect(old, new);
        }
    }
    contract::forget(g);
    Ok(baked)
}

/// Σ w·h: a pass-through for a single weight of one, else one product over stacked states. Without a weight these are zeros of the
/// shape of `like`, a source, so that no part of the trainable router stays alive.
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
