//! `Mish`: y = x · tanh(ln(1 + eˣ)).

use super::sample::floats;
use super::*;

pub(super) struct Mish;

impl OpRule for Mish {
    fn name(&self) -> &'static str {
        "Mish"
    }
    fn since(&self) -> i64 {
        18
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ (t + x (1 − t²) σ(x)) with t = tanh(softplus(x)).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let softplus = p.b.op("Softplus", &[x])?;
        let t = p.b.op("Tanh", &[softplus])?;
        let square = p.b.mul(t, t)?;
        let rest = p.b.from_number_sub(1.0, square)?;
        let sigmoid = p.b.op("Sigmoid", &[x])?;
        let right = p.b.mul(rest, sigmoid)?;
        let right = p.b.mul(right, x)?;
        let slope = p.b.add(t, right)?;
        let x_ct = p.b.mul(ct, slope)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Mish", Attrs::new(), vec![floats(&[2, 3])])]
    }
}
