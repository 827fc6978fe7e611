//! `Reciprocal`: y = 1 ⊘ x.

use super::sample::floats_in;
use super::*;

pub(super) struct Reciprocal;

impl OpRule for Reciprocal {
    fn name(&self) -> &'static str {
        "Reciprocal"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = −ȳ ⊙ y².
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (y, ct) = (p.result(0), p.ct(0)?);
        let product = p.b.mul(ct, y)?;
        let product = p.b.mul(product, y)?;
        let x_ct = p.b.neg(product)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Reciprocal", Attrs::new(), vec![floats_in(&[2, 3], 0.5, 2.0)])]
    }
}
