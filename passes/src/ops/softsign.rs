//! `Softsign`: y = x / (1 + |x|).

use super::sample::floats_in;
use super::*;

pub(super) struct Softsign;

impl OpRule for Softsign {
    fn name(&self) -> &'static str {
        "Softsign"
    }
    fn since(&self) -> i64 {
        1
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ (1 − |y|)². Reads the result only.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (y, ct) = (p.result(0), p.ct(0)?);
        let size = p.b.op("Abs", &[y])?;
        let rest = p.b.from_number_sub(1.0, size)?;
        let slope = p.b.mul(rest, rest)?;
        let x_ct = p.b.mul(ct, slope)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Softsign", Attrs::new(), vec![floats_in(&[2, 3], 0.2, 1.5)]),
            Sample::of("Softsign", Attrs::new(), vec![floats_in(&[4], -2.0, -0.2)]),
        ]
    }
}
