//! `CumSum`: running sums along an axis (an operand), optionally reversed or without the element itself.

use super::sample::floats;
use super::*;

pub(super) struct CumSum;

impl OpRule for CumSum {
    fn name(&self) -> &'static str {
        "CumSum"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = the running sum of ȳ in the other direction.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (ct, axis, op) = (p.ct(0)?, p.operand(1)?, p.op());
        let reverse = 1 - op.int("reverse");
        let x_ct = p.b.op_with("CumSum", op.attrs.with("reverse", reverse), &[ct, axis])?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("CumSum", Attrs::new(), vec![floats(&[2, 3]), SampleOperand::Ints { dims: vec![], values: vec![1] }]),
            Sample::of(
                "CumSum",
                Attrs::new().with("exclusive", 1).with("reverse", 1),
                vec![floats(&[3, 2]), SampleOperand::Ints { dims: vec![], values: vec![-2] }],
            ),
        ]
    }
}
