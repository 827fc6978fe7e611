//! `Conv`: y = x ∗ w + bias over 1, 2, 3 or more spatial axes, in groups.
//!
//! The [`Target`]'s costs choose the operators of the gradients. All of them have kernels on every provider.

use super::batch_norm_train::channel_reduce;
use super::blocks;
use super::conv_weight::weight_cotangent;
use super::window::{Window, crop_like};
use super::*;

pub(super) const CONV: Row = Row {
    name: "Conv",
    infer: |cx| {
        let (x, w) = (cx.ty(0)?, cx.ty(1)?);
        cx.require(x.rank() >= 3 && x.rank() == w.rank(), || format!("{x} and weight {w} do not make a convolution"))?;
        cx.require(x.dtype == w.dtype, || format!("element types {} and {} differ", x.dtype, w.dtype))?;
        let group = cx.op.int("group");
        if let (Some(c), Some(per_group)) = (x.shape[1].known(), w.shape[1].known()) {
            cx.require(x.shape[1] == &w.shape[1] * &Dim::from(group), || {
                format!("{x} has {c} channels where {group} groups of {per_group} are needed")
            })?;
        }
        typed::convolved(cx, 1, |_| Ok(x.dtype))
    },
    // x̄ = ȳ ∗ᵀ w (see [`input_gradient`]), w̄ = Σ_n correlation of x and ȳ (see [`weight_cotangent`]), bias: Σ ȳ. Where ȳ is
    // z · g with a number g for each channel, they are z ∗ᵀ (w · g), (Σ_n correlation of x and z) · g and g Σ z.
    pullback: |p| {
        let (x, w, group) = (p.operand(0)?, p.operand(1)?, p.op().int("group"));
        let whole = p.ct(0)?;
        let (ct, gain) = channel_gain(p.b, whole, w)?.map_or((whole, None), |(ct, gain)| (ct, Some(gain)));
        let scaled = |b: &mut Builder, v: ValueId| -> Built {
            let Some(gain) = gain else { return Ok(v) };
            let last = b.ty(gain)?.rank() as i64;
            let gain = b.unsqueeze(gain, &[last])?;
            b.mul(v, gain)
        };
        let window = p.told(|cx| Window::of(cx, Some(1))?.padded())?;
        p.give(0, |b| {
            let w = b.weight_again(w, ct)?;
            let w = scaled(b, w)?;
            input_gradient(b, ct, w, x, &window, group)
        })?;
        p.give(1, |b| {
            let term = weight_cotangent(b, x, ct, w, &window, group)?;
            scaled(b, term)
        })?;
        p.give(2, |b| {
            let sum = channel_reduce(b, "ReduceSum", ct)?;
            let Some(gain) = gain else { return Ok(sum) };
            let axes: Vec<i64> = (1..b.ty(gain)?.rank() as i64).collect();
            let gain = b.squeeze(gain, &axes)?;
            b.mul(sum, gain)
        })
    },
    samples: || {
        let of = |attrs: Attrs, x: &[i64], w: &[i64]| sample(attrs, vec![floats(x), floats(w)]);
        let a = Attrs::new;
        let two = |v: i64| vec![v, v];
        let four = |v: i64| vec![v; 4];
        vec![
            sample(a().with("pads", four(1)), vec![floats(&[2, 3, 5, 5]), floats(&[4, 3, 3, 3]), floats(&[4])]),
            of(a().with("kernel_shape", two(3)).with("pads", four(1)), &[2, 4, 24, 22], &[3, 4, 3, 3]),
            of(a(), &[2, 3, 5, 4], &[4, 3, 3, 2]),
            of(a().with("strides", two(2)).with("pads", four(1)), &[2, 3, 6, 7], &[4, 3, 3, 3]),
            of(a().with("strides", two(2)).with("pads", four(3)), &[1, 3, 9, 8], &[2, 3, 7, 7]),
            of(a().with("strides", two(2)).with("pads", four(1)), &[2, 9, 6, 7], &[4, 9, 3, 3]),
            of(a().with("strides", two(3)), &[2, 3, 6, 6], &[4, 3, 3, 3]),
            of(a().with("strides", vec![2, 1]).with("dilations", vec![1, 2]), &[2, 8, 7, 8], &[3, 8, 3, 3]),
            of(a().with("dilations", two(2)).with("pads", four(2)), &[1, 2, 6, 6], &[3, 2, 3, 3]),
            of(a().with("pads", vec![0, 1, 2, 0]), &[1, 2, 5, 6], &[3, 2, 3, 3]),
            of(a().with("pads", vec![0, 1, 2, 0]).with("strides", two(2)), &[1, 2, 6, 6], &[3, 2, 3, 3]),
            of(a().with("auto_pad", "SAME_UPPER").with("strides", two(2)), &[1, 2, 6, 7], &[3, 2, 3, 3]),
            of(a().with("auto_pad", "SAME_LOWER"), &[1, 2, 4, 5], &[3, 2, 2, 2]),
            of(a().with("auto_pad", "VALID"), &[1, 2, 4, 5], &[3, 2, 2, 2]),
            of(a(), &[2, 3, 4, 4], &[5, 3, 1, 1]),
            of(a(), &[2, 30, 1, 1], &[30, 30, 1, 1]),
            of(a().with("strides", two(2)), &[2, 3, 5, 6], &[5, 3, 1, 1]),
            of(a().with("group", 2), &[2, 4, 4, 4], &[6, 2, 1, 1]),
            of(a().with("group", 2).with("pads", four(1)), &[2, 4, 4, 4], &[6, 2, 3, 3]),
            of(a().with("group", 2).with("pads", four(1)).with("strides", two(2)), &[2, 16, 5, 4], &[4, 8, 3, 3]),
            of(a().with("group", 4).with("pads", four(1)), &[2, 4, 5, 5], &[4, 1, 3, 3]),
            of(a().with("group", 4).with("pads", four(1)).with("strides", two(2)), &[2, 4, 5, 6], &[4, 1, 3, 3]),
            of(a().with("group", 3).with("pads", four(1)), &[2, 3, 5, 5], &[6, 1, 3, 3]),
            of(a().with("group", 4).with("pads", four(2)), &[1, 4, 6, 6], &[4, 1, 5, 5]),
            of(a().with("group", 4), &[2, 4, 5, 4], &[4, 1, 2, 2]),
            of(a().with("pads", vec![1, 1]), &[2, 3, 7], &[4, 3, 3]),
            of(a().with("strides", vec![2]), &[2, 3, 8], &[4, 3, 3]),
            of(a().with("pads", vec![1; 6]), &[1, 2, 3, 4, 3], &[2, 2, 3, 3, 3]),
            of(a().with("strides", vec![2; 3]), &[1, 2, 4, 5, 4], &[2, 2, 2, 2, 2]),
            of(a().with("strides", two(4)), &[2, 3, 8, 8], &[6, 3, 4, 4]),
            // The weight's gradient by shifts of both operands: extents kept, not kept, kept in part, one axis and three.
            of(a().with("pads", four(1)), &[2, 8, 5, 4], &[3, 8, 3, 3]),
            of(a().with("pads", four(2)).with("dilations", two(2)), &[2, 8, 5, 4], &[3, 8, 3, 3]),
            of(a().with("pads", vec![1, 2, 0, 2]), &[2, 8, 4, 5], &[3, 8, 3, 5]),
            of(a().with("pads", vec![0, 1, 2, 0]), &[2, 8, 4, 5], &[3, 8, 3, 3]),
            of(a().with("pads", vec![0, 1, 0, 1]), &[2, 8, 3, 4], &[3, 8, 1, 3]),
            of(a().with("pads", vec![2, 2]).with("dilations", vec![2]), &[2, 8, 6], &[3, 8, 3]),
            of(a().with("pads", vec![1; 6]), &[2, 8, 3, 2, 3], &[2, 8, 3, 3, 3]),
            of(a().with("pads", four(2)), &[1, 2, 3, 3], &[2, 2, 2, 2]),
            // The weight's gradient by one convolution: many taps in a row, strided, in groups.
            of(a().with("pads", vec![3, 0]), &[2, 3, 24], &[4, 3, 20]),
            of(a().with("strides", two(2)), &[2, 3, 8, 9], &[4, 3, 5, 5]),
            of(a().with("group", 2).with("dilations", vec![2]), &[2, 4, 40], &[6, 2, 16]),
            // Channels that fill blocks: all together, few of the input's, one by one.
            sample(a().with("pads", four(1)), vec![floats(&[2, 16, 5, 4]), floats(&[32, 16, 3, 3]), floats(&[32])]),
            of(a().with("strides", two(2)).with("pads", vec![0, 1, 2, 1]), &[2, 16, 6, 7], &[16, 16, 3, 3]),
            of(a().with("pads", two(2)).with("dilations", vec![2]), &[2, 16, 9], &[16, 16, 3]),
            of(a().with("auto_pad", "SAME_UPPER").with("strides", two(2)), &[2, 3, 7, 6], &[16, 3, 3, 3]),
            of(a().with("group", 16).with("pads", four(1)), &[2, 16, 5, 4], &[16, 1, 3, 3]),
            of(a().with("group", 16).with("pads", four(2)).with("strides", two(2)), &[2, 16, 6, 7], &[16, 1, 5, 5]),
            of(a().with("group", 16).with("pads", vec![0, 1, 1, 0]).with("strides", two(2)), &[2, 16, 6, 8], &[16, 1, 3, 3]),
            of(a().with("group", 16).with("strides", two(3)).with("dilations", two(2)), &[2, 16, 9, 8], &[16, 1, 3, 3]),
            of(a().with("group", 16).with("pads", four(2)).with("dilations", two(2)), &[2, 16, 5, 6], &[16, 1, 3, 3]),
            of(a().with("group", 16).with("pads", vec![0, 1, 2, 0]), &[1, 16, 4, 6], &[16, 1, 2, 3]),
            of(a().with("group", 16).with("pads", two(2)), &[2, 16, 9], &[16, 1, 5]),
            of(a().with("group", 16).with("pads", two(2)).with("strides", vec![2]), &[3, 16, 9], &[16, 1, 5]),
            of(a().with("group", 16), &[2, 16, 5, 4], &[32, 1, 3, 3]),
        ]
    },
    ..ROW
};

