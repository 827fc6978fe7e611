//! Sums, products and matrix products: what is multiplied by an exact zero or one goes, and a product with a one-hot matrix
//! is a choice of rows. This is how a router's lowering, whatever it is made of, comes down to the states it reads.

use super::term::{Args, Granted, Head, Table, TermId};
use crate::ir::{Dim, TensorType, ValueType};
use crate::ops::eval::{Bounded, Element};
use smallvec::smallvec;

/// Elements of a matrix that is looked at as one of weights over states.
const MOST_WEIGHTS: usize = 1 << 16;

/// A row (or column) of weights, and what it chooses.
type Line = (Choice, Vec<f64>);

/// What a row of weights makes of the states it is multiplied with.
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

    /// May a product of the value with zero be taken for zero? What comes from an input is taken for finite, and the proof
    /// says so; a constant must be.
    fn may_vanish(&mut self, x: TermId) -> bool {
        !self.is_float(x) || matches!(self.head(x), Head::Zero(..)) || self.info(x).fed || self.known(x).is_some()
    }

    /// Notes that a finite value was multiplied by zero: what it is made of, if it only moves that about.
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
                self.did("x + 0");
                if self.is_float(other) {
                    self.granted.insert(Granted::SignOfZero);
                }
                return Some(other);
            }
        }
        self.reassociated(&[(a, 1.0), (b, 1.0)], ty)
    }

    /// a − b of a type.
    pub(super) fn sub_rules(&mut self, a: TermId, b: TermId, ty: &Option<TensorType>) -> Option<TermId> {
        if self.uniform(b) == Some(0.0) && self.same_type(a, ty) {
            self.did("x + 0");
            if self.is_float(a) {
                self.granted.insert(Granted::SignOfZero);
            }
            return Some(a);
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

    /// A product of a joint with weights that differ only from part to part, some of them zero, is a joint of products.
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
        let head = Head::Op(self.plain_key("Mul"));
        Some(self.commuting(head, x, c, ty?.into()))
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
        if let Some(choices) = self.choices(a, false) {
            let rows = self.parts_along(b, 0, choices_width(&choices)?)?;
            let whole = self.intern(Head::Op(self.plain_key("MatMul")), [a, b].as_slice(), ty.clone().into());
            return self.chosen(&choices.1, &rows, 0, whole, ty);
        }
        if matches!(self.head(a), Head::Concat(1))
            && let Some(choices) = self.choices(b, true)
        {
            let columns = self.parts_along(a, 1, choices_width(&choices)?)?;
            let whole = self.intern(Head::Op(self.plain_key("MatMul")), [a, b].as_slice(), ty.clone().into());
            return self.chosen(&choices.1, &columns, 1, whole, ty);
        }
        None
    }

    /// What each row (or column) of a small known matrix chooses, with the number of things to choose from; `None` if no row
    /// chooses at most one.
    fn choices(&mut self, w: TermId, columns: bool) -> Option<(usize, Vec<Line>)> {
        let dims = self.ty(w)?.known_dims()?;
        let [rows, width] = dims[..] else { return None };
        if rows * width > MOST_WEIGHTS as i64 || rows * width == 0 {
            return None;
        }
        let known = self.known(w)?;
        let v: Vec<f64> = known.elements.iter().map(weight).collect::<Option<_>>()?;
        let (rows, width) = (rows as usize, width as usize);
        let (lines, count) = if columns { (columns_of(&v, rows, width), rows) } else { (rows_of(&v, width), width) };
        let choices: Vec<Line> = lines.into_iter().map(|l| (choice(&l), l)).collect();
        let some = choices.iter().any(|(c, _)| *c != Choice::Several);
        let summed = self.options.reassociate && choices.iter().all(|(_, l)| l.iter().all(|w| !w.is_nan()));
        (some || summed).then_some((count, choices))
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
                    let sum = if weights.iter().any(|w| w.is_nan()) {
                        None
                    } else {
                        self.reassociated(&terms, &Some(row_ty.clone()))
                    };
                    let t = match sum {
                        Some(t) => t,
                        None => self.slice(whole, axis, i as i64, 1, 1)?,
                    };
                    (Vec::new(), t)
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
        // Row by row, so that rows that choose nothing leave C's as they are.
        let ty = ty.clone()?;
        let rows = ty.shape[0].known()?;
        let c_rows = self.shape(c).filter(|s| s.len() == 2)?[0].known();
        if rows > super::movement::MOST_PARTS as i64 || c_rows != Some(rows) {
            return None;
        }
        let mut row_ty = ty.clone();
        row_ty.shape[0] = Dim::from(1);
        let row_ty = Some(row_ty);
        let mut out = Vec::new();
        for i in 0..rows {
            let (x, y) = (self.slice(product, 0, i, 1, 1)?, self.slice(c, 0, i, 1, 1)?);
            out.push(match self.add_rules(x, y, &row_ty) {
                Some(t) => t,
                None => {
                    let head = Head::Op(self.plain_key("Add"));
                    self.commuting(head, x, y, row_ty.clone().map_or(ValueType::default(), Into::into))
                }
            });
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
                self.did("x + 0");
                self.granted.insert(Granted::SignOfZero);
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

    /// The key of an operator without attributes.
    pub(super) fn plain_key(&self, name: &str) -> std::rc::Rc<super::term::OpKey> {
        std::rc::Rc::new(super::term::OpKey { name: name.to_string(), attrs: Vec::new(), version: 0, results: 0 })
    }

    /// An operator without attributes that is left as it is.
    pub(super) fn plain(&mut self, name: &str, args: &[TermId], ty: ValueType) -> TermId {
        let mut all: Args = smallvec![];
        all.extend_from_slice(args);
        self.intern(Head::Op(self.plain_key(name)), all, ty)
    }
}

/// A float; NaN stands for one that is not known.
fn weight(e: &Element<Bounded>) -> Option<f64> {
    match e {
        Element::Float(v) => Some(*v),
        Element::Open(Bounded::Within(_)) => Some(f64::NAN),
        _ => None,
    }
}

fn choices_width(choices: &(usize, Vec<Line>)) -> Option<usize> {
    (choices.0 <= super::movement::MOST_PARTS).then_some(choices.0)
}

fn rows_of(v: &[f64], width: usize) -> Vec<Vec<f64>> {
    v.chunks(width).map(<[f64]>::to_vec).collect()
}

fn columns_of(v: &[f64], rows: usize, width: usize) -> Vec<Vec<f64>> {
    (0..width).map(|j| (0..rows).map(|i| v[i * width + j]).collect()).collect()
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
