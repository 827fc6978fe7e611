//! `LayerNormalization`: y = x̂ ⊙ scale + bias with x̂ = (x − mean) · s, s = 1 / √(var + ε), over the axes from `axis` on.
//! Results 1 and 2 are mean and s; the normalised axes stay with extent 1.

use super::matmul::rows;
use super::*;

pub(super) const LAYER_NORMALIZATION: Row = Row {
    name: "LayerNormalization",
    infer: |cx| {
        let axis = cx.axis()?;
        let x = cx.ty(0)?;
        cx.into(x, 1)?;
        cx.into(x, 2)?;
        let mut statistics = x.clone();
        statistics.dtype = stash(cx.op, x.dtype);
        statistics.shape[axis..].fill(Dim::from(1));
        Ok(vec![x.clone(), statistics.clone(), statistics])
    },
    // With g = ȳ ⊙ scale and means over the normalised axes: x̄ = s (g − mean(g) − x̂ mean(g ⊙ x̂)), and the scale's and the
    // bias' cotangents are ȳ ⊙ x̂ and ȳ summed over the other axes. Mean and s, where they are read themselves, give x the
    // cotangent (m̄ − s̄ s³ (x − mean)) / N over N normalised elements.
    pullback: |p| {
        let (ct, of_mean, of_inverse) = (p.try_ct(0), p.try_ct(1), p.try_ct(2));
        if let Some(ct) = ct {
            p.accumulate_broadcast(2, ct)?;
        }
        if !p.wants(0) && !p.wants(1) {
            return Ok(());
        }
        let x_ty = p.ty(0)?;
        let wide = stash(&p.op(), x_ty.dtype);
        let axis = p.told(|cx| cx.axis())?;
        let x = p.operand(0)?;
        let [centred, inverse] = if wide == DType::F64 {
            // The statistics of a double x are declared as float, whatever a runtime computes them in.
            let axes: Vec<i64> = (axis..x_ty.rank()).map(|a| a as i64).collect();
            let epsilon = p.op().float("epsilon") as f64;
            formulas(p.b, [x], |[x]| moments(x, &axes, epsilon))?
        } else {
            let mut shape = x_ty.shape.clone();
            shape[axis..].fill(Dim::from(1));
            let statistic = TensorType::new(wide, shape);
            let mean = p.extra_result(1, "mean", statistic.clone());
            let inverse = p.extra_result(2, "inv_std", statistic);
            let x = p.b.cast(x, wide)?;
            [p.b.sub(x, mean)?, inverse]
        };
        if of_mean.is_some() || of_inverse.is_some() {
            let axes: Vec<usize> = (axis..x_ty.rank()).collect();
            p.give(0, |b| statistics_pullback(b, (of_mean, of_inverse), centred, inverse, &axes, x_ty.dtype))?;
        }
        let Some(ct) = ct else { return Ok(()) };
        let scale = p.ty(1)?;
        let by_rows =
            wide == x_ty.dtype && axis + 1 == x_ty.rank() && scale.rank() == 1 && scale.shape[0] == x_ty.shape[axis];
        if by_rows && scale.shape[0].known().is_some_and(|n| n > 0) {
            return rows_pullback(p, ct, centred, inverse);
        }
        let normal = p.b.mul(centred, inverse)?;
        normalization_pullback(p, ct, normal, inverse, axis, true)
    },
    samples: || {
        let axis = |a: i64| Attrs::new().with("axis", a);
        vec![
            sample(Attrs::new(), vec![floats(&[3, 4]), floats(&[4]), floats(&[4])]),
            sample(Attrs::new().with("epsilon", 1e-2_f32), vec![floats(&[2, 3, 4]), floats(&[4])]),
            sample(axis(1), vec![floats(&[2, 3, 4]), floats(&[3, 4]), floats(&[3, 4])]),
            sample(axis(-2), vec![floats(&[2, 3, 2, 4]), floats(&[2, 4]), floats(&[2, 4])]),
            sample(axis(0), vec![floats(&[2, 3]), floats(&[2, 3]), floats(&[2, 3])]),
            sample(axis(2), vec![floats(&[2, 3, 4]), floats(&[4]), floats(&[4])]).results(3),
        ]
    },
    ..ROW
};

