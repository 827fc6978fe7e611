//! Terms that move elements without computing: reshapes, permutations, parts and joints, broadcasts, conversions.
//!
//! Each constructor gives the normal form: no-ops vanish, chains of one kind merge, parts of a joint are its operands.

use super::term::{Args, Head, MOST, Table, Term, TermId};
use crate::ir::{DType, Dim, Shape, TensorType, ValueType};
use crate::ops::eval::places::{Places, count, expanded, permuted, sliced};
use crate::ops::eval::{Array, Bounded, joined};
use std::rc::Rc;

/// Parts that a joint is split into at most.
pub(super) const MOST_PARTS: usize = 4096;

impl Table<'_> {
    /// The same elements in row-major order under a shape.
    pub(super) fn reshape(&mut self, x: TermId, shape: Shape) -> TermId {
        if self.shape(x) == Some(&shape) {
            return x;
        }
        let dtype = self.dtype(x);
        let known_dims: Option<Vec<i64>> = shape.iter().map(Dim::known).collect();
        if let (Some(id), Some(dims)) = (self.as_const(x), &known_dims)
            && let Some(id) = self.constants.reshaped(id, dims.clone())
        {
            return self.constant(id);
        }
        match self.head(x).clone() {
            Head::Zero(dtype, _) => return self.zero(TensorType::new(dtype, shape)),
            Head::Reshape(_) => {
                let inner = self.term(x).args[0];
                return self.reshape(inner, shape);
            }
            Head::Concat(axis) => {
                if let Some(t) = self.reshape_joint(x, axis, &shape) {
                    return t;
                }
            }
            Head::Op(_) | Head::Sum(_) => {
                if let Some(t) = self.reshape_scaled(x, &shape) {
                    return t;
                }
            }
            _ => {}
        }
        let fits = |known: &Array<_>, dims: &[i64]| count(dims, usize::MAX) == Some(known.elements.len());
        let known = self.known(x).zip(known_dims).filter(|(known, dims)| fits(known, dims));
        let known = known.map(|(known, dims)| Array { dims, ..(*known).clone() });
        self.moved(Head::Reshape(shape.clone()), &[x], ValueType { dtype, shape: Some(shape) }, known)
    }

    /// A reshape of a scaled value, or of a sum of values of one type, is one of these values.
    fn reshape_scaled(&mut self, x: TermId, shape: &Shape) -> Option<TermId> {
        let (head, args) = (self.head(x).clone(), self.term(x).args.clone());
        let (ty, dtype) = (self.ty(x), self.dtype(x)?);
        let to = Some(TensorType::new(dtype, shape.clone()));
        match head {
            Head::Op(k) if k.name == "Mul" => {
                let scalar = |t: &Self, c: TermId| t.as_const(c).is_some() && t.shape(c).is_some_and(Vec::is_empty);
                let [a, b] = args[..] else { return None };
                let (c, v) = if scalar(self, a) { (a, b) } else { (b, a) };
                if !scalar(self, c) || !self.same_type(v, &ty) {
                    return None;
                }
                let v = self.reshape(v, shape.clone());
                let known = self.mul_rules(c, v, &to);
                Some(known.unwrap_or_else(|| self.commuting(Head::Op(k), c, v, to.map_or(ValueType::default(), Into::into))))
            }
            Head::Sum(bits) if args.iter().all(|a| self.same_type(*a, &ty)) => {
                let terms: Vec<(TermId, f64)> =
                    args.iter().zip(bits).map(|(a, b)| (self.reshape(*a, shape.clone()), f64::from_bits(b))).collect();
                self.reassociated(&terms, &to)
            }
            _ => None,
        }
    }

    /// A reshape of a joint along its outermost axis is a joint of reshapes, where the parts stay parts.
    fn reshape_joint(&mut self, x: TermId, axis: usize, shape: &[Dim]) -> Option<TermId> {
        let parts = self.term(x).args.clone();
        let outer_is_one = |s: &[Dim], n: usize| s[..n].iter().all(Dim::is_one);
        if parts.len() > MOST_PARTS || !outer_is_one(self.shape(x)?, axis) {
            return None;
        }
        // The outermost axis of the new shape that is not 1, and what one step along it holds.
        let to = shape.iter().position(|d| !d.is_one())?;
        let product = |s: &[Dim]| s.iter().fold(Dim::from(1), |p, d| &p * d);
        let inner = product(&shape[to + 1..]);
        let mut shapes = Vec::with_capacity(parts.len());
        for p in &parts {
            let mut s = shape.to_vec();
            s[to] = product(self.shape(*p)?).div_exact(&inner).filter(|d| d.known().is_some_and(|n| n > 0))?;
            shapes.push(s);
        }
        let new: Vec<TermId> = parts.iter().zip(shapes).map(|(p, s)| self.reshape(*p, s)).collect();
        Some(self.concat(to, &new))
    }

    /// Axes permuted.
    pub(super) fn transpose(&mut self, x: TermId, perm: &[usize]) -> TermId {
        if perm.iter().enumerate().all(|(i, p)| i == *p) {
            return x;
        }
        let ty = self.info(x).ty.clone();
        let shape = ty.shape.as_ref().map(|s| perm.iter().map(|p| s[*p].clone()).collect::<Shape>());
        if let (Some(from), Some(to)) = (&ty.shape, &shape) {
            // Where only axes of extent 1 change places, nothing moves.
            let others: Vec<usize> = perm.iter().copied().filter(|p| !from[*p].is_one()).collect();
            if others.is_sorted() {
                return self.reshape(x, to.clone());
            }
        }
        match self.head(x).clone() {
            Head::Zero(dtype, _) => {
                if let Some(to) = shape {
                    return self.zero(TensorType::new(dtype, to));
                }
            }
            Head::Transpose(first) => {
                let inner = self.term(x).args[0];
                let both: Vec<usize> = perm.iter().map(|p| first[*p]).collect();
                return self.transpose(inner, &both);
            }
            Head::Concat(axis) if self.term(x).args.len() <= MOST_PARTS => {
                if let Some(to) = perm.iter().position(|p| *p == axis) {
                    let parts = self.term(x).args.clone();
                    let new: Vec<TermId> = parts.iter().map(|p| self.transpose(*p, perm)).collect();
                    return self.concat(to, &new);
                }
            }
            _ => {}
        }
        let term = Term { head: Head::Transpose(perm.to_vec()), args: Args::from_slice(&[x]) };
        if let Some(t) = self.folded_move(&term, x, |dims| permuted(dims, perm, MOST)) {
            return t;
        }
        let known = self.known(x).and_then(|k| k.picked(permuted(&k.dims, perm, MOST)?));
        self.moved(term.head, &[x], ValueType { dtype: ty.dtype, shape }, known)
    }

    /// `len` elements of an axis of known extent, from `start` on with a step.
    pub(super) fn slice(&mut self, x: TermId, axis: usize, start: i64, len: i64, step: i64) -> Option<TermId> {
        let ty = self.info(x).ty.clone();
        let mut shape = ty.shape.clone()?;
        let extent = shape.get(axis)?.known()?;
        // One element is the same by any step.
        let step = if len > 1 { step } else { 1 };
        if (start, len, step) == (0, extent, 1) {
            return Some(x);
        }
        shape[axis] = Dim::from(len);
        match self.head(x).clone() {
            Head::Zero(dtype, _) => return Some(self.zero(TensorType::new(dtype, shape))),
            Head::Slice { axis: a, start: s, step: p, .. } if a == axis => {
                let inner = self.term(x).args[0];
                return self.slice(inner, axis, s + start * p, len, p * step);
            }
            Head::Concat(a) if a == axis && step == 1 && len > 0 => {
                if let Some(t) = self.part_of_joint(x, axis, start, len) {
                    return Some(t);
                }
            }
            _ => {}
        }
        let term = Term { head: Head::Slice { axis, start, len, step }, args: Args::from_slice(&[x]) };
        if let Some(t) = self.folded_move(&term, x, |dims| sliced(dims, axis, start, len, step, MOST)) {
            return Some(t);
        }
        let known = self.known(x).and_then(|k| k.picked(sliced(&k.dims, axis, start, len, step, MOST)?));
        Some(self.moved(term.head, &[x], ValueType { dtype: ty.dtype, shape: Some(shape) }, known))
    }

    /// The parts of a joint that a range of its axis covers.
    fn part_of_joint(&mut self, x: TermId, axis: usize, start: i64, len: i64) -> Option<TermId> {
        let parts = self.term(x).args.clone();
        let extents: Vec<i64> = parts.iter().map(|p| self.shape(*p)?.get(axis)?.known()).collect::<Option<_>>()?;
        let (mut at, mut new) = (0, Vec::new());
        for (part, extent) in parts.into_iter().zip(extents) {
            let (from, to) = (start.max(at) - at, (start + len).min(at + extent) - at);
            if from < to {
                new.push(self.slice(part, axis, from, to - from, 1)?);
            }
            at += extent;
        }
        Some(self.concat(axis, &new))
    }

    /// Joins terms along an axis.
    pub(super) fn concat(&mut self, axis: usize, parts: &[TermId]) -> TermId {
        let mut flat: Vec<TermId> = Vec::with_capacity(parts.len());
        for p in parts {
            match self.head(*p) {
                Head::Concat(a) if *a == axis => flat.extend(self.term(*p).args.iter().copied()),
                _ => flat.push(*p),
            }
        }
        let empty = |t: &Self, p: TermId| t.shape(p).and_then(|s| s.get(axis)).and_then(Dim::known) == Some(0);
        if flat.iter().any(|p| !empty(self, *p)) {
            flat.retain(|p| !empty(self, *p));
        }
        let mut merged: Vec<TermId> = Vec::with_capacity(flat.len());
        for p in flat {
            match merged.last().and_then(|last| self.neighbours(*last, p, axis)) {
                Some(both) => {
                    merged.pop();
                    merged.push(both);
                }
                None => merged.push(p),
            }
        }
        if let [one] = merged[..] {
            return one;
        }
        let ty = self.joint_type(axis, &merged);
        if let Some(ty) = &ty
            && merged.iter().all(|p| matches!(self.head(*p), Head::Zero(..)))
        {
            return self.zero(ty.clone());
        }
        // One part without known elements makes the joint's unknown. Then no constant's elements are read.
        let may_be_known = merged.iter().all(|p| self.info(*p).known.is_some() || self.as_const(*p).is_some());
        let parts: Option<Vec<_>> = if may_be_known { merged.iter().map(|p| self.known(*p)).collect() } else { None };
        let known = parts.and_then(|all| joined(&all.iter().map(|p| &**p).collect::<Vec<_>>(), axis, MOST));
        let dtype = merged.first().and_then(|p| self.dtype(*p));
        self.moved(Head::Concat(axis), &merged, ty.map_or(ValueType { dtype, shape: None }, ValueType::from), known)
    }

    /// Two parts of one value that follow each other, as one part.
    fn neighbours(&mut self, a: TermId, b: TermId, axis: usize) -> Option<TermId> {
        let part = |t: &Self, p: TermId| match t.head(p) {
            Head::Slice { axis: x, start, len, step: 1 } if *x == axis => Some((t.term(p).args[0], *start, *len)),
            _ => None,
        };
        let ((x, s, n), (y, r, m)) = (part(self, a)?, part(self, b)?);
        if x != y || s + n != r {
            return None;
        }
        self.slice(x, axis, s, n + m, 1)
    }

    fn joint_type(&self, axis: usize, parts: &[TermId]) -> Option<TensorType> {
        let mut all = self.ty(*parts.first()?)?;
        for p in &parts[1..] {
            let other = self.ty(*p)?;
            if other.dtype != all.dtype || other.rank() != all.rank() {
                return None;
            }
            for (i, (a, b)) in all.shape.iter_mut().zip(&other.shape).enumerate() {
                if i == axis {
                    *a = &*a + b;
                } else if a.known().is_none() && b.known().is_some() {
                    *a = b.clone();
                } else if a.known().is_some() && b.known().is_some() && a != b {
                    return None;
                }
            }
        }
        Some(all)
    }

    /// Broadcast to a shape.
    pub(super) fn expand(&mut self, x: TermId, shape: Shape) -> TermId {
        if self.shape(x) == Some(&shape) {
            return x;
        }
        let dtype = self.dtype(x);
        if let Head::Zero(dtype, _) = *self.head(x) {
            return self.zero(TensorType::new(dtype, shape));
        }
        let dims: Option<Vec<i64>> = shape.iter().map(Dim::known).collect();
        // A broadcast of many elements is left to compare as such.
        let small = dims.filter(|d| count(d, 1 << 16).is_some());
        let known = small.and_then(|dims| self.known(x).and_then(|k| k.picked(expanded(&k.dims, &dims, MOST)?)));
        self.moved(Head::Expand(shape.clone()), &[x], ValueType { dtype, shape: Some(shape) }, known)
    }

    /// Converted to an element type.
    pub(super) fn cast(&mut self, x: TermId, to: DType) -> TermId {
        let (from, shape) = (self.dtype(x), self.info(x).ty.shape.clone());
        if from == Some(to) {
            return x;
        }
        let known = self.known(x).and_then(|k| k.cast(to));
        match self.head(x) {
            Head::Zero(..) => {
                if let Some(shape) = shape {
                    return self.zero(TensorType::new(to, shape));
                }
            }
            Head::Cast(middle) => {
                let inner = self.term(x).args[0];
                // A conversion that loses nothing may be left out of two.
                if self.dtype(inner).is_some_and(|first| may_skip(first, *middle, to)) {
                    self.did("conversions that lose nothing");
                    return self.cast(inner, to);
                }
            }
            _ => {}
        }
        self.moved(Head::Cast(to), &[x], ValueType { dtype: Some(to), shape }, known)
    }

    /// A movement as a term, or the constant it is where all elements are known.
    fn moved(&mut self, head: Head, args: &[TermId], ty: ValueType, known: Option<Array<Bounded>>) -> TermId {
        let t = self.intern(head, args, ty);
        known.map_or(t, |k| self.with_known(t, k))
    }

    /// The constant that a movement of a constant's elements gives.
    fn folded_move(&mut self, term: &Term, x: TermId, places: impl FnOnce(&[i64]) -> Option<Places>) -> Option<TermId> {
        let id = self.as_const(x)?;
        if let Some(t) = self.folded.get(term) {
            return Some(*t);
        }
        let from = places(self.constants.dims(id))?;
        let moved = self.constants.moved(id, from)?;
        let t = self.constant(moved);
        self.folded.insert(term.clone(), t);
        self.did("constants folded");
        Some(t)
    }

    /// The constant with these elements if all are known. Otherwise the term, which keeps the elements.
    pub(super) fn with_known(&mut self, t: TermId, k: Array<Bounded>) -> TermId {
        if let Some(c) = self.of_known(k.clone()) {
            if c != t {
                self.did("constants folded");
            }
            return c;
        }
        self.info_mut(t).known = Some(Rc::new(k));
        t
    }
}

