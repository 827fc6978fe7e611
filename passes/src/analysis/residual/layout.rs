//! Do rearrangements cancel out?
//!
//! A tensor is written as an ordered list of factors; each axis owns some neighbours. A reshape gives the same list other owners,
//! and splits a factor where an axis ends inside it. A transpose moves whole axes. The elements are back in their places when
//! the factors are in their first order again.

use super::flow::Flow;
use crate::ir::{Dim, NodeId, Op, ValueId};
use crate::ops::{Class, permutation};

/// Factors in row-major order: (place in the original order, extent).
type Factors = Vec<(usize, Dim)>;

/// Does a value keep its shape and the places of its elements through these nodes, of which the first reads it and each next
/// one the result before? Nodes that rearrange nothing are allowed among them.
pub(super) fn restores(f: &Flow, from: ValueId, nodes: &[NodeId]) -> bool {
    let rearranging: Vec<NodeId> = nodes.iter().copied().filter(|n| f.class_of(*n) == Class::Layout).collect();
    let Some(last) = rearranging.last() else { return true };
    // Two transposes go there and back. More of them form other windows, even where a single window makes both forms equal.
    if rearranging.iter().filter(|n| is_transpose(f, **n)).count() > 2 {
        return false;
    }
    let (Some(before), Some(after)) = (shape(f, from), shape(f, f.g.result(*last, 0))) else {
        return restores_by_permutations(f, &rearranging);
    };
    if before != after {
        return false;
    }
    trace(f, before, &rearranging).unwrap_or_else(|| restores_by_permutations(f, &rearranging))
}

fn shape<'g>(f: &Flow<'g>, v: ValueId) -> Option<&'g [Dim]> {
    f.g.value(v).ty.shape.as_deref()
}

fn is_transpose(f: &Flow, n: NodeId) -> bool {
    f.g.op(n).is_some_and(|op| op.name == "Transpose" || (is_reorder(op) && op.int("channels_last") != 0))
}

/// Does the operator bring channels into blocks, or out of them?
fn is_reorder(op: &Op) -> bool {
    matches!(op.name.as_str(), "ReorderInput" | "ReorderOutput")
}

/// The order of the axes that an operator gives a value.
fn axes_order(op: &Op, rank: usize) -> Option<Vec<usize>> {
    if is_reorder(op) {
        return Some(if op.name == "ReorderInput" { vec![0, 3, 1, 2] } else { vec![0, 2, 3, 1] }).filter(|_| rank == 4);
    }
    permutation(&op.attrs, rank)
}

fn trace(f: &Flow, shape_before: &[Dim], nodes: &[NodeId]) -> Option<bool> {
    let mut axes: Vec<Factors> = shape_before
        .iter()
        .enumerate()
        .map(|(i, d)| if d.is_one() { Vec::new() } else { vec![(i << 16, d.clone())] })
        .collect();
    for n in nodes {
        if is_transpose(f, *n) {
            let perm = axes_order(f.g.op(*n)?, axes.len())?;
            axes = perm.iter().map(|p| axes[*p].clone()).collect();
        } else if !f.g.op(*n).is_some_and(is_reorder) {
            let flat: Factors = axes.concat();
            axes = regroup(flat, shape(f, f.g.result(*n, 0))?)?;
        }
    }
    let order: Vec<usize> = axes.concat().iter().map(|(place, _)| *place).collect();
    Some(order.windows(2).all(|w| w[0] < w[1]))
}

/// Distributes factors over the axes of a new shape, splitting them where needed. `None` when that cannot be done by whole
/// factors.
fn regroup(flat: Factors, shape: &[Dim]) -> Option<Vec<Factors>> {
    let mut rest = flat.into_iter();
    let mut next = rest.next();
    let mut axes = Vec::with_capacity(shape.len());
    for extent in shape {
        let mut axis = Vec::new();
        let mut open = extent.clone();
        while !open.is_one() {
            let (place, size) = next.take()?;
            if let Some(quotient) = open.div_exact(&size) {
                axis.push((place, size));
                open = quotient;
                next = rest.next();
            } else {
                // The outer part belongs to this axis, the inner part to the axes after it.
                let inner = size.div_exact(&open)?;
                axis.push((place, open));
                next = Some((place + 1, inner));
                open = Dim::from(1);
            }
        }
        axes.push(axis);
    }
    next.is_none().then_some(axes)
}

/// Without shapes: do the permutations cancel in pairs, inner ones first?
fn restores_by_permutations(f: &Flow, nodes: &[NodeId]) -> bool {
    let mut stack: Vec<Vec<usize>> = Vec::new();
    for n in nodes {
        let Some(op) = f.g.op(*n) else { return false };
        if !is_transpose(f, *n) {
            continue;
        }
        let rank = if is_reorder(op) { 4 } else { op.attrs.ints("perm").map_or(0, <[i64]>::len) };
        let Some(perm) = axes_order(op, rank).filter(|_| rank > 0) else { return false };
        let undoes =
            |last: &Vec<usize>| last.len() == perm.len() && perm.iter().enumerate().all(|(i, p)| last.get(*p) == Some(&i));
        if stack.last().is_some_and(undoes) {
            stack.pop();
        } else {
            stack.push(perm);
        }
    }
    stack.is_empty()
}
