//! `Tanh`: y = tanh x.

use super::sample::floats;
use super::*;

pub(super) struct Tanh;

impl OpRule for Tanh {
    fn name(&self) -> &'static str {
        "Tanh"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ (1 − y²).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (y, ct) = (p.result(0), p.ct(0)?);
        let square = p.b.mul(y, y)?;
        let slope = p.b.from_number_sub(1.0, square)?;
        let x_ct = p.b.mul(ct, slope)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Tanh", Attrs::new(), vec![floats(&[2, 3])])]
    }
}
