//! Which states a runtime may overwrite with their next value. A loop then binds the output to the memory of the input and keeps one
//! copy instead of two.

use crate::contract::StateRecord;
use crate::ir::{Graph, NodeId, ValueId};
use crate::ops::passes_through;

/// Operators whose kernels read an element no later than they write the element at its place. Not every element-wise operator is one:
/// a runtime computes a sum of three, or the error function, in several passes over the result.
const ONE_PASS: [&str; 6] = ["Add", "Div", "Identity", "Mul", "Sub", "Where"];

/// Marks the states whose readers have all run, whatever the order a runtime chooses, when the next value is written.
///
/// Moments, accumulators and running statistics are read by nothing but their own formula. A weight is read by the forward
/// pass, which is over when a gradient is there, and by its input's cotangent, which [`Waits`] makes the update wait for.
pub(crate) fn mark_in_place(g: &Graph, states: &mut [StateRecord]) {
    let mut pairs: Vec<(NodeId, NodeId)> = Vec::new();
    let mut marked = Vec::new();
    for (i, s) in states.iter().enumerate() {
        let next = s.output.as_deref().and_then(|n| g.find(n));
        let Some((state, next)) = g.find(&s.input).zip(next) else { continue };
        // A state of one element has no memory worth sharing, and a runtime may keep it on the host.
        if s.shape.iter().product::<i64>() < 2 {
            continue;
        }
        let Some(mut readers) = readers(g, state, Some(next.node)) else { continue };
        if readers.contains(&next.node)
            && !g.op(next.node).is_some_and(|o| o.domain.is_empty() && ONE_PASS.contains(&o.name.as_str()))
        {
            continue;
        }
        readers.retain(|r| *r != next.node);
        let from = pairs.len();
        pairs.extend(readers.into_iter().map(|r| (r, next.node)));
        marked.push((i, from..pairs.len()));
    }
    let before = are_ancestors(g, &pairs);
    for (i, range) in marked {
        states[i].in_place = before[range].iter().all(|b| *b);
    }
}

/// The nodes that read a value's memory, through views of it; `None` where it leaves the graph by another way than `next`.
fn readers(g: &Graph, v: ValueId, next: Option<NodeId>) -> Option<Vec<NodeId>> {
    let mut memory = vec![v];
    let mut readers = Vec::new();
    while let Some(v) = memory.pop() {
        if g.is_output(v) {
            return None;
        }
        for (node, _) in g.uses(v) {
            if g.captures(node).any(|c| c == v) {
                return None;
            }
            // The result may be the operand's memory, by itself or after a runtime's simplification.
            if next != Some(node) && g.op(node).is_some_and(passes_through) {
                memory.extend(g.results(node));
            } else {
                readers.push(node);
            }
        }
    }
    Some(readers)
}

/// For each pair: does the second node depend on the first? 64 pairs in one pass over the graph.
fn are_ancestors(g: &Graph, pairs: &[(NodeId, NodeId)]) -> Vec<bool> {
    let order = g.topological_order();
    let mut out = Vec::with_capacity(pairs.len());
    let mut marks = vec![0u64; g.node_bound()];
    for chunk in pairs.chunks(64) {
        marks.fill(0);
        for (bit, (first, _)) in chunk.iter().enumerate() {
            marks[first.index()] |= 1 << bit;
        }
        for node in &order {
            marks[node.index()] = g.reads(*node).fold(marks[node.index()], |m, v| m | marks[v.node.index()]);
        }
        out.extend(chunk.iter().enumerate().map(|(bit, (_, second))| marks[second.index()] >> bit & 1 == 1));
    }
    out
}

/// Which gradients an update waits for.
pub(super) struct Waits {
    /// By gradient: its place in the order of computation.
    ranks: Vec<usize>,
    /// By node: does the loss depend on it?
    forward: Vec<bool>,
    /// By node: the first computed of the gradients that depend on it.
    earliest: Vec<Option<usize>>,
}

