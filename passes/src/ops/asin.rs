//! `Asin`, `Acos`.

use super::sample::floats_in;
use super::*;

pub(super) struct Asin;

impl OpRule for Asin {
    fn name(&self) -> &'static str {
        "Asin"
    }
    fn since(&self) -> i64 {
        7
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊘ √(1 − x²).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let x_ct = over_root(p)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Asin", Attrs::new(), vec![floats_in(&[2, 3], -0.8, 0.8)])]
    }
}

pub(super) struct Acos;

impl OpRule for Acos {
    fn name(&self) -> &'static str {
        "Acos"
    }
    fn since(&self) -> i64 {
        7
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = −ȳ ⊘ √(1 − x²).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let x_ct = over_root(p)?;
        let x_ct = p.b.neg(x_ct)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Acos", Attrs::new(), vec![floats_in(&[2, 3], -0.8, 0.8)])]
    }
}

/// ȳ ⊘ √(1 − x²).
fn over_root(p: &mut Pullback) -> Result<ValueId, GradError> {
    let (x, ct) = (p.operand(0)?, p.ct(0)?);
    let square = p.b.mul(x, x)?;
    let rest = p.b.from_number_sub(1.0, square)?;
    let root = p.b.sqrt(rest)?;
    Ok(p.b.div(ct, root)?)
}
