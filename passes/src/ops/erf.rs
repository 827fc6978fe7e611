//! `Erf`: y = 2/√π · ∫₀ˣ e^(−t²) dt.

use super::sample::floats;
use super::*;

pub(super) struct Erf;

impl OpRule for Erf {
    fn name(&self) -> &'static str {
        "Erf"
    }
    fn since(&self) -> i64 {
        9
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ exp(ln(2/√π) − x²): the factor rides on the subtraction that the minus sign needs anyway.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let square = p.b.mul(x, x)?;
        let exponent = p.b.from_number_sub(std::f64::consts::FRAC_2_SQRT_PI.ln(), square)?;
        let slope = p.b.op("Exp", &[exponent])?;
        let x_ct = p.b.mul(ct, slope)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Erf", Attrs::new(), vec![floats(&[2, 3])])]
    }
}
