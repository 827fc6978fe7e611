//! `Relu`: y = max(x, 0).

use super::sample::floats_in;
use super::*;

pub(super) struct Relu;

impl OpRule for Relu {
    fn name(&self) -> &'static str {
        "Relu"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ [y > 0]: 0 at 0. Reads the result only.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (y, ct) = (p.result(0), p.ct(0)?);
        let active = p.b.compare("Greater", y, 0.0)?;
        let x_ct = p.b.mul(ct, active)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Relu", Attrs::new(), vec![floats_in(&[2, 3], 0.2, 1.5)]),
            Sample::of("Relu", Attrs::new(), vec![floats_in(&[4], -2.0, -0.2)]),
        ]
    }
}
