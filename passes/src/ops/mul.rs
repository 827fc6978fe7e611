//! `Mul`: z = x ⊙ y with broadcasting.

use super::sample::floats;
use super::*;

pub(super) struct Mul;

impl OpRule for Mul {
    fn name(&self) -> &'static str {
        "Mul"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_all(cx)
    }
    /// x̄ = unbroadcast(z̄ ⊙ y), ȳ = unbroadcast(z̄ ⊙ x); a square shares the one product.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, y, ct) = (p.operand(0)?, p.operand(1)?, p.ct(0)?);
        if x == y {
            let product = p.b.mul(ct, x)?;
            let x_ct = p.b.scale(product, 2.0)?;
            return p.accumulate(0, x_ct);
        }
        if let Some(i) = gated_by_itself(p) {
            // Both terms at once, from the values of the forward pass: z̄ ⊙ (s + z (1 − s)).
            let (s, z) = (p.operand(1 - i)?, p.result(0));
            let rest = p.b.from_number_sub(1.0, s)?;
            let through = p.b.mul(z, rest)?;
            let slope = p.b.add(s, through)?;
            let term = p.b.mul(ct, slope)?;
            return p.accumulate(i, term);
        }
        for (i, other) in [(0, y), (1, x)] {
            if p.wants(i) {
                let product = p.b.mul(ct, other)?;
                p.accumulate_broadcast(i, product)?;
            }
        }
        Ok(())
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Mul", Attrs::new(), vec![floats(&[2, 3]), floats(&[2, 3])]),
            Sample::of("Mul", Attrs::new(), vec![floats(&[2, 1, 3]), floats(&[4, 1])]),
            Sample::of("Mul", Attrs::new(), vec![floats(&[]), floats(&[3])]),
        ]
    }
}

/// The operand x of a product x ⊙ σ(x) (SiLU as exporters write it).
fn gated_by_itself(p: &Pullback) -> Option<usize> {
    (0..2).find(|i| {
        let (Some(x), Some(s)) = (p.try_operand(*i), p.try_operand(1 - i)) else { return false };
        p.graph().is_op(s.node, "Sigmoid") && p.graph().operand(s.node, 0) == Some(x)
    })
}
