//! `ReduceSum`, `ReduceMean`: y = Σ x, or its share per element.

use super::listed::{Reduction, reduced, reduction_samples};
use super::*;

pub(super) struct ReduceSum;

impl OpRule for ReduceSum {
    fn name(&self) -> &'static str {
        "ReduceSum"
    }
    fn since(&self) -> i64 {
        13
    }
    fn infer(&self, cx: &Infer) -> Types {
        reduced(cx)
    }
    /// x̄ = ȳ, spread over the reduced axes.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let reduction = Reduction::of(p)?;
        if reduction.is_identity() {
            return p.accumulate(0, ct);
        }

        let ct = reduction.restore(p, ct)?;
        let x_ct = p.b.expand_like(ct, x)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        reduction_samples("ReduceSum", -1.5, 1.5)
    }
}

pub(super) struct ReduceMean;

impl OpRule for ReduceMean {
    fn name(&self) -> &'static str {
        "ReduceMean"
    }
    fn since(&self) -> i64 {
        18
    }
    fn infer(&self, cx: &Infer) -> Types {
        reduced(cx)
    }
    /// x̄ = ȳ / n, divided while small, then spread over the reduced axes.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let reduction = Reduction::of(p)?;
        if reduction.is_identity() {
            return p.accumulate(0, ct);
        }

        let dtype = p.ty(0)?.dtype;
        let count = p.b.extent(x, &reduction.axes, dtype)?;
        let share = p.b.div(ct, count)?;
        let share = reduction.restore(p, share)?;
        let x_ct = p.b.expand_like(share, x)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        reduction_samples("ReduceMean", -1.5, 1.5)
    }
}
