//! `Tan`.

use super::sample::floats_in;
use super::*;

pub(super) struct Tan;

impl OpRule for Tan {
    fn name(&self) -> &'static str {
        "Tan"
    }
    fn since(&self) -> i64 {
        7
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ (1 + y²).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (y, ct) = (p.result(0), p.ct(0)?);
        let square = p.b.mul(y, y)?;
        let slope = p.b.shift(square, 1.0)?;
        let x_ct = p.b.mul(ct, slope)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Tan", Attrs::new(), vec![floats_in(&[2, 3], -1.0, 1.0)])]
    }
}
