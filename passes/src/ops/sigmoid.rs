//! `Sigmoid`: y = 1 / (1 + e^(−x)).

use super::sample::floats;
use super::*;

pub(super) struct Sigmoid;

impl OpRule for Sigmoid {
    fn name(&self) -> &'static str {
        "Sigmoid"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ y ⊙ (1 − y).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (y, ct) = (p.result(0), p.ct(0)?);
        let rest = p.b.from_number_sub(1.0, y)?;
        let slope = p.b.mul(y, rest)?;
        let x_ct = p.b.mul(ct, slope)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Sigmoid", Attrs::new(), vec![floats(&[2, 3])])]
    }
}
