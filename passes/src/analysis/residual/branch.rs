//! The region between a state and an add: is it a residual branch?

use super::Why;
use super::classes::{clips_at_zero, fused_activation};
use super::flow::Flow;
use crate::ir::{NodeId, ValueId};
use crate::ops::{Class, Mixing};
use smallvec::SmallVec;

/// An add under examination, seen with one of its addends as the skip.
pub(super) struct Question<'a> {
    pub(super) add: NodeId,
    /// The operand that would be the skip.
    pub(super) skip_operand: usize,
    /// The other addends' operands.
    pub(super) branch_operands: &'a [usize],
    /// Mixing operator inside the add that those pass.
    pub(super) inner: Option<Mixing>,
    /// Where the skip would start.
    pub(super) state: ValueId,
    /// The nodes between the state and the add on the skip's side.
    pub(super) path: &'a [NodeId],
}

/// The nodes between a state and an add, without the skip.
#[derive(Debug, Default)]
pub(super) struct Region {
    /// Its nodes, in order.
    pub(super) nodes: Vec<NodeId>,
    /// Does it hold a nonlinear function?
    pub(super) nonlinear: bool,
}

/// Node sets that are cheap to clear.
pub(super) struct Marks {
    stamp: Vec<u32>,
    now: u32,
}

impl Marks {
    pub(super) fn new(bound: usize) -> Marks {
        Marks { stamp: vec![0; bound], now: 0 }
    }
    pub(super) fn clear(&mut self) {
        self.now += 1;
    }
    pub(super) fn insert(&mut self, n: NodeId) -> bool {
        let new = self.stamp[n.index()] != self.now;
        self.stamp[n.index()] = self.now;
        new
    }
    pub(super) fn contains(&self, n: NodeId) -> bool {
        self.stamp[n.index()] == self.now
    }
}

/// Words of a signature: a branch around half a network is not spelled out.
const LONGEST_SIGNATURE: usize = 64;
/// Values beside the state that count as the state.
const MOST_SHARED: usize = 16;
/// Nodes looked at before giving up on a question of reachability.
const FAR: usize = 4096;

/// Is `to` computed from one of these nodes? The search stops at [`FAR`] nodes with yes.
fn reaches(f: &Flow, from: &[NodeId], to: NodeId, marks: &mut Marks) -> bool {
    marks.clear();
    let mut stack: Vec<NodeId> = from.to_vec();
    let mut looked = 0;
    while let Some(n) = stack.pop() {
        looked += 1;
        if n == to || looked > FAR {
            return true;
        }
        for r in &f.readers[n.index()] {
            if f.place_of(r.consumer) <= f.place_of(to) && !f.spent[r.consumer.index()] && marks.insert(r.consumer) {
                stack.push(r.consumer);
            }
        }
    }
    false
}

/// Are the other addends a residual branch from the state? They must be computed from it through a mixing operator, and the nodes
/// between must feed nothing but the add. The state itself may have any other reader, values may enter the branch from anywhere,
/// and results of the branch may be outputs.
pub(super) fn branch(f: &Flow, q: &Question, marks: &mut Marks) -> Result<Region, Why> {
    let begins_skip = |consumer: NodeId, operand: usize| {
        if consumer == q.add {
            operand == q.skip_operand
        } else {
            q.path.contains(&consumer) && enters(f, q, consumer, operand)
        }
    };
    let mut seeds: Vec<NodeId> = Vec::new();
    let mut strays: Vec<NodeId> = Vec::new();
    let mut directly = false;
    // The state, and values that are computed from it alone without mixing. An activation that several branches share is no more
    // a leak than the state is.
    let mut same: SmallVec<[ValueId; 8]> = SmallVec::from_slice(&[q.state]);
    let mut next = 0;
    while next < same.len() {
        let v = same[next];
        next += 1;
        for r in f.active_readers(v) {
            let c = r.consumer;
            if begins_skip(c, r.operand as usize) {
                continue;
            }
            if c == q.add {
                directly |= q.branch_operands.contains(&(r.operand as usize));
            } else if f.place_of(c) < f.place_of(q.add) {
                if f.post_dominates(q.add, c) {
                    seeds.push(c);
                } else if same.len() < MOST_SHARED && !q.path.contains(&c) && is_function_of(f, c, &same) {
                    same.extend(f.g.results(c).filter(|v| !same.contains(v)).collect::<SmallVec<[ValueId; 2]>>());
                } else {
                    strays.push(c);
                }
            }
        }
    }
    strays.retain(|c| !same.iter().any(|v| v.node == *c));
    if seeds.is_empty() && !(directly && q.inner.is_some()) {
        // `loose` asks whether strays reach the add, once the joins around it are known.
        return Err(match strays.first() {
            _ if directly => Why::NoMixing(q.state),
            Some(stray) => Why::Leaks(q.state, *stray),
            None => Why::Independent,
        });
    }
    if !strays.is_empty() && reaches(f, &strays, q.add, marks) {
        return Err(Why::Leaks(q.state, strays[0]));
    }
    let region = walk(f, q, seeds, directly, marks)?;
    if !f.is_live(q.state) && !starts_like_a_state(f, q, &region) {
        return Err(Why::Constant(q.state));
    }
    Ok(region)
}

