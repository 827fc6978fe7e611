//! Low-rank adapters (LoRA, arXiv 2106.09685) on chosen weights, which train in the weights' place.
//!
//! ```text
//!   before  y = MatMul(x, w)        after  base = MatMul(x, w)
//!                                          y = Add(base, MatMul(MatMul(x, w.lora_a), (alpha / rank) · w.lora_b))
//! ```
//!
//! A is [in, rank], uniform as PyTorch's `Linear` starts; B is [rank, out], zeros, so that the function is unchanged. A convolution's in
//! counts channels and taps: A is the kernel of a convolution of the same window to `rank` channels, B that of a 1 × 1 convolution after it.
//! A look-up reads rows of A. A weight that several nodes read has one adapter; a node that reads it the other way round (an embedding
//! that is the head too) gets x Bᵀ Aᵀ.

mod merge;
mod sites;

pub use merge::{MergeError, Merged, merge_adapters};

use super::fresh::{Fresh, constant};
use crate::analysis::head::find_head;
use crate::analysis::roles::{Role, initializer_roles};
use crate::contract::{AdapterKind, AdapterRecord, AdaptersRecord, Record};
use crate::ir::{Attrs, DType, Graph, NodeId, ValueId};
use crate::ops::TypeError;
use crate::ops::build::{BuildError, Builder, Built};
use crate::refusal::{Applied, Hint, Why};
use indexmap::IndexMap;
use sites::{Form, Site};
use std::collections::{HashMap, HashSet};

/// Which adapters to add.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AdapterOptions {
    /// Columns of A, rows of B.
    pub rank: i64,
    /// Numerator of the factor alpha / rank.
    pub alpha: f64,
    /// Names of weights and nodes (globs); none: the linear maps inside residual branches.
    pub on: Vec<String>,
    /// Weights that train by themselves and get none.
    pub except: Vec<String>,
    /// Seed of A.
    pub seed: u64,
}

impl AdapterOptions {
    /// Adapters of a rank on the linear maps inside residual branches; alpha is the rank, so that the factor is 1.
    pub fn of(rank: i64) -> AdapterOptions {
        AdapterOptions { rank, alpha: rank as f64, on: Vec::new(), except: Vec::new(), seed: 0 }
    }
}

/// Why adapters cannot be added.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum AdapterError {
    #[error("no linear map, convolution or embedding has a weight or a node whose name matches `{0}`")]
    NoMatch(String),
    #[error("no adapter can go to what matches `{pattern}`: {why}")]
    Refused { pattern: String, why: String },
    #[error("the model has no linear map with a weight of its own that could have an adapter{0}")]
    Nothing(String),
    #[error("the model has adapters already (`{0}`)")]
    Twice(String),
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl AdapterError {
    /// What the user may do about it.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            AdapterError::NoMatch(_) | AdapterError::Refused { .. } | AdapterError::Nothing(_) => Some(Hint::ChooseAdapted),
            AdapterError::Twice(_) | AdapterError::Build(_) => None,
        }
    }
}

/// Adds adapters; `branches` are the nodes inside residual branches. What is refused is a map that was meant and gets none.
///
/// # Errors
/// When a glob matches nothing, or there is nothing to adapt.
pub fn add_adapters(
    g: &mut Graph,
    o: &AdapterOptions,
    branches: &HashSet<NodeId>,
    matches: impl Fn(&str, &str) -> bool,
) -> Result<Applied, AdapterError> {
    if let Ok(Some(before)) = AdaptersRecord::read(g) {
        return Err(AdapterError::Twice(before.adapters.first().map(|a| a.a.clone()).unwrap_or_default()));
    }
    let mut applied = Applied::default();
    let chosen = choose(g, o, branches, matches, &mut applied)?;
    let mut weights: IndexMap<ValueId, Vec<Site>> = IndexMap::new();
    for s in chosen {
        weights.entry(s.weight).or_default().push(s);
    }
    let mut record = AdaptersRecord { rank: o.rank, alpha: o.alpha, adapters: Vec::new() };
    for (weight, sites) in weights {
        record.adapters.push(adapt(g, o, weight, &sites)?);
        applied.changed += 1;
    }
    record.write(g);
    Ok(applied)
}

