//! `HardSwish`: y = x · max(0, min(1, x/6 + ½)).

use super::sample::floats_in;
use super::*;

pub(super) struct HardSwish;

impl OpRule for HardSwish {
    fn name(&self) -> &'static str {
        "HardSwish"
    }
    fn since(&self) -> i64 {
        14
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ (0 for x ≤ −3, x/3 + ½ between, 1 for x ≥ 3).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let dtype = p.ty(0)?.dtype;
        let (low, high) = (p.b.scalar(dtype, -3.0), p.b.scalar(dtype, 3.0));
        let inside = p.b.between(x, Some(low), Some(high))?;
        let line = p.b.scale(x, 1.0 / 3.0)?;
        let line = p.b.shift(line, 0.5)?;
        let line = p.b.mul(inside, line)?;
        let above = p.b.compare("GreaterOrEqual", x, 3.0)?;
        let slope = p.b.add(line, above)?;
        let x_ct = p.b.mul(ct, slope)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("HardSwish", Attrs::new(), vec![floats_in(&[2, 3], -2.5, 2.5)]),
            Sample::of("HardSwish", Attrs::new(), vec![floats_in(&[4], 3.5, 5.0)]),
            Sample::of("HardSwish", Attrs::new(), vec![floats_in(&[4], -5.0, -3.5)]),
        ]
    }
}
