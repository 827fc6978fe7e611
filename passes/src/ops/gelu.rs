//! `Gelu`: y = x Φ(x), Φ the normal distribution function, exactly (by `Erf`) or by its tanh approximation.

use super::sample::floats;
use super::*;
use crate::ops::build::{Builder, Built};

pub(super) struct Gelu;

impl OpRule for Gelu {
    fn name(&self) -> &'static str {
        "Gelu"
    }
    fn since(&self) -> i64 {
        20
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ slope(x).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let approximate = p.attrs().str("approximate", "none") == "tanh";
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let slope = if approximate { tanh_slope(p.b, x)? } else { erf_slope(p.b, x)? };
        let x_ct = p.b.mul(ct, slope)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Gelu", Attrs::new(), vec![floats(&[2, 3])]).at(20),
            Sample::of("Gelu", Attrs::new().with("approximate", "tanh"), vec![floats(&[2, 3])]).at(20),
        ]
    }
}

/// Φ(x) + x φ(x) = ½ erf(u) + ½ + x exp(−u² − ln √2π) with u = x/√2.
fn erf_slope(b: &mut Builder, x: ValueId) -> Built {
    let u = b.scale(x, std::f64::consts::FRAC_1_SQRT_2)?;
    let erf = b.op("Erf", &[u])?;
    let half = b.scale(erf, 0.5)?;
    let square = b.mul(u, u)?;
    let exponent = b.from_number_sub(-0.5 * std::f64::consts::TAU.ln(), square)?;
    let density = b.op("Exp", &[exponent])?;
    let weighted = b.mul(x, density)?;
    let sum = b.add(half, weighted)?;
    b.shift(sum, 0.5)
}

/// For y = ½x (1 + t), t = tanh(k(x + cx³)): the slope is ½(1 + t) + ½x (1 − t²) k(1 + 3cx²).
fn tanh_slope(b: &mut Builder, x: ValueId) -> Built {
    let (k, c) = (std::f64::consts::FRAC_2_PI.sqrt(), 0.044715);
    let square = b.mul(x, x)?;
    let inner = b.scale(square, k * c)?;
    let inner = b.shift(inner, k)?;
    let inner = b.mul(x, inner)?;
    let t = b.op("Tanh", &[inner])?;
    // ½(1 + t) · (1 + (1 − t) x k(1 + 3cx²))
    let inner_slope = b.scale(square, 3.0 * k * c)?;
    let inner_slope = b.shift(inner_slope, k)?;
    let inner_slope = b.mul(x, inner_slope)?;
    let rest = b.from_number_sub(1.0, t)?;
    let right = b.mul(rest, inner_slope)?;
    let right = b.shift(right, 1.0)?;
    let left = b.scale(t, 0.5)?;
    let left = b.shift(left, 0.5)?;
    b.mul(left, right)
}