/// Is the node computed from the given values and constants alone, without mixing?
fn is_function_of(f: &Flow, n: NodeId, values: &[ValueId]) -> bool {
    let class = f.class_of(n);
    let kind = class.is_nonlinear()
        || matches!(class, Class::Carry | Class::Layout | Class::Norm | Class::Scale | Class::Elementwise | Class::Reduce);
    kind && f.reads[n.index()].iter().all(|(_, v)| values.contains(v) || !f.is_live(*v))
}

/// Does the read of `consumer` continue the skip path, rather than lead the branch into it?
fn enters(f: &Flow, q: &Question, consumer: NodeId, operand: usize) -> bool {
    // Of two reads of one value by one node (x·x) the first is the path.
    f.reads[consumer.index()].iter().find(|(_, v)| *v == q.state).is_some_and(|(i, _)| *i as usize == operand)
}

fn walk(f: &Flow, q: &Question, seeds: Vec<NodeId>, directly: bool, marks: &mut Marks) -> Result<Region, Why> {
    marks.clear();
    let mut stack = seeds;
    stack.retain(|n| marks.insert(*n));
    let mut region = Region::default();
    let mut arrives = directly;
    while let Some(n) = stack.pop() {
        if n == q.add {
            continue;
        }
        if q.path.contains(&n) {
            // A sum on the skip path takes another branch up on the way (x + f + g). Any other operator there makes the skip
            // itself a function of the state.
            if f.class_of(n) != Class::Add {
                return Err(Why::Gated(q.state, n));
            }
            continue;
        }
        region.nodes.push(n);
        for r in &f.readers[n.index()] {
            if f.spent[r.consumer.index()] {
                continue;
            }
            if r.consumer == q.add {
                arrives |= q.branch_operands.contains(&(r.operand as usize));
            }
            if marks.insert(r.consumer) {
                stack.push(r.consumer);
            }
        }
    }
    if !arrives {
        return Err(Why::Independent);
    }
    region.nodes.sort_unstable_by_key(|n| f.place_of(*n));
    region.nonlinear = region.nodes.iter().any(|n| is_nonlinear(f, *n, marks));
    if q.inner.is_none() && !region.nodes.iter().any(|n| matches!(f.class_of(*n), Class::Mixing(_))) {
        return Err(Why::NoMixing(q.state));
    }
    Ok(region)
}

/// An activation, or a product of two values of the region (which `marks` holds).
fn is_nonlinear(f: &Flow, n: NodeId, marks: &Marks) -> bool {
    match f.class_of(n) {
        class if class.is_nonlinear() => true,
        Class::Mixing(Mixing::Attention | Mixing::Recurrent | Mixing::Opaque) => true,
        Class::Mixing(_) | Class::Carry | Class::Add => {
            clips_at_zero(f.g, n) || f.g.op(n).and_then(fused_activation).is_some()
        }
        Class::Scale => f.reads[n.index()].iter().filter(|(_, v)| marks.contains(v.node)).count() > 1,
        _ => false,
    }
}

