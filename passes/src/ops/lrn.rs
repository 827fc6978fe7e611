//! `LRN`: y = x · d^−β with d = bias + α · (mean of x² over `size` neighbouring channels, zeros beyond the ends).

use super::*;

pub(super) const LRN: Row = Row {
    name: "LRN",
    infer: |cx| {
        let x = cx.ty(0)?;
        cx.require(x.rank() >= 2, || format!("{x} has no channel axis"))?;
        cx.require(cx.op.int("size") > 0, || "`size` is missing".into())?;
        like_first(cx)
    },
    // x̄ = u − 2 α β x · mean(u ⊙ x / d) with u = ȳ d^−β, the mean over the channels whose windows hold the channel.
    pullback: |p| {
        let (ct, x, op) = (p.ct(0)?, p.operand(0)?, p.op());
        let [alpha, beta, bias] = ["alpha", "beta", "bias"].map(|name| f64::from(op.float(name)));
        let size = op.int("size");
        let Some(channels) = p.ty(0)?.shape[1].known() else {
            return Err(p.unsupported("the number of channels is symbolic"));
        };
        let (before, after) = ((size - 1) / 2, size / 2);
        p.give(0, |b| {
            formula(b, [x, ct], |[x, ct]| {
                let divisor = neighbours(x * x, channels, size, [before, after]) * alpha + bias;
                let own = ct * divisor.power(-beta);
                own - neighbours(own * x / divisor, channels, size, [after, before]) * x * (2.0 * alpha * beta)
            })
        })
    },
    samples: || {
        let of = |size: i64, x: &[i64]| {
            let attrs = Attrs::new().with("size", size).with("alpha", 0.3_f32).with("beta", 0.6_f32).with("bias", 1.5_f32);
            sample(attrs, vec![floats(x)])
        };
        vec![of(3, &[2, 5, 3, 2]), of(5, &[1, 6, 2, 2]), of(1, &[1, 2, 2, 2])]
    },
    ..ROW
};

/// The mean over neighbouring channels: an average pool with the channels as a spatial axis.
fn neighbours<'f>(v: Term<'f>, channels: i64, size: i64, [before, after]: [i64; 2]) -> Term<'f> {
    v.then(|b, v| {
        let ty = b.ty(v)?;
        let plane = [ty.shape[0].clone(), Dim::from(1), Dim::from(channels), product(&ty.shape[2..])];
        // In a `Reshape`, 0 copies an extent.
        let target = b.ints(&[0, 1, channels, -1]);
        let spread = b.reshape_dynamic(v, target, &plane)?;
        let attrs = Attrs::new()
            .with("kernel_shape", vec![size, 1])
            .with("pads", vec![before, 0, after, 0])
            .with("count_include_pad", 1);
        let pooled = b.op_with("AveragePool", attrs, &[spread])?;
        b.reshape_like(pooled, v)
    })
}
