//! `ReduceL2`: y = √Σ x².

use super::listed::{Reduction, reduced, reduction_samples};
use super::*;

pub(super) struct ReduceL2;

impl OpRule for ReduceL2 {
    fn name(&self) -> &'static str {
        "ReduceL2"
    }
    fn since(&self) -> i64 {
        18
    }
    fn infer(&self, cx: &Infer) -> Types {
        reduced(cx)
    }
    /// x̄ = x ⊙ (ȳ ⊘ y), 0 where y = 0; the quotient is taken while small.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, y, ct) = (p.operand(0)?, p.result(0), p.ct(0)?);
        let reduction = Reduction::of(p)?;

        let (y, ct) = (reduction.restore(p, y)?, reduction.restore(p, ct)?);
        let is_zero = p.b.compare("Equal", y, 0.0)?;
        let safe = p.b.add(y, is_zero)?;
        let quotient = p.b.div(ct, safe)?;
        let x_ct = p.b.mul(x, quotient)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        reduction_samples("ReduceL2", 0.2, 1.5)
    }
}
