//! `ThresholdedRelu`: y = x for x > α, 0 otherwise.

use super::sample::floats_in;
use super::*;

pub(super) struct ThresholdedRelu;

impl OpRule for ThresholdedRelu {
    fn name(&self) -> &'static str {
        "ThresholdedRelu"
    }
    fn since(&self) -> i64 {
        10
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ [x > α].
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let alpha = p.attrs().float("alpha", 1.0) as f64;
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let active = p.b.compare("Greater", x, alpha)?;
        let x_ct = p.b.mul(ct, active)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("ThresholdedRelu", Attrs::new(), vec![floats_in(&[2, 3], 1.2, 2.0)]),
            Sample::of("ThresholdedRelu", Attrs::new().with("alpha", 0.5f32), vec![floats_in(&[4], -0.2, 0.4)]),
        ]
    }
}
