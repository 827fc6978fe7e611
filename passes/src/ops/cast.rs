//! `Cast`, `CastLike`: another element type. Only casts from and to float types carry a cotangent.

use super::sample::floats;
use super::*;

pub(super) struct Cast;

impl OpRule for Cast {
    fn name(&self) -> &'static str {
        "Cast"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let to = cx.op.int("to");
        let to = i32::try_from(to).ok().and_then(DType::from_onnx).ok_or_else(|| TypeError(format!("unknown type {to}")))?;
        Ok(vec![TensorType::new(to, cx.ty(0)?.shape.clone())])
    }
    /// x̄ = ȳ in x's type.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        pullback(p)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Cast", Attrs::new().with("to", DType::F64.onnx() as i64), vec![floats(&[2, 3])]).shape_only(),
            Sample::of("Cast", Attrs::new().with("to", DType::F32.onnx() as i64), vec![floats(&[2, 3])]),
            Sample::of("Cast", Attrs::new().with("to", DType::I64.onnx() as i64), vec![floats(&[2, 3])]).shape_only(),
        ]
    }
}

pub(super) struct CastLike;

impl OpRule for CastLike {
    fn name(&self) -> &'static str {
        "CastLike"
    }
    fn infer(&self, cx: &Infer) -> Types {
        Ok(vec![TensorType::new(cx.ty(1)?.dtype, cx.ty(0)?.shape.clone())])
    }
    /// x̄ = ȳ in x's type; of the second operand only the type is read.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        pullback(p)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of(
            "CastLike",
            Attrs::new(),
            vec![floats(&[2, 3]), SampleOperand::FloatConstant { dims: vec![], values: vec![0.0] }],
        )]
    }
}

/// The same bits as another type of their width (opset 26): no derivative comes through.
pub(super) struct BitCast;

impl OpRule for BitCast {
    fn name(&self) -> &'static str {
        "BitCast"
    }
    fn infer(&self, cx: &Infer) -> Types {
        Cast.infer(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        let to = Attrs::new().with("to", DType::I32.onnx() as i64);
        vec![Sample::of("BitCast", to, vec![floats(&[2, 3])]).at(26).shape_only()]
    }
}

fn pullback(p: &mut Pullback) -> Result<(), GradError> {
    let (ct, dtype) = (p.ct(0)?, p.ty(0)?.dtype);
    let x_ct = p.b.cast(ct, dtype)?;
    p.accumulate(0, x_ct)
}
