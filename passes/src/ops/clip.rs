//! `Clip`: y = max(low, min(high, x)); the bounds are attributes before opset 11, optional operands after.

use super::sample::{floats, floats_in};
use super::*;

pub(super) struct Clip;

impl OpRule for Clip {
    fn name(&self) -> &'static str {
        "Clip"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊙ [low < x < high]: 0 at both bounds. A bound gets the sum of ȳ over what it cut off.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct, attrs) = (p.operand(0)?, p.ct(0)?, p.attrs());
        let dtype = p.ty(0)?.dtype;
        let attr = |name: &str| attrs.get(name).map(|_| attrs.float(name, 0.0) as f64);
        let low = p.try_operand(1).or_else(|| attr("min").map(|c| p.b.scalar(dtype, c)));
        let high = p.try_operand(2).or_else(|| attr("max").map(|c| p.b.scalar(dtype, c)));
        if p.wants(0) {
            if low.is_none() && high.is_none() {
                p.accumulate(0, ct)?;
            } else {
                let inside = p.b.between(x, low, high)?;
                let x_ct = p.b.keep(ct, inside, true)?;
                p.accumulate(0, x_ct)?;
            }
        }
        for (i, op) in [(1, "Less"), (2, "Greater")] {
            if p.wants(i) {
                let bound = p.operand(i)?;
                let cut = p.b.op(op, &[x, bound])?;
                let product = p.b.keep(ct, cut, true)?;
                p.accumulate_broadcast(i, product)?;
            }
        }
        Ok(())
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of(
                "Clip",
                Attrs::new(),
                vec![
                    floats_in(&[2, 3], -0.9, 0.9),
                    SampleOperand::FloatConstant { dims: vec![], values: vec![-1.0] },
                    SampleOperand::FloatConstant { dims: vec![], values: vec![1.0] },
                ],
            ),
            Sample::of(
                "Clip",
                Attrs::new(),
                vec![
                    floats_in(&[2, 3], 1.2, 2.0),
                    SampleOperand::FloatConstant { dims: vec![], values: vec![-1.0] },
                    SampleOperand::FloatConstant { dims: vec![], values: vec![1.0] },
                ],
            ),
            Sample::of(
                "Clip",
                Attrs::new(),
                vec![floats_in(&[2, 3], -0.9, 0.9), SampleOperand::FloatConstant { dims: vec![], values: vec![0.95] }],
            ),
            Sample::of(
                "Clip",
                Attrs::new(),
                vec![
                    floats_in(&[2, 3], 0.5, 0.9),
                    SampleOperand::Missing,
                    SampleOperand::FloatConstant { dims: vec![], values: vec![0.2] },
                ],
            ),
            Sample::of(
                "Clip",
                Attrs::new(),
                vec![floats_in(&[2, 3], 0.1, 0.9), floats_in(&[], 2.0, 3.0), floats_in(&[], 4.0, 5.0)],
            ),
            Sample::of("Clip", Attrs::new().with("min", -3.0f32), vec![floats(&[3])]).at(6).shape_only(),
        ]
    }
}
