//! `Elu`, `Selu`: y = γx for x > 0, γα(eˣ − 1) otherwise (γ = 1 for `Elu`).
//!
//! Where x ≤ 0, γαeˣ = y + γα, so both read the result only: slope = min(y, 0) + γα, and where y > 0 what is missing to γ.

use super::sample::floats_in;
use super::*;

pub(super) struct Elu;

impl OpRule for Elu {
    fn name(&self) -> &'static str {
        "Elu"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ (1 where y > 0, else y + α).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let alpha = p.attrs().float("alpha", 1.0) as f64;
        pullback(p, 1.0, alpha)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Elu", Attrs::new(), vec![floats_in(&[2, 3], 0.2, 1.5)]),
            Sample::of("Elu", Attrs::new(), vec![floats_in(&[4], -2.0, -0.2)]),
            Sample::of("Elu", Attrs::new().with("alpha", 0.5f32), vec![floats_in(&[4], -2.0, -0.2)]),
            Sample::of("Elu", Attrs::new().with("alpha", 0.5f32), vec![floats_in(&[4], 0.2, 2.0)]),
        ]
    }
}

pub(super) struct Selu;

impl OpRule for Selu {
    fn name(&self) -> &'static str {
        "Selu"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ (γ where y > 0, else y + γα).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (attrs, defaults) = (p.attrs(), (1.050_701, 1.673_263_2));
        let (gamma, alpha) = (attrs.float("gamma", defaults.0) as f64, attrs.float("alpha", defaults.1) as f64);
        pullback(p, gamma, gamma * alpha)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Selu", Attrs::new(), vec![floats_in(&[2, 3], 0.2, 1.5)]),
            Sample::of("Selu", Attrs::new(), vec![floats_in(&[4], -2.0, -0.2)]),
        ]
    }
}

/// `positive`: the slope for positive results; `negative`: the slope just below 0.
fn pullback(p: &mut Pullback, positive: f64, negative: f64) -> Result<(), GradError> {
    let (y, ct) = (p.result(0), p.ct(0)?);
    let zero = p.b.ty(y)?.dtype;
    let zero = p.b.scalar(zero, 0.0);
    let below = p.b.op("Min", &[y, zero])?;
    let slope = if positive == negative {
        p.b.shift(below, negative)?
    } else {
        let above = p.b.compare("Greater", y, 0.0)?;
        let flat = p.b.two_valued(above, positive, negative)?;
        p.b.add(below, flat)?
    };
    let x_ct = p.b.mul(ct, slope)?;
    p.accumulate(0, x_ct)
}
