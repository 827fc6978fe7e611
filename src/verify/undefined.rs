//! Where a number that is none comes from: the first value on a path to an output that is NaN or infinite although what it is
//! computed from is finite.

use super::divergence::{chunks, run};
use super::{Subject, VerifyOptions};
use crate::engine::{Engine, Tensors};
use crate::io::tensor::NpTensor;
use ancre_passes::ir::{Kind, NodeId, ValueId};
use std::collections::HashMap;
use std::fmt;

/// What is wrong with a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wrong {
    Infinite,
    NotANumber,
}

impl Wrong {
    fn of(t: &NpTensor) -> Option<Wrong> {
        let judge = |v: f64| match (v.is_nan(), v.is_infinite()) {
            (true, _) => Some(Wrong::NotANumber),
            (_, true) => Some(Wrong::Infinite),
            _ => None,
        };
        t.dtype().is_float().then(|| t.to_f64().into_iter().filter_map(judge).max()).flatten()
    }
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Wrong::NotANumber { "NaN" } else { "an infinity" })
    }
}

/// Where it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The value.
    pub(crate) value: String,
    text: String,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The input that was fed with a NaN, in words, if there is one. Infinities may be meant, as in masks.
#[cfg(feature = "ort")]
pub(crate) fn fed(inputs: &Tensors) -> Option<String> {
    inputs.iter().find_map(|(name, t)| Some(in_input(name, Wrong::of(t).filter(|w| *w == Wrong::NotANumber)?)))
}

fn in_input(name: &str, wrong: Wrong) -> String {
    format!("the input `{name}` holds {wrong}")
}

/// Finds where the first of the outputs `ends` that is no finite number becomes so on these inputs; `None` where all are finite.
/// Fails when the engine cannot show the values.
pub(crate) fn origin(
    engine: &dyn Engine,
    s: &Subject,
    inputs: &Tensors,
    ends: &[&str],
    o: &VerifyOptions,
) -> Result<Option<Origin>, String> {
    let g = &s.graph;
    let ends: Vec<ValueId> = ends.iter().filter_map(|name| g.find(name)).collect();
    let before = g.ancestors(ends.iter().map(|v| v.node));
    // A result that the file leaves out has no name.
    let is_computed = |v: &ValueId| g.op(v.node).is_some() && g.is_float(*v) && !g.name(*v).is_empty();
    let order = g.topological_order().into_iter().filter(|id| before.contains(id));
    let values: Vec<(ValueId, ValueId)> = order.flat_map(|id| g.results(id)).filter(is_computed).map(|v| (v, v)).collect();
    let mut wrong: HashMap<ValueId, Wrong> = HashMap::new();
    for v in before.iter().flat_map(|id| g.results(*id)) {
        let given = inputs.get(g.name(v)).cloned();
        let tensor = given.or_else(|| NpTensor::from_constant(g.initializer(v).filter(|_| g.is_float(v))?).ok());
        wrong.extend(tensor.as_ref().and_then(Wrong::of).map(|w| (v, w)));
    }
    for chunk in chunks(g, &values, &super::Sizes::new(), o.max_memory) {
        let found = run(engine, s, chunk.iter().map(|(v, _)| *v), inputs)?;
        wrong.extend(chunk.iter().zip(&found).filter_map(|((v, _), t)| Some((*v, Wrong::of(t)?))));
    }
    let Some(mut at) = ends.iter().copied().find(|v| wrong.contains_key(v)) else { return Ok(None) };
    // A NaN comes from a NaN, or from an infinity such as the difference of two.
    let worst = |id: NodeId| g.reads(id).filter(|v| wrong.contains_key(v)).max_by_key(|v| wrong[v]);
    while let Some(from) = worst(at.node).filter(|v| wrong[v] >= wrong[&at]) {
        at = from;
    }
    let (name, kind) = (g.name(at), wrong[&at]);
    let reads: Vec<String> = g
        .reads(at.node)
        .map(|v| match wrong.get(&v) {
            Some(w) => format!("`{}` with {w}", g.name(v)),
            None => format!("`{}`", g.name(v)),
        })
        .collect();
    let text = match &g.node(at.node).kind {
        Kind::Input(_) => in_input(name, kind),
        Kind::Op(_) => {
            format!("`{name}`, which {} computes of {}, is the first to hold {kind}", g.site(at.node), reads.join(" and "))
        }
        _ => format!("the parameter `{name}` holds {kind}"),
    };
    Ok(Some(Origin { value: name.into(), text }))
}
