//! `ReduceL1`: y = Σ |x|.

use super::listed::{Reduction, reduced, reduction_samples};
use super::*;

pub(super) struct ReduceL1;

impl OpRule for ReduceL1 {
    fn name(&self) -> &'static str {
        "ReduceL1"
    }
    fn since(&self) -> i64 {
        18
    }
    fn infer(&self, cx: &Infer) -> Types {
        reduced(cx)
    }
    /// x̄ = ȳ ⊙ sign(x).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let reduction = Reduction::of(p)?;

        let ct = reduction.restore(p, ct)?;
        let sign = p.b.op("Sign", &[x])?;
        let x_ct = p.b.mul(sign, ct)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        reduction_samples("ReduceL1", 0.2, 1.5)
    }
}
