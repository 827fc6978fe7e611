//! The graph as flow of data: dense tables, topological places, liveness and post-dominators.

use super::classes::{addends, sum_slot};
use crate::analysis::types::is_unnamed;
use crate::ir::{Dim, Graph, Kind, NodeId, ValueId};
use crate::ops::{Class, Mixing, reads_values};
use smallvec::SmallVec;

/// A read: result `slot` of a node is operand `operand` of `consumer`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Read {
    pub(super) slot: u32,
    pub(super) consumer: NodeId,
    pub(super) operand: u32,
}

/// Tables about a graph, indexed by [`NodeId::index`].
pub(super) struct Flow<'g> {
    pub(super) g: &'g Graph,
    /// Producers before consumers, otherwise in file order.
    pub(super) order: Vec<NodeId>,
    /// Place in `order`.
    pub(super) place: Vec<u32>,
    pub(super) class: Vec<Class>,
    /// Operands read for their numbers, as (operand, value); captures of subgraphs included.
    pub(super) reads: Vec<SmallVec<[(u32, ValueId); 3]>>,
    /// The readers of those, by place.
    pub(super) readers: Vec<SmallVec<[Read; 2]>>,
    /// Depends on an input that a caller feeds.
    pub(super) live: Vec<bool>,
    /// No mixing operator and no sum of two live values comes after the node. It leads to outputs only (a cached key, an attention
    /// map, the network's head after its last product), or nowhere.
    pub(super) spent: Vec<bool>,
    above: Vec<u32>,
    jump: Vec<u32>,
    depth: Vec<u32>,
    /// Pre-order number in the tree of post-dominators, and the first one past the node's descendants.
    span: Vec<(u32, u32)>,
}

