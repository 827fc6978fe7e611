//! `LayerNormalization`: y = x̂ ⊙ scale + bias with x̂ = (x − mean) · s, s = 1 / √(var + ε), over the axes from `axis` on.
//! Results 1 and 2 are mean and s, with the normalised axes kept.

use super::matmul::rows;
use super::sample::floats;
use super::*;
use crate::ops::build::{BuildError, Builder};

pub(super) struct LayerNormalization;

impl OpRule for LayerNormalization {
    fn name(&self) -> &'static str {
        "LayerNormalization"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let axis = cx.axis()?;
        let x = cx.ty(0)?;
        cx.into(x, 1)?;
        cx.into(x, 2)?;
        let mut statistics = x.clone();
        statistics.dtype = stash(cx.op, x.dtype);
        statistics.shape[axis..].fill(Dim::from(1));
        Ok(vec![x.clone(), statistics.clone(), statistics])
    }
    /// With g = ȳ ⊙ scale and means over the normalised axes: x̄ = s (g − mean(g) − x̂ mean(g ⊙ x̂)), and the scale's and the
    /// bias' cotangents are ȳ ⊙ x̂ and ȳ summed over the other axes.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        if p.try_ct(1).is_some() || p.try_ct(2).is_some() {
            return Err(p.unsupported("the loss reads the mean or the inverse deviation directly"));
        }
        p.accumulate_broadcast(2, ct)?;
        if !p.wants(0) && !p.wants(1) {
            return Ok(());
        }
        let x_ty = p.ty(0)?;
        let op = p.op();
        let wide = stash(&op, x_ty.dtype);
        let Some(axis) = x_ty.axis(op.int("axis")) else {
            return Err(p.unsupported("its axis is out of range"));
        };
        let mut shape = x_ty.shape.clone();
        shape[axis..].fill(Dim::from(1));
        let statistic = TensorType::new(wide, shape);
        let mean = p.extra_result(1, "mean", statistic.clone());
        let inverse = p.extra_result(2, "inv_std", statistic);
        let x = p.operand(0)?;
        let x = p.b.cast(x, wide)?;
        let centred = p.b.sub(x, mean)?;
        let scale = p.ty(1)?;
        let by_rows =
            wide == x_ty.dtype && axis + 1 == x_ty.rank() && scale.rank() == 1 && scale.shape[0] == x_ty.shape[axis];
        if by_rows && scale.shape[0].known().is_some_and(|n| n > 0) {
            return rows_pullback(p, ct, centred, inverse);
        }
        let normal = p.b.mul(centred, inverse)?;
        normalization_pullback(p, ct, normal, inverse, axis, true)
    }
    fn samples(&self) -> Vec<Sample> {
        let of = |attrs: Attrs, operands| Sample::of("LayerNormalization", attrs, operands);
        let axis = |a: i64| Attrs::new().with("axis", a);
        vec![
            of(Attrs::new(), vec![floats(&[3, 4]), floats(&[4]), floats(&[4])]),
            of(Attrs::new().with("epsilon", 1e-2_f32), vec![floats(&[2, 3, 4]), floats(&[4])]),
            of(axis(1), vec![floats(&[2, 3, 4]), floats(&[3, 4]), floats(&[3, 4])]),
            of(axis(-2), vec![floats(&[2, 3, 2, 4]), floats(&[2, 4]), floats(&[2, 4])]),
            of(axis(0), vec![floats(&[2, 3]), floats(&[2, 3]), floats(&[2, 3])]),
            of(axis(2), vec![floats(&[2, 3, 4]), floats(&[4]), floats(&[4])]).results(3).shape_only(),
        ]
    }
}

