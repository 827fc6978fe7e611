//! Brings the operators of a source to one operator set, in which the rest of a training graph is built.
//!
//! ```text
//! from_old            1 …  6  →  7   when a model is read
//! decompose_contrib   com.microsoft.Attention, SkipLayerNormalization, …   → plain operators, as their rules say
//! to_opset            7 … 17  → 18   attributes become operands, older forms become today's
//!                     19 … 28 → 18   newer operators become plain ones; attributes that say nothing are left out
//! ```
//!
//! Opset 18 is the target because ONNX Runtime has the most CUDA kernels for it. An operator that 18 cannot express (a new one that
//! is kept, an element type that came later) raises the opset to the smallest one that has it, never above the source's own.
//!
//! Values keep their ids and names: a node is rewritten in place, or becomes the last node of what replaces it. Nodes in
//! between are named under it. A node that cannot be decomposed, because its types are unknown or it uses a feature that has no
//! plain form (a key cache, packed weights), stays as it is. Differentiation says why if it matters.

mod needs;
mod old;
mod upgrade;

pub use old::from_old;

use crate::analysis::types::{infer_node, is_resolved, merge};
use crate::ir::{Attr, Attrs, Graph, NodeId, NodeSite, Op, ValueId};
use crate::onnx::schema::{self, meaning::Use};
use crate::ops::build::{BuildError, Builder};
use crate::ops::{self, Decomposed, Derivative, MICROSOFT, OpRule, Source, TypeError};
use crate::refusal::{Applied, Why};
use crate::transform::train_batch_norm;

/// Operator set that training graphs are built for where the source allows it. No training graph has a lower one, and no newer
/// graph is taken down to a lower one.
pub const TARGET: i64 = 18;

/// Brings every operator of the standard domain to `target`, or to the smallest newer operator set that can express them
/// all; sets the graph's operator set and returns it. The file format is raised to what that operator set came with.
///
/// # Errors
/// When an older form cannot be rewritten: the types it needs are unknown, or it stands in a subgraph.
pub fn to_opset(g: &mut Graph, target: i64, applied: &mut Applied) -> Result<i64, BuildError> {
    let from = g.opsets.get("").copied().unwrap_or(target);
    // New nodes are built in the target's forms, which every later operator set reads too.
    g.opsets.insert(String::new(), target);
    replace_each(g, from, |op| op.domain.is_empty(), applied);
    let reached = needs::smallest(g, from, target);
    if from < reached {
        upgrade::upgrade(g, from, reached)?;
    }
    needs::respell(g, from, reached);
    g.opsets.insert(String::new(), reached);
    g.raise_ir(schema::ir_version_of(reached));
    train_batch_norm::normalize_by_batch(g)?;
    for id in g.topological_order() {
        if let Some(padded) = ops::explicit_padding(g, id) {
            g.edit_attrs(id, |a| *a = padded);
        }
        ops::write_padding_out(g, id)?;
    }
    Ok(reached)
}

/// Why a graph cannot be brought to an operator set.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ConvertError {
    #[error("the graph is of opset {0}; a graph is taken up to any later one, and down to {TARGET} at the lowest")]
    TooLow(i64),
    #[error("{site} needs opset {needed}, {to} was asked for")]
    Needs { site: NodeSite, needed: i64, to: i64 },
    #[error(transparent)]
    Build(#[from] BuildError),
}

/// Brings a graph to exactly this operator set, changing no node that means the same there.
///
/// # Errors
/// When the operator set lacks an operator as it is used, or an older form cannot be rewritten.
pub fn convert(g: &mut Graph, to: i64) -> Result<(), ConvertError> {
    let from = g.opsets.get("").copied().unwrap_or(to);
    if from == to {
        return Ok(());
    }
    if to < from && to < TARGET {
        return Err(ConvertError::TooLow(from));
    }
    g.opsets.insert(String::new(), to);
    g.raise_ir(schema::ir_version_of(to));
    let changed = |op: &Op| Use::untyped(op, 0, 0).last_change(from.min(to), from.max(to), from).is_some();
    let lacking = |op: &Op| op.domain.is_empty() && (schema::at("", &op.name, to).is_none() || changed(op));
    replace_each(g, from, lacking, &mut Applied::default());
    if let Some((node, needed)) = needs::beyond(g, from, to) {
        return Err(ConvertError::Needs { site: g.site(node), needed, to });
    }
    if from < to {
        upgrade::upgrade(g, from, to)?;
    }
    needs::respell(g, from, to);
    Ok(())
}

/// Replaces fused operators of ONNX Runtime (`com.microsoft`) by plain ones where that is possible. Runs before [`to_opset`],
/// which may have to raise the operator set for what is built here.
pub fn decompose_contrib(g: &mut Graph, applied: &mut Applied) {
    let from = g.opsets.get("").copied().unwrap_or(TARGET);
    // ONNX Runtime accepts this operator in the standard domain too.
    replace_each(g, from, |op| op.domain == MICROSOFT || op.is("SimplifiedLayerNormalization"), applied);
}

/// Why a node is not written as plain operators; `None` if it can be. May leave nodes behind that nobody reads.
pub(crate) fn refusal(g: &mut Graph, id: NodeId) -> Option<Why> {
    let opset = g.opsets.get("").copied().unwrap_or(TARGET);
    decomposed(&mut Builder::new(g, ""), id, opset)?.err()
}

