//! `Softplus`: y = ln(1 + eˣ).

use super::sample::floats;
use super::*;

pub(super) struct Softplus;

impl OpRule for Softplus {
    fn name(&self) -> &'static str {
        "Softplus"
    }
    fn since(&self) -> i64 {
        1
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ σ(x).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let slope = p.b.op("Sigmoid", &[x])?;
        let x_ct = p.b.mul(ct, slope)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Softplus", Attrs::new(), vec![floats(&[2, 3])])]
    }
}