/// The cotangent of a convolution's input, of `like`'s shape.
///
/// At stride 1 it is a `Conv` of ȳ with the weight's channels swapped and its taps reversed, if that copy of the weight is small
/// beside the activations or the groups have single channels: the forward kernel avoids the scatter of `ConvTranspose`, which
/// runs on one thread. Otherwise it is `ConvTranspose` with symmetric pads, since CUDA has no kernel for others; the rest is cropped.
pub(super) fn input_gradient(b: &mut Builder, ct: ValueId, w: ValueId, like: ValueId, window: &Window, group: i64) -> Built {
    let (w_ty, like_ty) = (b.ty(w)?, b.ty(like)?);
    let rank = window.rank();
    let fits = (0..rank).all(|i| window.begin[i] < window.reach(i) && window.end[i] < window.reach(i));
    let cheap = w_ty.shape[1].is_one() || window.taps() == 1 || is_small(b, &w_ty, &b.ty(ct)?, &like_ty);
    if b.target.reversed_weight > 0 && !window.is_strided() && fits && cheap {
        let begin = (0..rank).map(|i| window.reach(i) - 1 - window.begin[i]).collect();
        let end = (0..rank).map(|i| window.reach(i) - 1 - window.end[i]).collect();
        return reversed(b, ct, w, window, [begin, end], group);
    }
    // `Resize` needs no region from opset 13 on.
    if w_ty.shape[1].is_one()
        && b.opset() >= 13
        && window.strides == [2, 2]
        && like_ty.shape[1] == w_ty.shape[0]
        && blocks::fill(b, &like_ty.shape[1], like_ty.dtype)
        && let Some(gradient) = spread(b, ct, w, like, window, group)?
    {
        return Ok(gradient);
    }
    transposed(b, ct, w, like, window, group)
}

