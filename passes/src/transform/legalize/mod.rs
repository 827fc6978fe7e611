//! Brings the operators of a source to one operator set, in which the rest of a training graph is built.
//!
//! ```text
//! decompose_contrib   com.microsoft.Attention, SkipLayerNormalization, …   → plain operators, as their rules say
//! from_old            1 …  6  →  7   when a model is read
//! to_opset            7 … 17  → 18   attributes become operands, older forms become today's
//!                     19 … 28 → 18   newer operators become plain ones; the rest loses attributes that say nothing
//! ```
//!
//! Opset 18 is the target because it is where most CUDA kernels are found. An operator that 18 cannot express (a new one that
//! is kept, an element type that came later) raises the opset to the smallest one that has it, never above the source's own.
//!
//! Values keep their ids and names: a node is rewritten in place, or becomes the last node of what replaces it. Nodes in
//! between are named under it. What cannot be decomposed, because its types are unknown or it uses a feature that has no
//! plain form (a key cache, packed weights), stays as it is; differentiation says why if it matters.

mod needs;
mod old;
mod upgrade;

pub use old::from_old;

use crate::analysis::types::{infer_node, is_resolved, merge};
use crate::ir::{Attrs, Graph, Kind, NodeId, NodeSite, Op, ValueId};
use crate::ir::{TensorType, ValueType};
use crate::onnx::schema::{self, meaning::Use};
use crate::ops::build::{BuildError, Builder};
use crate::ops::{self, Decomposed, Derivative, MICROSOFT, Source, TypeError};
use crate::refusal::{Applied, Why};

/// Operator set that training graphs are built for where the source allows it.
pub const TARGET: i64 = 18;

/// Brings every operator of the standard domain to `target` (18), or to the smallest newer operator set that can express them
/// all; sets the graph's operator set and returns it. The file format is raised to what that operator set came with.
///
/// # Errors
/// When an older form cannot be rewritten: the types it needs are unknown, or it stands in a subgraph.
pub fn to_opset(g: &mut Graph, target: i64) -> Result<i64, BuildError> {
    to_opset_within(g, target, &mut Applied::default())
}

fn to_opset_within(g: &mut Graph, target: i64, applied: &mut Applied) -> Result<i64, BuildError> {
    let from = g.opsets.get("").copied().unwrap_or(target);
    // New nodes are built in the target's forms, which every later operator set reads too.
    g.opsets.insert(String::new(), target);
    replace_each(g, from, is_standard, applied);
    let reached = needs::smallest(g, from, target);
    if from < reached {
        upgrade::upgrade(g, from, reached)?;
    }
    needs::respell(g, from, reached);
    g.opsets.insert(String::new(), reached);
    g.raise_ir(schema::ir_version_of(reached));
    Ok(reached)
}

fn is_standard(op: &Op) -> bool {
    op.domain.is_empty()
}

/// The lowest operator set that a newer one can be taken down to, and that a training graph can be in.
pub const LOWEST: i64 = TARGET;

/// Why a graph cannot be brought to an operator set.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ConvertError {
    #[error("the graph is of opset {0}; a graph is taken up to any later one, and down to {LOWEST} at the lowest")]
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
    if to < from && to < LOWEST {
        return Err(ConvertError::TooLow(from));
    }
    g.opsets.insert(String::new(), to);
    g.raise_ir(schema::ir_version_of(to));
    let changed = |op: &Op| Use::untyped(op, 0, 0).last_change(from.min(to), from.max(to), from).is_some();
    let lacking = |op: &Op| is_standard(op) && (schema::at("", &op.name, to).is_none() || changed(op));
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

/// Replaces fused operators of ONNX Runtime (`com.microsoft`) by plain ones where that is possible.
///
/// Runs before [`to_opset`], which may have to raise the operator set for what is built here.
pub fn decompose_contrib(g: &mut Graph) -> Applied {
    let mut applied = Applied::default();
    contrib(g, &mut applied);
    applied
}

fn contrib(g: &mut Graph, applied: &mut Applied) {
    let from = g.opsets.get("").copied().unwrap_or(TARGET);
    // This one the runtime also takes in the standard domain.
    replace_each(g, from, |op| op.domain == MICROSOFT || op.is("SimplifiedLayerNormalization"), applied);
}

/// Both: [`decompose_contrib`], then [`to_opset`], counting what is written as other operators and keeping why the rest is not.
///
/// # Errors
/// As [`to_opset`].
pub fn legalize(g: &mut Graph, target: i64, applied: &mut Applied) -> Result<i64, BuildError> {
    contrib(g, applied);
    to_opset_within(g, target, applied)
}