/// The sites that were asked for.
fn choose(
    g: &Graph,
    o: &AdapterOptions,
    branches: &HashSet<NodeId>,
    matches: impl Fn(&str, &str) -> bool,
    applied: &mut Applied,
) -> Result<Vec<Site>, AdapterError> {
    let roles: HashMap<ValueId, Role> = initializer_roles(g).into_iter().collect();
    let heads: HashSet<NodeId> = g.outputs().iter().filter_map(|out| Some(find_head(g, out.value)?.node)).collect();
    let (mut all, mut refused) = (Vec::new(), Vec::new());
    for node in g.topological_order() {
        match sites::site(g, node) {
            None => {}
            Some(Err(why)) => refused.push((node, why)),
            Some(Ok(s)) if !s.quantised && !is_weight(&roles, &s) || o.except.iter().any(|n| n == g.name(s.weight)) => {}
            Some(Ok(s)) if sites::dtype(g, &s).is_none() || !sites::is_typed(g, &s) => {
                refused.push((node, "has operands or results of unknown types".into()));
            }
            Some(Ok(s)) => all.push(s),
        }
    }
    let all = whole(g, all, &mut refused);
    let named =
        |pattern: &String, g: &Graph, s: &Site| matches(pattern, g.name(s.weight)) || matches(pattern, &g.node(s.node).name);
    for pattern in &o.on {
        if all.iter().any(|s| named(pattern, g, s)) {
            continue;
        }
        let weights = |n: NodeId| g.reads(n).map(|v| g.name(v).to_string()).collect::<Vec<_>>();
        let hit = |n: NodeId| matches(pattern, &g.node(n).name) || weights(n).iter().any(|w| matches(pattern, w));
        return Err(match refused.iter().find(|(n, _)| hit(*n)) {
            Some((n, why)) => AdapterError::Refused { pattern: pattern.clone(), why: format!("{} {why}", g.site(*n)) },
            None => AdapterError::NoMatch(pattern.clone()),
        });
    }
    let linear = |s: &Site| s.kind != AdapterKind::Embedding;
    let inside = |n: &NodeId| branches.contains(n);
    let any_inside = all.iter().any(|s| linear(s) && inside(&s.node));
    let wanted: HashSet<ValueId> = all
        .iter()
        .filter(|s| match (o.on.is_empty(), any_inside) {
            (false, _) => o.on.iter().any(|p| named(p, g, s)),
            (true, true) => linear(s) && inside(&s.node),
            // A network without residual branches: all its maps but the last.
            (true, false) => linear(s) && !heads.contains(&s.node),
        })
        .map(|s| s.weight)
        .collect();
    // Whoever else reads a chosen weight reads it with its adapter.
    let of_choice: Vec<Site> = all.into_iter().filter(|s| wanted.contains(&s.weight)).collect();
    let meant = |n: &NodeId| o.on.is_empty() && (inside(n) || !any_inside);
    applied.refused.extend(refused.into_iter().filter(|(n, _)| meant(n)).map(|(n, why)| Why::Form(why).at(g.site(n))));
    if of_choice.is_empty() {
        let first = applied.refused.first().map(|r| format!(": {r}")).unwrap_or_default();
        return Err(AdapterError::Nothing(first));
    }
    Ok(of_choice)
}

/// Leaves out the sites of weights that others read as well: these would train with the old weight and run with the merged one. An adapter
/// of integers is never merged.
fn whole(g: &Graph, sites: Vec<Site>, refused: &mut Vec<(NodeId, String)>) -> Vec<Site> {
    let known: HashSet<(NodeId, ValueId)> = sites.iter().map(|s| (s.node, s.weight)).collect();
    let mut others: HashMap<ValueId, Option<NodeId>> = HashMap::new();
    let mut other = |s: &Site| {
        let is_site = |n| known.contains(&(n, s.weight));
        *others.entry(s.weight).or_insert_with(|| sites::other_reader(g, s.weight, is_site))
    };
    let mut left = Vec::new();
    for s in sites {
        match other(&s).filter(|_| !s.quantised) {
            None => left.push(s),
            Some(n) => {
                let why = format!("shares the weight `{}` with {}, which can have no adapter", g.name(s.weight), g.site(n));
                refused.push((s.node, why));
            }
        }
    }
    left
}

fn is_weight(roles: &HashMap<ValueId, Role>, s: &Site) -> bool {
    matches!(
        (roles.get(&s.weight), &s.form),
        (Some(Role::Embedding), _) | (Some(Role::Weight), Form::Product { .. } | Form::Conv)
    )
}

/// The tensors of one weight's adapter.
struct Factors {
    a: ValueId,
    /// B with the factor.
    b: ValueId,
}

/// Gives a weight an adapter at all nodes that read it.
fn adapt(g: &mut Graph, o: &AdapterOptions, weight: ValueId, sites: &[Site]) -> Result<AdapterRecord, BuildError> {
    let first = &sites[0];
    let name = g.name(weight).to_string();
    let [fan_in, out] = first.extents;
    let dtype = sites::dtype(g, first).unwrap_or(DType::F32);
    let (a_name, b_name) = (g.fresh_name(&format!("{name}.lora_a")), g.fresh_name(&format!("{name}.lora_b")));
    let start = Fresh::new(o.seed, &a_name).uniform(dtype, &[fan_in, o.rank], 1.0 / (fan_in.max(1) as f64).sqrt());
    let a = g.add_initializer(&a_name, start, false);
    let b = g.add_initializer(&b_name, constant(dtype, &[o.rank, out], 0.0), false);
    g.insert_at(Some(first.node));
    let mut builder = Builder::new(g, &format!("{name}/lora"));
    let scaled = builder.scale(b, o.alpha / o.rank as f64)?;
    let factors = Factors { a, b: scaled };
    let layout = first.layout();
    for s in sites {
        g.insert_at(Some(s.output.node));
        let mut builder = Builder::new(g, &format!("{name}/lora"));
        let delta = delta(&mut builder, &factors, o.rank, s, s.layout() != layout)?;
        let sum = builder.add(s.output, delta)?;
        let ty = g.value(s.output).ty.clone();
        g.set_type(sum, ty);
        g.supplant(s.output, sum);
        g.set_operand(sum.node, 0, Some(s.output));
        g.rename(s.output, &format!("{name}/base"));
    }
    g.insert_at(None);
    Ok(AdapterRecord {
        weight: name,
        a: a_name,
        b: b_name,
        node: g.site(first.node).name,
        kind: first.kind,
        layout,
        quantised: first.quantised,
    })
}