impl Waits {
    /// The order of the gradients of a loss, each with the gradients that it is made of: it is there with the last of them.
    pub(super) fn of(g: &Graph, loss: ValueId, gradients: &[(ValueId, Vec<ValueId>)]) -> Waits {
        let order = g.topological_order();
        let mut rank = vec![0; g.node_bound()];
        for (i, node) in order.iter().enumerate() {
            rank[node.index()] = i;
        }
        let last = |parts: &Vec<ValueId>| parts.iter().map(|v| rank[v.node.index()]).max().unwrap_or_default();
        let ranks: Vec<usize> = gradients.iter().map(|(_, parts)| last(parts)).collect();
        let mut earliest: Vec<Option<usize>> = vec![None; g.node_bound()];
        for (i, (v, _)) in gradients.iter().enumerate() {
            earliest[v.node.index()] = Some(i);
        }
        let mut forward = vec![false; g.node_bound()];
        forward[loss.node.index()] = true;
        for node in order.iter().rev() {
            for r in g.reads(*node).map(|v| v.node.index()) {
                forward[r] |= forward[node.index()];
                let both = [earliest[r], earliest[node.index()]];
                earliest[r] = both.into_iter().flatten().min_by_key(|i| ranks[*i]);
            }
        }
        Waits { ranks, forward, earliest }
    }

    /// The gradients' numbers, those that are computed last first.
    pub(super) fn latest_first(&self) -> Vec<usize> {
        let mut all: Vec<usize> = (0..self.ranks.len()).collect();
        all.sort_by_key(|i| std::cmp::Reverse(self.ranks[*i]));
        all
    }

    /// Gradients that are there only when the backward pass has read a weight for the last time, as far as there are any.
    pub(super) fn behind_readers(&self, g: &Graph, weight: ValueId) -> Vec<usize> {
        let backward = readers(g, weight, None).unwrap_or_default().into_iter().filter(|r| !self.forward[r.index()]);
        let mut behind: Vec<usize> = backward.filter_map(|r| self.earliest[r.index()]).collect();
        behind.sort_unstable();
        behind.dedup();
        behind
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::StateKind;
    use crate::ir::{DType, Tensor, TensorType};
    use crate::ops::build::Builder;

    /// A state `m` of two elements, what becomes of it, and the verdict.
    fn verdict(next: impl FnOnce(&mut Builder, ValueId) -> ValueId) -> bool {
        let mut g = Graph::default();
        let m = g.add_initializer("m", Tensor::f32s(&[2], &[0.0, 0.0]), true);
        let gradient = g.add_input("g", TensorType::fixed(DType::F32, &[2]).into(), None);
        // In place of a loss.
        g.add_output(gradient, None);
        let mut b = Builder::new(&mut g, "");
        let next = next(&mut b, m);
        g.rename(next, "m.next");
        g.add_output(next, None);
        let mut states = [StateRecord {
            name: "m".into(),
            input: "m".into(),
            output: Some("m.next".into()),
            kind: StateKind::Moment,
            trainable: false,
            shape: vec![2],
            in_place: false,
        }];
        mark_in_place(&g, &mut states);
        states[0].in_place
    }

    #[test]
    fn a_state_is_overwritten_only_after_its_last_reader() {
        let half = |b: &mut Builder, v| b.scale(v, 0.5).expect("a product");
        assert!(verdict(|b, m| {
            let kept = half(b, m);
            b.add(kept, m).expect("read at the same place")
        }));
        assert!(verdict(|b, m| {
            let flat = b.reshape(m, &[-1], &[2.into()]).expect("a view");
            let kept = half(b, flat);
            b.reshape(kept, &[2], &[2.into()]).expect("a view of something else")
        }));
        // Another reader, which may run later.
        assert!(!verdict(|b, m| {
            let other = half(b, m);
            b.graph.add_output(other, None);
            half(b, m)
        }));
        assert!(!verdict(|b, m| {
            let view = b.reshape(m, &[1, 2], &[1.into(), 2.into()]).expect("a view");
            b.graph.add_output(view, None);
            half(b, m)
        }));
        // Written in another order than read.
        assert!(!verdict(|b, m| {
            let column = b.reshape(m, &[2, 1], &[2.into(), 1.into()]).expect("a view");
            b.op("Concat", &[column]).expect("a copy")
        }));
    }
}
