//! `ReduceMax`, `ReduceMin`.
//!
//! x̄ = [x = y] ⊙ ȳ / n where n counts the elements that attain the extremum: ties share evenly.

use super::listed::{Reduction, reduced, reduction_samples};
use super::*;

pub(super) struct ReduceMax;

impl OpRule for ReduceMax {
    fn name(&self) -> &'static str {
        "ReduceMax"
    }
    fn since(&self) -> i64 {
        18
    }
    fn infer(&self, cx: &Infer) -> Types {
        reduced(cx)
    }
    /// As in the module's text.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        pullback(p)
    }
    fn samples(&self) -> Vec<Sample> {
        extremum_samples("ReduceMax")
    }
}

pub(super) struct ReduceMin;

impl OpRule for ReduceMin {
    fn name(&self) -> &'static str {
        "ReduceMin"
    }
    fn since(&self) -> i64 {
        18
    }
    fn infer(&self, cx: &Infer) -> Types {
        reduced(cx)
    }
    /// As in the module's text.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        pullback(p)
    }
    fn samples(&self) -> Vec<Sample> {
        extremum_samples("ReduceMin")
    }
}

fn pullback(p: &mut Pullback) -> Result<(), GradError> {
    let (x, y, ct) = (p.operand(0)?, p.result(0), p.ct(0)?);
    let dtype = p.ty(0)?.dtype;
    let reduction = Reduction::of(p)?;
    if reduction.is_identity() {
        return p.accumulate(0, ct);
    }
    let (y, ct) = (reduction.restore(p, y)?, reduction.restore(p, ct)?);
    let attained = p.b.op("Equal", &[x, y])?;
    let attained = p.b.cast(attained, dtype)?;
    let ties = reduction.apply(p, "ReduceSum", attained)?;
    let share = p.b.div(ct, ties)?;
    let x_ct = p.b.mul(attained, share)?;
    p.accumulate(0, x_ct)
}

fn extremum_samples(name: &str) -> Vec<Sample> {
    // Distinct by at least 0.1, so that a finite difference does not change which element is the extremum.
    let values = (0..24).map(|i| (i * 7 % 24) as f32 * 0.1 - 1.0).collect();
    let x = || SampleOperand::Values { dims: vec![2, 3, 4], values };
    let all = |mut s: Sample| {
        s.operands[0] = x.clone()();
        s
    };
    reduction_samples(name, 0.0, 1.0).into_iter().map(all).collect()
}
