//! `GatherElements`: y[i, j] = x[indices[i, j], j] for axis 0, and so on.

use super::sample::floats;
use super::scatter_elements::add_at;
use super::*;

pub(super) struct GatherElements;

impl OpRule for GatherElements {
    fn name(&self) -> &'static str {
        "GatherElements"
    }
    fn infer(&self, cx: &Infer) -> Types {
        Ok(vec![TensorType::new(cx.ty(0)?.dtype, cx.ty(1)?.shape.clone())])
    }
    /// x̄ = zeros with ȳ added where it came from.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, indices, ct) = (p.operand(0)?, p.operand(1)?, p.ct(0)?);
        let axis = p.op().int("axis");
        let axis = p.ty(0)?.axis(axis).ok_or_else(|| p.unsupported("its axis is out of range"))?;
        let zeros = p.b.zeros_like(x)?;
        let x_ct = add_at(p.b, zeros, indices, ct, axis)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of(
                "GatherElements",
                Attrs::new().with("axis", 1),
                vec![floats(&[2, 4]), SampleOperand::Ints { dims: vec![2, 3], values: vec![1, -1, 1, 0, 2, 2] }],
            ),
            Sample::of(
                "GatherElements",
                Attrs::new(),
                vec![floats(&[3, 2]), SampleOperand::Ints { dims: vec![1, 2], values: vec![2, 0] }],
            ),
        ]
    }
}
