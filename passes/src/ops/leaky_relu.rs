//! `LeakyRelu`: y = x for x > 0, αx otherwise.

use super::sample::floats_in;
use super::*;

pub(super) struct LeakyRelu;

impl OpRule for LeakyRelu {
    fn name(&self) -> &'static str {
        "LeakyRelu"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ (1 where x > 0, else α). For α ≥ 0 the result has the operand's sign, so only the result is read.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let alpha = p.attrs().float("alpha", 0.01) as f64;
        let ct = p.ct(0)?;
        let sign = if alpha >= 0.0 { p.result(0) } else { p.operand(0)? };
        let positive = p.b.compare("Greater", sign, 0.0)?;
        let slope = p.b.two_valued(positive, 1.0, alpha)?;
        let x_ct = p.b.mul(ct, slope)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("LeakyRelu", Attrs::new(), vec![floats_in(&[2, 3], 0.2, 1.5)]),
            Sample::of("LeakyRelu", Attrs::new().with("alpha", 0.2f32), vec![floats_in(&[4], -2.0, -0.2)]),
            Sample::of("LeakyRelu", Attrs::new().with("alpha", 1.5f32), vec![floats_in(&[4], -2.0, -0.2)]),
        ]
    }
}
