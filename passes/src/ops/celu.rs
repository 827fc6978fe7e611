//! `Celu`: y = x for x > 0, α(e^(x/α) − 1) otherwise.

use super::sample::floats_in;
use super::*;

pub(super) struct Celu;

impl OpRule for Celu {
    fn name(&self) -> &'static str {
        "Celu"
    }
    fn since(&self) -> i64 {
        12
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ (min(y, 0) / α + 1): e^(x/α) = y/α + 1 where y ≤ 0. Reads the result only.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let alpha = p.attrs().float("alpha", 1.0) as f64;
        let (y, ct) = (p.result(0), p.ct(0)?);
        let zero = p.b.ty(y)?.dtype;
        let zero = p.b.scalar(zero, 0.0);
        let below = p.b.op("Min", &[y, zero])?;
        let below = p.b.scale(below, 1.0 / alpha)?;
        let slope = p.b.shift(below, 1.0)?;
        let x_ct = p.b.mul(ct, slope)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Celu", Attrs::new(), vec![floats_in(&[2, 3], -1.5, 1.5)]),
            Sample::of("Celu", Attrs::new().with("alpha", 2.0f32), vec![floats_in(&[2, 3], -1.5, 1.5)]),
        ]
    }
}
