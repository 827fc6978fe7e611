//! `RMSNormalization`: y = x̂ ⊙ scale with x̂ = x · s, s = 1 / √(mean(x²) + ε), over the axes from `axis` on. Runtimes knew it as
//! `SimplifiedLayerNormalization` before opset 23, which reports s as well.

use super::layer_normalization::{normalization_pullback, stash};
use super::sample::floats;
use super::*;

pub(super) struct RMSNormalization;
pub(super) struct SimplifiedLayerNormalization;

impl OpRule for RMSNormalization {
    fn name(&self) -> &'static str {
        "RMSNormalization"
    }
    fn since(&self) -> i64 {
        23
    }
    fn infer(&self, cx: &Infer) -> Types {
        cx.axis(-1)?;
        like_first(cx)
    }
    /// See [`pullback`].
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        pullback(p)
    }
    fn samples(&self) -> Vec<Sample> {
        samples("RMSNormalization", 23)
    }
}

impl OpRule for SimplifiedLayerNormalization {
    fn name(&self) -> &'static str {
        "SimplifiedLayerNormalization"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let axis = cx.axis(-1)?;
        let x = cx.ty(0)?;
        let mut inverse = x.clone();
        inverse.dtype = stash(cx.attrs(), x.dtype);
        inverse.shape[axis..].fill(Dim::from(1));
        Ok(vec![x.clone(), inverse])
    }
    /// See [`pullback`].
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        pullback(p)
    }
    fn samples(&self) -> Vec<Sample> {
        samples("SimplifiedLayerNormalization", 18)
    }
}

/// With g = ȳ ⊙ scale and means over the normalised axes: x̄ = s (g − x̂ mean(g ⊙ x̂)); the scale's is ȳ ⊙ x̂ summed over the
/// other axes.
fn pullback(p: &mut Pullback) -> Result<(), GradError> {
    let ct = p.ct(0)?;
    let attrs = p.attrs();
    let (x, x_ty) = (p.operand(0)?, p.ty(0)?);
    let Some(axis) = x_ty.axis(attrs.int("axis", -1)) else {
        return Err(p.unsupported("its axis is out of range"));
    };
    let wide = stash(&attrs, x_ty.dtype);
    let x = p.b.cast(x, wide)?;
    let squares = p.b.mul(x, x)?;
    let axes: Vec<i64> = (axis as i64..x_ty.rank() as i64).collect();
    let mean = p.b.reduce("ReduceMean", squares, &axes, true)?;
    let shifted = p.b.shift(mean, attrs.float("epsilon", 1e-5) as f64)?;
    let root = p.b.sqrt(shifted)?;
    let inverse = p.b.op("Reciprocal", &[root])?;
    let normal = p.b.mul(x, inverse)?;
    normalization_pullback(p, ct, normal, inverse, axis, false)
}

fn samples(name: &str, opset: i64) -> Vec<Sample> {
    let of = |attrs: Attrs, x: &[i64], scale: &[i64]| Sample::of(name, attrs, vec![floats(x), floats(scale)]).at(opset);
    vec![
        of(Attrs::new(), &[3, 4], &[4]),
        of(Attrs::new().with("epsilon", 1e-2_f32), &[2, 3, 4], &[4]),
        of(Attrs::new().with("axis", -1), &[2, 2, 3, 4], &[4]),
    ]
}
