//! Logits, gates and weights of a router: where they start and what they mean.

use super::{Init, Normalize, RouteError, RouteOptions, RouterSpec, Rule, Sources, router_name};
use crate::contract::RouterRecord;
use crate::ir::{Graph, Sparsity, Tensor, ValueId};
use crate::refusal::Hint;
use indexmap::IndexMap;

/// Arrays of a file of starting values: shape and values.
type Given = IndexMap<String, (Vec<usize>, Vec<f32>)>;

/// Adds a router's initializers: K rows over S earlier states and K own ones, or under `attention` over so many features.
pub(super) fn parameters(
    g: &mut Graph,
    chain: usize,
    k: usize,
    extra: usize,
    features: usize,
    o: &RouteOptions,
) -> Result<(ValueId, Option<ValueId>), RouteError> {
    let name = match o.rule {
        Rule::Constant => "weights",
        Rule::Attention => "query",
        _ => "logits",
    };
    let (name, gate_name) = (router_name(chain, name), router_name(chain, "gate"));
    let attends = o.rule == Rule::Attention;
    let width = if attends { features } else { extra + k };
    let given = |given: &Given, name: &str, want: &[usize]| -> Result<Option<Vec<f32>>, RouteError> {
        let fail = |what: String| Err(RouteError::Chain { chain, what, hint: Some(Hint::CorrectInitFile) });
        match given.get(name) {
            None => Ok(None),
            Some((shape, _)) if shape != want => {
                fail(format!("`{name}` in the file of starting values has shape {shape:?}, expected {want:?}"))
            }
            Some((_, values)) if !values.iter().all(|v| v.is_finite()) => {
                fail(format!("`{name}` in the file of starting values holds a number that is not finite"))
            }
            Some((_, values)) => Ok(Some(values.clone())),
        }
    };
    let (matrix, gates) = match &o.init {
        Init::Given(file) => {
            let Some(mut matrix) = given(file, &name, &[k, width])? else {
                let what = format!("the file of starting values holds no `{name}` [{k}, {width}]; it holds {}", list(file));
                return Err(RouteError::Chain { chain, what, hint: Some(Hint::CorrectInitFile) });
            };
            // Entries that no row reads are stored as 0, whatever the file has there.
            if !attends {
                let unused = |i: &usize| !o.sparsity.uses(i / width, i % width, extra);
                (0..matrix.len()).filter(unused).for_each(|i| matrix[i] = skip(i / width, i % width, extra, o.sparsity));
            }
            let mut gates = if o.rule == Rule::Gated { given(file, &gate_name, &[k])? } else { None };
            if let Some(first) = gates.as_mut().and_then(|g| g.first_mut())
                && extra == 0
            {
                *first = 0.0;
            }
            (matrix, gates)
        }
        _ if attends => (vec![0.0; k * width], None),
        _ => (initial_matrix(k, extra, o), None),
    };
    let logits = g.add_initializer(&name, Tensor::f32s(&[k as i64, width as i64], &matrix), false);
    let gate = (o.rule == Rule::Gated).then(|| {
        let gates = gates.unwrap_or_else(|| vec![0.0; k]);
        g.add_initializer(&gate_name, Tensor::f32s(&[k as i64], &gates), false)
    });
    Ok((logits, gate))
}

/// The names in a file, with shapes.
fn list(given: &Given) -> String {
    let names: Vec<String> = given.iter().map(|(name, (shape, _))| format!("`{name}` {shape:?}")).collect();
    match names.len() {
        0 => "nothing".into(),
        1..=12 => names.join(", "),
        n => format!("{} and {} more", names[..12].join(", "), n - 12),
    }
}

/// What stands where a weight is not in use: a row without a route reads its nearest state, which is told by a one.
fn skip(row: usize, column: usize, extra: usize, sparsity: Sparsity) -> f32 {
    (!sparsity.uses(row, extra + row, extra) && column == extra + row) as u8 as f32
}

/// The K × (S + K) logits a router starts from (weights, for `free` and `constant`), row-major.
fn initial_matrix(k: usize, extra: usize, o: &RouteOptions) -> Vec<f32> {
    let tau = o.tau as f64;
    let width = extra + k;
    let mut m = vec![0f32; k * width];
    for row in 0..k {
        for column in 0..=extra + row {
            if !o.sparsity.uses(row, column, extra) {
                m[row * width + column] = skip(row, column, extra, o.sparsity);
                continue;
            }
            let competing = match o.normalize {
                Normalize::Incoming => o.sparsity.weighed(row, extra).count(),
                Normalize::Outgoing => k - column,
            };
            // The nearest state is the sum of all own deltas.
            let nearest = column == extra + row || (o.sources == Sources::Deltas && o.rule == Rule::Free && column >= extra);
            m[row * width + column] = match (o.rule, &o.init) {
                (Rule::Constant, _) | (Rule::Free, Init::Uniform) => (1.0 / competing as f64) as f32,
                (Rule::Free, _) => nearest as u8 as f32,
                (_, Init::Identity) if nearest && competing > 1 => (128.0 * tau) as f32,
                (_, Init::NearIdentity(e)) if nearest && competing > 1 => {
                    (tau * ((1.0 - e) * (competing - 1) as f64 / e).ln()) as f32
                }
                _ => 0.0,
            };
        }
    }
    m
}

/// Logits or weights that make every row one-hot on its nearest state, whatever the rule: (matrix, gate).
pub fn one_hot_parameters(k: usize, extra: usize, o: &RouteOptions) -> (Vec<f32>, Vec<f32>) {
    // The weights of the constant router are stored as the free one's are.
    let rule = if o.rule == Rule::Constant { Rule::Free } else { o.rule };
    // A gate that is closed leaves the nearest state, whatever the softmax is over.
    let gates = if o.sources == Sources::Deltas { 0.0 } else { 1.0 };
    (initial_matrix(k, extra, &RouteOptions { init: Init::Identity, rule, ..o.clone() }), vec![gates; k])
}

