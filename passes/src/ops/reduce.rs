//! Reductions of all elements along some axes to y. One line of the table is one operator; the comment above it is y.
//!
//! Before a result that dropped its axes meets x, `r.back` restores them. Formulas compute on the small result as long as they can.

use super::listed::{Reduction, reduced};
use super::*;

/// An operator of the table.
pub(super) struct Reduce {
    name: &'static str,
    when_none: WhenNone,
    slope: Slope,
    /// The operand of its samples.
    operand: fn() -> SampleOperand,
}

/// What happens to each element if no axis is reduced.
#[derive(PartialEq, Eq)]
enum WhenNone {
    /// The element stays.
    Stays,
    /// The operator's function (|x|, x², ln x) is applied to the element.
    Applies,
}
use WhenNone::{Applies, Stays};

/// x̄ from x, y and ȳ.
type Slope = for<'f> fn(&Reduction, Term<'f>, Term<'f>, Term<'f>) -> Term<'f>;

pub(super) static REDUCE: &[Reduce] = &[
    // Σ x
    reduce("ReduceSum", Stays, |r, x, _, ct| r.back(ct).spread_like(x), anywhere),
    // Σ x / n
    reduce("ReduceMean", Stays, |r, x, _, ct| r.back(ct / x.count(&r.axes)).spread_like(x), anywhere),
    // Π x
    reduce("ReduceProd", Stays, |r, x, _, ct| product_slope(r, x, r.back(ct)), || floats_in(&DIMS, 0.5, 1.5)),
    // max x
    reduce("ReduceMax", Stays, |r, x, y, ct| extremum_slope(r, x, r.back(y), r.back(ct)), distinct),
    // min x
    reduce("ReduceMin", Stays, |r, x, y, ct| extremum_slope(r, x, r.back(y), r.back(ct)), distinct),
    // Σ |x|
    reduce("ReduceL1", Applies, |r, x, _, ct| times(r.back(ct), x.op("Sign")), positive),
    // √Σ x²
    reduce("ReduceL2", Applies, |r, x, y, ct| norm_slope(x, r.back(y), r.back(ct)), positive),
    // Σ x²
    reduce("ReduceSumSquare", Applies, |r, x, _, ct| x * r.back(ct * 2.0), anywhere),
    // ln Σ x
    reduce("ReduceLogSum", Applies, |r, x, y, ct| r.back(ct / y.op("Exp")).spread_like(x), || floats_in(&DIMS, 0.5, 1.5)),
    // ln Σ eˣ
    reduce("ReduceLogSumExp", Stays, |r, x, y, ct| shares(x, r.back(y), r.back(ct)), anywhere),
];

/// ȳ · Π of the other elements: the product with zeros replaced by 1, divided by the element, where no other element is 0.
fn product_slope<'f>(r: &Reduction, x: Term<'f>, ct: Term<'f>) -> Term<'f> {
    let is_zero = x.is("Equal", 0.0);
    let safe = x + is_zero;
    let product = safe.over("ReduceProd", &r.places());
    let zeros = is_zero.over("ReduceSum", &r.places());
    let numerator = ct * product;
    let alone = (zeros - is_zero).is("Less", 0.5);
    numerator / safe * alone
}

/// [x = y] ⊙ ȳ / n where n counts the elements that attain the extremum: ties share evenly.
fn extremum_slope<'f>(r: &Reduction, x: Term<'f>, y: Term<'f>, ct: Term<'f>) -> Term<'f> {
    let attained = x.equals(y);
    attained * (ct / attained.over("ReduceSum", &r.places()))
}

/// x ⊙ (ȳ ⊘ y), 0 where y = 0.
fn norm_slope<'f>(x: Term<'f>, y: Term<'f>, ct: Term<'f>) -> Term<'f> {
    x * (ct / (y + y.is("Equal", 0.0)))
}

/// exp(x − y) ⊙ ȳ.
fn shares<'f>(x: Term<'f>, y: Term<'f>, ct: Term<'f>) -> Term<'f> {
    (x - y).op("Exp") * ct
}

/// sign ⊙ ȳ.
fn times<'f>(ct: Term<'f>, sign: Term<'f>) -> Term<'f> {
    sign * ct
}

const fn reduce(name: &'static str, when_none: WhenNone, slope: Slope, operand: fn() -> SampleOperand) -> Reduce {
    Reduce { name, when_none, slope, operand }
}

const DIMS: [i64; 3] = [2, 3, 4];

fn anywhere() -> SampleOperand {
    floats_in(&DIMS, -1.5, 1.5)
}

fn positive() -> SampleOperand {
    floats_in(&DIMS, 0.2, 1.5)
}

/// Numbers 0.1 apart: a finite difference does not change which of them is the extremum.
fn distinct() -> SampleOperand {
    values(&DIMS, &std::array::from_fn::<f32, 24, _>(|i| (i * 7 % 24) as f32 * 0.1 - 1.0))
}

impl OpRule for Reduce {
    fn name(&self) -> &'static str {
        self.name
    }
    fn infer(&self, cx: &Infer) -> Types {
        reduced(cx)
    }
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        let r = p.told(Reduction::of)?;
        if r.axes.is_empty() && self.when_none == Stays {
            return p.accumulate(0, ct);
        }
        let (x, y) = (p.operand(0)?, p.result(0));
        p.give(0, |b| formula(b, [x, y, ct], |[x, y, ct]| (self.slope)(&r, x, y, ct)))
    }
    /// Axes as operand and as attribute, kept and dropped, negative ones, and the full reduction.
    fn samples(&self) -> Vec<Sample> {
        let of = |attrs: Attrs, axes: Option<&[i64]>| {
            sample(attrs, [(self.operand)()].into_iter().chain(axes.map(ints)).collect()).of(self)
        };
        let dropped = || Attrs::new().with("keepdims", 0);
        let mut samples = vec![
            of(Attrs::new(), Some(&[1])),
            of(dropped(), Some(&[-1, 1])),
            of(dropped(), Some(&[0])),
            of(dropped(), None),
            of(Attrs::new().with("noop_with_empty_axes", 1), None),
            of(dropped().with("axes", vec![0, -1]), None).at(11).shape_only(),
        ];
        if self.name == "ReduceProd" {
            let zeros = values(&[3, 3], &[0.0, 0.7, -1.2, 0.0, 0.0, 1.1, 0.8, -0.6, 1.4]);
            samples.push(plain(vec![zeros, ints(&[1])]).of(self));
        }
        samples
    }
}
