//! `PRelu`: y = x for x > 0, slope ⊙ x otherwise; the slope broadcasts to x.

use super::sample::{floats, floats_in};
use super::*;

pub(super) struct PRelu;

impl OpRule for PRelu {
    fn name(&self) -> &'static str {
        "PRelu"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ (1 where x > 0, else slope), slope̅ = unbroadcast(ȳ ⊙ min(x, 0)).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, slope, ct) = (p.operand(0)?, p.operand(1)?, p.ct(0)?);
        if p.wants(0) {
            let positive = p.b.compare("Greater", x, 0.0)?;
            let rest = p.b.from_number_sub(1.0, slope)?;
            let rest = p.b.mul(positive, rest)?;
            let factor = p.b.add(rest, slope)?;
            let x_ct = p.b.mul(ct, factor)?;
            p.accumulate(0, x_ct)?;
        }
        if p.wants(1) {
            let dtype = p.ty(0)?.dtype;
            let zero = p.b.scalar(dtype, 0.0);
            let negative = p.b.op("Min", &[x, zero])?;
            let product = p.b.mul(ct, negative)?;
            p.accumulate_broadcast(1, product)?;
        }
        Ok(())
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("PRelu", Attrs::new(), vec![floats_in(&[2, 3, 2], -1.5, -0.2), floats(&[3, 1])]),
            Sample::of("PRelu", Attrs::new(), vec![floats_in(&[2, 3], 0.2, 1.5), floats(&[1])]),
        ]
    }
}