impl<'g> Flow<'g> {
    /// Builds the tables in time linear in the graph (times a logarithm for the post-dominators).
    pub(super) fn new(g: &'g Graph) -> Flow<'g> {
        let bound = g.node_bound();
        let order = g.topological_order();
        let mut f = Flow {
            g,
            place: vec![0; bound],
            class: vec![Class::Other; bound],
            reads: vec![SmallVec::new(); bound],
            readers: vec![SmallVec::new(); bound],
            live: vec![false; bound],
            spent: vec![true; bound],
            above: vec![bound as u32; bound + 1],
            jump: vec![bound as u32; bound + 1],
            depth: vec![0; bound + 1],
            span: vec![(0, 0); bound + 1],
            order,
        };
        for (place, node) in f.order.iter().enumerate() {
            let i = node.index();
            f.place[i] = place as u32;
            let Some(op) = g.op(*node) else {
                f.live[i] = matches!(g.node(*node).kind, Kind::Input(_));
                continue;
            };
            f.class[i] = Class::of(op);
            let all = g.node(*node).reads().iter().enumerate().filter_map(|(i, v)| v.map(|v| (i, v)));
            for (operand, v) in all.filter(|(operand, _)| reads_values(op, *operand)) {
                f.live[i] |= f.live[v.node.index()];
                f.reads[i].push((operand as u32, v));
                f.readers[v.node.index()].push(Read { slot: v.slot, consumer: *node, operand: operand as u32 });
            }
        }
        f.find_spent();
        f.find_post_dominators();
        f.number_tree();
        f
    }

    fn find_spent(&mut self) {
        let mut useful = vec![false; self.spent.len()];
        for o in self.g.outputs() {
            useful[o.value.node.index()] = true;
        }
        for node in self.order.iter().rev() {
            let i = node.index();
            useful[i] |= self.readers[i].iter().any(|r| useful[r.consumer.index()]);
            let works = matches!(self.class[i], Class::Mixing(_)) || self.adds_two_live(*node);
            let leads = self.readers[i].iter().any(|r| !self.spent[r.consumer.index()]);
            self.spent[i] = !(useful[i] && (works || leads));
        }
    }

    fn adds_two_live(&self, node: NodeId) -> bool {
        if self.g.op(node).is_none() || self.g.results(node).next().is_some_and(|v| self.is_integer(v)) {
            return false;
        }
        let Some(addends) = addends(self.g, node) else { return false };
        let live = |i: usize| self.g.operand(node, i).is_some_and(|v| self.live[v.node.index()]);
        addends.iter().filter(|a| live(a.operand)).count() >= 2
    }

    /// In an acyclic graph a node's immediate post-dominator is the lowest common ancestor, in the tree built so far, of its
    /// readers. Jump pointers make that logarithmic, so that a value read by a thousand blocks costs little.
    fn find_post_dominators(&mut self) {
        let exit = self.spent.len() as u32;
        for place in (0..self.order.len()).rev() {
            let i = self.order[place].index();
            let mut above: Option<u32> = None;
            for r in &self.readers[i] {
                let c = r.consumer.index();
                if !self.spent[c] {
                    above = Some(above.map_or(c as u32, |a| self.common(a, c as u32)));
                }
            }
            let above = above.unwrap_or(exit);
            let (a, j) = (above as usize, self.jump[above as usize] as usize);
            self.above[i] = above;
            self.depth[i] = self.depth[a] + 1;
            // Jump pointers of lengths 2^k - 1, shared as in a skew-binary number.
            let balanced = self.depth[a] - self.depth[j] == self.depth[j] - self.depth[self.jump[j] as usize];
            self.jump[i] = if balanced { self.jump[j] } else { above };
        }
    }

    /// Numbers the tree so that an ancestor's span contains its descendants'.
    fn number_tree(&mut self) {
        let mut size = vec![1u32; self.span.len()];
        for node in &self.order {
            let i = node.index();
            size[self.above[i] as usize] += size[i];
        }
        let mut free = vec![1u32; self.span.len()];
        for node in self.order.iter().rev() {
            let (i, above) = (node.index(), self.above[node.index()] as usize);
            let first = free[above];
            free[above] += size[i];
            free[i] = first + 1;
            self.span[i] = (first, first + size[i]);
        }
    }

    fn lift(&self, mut n: u32, depth: u32) -> u32 {
        while self.depth[n as usize] > depth {
            let j = self.jump[n as usize];
            n = if self.depth[j as usize] >= depth { j } else { self.above[n as usize] };
        }
        n
    }

    fn common(&self, a: u32, b: u32) -> u32 {
        let depth = self.depth[a as usize].min(self.depth[b as usize]);
        let (mut a, mut b) = (self.lift(a, depth), self.lift(b, depth));
        while a != b {
            let (ja, jb) = (self.jump[a as usize], self.jump[b as usize]);
            if ja != jb {
                (a, b) = (ja, jb);
            } else {
                (a, b) = (self.above[a as usize], self.above[b as usize]);
            }
        }
        a
    }

    /// Does every value computed from `from`, spent nodes aside, pass through `by`?
    pub(super) fn post_dominates(&self, by: NodeId, from: NodeId) -> bool {
        let ((first, end), (at, _)) = (self.span[by.index()], self.span[from.index()]);
        (first..end).contains(&at)
    }

    /// The readers of one value, by place. All results of a fused operator are functions of its sum, so their readers count as the
    /// sum's.
    pub(super) fn readers_of(&self, v: ValueId) -> impl Iterator<Item = Read> + '_ {
        let all = v.slot > 0 && self.g.op(v.node).is_some_and(|op| sum_slot(op) == v.slot);
        self.readers[v.node.index()].iter().copied().filter(move |r| all || r.slot == v.slot)
    }