/// At stride 2, the same as a `Conv` of ȳ with zeros between its cells, for groups of single channels, whose convolutions cost little;
/// `None` where extents are symbolic or padding would have to be negative. ȳ is enlarged, for which there is a fast kernel, and masked.
fn spread(
    b: &mut Builder,
    ct: ValueId,
    w: ValueId,
    like: ValueId,
    window: &Window,
    group: i64,
) -> Result<Option<ValueId>, BuildError> {
    /// No image that is trained on has longer sides.
    const LONGEST_MASK: usize = 1 << 16;
    let (ct_ty, like_ty) = (b.ty(ct)?, b.ty(like)?);
    let numbers = |ty: &TensorType| ty.shape[2..].iter().map(Dim::known).collect::<Option<Vec<i64>>>();
    let Some((windows, image)) = numbers(&ct_ty).zip(numbers(&like_ty)) else { return Ok(None) };
    let begin: Vec<i64> = (0..window.rank()).map(|i| window.reach(i) - 1 - window.begin[i]).collect();
    let end: Vec<i64> =
        (0..window.rank()).map(|i| (image[i] + window.begin[i]).saturating_sub(windows[i].saturating_mul(2))).collect();
    let large: Option<Vec<usize>> = windows.iter().map(|n| eval::places::count(&[*n, 2], LONGEST_MASK)).collect();
    let Some(large) = large.filter(|_| begin.iter().chain(&end).all(|p| *p >= 0)) else { return Ok(None) };
    let scales = b.constant("const/scales", Tensor::f32s(&[4], &[1.0, 1.0, 2.0, 2.0]));
    let nearest = [("mode", "nearest"), ("coordinate_transformation_mode", "asymmetric"), ("nearest_mode", "floor")];
    let attrs = nearest.iter().fold(Attrs::new(), |attrs, (name, value)| attrs.with(name, *value));
    let enlarged = b.node(Op::new("Resize", attrs), &[Some(ct), None, Some(scales)])?[0];
    // The runtime multiplies the two when it opens the graph; the file holds a row and a column.
    let mut every_second = |cells: usize, dims: [i64; 4]| {
        let first: Vec<f64> = (0..cells).map(|i| f64::from(u8::from(i.is_multiple_of(2)))).collect();
        b.constant("const/every_second", Tensor::floats(ct_ty.dtype, &dims, &first))
    };
    let rows = every_second(large[0], [1, 1, large[0] as i64, 1]);
    let columns = every_second(large[1], [1, 1, 1, large[1] as i64]);
    let mask = b.mul(rows, columns)?;
    let spread = b.mul(enlarged, mask)?;
    Ok(Some(reversed(b, spread, w, window, [begin, end], group)?))
}

