//! Integers that a graph computes about shapes, for the new batch.

use super::Analysis;
use crate::analysis::integers::{self, Known};
use crate::ir::{Dim, Graph, NodeId, ValueId};

/// Elements of an integer tensor for the new batch.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Integers {
    /// These.
    Known(integers::Integers),
    /// Something that depends on the batch in a way that cannot be told.
    Depends,
}

impl Integers {
    /// The elements, if they can be told.
    pub(super) fn values(&self) -> Option<&[Dim]> {
        match self {
            Integers::Known(known) => Some(&known.values),
            Integers::Depends => None,
        }
    }

    /// The elements as numbers.
    pub(super) fn numbers(&self) -> Option<Vec<i64>> {
        self.values()?.iter().map(Dim::known).collect()
    }

    /// Does any element depend on the batch?
    pub(super) fn depends(&self, batch: &Dim) -> bool {
        let symbol = batch.symbols().next().unwrap_or_default();
        self.values().is_none_or(|v| v.iter().any(|d| d.symbols().any(|s| s == symbol)))
    }
}

/// The elements of a small integer constant.
pub(super) fn of_constant(g: &Graph, v: ValueId) -> Option<(ValueId, Integers)> {
    Some((v, Integers::Known(integers::of_constant(g, v)?)))
}

/// The integers a node computes, as far as they can be told.
pub(super) fn evaluate(g: &Graph, id: NodeId, about: &dyn Known) -> Option<Integers> {
    integers::evaluate(g, id, about).map(Integers::Known)
}

impl Known for Analysis<'_> {
    fn integers(&self, v: ValueId) -> Option<&integers::Integers> {
        match self.integers.get(&v)? {
            Integers::Known(known) => Some(known),
            Integers::Depends => None,
        }
    }

    fn shape(&self, v: ValueId) -> Option<Vec<Dim>> {
        self.new_shape(v).ok()
    }

    fn result_dims(&self, v: ValueId) -> Option<Vec<i64>> {
        self.g.tensor_type(v)?.known_dims()
    }
}
