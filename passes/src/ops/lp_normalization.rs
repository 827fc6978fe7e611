//! `LpNormalization`: y = x / ‖x‖ along one axis, with the 1- or the 2-norm; 0 where the norm is 0.

use super::sample::floats;
use super::*;

pub(super) struct LpNormalization;

impl OpRule for LpNormalization {
    fn name(&self) -> &'static str {
        "LpNormalization"
    }
    fn infer(&self, cx: &Infer) -> Types {
        cx.axis()?;
        like_first(cx)
    }
    /// x̄ = (ȳ − u Σ ȳ ⊙ y) / ‖x‖ with u = y for the 2-norm and sign(x) for the 1-norm; 0 where the norm is 0.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (ct, x, y) = (p.ct(0)?, p.operand(0)?, p.result(0));
        let op = p.op();
        let axis = op.int("axis");
        let one = op.int("p") == 1;
        let dtype = p.ty(0)?.dtype;
        let norm = p.b.reduce(if one { "ReduceL1" } else { "ReduceL2" }, x, &[axis], true)?;
        let products = p.b.mul(ct, y)?;
        let dot = p.b.reduce_sum(products, &[axis], true)?;
        let direction = if one { p.b.op("Sign", &[x])? } else { y };
        let share = p.b.mul(direction, dot)?;
        let rest = p.b.sub(ct, share)?;
        let quotient = p.b.div(rest, norm)?;
        let zero = p.b.scalar(dtype, 0.0);
        let positive = p.b.op("Greater", &[norm, zero])?;
        let term = p.b.select(positive, quotient, zero)?;
        p.accumulate(0, term)
    }
    fn samples(&self) -> Vec<Sample> {
        let of = |attrs: Attrs, x: &[i64]| Sample::of("LpNormalization", attrs, vec![floats(x)]);
        vec![
            of(Attrs::new(), &[3, 4]),
            of(Attrs::new().with("axis", 1), &[2, 3, 4]),
            of(Attrs::new().with("p", 1).with("axis", 0), &[3, 2]),
        ]
    }
}
