//! `Sub`: z = x − y with broadcasting.

use super::sample::floats;
use super::*;

pub(super) struct Sub;

impl OpRule for Sub {
    fn name(&self) -> &'static str {
        "Sub"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_all(cx)
    }
    /// x̄ = unbroadcast(z̄), ȳ = −unbroadcast(z̄): negated after the sum, where it is smaller.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        p.accumulate_broadcast(0, ct)?;
        if p.wants(1) {
            let y = p.operand(1)?;
            let sum = broadcast::unbroadcast(p.b, ct, y)?;
            let y_ct = p.b.neg(sum)?;
            p.accumulate(1, y_ct)?;
        }
        Ok(())
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Sub", Attrs::new(), vec![floats(&[2, 3]), floats(&[2, 3])]),
            Sample::of("Sub", Attrs::new(), vec![floats(&[2, 1, 3]), floats(&[4, 1])]),
            Sample::of("Sub", Attrs::new(), vec![floats(&[]), floats(&[3])]),
        ]
    }
}
