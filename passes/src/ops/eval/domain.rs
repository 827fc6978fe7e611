//! The domains of array elements.

use super::number;
use crate::ir::{DType, Dim};
use std::cmp::Ordering;
use std::fmt::Debug;
use std::sync::Arc;

/// One element of an array.
#[derive(Clone, Debug, PartialEq)]
pub enum Element<D> {
    /// An integer or a boolean; one of `u64` by its bits.
    Int(i64),
    /// A float, never NaN.
    Float(f64),
    /// Something that the domain knows, but no number.
    Open(D),
}

impl<D> Element<D> {
    /// The integer it is.
    pub fn int(&self) -> Option<i64> {
        match self {
            Element::Int(v) => Some(*v),
            _ => None,
        }
    }
}

/// A domain of elements: numbers, which have the same arithmetic in every domain, and the domain's own elements.
pub trait Domain: Clone + PartialEq + Debug {
    /// An extent of a tensor.
    fn extent(d: &Dim) -> Option<Element<Self>> {
        d.known().map(Element::Int)
    }

    /// The extent that an element of a type is.
    fn as_extent(e: &Element<Self>, t: DType) -> Option<Dim> {
        let _ = t;
        e.int().map(Dim::from)
    }

    /// May this float be an element?
    fn admits(v: f64) -> bool {
        !v.is_nan()
    }

    /// An unknown float of at most this absolute value.
    fn within(t: DType, bound: f64) -> Option<Element<Self>> {
        let _ = (t, bound);
        None
    }

    /// Converted to another type.
    fn cast(&self, from: DType, to: DType) -> Option<Element<Self>>;

    /// An operator on the element.
    fn unary(&self, name: &str, t: DType) -> Option<Element<Self>> {
        let _ = (name, t);
        None
    }

    /// An operator on two elements that are not both numbers.
    fn binary(name: &str, t: DType, x: &Element<Self>, y: &Element<Self>) -> Option<Element<Self>>;
}

/// Numbers only.
#[derive(Clone, Debug, PartialEq)]
pub enum Exact {}

impl Domain for Exact {
    fn cast(&self, _: DType, _: DType) -> Option<Element<Exact>> {
        match *self {}
    }

    fn binary(_: &str, _: DType, _: &Element<Exact>, _: &Element<Exact>) -> Option<Element<Exact>> {
        None
    }
}

/// Numbers and polynomials over extents, which are assumed not to overflow.
#[derive(Clone, Debug, PartialEq)]
pub struct Poly(Arc<Dim>);

impl Domain for Poly {
    fn extent(d: &Dim) -> Option<Element<Poly>> {
        Some(d.known().map_or_else(|| Element::Open(Poly(Arc::new(d.clone()))), Element::Int))
    }

    fn as_extent(e: &Element<Poly>, _: DType) -> Option<Dim> {
        match e {
            Element::Int(v) => Some(Dim::from(*v)),
            Element::Open(Poly(d)) => Some((**d).clone()),
            Element::Float(_) => None,
        }
    }

    fn cast(&self, _: DType, to: DType) -> Option<Element<Poly>> {
        matches!(to, DType::I64 | DType::I32).then(|| Element::Open(self.clone()))
    }

    fn unary(&self, name: &str, _: DType) -> Option<Element<Poly>> {
        if name == "Neg" { Poly::extent(&(&Dim::from(0) - &self.0)) } else { None }
    }

    fn binary(name: &str, t: DType, x: &Element<Poly>, y: &Element<Poly>) -> Option<Element<Poly>> {
        symbolic(name, t, &Poly::as_extent(x, t)?, &Poly::as_extent(y, t)?)
    }
}

/// What a proof may use: numbers on which all engines agree, extents as 64-bit integers, and unknown finite floats.
#[derive(Clone, Debug, PartialEq)]
pub enum Bounded {
    /// An integer computed from the inputs' extents.
    Extent(Arc<Dim>),
    /// A finite float of at most this absolute value.
    Within(f64),
}

