//! Random numbers, of a shape that is given or an operand's: of the operand nothing else is read.

use super::flat::Flat;
use super::sample::floats;
use super::*;

pub(super) const RANDOM_NORMAL: Flat = of_shape("RandomNormal");
pub(super) const RANDOM_UNIFORM: Flat = of_shape("RandomUniform");
pub(super) const RANDOM_NORMAL_LIKE: Flat = like_operand("RandomNormalLike", 1);
pub(super) const RANDOM_UNIFORM_LIKE: Flat = like_operand("RandomUniformLike", 1);

const fn of_shape(name: &'static str) -> Flat {
    let infer = |cx: &Infer| {
        let shape = cx.attrs().ints("shape").ok_or_else(|| TypeError("no shape is given".into()))?;
        Ok(vec![TensorType::fixed(cx.asked_dtype(DType::F32)?, shape)])
    };
    Flat { name, since: 1, infer, applied: || vec![(Attrs::new().with("shape", vec![2, 3]), vec![])] }
}

/// An operator that gives something of its operand's shape, of another element type where one is asked for.
pub(super) const fn like_operand(name: &'static str, since: i64) -> Flat {
    let infer = |cx: &Infer| {
        let ty = cx.ty(0)?;
        Ok(vec![TensorType::new(cx.asked_dtype(ty.dtype)?, ty.shape.clone())])
    };
    Flat { name, since, infer, applied: || vec![(Attrs::new(), vec![floats(&[2, 3])])] }
}
