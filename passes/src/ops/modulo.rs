//! `Mod`: z = x − y ⊙ n with broadcasting, n = x ⊘ y rounded to zero (`fmod` = 1, the only form for floats) or down.

use super::*;

pub(super) struct Mod;

impl OpRule for Mod {
    fn name(&self) -> &'static str {
        "Mod"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_all(cx)
    }
    /// x̄ = unbroadcast(z̄), ȳ = −unbroadcast(z̄ ⊙ n) with n = (x − z) ⊘ y.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        p.accumulate_broadcast(0, ct)?;
        if p.wants(1) {
            let (x, y, z) = (p.operand(0)?, p.operand(1)?, p.result(0));
            let whole = p.b.sub(x, z)?;
            let n = p.b.div(whole, y)?;
            let product = p.b.mul(ct, n)?;
            let y_ct = p.b.neg(product)?;
            p.accumulate_broadcast(1, y_ct)?;
        }
        Ok(())
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of(
            "Mod",
            Attrs::new().with("fmod", 1),
            vec![
                SampleOperand::Values { dims: vec![2, 2], values: vec![2.5, -3.2, 0.4, 7.1] },
                SampleOperand::Values { dims: vec![2], values: vec![1.0, 1.5] },
            ],
        )]
    }
}