/// (m̄ − s̄ s³ (x − mean)) / N, of what is given of m̄ and s̄.
fn statistics_pullback(
    b: &mut Builder,
    cts: (Option<ValueId>, Option<ValueId>),
    centred: ValueId,
    inverse: ValueId,
    axes: &[usize],
    dtype: DType,
) -> Built {
    let term = match cts {
        (Some(mean), Some(ct)) => formula(b, [mean, ct, inverse, centred], |[mean, ct, s, centred]| {
            (mean - ct * s * s.squared() * centred) / centred.count(axes)
        })?,
        (None, Some(ct)) => {
            formula(b, [ct, inverse, centred], |[ct, s, centred]| -(ct * s * s.squared() * centred) / centred.count(axes))?
        }
        (Some(mean), None) => {
            let each = formula(b, [mean, centred], |[mean, centred]| mean / centred.count(axes))?;
            b.expand_like(each, centred)?
        }
        (None, None) => b.zeros_like(centred)?,
    };
    b.cast(term, dtype)
}

/// The pullback over the last axis only. With d = x − mean, x̄ = s (g − d ⊙ s² mean(g ⊙ d) − mean(g)). All sums are matrix
/// products: the scale's cotangent is the row of inverse deviations times ȳ ⊙ d, and both row means are products with the scale
/// as a column. Seven element-wise passes remain.
fn rows_pullback(p: &mut Pullback, ct: ValueId, deviations: ValueId, inverse: ValueId) -> Result<(), GradError> {
    let weighted = p.b.mul(ct, deviations)?;
    if p.wants(1) {
        let matrix = rows(p.b, weighted)?;
        let count = p.b.ty(matrix)?.shape[0].clone();
        let row = p.b.reshape(inverse, &[1, -1], &[Dim::from(1), count])?;
        let sum = p.b.matmul(row, matrix)?;
        let scale = p.operand(1)?;
        p.give(1, |b| b.reshape_like(sum, scale))?;
    }
    if !p.wants(0) {
        return Ok(());
    }
    let (scale, axis) = (p.operand(1)?, p.b.ty(ct)?.rank() - 1);
    p.give(0, |b| {
        formula(b, [ct, deviations, inverse, scale, weighted], |[ct, d, s, scale, weighted]| {
            let scaled = ct * scale;
            let column = (scale / ct.count(&[axis])).then(|b, v| b.unsqueeze(v, &[1]));
            let mean = ct.dot(column);
            (scaled - (d * (weighted.dot(column) * s.squared()) + mean)) * s
        })
    })
}

/// The element type of the statistics.
pub(super) fn stash(op: &Op, own: DType) -> DType {
    if own == DType::F64 { own } else { DType::from_onnx(op.int("stash_type") as i32).unwrap_or(DType::F32) }
}

/// The cotangents of x (operand 0) and scale (operand 1) from x̂ and the inverse deviation, both in the type of the statistics.
/// `centred` says that the mean was subtracted.
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
    let (scale, rank) = (p.operand(1)?, x_ty.rank());
    let scale = p.b.cast(scale, wide)?;
    let scale_ty = p.b.ty(scale)?;
    let last = axis + 1 == rank && scale_ty.rank() == 1 && scale_ty.shape[0] == x_ty.shape[axis];
    let axes: Vec<i64> = (axis as i64..rank as i64).collect();
    p.give(0, |b| {
        let term = formula(b, [ct, normal, inverse, scale, weighted], |[ct, normal, inverse, scale, weighted]| {
            let scaled = ct * scale;
            let (mean, slope) = if last {
                // Products with the scale as a column save two element-wise passes.
                let column = (scale / normal.count(&[axis])).then(|b, v| b.unsqueeze(v, &[1]));
                (centred.then(|| ct.dot(column)), weighted.dot(column))
            } else {
                let both = scaled * normal;
                let mean = centred.then(|| scaled.over("ReduceMean", &axes));
                (mean, both.over("ReduceMean", &axes))
            };
            let projection = normal * slope;
            (scaled - mean.map_or(projection, |mean| projection + mean)) * inverse
        });
        b.cast(term?, x_ty.dtype)
    })
}

/// x − mean and the inverse deviation over axes, as plain operators.
pub(super) fn moments<'f>(x: Term<'f>, axes: &[i64], epsilon: f64) -> [Term<'f>; 2] {
    let centred = x - x.over("ReduceMean", axes);
    let var = (centred * centred).over("ReduceMean", axes);
    [centred, (var + epsilon).sqrt().op("Reciprocal")]
}
