//! `Sin`, `Cos`.

use super::sample::floats;
use super::*;

pub(super) struct Sin;

impl OpRule for Sin {
    fn name(&self) -> &'static str {
        "Sin"
    }
    fn since(&self) -> i64 {
        7
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ cos x.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let slope = p.b.op("Cos", &[x])?;
        let x_ct = p.b.mul(ct, slope)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Sin", Attrs::new(), vec![floats(&[2, 3])])]
    }
}

pub(super) struct Cos;

impl OpRule for Cos {
    fn name(&self) -> &'static str {
        "Cos"
    }
    fn since(&self) -> i64 {
        7
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = −ȳ ⊙ sin x.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let sine = p.b.op("Sin", &[x])?;
        let product = p.b.mul(ct, sine)?;
        let x_ct = p.b.neg(product)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Cos", Attrs::new(), vec![floats(&[2, 3])])]
    }
}
