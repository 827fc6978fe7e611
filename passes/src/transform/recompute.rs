//! Less memory for more time: the backward pass computes the inside of a block again from the block's input.
//!
//! ```text
//!   before  a = Gelu(z), z = MatMul(h0, w), h1 = Add(h0, f(a))        backward: z.ct = a.ct ⊙ Gelu'(z)
//!   after   h0' = Reshape(h0, 0 · Size(h1.ct)), z' = MatMul(h0', w)    backward: z.ct = a.ct ⊙ Gelu'(z')
//! ```
//!
//! A runtime merges equal nodes and runs a node as soon as what it reads is there. So the copies have to differ from the originals and to
//! wait for the backward pass. They read the block's input through a `Reshape` to a shape of zeros, each of which copies an extent, and
//! the zeros are the size of the cotangent that arrives at the block's end, times zero. No number is moved or changed.
//!
//! What is small beside the block's input (means, variances) is kept, and so is what others still read: a router's states, outputs, masks
//! of dropouts. Copies of batch normalisations read the statistics that the originals found.

use super::Gradients;
use crate::ir::{ANCRE, Attrs, Dim, Graph, Kind, NodeId, Op, ValueId};
use crate::ops::build::{BuildError, Builder, Built};
use crate::ops::{self, Class, Mixing};
use indexmap::IndexMap;
use std::collections::{HashMap, HashSet};

/// Which blocks.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Recompute {
    /// Residual adds in one block.
    pub every: usize,
    /// The states of each chain by name, in order.
    pub chains: Vec<Vec<String>>,
}

impl Recompute {
    /// Blocks of so many adds; the chains are those of the source, which the caller fills in.
    pub fn every(adds: usize) -> Recompute {
        Recompute { every: adds.max(1), chains: Vec::new() }
    }
}

/// What is computed again, and what that saves. Sizes are polynomials of the symbolic extents.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Recomputed {
    /// Number of blocks whose inside is computed again.
    pub blocks: usize,
    /// Number of nodes that were copied.
    pub nodes: usize,
    /// Bytes of activations that the backward pass reads, in the graph without copies.
    pub kept_before: Dim,
    /// The same in the graph with copies: what the forward pass leaves behind.
    pub kept_after: Dim,
    /// Floating point operations of the forward pass.
    pub forward_flops: Dim,
    /// Floating point operations of the copies.
    pub flops: Dim,
}

/// A block: its input, its end, and the cotangent of the end.
struct Block {
    input: ValueId,
    end: ValueId,
    ct: ValueId,
}

/// Makes the backward pass compute the inside of blocks again.
///
/// # Errors
/// When a node cannot be built, because types are unknown.
pub fn recompute(g: &mut Graph, loss: ValueId, cotangents: &Gradients, o: &Recompute) -> Result<Recomputed, BuildError> {
    let forward: HashSet<NodeId> = g.ancestors([loss.node]);
    let kept_before = kept(g, &forward);
    let forward_flops = flops(g, forward.iter().copied());
    let (mut blocks, mut copies) = (0, Vec::new());
    // Copies change nothing in the forward pass: its order stays.
    let order = Order::of(g);
    let of_routers: HashSet<ValueId> = g.routers.values().flat_map(|r| r.values()).collect();
    for block in blocks_of(g, &order, cotangents, o) {
        let inside = inside(g, &order, &forward, &block);
        let made = recompute_block(g, &forward, &of_routers, &block, inside)?;
        blocks += usize::from(!made.is_empty());
        copies.extend(made);
    }
    let kept_after = kept(g, &forward);
    let flops = flops(g, copies.iter().copied());
    Ok(Recomputed { blocks, nodes: copies.len(), kept_before, kept_after, forward_flops, flops })
}

/// The nodes of the graph without copies, and each one's place.
struct Order {
    nodes: Vec<NodeId>,
    rank: HashMap<NodeId, usize>,
}

impl Order {
    fn of(g: &Graph) -> Order {
        let nodes = g.topological_order();
        let rank = nodes.iter().enumerate().map(|(i, n)| (*n, i)).collect();
        Order { nodes, rank }
    }
}

/// Neighbouring states, in the order of the graph; what lies between two chains is a block too. The last block of a chain may be
/// shorter than the others.
fn blocks_of(g: &Graph, order: &Order, cotangents: &Gradients, o: &Recompute) -> Vec<Block> {
    let mut states: Vec<ValueId> = Vec::new();
    for chain in &o.chains {
        let ends = chain.len().saturating_sub(1);
        let taken = chain.iter().enumerate().filter(|(i, _)| i % o.every == 0 || *i == ends);
        states.extend(taken.filter_map(|(_, name)| g.find(name)));
    }
    states.sort_by_key(|v| order.rank.get(&v.node).copied());
    states.dedup();
    let pair = |w: &[ValueId]| Some(Block { input: w[0], end: w[1], ct: *cotangents.get(&w[1])? });
    states.windows(2).filter_map(pair).collect()
}

