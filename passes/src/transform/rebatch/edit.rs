//! What has to change in a graph for another batch, and how it is changed.

use super::place::Place;
use crate::ir::{DType, Dim, Graph, NodeId, Tensor, TensorType, ValueId};
use crate::ops::TypeError;
use crate::ops::build::{BuildError, Builder, Built, reshape_target};

/// One entry of a vector of integers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Entry {
    /// A number.
    Is(i64),
    /// An entry of the old vector.
    Old(usize),
    /// A multiple of the batch.
    Batch(i64),
    /// A multiple of the batch, and all that the other entries leave: −1 where the batch is symbolic.
    Rest(i64),
    /// An entry of the old vector, for the new batch instead of the old one.
    OldTimes(usize),
}

/// A change of one operand of one node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Edit {
    pub(super) operand: usize,
    pub(super) change: Change,
}

/// What becomes of an operand.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Change {
    /// A vector of integers (a shape, the ends of a slice) gets these entries.
    Vector(Vec<Entry>),
    /// A value without samples is repeated for every sample along an axis.
    Repeat { axis: usize },
    /// A value has one part for each sample along an axis, and all parts are equal: the first is taken.
    First { axis: usize },
    /// Indices that name the one sample there was become each sample's own.
    OwnIndices(OwnIndices),
    /// The samples go from one place to another, after `lead` axes of extent 1 are put in front of the others.
    Move { from: Place, to: Place, lead: usize },
    /// Integers computed from the batch become what they were in the source.
    Was { dims: Vec<i64>, values: Vec<i64> },
}

/// Sample b adds `b · step` to its indices.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OwnIndices {
    /// The axis of the indices that will count samples. Its extent is `inner`.
    pub(super) axis: usize,
    /// Consecutive elements of that axis that belong to one sample.
    pub(super) inner: i64,
    /// Which element of the last axis names the sample, of how many; `None`: every index does.
    pub(super) coordinate: Option<(usize, usize)>,
    /// Number of places that one sample has.
    pub(super) step: i64,
    /// Are the indices known to count from the front?
    pub(super) from_front: bool,
}

/// Makes all changes, in the graph's order. `input`: an input that carries samples, and their axis.
pub(super) fn apply(
    g: &mut Graph,
    edits: &[(NodeId, Edit)],
    input: (ValueId, usize),
    batch: &Dim,
    before: i64,
) -> Result<(), BuildError> {
    let mut editor = Editor { b: Builder::new(g, ""), batch, before, input, extent: None };
    for (node, edit) in edits {
        let b = &mut editor.b;
        b.prefix = format!("batch/{}", b.graph.site(*node).name);
        let Some(old) = b.graph.operand(*node, edit.operand) else { continue };
        let new = match &edit.change {
            Change::Vector(entries) => editor.vector(old, entries)?,
            Change::Repeat { axis } => editor.repeat(old, *axis)?,
            Change::First { axis } => b.slice(old, *axis as i64, 0, 1)?,
            Change::OwnIndices(own) => editor.own_indices(old, own)?,
            Change::Move { from, to, lead } => editor.moved(old, from, to, *lead)?,
            Change::Was { dims, values } => {
                let dtype = b.ty(old)?.dtype;
                let was = b.constant("batch/was", Tensor::i64s(dims, values));
                b.cast(was, dtype)?
            }
        };
        editor.b.graph.set_operand(*node, edit.operand, Some(new));
    }
    Ok(())
}

struct Editor<'a, 'g> {
    b: Builder<'g>,
    /// The new batch.
    batch: &'a Dim,
    /// The source's batch.
    before: i64,
    input: (ValueId, usize),
    /// The new batch as a vector of one int64, once it is needed.
    extent: Option<ValueId>,
}

