//! `Constant`: a tensor, or a number or list as an attribute.

use super::*;
use crate::ir::{Attr, Tensor};

pub(super) struct Constant;

impl OpRule for Constant {
    fn name(&self) -> &'static str {
        "Constant"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let attrs = cx.attrs();
        let list = |dtype, n: usize| TensorType::fixed(dtype, &[n as i64]);
        let ty =
            match ["value", "value_float", "value_floats", "value_int", "value_ints"].into_iter().find_map(|n| attrs.get(n))
            {
                Some(Attr::Tensor(t)) => TensorType::fixed(t.dtype(), t.dims()),
                Some(Attr::Float(_)) => TensorType::fixed(DType::F32, &[]),
                Some(Attr::Floats(v)) => list(DType::F32, v.len()),
                Some(Attr::Int(_)) => TensorType::fixed(DType::I64, &[]),
                Some(Attr::Ints(v)) => list(DType::I64, v.len()),
                _ => return Err(TypeError("a constant that is no tensor of numbers".into())),
            };
        Ok(vec![ty])
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Constant", Attrs::new().with("value_ints", vec![1, 2]), vec![]).shape_only(),
            Sample::of("Constant", Attrs::new().with("value", Tensor::f32s(&[2, 1], &[1.0, 2.0])), vec![]).shape_only(),
        ]
    }
}
