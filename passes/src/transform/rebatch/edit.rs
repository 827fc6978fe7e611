//! What has to change in a graph for another batch, and how it is done.

use super::place::Place;
use crate::ir::{Attrs, DType, Dim, Graph, NodeId, Tensor, TensorType, ValueId};
use crate::ops::TypeError;
use crate::ops::build::{BuildError, Builder, Built, reshape_target};

/// One entry of a vector of integers.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Entry {
    /// This number.
    Is(i64),
    /// What the old vector has there.
    Old(usize),
    /// So many times the batch.
    Batch(i64),
    /// So many times the batch, and all that the other entries leave: −1 where the batch is no number.
    Rest(i64),
    /// What the old vector has there, for the new batch instead of the old one.
    OldTimes(usize),
}

/// A change of one operand of one node.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Edit {
    /// A vector of integers (a shape, ends of a slice) becomes this.
    Vector {
        /// Which operand.
        operand: usize,
        /// The new entries.
        entries: Vec<Entry>,
    },
    /// A value without samples is repeated for every sample along an axis.
    Repeat {
        /// Which operand.
        operand: usize,
        /// The axis.
        axis: usize,
    },
    /// Of a value with one part for each sample, all equal, the first is taken.
    First {
        /// Which operand.
        operand: usize,
        /// The axis.
        axis: usize,
    },
    /// Indices that name the one sample there was become each sample's own: sample b adds `b · step` along an axis of extent 1.
    OwnIndices {
        /// Which operand.
        operand: usize,
        /// The axis of the indices that will count samples.
        axis: usize,
        /// Which element of the last axis names the sample, of how many; `None`: every index does.
        coordinate: Option<(usize, usize)>,
        /// Indices of one sample.
        step: i64,
        /// Are they known to count from the front?
        from_front: bool,
        /// Consecutive elements of that axis that belong to one sample.
        inner: i64,
    },
    /// The samples of a value go from one place to another, after axes of extent 1 were put in front of the others.
    Move {
        /// Which operand.
        operand: usize,
        /// Where they are.
        from: Place,
        /// Where they go: each sample's part stays in one piece.
        to: Place,
        /// Number of axes put in front.
        lead: usize,
    },
    /// Integers computed from the batch become what they were in the source.
    Was {
        /// Which operand.
        operand: usize,
        /// Shape.
        dims: Vec<i64>,
        /// Elements.
        values: Vec<i64>,
    },
}

impl Edit {
    fn operand(&self) -> usize {
        match self {
            Edit::Vector { operand, .. }
            | Edit::Repeat { operand, .. }
            | Edit::First { operand, .. }
            | Edit::OwnIndices { operand, .. }
            | Edit::Move { operand, .. }
            | Edit::Was { operand, .. } => *operand,
        }
    }
}

/// The batch in the graph: as a number or computed from an input.
struct Extent<'a> {
    batch: &'a Dim,
    before: i64,
    /// An input that carries samples, and its axis.
    input: Option<(ValueId, usize)>,
    vector: Option<ValueId>,
}

impl Extent<'_> {
    /// The batch as a vector of one int64.
    fn vector(&mut self, b: &mut Builder) -> Built {
        if let Some(v) = self.vector {
            return Ok(v);
        }
        let v = match (self.batch.known(), self.input) {
            (Some(n), _) => b.ints(&[n]),
            (None, Some((input, axis))) => {
                let prefix = std::mem::replace(&mut b.prefix, "batch".into());
                let v = extent_of(b, input, axis)?;
                b.prefix = prefix;
                v
            }
            (None, None) => b.ints(&[self.before]),
        };
        self.vector = Some(v);
        Ok(v)
    }

    /// So many times the batch.
    fn times(&mut self, b: &mut Builder, n: i64) -> Built {
        if let Some(batch) = self.batch.known() {
            return Ok(b.ints(&[n * batch]));
        }
        let v = self.vector(b)?;
        if n == 1 {
            return Ok(v);
        }
        let n = b.ints(&[n]);
        b.mul(v, n)
    }
}

/// One extent of a value, as a vector of one int64.
fn extent_of(b: &mut Builder, v: ValueId, axis: usize) -> Built {
    let axis = axis as i64;
    if b.opset() >= 15 {
        return b.op_with("Shape", Attrs::new().with("start", axis).with("end", axis + 1), &[v]);
    }
    let shape = b.op("Shape", &[v])?;
    let at = b.ints(&[axis]);
    b.op_with("Gather", Attrs::new().with("axis", 0), &[shape, at])
}

