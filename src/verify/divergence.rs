//! Finds the earliest value at which two models part. Both run with their values as outputs; values that stand for one another
//! are compared in the order in which A computes them.

use super::compare::compare;
use super::numeric::{Failing, engines};
use super::{Subject, VerifyOptions, memory};
use crate::engine::EngineChoice;
use crate::engine::random_inputs::Sizes;
use crate::engine::{Engine, ExternalData, Tensors};
use ancre_passes::ir::{Graph, ValueId};
use ancre_passes::onnx;
use ancre_passes::proof::pairing;
use ancre_passes::transform::eliminate;
use serde::Serialize;

/// The earliest pair of values that differ.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Divergence {
    /// A's value.
    pub value: String,
    /// The node of A that computes it.
    pub node_a: String,
    pub op_a: String,
    /// B's value, where its name is another.
    pub value_b: String,
    /// The node of B that computes it.
    pub node_b: String,
    pub op_b: String,
    /// Largest difference; infinite where types, shapes or finiteness differ.
    pub max_abs: f64,
    /// As a part of the value's largest magnitude.
    pub max_rel: f64,
    /// Why the two cannot be compared element by element.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<String>,
    /// The earliest value that differs at all, when that is another one: within the tolerance there, beyond it here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_bit: Option<String>,
}

/// Limits of the values that are kept at a time.
const MOST_BYTES: u64 = 256 << 20;
const MOST_VALUES: usize = 2000;

/// Finds where A and B part on the input that shows it.
pub(super) fn find(a: &Subject, b: &Subject, failing: &Failing, o: &VerifyOptions) -> Result<Option<Divergence>, String> {
    let which = if failing.engine == "ort" { EngineChoice::Ort } else { EngineChoice::Tract };
    let engine = engines(which).map_err(|e| e.to_string())?.remove(0);
    let usable = |g: &Graph, v: ValueId| g.value(v).ty.dtype.is_some_and(|t| t.size().is_some());
    let pairs: Vec<(ValueId, ValueId)> = pairing::pairs(&a.graph, &b.graph)
        .into_iter()
        .filter(|(v, w)| usable(&a.graph, *v) && usable(&b.graph, *w))
        .collect();
    let mut first_bit = None;
    for chunk in chunks(&a.graph, &pairs, &failing.trial.sizes, o.max_memory) {
        let of_a = run(engine.as_ref(), a, chunk.iter().map(|p| p.0), &failing.trial.inputs)?;
        let of_b = run(engine.as_ref(), b, chunk.iter().map(|p| p.1), &failing.trial.inputs)?;
        for ((v, w), (x, y)) in chunk.iter().zip(of_a.iter().zip(&of_b)) {
            let c = compare("", y, x, o.tolerance);
            if c.verdict.equivalent {
                if x.bytes() != y.bytes() && first_bit.is_none() {
                    first_bit = Some(a.graph.name(*v).to_string());
                }
                continue;
            }
            let (site_a, site_b) = (a.graph.site(v.node), b.graph.site(w.node));
            return Ok(Some(Divergence {
                value: a.graph.name(*v).to_string(),
                node_a: site_a.name,
                op_a: site_a.op,
                value_b: b.graph.name(*w).to_string(),
                node_b: site_b.name,
                op_b: site_b.op,
                max_abs: c.verdict.max_abs,
                max_rel: c.verdict.max_rel,
                mismatch: c.mismatch,
                first_bit,
            }));
        }
    }
    Ok(None)
}

pub(super) fn chunks<'p>(
    a: &Graph,
    pairs: &'p [(ValueId, ValueId)],
    sizes: &Sizes,
    limit: Option<u64>,
) -> Vec<&'p [(ValueId, ValueId)]> {
    let most = limit.map_or(MOST_BYTES, |l| MOST_BYTES.min(l / 8));
    let mut chunks = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, (v, _)) in pairs.iter().enumerate() {
        let size = memory::value_bytes(a, *v, sizes).unwrap_or(1 << 20);
        if i > start && (bytes + size > most || i - start >= MOST_VALUES) {
            chunks.push(&pairs[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += size;
    }
    if start < pairs.len() {
        chunks.push(&pairs[start..]);
    }
    chunks
}

/// The given values of a model, in order.
pub(super) fn run(
    engine: &dyn Engine,
    s: &Subject,
    values: impl Iterator<Item = ValueId>,
    inputs: &Tensors,
) -> Result<Vec<crate::io::tensor::NpTensor>, String> {
    let mut g = s.graph.clone();
    g.clear_outputs();
    let values: Vec<String> = values
        .map(|v| {
            g.add_output(v, None);
            g.name(v).to_string()
        })
        .collect();
    eliminate::eliminate_dead(&mut g, |_, _| false);
    let bytes = onnx::emit(&g).and_then(|e| e.to_bytes()).map_err(|e| e.to_string())?;
    let mut session = engine.load(&bytes, ExternalData::of(&g, &s.path)).map_err(|e| e.to_string())?;
    // The graph has lost inputs that only later values read.
    let fed = inputs.iter().filter(|(n, _)| g.find(n).is_some()).map(|(n, t)| (n.clone(), t.clone())).collect();
    let mut outputs = session.run(&fed).map_err(|e| e.to_string())?;
    values
        .iter()
        .map(|name| outputs.swap_remove(name).ok_or_else(|| format!("`{name}` did not come back from {}", engine.name())))
        .collect()
}
