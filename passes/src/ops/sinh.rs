//! `Sinh`, `Cosh`. Each other's slope; ½(eˣ ± e^(−x)) is written out, as neither has a CUDA kernel.

use super::sample::floats;
use super::*;

pub(super) struct Sinh;

impl OpRule for Sinh {
    fn name(&self) -> &'static str {
        "Sinh"
    }
    fn since(&self) -> i64 {
        9
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ cosh x.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        slope(p, "Add")
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Sinh", Attrs::new(), vec![floats(&[2, 3])])]
    }
}

pub(super) struct Cosh;

impl OpRule for Cosh {
    fn name(&self) -> &'static str {
        "Cosh"
    }
    fn since(&self) -> i64 {
        9
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ sinh x.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        slope(p, "Sub")
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Cosh", Attrs::new(), vec![floats(&[2, 3])])]
    }
}

fn slope(p: &mut Pullback, combine: &str) -> Result<(), GradError> {
    let (x, ct) = (p.operand(0)?, p.ct(0)?);
    let up = p.b.op("Exp", &[x])?;
    let negated = p.b.neg(x)?;
    let down = p.b.op("Exp", &[negated])?;
    let twice = p.b.op(combine, &[up, down])?;
    let slope = p.b.scale(twice, 0.5)?;
    let x_ct = p.b.mul(ct, slope)?;
    p.accumulate(0, x_ct)
}
