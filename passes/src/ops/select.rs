//! `Where`: z = x where the condition holds, y elsewhere; all three broadcast.

use super::sample::floats;
use super::*;

pub(super) struct Where;

impl OpRule for Where {
    fn name(&self) -> &'static str {
        "Where"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let (condition, x, y) = (cx.ty(0)?, cx.ty(1)?, cx.ty(2)?);
        cx.require(x.dtype == y.dtype, || format!("element types {} and {} differ", x.dtype, y.dtype))?;
        let values = broadcast::broadcast(&x.shape, &y.shape)?;
        Ok(vec![TensorType::new(x.dtype, broadcast::broadcast(&values, &condition.shape)?)])
    }
    /// x̄ = unbroadcast(z̄ where c), ȳ = unbroadcast(z̄ where not c).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let condition = p.operand(0)?;
        for (i, chosen) in [(1, true), (2, false)] {
            if p.wants(i) {
                p.accumulate_chosen(i, condition, chosen)?;
            }
        }
        Ok(())
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of(
                "Where",
                Attrs::new(),
                vec![SampleOperand::Bools { dims: vec![2, 1], values: vec![true, false] }, floats(&[2, 3]), floats(&[3])],
            ),
            Sample::of(
                "Where",
                Attrs::new(),
                vec![
                    SampleOperand::Bools { dims: vec![3], values: vec![true, false, true] },
                    floats(&[2, 3]),
                    SampleOperand::FloatConstant { dims: vec![], values: vec![-9.0] },
                ],
            ),
            Sample::of(
                "Where",
                Attrs::new(),
                vec![
                    SampleOperand::Bools { dims: vec![3], values: vec![true, false, true] },
                    SampleOperand::FloatConstant { dims: vec![], values: vec![-9.0] },
                    floats(&[2, 1]),
                ],
            ),
        ]
    }
}
