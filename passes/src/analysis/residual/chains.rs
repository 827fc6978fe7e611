//! Runs of identity joins, and what follows each add.

use super::classes::{clips_at_zero, fused_post};
use super::flow::Flow;
use super::join::Finder;
use super::layout::restores;
use super::loose::depends;
use super::reason::reason;
use super::transient::bridge;
use super::{Chain, Join, JoinKind, Rejected, ResidualStructure};
use crate::analysis::types::is_resolved;
use crate::ir::{NodeId, ValueId, ValueType};
use crate::ops::Class;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};

/// Nodes between an add and the next state: a decomposed normalisation followed by a decomposed activation fits.
const LONGEST_POST: usize = 40;

/// A value as a function of one join's sum alone.
#[derive(Clone)]
pub(super) struct Link {
    /// The join's add.
    pub(super) from: NodeId,
    /// The operators between, in order, without copies and rearrangements.
    ops: Vec<String>,
    /// The rearrangements between, in order.
    pub(super) rearranging: Vec<NodeId>,
    /// They cancel out.
    restored: bool,
}

/// Identity joins that follow each other, with what links each state to the sum before.
#[derive(Clone, Default)]
pub(super) struct Run {
    pub(super) joins: Vec<Join>,
    pub(super) links: Vec<Option<Link>>,
    /// The last state, where it is not what follows the last sum anyway.
    pub(super) end: Option<ValueId>,
}

/// Orders the joins into chains and explains the remaining adds.
pub(super) fn build(f: &Flow, finder: Finder) -> ResidualStructure {
    let mut structure = ResidualStructure::default();
    let mut taken: HashSet<NodeId> = HashSet::new();
    for j in finder.joins.iter().flatten() {
        taken.insert(j.node);
        taken.extend(&j.also);
    }
    let rejected = finder.adds.iter().filter(|a| !taken.contains(&a.node));
    structure.rejected =
        rejected.filter_map(|a| Some(Rejected { node: a.node, reason: reason(f, a.node, a.why?) })).collect();

    let mut joins: Vec<Join> = finder.joins.iter().flatten().cloned().collect();
    for j in &mut joins {
        let inside = finder.around(j).next();
        j.inside = inside;
    }
    joins.sort_by_key(|j| f.place_of(j.node));
    let sums: HashMap<NodeId, JoinKind> = joins.iter().map(|j| (j.node, j.kind)).collect();
    let mut last_of: HashMap<NodeId, usize> = HashMap::new();
    let mut runs: Vec<Run> = Vec::new();
    for join in joins {
        if join.kind == JoinKind::Projection {
            structure.projections.push(join);
            continue;
        }
        let link = link(f, join.state, &sums);
        let before = link.as_ref().filter(|l| l.restored).and_then(|l| Some((l.from, *last_of.get(&l.from)?)));
        let continued = before.filter(|(_, c)| {
            let first = &runs[*c].joins[0];
            first.inside == join.inside
                && f.may_agree(first.state, join.state)
                && f.may_have_one_dtype(first.state, join.state)
        });
        let continued = continued.map(|(from, c)| {
            last_of.remove(&from);
            c
        });
        let c = continued.unwrap_or_else(|| {
            runs.push(Run::default());
            runs.len() - 1
        });
        last_of.insert(join.node, c);
        runs[c].joins.push(join);
        runs[c].links.push(link);
    }
    let mut runs = bridge(f, runs);
    runs.sort_by_key(|r| first_add(f, &r.joins[0]));
    structure.chains = runs.into_iter().enumerate().map(|(id, run)| chain(f, &sums, id, run)).collect();
    structure
}

fn first_add(f: &Flow, join: &Join) -> u32 {
    join.also.iter().chain([&join.node]).map(|n| f.place_of(*n)).min().unwrap_or(0)
}

/// May the operator stand between an add and the next state?
fn may_follow(class: Class) -> bool {
    matches!(
        class,
        Class::Carry
            | Class::Layout
            | Class::Norm
            | Class::Reduce
            | Class::Scale
            | Class::Add
            | Class::Activation
            | Class::Nonlinear
            | Class::Rows
            | Class::Elementwise
    )
}

