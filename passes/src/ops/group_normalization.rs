//! `GroupNormalization`: channels in groups, each group of each sample normalised, then a scale and a bias, per channel (opset
//! 21) or per group (opset 18). And `InstanceNormalization`, where every channel is its own group.

use super::batch_norm_train::{channel_reduce, per_channel};
use super::layer_normalization::{moments, stash};
use super::sample::floats;
use super::*;

pub(super) struct GroupNormalization;
pub(super) struct InstanceNormalization;

impl OpRule for GroupNormalization {
    fn name(&self) -> &'static str {
        "GroupNormalization"
    }
    fn since(&self) -> i64 {
        18
    }
    fn infer(&self, cx: &Infer) -> Types {
        let groups = cx.attrs().int("num_groups", 0);
        let x = cx.ty(0)?;
        cx.require(x.rank() >= 2, || format!("{x} has no channel axis"))?;
        cx.require(groups > 0, || "`num_groups` is missing".into())?;
        if let Some(c) = x.shape[1].known() {
            cx.require(c % groups == 0, || format!("{c} channels do not make {groups} groups"))?;
        }
        like_first(cx)
    }
    /// See [`pullback`].
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let groups = p.attrs().int("num_groups", 1);
        pullback(p, groups)
    }
    fn samples(&self) -> Vec<Sample> {
        let of = |groups: i64, x: &[i64], parameters: i64, opset: i64| {
            let attrs = Attrs::new().with("num_groups", groups);
            Sample::of("GroupNormalization", attrs, vec![floats(x), floats(&[parameters]), floats(&[parameters])]).at(opset)
        };
        vec![
            of(2, &[2, 4, 3, 3], 2, 18),
            of(3, &[2, 3, 4], 3, 18),
            of(1, &[3, 4, 2], 1, 18),
            of(2, &[2, 4, 3, 3], 4, 21),
            of(2, &[2, 6, 5], 6, 21),
        ]
    }
}

impl OpRule for InstanceNormalization {
    fn name(&self) -> &'static str {
        "InstanceNormalization"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        let x = cx.ty(0)?;
        cx.require(x.rank() >= 3, || format!("{x} has no spatial axes"))?;
        like_first(cx)
    }
    /// See [`pullback`].
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let Some(channels) = p.ty(0)?.shape[1].known() else {
            return Err(p.unsupported("the number of channels is symbolic"));
        };
        pullback(p, channels)
    }
    fn samples(&self) -> Vec<Sample> {
        let of = |x: &[i64], attrs: Attrs| {
            Sample::of("InstanceNormalization", attrs, vec![floats(x), floats(&[x[1]]), floats(&[x[1]])])
        };
        vec![
            of(&[2, 3, 4, 3], Attrs::new()),
            of(&[2, 2, 6], Attrs::new().with("epsilon", 1e-2_f32)),
            of(&[1, 2, 2, 3, 2], Attrs::new()),
        ]
    }
}

/// With g = ȳ ⊙ scale, x̂ and s of each group, and means over a group: x̄ = s (g − mean(g) − x̂ mean(g ⊙ x̂)); the scale's and
/// the bias' cotangents are ȳ ⊙ x̂ and ȳ summed over all they apply to.
fn pullback(p: &mut Pullback, groups: i64) -> Result<(), GradError> {
    let ct = p.ct(0)?;
    let attrs = p.attrs();
    let (x, x_ty) = (p.operand(0)?, p.ty(0)?);
    let wide = stash(&attrs, x_ty.dtype);
    let rank = x_ty.rank();
    let per_group = p.ty(1)?.shape[0] != x_ty.shape[1];
    let size = match x_ty.shape[1].div_exact(&Dim::from(groups)).and_then(|d| d.known()) {
        Some(size) => size,
        None => return Err(p.unsupported("the number of channels is symbolic")),
    };
    let ct = p.b.cast(ct, wide)?;
    // A sum per channel, further summed where one number serves a whole group.
    let down = |p: &mut Pullback, i: usize, v: ValueId| -> Result<(), GradError> {
        let mut sum = channel_reduce(p.b, "ReduceSum", v)?;
        if per_group {
            let split = p.b.reshape(sum, &[groups, size], &[Dim::from(groups), Dim::from(size)])?;
            sum = p.b.reduce_sum(split, &[1], false)?;
        }
        let sum = p.b.cast(sum, x_ty.dtype)?;
        p.accumulate(i, sum)
    };
    if p.wants(2) {
        down(p, 2, ct)?;
    }
    if !p.wants(0) && !p.wants(1) {
        return Ok(());
    }
    let elements = x_ty.shape[2..].iter().fold(Dim::from(size), |a, d| &a * d);
    let grouped = [x_ty.shape[0].clone(), Dim::from(groups), elements];
    let by_group = |p: &mut Pullback, v: ValueId| p.b.reshape(v, &[0, groups, -1], &grouped);
    let x_wide = p.b.cast(x, wide)?;
    let rows = by_group(p, x_wide)?;
    let [_, centred, inverse] = moments(p.b, rows, &[2], attrs.float("epsilon", 1e-5) as f64)?;
    let normal = p.b.mul(centred, inverse)?;
    if p.wants(1) {
        let whole = p.b.reshape_like(normal, x)?;
        let weighted = p.b.mul(ct, whole)?;
        down(p, 1, weighted)?;
    }
    if !p.wants(0) {
        return Ok(());
    }
    let scale = p.operand(1)?;
    let mut scale = p.b.cast(scale, wide)?;
    if per_group {
        let column = p.b.unsqueeze(scale, &[1])?;
        let target = p.b.ints(&[groups, size]);
        let spread = p.b.op("Expand", &[column, target])?;
        scale = p.b.reshape(spread, &[groups * size], &[Dim::from(groups * size)])?;
    }
    let scale = per_channel(p.b, scale, rank)?;
    let scaled = p.b.mul(ct, scale)?;
    let scaled = by_group(p, scaled)?;
    let mean = p.b.reduce("ReduceMean", scaled, &[2], true)?;
    let products = p.b.mul(scaled, normal)?;
    let slope = p.b.reduce("ReduceMean", products, &[2], true)?;
    let projection = p.b.mul(normal, slope)?;
    let projection = p.b.add(projection, mean)?;
    let rest = p.b.sub(scaled, projection)?;
    let term = p.b.mul(rest, inverse)?;
    let term = p.b.reshape_like(term, x)?;
    let term = p.b.cast(term, x_ty.dtype)?;
    p.accumulate(0, term)
}