/// What takes the place of a node whose rule says that it is written as other operators.
fn decomposed(b: &mut Builder, id: NodeId, from: i64) -> Option<Decomposed> {
    let op = b.graph.op(id)?;
    let rewritten = |r: &&dyn OpRule| matches!(r.derivative(), Derivative::Decompose(_)) || ops::is_batch_first(op);
    let rule = ops::rule(op).filter(rewritten)?;
    b.prefix = stem(b.graph, id);
    let captured = b.graph.results(id).skip(1).any(|v| b.graph.is_captured(v));
    if captured || b.graph.captures(id).next().is_some() {
        return Some(Err(Why::Subgraph));
    }
    if let Some(e) = ops::misfit(b.graph, id) {
        return Some(Err(Why::Form(format!("does not fit its operands: {e}"))));
    }
    let source = Source::of(b.graph, id, from);
    Some(rule.decompose(b, &source))
}

/// Start of the names of nodes that are built for a node.
fn stem(g: &Graph, id: NodeId) -> String {
    let n = g.node(id);
    if n.name.is_empty() { n.results().first().map(|v| v.name.clone()).unwrap_or_default() } else { n.name.clone() }
}

/// Replaces every chosen node that can be replaced. Producers come before consumers, which need the types of their operands.
fn replace_each(g: &mut Graph, from: i64, chosen: impl Fn(&Op) -> bool, applied: &mut Applied) {
    let mut b = Builder::new(g, "");
    for id in b.graph.topological_order() {
        infer(b.graph, id);
        if !b.graph.op(id).is_some_and(&chosen) || applied.left == Some(0) {
            continue;
        }
        let installed = decomposed(&mut b, id, from).map(|new| new.and_then(|new| install(b.graph, id, &new)));
        match installed {
            None => {}
            Some(Ok(())) => _ = applied.allows(&b.graph.site(id)),
            // Nodes that were built before the failure are dead.
            Some(Err(why)) => applied.refused.push(why.at(b.graph.site(id))),
        }
    }
}

/// Gives a node's results the types of its rule where they are not known, or where the file declares what cannot be.
fn infer(g: &mut Graph, id: NodeId) {
    for (v, ty) in g.results(id).zip(infer_node(g, id, g).unwrap_or_default()) {
        let known = g.value(v).ty.clone();
        let agrees = match known.tensor() {
            Some(known) => known.may_be(&ty),
            None => known.dtype.is_none_or(|t| t == ty.dtype) && known.shape.as_ref().is_none_or(|s| s.len() == ty.rank()),
        };
        if !agrees {
            g.set_type(v, ty.into());
        } else if !is_resolved(&known) {
            g.set_type(v, merge(&ty.into(), known));
        }
    }
}

fn unfit(op: &str, at: &str, what: &str) -> BuildError {
    BuildError { op: op.to_string(), prefix: at.to_string(), error: TypeError(what.to_string()) }
}

/// Makes `id` the producer of `new[0]`, which was built last for it. The other new values take the place of its other results.
fn install(g: &mut Graph, id: NodeId, new: &[ValueId]) -> Result<(), Why> {
    let unanswered = || Why::Feature("a result that is read");
    let first = last_node(g, id, *new.first().ok_or_else(unanswered)?, &new[1..]);
    // A router may name a state that nobody reads.
    let named = |v: &ValueId| g.is_needed(*v) || g.routers.values().any(|r| r.values().any(|w| w == *v));
    let needed: Vec<ValueId> = g.results(id).skip(1).filter(named).collect();
    if needed.iter().any(|v| v.slot as usize >= new.len()) {
        return Err(unanswered());
    }
    needed.into_iter().for_each(|old| g.supplant(old, new[old.slot as usize]));
    let op = g.op(first.node).cloned().ok_or_else(unanswered)?;
    let operands = g.operands(first.node).to_vec();
    if let (Some(own), Some(plain)) = (g.tensor_type(g.result(id, 0)), g.tensor_type(first))
        && !own.may_be(&plain)
    {
        return Err(Why::Unbuildable(format!("it gives {own}, and its plain form {plain}")));
    }
    let ty = merge(&g.value(first).ty.clone(), g.value(g.result(id, 0)).ty.clone());
    g.replace_op(id, op, &operands);
    g.set_type(g.result(id, 0), ty);
    g.drop_results(id, 1);
    g.remove(first.node);
    Ok(())
}

/// The value itself if its node may become `id`, else an `Identity` of it.
fn last_node(g: &mut Graph, id: NodeId, v: ValueId, others: &[ValueId]) -> ValueId {
    let n = g.node(v.node);
    let ours = n.op().is_some_and(|op| op.source.is_none()) && n.results().len() == 1;
    if ours && v.node != id && !g.is_needed(v) && !others.contains(&v) {
        return v;
    }
    let ty = g.value(v).ty.clone();
    let node = g.add_op("", Op::new("Identity", Attrs::new()), &[Some(v)]);
    g.push_result(node, "", ty)
}

/// Sets an attribute.
fn set(g: &mut Graph, id: NodeId, name: &str, value: impl Into<Attr>) {
    g.edit_attrs(id, |a| _ = a.0.insert(name.into(), value.into()));
}

/// Removes an attribute and returns it.
fn take(g: &mut Graph, id: NodeId, name: &str) -> Option<Attr> {
    g.op(id)?.attrs.get(name)?;
    let mut taken = None;
    g.edit_attrs(id, |attrs| taken = attrs.0.shift_remove(name));
    taken
}

#[cfg(test)]
mod old_tests;
#[cfg(test)]
mod tests;