/// Makes all changes, in the graph's order.
pub(super) fn apply(
    g: &mut Graph,
    edits: &[(NodeId, Edit)],
    input: Option<(ValueId, usize)>,
    batch: &Dim,
    before: i64,
) -> Result<(), BuildError> {
    let mut b = Builder::new(g, "");
    let mut extent = Extent { batch, before, input, vector: None };
    for (node, edit) in edits {
        b.prefix = format!("batch/{}", b.graph.site(*node).name);
        let operand = edit.operand();
        let Some(old) = b.graph.operand(*node, operand) else { continue };
        let new = match edit {
            Edit::Vector { entries, .. } => vector(&mut b, &mut extent, old, entries)?,
            Edit::Repeat { axis, .. } => repeat(&mut b, &mut extent, old, *axis)?,
            Edit::First { axis, .. } => b.slice(old, *axis as i64, 0, 1)?,
            Edit::OwnIndices { axis, coordinate, step, from_front, inner, .. } => {
                let old = if *from_front { old } else { from_the_front(&mut b, old, *coordinate, *step)? };
                own_indices(&mut b, &mut extent, old, (*axis, *inner), *coordinate, *step)?
            }
            Edit::Move { from, to, lead, .. } => moved(&mut b, &mut extent, old, from, to, *lead)?,
            Edit::Was { dims, values, .. } => {
                let dtype = b.ty(old)?.dtype;
                let was = b.constant("batch/was", Tensor::i64s(dims, values));
                b.cast(was, dtype)?
            }
        };
        b.graph.set_operand(*node, operand, Some(new));
    }
    Ok(())
}

fn vector(b: &mut Builder, extent: &mut Extent, old: ValueId, entries: &[Entry]) -> Built {
    let number = |e: &Entry| match (e, extent.batch.known()) {
        (Entry::Is(n), _) => Some(*n),
        (Entry::Batch(n) | Entry::Rest(n), Some(batch)) => Some(n * batch),
        (Entry::Rest(_), None) => Some(-1),
        _ => None,
    };
    if let Some(numbers) = entries.iter().map(number).collect::<Option<Vec<i64>>>() {
        return Ok(b.ints(&numbers));
    }
    let mut parts = Vec::with_capacity(entries.len());
    for e in entries {
        let part = match e {
            Entry::Is(n) => b.ints(&[*n]),
            Entry::Rest(_) => b.ints(&[-1]),
            Entry::Batch(n) => extent.times(b, *n)?,
            Entry::Old(i) => b.slice(old, 0, *i as i64, *i as i64 + 1)?,
            Entry::OldTimes(i) => {
                let was = b.slice(old, 0, *i as i64, *i as i64 + 1)?;
                let was = if extent.before == 1 {
                    was
                } else {
                    let n = b.ints(&[extent.before]);
                    b.div(was, n)?
                };
                let batch = extent.vector(b)?;
                b.mul(was, batch)?
            }
        };
        parts.push(part);
    }
    b.concat(&parts, 0)
}

/// Tells a builder's value its shape where the rule could not.
fn settle(b: &mut Builder, v: ValueId, axis: usize, d: Dim) {
    let mut ty = b.graph.value(v).ty.clone();
    if let Some(x) = ty.shape.as_mut().and_then(|s| s.get_mut(axis)) {
        *x = d;
    }
    b.graph.set_type(v, ty);
}

fn repeat(b: &mut Builder, extent: &mut Extent, old: ValueId, axis: usize) -> Built {
    let ty = b.ty(old)?;
    let one = b.ints(&[1]);
    let mut parts = vec![one; ty.rank()];
    parts[axis] = extent.vector(b)?;
    let counts = b.shape_from(&parts)?;
    let v = b.op(if ty.shape[axis].is_one() { "Expand" } else { "Tile" }, &[old, counts])?;
    let mut shape = ty.shape.clone();
    shape[axis] = &shape[axis] * extent.batch;
    b.graph.set_type(v, TensorType::new(ty.dtype, shape).into());
    Ok(v)
}

/// Indices that count from the front: those that name the sample, which are below `step`, lose their sign.
fn from_the_front(b: &mut Builder, old: ValueId, coordinate: Option<(usize, usize)>, step: i64) -> Built {
    let ty = b.ty(old)?;
    let wide = b.cast(old, DType::I64)?;
    let steps = b.int(step);
    let wrapped = b.op("Mod", &[wide, steps])?;
    let wrapped = match coordinate {
        None => wrapped,
        Some((c, m)) => {
            let which = Tensor::bools(&[m as i64], &(0..m).map(|i| i == c).collect::<Vec<_>>());
            let which = b.constant("batch/coordinate", which);
            b.select(which, wrapped, wide)?
        }
    };
    b.cast(wrapped, ty.dtype)
}