/// ȳ, padded, with the weight's taps reversed and its channels swapped.
fn reversed(b: &mut Builder, ct: ValueId, w: ValueId, window: &Window, pads: [Vec<i64>; 2], group: i64) -> Built {
    let reversed = adjoint_weight(b, w, group)?;
    let attrs = Attrs::new()
        .with("kernel_shape", window.kernel.clone())
        .with("dilations", window.dilations.clone())
        .with("pads", pads.concat())
        .with("group", group);
    b.op_with("Conv", attrs, &[ct, reversed])
}

/// The factors z [N, O, ..] and g [O, 1, ..] of a convolution's cotangent, if it is such a product and the weight, which g then multiplies
/// twice, is smaller. A normalisation behind the convolution leaves one.
fn channel_gain(b: &Builder, ct: ValueId, w: ValueId) -> Result<Option<(ValueId, ValueId)>, BuildError> {
    let operands = b.graph.op(ct.node).filter(|op| op.is("Mul")).map(|_| b.graph.operands(ct.node));
    let Some([Some(z), Some(gain)]) = operands else { return Ok(None) };
    let (ty, w_ty) = (b.ty(ct)?, b.ty(w)?);
    let channels: Vec<Dim> = [ty.shape[1].clone()].into_iter().chain(vec![Dim::from(1); ty.rank() - 2]).collect();
    let batch = b.batch(&ty.shape[0]);
    let elements = ty.shape[1..].iter().try_fold(batch, |n, d| n.checked_mul(d.known()?));
    let smaller = elements.zip(w_ty.elements().known()).is_some_and(|(ct, w)| w < ct / 2);
    Ok((smaller && b.ty(*z)? == ty && b.ty(*gain)?.shape == channels).then_some((*z, *gain)))
}

/// Is a weight small beside the operand and the result of its convolution?
fn is_small(b: &Builder, w: &TensorType, output: &TensorType, input: &TensorType) -> bool {
    let batch = b.batch(&input.shape[0]);
    let elements = |t: &TensorType| t.shape[1..].iter().try_fold(1, |a, d| Some(a * d.known()?));
    match (w.elements().known(), elements(output), elements(input)) {
        (Some(w), Some(output), Some(input)) => w <= b.target.reversed_weight * batch * (output + input),
        _ => true,
    }
}

/// The same as a `ConvTranspose`.
pub(super) fn transposed(b: &mut Builder, ct: ValueId, w: ValueId, like: ValueId, window: &Window, group: i64) -> Built {
    let like_ty = b.ty(like)?;
    let rank = window.rank();
    let even: Vec<i64> = window.begin.iter().zip(&window.end).map(|(s, e)| *s.min(e)).collect();
    let extra: Vec<i64> = (0..rank)
        .map(|i| match like_ty.shape[2 + i].known() {
            // Cells of the input past the last window; an uneven end pad covers some of them.
            Some(n) => {
                let past = (n + window.begin[i] + window.end[i] - window.reach(i)).rem_euclid(window.strides[i]);
                (past - (window.end[i] - even[i])).max(0)
            }
            None => window.strides[i] - 1,
        })
        .collect();
    let attrs = Attrs::new()
        .with("kernel_shape", window.kernel.clone())
        .with("strides", window.strides.clone())
        .with("dilations", window.dilations.clone())
        .with("pads", [even.clone(), even.clone()].concat())
        .with("output_padding", extra)
        .with("group", group);
    let whole = b.op_with("ConvTranspose", attrs, &[ct, w])?;
    let from: Vec<i64> = (0..rank).map(|i| window.begin[i] - even[i]).collect();
    crop_like(b, whole, &from, like)
}

