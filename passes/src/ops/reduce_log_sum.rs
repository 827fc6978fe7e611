//! `ReduceLogSum`: y = ln Σ x, and `ReduceLogSumExp`: y = ln Σ eˣ.

use super::listed::{Reduction, reduced, reduction_samples};
use super::*;

pub(super) struct ReduceLogSum;

impl OpRule for ReduceLogSum {
    fn name(&self) -> &'static str {
        "ReduceLogSum"
    }
    fn since(&self) -> i64 {
        18
    }
    fn infer(&self, cx: &Infer) -> Types {
        reduced(cx)
    }
    /// x̄ = ȳ ⊘ eʸ, taken while small, then spread over the reduced axes.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, y, ct) = (p.operand(0)?, p.result(0), p.ct(0)?);
        let reduction = Reduction::of(p)?;

        let sum = p.b.op("Exp", &[y])?;
        let share = p.b.div(ct, sum)?;
        let share = reduction.restore(p, share)?;
        let x_ct = p.b.expand_like(share, x)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        reduction_samples("ReduceLogSum", 0.5, 1.5)
    }
}

pub(super) struct ReduceLogSumExp;

impl OpRule for ReduceLogSumExp {
    fn name(&self) -> &'static str {
        "ReduceLogSumExp"
    }
    fn since(&self) -> i64 {
        18
    }
    fn infer(&self, cx: &Infer) -> Types {
        reduced(cx)
    }
    /// x̄ = exp(x − y) ⊙ ȳ.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, y, ct) = (p.operand(0)?, p.result(0), p.ct(0)?);
        let reduction = Reduction::of(p)?;
        if reduction.is_identity() {
            return p.accumulate(0, ct);
        }

        let (y, ct) = (reduction.restore(p, y)?, reduction.restore(p, ct)?);
        let exponent = p.b.sub(x, y)?;
        let share = p.b.op("Exp", &[exponent])?;
        let x_ct = p.b.mul(share, ct)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        reduction_samples("ReduceLogSumExp", -1.5, 1.5)
    }
}
