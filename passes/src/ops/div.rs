//! `Div`: z = x ⊘ y with broadcasting.

use super::sample::{floats, floats_in};
use super::*;

pub(super) struct Div;

impl OpRule for Div {
    fn name(&self) -> &'static str {
        "Div"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_all(cx)
    }
    /// x̄ = unbroadcast(z̄ ⊘ y), ȳ = −unbroadcast(z̄ ⊙ z) ⊘ y: y does not change over what is summed, so the division comes last.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (y, ct) = (p.operand(1)?, p.ct(0)?);
        if p.wants(0) {
            let quotient = p.b.div(ct, y)?;
            p.accumulate_broadcast(0, quotient)?;
        }
        if p.wants(1) {
            let z = p.result(0);
            let product = p.b.mul(ct, z)?;
            let product = p.guarded(product)?;
            let sum = broadcast::unbroadcast(p.b, product, y)?;
            let quotient = p.b.div(sum, y)?;
            let y_ct = p.b.neg(quotient)?;
            p.accumulate(1, y_ct)?;
        }
        Ok(())
    }
    fn has_pole(&self, g: &Graph, node: NodeId, _: usize) -> bool {
        g.operand(node, 1).is_none_or(|y| g.constant(y).is_none())
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Div", Attrs::new(), vec![floats(&[2, 3]), floats_in(&[2, 3], 0.5, 2.0)]),
            Sample::of("Div", Attrs::new(), vec![floats(&[2, 1, 3]), floats_in(&[4, 1], 0.5, 2.0)]),
            Sample::of("Div", Attrs::new(), vec![floats_in(&[], 1.0, 2.0), floats_in(&[3], -2.0, -0.5)]),
        ]
    }
}
