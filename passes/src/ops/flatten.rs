//! `Flatten`: a matrix of the dimensions before the axis by those from it on.

use super::sample::floats;
use super::*;

pub(super) struct Flatten;

impl OpRule for Flatten {
    fn name(&self) -> &'static str {
        "Flatten"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let ty = cx.ty(0)?;
        let (axis, rank) = (cx.op.int("axis"), ty.rank() as i64);
        let axis = if axis < 0 { axis + rank } else { axis };
        cx.require((0..=rank).contains(&axis), || format!("axis {axis} is out of range for {ty}"))?;
        let product = |dims: &[Dim]| dims.iter().fold(Dim::from(1), |p, d| &p * d);
        let (rows, columns) = ty.shape.split_at(axis as usize);
        Ok(vec![TensorType::new(ty.dtype, vec![product(rows), product(columns)])])
    }
    /// x̄ = ȳ under x's shape.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let x_ct = p.b.reshape_like(ct, x)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Flatten", Attrs::new(), vec![floats(&[2, 3, 4])]),
            Sample::of("Flatten", Attrs::new().with("axis", -1), vec![floats(&[2, 3, 4])]),
            Sample::of("Flatten", Attrs::new().with("axis", 0), vec![floats(&[2, 3])]),
        ]
    }
}