/// A value as a function of one join's sum alone, if it is one without mixing operators.
fn link(f: &Flow, v: ValueId, sums: &HashMap<NodeId, JoinKind>) -> Option<Link> {
    let mut open: SmallVec<[ValueId; 8]> = SmallVec::from_slice(&[v]);
    let mut ops = Vec::new();
    let mut rearranging = Vec::new();
    for _ in 0..LONGEST_POST {
        if let [only] = open.as_slice()
            && sums.contains_key(&only.node)
        {
            let op = f.g.op(only.node)?;
            if only.slot == 0 {
                ops.extend(fused_post(op));
            }
            ops.reverse();
            ops.dedup_by(|a, b| a == b && a == "Relu");
            rearranging.reverse();
            let restored = restores(f, *only, &rearranging);
            return Some(Link { from: only.node, ops, rearranging, restored });
        }
        let latest = open.iter().map(|v| v.node).max_by_key(|n| f.place_of(*n))?;
        let op = f.g.op(latest)?;
        let class = f.class_of(latest);
        if !may_follow(class) || sums.contains_key(&latest) {
            return None;
        }
        let joined = if class == Class::Add && open.len() == 1 { conditioned(f, latest, sums) } else { None };
        if class == Class::Layout && open.len() == 1 {
            rearranging.push(latest);
        } else if !matches!(class, Class::Carry | Class::Layout) {
            ops.push(op.name.clone());
        } else if clips_at_zero(f.g, latest) {
            ops.push("Relu".into());
        }
        open.retain(|v| v.node != latest);
        if let Some(sum) = joined {
            open.push(sum);
            continue;
        }
        for (operand, v) in f.reads[latest.index()].iter().filter(|(_, v)| f.is_live(*v)) {
            // What is carried on is the first operand; others are scales and types.
            if class == Class::Carry && *operand > 0 {
                return None;
            }
            if !open.contains(v) {
                open.push(*v);
            }
        }
    }
    None
}

/// The join's sum to which an add only adds what is not computed from it, such as another stream's message.
fn conditioned(f: &Flow, add: NodeId, sums: &HashMap<NodeId, JoinKind>) -> Option<ValueId> {
    let [(_, a), (_, b)] = f.reads[add.index()].as_slice() else { return None };
    [(*a, *b), (*b, *a)].into_iter().find_map(|(sum, other)| {
        let apart = sums.contains_key(&sum.node) && f.is_live(other) && !sums.contains_key(&other.node);
        (apart && f.may_agree(sum, f.g.result(add, 0)) && depends(f, other, sum) == Some(false)).then_some(sum)
    })
}

fn chain(f: &Flow, sums: &HashMap<NodeId, JoinKind>, id: usize, run: Run) -> Chain {
    let Run { joins, links, end: last } = run;
    let inner: Vec<&Link> = links.iter().skip(1).flatten().collect();
    // A single block has no inner link. The operators that made its state are the evidence then.
    let ops: Vec<String> = match inner.last().copied().or(links.first().and_then(Option::as_ref)) {
        Some(link) => link.ops.clone(),
        None => made_by(f, joins[0].state).into_iter().collect(),
    };
    let mut states: Vec<ValueId> = joins.iter().map(|j| j.state).collect();
    let end = joins.last().map(|j| j.sum).unwrap_or(joins[0].state);
    let after = if ops.is_empty() { Some(end) } else { after_post(f, sums, end, &ops) };
    let mut posts: Vec<String> = inner.iter().map(|l| post(&l.ops)).collect();
    if inner.is_empty() {
        posts.push(after.map_or("none".into(), |_| post(&ops)));
    }
    posts.sort_unstable();
    posts.dedup();
    states.push(last.or(after).unwrap_or(end));
    let ty = chain_type(f, &states);
    let scaled = joins.iter().any(|j| j.scaled_skip || j.scaled_branch);
    let period = period(&joins);
    let unit = if period == 0 { joins.len() } else { period };
    let mut words: Vec<String> = joins.iter().take(unit.min(8)).map(|j| j.signature.join("·")).collect();
    if unit > 8 {
        words.push("…".into());
    }
    Chain { id, states, ty, post: posts.join("/"), scaled, signature: words.join(" | "), period, joins }
}

