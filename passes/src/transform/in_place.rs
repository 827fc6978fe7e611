//! Which states a runtime may overwrite with their next value: a loop binds the output to the memory of the input and keeps
//! one copy instead of two.

use super::training::StateRecord;
use crate::ir::{Graph, NodeId, ValueId};
use std::collections::HashSet;

/// Nodes to look at between a reader and the next value. An optimiser's formula has a dozen.
const NEAR: usize = 64;

/// Operators whose result may be their operand's memory, by themselves or after a runtime's simplification.
const VIEWS: [&str; 9] = ["Cast", "Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"];

/// Operators that read an element no later than they write the one at its place.
const ELEMENTWISE: [&str; 6] = ["Add", "Div", "Identity", "Mul", "Sub", "Where"];

/// Marks the states whose readers have all run, whatever the order a runtime chooses, when the next value is written.
///
/// Moments, accumulators and running statistics are read by nothing but their own formula. A weight is not marked where its
/// input's cotangent reads it, which may come after the update.
pub(super) fn mark_in_place(g: &Graph, states: &mut [StateRecord]) {
    for s in states {
        let next = s.output.as_deref().and_then(|n| g.find(n));
        let Some((state, next)) = g.find(&s.input).zip(next) else { continue };
        s.in_place = may_overwrite(g, state, next, &s.shape);
    }
}

fn may_overwrite(g: &Graph, state: ValueId, next: ValueId, shape: &[i64]) -> bool {
    // A state of one element has no memory worth sharing, and a runtime may keep it on the host.
    if shape.iter().product::<i64>() < 2 {
        return false;
    }
    let mut memory = vec![state];
    let mut readers: Vec<NodeId> = Vec::new();
    while let Some(v) = memory.pop() {
        if g.is_output(v) {
            return false;
        }
        for (node, _) in g.uses(v) {
            if g.captures(node).contains(&v) {
                return false;
            }
            if g.op(node).is_some_and(|o| o.domain.is_empty() && VIEWS.contains(&o.name.as_str())) && node != next.node {
                memory.extend(g.results(node));
            } else {
                readers.push(node);
            }
        }
    }
    let same_place = g.op(next.node).is_some_and(|o| o.domain.is_empty() && ELEMENTWISE.contains(&o.name.as_str()));
    readers.into_iter().all(|r| if r == next.node { same_place } else { reaches(g, r, next.node) })
}

/// Does a node's result come into another's operands, by a short way?
fn reaches(g: &Graph, from: NodeId, to: NodeId) -> bool {
    let mut seen = HashSet::from([from]);
    let mut open = vec![from];
    while let Some(node) = open.pop() {
        for (user, _) in g.results(node).flat_map(|v| g.uses(v)) {
            if user == to {
                return true;
            }
            if seen.len() < NEAR && seen.insert(user) {
                open.push(user);
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::build::Builder;
    use crate::ir::{DType, Tensor, TensorType};
    use crate::transform::optimizer::StateKind;

    /// A state `m` of two elements, what becomes of it, and the verdict.
    fn verdict(next: impl FnOnce(&mut Builder, ValueId) -> ValueId) -> bool {
        let mut g = Graph::default();
        let m = g.add_initializer("m", Tensor::f32s(&[2], &[0.0, 0.0]), true);
        let gradient = g.add_input("g", TensorType::fixed(DType::F32, &[2]).into(), None);
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
            b.matmul(column, column).unwrap_or_else(|_| b.op("Concat", &[column]).expect("a copy"))
        }));
    }
}
