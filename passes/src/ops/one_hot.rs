//! `OneHot`: one of two values wherever a new axis's place is (not) the index.

use super::*;

pub(super) struct OneHot;

impl OpRule for OneHot {
    fn name(&self) -> &'static str {
        "OneHot"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let (indices, values) = (cx.ty(0)?, cx.ty(2)?);
        let rank = indices.rank() as i64 + 1;
        let axis = cx.op.int("axis");
        let axis = if axis < 0 { axis + rank } else { axis };
        cx.require((0..rank).contains(&axis), || format!("axis {axis} is out of range for {indices}"))?;
        let depth = match cx.extents(1).as_deref() {
            Some([n]) => n.clone(),
            _ => unknown_dim("depth"),
        };
        let mut shape = indices.shape.clone();
        shape.insert(axis as usize, depth);
        Ok(vec![TensorType::new(values.dtype, shape)])
    }
    fn derivative(&self) -> Derivative {
        Derivative::None("the two values of a one-hot encoding are not trained")
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of(
                "OneHot",
                Attrs::new(),
                vec![
                    SampleOperand::Ints { dims: vec![2], values: vec![1, 0] },
                    SampleOperand::Ints { dims: vec![], values: vec![3] },
                    SampleOperand::FloatConstant { dims: vec![2], values: vec![0.0, 1.0] },
                ],
            )
            .shape_only(),
            Sample::of(
                "OneHot",
                Attrs::new().with("axis", 0),
                vec![
                    SampleOperand::Ints { dims: vec![2, 1], values: vec![1, 0] },
                    SampleOperand::Ints { dims: vec![1], values: vec![3] },
                    SampleOperand::FloatConstant { dims: vec![2], values: vec![0.0, 1.0] },
                ],
            )
            .shape_only(),
        ]
    }
}
