//! `Sqrt`: y = √x.

use super::sample::floats_in;
use super::*;

pub(super) struct Sqrt;

impl OpRule for Sqrt {
    fn name(&self) -> &'static str {
        "Sqrt"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ½ ȳ ⊘ y.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (y, ct) = (p.result(0), p.ct(0)?);
        let quotient = p.b.div(ct, y)?;
        let x_ct = p.b.scale(quotient, 0.5)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Sqrt", Attrs::new(), vec![floats_in(&[2, 3], 0.5, 2.0)])]
    }
}