/// Can the constant be a state? Learned latents that attend to the input can. A bias that several layers share cannot: no branch
/// starts with its being added to data.
fn starts_like_a_state(f: &Flow, q: &Question, region: &Region) -> bool {
    let rank = f.g.value(q.state).ty.shape.as_ref().map_or(0, Vec::len);
    rank >= 2
        && !region.nodes.iter().any(|n| {
            let reads = &f.reads[n.index()];
            reads.iter().any(|(_, v)| *v == q.state)
                && matches!(f.class_of(*n), Class::Add | Class::Elementwise | Class::Scale)
                && reads.iter().any(|(_, v)| f.is_live(*v))
        })
}

/// The region's mixing operators in order. Two products around a softmax are one word, `Attention`. `MatMulᵀ` is a product across
/// another axis than the last (token mixing).
pub(super) fn signature(f: &Flow, region: &Region, inner: Option<Mixing>, marks: &mut Marks) -> Vec<String> {
    marks.clear();
    for n in &region.nodes {
        marks.insert(*n);
    }
    let both_live = |n: NodeId| f.reads[n.index()].iter().filter(|(_, v)| f.is_live(*v)).count() >= 2;
    let mut scores: Vec<NodeId> = Vec::new();
    let mut words: Vec<(NodeId, &str)> = Vec::new();
    for n in &region.nodes {
        let Class::Mixing(m) = f.class_of(*n) else { continue };
        if words.len() > 2 * LONGEST_SIGNATURE {
            break;
        }
        if m == Mixing::MatMul
            && both_live(*n)
            && let Some(score) = f.reads[n.index()].iter().find_map(|(_, v)| score_behind(f, *v, marks))
        {
            scores.push(score);
            words.push((*n, "Attention"));
        } else if m == Mixing::MatMul && is_transposed(f, *n, marks) {
            words.push((*n, "MatMulᵀ"));
        } else {
            words.push((*n, m.name()));
        }
    }
    words.retain(|(n, _)| !scores.contains(n));
    let rest = (words.len() > LONGEST_SIGNATURE).then_some("…");
    words.truncate(LONGEST_SIGNATURE);
    words.into_iter().map(|(_, w)| w).chain(rest).chain(inner.map(Mixing::name)).map(str::to_string).collect()
}

/// Does a product with a weight go across another axis than the last? Then the weight is its left operand, or its operand comes out
/// of a transposition that takes the last axis elsewhere.
fn is_transposed(f: &Flow, product: NodeId, region: &Marks) -> bool {
    let mut at = product;
    for _ in 0..8 {
        let mut live = f.reads[at.index()].iter().filter(|(_, v)| f.is_live(*v));
        let (Some((operand, v)), None) = (live.next(), live.next()) else { return false };
        if at == product && *operand == 1 && f.g.is_op(product, "MatMul") {
            return true;
        }
        let from = v.node;
        if !region.contains(from) || matches!(f.class_of(from), Class::Mixing(_)) {
            return false;
        }
        if f.g.is_op(from, "Transpose") {
            let perm = f.g.op(from).and_then(|op| op.attrs.ints("perm"));
            return perm.is_none_or(|p| p.last().is_some_and(|last| *last != p.len() as i64 - 1));
        }
        at = from;
    }
    false
}

/// The product of queries and keys whose softmax, perhaps rearranged, the value is.
fn score_behind(f: &Flow, v: ValueId, region: &Marks) -> Option<NodeId> {
    let mut at = v.node;
    let mut softmax = false;
    for _ in 0..24 {
        if !region.contains(at) {
            return None;
        }
        match f.class_of(at) {
            Class::Mixing(Mixing::MatMul) if softmax => return Some(at),
            Class::Mixing(_) => return None,
            Class::Rows => softmax |= f.g.op(at).is_some_and(|op| op.name == "Softmax"),
            _ => {}
        }
        at = f.reads[at.index()]
            .iter()
            .map(|(_, v)| v.node)
            .filter(|n| region.contains(*n))
            .max_by_key(|n| f.place_of(*n))?;
    }
    None
}
