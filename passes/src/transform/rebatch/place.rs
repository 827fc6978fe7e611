//! Where the samples of a batch lie in a value.

use crate::ir::Dim;

/// The samples lie along one axis, of extent `outer · B · inner`: element `(o · B + b) · inner + i` belongs to sample `b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The axis.
    pub axis: usize,
    /// What the axis counts outside the samples.
    pub outer: Dim,
    /// What the axis counts inside a sample.
    pub inner: Dim,
}

impl Place {
    /// An axis that counts samples and nothing else.
    pub(super) fn pure(axis: usize) -> Place {
        Place::whole(axis, Dim::from(1))
    }

    /// The same samples along another axis.
    pub(super) fn at(&self, axis: usize) -> Place {
        Place { axis, ..self.clone() }
    }

    /// What the axis counts beside samples.
    pub(super) fn beside(&self) -> Dim {
        &self.outer * &self.inner
    }

    /// The axis' extent for a batch.
    pub(super) fn extent(&self, batch: &Dim) -> Dim {
        &self.beside() * batch
    }

    /// Does the axis count samples only?
    pub(super) fn is_pure(&self) -> bool {
        self.beside().is_one()
    }

    /// An axis whose elements come sample by sample.
    pub(super) fn whole(axis: usize, inner: Dim) -> Place {
        Place { axis, outer: Dim::from(1), inner }
    }

    /// Do all elements keep their places in memory if the samples lie at `to` instead? `shape` is the value's, without the samples.
    pub(super) fn stays(&self, to: &Place, shape: &[Dim]) -> bool {
        let ahead = |p: &Place| &product(&shape[..p.axis]) * &p.outer;
        ahead(self) == ahead(to)
    }
}

fn product(dims: &[Dim]) -> Dim {
    dims.iter().fold(Dim::from(1), |p, d| &p * d)
}

/// Where the samples can lie after a `Reshape` from one shape of the source to another, the likeliest place first. Memory stays as
/// it is, so the samples keep the number of elements that come before them.
pub(super) fn reshaped(from: &[Dim], p: &Place, to: &[Dim], before: i64) -> Vec<Place> {
    let ahead = &product(&from[..p.axis]) * &p.outer;
    let batch = Dim::from(before);
    let mut found = Vec::new();
    for axis in 0..to.len() {
        let Some(outer) = divide(&ahead, &product(&to[..axis])) else { continue };
        let Some(inner) = divide(&to[axis], &(&outer * &batch)) else { continue };
        found.push(Place { axis, outer, inner });
    }
    // An axis of their own is the likeliest place, then the start of an axis other than the last one, which most operators contract
    // or normalise, then the end of an axis.
    let last = to.len().saturating_sub(1);
    found.sort_by_key(|c| match (c.outer.is_one(), c.inner.is_one()) {
        (true, true) => 0,
        (true, false) if c.axis < last || last == 0 => 1,
        (false, true) => 2,
        _ => 3,
    });
    found
}

fn divide(a: &Dim, b: &Dim) -> Option<Dim> {
    if b.is_one() { Some(a.clone()) } else { a.div_exact(b) }
}
