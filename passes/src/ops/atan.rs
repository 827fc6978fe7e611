//! `Atan`.

use super::sample::floats;
use super::*;

pub(super) struct Atan;

impl OpRule for Atan {
    fn name(&self) -> &'static str {
        "Atan"
    }
    fn since(&self) -> i64 {
        7
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊘ (1 + x²).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let square = p.b.mul(x, x)?;
        let denominator = p.b.shift(square, 1.0)?;
        let x_ct = p.b.div(ct, denominator)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Atan", Attrs::new(), vec![floats(&[2, 3])])]
    }
}
