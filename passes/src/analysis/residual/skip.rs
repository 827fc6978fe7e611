//! From an add backwards along one addend: where may the skip have started?

use super::classes::addends;
use super::flow::Flow;
use crate::ir::{NodeId, ValueId};
use crate::ops::{Class, Mixing};
use smallvec::SmallVec;

/// Steps looked back along a skip.
const LONGEST: usize = 16;
/// Nodes of a projection.
const LARGEST: usize = 32;

/// A place where a skip may start, and the operators that the skip passes from there.
#[derive(Clone, Debug)]
pub(super) struct Start {
    pub(super) state: ValueId,
    /// From the state to the add, both left out.
    pub(super) path: Vec<NodeId>,
    /// The use of the state that begins the path.
    pub(super) entry: (NodeId, usize),
    /// A scale is on the path.
    pub(super) scaled: bool,
    /// A scale that is more than one number is.
    pub(super) by_channel: bool,
    /// Convolutions and linear maps on the path.
    pub(super) maps: usize,
    /// Those that mix channels.
    dense: usize,
    /// Something on the path makes it a projection: more than the state unchanged.
    projected: bool,
    /// Adds on the path that take up further branches: (add, operand the skip comes in by).
    pub(super) through: Vec<(NodeId, usize)>,
}

impl Start {
    /// The value that an add reads as an operand, before any step back. `inner`: the add applies a convolution or product to it.
    fn at(f: &Flow, add: NodeId, operand: usize, inner: bool) -> Option<Start> {
        Some(Start {
            state: f.g.operand(add, operand)?,
            path: Vec::new(),
            entry: (add, operand),
            scaled: false,
            by_channel: false,
            maps: usize::from(inner),
            dense: usize::from(inner),
            projected: inner,
            through: Vec::new(),
        })
    }
}

/// Places along the identity path into operand `operand` of `add`, nearest first.
pub(super) fn identity_starts(f: &Flow, add: NodeId, operand: usize) -> Vec<Start> {
    let mut found: Vec<Start> = Start::at(f, add, operand, false).into_iter().collect();
    let mut next = 0;
    while next < found.len() && found.len() < LONGEST {
        let here = found[next].clone();
        next += 1;
        for (operand, scaled, through) in steps_back(f, here.state) {
            let node = here.state.node;
            let Some(state) = f.g.operand(node, operand) else { continue };
            let mut there = Start { state, entry: (node, operand), scaled: here.scaled | scaled, ..here.clone() };
            there.by_channel |= scaled && f.g.operand(node, 1 - operand).is_none_or(|v| !f.is_scalar(v));
            there.path.insert(0, node);
            if through {
                there.through.insert(0, (node, operand));
            }
            found.push(there);
        }
    }
    found
}

/// The operands by which a value's producer may hand a state on unchanged: (operand, by a scale, through a sum).
fn steps_back(f: &Flow, v: ValueId) -> SmallVec<[(usize, bool, bool); 4]> {
    let n = v.node;
    let mut steps = SmallVec::new();
    match f.class_of(n) {
        Class::Carry | Class::Layout if v.slot == 0 => steps.push((0, false, false)),
        Class::Scale => steps.extend(main_operand(f, n).map(|i| (i, true, false))),
        // Another branch of the same state may be added to the sum of the state and one branch.
        Class::Add if f.active_readers(v).count() == 1 => {
            let plain = addends(f.g, n).unwrap_or_default().into_iter().filter(|a| a.inner.is_none()).map(|a| a.operand);
            let compatible = |i: &usize| f.g.operand(n, *i).is_some_and(|o| f.may_agree(o, v));
            steps.extend(plain.filter(compatible).map(|i| (i, false, true)));
        }
        _ => {}
    }
    steps
}

/// The operand of a product that is scaled, when the other one is no more than a scale.
pub(super) fn main_operand(f: &Flow, n: NodeId) -> Option<usize> {
    let [a, b] = [f.g.operand(n, 0)?, f.g.operand(n, 1)?];
    let v = f.g.result(n, 0);
    let divides = f.g.op(n).is_some_and(|o| o.name == "Div");
    let fits = |main: ValueId, factor: ValueId| {
        f.may_agree(main, v) && f.is_scale_for(factor, main) && (!f.is_live(factor) || !f.may_agree(factor, v))
    };
    if fits(a, b) && (f.is_live(a) || !f.is_live(b)) {
        Some(0)
    } else if !divides && fits(b, a) {
        Some(1)
    } else {
        None
    }
}