/// Is a conversion by way of `middle` the direct one?
fn may_skip(from: DType, middle: DType, to: DType) -> bool {
    let direct = match (from.is_float(), middle.is_float()) {
        _ if to == from || to == DType::Bool || holds_all(from, to) => true,
        (true, true) => to.is_float(),
        // Too large integers wrap; floats that are too large do not.
        (false, false) => !to.is_float(),
        _ => false,
    };
    direct && holds_all(from, middle)
}

/// Does every value of `from` have one of its own in `to`?
fn holds_all(from: DType, to: DType) -> bool {
    use DType::*;
    match from {
        F16 | BF16 => matches!(to, F32 | F64),
        F32 => to == F64,
        Bool => matches!(to, U8 | I8 | U16 | I16 | U32 | I32 | U64 | I64 | F16 | BF16 | F32 | F64),
        U8 => matches!(to, U16 | I16 | U32 | I32 | U64 | I64 | F16 | F32 | F64),
        I8 => matches!(to, I16 | I32 | I64 | F16 | F32 | F64),
        U16 => matches!(to, U32 | I32 | U64 | I64 | F32 | F64),
        I16 => matches!(to, I32 | I64 | F32 | F64),
        U32 => matches!(to, U64 | I64 | F64),
        I32 => matches!(to, I64 | F64),
        _ => false,
    }
}
