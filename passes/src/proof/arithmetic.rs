//! Sums, products and matrix products. Products by an exact zero or one are simplified, and a product with a one-hot matrix is a
//! choice of rows. By these rules every lowering of a router with one-hot weights comes down to the states it reads.

use super::term::{Args, Granted, Head, OpKey, Table, TermId};
use crate::ir::{Dim, TensorType, ValueType};
use crate::ops::eval::places::count;
use crate::ops::eval::{Bounded, Element};
use std::rc::Rc;

/// Elements of a matrix that is looked at as one of weights over states.
const MOST_WEIGHTS: usize = 1 << 16;

/// The choice that a row (or column) of weights makes, and the weights.
type Line = (Choice, Vec<f64>);

/// The choice that a row of weights makes among the states it is multiplied with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Choice {
    /// All weights are zero.
    Nothing,
    /// One weight is not zero: which, and what it is.
    One(usize, f64),
    /// More than one, or weights that are not known.
    Several,
}

impl Table<'_> {
    /// An operator of two operands that commutes, in one order.
    pub(super) fn commuting(&mut self, head: Head, a: TermId, b: TermId, ty: ValueType) -> TermId {
        let (a, b) = if a <= b { (a, b) } else { (b, a) };
        self.intern(head, [a, b].as_slice(), ty)
    }

    /// May a product of the value with zero be taken for zero? The proof assumes, and says, that a value computed from an input is
    /// finite. A constant must be finite.
    fn may_vanish(&mut self, x: TermId) -> bool {
        if !self.is_float(x) || matches!(self.head(x), Head::Zero(..)) || self.info(x).fed || self.known(x).is_some() {
            return true;
        }
        // A class token for each sample, positions for a length that the input decides: constants that are only moved.
        let args = match self.head(x) {
            Head::Expand(_) | Head::Reshape(_) | Head::Transpose(_) | Head::Slice { .. } | Head::Concat(_) => {
                self.term(x).args.clone()
            }
            Head::Op(k) if matches!(k.name.as_str(), "Expand" | "Gather" | "Reshape" | "Slice" | "Tile") => {
                Args::from_slice(&self.term(x).args[..1])
            }
            _ => return false,
        };
        args.iter().all(|a| self.may_vanish(*a))
    }

    /// Notes that a value, assumed finite, was multiplied by zero. Of a value that only moves elements, the operands are noted.
    fn zero_product(&mut self, x: TermId) {
        let mut open = vec![x];
        while let Some(x) = open.pop() {
            if !self.is_float(x) || !self.info(x).fed || self.zeroed.contains(&x) {
                continue;
            }
            self.granted.insert(Granted::SignOfZero);
            match self.head(x) {
                Head::Concat(_) | Head::Reshape(_) | Head::Slice { .. } | Head::Transpose(_) => {
                    open.extend(self.term(x).args.iter().rev().copied());
                }
                _ => {
                    self.zeroed.insert(x);
                }
            }
        }
    }

    /// a + b of a type; `None` to keep it.
    pub(super) fn add_rules(&mut self, a: TermId, b: TermId, ty: &Option<TensorType>) -> Option<TermId> {
        for (x, other) in [(a, b), (b, a)] {
            if self.uniform(x) == Some(0.0) && self.same_type(other, ty) {
                return Some(self.without_zero(other));
            }
        }
        self.reassociated(&[(a, 1.0), (b, 1.0)], ty)
    }

    /// The one addend that is left of a sum without its zeros.
    pub(super) fn without_zero(&mut self, left: TermId) -> TermId {
        self.did("x + 0");
        if self.is_float(left) {
            self.granted.insert(Granted::SignOfZero);
        }
        left
    }

    /// a − b of a type.
    pub(super) fn sub_rules(&mut self, a: TermId, b: TermId, ty: &Option<TensorType>) -> Option<TermId> {
        if self.uniform(b) == Some(0.0) && self.same_type(a, ty) {
            return Some(self.without_zero(a));
        }
        self.reassociated(&[(a, 1.0), (b, -1.0)], ty)
    }

    /// a · b of a type.
    pub(super) fn mul_rules(&mut self, a: TermId, b: TermId, ty: &Option<TensorType>) -> Option<TermId> {
        for (x, other) in [(a, b), (b, a)] {
            match self.uniform(x) {
                Some(1.0) if self.same_type(other, ty) => {
                    self.did("x * 1");
                    return Some(other);
                }
                Some(0.0) if ty.is_some() && self.dtype(other).is_some() && self.may_vanish(other) => {
                    self.did("x * 0");
                    self.zero_product(other);
                    return ty.clone().map(|ty| self.zero(ty));
                }
                _ => {}
            }
        }
        for (x, w) in [(a, b), (b, a)] {
            if let Some(t) = self.weighted_parts(x, w, ty) {
                return Some(t);
            }
            if let Some(c) = self.uniform(w)
                && self.options.reassociate
                && self.same_type(x, ty)
            {
                return self.reassociated(&[(x, c)], ty);
            }
        }
        None
    }

    /// A product of a joint with weights is a joint of products, where each part has one weight and some weights are zero.
    fn weighted_parts(&mut self, x: TermId, w: TermId, ty: &Option<TensorType>) -> Option<TermId> {
        let Head::Concat(axis) = *self.head(x) else { return None };
        let (parts, w_id) = (self.term(x).args.clone(), self.as_const(w)?);
        if !self.same_type(x, ty) || self.constants.len(w_id) > MOST_WEIGHTS || !self.is_float(x) {
            return None;
        }
        let rank = self.shape(x)?.len();
        let w_axis = (axis + self.constants.dims(w_id).len()).checked_sub(rank)?;
        let total = self.constants.dims(w_id)[w_axis];
        let extents: Vec<i64> = parts.iter().map(|p| self.shape(*p)?.get(axis)?.known()).collect::<Option<_>>()?;
        if extents.iter().sum::<i64>() != total || total == 1 {
            return None;
        }
        let (mut at, mut weights) = (0, Vec::new());
        for n in extents {
            let part = self.slice(w, w_axis, at, n, 1)?;
            self.uniform(part)?;
            weights.push(part);
            at += n;
        }
        if !self.options.reassociate && !weights.iter().any(|w| self.uniform(*w) == Some(0.0)) {
            return None;
        }
        let new: Option<Vec<TermId>> = parts.iter().zip(weights).map(|(p, w)| self.scaled(*p, w)).collect();
        Some(self.concat(axis, &new?))
    }

    /// x · c for a constant c of equal elements that broadcasts to x.
    fn scaled(&mut self, x: TermId, c: TermId) -> Option<TermId> {
        let ty = self.ty(x);
        if let Some(t) = self.mul_rules(x, c, &ty) {
            return Some(t);
        }
        let c = self.as_scalar(c)?;
        Some(self.commuting(Head::Op(plain_key("Mul")), x, c, ty?.into()))
    }

    /// A constant of equal elements as one of rank 0.
    pub(super) fn as_scalar(&mut self, c: TermId) -> Option<TermId> {
        let ty = self.ty(c)?;
        if ty.rank() == 0 {
            return Some(c);
        }
        let first = (0..ty.rank()).try_fold(c, |c, axis| self.slice(c, axis, 0, 1, 1))?;
        Some(self.reshape(first, Vec::new()))
    }

    /// A · B, where one of them is a known matrix with at most one nonzero element a row (a column, if it is the second).
    pub(super) fn matmul_rules(&mut self, a: TermId, b: TermId, ty: &Option<TensorType>) -> Option<TermId> {
        let ty = ty.as_ref()?;
        if !ty.dtype.is_float() {
            return None;
        }
        for (x, other) in [(a, b), (b, a)] {
            if self.uniform(x) == Some(0.0) && self.may_vanish(other) {
                self.did("x * 0");
                self.zero_product(other);
                return Some(self.zero(ty.clone()));
            }
        }
        for (weights, states, axis) in [(a, b, 0), (b, a, 1)] {
            if axis == 1 && !matches!(self.head(states), Head::Concat(1)) {
                continue;
            }
            if let Some(lines) = self.lines(weights, axis) {
                let parts = self.parts_along(states, axis, lines[0].1.len())?;
                let whole = self.plain("MatMul", &[a, b], ty.clone().into());
                return self.chosen(&lines, &parts, axis, whole, ty);
            }
        }
        None
    }

    /// A convolution with a kernel of zeros.
    pub(super) fn conv_rules(&mut self, x: TermId, kernel: TermId, ty: Option<TensorType>) -> Option<TermId> {
        let ty = ty.filter(|ty| ty.dtype.is_float())?;
        if self.uniform(kernel) != Some(0.0) || !self.may_vanish(x) {
            return None;
        }
        self.did("x * 0");
        self.zero_product(x);
        Some(self.zero(ty))
    }

    /// The rows (for axis 1 the columns) of a small known matrix, with what each chooses; `None` if none chooses at most one thing.
    fn lines(&mut self, w: TermId, axis: usize) -> Option<Vec<Line>> {
        let dims = self.ty(w)?.known_dims()?;
        let [rows, width] = dims[..] else { return None };
        if count(&dims, MOST_WEIGHTS).is_none_or(|n| n == 0) {
            return None;
        }
        let known = self.known(w)?;
        let v: Vec<f64> = known.elements.iter().map(weight).collect::<Option<_>>()?;
        let (rows, width) = (rows as usize, width as usize);
        let lines: Vec<Vec<f64>> = match axis {
            0 => v.chunks(width).map(<[f64]>::to_vec).collect(),
            _ => (0..width).map(|j| (0..rows).map(|i| v[i * width + j]).collect()).collect(),
        };
        let lines: Vec<Line> = lines.into_iter().map(|l| (choice(&l), l)).collect();
        let some = lines.iter().any(|(c, _)| *c != Choice::Several);
        let summed = self.options.reassociate && lines.iter().all(|(_, l)| l.iter().all(|w| !w.is_nan()));
        ((some || summed) && lines[0].1.len() <= super::movement::MOST_PARTS).then_some(lines)
    }

    /// A term as `count` parts of extent 1 along an axis of a matrix.
    fn parts_along(&mut self, x: TermId, axis: usize, count: usize) -> Option<Vec<TermId>> {
        let shape = self.shape(x)?;
        if shape.len() != 2 || shape[axis].known() != Some(count as i64) {
            return None;
        }
        (0..count as i64).map(|i| self.slice(x, axis, i, 1, 1)).collect()
    }

    /// The joint of what the rows of weights choose among `parts`; a row that chooses several stays a part of `whole`.
    fn chosen(&mut self, choices: &[Line], parts: &[TermId], axis: usize, whole: TermId, ty: &TensorType) -> Option<TermId> {
        let mut row_ty = ty.clone();
        row_ty.shape[axis] = Dim::from(1);
        if !parts.iter().all(|p| self.may_vanish(*p)) {
            return None;
        }
        let mut out = Vec::with_capacity(choices.len());
        for (i, (choice, weights)) in choices.iter().enumerate() {
            let (zeros, t) = match choice {
                Choice::Nothing => (parts.to_vec(), self.zero(row_ty.clone())),
                Choice::One(at, w) => {
                    let others = parts.iter().enumerate().filter(|(j, _)| j != at).map(|(_, p)| *p).collect();
                    let c = crate::ir::Tensor::floats(ty.dtype, &[], &[*w]).bytes().ok()?.into_owned();
                    let c = self.constants.of_elements(ty.dtype, vec![], c);
                    let c = self.constant(c);
                    (others, self.scaled(parts[*at], c)?)
                }
                Choice::Several => {
                    let terms: Vec<(TermId, f64)> = parts.iter().copied().zip(weights.iter().copied()).collect();
                    let known = !weights.iter().any(|w| w.is_nan());
                    let sum = if known { self.reassociated(&terms, &Some(row_ty.clone())) } else { None };
                    (Vec::new(), sum.or_else(|| self.slice(whole, axis, i as i64, 1, 1))?)
                }
            };
            zeros.into_iter().for_each(|z| self.zero_product(z));
            if *choice != Choice::Several {
                self.granted.insert(Granted::ExactProducts);
            }
            out.push(t);
        }
        self.did("products with one-hot weights");
        Some(self.concat(axis, &out))
    }

    /// α A B + β C with α = β = 1 and nothing transposed, where A or B is one-hot.
    pub(super) fn gemm_rules(&mut self, a: TermId, b: TermId, c: TermId, ty: &Option<TensorType>) -> Option<TermId> {
        let product = self.matmul_rules(a, b, ty)?;
        if c == TermId::NONE {
            return Some(product);
        }
        if let Some(sum) = self.add_rules(product, c, ty) {
            return Some(sum);
        }
        // The sum is made row by row: where a row chooses nothing, C's row stays as it is.
        let ty = ty.clone().filter(|ty| ty.rank() == 2)?;
        let rows = ty.shape[0].known()?;
        let c_rows = self.shape(c).filter(|s| s.len() == 2)?[0].known();
        if rows > super::movement::MOST_PARTS as i64 || c_rows != Some(rows) {
            return None;
        }
        let mut row_ty = ty.clone();
        row_ty.shape[0] = Dim::from(1);
        let mut out = Vec::new();
        for i in 0..rows {
            let (x, y) = (self.slice(product, 0, i, 1, 1)?, self.slice(c, 0, i, 1, 1)?);
            let sum = self.add_rules(x, y, &Some(row_ty.clone()));
            out.push(sum.unwrap_or_else(|| self.commuting(Head::Op(plain_key("Add")), x, y, row_ty.clone().into())));
        }
        Some(self.concat(0, &out))
    }

    /// The sum of a joint along its own axis.
    pub(super) fn reduce_sum_rules(&mut self, x: TermId, axes: &[usize], ty: &Option<TensorType>) -> Option<TermId> {
        let (Head::Concat(axis), [reduced]) = (self.head(x).clone(), axes) else { return None };
        let (ty, parts) = (ty.clone()?, self.term(x).args.clone());
        let one = |t: &Self, p: TermId| t.shape(p).and_then(|s| s.get(axis)).is_some_and(Dim::is_one);
        if axis != *reduced || !ty.dtype.is_float() || !parts.iter().all(|p| one(self, *p)) {
            return None;
        }
        let terms: Vec<TermId> = parts.iter().copied().filter(|p| self.uniform(*p) != Some(0.0)).collect();
        match terms[..] {
            [] => Some(self.zero(ty)),
            [only] if terms.len() < parts.len() => {
                let only = self.without_zero(only);
                Some(self.reshape(only, ty.shape))
            }
            _ => {
                let all: Vec<(TermId, f64)> = terms.into_iter().map(|p| (self.reshape(p, ty.shape.clone()), 1.0)).collect();
                self.reassociated(&all, &Some(ty))
            }
        }
    }

    /// Σ c · x as a sum in no order, if sums may be re-associated.
    pub(super) fn reassociated(&mut self, terms: &[(TermId, f64)], ty: &Option<TensorType>) -> Option<TermId> {
        let ty = ty.as_ref().filter(|ty| self.options.reassociate && ty.dtype.is_float())?;
        let mut all: Vec<(TermId, f64)> = Vec::new();
        for (t, c) in terms {
            match self.head(*t).clone() {
                Head::Sum(bits) => {
                    let inner = self.term(*t).args.clone();
                    all.extend(inner.into_iter().zip(bits).map(|(x, b)| (x, f64::from_bits(b) * c)));
                }
                Head::Zero(..) => {}
                _ => all.push((*t, *c)),
            }
        }
        all.sort_by_key(|(t, _)| *t);
        let mut merged: Vec<(TermId, f64)> = Vec::with_capacity(all.len());
        for (t, c) in all {
            match merged.last_mut() {
                Some((last, sum)) if *last == t => *sum += c,
                _ => merged.push((t, c)),
            }
        }
        for (t, c) in &merged {
            if *c == 0.0 {
                if !self.may_vanish(*t) {
                    return None;
                }
                self.zero_product(*t);
            }
        }
        merged.retain(|(_, c)| *c != 0.0);
        let some = Some(ty.clone());
        match merged[..] {
            [] => Some(self.zero(ty.clone())),
            [(t, 1.0)] if self.same_type(t, &some) => Some(t),
            _ => {
                self.granted.insert(Granted::Reassociated);
                self.did("sums re-associated");
                let bits = merged.iter().map(|(_, c)| c.to_bits()).collect();
                let args: Args = merged.iter().map(|(t, _)| *t).collect();
                Some(self.intern(Head::Sum(bits), args, ty.clone().into()))
            }
        }
    }

    /// An operator without attributes that is left as it is.
    pub(super) fn plain(&mut self, name: &str, args: &[TermId], ty: ValueType) -> TermId {
        self.intern(Head::Op(plain_key(name)), args, ty)
    }
}

/// The key of an operator without attributes.
fn plain_key(name: &str) -> Rc<OpKey> {
    Rc::new(OpKey { name: name.to_string(), attrs: Vec::new(), version: 0, results: 0 })
}

/// A float; NaN stands for one that is not known.
fn weight(e: &Element<Bounded>) -> Option<f64> {
    match e {
        Element::Float(v) => Some(*v),
        Element::Open(Bounded::Within(_)) => Some(f64::NAN),
        _ => None,
    }
}

fn choice(weights: &[f64]) -> Choice {
    let mut found = Choice::Nothing;
    for (i, w) in weights.iter().enumerate().filter(|(_, w)| **w != 0.0) {
        if w.is_nan() || found != Choice::Nothing {
            return Choice::Several;
        }
        found = Choice::One(i, *w);
    }
    found
}