fn own_indices(
    b: &mut Builder,
    extent: &mut Extent,
    old: ValueId,
    (axis, inner): (usize, i64),
    coordinate: Option<(usize, usize)>,
    step: i64,
) -> Built {
    let ty = b.ty(old)?;
    let rank = ty.rank();
    let count = extent.times(b, inner)?;
    let count = b.squeeze(count, &[0])?;
    let (zero, one) = (b.int(0), b.int(1));
    let mut samples = b.op("Range", &[zero, count, one])?;
    let extents = &Dim::from(inner) * extent.batch;
    settle(b, samples, 0, extents.clone());
    if inner != 1 {
        let each = b.int(inner);
        samples = b.div(samples, each)?;
    }
    let mut target = vec![1; rank];
    target[axis] = -1;
    let mut shape = vec![Dim::from(1); rank];
    shape[axis] = extents;
    let mut offset = b.reshape(samples, &target, &shape)?;
    let by = match coordinate {
        None if step == 1 => None,
        None => Some(b.int(step)),
        Some((c, m)) => {
            let unit: Vec<i64> = (0..m).map(|i| if i == c { step } else { 0 }).collect();
            Some(b.ints(&unit))
        }
    };
    if let Some(by) = by {
        offset = b.mul(offset, by)?;
    }
    if ty.dtype != DType::I64 {
        offset = b.cast(offset, ty.dtype)?;
    }
    b.add(old, offset)
}

/// The samples go to another axis: taken apart into an axis of their own, which is moved in front of the new axis and joined to it.
/// Where no element changes its place in memory, one `Reshape` does.
fn moved(b: &mut Builder, extent: &mut Extent, old: ValueId, from: &Place, to: &Place, lead: usize) -> Built {
    let ty = b.ty(old)?;
    let mut own = vec![Dim::from(1); lead];
    own.extend(ty.shape.iter().cloned());
    let axis = from.axis + lead;
    own[axis] = from.beside();
    let mut target = own.clone();
    target[to.axis] = to.extent(extent.batch);
    let mut v = old;
    if !from.at(axis).stays(to, &own) {
        let around: Vec<Dim> = [&from.outer, extent.batch, &from.inner].into_iter().cloned().collect();
        let kept: Vec<bool> = vec![!from.outer.is_one(), true, !from.inner.is_one()];
        let middle = around.into_iter().zip(&kept).filter(|(_, k)| **k).map(|(d, _)| d);
        let apart: Vec<Dim> = own[..axis].iter().cloned().chain(middle).chain(own[axis + 1..].iter().cloned()).collect();
        let samples = axis + usize::from(kept[0]);
        let beside = usize::from(kept[0]) + usize::from(kept[2]);
        let place = if to.axis <= axis { to.axis } else { to.axis - 1 + beside };
        v = to_shape(b, extent, v, &apart)?;
        let mut perm: Vec<i64> = (0..apart.len() as i64).filter(|a| *a != samples as i64).collect();
        perm.insert(place, samples as i64);
        v = b.transpose(v, &perm)?;
    }
    to_shape(b, extent, v, &target)
}

/// A `Reshape` to extents made of the batch, numbers and extents of the value itself.
fn to_shape(b: &mut Builder, extent: &mut Extent, v: ValueId, to: &[Dim]) -> Built {
    let own = b.ty(v)?;
    if own.shape == to {
        return Ok(v);
    }
    if let Some(target) = reshape_target(to) {
        return b.reshape(v, &target, to);
    }
    let parts = to.iter().map(|d| extent_as_vector(b, extent, (v, &own), d)).collect::<Result<Vec<_>, _>>()?;
    let target = b.shape_from(&parts)?;
    b.reshape_dynamic(v, target, to)
}

fn extent_as_vector(b: &mut Builder, extent: &mut Extent, (v, ty): (ValueId, &TensorType), d: &Dim) -> Built {
    if let Some(n) = d.known() {
        return Ok(b.ints(&[n]));
    }
    if let Some(axis) = ty.shape.iter().position(|own| own == d) {
        return extent_of(b, v, axis);
    }
    if let Some(rest) = d.div_exact(extent.batch) {
        let rest = extent_as_vector(b, extent, (v, ty), &rest)?;
        let batch = extent.vector(b)?;
        return b.mul(rest, batch);
    }
    let whole = d * extent.batch;
    match ty.shape.iter().position(|own| *own == whole) {
        Some(axis) => {
            let (whole, batch) = (extent_of(b, v, axis)?, extent.vector(b)?);
            b.div(whole, batch)
        }
        None => Err(b.error("Reshape", TypeError(format!("the extent {d} cannot be computed from a value of type {ty}")))),
    }
}
