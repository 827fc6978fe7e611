//! `ConstantOfShape`: one value everywhere, float zeros by default.

use super::sample::ints;
use super::*;
use crate::ir::Tensor;

pub(super) struct ConstantOfShape;

impl OpRule for ConstantOfShape {
    fn name(&self) -> &'static str {
        "ConstantOfShape"
    }
    fn since(&self) -> i64 {
        9
    }
    fn infer(&self, cx: &Infer) -> Types {
        let dtype = cx.attrs().tensor("value").map_or(DType::F32, |t| t.dtype());
        let shape = cx.target(0, "fill")?;
        let negative = shape.iter().find(|d| d.known().is_some_and(|d| d < 0));
        cx.require(negative.is_none(), || format!("it asks for extents {shape:?}"))?;
        Ok(vec![TensorType::new(dtype, shape)])
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("ConstantOfShape", Attrs::new(), vec![ints(&[2, 3])]).shape_only(),
            Sample::of("ConstantOfShape", Attrs::new().with("value", Tensor::i64s(&[1], &[7])), vec![ints(&[2])])
                .shape_only(),
        ]
    }
}
