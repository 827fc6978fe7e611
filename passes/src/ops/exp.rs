//! `Exp`: y = eˣ.

use super::sample::floats;
use super::*;

pub(super) struct Exp;

impl OpRule for Exp {
    fn name(&self) -> &'static str {
        "Exp"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ y.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (y, ct) = (p.result(0), p.ct(0)?);
        let x_ct = p.b.mul(ct, y)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Exp", Attrs::new(), vec![floats(&[2, 3])])]
    }
}
