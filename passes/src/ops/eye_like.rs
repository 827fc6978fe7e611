//! `EyeLike`: ones on a diagonal, zeros elsewhere, in the operand's shape.

use super::sample::floats;
use super::*;

pub(super) struct EyeLike;

impl OpRule for EyeLike {
    fn name(&self) -> &'static str {
        "EyeLike"
    }
    fn since(&self) -> i64 {
        9
    }
    fn infer(&self, cx: &Infer) -> Types {
        let dtype = match cx.attrs().get("dtype") {
            Some(_) => {
                DType::from_onnx(cx.attrs().int("dtype", 0) as i32).ok_or_else(|| TypeError("unknown type".into()))?
            }
            None => cx.ty(0)?.dtype,
        };
        Ok(vec![TensorType::new(dtype, cx.ty(0)?.shape.clone())])
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("EyeLike", Attrs::new(), vec![floats(&[2, 3])]).shape_only()]
    }
}
