//! Integers that a graph computes about shapes, for the new batch.

use super::Analysis;
use crate::ir::{Dim, Graph, NodeId, ValueId, ValueType};
use crate::ops::eval::{Array, Facts, Poly, evaluate_node};
use std::borrow::Cow;

/// Largest tensor of integers that is followed, in elements.
pub(super) const LARGEST: usize = 1 << 14;

/// Elements of an integer tensor for the new batch; `None` where they depend on it in a way that cannot be told.
pub(super) type Integers = Option<Array<Poly>>;

/// Does any element depend on the batch?
pub(super) fn depends(i: &Integers, batch: &Dim) -> bool {
    let symbol = batch.symbols().next().unwrap_or_default();
    let extents = i.as_ref().and_then(Array::extents);
    extents.is_none_or(|v| v.iter().any(|d| d.symbols().any(|s| s == symbol)))
}

/// The elements of a small integer constant.
pub(super) fn of_constant(g: &Graph, v: ValueId) -> Option<Array<Poly>> {
    Array::of_tensor(g.constant(v).filter(|t| !t.dtype().is_float())?, LARGEST)
}

/// The integers a node computes, as far as they can be told.
pub(super) fn evaluate(g: &Graph, id: NodeId, facts: &dyn Facts<Poly>) -> Option<Array<Poly>> {
    let [found] = <[_; 1]>::try_from(evaluate_node(g, id, facts, LARGEST)?).ok()?;
    (!found.dtype.is_float()).then_some(found)
}

impl Facts<Poly> for Analysis<'_> {
    fn array(&self, v: ValueId) -> Option<Cow<'_, Array<Poly>>> {
        self.integers.get(&v)?.as_ref().map(Cow::Borrowed)
    }

    fn ty(&self, v: ValueId) -> ValueType {
        ValueType { shape: self.new_shape(v).ok(), ..self.g.value(v).ty }
    }
}
