//! `HardSigmoid`: y = max(0, min(1, αx + β)).

use super::sample::floats_in;
use super::*;

pub(super) struct HardSigmoid;

impl OpRule for HardSigmoid {
    fn name(&self) -> &'static str {
        "HardSigmoid"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = α ȳ ⊙ [0 < y < 1]. Reads the result only.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let alpha = p.attrs().float("alpha", 0.2) as f64;
        let (y, ct) = (p.result(0), p.ct(0)?);
        let dtype = p.b.ty(y)?.dtype;
        let (low, high) = (p.b.scalar(dtype, 0.0), p.b.scalar(dtype, 1.0));
        let inside = p.b.between(y, Some(low), Some(high))?;
        let slope = p.b.scale(inside, alpha)?;
        let x_ct = p.b.mul(ct, slope)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("HardSigmoid", Attrs::new(), vec![floats_in(&[2, 3], -1.5, 1.5)]),
            Sample::of(
                "HardSigmoid",
                Attrs::new().with("alpha", 0.5f32).with("beta", 0.2f32),
                vec![floats_in(&[4], 2.0, 4.0)],
            ),
        ]
    }
}