impl Editor<'_, '_> {
    /// The batch as a vector of one int64: a number, or computed from an input.
    fn extent(&mut self) -> Built {
        if let Some(v) = self.extent {
            return Ok(v);
        }
        let prefix = std::mem::replace(&mut self.b.prefix, "batch".into());
        let v = match self.batch.known() {
            Some(n) => self.b.ints(&[n]),
            None => self.b.dim_of(self.input.0, self.input.1)?,
        };
        self.b.prefix = prefix;
        self.extent = Some(v);
        Ok(v)
    }

    /// A multiple of the batch.
    fn times(&mut self, n: i64) -> Built {
        if let Some(batch) = self.batch.known() {
            return Ok(self.b.ints(&[n * batch]));
        }
        let v = self.extent()?;
        if n == 1 {
            return Ok(v);
        }
        let n = self.b.ints(&[n]);
        self.b.mul(v, n)
    }

    fn vector(&mut self, old: ValueId, entries: &[Entry]) -> Built {
        let number = |e: &Entry| match (e, self.batch.known()) {
            (Entry::Is(n), _) => Some(*n),
            (Entry::Batch(n) | Entry::Rest(n), Some(batch)) => Some(n * batch),
            (Entry::Rest(_), None) => Some(-1),
            _ => None,
        };
        if let Some(numbers) = entries.iter().map(number).collect::<Option<Vec<i64>>>() {
            return Ok(self.b.ints(&numbers));
        }
        let parts = entries.iter().map(|e| self.entry(old, e)).collect::<Result<Vec<_>, _>>()?;
        self.b.concat(&parts, 0)
    }

    fn entry(&mut self, old: ValueId, e: &Entry) -> Built {
        match *e {
            Entry::Is(n) => Ok(self.b.ints(&[n])),
            Entry::Rest(_) => Ok(self.b.ints(&[-1])),
            Entry::Batch(n) => self.times(n),
            Entry::Old(i) => self.b.slice(old, 0, i as i64, i as i64 + 1),
            Entry::OldTimes(i) => {
                let mut was = self.b.slice(old, 0, i as i64, i as i64 + 1)?;
                if self.before != 1 {
                    let n = self.b.ints(&[self.before]);
                    was = self.b.div(was, n)?;
                }
                let batch = self.extent()?;
                self.b.mul(was, batch)
            }
        }
    }

    fn repeat(&mut self, old: ValueId, axis: usize) -> Built {
        let mut ty = self.b.ty(old)?;
        let mut counts = vec![self.b.ints(&[1]); ty.rank()];
        counts[axis] = self.extent()?;
        let counts = self.b.shape_from(&counts)?;
        let v = self.b.op(if ty.shape[axis].is_one() { "Expand" } else { "Tile" }, &[old, counts])?;
        ty.shape[axis] = &ty.shape[axis] * self.batch;
        self.b.graph.set_type(v, ty.into());
        Ok(v)
    }

    /// Makes indices count from the front. Those that name the sample are below `step` once they lose their sign.
    fn count_from_front(&mut self, old: ValueId, own: &OwnIndices) -> Built {
        let b = &mut self.b;
        let ty = b.ty(old)?;
        let wide = b.cast(old, DType::I64)?;
        let steps = b.int(own.step);
        let mut wrapped = b.op("Mod", &[wide, steps])?;
        if let Some((c, m)) = own.coordinate {
            let which = Tensor::bools(&[m as i64], &(0..m).map(|i| i == c).collect::<Vec<_>>());
            let which = b.constant("batch/coordinate", which);
            wrapped = b.select(which, wrapped, wide)?;
        }
        b.cast(wrapped, ty.dtype)
    }

