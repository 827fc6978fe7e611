//! Element-wise functions of one operand, y = f(x). One line of the table is one operator.
//!
//! Formulas use y rather than x where they can, so that x need not stay alive for the backward pass. At a kink the slope is that
//! of one side; where the operand is cut off it is 0.

use super::formula::Term;
use super::*;
use std::f64::consts::FRAC_2_SQRT_PI;

/// An operator of the table.
pub(super) struct Unary {
    name: &'static str,
    /// Float attributes.
    attributes: &'static [&'static str],
    slope: Slope,
    /// Is the slope infinite somewhere?
    pole: bool,
    samples: &'static [Domain],
}

/// x̄ from x, y, ȳ and the attributes' values.
type Slope = for<'f> fn(Term<'f>, Term<'f>, Term<'f>, &[f64]) -> Term<'f>;

/// Values of the first attributes (none: all are left out), and a range for x away from kinks and poles.
type Domain = (&'static [f32], f32, f32);

const ANYWHERE: &[Domain] = &[(&[], -1.5, 1.5)];
const POSITIVE: &[Domain] = &[(&[], 0.5, 2.0)];
const INSIDE: &[Domain] = &[(&[], -0.8, 0.8)];
const BOTH_SIDES: &[Domain] = &[(&[], 0.2, 1.5), (&[], -2.0, -0.2)];
const LEAKY: &[Domain] = &[(&[], 0.2, 1.5), (&[0.2], -2.0, -0.2), (&[1.5], -2.0, -0.2), (&[-0.5], -2.0, -0.2)];
const EXPONENTIAL: &[Domain] = &[(&[], 0.2, 1.5), (&[], -2.0, -0.2), (&[0.5], -2.0, -0.2), (&[0.5], 0.2, 2.0)];
const HARD: &[Domain] = &[(&[], -1.5, 1.5), (&[0.5, 0.2], 2.0, 4.0)];
const HARD_SWISH: &[Domain] = &[(&[], -2.5, 2.5), (&[], 3.5, 5.0), (&[], -5.0, -3.5)];

const ALPHA: &[&str] = &["alpha"];
const SELU: &[&str] = &["gamma", "alpha"];
const HARD_SIGMOID: &[&str] = &["alpha", "beta"];

/// Name; attributes; x̄ from x, y, ȳ and the attributes' values; samples. The comment above each line is y.
pub(super) static UNARY: &[Unary] = &[
    // |x|
    unary("Abs", &[], |x, _, ct, _| ct * x.op("Sign"), BOTH_SIDES),
    // −x
    unary("Neg", &[], |_, _, ct, _| -ct, ANYWHERE),
    // 1 / x
    steep("Reciprocal", &[], |_, y, ct, _| -(ct * y * y), POSITIVE),
    // √x
    steep("Sqrt", &[], |_, y, ct, _| ct / y * 0.5, POSITIVE),
    // eˣ
    unary("Exp", &[], |_, y, ct, _| ct * y, ANYWHERE),
    // ln x
    steep("Log", &[], |x, _, ct, _| ct / x, POSITIVE),
    // 2/√π · ∫₀ˣ e^(−t²) dt. The factor is part of the subtraction, which the minus sign needs anyway.
    unary("Erf", &[], |x, _, ct, _| ct * (FRAC_2_SQRT_PI.ln() - x * x).op("Exp"), ANYWHERE),
    // sin x
    unary("Sin", &[], |x, _, ct, _| ct * x.op("Cos"), ANYWHERE),
    // cos x
    unary("Cos", &[], |x, _, ct, _| -(ct * x.op("Sin")), ANYWHERE),
    // tan x
    unary("Tan", &[], |_, y, ct, _| ct * (y * y + 1.0), INSIDE),
    // arcsin x
    steep("Asin", &[], |x, _, ct, _| ct / (1.0 - x * x).sqrt(), INSIDE),
    // arccos x
    steep("Acos", &[], |x, _, ct, _| -(ct / (1.0 - x * x).sqrt()), INSIDE),
    // arctan x
    unary("Atan", &[], |x, _, ct, _| ct / (x * x + 1.0), ANYWHERE),
    // ½(eˣ − e⁻ˣ). Sinh and Cosh are each other's slope, written out because CUDA has a kernel for neither.
    unary("Sinh", &[], |x, _, ct, _| ct * ((x.op("Exp") + (-x).op("Exp")) * 0.5), ANYWHERE),
    // ½(eˣ + e⁻ˣ)
    unary("Cosh", &[], |x, _, ct, _| ct * ((x.op("Exp") - (-x).op("Exp")) * 0.5), ANYWHERE),
    // tanh x
    unary("Tanh", &[], |_, y, ct, _| ct * (1.0 - y * y), ANYWHERE),
    // arsinh x
    unary("Asinh", &[], |x, _, ct, _| ct / (x * x + 1.0).sqrt(), ANYWHERE),
    // arcosh x
    steep("Acosh", &[], |x, _, ct, _| ct / (x * x - 1.0).sqrt(), &[(&[], 1.5, 3.0)]),
    // artanh x
    steep("Atanh", &[], |x, _, ct, _| ct / (1.0 - x * x), INSIDE),
    // 1 / (1 + e⁻ˣ)
    unary("Sigmoid", &[], |_, y, ct, _| ct * (y * (1.0 - y)), ANYWHERE),
    // ln(1 + eˣ)
    unary("Softplus", &[], |x, _, ct, _| ct * x.op("Sigmoid"), ANYWHERE),
    // x / (1 + |x|)
    unary("Softsign", &[], |_, y, ct, _| ct * (1.0 - y.op("Abs")).squared(), BOTH_SIDES),
    // x · tanh(ln(1 + eˣ))
    unary("Mish", &[], |x, _, ct, _| ct * mish_slope(x, x.op("Softplus").op("Tanh")), ANYWHERE),
    // max(x, 0)
    unary("Relu", &[], |_, y, ct, _| ct.kept_where(y, "Greater", 0.0), BOTH_SIDES),
    // x for x > 0, else αx. For α ≥ 0, y has the sign of x.
    unary("LeakyRelu", &["alpha"], |x, y, ct, a| ct * leaky(if a[0] >= 0.0 { y } else { x }, a[0]), LEAKY),
    // x for x > α, else 0
    unary(
        "ThresholdedRelu",
        ALPHA,
        |x, _, ct, a| ct.kept_where(x, "Greater", a[0]),
        &[(&[], 1.2, 2.0), (&[0.5], -0.2, 0.4)],
    ),
    // x for x > 0, else α(eˣ − 1)
    unary("Elu", ALPHA, |_, y, ct, a| ct * exponential(y, 1.0, a[0]), EXPONENTIAL),
    // γx for x > 0, else γα(eˣ − 1)
    unary("Selu", SELU, |_, y, ct, a| ct * exponential(y, a[0], a[0] * a[1]), BOTH_SIDES),
    // x for x > 0, else α(e^(x/α) − 1)
    unary("Celu", ALPHA, |_, y, ct, a| ct * (y.min(0.0) * (1.0 / a[0]) + 1.0), &[(&[], -1.5, 1.5), (&[2.0], -1.5, 1.5)]),
    // max(0, min(1, αx + β))
    unary("HardSigmoid", HARD_SIGMOID, |_, y, ct, a| ct * (y.is_between(0.0, 1.0) * a[0]), HARD),
    // x · max(0, min(1, x/6 + ½))
    unary("HardSwish", &[], |x, _, ct, _| ct * hard_swish_slope(x), HARD_SWISH),
];

/// t + x (1 − t²) σ(x), with t = tanh(ln(1 + eˣ)).
fn mish_slope<'f>(x: Term<'f>, t: Term<'f>) -> Term<'f> {
    t + (1.0 - t * t) * x.op("Sigmoid") * x
}

/// 1 for positive numbers, else α.
fn leaky(sign: Term<'_>, alpha: f64) -> Term<'_> {
    sign.is("Greater", 0.0).choose(1.0, alpha)
}

/// 0 for x ≤ −3, x/3 + ½ between, 1 for x ≥ 3.
fn hard_swish_slope(x: Term<'_>) -> Term<'_> {
    x.is_between(-3.0, 3.0) * (x * (1.0 / 3.0) + 0.5) + x.is("GreaterOrEqual", 3.0)
}

/// The slope of γx for x > 0, and of γα(eˣ − 1) otherwise, which is γαeˣ = y + γα. `above` is γ, `below` is γα.
fn exponential(y: Term<'_>, above: f64, below: f64) -> Term<'_> {
    let negative = y.min(0.0);
    if above == below { negative + below } else { negative + y.is("Greater", 0.0).choose(above, below) }
}

const fn unary(name: &'static str, attributes: &'static [&'static str], slope: Slope, samples: &'static [Domain]) -> Unary {
    Unary { name, attributes, slope, pole: false, samples }
}

/// One whose slope is infinite somewhere.
const fn steep(name: &'static str, attributes: &'static [&'static str], slope: Slope, samples: &'static [Domain]) -> Unary {
    Unary { name, attributes, slope, pole: true, samples }
}

impl Unary {
    fn operand_ct(&self, b: &mut Builder, op: &Op, values: [ValueId; 3]) -> Built {
        let attributes: Vec<f64> = self.attributes.iter().map(|name| op.float(name) as f64).collect();
        formula(b, values, |[x, y, ct]| (self.slope)(x, y, ct, &attributes))
    }
}

/// x̄ of one of these functions from x, y and ȳ.
pub(super) fn operand_ct(b: &mut Builder, op: &Op, values: [ValueId; 3]) -> Built {
    let Some(rule) = UNARY.iter().find(|r| op.is(r.name)) else {
        return Err(b.error(&op.name, TypeError("it is no function of one operand".into())));
    };
    rule.operand_ct(b, op, values)
}

impl OpRule for Unary {
    fn name(&self) -> &'static str {
        self.name
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (op, values) = (p.op(), [p.operand(0)?, p.result(0), p.ct(0)?]);
        p.give(0, |b| self.operand_ct(b, &op, values))
    }
    fn has_pole(&self, _: &Graph, _: NodeId, _: usize) -> bool {
        self.pole
    }
    fn samples(&self) -> Vec<Sample> {
        let sample = |(given, low, high): &Domain| {
            let named = self.attributes.iter().zip(*given);
            let attrs = named.fold(Attrs::new(), |attrs, (name, value)| attrs.with(name, *value));
            sample(attrs, vec![floats_in(&[2, 3], *low, *high)]).of(self)
        };
        self.samples.iter().map(sample).collect()
    }
}