/// Copies what the backward pass reads of a block's inside; returns the copies.
fn recompute_block(
    g: &mut Graph,
    forward: &HashSet<NodeId>,
    of_routers: &HashSet<ValueId>,
    block: &Block,
    inside: Vec<NodeId>,
) -> Result<Vec<NodeId>, BuildError> {
    if inside.is_empty() {
        return Ok(Vec::new());
    }
    let late = late(g, forward, block.ct.node);
    let size = |v: ValueId| g.tensor_type(v).and_then(|ty| ty.elements().eval(&|_| Some(TYPICAL_EXTENT)));
    let block_size = size(block.input);
    let stays = |v: ValueId| {
        let small = size(v).zip(block_size).is_none_or(|(n, of)| n.saturating_mul(SMALL) <= of);
        let elsewhere = |n: NodeId| !forward.contains(&n) && !late.contains(&n) && !reads_shape_only(g, n);
        let read_elsewhere = g.uses(v).any(|(n, _)| elsewhere(n));
        small || read_elsewhere || of_routers.contains(&v) || g.is_output(v) || g.is_captured(v) || !is_repeatable(g, v.node)
    };
    let again: HashSet<ValueId> = inside.iter().flat_map(|n| g.results(*n)).filter(|v| !stays(*v)).collect();

    // What late nodes read, and what that is computed from.
    let mut wanted: HashSet<NodeId> = HashSet::new();
    for &node in inside.iter().rev() {
        let mut readers = g.results(node).filter(|v| again.contains(v)).flat_map(|v| g.uses(v));
        if readers.any(|(n, _)| late.contains(&n) || wanted.contains(&n)) {
            wanted.insert(node);
        }
    }
    let mut b = Builder::new(g, "ancre/recompute");
    let mut copier = Copier { ct: block.ct, size: None, copies: IndexMap::new(), guarded: IndexMap::new() };
    let region: HashSet<NodeId> = inside.iter().copied().chain([block.input.node]).collect();
    let mut made = Vec::new();
    for node in inside.into_iter().filter(|n| wanted.contains(n)) {
        made.push(copier.copy(&mut b, node, &region, &again)?);
    }
    for (v, copy) in copier.copies {
        if again.contains(&v) {
            g.replace_uses(v, copy, |n| late.contains(&n));
        }
    }
    for node in &made {
        drop_unread(g, *node);
    }
    Ok(made)
}

/// Stands for every symbolic extent where sizes are compared.
const TYPICAL_EXTENT: i64 = 64;

/// A value so many times smaller than the block's input is kept.
const SMALL: i64 = 16;

/// The nodes strictly between a block's input and its end, in order.
fn inside(g: &Graph, order: &Order, forward: &HashSet<NodeId>, block: &Block) -> Vec<NodeId> {
    let place = |v: ValueId| order.rank.get(&v.node);
    let Some((first, last)) = place(block.input).zip(place(block.end)) else { return Vec::new() };
    if first >= last {
        return Vec::new();
    }
    let between = &order.nodes[first + 1..*last];
    let mut from = HashSet::new();
    for node in between.iter().filter(|n| forward.contains(n)) {
        if g.reads(*node).any(|v| v == block.input || from.contains(&v.node)) {
            from.insert(*node);
        }
    }
    let mut to: HashSet<NodeId> = g.reads(block.end.node).map(|v| v.node).collect();
    let mut found: Vec<NodeId> = Vec::new();
    for node in between.iter().rev() {
        if to.contains(node) {
            to.extend(g.reads(*node).map(|v| v.node));
            if from.contains(node) {
                found.push(*node);
            }
        }
    }
    found.reverse();
    found
}

/// What runs after a cotangent is there, whatever the order: what depends on it, and what only such nodes read (masks, for one).
fn late(g: &Graph, forward: &HashSet<NodeId>, ct: NodeId) -> HashSet<NodeId> {
    let mut late = g.descendants([ct]);
    late.remove(&ct);
    let mut open: Vec<NodeId> = late.iter().copied().collect();
    while let Some(reader) = open.pop() {
        for node in g.reads(reader).map(|v| v.node).filter(|n| *n != ct && !forward.contains(n)) {
            let is_late = |v: ValueId| !g.is_output(v) && g.uses(v).all(|(n, _)| late.contains(&n));
            if !late.contains(&node) && g.op(node).is_some() && g.results(node).all(is_late) {
                late.insert(node);
                open.push(node);
            }
        }
    }
    late
}

fn reads_shape_only(g: &Graph, node: NodeId) -> bool {
    g.is_op(node, "Shape") || g.is_op(node, "Size")
}

/// Does a node give the same when it runs again, and does an own node for it do?
fn is_repeatable(g: &Graph, node: NodeId) -> bool {
    let Some(op) = g.op(node) else { return false };
    let class = Class::of(op);
    let training = op.is("Dropout") && g.operand(node, 2).is_some();
    let own = matches!(class, Class::Random | Class::Route) || matches!(op.name.as_str(), "If" | "Loop" | "Scan");
    !own && !training && g.captures(node).next().is_none()
}

/// Copies the nodes of one block.
struct Copier {
    ct: ValueId,
    /// The cotangent's size.
    size: Option<ValueId>,
    copies: IndexMap<ValueId, ValueId>,
    /// Values that are kept, read late.
    guarded: IndexMap<ValueId, ValueId>,
}

