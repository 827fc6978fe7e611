//! Replaces the routes of `attention` by plain operators: r_k = Σ_i α_{k,i} s_i with α_k = softmax_i ⟨q_k, s_i / rms(s_i)⟩ at each position,
//! rms(s) = √(mean s² + 1e-6) over the features.
//!
//! ```text
//! before  r = ancre.Route <row = 2> (q, , h0, h1, h2)      after  n_i = h_i / rms(h_i)   z_i = n_i qᵀ   (of each source, once for all rows)
//!                                                                 a = Softmax(z_0[2], z_1[2], z_2[2])   r = a[0] h0 + a[1] h1 + a[2] h2
//! ```
//!
//! Before differentiation, because each of these operators has its own derivative; a source's part is shared by all rows that read it.
//! Scores and norms are in float32.

use super::route::RMS_EPSILON;
use crate::ir::{ANCRE, Attrs, DType, Graph, NodeId, RouterId, RouterSpec, Rule, ValueId};
use crate::ops::build::{BuildError, Builder, Built};
use crate::target::Target;
use indexmap::IndexMap;

/// Lowers every route under `attention`; says how many there were.
///
/// # Errors
/// When a node cannot be built; that is a fault of this tool.
pub fn lower_attention(g: &mut Graph, target: &'static Target) -> Result<usize, BuildError> {
    let routers = g.routers.clone();
    let attends = |id: &RouterId| routers.get(id).filter(|r| r.rule == Rule::Attention);
    let mut routes: IndexMap<RouterId, Vec<(usize, NodeId)>> = IndexMap::new();
    for node in g.topological_order() {
        let Some(op) = g.op(node).filter(|o| o.domain == ANCRE && o.name == "Route") else { continue };
        let id = RouterId(op.int("router") as usize);
        if attends(&id).is_some() {
            let row = op.int("row") as usize;
            routes.entry(id).or_default().push((row, node));
        }
    }
    let mut count = 0;
    for (id, mut rows) in routes {
        rows.sort_unstable();
        let Some(spec) = attends(&id) else { continue };
        let mut b = Builder::on(g, &format!("ancre/{id}"), target);
        let mut sources = Attended { spec, query: None, all: Vec::new() };
        let mut done = Vec::new();
        for (row, node) in rows {
            let states: Vec<ValueId> = b.graph.operands(node).iter().skip(2).flatten().copied().collect();
            for state in states.iter().skip(sources.all.len()).copied().collect::<Vec<_>>() {
                sources.attend(&mut b, state, &states)?;
            }
            done.push((node, sources.row(&mut b, row, states.len())?));
        }
        count += done.len();
        for (node, sum) in done.into_iter().rev() {
            // The sum gets the route's name, by which the metadata find it.
            g.supplant(ValueId { node, slot: 0 }, sum);
            g.remove(node);
        }
    }
    Ok(count)
}

/// A source of a router's rows.
struct Source {
    /// What the rows sum up.
    value: ValueId,
    /// Its score for each row, [.., 1].
    scores: Vec<ValueId>,
}

/// A router's sources, as far as rows have read them.
struct Attended<'s> {
    spec: &'s RouterSpec,
    /// qᵀ, [features, rows].
    query: Option<ValueId>,
    all: Vec<Source>,
}

impl Attended<'_> {
    /// Adds the next source: its score for all rows by one product.
    fn attend(&mut self, b: &mut Builder, state: ValueId, states: &[ValueId]) -> Result<(), BuildError> {
        let value = match self.spec.delta_from(self.all.len()) {
            Some(from) => b.sub(state, states[from])?,
            None => state,
        };
        let query = match self.query {
            Some(query) => query,
            None => b.transpose(self.spec.logits, &[1, 0])?,
        };
        self.query = Some(query);
        let rank = b.ty(value)?.rank();
        let mut x = b.cast(value, DType::F32)?;
        if let Some(perm) = features_last(self.spec.axis, rank) {
            x = b.transpose(x, &perm)?;
        }
        let squares = b.mul(x, x)?;
        let mean = b.reduce("ReduceMean", squares, &[rank as i64 - 1], true)?;
        let shifted = b.shift(mean, RMS_EPSILON)?;
        let rms = b.sqrt(shifted)?;
        let normed = b.div(x, rms)?;
        let scores = b.matmul(normed, query)?;
        let rows = self.spec.blocks();
        let scores = split(b, scores, rank as i64 - 1, rows)?;
        self.all.push(Source { value, scores });
        Ok(())
    }

    /// The sum of a row over those of the first sources that it weighs.
    fn row(&self, b: &mut Builder, row: usize, count: usize) -> Built {
        let sources: Vec<&Source> = self.spec.weighed(row).filter(|c| *c < count).map(|c| &self.all[c]).collect();
        let first = sources[0].value;
        let ty = b.ty(first)?;
        let last = ty.rank() as i64 - 1;
        let scores: Vec<ValueId> = sources.iter().map(|s| s.scores[row]).collect();
        let scores = b.concat(&scores, last)?;
        let mut weights = b.op_with("Softmax", Attrs::new().with("axis", last), &[scores])?;
        b.graph.rename(weights, &format!("ancre/{}/attention_{}", b.prefix.trim_start_matches("ancre/"), row + 1));
        if let Some(perm) = features_last(self.spec.axis, ty.rank()) {
            let mut back = vec![0; perm.len()];
            perm.iter().enumerate().for_each(|(to, from)| back[*from as usize] = to as i64);
            weights = b.transpose(weights, &back)?;
        }
        let weights = b.cast(weights, ty.dtype)?;
        let parts = split(b, weights, self.spec.axis as i64, sources.len())?;
        let terms = sources.iter().zip(parts).map(|(s, w)| b.mul(s.value, w)).collect::<Result<Vec<_>, _>>()?;
        b.sum(&terms)
    }
}

/// The order of axes in which the features come last; none where they do.
fn features_last(axis: usize, rank: usize) -> Option<Vec<i64>> {
    let others = (0..rank).filter(|a| *a != axis).map(|a| a as i64);
    (axis + 1 != rank).then(|| others.chain([axis as i64]).collect())
}

/// Pieces of extent 1 along an axis.
fn split(b: &mut Builder, v: ValueId, axis: i64, count: usize) -> Result<Vec<ValueId>, BuildError> {
    if count == 1 {
        return Ok(vec![v]);
    }
    // A graph of an older operator set is converted after this, and what passes build is taken for the target's.
    if b.opset() < 13 {
        return (0..count as i64).map(|i| b.slices(v, &[axis], &[i], &[i + 1])).collect();
    }
    b.split(v, axis, &vec![1; count])
}