/// The best known type among the states, which all have one.
fn chain_type(f: &Flow, states: &[ValueId]) -> ValueType {
    let best = states.iter().find(|v| is_resolved(&f.g.value(**v).ty)).or(states.first());
    best.map(|v| f.g.value(*v).ty.clone()).unwrap_or_default()
}

/// The single activation or normalisation that a value comes out of.
fn made_by(f: &Flow, v: ValueId) -> Option<String> {
    let mut at = v;
    for _ in 0..4 {
        match f.class_of(at.node) {
            Class::Carry | Class::Layout => at = f.g.operand(at.node, 0)?,
            class if class == Class::Norm || class.is_nonlinear() => return f.g.op(at.node).map(|o| o.name.clone()),
            _ => return f.g.op(at.node).and_then(fused_post),
        }
    }
    None
}

/// The value that results from a sum by the given operators and that alone is read further.
fn after_post(f: &Flow, sums: &HashMap<NodeId, JoinKind>, sum: ValueId, ops: &[String]) -> Option<ValueId> {
    let fused = f.g.op(sum.node).and_then(fused_post);
    if fused.is_some() && ops.len() == 1 {
        return Some(f.g.result(sum.node, 0));
    }
    let dtype = f.g.value(sum).ty.dtype;
    let mut seen = vec![sum];
    let mut next = 0;
    while next < seen.len() && next < LONGEST_POST {
        let v = seen[next];
        next += 1;
        for r in f.readers_of(v) {
            if !may_follow(f.class_of(r.consumer)) || sums.contains_key(&r.consumer) {
                continue;
            }
            for out in f.g.results(r.consumer).take(1) {
                if seen.contains(&out) {
                    continue;
                }
                let made = link(f, out, sums);
                // A quantised state is carried on, and added, as the numbers its integers stand for.
                let of_the_type = !f.g.is_op(out.node, "QuantizeLinear")
                    && f.g.value(out).ty.dtype.is_none_or(|t| dtype.is_none_or(|d| d == t));
                if of_the_type && made.as_ref().is_some_and(|l| l.from == sum.node && l.restored && l.ops == ops) {
                    return Some(out);
                }
                seen.push(out);
            }
        }
    }
    None
}

/// A name for the operators after an add.
fn post(ops: &[String]) -> String {
    if let [only] = ops {
        return match only.as_str() {
            "FastGelu" => "gelu".into(),
            "Swish" => "silu".into(),
            "LayerNormalization" => "layernorm".into(),
            "RMSNormalization" | "SimplifiedLayerNormalization" => "rmsnorm".into(),
            "BatchNormalization" => "batchnorm".into(),
            other => other.to_lowercase(),
        };
    }
    let has = |names: &[&str]| ops.iter().any(|o| names.contains(&o.as_str()));
    let reduces = ops.iter().any(|o| o.starts_with("Reduce"));
    let multiplies = has(&["Mul"]) && !reduces;
    let known = if ops.is_empty() {
        "none"
    } else if reduces && has(&["Sqrt", "Pow", "Reciprocal"]) && !has(&["Relu", "Erf", "Tanh", "Sigmoid"]) {
        if has(&["Sub"]) { "layernorm" } else { "rmsnorm" }
    } else if multiplies && has(&["Erf", "Tanh"]) {
        "gelu"
    } else if multiplies && has(&["Sigmoid"]) && ops.len() <= 3 {
        "silu"
    } else if multiplies && has(&["HardSigmoid"]) && ops.len() <= 3 {
        "hardswish"
    } else {
        let mut names: Vec<String> = ops.iter().map(|o| o.to_lowercase()).collect();
        names.dedup();
        names.truncate(6);
        return names.join("+");
    };
    known.into()
}

/// The smallest period of the signatures, if shorter than the chain; a trailing partial unit is allowed.
fn period(joins: &[Join]) -> usize {
    let k = joins.len();
    (1..k.max(2)).find(|p| (*p..k).all(|i| joins[i].signature == joins[i - p].signature)).unwrap_or(0)
}
