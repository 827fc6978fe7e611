//! Logits, gates and weights of a router: where they start and what they mean.

use super::{Init, Normalize, RouteError, RouteOptions, Rule, router_name};
use crate::ir::{Graph, Tensor, ValueId};
use crate::refusal::Hint;
use indexmap::IndexMap;

/// Arrays of a file of starting values: shape and values.
type Given = IndexMap<String, (Vec<usize>, Vec<f32>)>;

/// Adds a router's initializers: K rows over S earlier states and K own ones.
pub(super) fn parameters(
    g: &mut Graph,
    chain: usize,
    k: usize,
    extra: usize,
    o: &RouteOptions,
) -> Result<(ValueId, Option<ValueId>), RouteError> {
    let name = router_name(chain, if o.rule == Rule::Constant { "weights" } else { "logits" });
    let gate_name = router_name(chain, "gate");
    let width = extra + k;
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
            matrix.iter_mut().enumerate().filter(|(i, _)| i % width > extra + i / width).for_each(|(_, v)| *v = 0.0);
            let mut gates = if o.rule == Rule::Gated { given(file, &gate_name, &[k])? } else { None };
            if let Some(first) = gates.as_mut().and_then(|g| g.first_mut())
                && extra == 0
            {
                *first = 0.0;
            }
            (matrix, gates)
        }
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

/// The K × (S + K) logits a router starts from (weights, for `free` and `constant`), row-major.
fn initial_matrix(k: usize, extra: usize, o: &RouteOptions) -> Vec<f32> {
    let tau = o.tau as f64;
    let width = extra + k;
    let mut m = vec![0f32; k * width];
    for row in 0..k {
        for column in 0..=extra + row {
            let competing = if o.normalize == Normalize::Incoming { extra + row + 1 } else { k - column };
            let nearest = column == extra + row;
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
    (initial_matrix(k, extra, &RouteOptions { init: Init::Identity, rule, ..o.clone() }), vec![1.0; k])
}

/// The weights of a K × (S + K) router in f64, row-major, unused entries 0: the reference that lowerings are compared with.
pub fn reference_weights(
    logits: &[f32],
    gate: Option<&[f32]>,
    k: usize,
    rule: Rule,
    normalize: Normalize,
    tau: f32,
) -> Vec<f64> {
    let width = logits.len().checked_div(k).unwrap_or(0);
    let extra = width.saturating_sub(k);
    let at = |r: usize, c: usize| r * width + c;
    let mut w = vec![0f64; k * width];
    for row in 0..k {
        for column in 0..=extra + row {
            w[at(row, column)] = logits[at(row, column)] as f64;
        }
    }
    if matches!(rule, Rule::Free | Rule::Constant) {
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
