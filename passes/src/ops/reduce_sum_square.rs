//! `ReduceSumSquare`: y = Σ x².

use super::listed::{Reduction, reduced, reduction_samples};
use super::*;

pub(super) struct ReduceSumSquare;

impl OpRule for ReduceSumSquare {
    fn name(&self) -> &'static str {
        "ReduceSumSquare"
    }
    fn since(&self) -> i64 {
        18
    }
    fn infer(&self, cx: &Infer) -> Types {
        reduced(cx)
    }
    /// x̄ = x ⊙ 2ȳ, doubled while small.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let reduction = Reduction::of(p)?;

        let twice = p.b.scale(ct, 2.0)?;
        let twice = reduction.restore(p, twice)?;
        let x_ct = p.b.mul(x, twice)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        reduction_samples("ReduceSumSquare", -1.5, 1.5)
    }
}
