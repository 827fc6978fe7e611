//! `GroupNormalization`: channels in groups, each group of each sample normalised, then a scale and a bias, per channel (opset
//! 21) or per group (opset 18). And `InstanceNormalization`, where every channel is its own group.

use super::batch_norm_train::{channel_reduce, per_channel};
use super::decompose::{Composite, extent, one, refuse_if, type_of, unfit};
use super::layer_normalization::{moments, stash};
use super::rms_normalization::wide;
use super::sample::floats;
use super::*;

pub(super) const GROUP: Composite = Composite {
    domain: "",
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
    form: "ReduceMean, Sub, Sqrt, Div, Mul, Add",
    decompose: grouped,
    samples: || {
        let of = |groups: i64, x: &[i64], parameters: i64, opset: i64| {
            let attrs = Attrs::new().with("num_groups", groups);
            Sample::of("", attrs, vec![floats(x), floats(&[parameters]), floats(&[parameters])]).at(opset)
        };
        vec![
            of(2, &[2, 4, 3, 3], 2, 18),
            of(3, &[2, 3, 4], 3, 18),
            of(1, &[3, 4, 2], 1, 18),
            of(2, &[2, 4, 3, 3], 4, 21),
            of(2, &[2, 6, 5], 6, 21),
        ]
    },
};

/// (x − mean) / √(var + ε) over each group of channels, then scale and bias: of each group before opset 21, of each channel since.
fn grouped(b: &mut Builder, s: &Source) -> Decomposed {
    let (x, scale, bias) = (s.need(0)?, s.need(1)?, s.need(2)?);
    let groups = s.op.int("num_groups");
    let ty = type_of(b, x)?;
    let channels = extent(b, x, 1)?;
    refuse_if(groups < 1 || channels % groups != 0, unfit(format!("has {channels} channels in {groups} groups")))?;
    let rest = ty.shape[2..].iter().fold(Dim::from(channels / groups), |p, d| &p * d);
    let exact = b.cast(x, wide(s.op.int("stash_type"), ty.dtype))?;
    let grouped = b.reshape(exact, &[0, groups, -1], &[ty.shape[0].clone(), Dim::from(groups), rest])?;
    let mean = b.reduce("ReduceMean", grouped, &[2], true)?;
    let centred = b.sub(grouped, mean)?;
    let square = b.mul(centred, centred)?;
    let var = b.reduce("ReduceMean", square, &[2], true)?;
    let shifted = b.shift(var, s.op.float("epsilon") as f64)?;
    let deviation = b.sqrt(shifted)?;
    let unit = b.div(centred, deviation)?;
    let unit = b.cast(unit, ty.dtype)?;
    if s.opset < 21 {
        let y = scale_and_shift(b, unit, scale, bias, groups, 1)?;
        return one(b.reshape_like(y, x));
    }
    let unit = b.reshape_like(unit, x)?;
    one(scale_and_shift(b, unit, scale, bias, channels, ty.rank() - 2))
}

/// x · scale + bias, both one value for each of the `n` extents that `trailing` axes follow.
fn scale_and_shift(b: &mut Builder, x: ValueId, scale: ValueId, bias: ValueId, n: i64, trailing: usize) -> Built {
    let mut dims = vec![n];
    dims.resize(trailing + 1, 1);
    let shape: Vec<Dim> = dims.iter().map(|d| Dim::from(*d)).collect();
    let scale = b.reshape(scale, &dims, &shape)?;
    let bias = b.reshape(bias, &dims, &shape)?;
    let y = b.mul(x, scale)?;
    b.add(y, bias)
}

pub(super) struct InstanceNormalization;

impl OpRule for InstanceNormalization {
    fn name(&self) -> &'static str {
        "InstanceNormalization"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let x = cx.ty(0)?;
        cx.require(x.rank() >= 3, || format!("{x} has no spatial axes"))?;
        like_first(cx)
    }
    /// With g = ȳ ⊙ scale, x̂ and s of each channel, and means over a channel: x̄ = s (g − mean(g) − x̂ mean(g ⊙ x̂)); the
    /// scale's and the bias' cotangents are ȳ ⊙ x̂ and ȳ summed over all they apply to.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        let op = p.op();
        let (x, x_ty) = (p.operand(0)?, p.ty(0)?);
        let Some(channels) = x_ty.shape[1].known() else {
            return Err(p.unsupported("the number of channels is symbolic"));
        };
        let wide = stash(&op, x_ty.dtype);
        let ct = p.b.cast(ct, wide)?;
        let down = |p: &mut Pullback, i: usize, v: ValueId| -> Result<(), GradError> {
            let sum = channel_reduce(p.b, "ReduceSum", v)?;
            let sum = p.b.cast(sum, x_ty.dtype)?;
            p.accumulate(i, sum)
        };
        if p.wants(2) {
            down(p, 2, ct)?;
        }
        if !p.wants(0) && !p.wants(1) {
            return Ok(());
        }
        let elements = x_ty.shape[2..].iter().fold(Dim::from(1), |a, d| &a * d);
        let rows_of = [x_ty.shape[0].clone(), Dim::from(channels), elements];
        let by_channel = |p: &mut Pullback, v: ValueId| p.b.reshape(v, &[0, channels, -1], &rows_of);
        let x_wide = p.b.cast(x, wide)?;
        let rows = by_channel(p, x_wide)?;
        let [_, centred, inverse] = moments(p.b, rows, &[2], op.float("epsilon") as f64)?;
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
        let scale = p.b.cast(scale, wide)?;
        let scale = per_channel(p.b, scale, x_ty.rank())?;
        let scaled = p.b.mul(ct, scale)?;
        let scaled = by_channel(p, scaled)?;
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
