//! Random numbers: of an operand only the shape is read.

use super::sample::floats;
use super::*;

pub(super) struct RandomNormal;

impl OpRule for RandomNormal {
    fn name(&self) -> &'static str {
        "RandomNormal"
    }
    fn since(&self) -> i64 {
        1
    }
    fn infer(&self, cx: &Infer) -> Types {
        let dtype = match cx.attrs().get("dtype") {
            Some(_) => {
                DType::from_onnx(cx.attrs().int("dtype", 0) as i32).ok_or_else(|| TypeError("unknown type".into()))?
            }
            None => DType::F32,
        };
        let shape = cx.attrs().ints("shape").ok_or_else(|| TypeError("no shape is given".into()))?;
        Ok(vec![TensorType::fixed(dtype, shape)])
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("RandomNormal", Attrs::new().with("shape", vec![2, 3]), vec![]).shape_only()]
    }
}

pub(super) struct RandomUniform;

impl OpRule for RandomUniform {
    fn name(&self) -> &'static str {
        "RandomUniform"
    }
    fn since(&self) -> i64 {
        1
    }
    fn infer(&self, cx: &Infer) -> Types {
        let dtype = match cx.attrs().get("dtype") {
            Some(_) => {
                DType::from_onnx(cx.attrs().int("dtype", 0) as i32).ok_or_else(|| TypeError("unknown type".into()))?
            }
            None => DType::F32,
        };
        let shape = cx.attrs().ints("shape").ok_or_else(|| TypeError("no shape is given".into()))?;
        Ok(vec![TensorType::fixed(dtype, shape)])
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("RandomUniform", Attrs::new().with("shape", vec![2, 3]), vec![]).shape_only()]
    }
}

pub(super) struct RandomNormalLike;

impl OpRule for RandomNormalLike {
    fn name(&self) -> &'static str {
        "RandomNormalLike"
    }
    fn since(&self) -> i64 {
        1
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
        vec![Sample::of("RandomNormalLike", Attrs::new(), vec![floats(&[2, 3])]).shape_only()]
    }
}

pub(super) struct RandomUniformLike;

impl OpRule for RandomUniformLike {
    fn name(&self) -> &'static str {
        "RandomUniformLike"
    }
    fn since(&self) -> i64 {
        1
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
        vec![Sample::of("RandomUniformLike", Attrs::new(), vec![floats(&[2, 3])]).shape_only()]
    }
}
