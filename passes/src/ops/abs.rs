//! `Abs`: y = |x|.

use super::sample::floats_in;
use super::*;

pub(super) struct Abs;

impl OpRule for Abs {
    fn name(&self) -> &'static str {
        "Abs"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ sign(x), 0 at 0.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let sign = p.b.op("Sign", &[x])?;
        let x_ct = p.b.mul(ct, sign)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Abs", Attrs::new(), vec![floats_in(&[2, 3], 0.2, 1.5)]),
            Sample::of("Abs", Attrs::new(), vec![floats_in(&[4], -2.0, -0.2)]),
        ]
    }
}
