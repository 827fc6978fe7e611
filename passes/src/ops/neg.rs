//! `Neg`: y = −x.

use super::sample::floats;
use super::*;

pub(super) struct Neg;

impl OpRule for Neg {
    fn name(&self) -> &'static str {
        "Neg"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = −ȳ.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        let x_ct = p.b.neg(ct)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Neg", Attrs::new(), vec![floats(&[2, 3])])]
    }
}