/// Over the last axis only. With d = x − mean all sums over elements are matrix products: the scale's cotangent is the row of
/// inverse deviations times ȳ ⊙ d, both row means products with the scale as a column. That leaves seven element-wise passes:
/// x̄ = s (g − d ⊙ s² mean(g ⊙ d) − mean(g)).
fn rows_pullback(p: &mut Pullback, ct: ValueId, deviations: ValueId, inverse: ValueId) -> Result<(), GradError> {
    let weighted = p.b.mul(ct, deviations)?;
    if p.wants(1) {
        let matrix = rows(p.b, weighted)?;
        let count = p.b.ty(matrix)?.shape[0].clone();
        let row = p.b.reshape(inverse, &[1, -1], &[Dim::from(1), count])?;
        let sum = p.b.matmul(row, matrix)?;
        let scale = p.operand(1)?;
        let term = p.b.reshape_like(sum, scale)?;
        p.accumulate(1, term)?;
    }
    if !p.wants(0) {
        return Ok(());
    }
    let (scale, dtype) = (p.operand(1)?, p.b.ty(ct)?.dtype);
    let axis = p.b.ty(ct)?.rank() - 1;
    let scaled = p.b.mul(ct, scale)?;
    let count = p.b.extent(ct, &[axis], dtype)?;
    let weights = p.b.div(scale, count)?;
    let column = p.b.unsqueeze(weights, &[1])?;
    let mean = p.b.matmul(ct, column)?;
    let moment = p.b.matmul(weighted, column)?;
    let square = p.b.mul(inverse, inverse)?;
    let slope = p.b.mul(moment, square)?;
    let along = p.b.mul(deviations, slope)?;
    let removed = p.b.add(along, mean)?;
    let rest = p.b.sub(scaled, removed)?;
    let term = p.b.mul(rest, inverse)?;
    p.accumulate(0, term)
}

/// The element type the statistics are computed in.
pub(super) fn stash(op: &Op, own: DType) -> DType {
    if own == DType::F64 { own } else { DType::from_onnx(op.int("stash_type") as i32).unwrap_or(DType::F32) }
}

/// The common part of the row-wise normalisations: cotangents of x (operand 0) and scale (operand 1) from x̂ and the inverse
/// deviation, both in the type the statistics were computed in. `centred`: the mean was subtracted.
pub(super) fn normalization_pullback(
    p: &mut Pullback,
    ct: ValueId,
    normal: ValueId,
    inverse: ValueId,
    axis: usize,
    centred: bool,
) -> Result<(), GradError> {
    let x_ty = p.ty(0)?;
    let wide = p.b.ty(normal)?.dtype;
    let ct = p.b.cast(ct, wide)?;
    let weighted = p.b.mul(ct, normal)?;
    if p.wants(1) {
        let term = p.b.cast(weighted, x_ty.dtype)?;
        p.accumulate_broadcast(1, term)?;
    }
    if !p.wants(0) {
        return Ok(());
    }
    let scale = p.operand(1)?;
    let scale = p.b.cast(scale, wide)?;
    let scaled = p.b.mul(ct, scale)?;
    let last = axis + 1 == x_ty.rank() && p.b.ty(scale)?.rank() == 1 && p.b.ty(scale)?.shape[0] == x_ty.shape[axis];
    let (mean, slope) = if last {
        // Both row means are products with the scale as a column: no element-wise pass of their own.
        let count = p.b.extent(normal, &[axis], wide)?;
        let weights = p.b.div(scale, count)?;
        let column = p.b.unsqueeze(weights, &[1])?;
        let mean = if centred { Some(p.b.matmul(ct, column)?) } else { None };
        (mean, p.b.matmul(weighted, column)?)
    } else {
        let axes: Vec<i64> = (axis as i64..x_ty.rank() as i64).collect();
        let both = p.b.mul(scaled, normal)?;
        let mean = if centred { Some(p.b.reduce("ReduceMean", scaled, &axes, true)?) } else { None };
        (mean, p.b.reduce("ReduceMean", both, &axes, true)?)
    };
    let projection = p.b.mul(normal, slope)?;
    let projection = match mean {
        Some(mean) => p.b.add(projection, mean)?,
        None => projection,
    };
    let rest = p.b.sub(scaled, projection)?;
    let term = p.b.mul(rest, inverse)?;
    let term = p.b.cast(term, x_ty.dtype)?;
    p.accumulate(0, term)
}

/// Mean and inverse deviation over axes, as plain operators: (mean, x − mean, s).
pub(super) fn moments(b: &mut Builder, x: ValueId, axes: &[i64], epsilon: f64) -> Result<[ValueId; 3], BuildError> {
    let mean = b.reduce("ReduceMean", x, axes, true)?;
    let centred = b.sub(x, mean)?;
    let squares = b.mul(centred, centred)?;
    let var = b.reduce("ReduceMean", squares, axes, true)?;
    let shifted = b.shift(var, epsilon)?;
    let root = b.sqrt(shifted)?;
    let inverse = b.op("Reciprocal", &[root])?;
    Ok([mean, centred, inverse])
}
