//! Formulas over values, written as on paper: `ct * (1.0 - y * y)` appends `Mul`, `Sub`, `Mul`.

use super::build::{BuildError, Builder, Built};
use crate::ir::ValueId;
use std::cell::RefCell;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// Appends the nodes of a formula over `values` and hands back the value it comes to.
///
/// # Errors
/// When one of its nodes cannot be built.
pub(crate) fn formula<const N: usize>(
    b: &mut Builder,
    values: [ValueId; N],
    write: impl for<'f> FnOnce([Term<'f>; N]) -> Term<'f>,
) -> Built {
    let page = Page { builder: RefCell::new(b), failed: RefCell::new(None) };
    let v = write(values.map(|v| Term { page: &page, v })).v;
    page.failed.into_inner().map_or(Ok(v), Err)
}

/// Where terms append their nodes. It keeps the first failure, so that a formula needs no `?`.
struct Page<'b, 'g> {
    builder: RefCell<&'b mut Builder<'g>>,
    failed: RefCell<Option<BuildError>>,
}

/// Hides a page's lifetimes from its terms.
trait Append {
    /// The value that `build` appends; `otherwise` after a failure, when the formula's value is no longer read.
    fn append(&self, otherwise: ValueId, build: &dyn Fn(&mut Builder) -> Built) -> ValueId;
}

impl Append for Page<'_, '_> {
    fn append(&self, otherwise: ValueId, build: &dyn Fn(&mut Builder) -> Built) -> ValueId {
        if self.failed.borrow().is_some() {
            return otherwise;
        }
        build(*self.builder.borrow_mut()).unwrap_or_else(|e| {
            *self.failed.borrow_mut() = Some(e);
            otherwise
        })
    }
}

/// A value in a formula.
#[derive(Clone, Copy)]
pub(crate) struct Term<'f> {
    page: &'f dyn Append,
    v: ValueId,
}

impl Term<'_> {
    /// What a builder makes of the value.
    pub(super) fn then(self, build: impl Fn(&mut Builder, ValueId) -> Built) -> Self {
        Term { v: self.page.append(self.v, &|b| build(b, self.v)), ..self }
    }

    /// A standard operator of one operand.
    pub(crate) fn op(self, name: &str) -> Self {
        self.then(|b, x| b.op(name, &[x]))
    }

    /// x².
    pub(crate) fn squared(self) -> Self {
        self * self
    }

    /// √x.
    pub(crate) fn sqrt(self) -> Self {
        self.op("Sqrt")
    }

    /// min(x, c).
    pub(crate) fn min(self, c: f64) -> Self {
        self.then(|b, x| {
            let dtype = b.ty(x)?.dtype;
            let c = b.scalar(dtype, c);
            b.op("Min", &[x, c])
        })
    }

    /// max(x, c).
    pub(crate) fn max(self, c: f64) -> Self {
        self.then(|b, x| {
            let dtype = b.ty(x)?.dtype;
            let c = b.scalar(dtype, c);
            b.op("Max", &[x, c])
        })
    }

    /// 1 where a comparison with a number holds, else 0.
    pub(crate) fn is(self, op: &str, c: f64) -> Self {
        self.then(|b, x| b.compare(op, x, c))
    }

    /// 1 where low < x < high, else 0.
    pub(crate) fn is_between(self, low: f64, high: f64) -> Self {
        self.then(|b, x| {
            let dtype = b.ty(x)?.dtype;
            let (low, high) = (b.scalar(dtype, low), b.scalar(dtype, high));
            let inside = b.between(x, Some(low), Some(high))?;
            b.cast(inside, dtype)
        })
    }

    /// Itself where a comparison of another value with a number holds, else 0.
    pub(crate) fn kept_where(self, x: Self, op: &str, c: f64) -> Self {
        self.then(|b, v| {
            let dtype = b.ty(x.v)?.dtype;
            let c = b.scalar(dtype, c);
            let holds = b.op(op, &[x.v, c])?;
            b.keep(v, holds, true)
        })
    }

    /// `one` where this mask is 1, `zero` where it is 0.
    pub(crate) fn choose(self, one: f64, zero: f64) -> Self {
        self.then(|b, mask| b.two_valued(mask, one, zero))
    }

    /// 1 where it equals another value, else 0, in its own type.
    pub(crate) fn equals(self, other: Self) -> Self {
        self.then(|b, x| {
            let dtype = b.ty(x)?.dtype;
            let equal = b.op("Equal", &[x, other.v])?;
            b.cast(equal, dtype)
        })
    }

    /// Broadcast to another value's shape.
    pub(crate) fn spread_like(self, other: Self) -> Self {
        self.then(|b, x| b.expand_like(x, other.v))
    }
}

impl Neg for Term<'_> {
    type Output = Self;
    fn neg(self) -> Self {
        self.op("Neg")
    }
}

/// An operator on two terms, on a term and a number, on a number and a term.
macro_rules! arithmetic {
    ($($operator:ident :: $method:ident: $terms:ident, |$b:ident, $x:ident, $c:ident| $right:expr, $left:expr;)*) => {$(
        impl<'f> $operator for Term<'f> {
            type Output = Term<'f>;
            fn $method(self, other: Term<'f>) -> Term<'f> {
                self.then(|b, x| b.$terms(x, other.v))
            }
        }
        impl<'f> $operator<f64> for Term<'f> {
            type Output = Term<'f>;
            fn $method(self, $c: f64) -> Term<'f> {
                self.then(|$b, $x| $right)
            }
        }
        impl<'f> $operator<Term<'f>> for f64 {
            type Output = Term<'f>;
            fn $method(self, x: Term<'f>) -> Term<'f> {
                let $c = self;
                x.then(|$b, $x| $left)
            }
        }
    )*};
}

arithmetic! {
    Add::add: add, |b, x, c| b.shift(x, c), b.shift(x, c);
    Sub::sub: sub, |b, x, c| b.shift(x, -c), b.from_number_sub(c, x);
    Mul::mul: mul, |b, x, c| b.scale(x, c), b.scale(x, c);
    Div::div: div, |b, x, c| { let dtype = b.ty(x)?.dtype; let c = b.scalar(dtype, c); b.div(x, c) }, b.from_number_div(c, x);
}
