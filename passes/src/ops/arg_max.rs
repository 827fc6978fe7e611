//! `ArgMax`, `ArgMin`: the index of the extremum along an axis.

use super::sample::floats;
use super::*;

pub(super) struct ArgMax;

impl OpRule for ArgMax {
    fn name(&self) -> &'static str {
        "ArgMax"
    }
    fn since(&self) -> i64 {
        1
    }
    fn infer(&self, cx: &Infer) -> Types {
        let (ty, axis) = (cx.ty(0)?, cx.axis(0)?);
        let mut shape = ty.shape.clone();
        if cx.attrs().int("keepdims", 1) != 0 {
            shape[axis] = Dim::from(1);
        } else {
            shape.remove(axis);
        }
        Ok(vec![TensorType::new(DType::I64, shape)])
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("ArgMax", Attrs::new().with("axis", -1), vec![floats(&[2, 3, 4])]).shape_only(),
            Sample::of("ArgMax", Attrs::new().with("axis", 0).with("keepdims", 0), vec![floats(&[2, 3])]).shape_only(),
        ]
    }
}

pub(super) struct ArgMin;

impl OpRule for ArgMin {
    fn name(&self) -> &'static str {
        "ArgMin"
    }
    fn since(&self) -> i64 {
        1
    }
    fn infer(&self, cx: &Infer) -> Types {
        let (ty, axis) = (cx.ty(0)?, cx.axis(0)?);
        let mut shape = ty.shape.clone();
        if cx.attrs().int("keepdims", 1) != 0 {
            shape[axis] = Dim::from(1);
        } else {
            shape.remove(axis);
        }
        Ok(vec![TensorType::new(DType::I64, shape)])
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("ArgMin", Attrs::new().with("axis", -1), vec![floats(&[2, 3, 4])]).shape_only(),
            Sample::of("ArgMin", Attrs::new().with("axis", 0).with("keepdims", 0), vec![floats(&[2, 3])]).shape_only(),
        ]
    }
}
