//! `LRN`: y = x · d^−β with d = bias + α · (mean of x² over `size` neighbouring channels, zeros beyond the ends).

use super::sample::floats;
use super::*;

pub(super) struct Lrn;

impl OpRule for Lrn {
    fn name(&self) -> &'static str {
        "LRN"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let x = cx.ty(0)?;
        cx.require(x.rank() >= 2, || format!("{x} has no channel axis"))?;
        cx.require(cx.op.int("size") > 0, || "`size` is missing".into())?;
        like_first(cx)
    }
    /// x̄ = u − 2 α β x · mean(u ⊙ x / d) with u = ȳ d^−β, the mean over the channels whose windows hold this one.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (ct, x, x_ty) = (p.ct(0)?, p.operand(0)?, p.ty(0)?);
        let op = p.op();
        let alpha = op.float("alpha") as f64;
        let beta = op.float("beta") as f64;
        let size = op.int("size");
        let (before, after) = ((size - 1) / 2, size / 2);
        let squares = p.b.mul(x, x)?;
        let mean = neighbours(p, squares, size, before, after)?;
        let scaled = p.b.scale(mean, alpha)?;
        let divisor = p.b.shift(scaled, op.float("bias") as f64)?;
        let exponent = p.b.scalar(x_ty.dtype, -beta);
        let power = p.b.op("Pow", &[divisor, exponent])?;
        let own = p.b.mul(ct, power)?;
        let inner = p.b.mul(own, x)?;
        let inner = p.b.div(inner, divisor)?;
        let others = neighbours(p, inner, size, after, before)?;
        let others = p.b.mul(others, x)?;
        let others = p.b.scale(others, 2.0 * alpha * beta)?;
        let term = p.b.sub(own, others)?;
        p.accumulate(0, term)
    }
    fn samples(&self) -> Vec<Sample> {
        let of = |size: i64, x: &[i64]| {
            let attrs = Attrs::new().with("size", size).with("alpha", 0.3_f32).with("beta", 0.6_f32).with("bias", 1.5_f32);
            Sample::of("LRN", attrs, vec![floats(x)])
        };
        vec![of(3, &[2, 5, 3, 2]), of(5, &[1, 6, 2, 2]), of(1, &[1, 2, 2, 2])]
    }
}

/// The mean over neighbouring channels: an average pool with the channels as a spatial axis.
fn neighbours(p: &mut Pullback, v: ValueId, size: i64, before: i64, after: i64) -> Result<ValueId, GradError> {
    let ty = p.b.ty(v)?;
    let Some(channels) = ty.shape[1].known() else {
        return Err(p.unsupported("the number of channels is symbolic"));
    };
    let area = ty.shape[2..].iter().fold(Dim::from(1), |a, d| &a * d);
    let plane = [ty.shape[0].clone(), Dim::from(1), Dim::from(channels), area];
    // In a `Reshape`, 0 copies an extent.
    let target = p.b.ints(&[0, 1, channels, -1]);
    let spread = p.b.reshape_dynamic(v, target, &plane)?;
    let attrs = Attrs::new()
        .with("kernel_shape", vec![size, 1])
        .with("pads", vec![before, 0, after, 0])
        .with("count_include_pad", 1);
    let pooled = p.b.op_with("AveragePool", attrs, &[spread])?;
    Ok(p.b.reshape_like(pooled, v)?)
}