    /// Readers of a value that lead on to something.
    pub(super) fn active_readers(&self, v: ValueId) -> impl Iterator<Item = Read> + '_ {
        self.readers_of(v).filter(|r| !self.spent[r.consumer.index()])
    }

    pub(super) fn place_of(&self, n: NodeId) -> u32 {
        self.place[n.index()]
    }

    pub(super) fn class_of(&self, n: NodeId) -> Class {
        self.class[n.index()]
    }

    /// Is the node a linear map, recurrence or attention: a mixing operator that is no pooling?
    pub(super) fn is_map(&self, n: NodeId) -> bool {
        matches!(self.class_of(n), Class::Mixing(m) if m != Mixing::Pool)
    }

    pub(super) fn is_live(&self, v: ValueId) -> bool {
        self.live[v.node.index()]
    }

    /// Known to be something other than floating point.
    pub(super) fn is_integer(&self, v: ValueId) -> bool {
        self.g.value(v).ty.dtype.is_some_and(|t| !t.is_float())
    }

    fn shape(&self, v: ValueId) -> Option<&[Dim]> {
        self.g.value(v).ty.shape.as_deref()
    }

    /// Could the two values have one shape? False only when it is known that they differ.
    pub(super) fn may_agree(&self, a: ValueId, b: ValueId) -> bool {
        let (Some(a), Some(b)) = (self.shape(a), self.shape(b)) else { return true };
        a.len() == b.len() && a.iter().zip(b).all(|(x, y)| dims_may_agree(x, y))
    }

    /// Could the two values have one element type?
    pub(super) fn may_have_one_dtype(&self, a: ValueId, b: ValueId) -> bool {
        let dtypes = [a, b].map(|v| self.g.value(v).ty.dtype);
        dtypes[0] == dtypes[1] || dtypes.contains(&None)
    }

    /// Known to be a single number.
    pub(super) fn is_scalar(&self, v: ValueId) -> bool {
        self.shape(v).is_some_and(|s| s.iter().all(Dim::is_one))
    }

    /// Is `factor` a scalar, a value per channel, per sample, or per sample and channel, beside a value like `main`? A table of
    /// several axes (sines and cosines over positions) is no scale.
    pub(super) fn is_scale_for(&self, factor: ValueId, main: ValueId) -> bool {
        let Some(f) = self.shape(factor) else { return false };
        let rank = self.shape(main).map_or(f.len(), <[Dim]>::len);
        let same_rank = f.len() == rank && rank > 1;
        f.iter().skip(usize::from(same_rank)).filter(|d| !d.is_one()).count() <= 1
            && !(self.shape(main).is_some_and(|m| m.len() > 2) && f.len() == rank && f.iter().all(|d| !d.is_one()))
    }
}

/// Two different formulas may have one value. An extent of 1 broadcasts, so only an unnamed one may agree with it.
fn dims_may_agree(a: &Dim, b: &Dim) -> bool {
    match (a.known(), b.known()) {
        (Some(a), Some(b)) => a == b,
        (Some(1), None) => is_unnamed(b),
        (None, Some(1)) => is_unnamed(a),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, DType, Op, Tensor, TensorType, ValueType};
    use petgraph::algo::dominators::simple_fast;
    use petgraph::graph::{DiGraph, NodeIndex};
    use petgraph::visit::Reversed;

    /// petgraph's algorithm is the reference. It is not used itself because it climbs the tree for each read, which is slow where a
    /// thousand blocks read one another.
    #[test]
    fn post_dominators_are_those_of_petgraph() {
        let mut state = 7u64;
        let mut random = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize % below
        };
        for _ in 0..20 {
            let mut g = Graph::default();
            let x = g.add_input("x", TensorType::fixed(DType::F32, &[4, 4]).into(), None);
            let w = g.add_initializer("w", Tensor::f32s(&[4, 4], &[0.5; 16]), false);
            let mut values = vec![x];
            for _ in 0..30 {
                let recent = values.len().min(6);
                let mut pick = || values[values.len() - 1 - random(recent)];
                let (a, b) = (pick(), pick());
                let (name, operands) = [("MatMul", vec![a, w]), ("Relu", vec![a]), ("Add", vec![a, b])][random(3)].clone();
                let operands: Vec<Option<ValueId>> = operands.into_iter().map(Some).collect();
                let node = g.add_op("", Op::new(name, Attrs::new()), &operands);
                values.push(g.push_result(node, "v", ValueType::default()));
            }
            g.add_output(values[30], None);
            let f = Flow::new(&g);
            let (mut dag, exit) = (DiGraph::<(), ()>::new(), NodeIndex::new(g.node_bound()));
            (0..=g.node_bound()).for_each(|_| _ = dag.add_node(()));
            for n in &f.order {
                let mut ahead: Vec<_> = f.readers[n.index()].iter().map(|r| r.consumer.index()).collect();
                ahead.retain(|c| !f.spent[*c]);
                ahead.extend(ahead.is_empty().then_some(exit.index()));
                ahead.into_iter().for_each(|c| _ = dag.add_edge(NodeIndex::new(n.index()), NodeIndex::new(c), ()));
            }
            let theirs = simple_fast(Reversed(&dag), exit);
            for from in &f.order {
                let above: Vec<_> = theirs.dominators(NodeIndex::new(from.index())).into_iter().flatten().collect();
                for by in &f.order {
                    assert_eq!(f.post_dominates(*by, *from), above.contains(&NodeIndex::new(by.index())));
                }
            }
        }
    }
}