/// Places where a projection into operand `operand` of `add` may have started, nearest first.
///
/// Walks back over the nodes of the projection in reverse order. Whenever a single value is left to explain, it is a possible
/// state. `inner`: the add itself applies a convolution or product to the operand. `through` gives the skip's operand of a sum
/// that is part of the projection.
pub(super) fn projection_starts(
    f: &Flow,
    add: NodeId,
    operand: usize,
    inner: bool,
    through: &dyn Fn(NodeId) -> Option<usize>,
) -> Vec<Start> {
    let mut found = Vec::new();
    let Some(mut here) = Start::at(f, add, operand, inner) else { return found };
    let mut open: SmallVec<[ValueId; 8]> = SmallVec::from_slice(&[here.state]);
    loop {
        if let [only] = open.as_slice() {
            here.state = *only;
            here.entry = entry_of(f, *only, &here.path).unwrap_or(here.entry);
            if here.projected {
                found.push(here.clone());
            }
        }
        let Some(latest) = open.iter().map(|v| v.node).max_by_key(|n| f.place_of(*n)) else { break };
        if here.path.len() >= LARGEST {
            break;
        }
        let Some(reads) = project_back(f, latest, &mut here, through) else { break };
        open.retain(|v| v.node != latest);
        here.path.insert(0, latest);
        for v in reads {
            if !open.contains(&v) {
                open.push(v);
            }
        }
    }
    found
}

fn entry_of(f: &Flow, state: ValueId, path: &[NodeId]) -> Option<(NodeId, usize)> {
    f.readers_of(state).find(|r| path.contains(&r.consumer)).map(|r| (r.consumer, r.operand as usize))
}

/// The operands to go on with if the node may be part of a projection.
fn project_back(
    f: &Flow,
    n: NodeId,
    here: &mut Start,
    through: &dyn Fn(NodeId) -> Option<usize>,
) -> Option<SmallVec<[ValueId; 4]>> {
    let op = f.g.op(n)?;
    let reads = &f.reads[n.index()];
    let data: SmallVec<[ValueId; 4]> = reads.iter().map(|(_, v)| *v).filter(|v| f.is_live(*v)).collect();
    let class = f.class_of(n);
    match class {
        Class::Carry | Class::Layout => {}
        Class::Scale => {
            here.scaled = true;
            return Some(SmallVec::from_slice(&[f.g.operand(n, main_operand(f, n)?)?]));
        }
        Class::Add => {
            if let Some(skip) = through(n) {
                here.through.insert(0, (n, skip));
                return Some(SmallVec::from_slice(&[f.g.operand(n, skip)?]));
            }
            // Otherwise the add may only add a bias.
        }
        Class::Norm => here.projected = true,
        Class::Select
            if matches!(op.name.as_str(), "Split" | "Gather" | "Expand" | "Tile" | "GatherElements" | "GatherND") =>
        {
            return None;
        }
        Class::Reduce | Class::Select | Class::Concat | Class::Mixing(Mixing::Pool | Mixing::Conv | Mixing::MatMul) => {
            here.projected = true;
            if matches!(class, Class::Mixing(Mixing::Conv | Mixing::MatMul)) {
                here.maps += 1;
                here.dense += usize::from(!is_depthwise(f, n));
            }
            if here.dense > 1 {
                return None;
            }
        }
        _ => return None,
    }
    let fits = if class == Class::Concat { !data.is_empty() } else { data.len() == 1 };
    fits.then_some(data)
}

/// A convolution that keeps the channels apart, such as a blur before a stride.
fn is_depthwise(f: &Flow, n: NodeId) -> bool {
    let Some(op) = f.g.op(n) else { return false };
    let group = op.int("group");
    let outputs = f.g.operand(n, 1).and_then(|w| f.g.value(w).ty.shape.as_ref()?.first()?.known());
    group > 1 && outputs == Some(group)
}