impl Copier {
    fn copy(
        &mut self,
        b: &mut Builder,
        node: NodeId,
        region: &HashSet<NodeId>,
        again: &HashSet<ValueId>,
    ) -> Result<NodeId, BuildError> {
        let mut op = b.graph.op(node).cloned().unwrap_or_else(|| Op::new("Identity", Attrs::new()));
        let mut operands = b.graph.operands(node).to_vec();
        let results: Vec<ValueId> = b.graph.results(node).collect();
        let copies: Vec<Option<ValueId>> =
            operands.iter().map(|v| v.filter(|v| again.contains(v)).and_then(|v| self.copies.get(&v).copied())).collect();
        // One operand that waits is enough.
        let mut waits = copies.iter().any(Option::is_some);
        for (operand, copy) in operands.iter_mut().zip(copies).filter_map(|(v, copy)| Some((v.as_mut()?, copy))) {
            *operand = match copy {
                Some(copy) => copy,
                None if region.contains(&operand.node) && !waits => {
                    waits = true;
                    self.guard(b, *operand)?
                }
                None => *operand,
            };
        }
        if op.domain == ANCRE && op.name == "BatchNormTrain" {
            operands.extend([Some(results[1]), Some(results[2])]);
        }
        op.source = None;
        let name = format!("ancre/recompute/{}", b.graph.site(node).name);
        let copy = b.graph.add_op(&name, op, &operands);
        for v in results {
            let (stem, ty) = (format!("ancre/recompute/{}", b.graph.name(v)), b.graph.value(v).ty.clone());
            let result = b.graph.push_result(copy, if b.graph.name(v).is_empty() { "" } else { &stem }, ty);
            self.copies.insert(v, result);
        }
        Ok(copy)
    }

    /// A value that is the same but there only once the cotangent is.
    fn guard(&mut self, b: &mut Builder, v: ValueId) -> Built {
        if let Some(guarded) = self.guarded.get(&v) {
            return Ok(*guarded);
        }
        let size = match self.size {
            Some(size) => size,
            None => *self.size.insert(b.op("Size", &[self.ct])?),
        };
        let late = b.late_by(v, size)?;
        self.guarded.insert(v, late);
        Ok(late)
    }
}

/// Drops the optional results of a copy that nobody reads: the originals' are read.
fn drop_unread(g: &mut Graph, node: NodeId) {
    if !g.is_op(node, "LayerNormalization") {
        return;
    }
    let read = g.results(node).enumerate().filter(|(_, v)| g.is_read(*v)).last();
    g.drop_results(node, read.map_or(1, |(slot, _)| slot + 1));
}

/// Bytes of what the forward pass computes from data and others read.
fn kept(g: &Graph, forward: &HashSet<NodeId>) -> Dim {
    let fed = g.fed();
    let mut roots: HashSet<ValueId> = HashSet::new();
    for node in forward.iter().filter(|n| fed.contains(n) && g.op(**n).is_some()) {
        for v in g.results(*node) {
            if g.uses(v).any(|(n, _)| !forward.contains(&n) && !reads_shape_only(g, n)) {
                roots.insert(memory_of(g, v));
            }
        }
    }
    let bytes = |v: &ValueId| {
        let ty = g.tensor_type(*v)?;
        Some(&ty.elements() * &Dim::from(ty.dtype.size()? as i64))
    };
    roots.iter().filter(|v| g.op(v.node).is_some()).filter_map(bytes).fold(Dim::from(0), |sum, n| &sum + &n)
}

/// The value whose memory a view is.
fn memory_of(g: &Graph, mut v: ValueId) -> ValueId {
    let view = |op: &Op| matches!(op.name.as_str(), "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten" | "Identity");
    while g.op(v.node).is_some_and(view)
        && let Some(from) = g.operand(v.node, 0)
    {
        v = from;
    }
    v
}

/// Floating point operations: two for each term of a product, one for each element of any other result.
fn flops(g: &Graph, nodes: impl Iterator<Item = NodeId>) -> Dim {
    nodes.filter_map(|n| flops_of(g, n)).fold(Dim::from(0), |sum, n| &sum + &n)
}

fn flops_of(g: &Graph, node: NodeId) -> Option<Dim> {
    let Kind::Op(op) = &g.node(node).kind else { return None };
    let (class, result) = (Class::of(op), g.tensor_type(g.result(node, 0))?);
    if matches!(class, Class::Layout | Class::Make | Class::Select | Class::Concat) || !result.dtype.is_float() {
        return None;
    }
    let shape = |i: usize| Some(g.tensor_type(g.operand(node, i)?)?.shape);
    let terms = match class {
        Class::Mixing(Mixing::Conv) => ops::product(&shape(1)?[1..]),
        Class::Mixing(Mixing::MatMul) => {
            let lhs = shape(0)?;
            let row = lhs.len() - if op.attrs.int("transA") == Some(1) { 2 } else { 1 };
            lhs.get(row)?.clone()
        }
        _ => return Some(result.elements()),
    };
    Some(&(&result.elements() * &terms) * &Dim::from(2))
}