/// What an adapter adds to a node's result; `reversed`: the node reads the weight the other way round.
fn delta(b: &mut Builder, f: &Factors, rank: i64, s: &Site, reversed: bool) -> Built {
    let unread = || b.error("its input", TypeError("it is missing".into()));
    let x = s.read(b.graph).ok_or_else(unread)?;
    match s.form {
        Form::LookUp => {
            let rows = if reversed { b.transpose(f.b, &[1, 0])? } else { f.a };
            let found = b.op("Gather", &[rows, x])?;
            let rest = if reversed { b.transpose(f.a, &[1, 0])? } else { f.b };
            b.matmul(found, rest)
        }
        Form::Conv => {
            let weight = b.graph.initializer(s.weight).map(|t| t.dims().to_vec()).unwrap_or_default();
            let turned = b.transpose(f.a, &[1, 0])?;
            let shape: Vec<i64> = [rank].into_iter().chain(weight[1..].iter().copied()).collect();
            let down = b.reshape_to(turned, &shape)?;
            let turned = b.transpose(f.b, &[1, 0])?;
            let shape: Vec<i64> = [weight[0], rank].into_iter().chain(weight[2..].iter().map(|_| 1)).collect();
            let up = b.reshape_to(turned, &shape)?;
            let attrs = b.graph.op(s.node).map(|op| op.attrs.clone()).unwrap_or_default();
            let narrow = b.op_with("Conv", attrs, &[x, down])?;
            b.op_with("Conv", Attrs::new(), &[narrow, up])
        }
        Form::Product { left, turned, alpha } => {
            let input = if turned { b.transpose_last(x)? } else { x };
            // W is A B or, read the other way round, Bᵀ Aᵀ; on the left it is transposed once more.
            let (first, second) = match (reversed, left) {
                (false, false) => (f.a, f.b),
                (true, false) => (b.transpose(f.b, &[1, 0])?, b.transpose(f.a, &[1, 0])?),
                (false, true) => (b.transpose(f.a, &[1, 0])?, b.transpose(f.b, &[1, 0])?),
                (true, true) => (f.b, f.a),
            };
            let narrow = if left { b.matmul(first, input)? } else { b.matmul(input, first)? };
            let narrow = b.scale(narrow, alpha)?;
            if left { b.matmul(second, narrow) } else { b.matmul(narrow, second) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse;
    use crate::transform::glob;

    /// The number of adapters on the weight of a product or a convolution of a network that has one more node that reads it.
    fn adapted(ty: &str, more: &str) -> Result<usize, String> {
        let text = format!(
            "net (float[2, 4] x, float[1, 4, 3, 3] images, float[1, 8, 3, 3] wide) => (float[2, 4] y, float[1, 4, 3, 3] z, {ty} other)
            <float[4, 4] w = {{…}}, float[4, 4, 1, 1] k = {{…}}> {{ y = MatMul (x, w) z = Conv (images, k) {more} }}"
        );
        let mut g = parse(&text).unwrap();
        let on = if more.contains("k)") { "k" } else { "w" };
        let options = AdapterOptions { on: vec![on.into()], ..AdapterOptions::of(1) };
        add_adapters(&mut g, &options, &HashSet::new(), glob).map(|a| a.changed).map_err(|e| e.to_string())
    }

    #[test]
    fn a_weight_that_is_read_without_its_adapter_too_is_refused() {
        for (ty, more, why) in [
            ("float[1, 4, 3, 3]", "other = Conv <group = 2> (wide, k)", "convolves in 2 groups"),
            ("float[2, 4]", "other = Einsum <equation = \"ij,jk->ik\"> (x, w)", "Einsum"),
            ("float[1, 1]", "other = ReduceL2 (w)", "shares the weight `w` with"),
            ("float[4, 4]", "t = Transpose <perm = [1, 0]> (w) other = Neg (t)", "shares the weight `w` with"),
        ] {
            let e = adapted(ty, more).unwrap_err();
            assert!(e.contains(why), "{more}: {e}");
        }
        for (ty, more) in
            [("int64[2]", "other = Shape (w)"), ("float[2, 4]", "t = Transpose <perm = [1, 0]> (w) other = MatMul (x, t)")]
        {
            assert_eq!(adapted(ty, more), Ok(1), "{more}");
        }
    }
}
