//! `Sum`, `Mean` of any number of operands, with broadcasting.

use super::sample::floats;
use super::*;

pub(super) struct Sum;

impl OpRule for Sum {
    fn name(&self) -> &'static str {
        "Sum"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_all(cx)
    }
    /// x̄ᵢ = unbroadcast(ȳ).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        (0..p.operand_count()).try_for_each(|i| p.accumulate_broadcast(i, ct))
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Sum", Attrs::new(), vec![floats(&[2, 3]), floats(&[3]), floats(&[2, 1])]),
            Sample::of("Sum", Attrs::new(), vec![floats(&[3])]),
        ]
    }
}

pub(super) struct Mean;

impl OpRule for Mean {
    fn name(&self) -> &'static str {
        "Mean"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_all(cx)
    }
    /// x̄ᵢ = unbroadcast(ȳ / n).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (ct, n) = (p.ct(0)?, p.operand_count());
        let share = p.b.scale(ct, 1.0 / n as f64)?;
        (0..n).try_for_each(|i| p.accumulate_broadcast(i, share))
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Mean", Attrs::new(), vec![floats(&[2, 3]), floats(&[3]), floats(&[2, 1])]),
            Sample::of("Mean", Attrs::new(), vec![floats(&[3])]),
        ]
    }
}