impl Domain for Bounded {
    fn extent(d: &Dim) -> Option<Element<Bounded>> {
        Some(d.known().map_or_else(|| Element::Open(Bounded::Extent(Arc::new(d.clone()))), Element::Int))
    }

    fn as_extent(e: &Element<Bounded>, t: DType) -> Option<Dim> {
        match e {
            Element::Int(v) if t == DType::I64 => Some(Dim::from(*v)),
            Element::Open(Bounded::Extent(d)) => Some((**d).clone()),
            _ => None,
        }
    }

    fn admits(v: f64) -> bool {
        v.is_finite()
    }

    /// Bounds are small enough that no product overflows.
    fn within(t: DType, bound: f64) -> Option<Element<Bounded>> {
        let largest = if t == DType::F16 { 1e4 } else { 1e15 };
        (bound <= largest).then_some(Element::Open(Bounded::Within(bound)))
    }

    fn cast(&self, _: DType, to: DType) -> Option<Element<Bounded>> {
        match self {
            Bounded::Extent(_) => (to == DType::I64).then(|| Element::Open(self.clone())),
            Bounded::Within(bound) if to.is_float() => Bounded::within(to, *bound),
            Bounded::Within(_) => None,
        }
    }

    fn unary(&self, name: &str, t: DType) -> Option<Element<Bounded>> {
        match (self, name) {
            (Bounded::Within(bound), "Neg" | "Abs") => Bounded::within(t, *bound),
            _ => None,
        }
    }

    fn binary(name: &str, t: DType, x: &Element<Bounded>, y: &Element<Bounded>) -> Option<Element<Bounded>> {
        if let Some((x, y)) = Bounded::as_extent(x, t).zip(Bounded::as_extent(y, t)) {
            return symbolic(name, t, &x, &y);
        }
        let largest = |e: &Element<Bounded>| match e {
            Element::Float(v) => Some(v.abs()),
            Element::Open(Bounded::Within(bound)) => Some(*bound),
            _ => None,
        };
        // The factor covers rounding.
        match (name, largest(x)?, largest(y)?) {
            ("Mul", ..) if *x == Element::Float(0.0) || *y == Element::Float(0.0) => Some(Element::Float(0.0)),
            ("Mul", p, q) => Bounded::within(t, p * q * 1.001),
            ("Add" | "Sub", p, q) => Bounded::within(t, (p + q) * 1.001),
            _ => None,
        }
    }
}

/// An operator on two extents, if its result holds for all values of the symbols.
fn symbolic<D: Domain>(name: &str, t: DType, x: &Dim, y: &Dim) -> Option<Element<D>> {
    let fits = |d: Dim| {
        let small = d.terms().all(|(_, c)| c.unsigned_abs() < 1 << 62 && number::wrap(t, c) == Some(c));
        small.then_some(d)
    };
    let told = |b: bool| Some(Element::Int(i64::from(b)));
    let d = x - y;
    let (least, most) = d.bounds();
    let order = || match (least, most) {
        (0, 0) => Some(Ordering::Equal),
        (1.., _) => Some(Ordering::Greater),
        (_, ..=-1) => Some(Ordering::Less),
        _ => None,
    };
    let at_most = if most <= 0 { Some(true) } else { (least > 0).then_some(false) };
    let at_least = if least >= 0 { Some(true) } else { (most < 0).then_some(false) };
    match name {
        "Add" => D::extent(&fits(x + y)?),
        "Sub" => D::extent(&fits(d)?),
        "Mul" => D::extent(&fits(x * y)?),
        "Div" => D::extent(&fits(x.div_exact(y)?)?),
        "Mod" => x.div_exact(y).and_then(fits).map(|_| Element::Int(0)),
        "Equal" => told(order()?.is_eq()),
        "Less" => told(!at_least?),
        "LessOrEqual" => told(at_most?),
        "Greater" => told(!at_most?),
        "GreaterOrEqual" => told(at_least?),
        "Min" if at_most == Some(true) => D::extent(x),
        "Min" if at_least == Some(true) => D::extent(y),
        "Max" if at_least == Some(true) => D::extent(x),
        "Max" if at_most == Some(true) => D::extent(y),
        _ => None,
    }
}