/// [G·O, C, k..] with the taps reversed and the channels of each group swapped: [G·C, O, k..].
pub(super) fn adjoint_weight(b: &mut Builder, w: ValueId, group: i64) -> Built {
    let ty = b.ty(w)?;
    let rank = ty.rank() as i64;
    let axes: Vec<i64> = (2..rank).filter(|a| !ty.shape[*a as usize].is_one()).collect();
    let taps = ty.shape[2..].iter().try_fold(1i64, |n, d| n.checked_mul(d.known()?));
    let reversed = match taps {
        Some(1) => w,
        // A product with a matrix that has ones on the other diagonal takes a quarter of a slice's time.
        Some(taps @ 2..=16) if b.target.reversed_weight > 0 => {
            let ones: Vec<f64> = (0..taps * taps).map(|i| f64::from(u8::from(i / taps + i % taps == taps - 1))).collect();
            let other = b.constant("const/reversal", Tensor::floats(ty.dtype, &[taps, taps], &ones));
            let rows = b.reshape(w, &[-1, taps], &[&ty.shape[0] * &ty.shape[1], Dim::from(taps)])?;
            let reversed = b.matmul(rows, other)?;
            b.reshape_like(reversed, w)?
        }
        _ => {
            let all = |v: i64| vec![v; axes.len()];
            let v = b.steps(w, &axes, &all(-1), &all(i64::MIN + 1), &all(-1))?;
            b.graph.set_type(v, ty.clone().into());
            v
        }
    };
    swap_group_channels(b, reversed, group)
}

/// [G·O, C, ..] to [G·C, O, ..].
pub(super) fn swap_group_channels(b: &mut Builder, w: ValueId, group: i64) -> Built {
    let ty = b.ty(w)?;
    let rank = ty.rank() as i64;
    if group == 1 {
        let perm: Vec<i64> = [1, 0].into_iter().chain(2..rank).collect();
        return b.transpose(w, &perm);
    }
    let spread = split_axis(b, w, 0, group)?;
    let perm: Vec<i64> = [0, 2, 1].into_iter().chain(3..rank + 1).collect();
    let swapped = b.transpose(spread, &perm)?;
    merge_axes(b, swapped, 0)
}

/// Splits an axis of extent outer · n into [outer, n].
pub(super) fn split_axis(b: &mut Builder, v: ValueId, axis: usize, outer: i64) -> Built {
    let ty = b.ty(v)?;
    let mut shape = ty.shape.clone();
    let inner = shape[axis].div_exact(&Dim::from(outer)).unwrap_or_else(|| unknown_dim("group"));
    shape.splice(axis..=axis, [Dim::from(outer), inner]);
    reshape_around(b, v, &shape)
}

/// Joins an axis with the next one.
pub(super) fn merge_axes(b: &mut Builder, v: ValueId, axis: usize) -> Built {
    let mut shape = b.ty(v)?.shape;
    let merged = &shape[axis] * &shape[axis + 1];
    shape.splice(axis..axis + 2, [merged]);
    reshape_around(b, v, &shape)
}

/// Reshapes to a shape with symbolic extents, all but one of which keep their places.
pub(super) fn reshape_around(b: &mut Builder, v: ValueId, shape: &[Dim]) -> Built {
    let from = b.ty(v)?.shape;
    let mut target: Vec<i64> = shape.iter().map(|d| d.known().unwrap_or(-1)).collect();
    // In a `Reshape`, 0 copies the operand's extent at the same place.
    for i in 0..target.len().min(from.len()) {
        if target[i] == -1 && from[i] == shape[i] {
            target[i] = 0;
        }
    }
    // A single symbolic extent is written as −1.
    if target.iter().filter(|t| **t == 0).count() == 1 && !target.contains(&-1) {
        target.iter_mut().filter(|t| **t == 0).for_each(|t| *t = -1);
    }
    if target.iter().filter(|t| **t == -1).count() > 1 {
        let (from, to) = (b.ty(v)?, TensorType::new(DType::F32, shape));
        let error = TypeError(format!("{from} cannot become {to}: more than one extent would have to be inferred"));
        return Err(BuildError { op: "Reshape".into(), prefix: b.prefix.clone(), error });
    }
    b.reshape(v, &target, shape)
}
