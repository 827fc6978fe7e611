//! `RMSNormalization`: y = x · s ⊙ scale with s = 1 / √(mean(x²) + ε), over the axes from `axis` on. Before
//! opset 23 runtimes named it `SimplifiedLayerNormalization`, whose second result is s.

use super::layer_normalization::stash;
use super::*;

pub(super) const RMS: Row = Row {
    name: "RMSNormalization",
    infer: |cx| {
        cx.axis()?;
        cx.into(cx.ty(0)?, 1)?;
        like_first(cx)
    },
    derivative: Derivative::Decompose("ReduceMean, Sqrt, Div, Mul"),
    decompose: normalized,
    samples: || samples(23),
    ..ROW
};

pub(super) const SIMPLIFIED: Row = Row {
    name: "SimplifiedLayerNormalization",
    infer: |cx| {
        let axis = cx.axis()?;
        let x = cx.ty(0)?;
        cx.into(x, 1)?;
        let mut inverse = x.clone();
        inverse.dtype = stash(cx.op, x.dtype);
        inverse.shape[axis..].fill(Dim::from(1));
        Ok(vec![x.clone(), inverse])
    },
    samples: || samples(18),
    ..RMS
};

/// A name that tools of ONNX Runtime write, though the runtime has no kernel for it.
pub(super) const FUSED: Row = Row { domain: MICROSOFT, samples: Vec::new, ..SIMPLIFIED };

fn normalized(b: &mut Builder, s: &Source) -> Decomposed {
    s.first_results_only(1, "the statistics it reports")?;
    let (axis, epsilon, stash) = (s.op.int("axis"), s.op.float("epsilon"), s.op.int("stash_type"));
    one(root_mean_square(b, s.need(0)?, s.need(1)?, axis, epsilon, stash))
}

/// The type of the statistics: single precision for narrower types.
pub(super) fn wide(stash: i64, dtype: DType) -> DType {
    if stash == 1 && matches!(dtype, DType::F16 | DType::BF16) { DType::F32 } else { dtype }
}

/// x / √(mean(x²) + ε) · scale over the axes from `axis` on.
pub(super) fn root_mean_square(b: &mut Builder, x: ValueId, scale: ValueId, axis: i64, epsilon: f32, stash: i64) -> Built {
    let ty = b.ty(x)?;
    let rank = ty.rank() as i64;
    let axis = if axis < 0 { axis + rank } else { axis };
    // A damaged file may name an axis that is not there.
    let axes: Vec<i64> = (axis.clamp(0, rank)..rank).collect();
    let wide = wide(stash, ty.dtype);
    formula(b, [x, scale], |[x, scale]| {
        let exact = x.cast(wide);
        let root = (exact.squared().over("ReduceMean", &axes) + epsilon as f64).sqrt();
        (exact / root).cast(ty.dtype) * scale
    })
}

fn samples(opset: i64) -> Vec<Sample> {
    let of = |attrs: Attrs, x: &[i64], scale: &[i64]| sample(attrs, vec![floats(x), floats(scale)]).at(opset);
    vec![
        of(Attrs::new(), &[3, 4], &[4]),
        of(Attrs::new().with("epsilon", 1e-2_f32), &[2, 3, 4], &[4]),
        of(Attrs::new().with("axis", -1), &[2, 2, 3, 4], &[4]),
    ]
}
