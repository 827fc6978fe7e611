//! `GroupNormalization` normalises each group of channels of each sample, then applies a scale and a bias, per channel (opset 21)
//! or per group (opset 18). In `InstanceNormalization` every channel is its own group.

use super::batch_norm_train::channel_reduce;
use super::layer_normalization::{moments, stash};
use super::rms_normalization::wide;
use super::*;

pub(super) const GROUP: Row = Row {
    name: "GroupNormalization",
    infer: |cx| {
        let groups = cx.op.int("num_groups");
        let x = cx.ty(0)?;
        cx.require(x.rank() >= 2, || format!("{x} has no channel axis"))?;
        cx.require(groups > 0, || "`num_groups` is missing".into())?;
        if let Some(c) = x.shape[1].known() {
            cx.require(c % groups == 0, || format!("{c} channels do not make {groups} groups"))?;
        }
        like_first(cx)
    },
    derivative: Derivative::Decompose("ReduceMean, Sub, Sqrt, Div, Mul, Add"),
    decompose: grouped,
    samples: || {
        let of = |groups: i64, x: &[i64], parameters: i64, opset: i64| {
            let attrs = Attrs::new().with("num_groups", groups);
            sample(attrs, vec![floats(x), floats(&[parameters]), floats(&[parameters])]).at(opset)
        };
        vec![
            of(2, &[2, 4, 3, 3], 2, 18),
            of(3, &[2, 3, 4], 3, 18),
            of(1, &[3, 4, 2], 1, 18),
            of(2, &[2, 4, 3, 3], 4, 21),
            of(2, &[2, 6, 5], 6, 21),
        ]
    },
    ..ROW
};

/// (x − mean) / √(var + ε) over each group of channels, then scale and bias.
fn grouped(b: &mut Builder, s: &Source) -> Decomposed {
    let (x, scale, bias) = (s.need(0)?, s.need(1)?, s.need(2)?);
    let groups = s.op.int("num_groups");
    let ty = type_of(b, x)?;
    let channels = extent(b, x, 1)?;
    refuse_if(
        groups < 1 || channels % groups != 0,
        unfit(format!("has {channels} channels, which {groups} groups do not divide")),
    )?;
    let rest = ty.shape[2..].iter().fold(Dim::from(channels / groups), |p, d| &p * d);
    let exact = b.cast(x, wide(s.op.int("stash_type"), ty.dtype))?;
    let grouped = b.reshape(exact, &[0, groups, -1], &[ty.shape[0].clone(), Dim::from(groups), rest])?;
    let epsilon = s.op.float("epsilon") as f64;
    let unit = formula(b, [grouped], |[x]| {
        let centred = x - x.over("ReduceMean", &[2]);
        let var = (centred * centred).over("ReduceMean", &[2]);
        (centred / (var + epsilon).sqrt()).cast(ty.dtype)
    })?;
    if s.opset < 21 {
        let y = scale_and_shift(b, unit, scale, bias, groups, 1)?;
        return one(b.reshape_like(y, x));
    }
    let unit = b.reshape_like(unit, x)?;
    one(scale_and_shift(b, unit, scale, bias, channels, ty.rank() - 2))
}

/// x · scale + bias, both [n], over an axis that `trailing` axes follow.
fn scale_and_shift(b: &mut Builder, x: ValueId, scale: ValueId, bias: ValueId, n: i64, trailing: usize) -> Built {
    let mut dims = vec![n];
    dims.resize(trailing + 1, 1);
    let shape: Vec<Dim> = dims.iter().map(|d| Dim::from(*d)).collect();
    let scale = b.reshape(scale, &dims, &shape)?;
    let bias = b.reshape(bias, &dims, &shape)?;
    let y = b.mul(x, scale)?;
    b.add(y, bias)
}

pub(super) const INSTANCE_NORMALIZATION: Row = Row {
    name: "InstanceNormalization",
    infer: |cx| {
        let x = cx.ty(0)?;
        cx.require(x.rank() >= 3, || format!("{x} has no spatial axes"))?;
        for parameters in [cx.ty(1)?, cx.ty(2)?] {
            cx.require(parameters.rank() == 1, || format!("{parameters} is not one number a channel"))?;
        }
        like_first(cx)
    },
    // With g = ȳ ⊙ scale, x̂ and s of each channel, and means over a channel: x̄ = s (g − mean(g) − x̂ mean(g ⊙ x̂)); the
    // cotangents of scale and bias are ȳ ⊙ x̂ and ȳ, summed over all elements of a channel.
    pullback: |p| {
        let ct = p.ct(0)?;
        let op = p.op();
        let (x, x_ty) = (p.operand(0)?, p.ty(0)?);
        let Some(channels) = x_ty.shape.get(1).and_then(Dim::known) else {
            return Err(p.unsupported("the number of channels is not known"));
        };
        let wide = stash(&op, x_ty.dtype);
        let ct = p.b.cast(ct, wide)?;
        let down = |p: &mut Pullback, i: usize, v: ValueId| -> Result<(), GradError> {
            let sum = channel_reduce(p.b, "ReduceSum", v)?;
            p.give(i, |b| b.cast(sum, x_ty.dtype))
        };
        if p.wants(2) {
            down(p, 2, ct)?;
        }
        if !p.wants(0) && !p.wants(1) {
            return Ok(());
        }
        let elements = product(&x_ty.shape[2..]);
        let rows_of = [x_ty.shape[0].clone(), Dim::from(channels), elements];
        let by_channel = |p: &mut Pullback, v: ValueId| p.b.reshape(v, &[0, channels, -1], &rows_of);
        let x_wide = p.b.cast(x, wide)?;
        let rows = by_channel(p, x_wide)?;
        let epsilon = op.float("epsilon") as f64;
        let [normal, inverse] = formulas(p.b, [rows], |[rows]| {
            let [centred, inverse] = moments(rows, &[2], epsilon);
            [centred * inverse, inverse]
        })?;
        if p.wants(1) {
            let weighted = formula(p.b, [ct, normal, x], |[ct, normal, x]| ct * normal.reshape_like(x))?;
            down(p, 1, weighted)?;
        }
        if !p.wants(0) {
            return Ok(());
        }
        let (scale, rank) = (p.operand(1)?, x_ty.rank());
        let scaled = formula(p.b, [scale, ct], |[scale, ct]| ct * scale.cast(wide).per_channel(rank))?;
        let scaled = by_channel(p, scaled)?;
        p.give(0, |b| {
            formula(b, [scaled, normal, inverse, x], |[scaled, normal, inverse, x]| {
                let mean = scaled.over("ReduceMean", &[2]);
                let slope = (scaled * normal).over("ReduceMean", &[2]);
                ((scaled - (normal * slope + mean)) * inverse).reshape_like(x).cast(x_ty.dtype)
            })
        })
    },
    samples: || {
        let of = |x: &[i64], attrs: Attrs| sample(attrs, vec![floats(x), floats(&[x[1]]), floats(&[x[1]])]);
        vec![
            of(&[2, 3, 4, 3], Attrs::new()),
            of(&[2, 2, 6], Attrs::new().with("epsilon", 1e-2_f32)),
            of(&[1, 2, 2, 3, 2], Attrs::new()),
        ]
    },
    ..ROW
};
