//! Formulas over values, written as on paper: `ct * (1.0 - y * y)` appends `Mul`, `Sub`, `Mul`.

use super::batch_norm_train::{channel_reduce, per_channel};
use super::broadcast::unbroadcast;
use super::build::{BuildError, Builder, Built};
use crate::ir::{DType, ValueId};
use std::cell::RefCell;
use std::ops::{Add, Div, Mul, Neg, Sub};

/// Appends the nodes of a formula over `values` and returns its value.
///
/// # Errors
/// When one of its nodes cannot be built.
pub(crate) fn formula<const N: usize>(
    b: &mut Builder,
    values: [ValueId; N],
    write: impl for<'f> FnOnce([Term<'f>; N]) -> Term<'f>,
) -> Built {
    let [v] = formulas(b, values, |terms| [write(terms)])?;
    Ok(v)
}

/// As [`formula`], with several results.
pub(crate) fn formulas<const N: usize, const M: usize>(
    b: &mut Builder,
    values: [ValueId; N],
    write: impl for<'f> FnOnce([Term<'f>; N]) -> [Term<'f>; M],
) -> Result<[ValueId; M], BuildError> {
    let page = Page { builder: RefCell::new(b), failed: RefCell::new(None) };
    let made = write(values.map(|v| Term { page: &page, v })).map(|term| term.v);
    page.failed.into_inner().map_or(Ok(made), Err)
}

/// Where terms append their nodes. It keeps the first error, so that a formula needs no `?`.
struct Page<'b, 'g> {
    builder: RefCell<&'b mut Builder<'g>>,
    failed: RefCell<Option<BuildError>>,
}

/// A page without its lifetimes.
trait Append {
    /// The value that `build` appends. After an error it is `otherwise`, which nobody reads.
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
    /// The value that `build` makes of this one.
    pub(super) fn then(self, build: impl Fn(&mut Builder, ValueId) -> Built) -> Self {
        Term { v: self.page.append(self.v, &|b| build(b, self.v)), ..self }
    }

    /// A standard operator of one operand.
    pub(crate) fn op(self, name: &str) -> Self {
        self.then(|b, x| b.op(name, &[x]))
    }

    /// Its matrix product with another.
    pub(crate) fn dot(self, other: Self) -> Self {
        self.then(|b, x| b.matmul(x, other.v))
    }

    /// x^y.
    pub(crate) fn to(self, y: Self) -> Self {
        self.then(|b, x| b.op("Pow", &[x, y.v]))
    }

    /// x^c.
    pub(crate) fn power(self, c: f64) -> Self {
        self.then(|b, x| {
            let c = b.scalar_like(x, c)?;
            b.op("Pow", &[x, c])
        })
    }

    /// One of the `Reduce…` operators over axes, which stay with extent 1.
    pub(crate) fn over(self, reduce: &str, axes: &[i64]) -> Self {
        self.then(|b, x| b.reduce(reduce, x, axes, true))
    }

    /// The product of the extents of its axes.
    pub(crate) fn count(self, axes: &[usize]) -> Self {
        self.then(|b, x| {
            let dtype = b.ty(x)?.dtype;
            b.extent(x, axes, dtype)
        })
    }

    /// Summed down to the shape of a value that was broadcast to this one's.
    pub(crate) fn sum_to(self, operand: Self) -> Self {
        self.then(|b, x| unbroadcast(b, x, operand.v))
    }

    /// In another element type.
    pub(crate) fn cast(self, to: DType) -> Self {
        self.then(|b, x| b.cast(x, to))
    }

    /// A vector over channels, reshaped to broadcast over axis 1 of a value of this rank.
    pub(crate) fn per_channel(self, rank: usize) -> Self {
        self.then(|b, x| per_channel(b, x, rank))
    }

    /// Reduced over all axes but the channels (axis 1).
    pub(crate) fn by_channel(self, reduce: &str) -> Self {
        self.then(|b, x| channel_reduce(b, reduce, x))
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
            let c = b.scalar_like(x, c)?;
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

    /// Its elements where those of another are above 0, else 0.
    pub(crate) fn where_positive(self, other: Self) -> Self {
        self.then(|b, x| {
            let zero = b.scalar_like(x, 0.0)?;
            let positive = b.op("Greater", &[other.v, zero])?;
            b.select(positive, x, zero)
        })
    }

    /// Reshaped to another value's shape.
    pub(crate) fn reshape_like(self, other: Self) -> Self {
        self.then(|b, x| b.reshape_like(x, other.v))
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

// Each operator on two terms, on a term and a number, and on a number and a term.
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
    Div::div: div, |b, x, c| { let c = b.scalar_like(x, c)?; b.div(x, c) }, b.from_number_div(c, x);
}