/// Why a node is not written as plain operators; `None` if it can be. May leave nodes behind that nobody reads.
pub(crate) fn refusal(g: &mut Graph, id: NodeId) -> Option<Why> {
    let opset = g.opsets.get("").copied().unwrap_or(TARGET);
    decomposed(&mut Builder::new(g, ""), id, opset)?.err()
}

/// What takes the place of a node whose rule says that it is written as other operators.
fn decomposed(b: &mut Builder, id: NodeId, from: i64) -> Option<Decomposed> {
    let rule = b.graph.op(id).and_then(ops::rule).filter(|r| matches!(r.derivative(), Derivative::Decompose(_)))?;
    b.prefix = stem(b.graph, id);
    let captured = b.graph.results(id).skip(1).any(|v| is_captured(b.graph, v));
    if captured || b.graph.captures(id).next().is_some() {
        return Some(Err(Why::Subgraph));
    }
    let source = Source::of(b.graph, id, from);
    Some(rule.decompose(b, &source))
}

/// Start of the names of nodes that are built for a node.
fn stem(g: &Graph, id: NodeId) -> String {
    let n = g.node(id);
    if n.name.is_empty() { n.results().first().map(|v| v.name.clone()).unwrap_or_default() } else { n.name.clone() }
}

/// Replaces every chosen node that can be, producers before consumers, so that each finds the types of its operands.
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
            // What cannot be built stays; nodes that were built before the failure are dead.
            Some(Err(why)) => applied.refused.push(why.at(b.graph.site(id))),
        }
    }
}

fn is_captured(g: &Graph, v: ValueId) -> bool {
    g.uses(v).any(|(n, operand)| operand >= g.node(n).operand_count())
}

/// Types a node's results by its rule where they are not known.
fn infer(g: &mut Graph, id: NodeId) {
    if g.results(id).all(|v| is_resolved(&g.value(v).ty)) {
        return;
    }
    for (v, ty) in g.results(id).zip(infer_node(g, id, g).unwrap_or_default()) {
        let ty = merge(&ty.into(), g.value(v).ty.clone());
        g.set_type(v, ty);
    }
}

fn unfit(op: &str, at: &str, what: &str) -> BuildError {
    BuildError { op: op.to_string(), prefix: at.to_string(), error: TypeError(what.to_string()) }
}

/// Makes `id` the producer of `new[0]`, which was built last for it, and gives the readers of its other results theirs.
fn install(g: &mut Graph, id: NodeId, new: &[ValueId]) -> Result<(), Why> {
    let unanswered = || Why::Feature("a result that is read");
    let Some(&first) = new.first() else { return Err(unanswered()) };
    let first = last_node(g, id, first, &new[1..]);
    for slot in 1..g.node(id).results().len() as u32 {
        let old = g.result(id, slot);
        let read = g.is_read(old) || g.is_output(old);
        match new.get(slot as usize) {
            Some(&v) if read => {
                g.replace_uses(old, v, |_| true);
                g.redirect_output(old, v);
                g.swap_names(old, v);
            }
            None if read => return Err(unanswered()),
            _ => {}
        }
    }
    let Kind::Op(op) = g.node(first.node).kind.clone() else { return Err(unanswered()) };
    let operands = g.operands(first.node).to_vec();
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
    if ours && v.node != id && !g.is_read(v) && !g.is_output(v) && !others.contains(&v) {
        return v;
    }
    let ty = g.value(v).ty.clone();
    let node = g.add_op("", Op::new("Identity", Attrs::new()), &[Some(v)]);
    g.push_result(node, "", ty)
}

/// Changes a node's attributes.
fn edit(g: &mut Graph, id: NodeId, change: impl FnOnce(&mut Attrs)) {
    if let Kind::Op(op) = &mut g.node_mut(id).kind {
        change(&mut op.attrs);
        op.attrs_changed = true;
    }
}

/// Adds an operator without a shape rule, whose one result has a known type.
fn raw(b: &mut Builder, op: Op, operands: &[Option<ValueId>], ty: TensorType) -> ValueId {
    let stem = format!("{}/{}", b.prefix, op.name);
    let node = b.graph.add_op(&stem, op, operands);
    b.graph.push_result(node, &stem, ValueType::from(ty))
}

#[cfg(test)]
mod old_tests;
#[cfg(test)]
mod tests;
