//! Adapters back into the weights they belong to.

use crate::contract::{AdapterRecord, AdaptersRecord, Layout, Record, Unreadable};
use crate::ir::{Graph, NodeId, Tensor, TensorError, ValueId};
use crate::transform::eliminate::eliminate_dead;

/// What merging did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Merged {
    /// Adapters that are part of their weights now.
    pub merged: usize,
    /// Names of integer weights, beside which their adapters stay: their sum is none of the integers' values.
    pub beside: Vec<String>,
}

/// Why adapters cannot be merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum MergeError {
    #[error(transparent)]
    Metadata(#[from] Unreadable),
    #[error("the model lacks `{0}`, which its `ancre.adapters` metadata names; it was changed after ancre-rewrite wrote it")]
    Missing(String),
    #[error("`{0}` has another shape than its adapter; the model was changed after ancre-rewrite wrote it")]
    Shape(String),
    #[error("reading `{name}` failed: {error}")]
    Tensor { name: String, error: TensorError },
}

/// Adds every adapter to its weight, in the weight's own type, and removes its nodes. Adapters of integer weights stay.
///
/// # Errors
/// When the graph lacks what its metadata names, or a tensor cannot be read.
pub fn merge_adapters(g: &mut Graph) -> Result<Merged, MergeError> {
    let Some(record) = AdaptersRecord::read(g)? else { return Ok(Merged::default()) };
    let mut done = Merged::default();
    let scale = record.scale();
    for adapter in &record.adapters {
        if adapter.quantised {
            done.beside.push(adapter.weight.clone());
            continue;
        }
        let (w, new) = merged_weight(g, adapter, scale)?;
        g.set_initializer(w, new, false);
        for add in sums(g, find(g, &adapter.b)?) {
            let base = g.operand(add, 0).ok_or_else(|| MergeError::Missing(adapter.b.clone()))?;
            g.supplant(g.result(add, 0), base);
        }
        done.merged += 1;
    }
    eliminate_dead(g, |_, _| false);
    let left: Vec<AdapterRecord> = record.adapters.into_iter().filter(|a| a.quantised).collect();
    g.metadata.shift_remove(AdaptersRecord::KEY);
    if !left.is_empty() {
        AdaptersRecord { adapters: left, ..record }.write(g);
    }
    Ok(done)
}

fn find(g: &Graph, name: &str) -> Result<ValueId, MergeError> {
    g.find(name).ok_or_else(|| MergeError::Missing(name.into()))
}

/// The adds that take in what B gives: the first ones behind it.
fn sums(g: &Graph, b: ValueId) -> Vec<NodeId> {
    let (mut open, mut found) = (vec![b], Vec::new());
    while let Some(v) = open.pop() {
        for (n, _) in g.uses_in_order(v) {
            if !g.is_op(n, "Add") {
                open.extend(g.results(n));
            } else if !found.contains(&n) {
                found.push(n);
            }
        }
    }
    found
}

/// The elements of an initializer and its shape.
fn elements(g: &Graph, name: &str) -> Result<(ValueId, Vec<i64>, Vec<f64>), MergeError> {
    let v = find(g, name)?;
    let t = g.initializer(v).ok_or_else(|| MergeError::Missing(name.into()))?;
    let values = t.to_f64().map_err(|error| MergeError::Tensor { name: name.into(), error })?;
    Ok((v, t.dims().to_vec(), values))
}

/// W + scale · A B, rounded once.
fn merged_weight(g: &Graph, adapter: &AdapterRecord, scale: f64) -> Result<(ValueId, Tensor), MergeError> {
    let (w, dims, mut sum) = elements(g, &adapter.weight)?;
    let ((_, a_dims, a), (_, b_dims, b)) = (elements(g, &adapter.a)?, elements(g, &adapter.b)?);
    let ([fan_in, rank], [same, out]) = (matrix(&a_dims, adapter)?, matrix(&b_dims, adapter)?);
    if rank != same || fan_in * out != sum.len() {
        return Err(MergeError::Shape(adapter.weight.clone()));
    }
    let mut row = vec![0.0; out];
    for i in 0..fan_in {
        row.fill(0.0);
        for (factor, line) in a[i * rank..].iter().zip(b.chunks_exact(out)).take(rank) {
            row.iter_mut().zip(line).for_each(|(sum, x)| *sum += factor * x);
        }
        match adapter.layout {
            Layout::InOut => sum[i * out..].iter_mut().zip(&row).for_each(|(w, x)| *w += scale * x),
            Layout::OutIn => sum[i..].iter_mut().step_by(fan_in).zip(&row).for_each(|(w, x)| *w += scale * x),
        }
    }
    let dtype = g.initializer(w).map_or(crate::ir::DType::F32, Tensor::dtype);
    Ok((w, Tensor::floats(dtype, &dims, &sum)))
}

fn matrix(dims: &[i64], adapter: &AdapterRecord) -> Result<[usize; 2], MergeError> {
    match dims {
        [rows, columns] => Ok([*rows as usize, *columns as usize]),
        _ => Err(MergeError::Shape(adapter.weight.clone())),
    }
}