/// What a router's weights are computed by.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub struct Weighing {
    pub rule: Rule,
    pub normalize: Normalize,
    pub tau: f32,
    /// Are the weights those of differences of states?
    pub differences: bool,
    /// Which of the weights are in use. A row that has no route keeps what stands in its place.
    pub sparsity: Sparsity,
}

impl From<&RouterSpec> for Weighing {
    fn from(r: &RouterSpec) -> Weighing {
        let differences = r.weighs_differences();
        Weighing { rule: r.rule, normalize: r.normalize, tau: r.tau, differences, sparsity: r.sparsity }
    }
}

impl From<&RouterRecord> for Weighing {
    fn from(r: &RouterRecord) -> Weighing {
        let differences = r.sources.are_differences(r.form);
        Weighing { rule: r.parametrization, normalize: r.normalize, tau: r.tau, differences, sparsity: r.sparsity() }
    }
}

/// A row under `attention`, in f64: the reference that its lowering is compared with.
#[derive(Clone, Debug)]
pub struct AttentionRow {
    /// The row's query, an element a feature.
    pub query: Vec<f64>,
    /// Axis of the features.
    pub axis: usize,
    /// The columns that the row weighs: their states, less these others' under `deltas`.
    pub weighed: Vec<(usize, Option<usize>)>,
}

/// What is added to the mean of the squares before the root.
pub(crate) const RMS_EPSILON: f64 = 1e-6;

impl AttentionRow {
    /// Σ α_i s_i with α = softmax_i ⟨q, s_i / √(mean s_i² + 1e-6)⟩ at each position, of states of this shape.
    pub fn sum(&self, states: &[&[f64]], shape: &[usize]) -> Vec<f64> {
        let count = states.first().map_or(0, |s| s.len());
        let sources = 0..self.weighed.len();
        let at = |i: usize, e: usize| {
            let (column, from) = self.weighed[i];
            states[column][e] - from.map_or(0.0, |from| states[from][e])
        };
        let (features, step) = (self.query.len(), shape[self.axis + 1..].iter().product::<usize>());
        let mut out = vec![0.0; count];
        for place in (0..count).filter(|e| e / step % features.max(1) == 0) {
            let element = |f: usize| place + f * step;
            let score = |i: usize| {
                let squares: f64 = (0..features).map(|f| at(i, element(f)).powi(2)).sum();
                let rms = (squares / features as f64 + RMS_EPSILON).sqrt();
                (0..features).map(|f| self.query[f] * at(i, element(f)) / rms).sum::<f64>()
            };
            let scores: Vec<f64> = sources.clone().map(score).collect();
            let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - top).exp()).sum();
            for f in 0..features {
                out[element(f)] = sources.clone().map(|i| (scores[i] - top).exp() / total * at(i, element(f))).sum();
            }
        }
        out
    }
}

/// The weights of a K × (S + K) router in f64, row-major, unused entries 0: the reference that lowerings are compared with. They are
/// weights of the states, where the router's own are of deltas too. The rule is not `attention`, whose weights depend on the states.
pub fn reference_weights(logits: &[f32], gate: Option<&[f32]>, k: usize, how: impl Into<Weighing>) -> Vec<f64> {
    let Weighing { rule, normalize, tau, differences, sparsity } = how.into();
    let width = logits.len().checked_div(k).unwrap_or(0);
    let extra = width.saturating_sub(k);
    let at = |r: usize, c: usize| r * width + c;
    let mut w = vec![0f64; k * width];
    for row in 0..k {
        let unused = |column: usize| row.is_multiple_of(sparsity.period.max(1)) && !sparsity.uses(row, column, extra);
        for column in (0..=extra + row).filter(|c| !unused(*c)) {
            w[at(row, column)] = logits[at(row, column)] as f64;
        }
    }
    // Σ_j w_j (h_j − h_{j−1}) = Σ_i (w_i − w_{i+1}) h_i, from the left, where the next weight is still the delta's.
    let of_states = |w: &mut [f64]| {
        for row in (0..k).filter(|_| differences) {
            (extra..extra + row).for_each(|c| w[at(row, c)] -= w[at(row, c + 1)]);
        }
    };
    if matches!(rule, Rule::Free | Rule::Constant) {
        of_states(&mut w);
        return w;
    }
    let groups: Vec<Vec<usize>> = match normalize {
        Normalize::Incoming => (0..k).map(|r| (0..=extra + r).map(|c| at(r, c)).collect()).collect(),
        Normalize::Outgoing => (0..k).map(|c| (c..k).map(|r| at(r, c)).collect()).collect(),
    };
    for group in groups {
        let top = group.iter().map(|i| w[*i]).fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = group.iter().map(|i| ((w[*i] - top) / tau as f64).exp()).sum();
        for i in group {
            w[i] = ((w[i] - top) / tau as f64).exp() / total;
        }
    }
    of_states(&mut w);
    if let (Rule::Gated, Some(gate)) = (rule, gate) {
        for row in 0..k {
            // The first row's gate counts only where the row has competitors.
            let a = if row == 0 && extra == 0 { 0.0 } else { gate[row] as f64 };
            for column in 0..=extra + row {
                let hot = (column == extra + row) as u8 as f64;
                w[at(row, column)] = hot + a * (w[at(row, column)] - hot);
            }
        }
    }
    w
}