    fn own_indices(&mut self, old: ValueId, own: &OwnIndices) -> Built {
        let old = if own.from_front { old } else { self.count_from_front(old, own)? };
        let ty = self.b.ty(old)?;
        let count = self.times(own.inner)?;
        let b = &mut self.b;
        let count = b.squeeze(count, &[0])?;
        let (zero, one) = (b.int(0), b.int(1));
        let mut samples = b.op("Range", &[zero, count, one])?;
        let extent = &Dim::from(own.inner) * self.batch;
        b.graph.set_type(samples, TensorType::new(DType::I64, vec![extent.clone()]).into());
        if own.inner != 1 {
            let each = b.int(own.inner);
            samples = b.div(samples, each)?;
        }
        let (mut target, mut shape) = (vec![1; ty.rank()], vec![Dim::from(1); ty.rank()]);
        (target[own.axis], shape[own.axis]) = (-1, extent);
        let mut offset = b.reshape(samples, &target, &shape)?;
        let by = match own.coordinate {
            None if own.step == 1 => None,
            None => Some(b.int(own.step)),
            Some((c, m)) => Some(b.ints(&(0..m).map(|i| if i == c { own.step } else { 0 }).collect::<Vec<_>>())),
        };
        if let Some(by) = by {
            offset = b.mul(offset, by)?;
        }
        let offset = b.cast(offset, ty.dtype)?;
        b.add(old, offset)
    }

    /// The samples become an axis of their own, which is moved in front of the new axis and joined to it. Where no element changes
    /// its place in memory, one `Reshape` does.
    fn moved(&mut self, old: ValueId, from: &Place, to: &Place, lead: usize) -> Built {
        let ty = self.b.ty(old)?;
        let mut own = vec![Dim::from(1); lead];
        own.extend(ty.shape);
        let axis = from.axis + lead;
        own[axis] = from.beside();
        let mut target = own.clone();
        target[to.axis] = to.extent(self.batch);
        let mut v = old;
        if !from.at(axis).stays(to, &own) {
            let (outer, inner) = (!from.outer.is_one(), !from.inner.is_one());
            let around = [(&from.outer, outer), (self.batch, true), (&from.inner, inner)];
            let around = around.into_iter().filter(|(_, kept)| *kept).map(|(d, _)| d.clone());
            let apart: Vec<Dim> = own[..axis].iter().cloned().chain(around).chain(own[axis + 1..].iter().cloned()).collect();
            let (samples, beside) = (axis + usize::from(outer), usize::from(outer) + usize::from(inner));
            let place = if to.axis <= axis { to.axis } else { to.axis - 1 + beside };
            v = self.reshaped(v, &apart)?;
            let mut perm: Vec<i64> = (0..apart.len() as i64).filter(|a| *a != samples as i64).collect();
            perm.insert(place, samples as i64);
            v = self.b.transpose(v, &perm)?;
        }
        self.reshaped(v, &target)
    }

    /// A `Reshape` to extents made of the batch, numbers and extents of the value itself.
    fn reshaped(&mut self, v: ValueId, to: &[Dim]) -> Built {
        let own = self.b.ty(v)?;
        if own.shape == to {
            return Ok(v);
        }
        if let Some(target) = reshape_target(to) {
            return self.b.reshape(v, &target, to);
        }
        let parts = to.iter().map(|d| self.extent_of(v, &own, d)).collect::<Result<Vec<_>, _>>()?;
        let target = self.b.shape_from(&parts)?;
        self.b.reshape_dynamic(v, target, to)
    }

    /// An extent as a vector of one int64, computed from the batch and a value of a type.
    fn extent_of(&mut self, v: ValueId, ty: &TensorType, d: &Dim) -> Built {
        if let Some(n) = d.known() {
            return Ok(self.b.ints(&[n]));
        }
        if let Some(axis) = ty.shape.iter().position(|own| own == d) {
            return self.b.dim_of(v, axis);
        }
        if let Some(rest) = d.div_exact(self.batch) {
            let rest = self.extent_of(v, ty, &rest)?;
            let batch = self.extent()?;
            return self.b.mul(rest, batch);
        }
        let whole = d * self.batch;
        let Some(axis) = ty.shape.iter().position(|own| *own == whole) else {
            let what = format!("the extent {d} cannot be computed from a value of type {ty}");
            return Err(self.b.error("Reshape", TypeError(what)));
        };
        let (whole, batch) = (self.b.dim_of(v, axis)?, self.extent()?);
        self.b.div(whole, batch)
    }
}
