//! `ConvTranspose`: the transpose of a convolution with the same weight [C, O / group, k..], plus a bias.

use super::batch_norm_train::channel_reduce;
use super::conv_weight::weight_cotangent;
use super::window::{Window, crop_like};
use super::*;

pub(super) const CONV_TRANSPOSE: Row = Row {
    name: "ConvTranspose",
    infer: |cx| {
        let (x, w) = (cx.ty(0)?, cx.ty(1)?);
        cx.require(x.rank() >= 3 && x.rank() == w.rank(), || format!("{x} and weight {w} do not make a convolution"))?;
        cx.require(x.dtype == w.dtype, || format!("element types {} and {} differ", x.dtype, w.dtype))?;
        let fits = x.shape[1].known().is_none() || w.shape[0].known().is_none() || x.shape[1] == w.shape[0];
        cx.require(fits, || format!("{x} has other channels than the weight {w}"))?;
        let (_, output) = geometry(cx)?;
        let mut shape = vec![x.shape[0].clone(), &w.shape[1] * &Dim::from(cx.op.int("group"))];
        shape.extend(output);
        Ok(vec![TensorType::new(x.dtype, shape)])
    },
    // x̄ = ȳ ∗ w, the convolution that is transposed. w̄ is that convolution's, with x and ȳ exchanged.
    pullback: |p| {
        let ct = p.ct(0)?;
        let (x, w) = (p.operand(0)?, p.operand(1)?);
        let (window, _) = p.told(geometry)?;
        let group = p.op().int("group");
        p.give(0, |b| {
            let term = b.op_with("Conv", window.attrs(group), &[ct, w])?;
            // An output padding of a stride or more adds further windows, which are cut off.
            crop_like(b, term, &vec![0; window.rank()], x)
        })?;
        p.give(1, |b| weight_cotangent(b, ct, x, w, &window, group))?;
        p.give(2, |b| channel_reduce(b, "ReduceSum", ct))
    },
    samples: || {
        let of = |attrs: Attrs, x: &[i64], w: &[i64]| sample(attrs, vec![floats(x), floats(w)]);
        let a = Attrs::new;
        let two = |v: i64| vec![v, v];
        vec![
            sample(a(), vec![floats(&[2, 3, 4, 4]), floats(&[3, 4, 3, 3]), floats(&[4])]),
            of(a().with("strides", two(2)), &[2, 3, 4, 3], &[3, 4, 2, 2]),
            of(
                a().with("strides", two(2)).with("pads", vec![1; 4]).with("output_padding", two(1)),
                &[1, 9, 4, 3],
                &[9, 8, 3, 3],
            ),
            of(a().with("pads", vec![1, 0, 0, 1]).with("dilations", two(2)), &[2, 3, 4, 4], &[3, 2, 3, 3]),
            of(a().with("strides", two(2)).with("output_shape", two(8)), &[1, 2, 4, 4], &[2, 3, 3, 3]),
            of(a().with("strides", two(2)).with("auto_pad", "SAME_UPPER"), &[1, 2, 3, 4], &[2, 3, 3, 3]),
            of(a().with("strides", two(2)).with("auto_pad", "SAME_LOWER"), &[1, 2, 3, 4], &[2, 3, 3, 3]),
            of(a().with("group", 2).with("strides", two(2)), &[2, 4, 3, 3], &[4, 3, 2, 2]),
            of(a().with("group", 3).with("strides", two(2)), &[2, 3, 3, 3], &[3, 1, 2, 2]),
            of(a().with("group", 3), &[2, 3, 3, 3], &[3, 1, 2, 2]),
            of(a().with("strides", vec![2]), &[2, 3, 5], &[3, 4, 3]),
            of(a().with("strides", vec![2; 3]), &[1, 2, 2, 3, 2], &[2, 2, 2, 2, 2]),
        ]
    },
    ..ROW
};

/// A node's attributes with the padding that `auto_pad` or `output_shape` ask for in numbers; `None` where they say neither, or extents
/// that it takes are not known. Engines differ in what these two come to beside `output_padding`.
pub(crate) fn explicit_padding(g: &Graph, node: NodeId) -> Option<Attrs> {
    let op = g.op(node).filter(|op| op.is("ConvTranspose"))?;
    if op.str("auto_pad") == "NOTSET" && op.attrs.ints("output_shape").is_none() {
        return None;
    }
    let (window, _) = about(op, g.operands(node), g, geometry).ok()?;
    let mut attrs = op.attrs.clone();
    attrs.0.retain(|name, _| name != "auto_pad" && name != "output_shape");
    Some(attrs.with("pads", [window.begin, window.end].concat()))
}

/// The window of the convolution that is transposed, and the result's spatial extents.
fn geometry(cx: &Infer) -> Result<(Window, Vec<Dim>), TypeError> {
    let spatial = |i: usize| {
        let ty = cx.ty(i)?;
        ty.shape.get(2..).ok_or_else(|| TypeError(format!("operand {i}, {ty}, has no spatial axes")))
    };
    let (op, kernel, input) = (cx.op, spatial(1)?, spatial(0)?);
    let mut explicit = op.clone();
    explicit.attrs.0.shift_remove("auto_pad");
    let auto = op.str("auto_pad");
    let same = auto.starts_with("SAME");
    if auto != "NOTSET" {
        explicit.attrs.0.shift_remove("pads");
    }
    let mut window = Window::new(&explicit, Some(kernel), input)?.padded()?;
    let rank = window.rank();
    let extra = match op.attrs.ints("output_padding") {
        Some(v) if v.len() == rank => v.to_vec(),
        Some(v) => return Err(TypeError(format!("`output_padding` has {} entries where {rank} are needed", v.len()))),
        None => vec![0; rank],
    };
    // Some exporters include batch and channels.
    let asked = match op.attrs.ints("output_shape") {
        Some(s) if s.len() >= rank => Some(&s[s.len() - rank..]),
        Some(s) => return Err(TypeError(format!("`output_shape` has {} entries where {rank} are needed", s.len()))),
        None => None,
    };
    let mut output = Vec::with_capacity(rank);
    for i in 0..rank {
        // The extent that the windows cover, before pads are cut off.
        let stride = Dim::from(window.strides[i]);
        let covered = &(&(&input[i] - &Dim::from(1)) * &stride) + &Dim::from(window.reach(i) + extra[i]);
        let target = match asked {
            Some(s) => Some(Dim::from(s[i])),
            None if same => Some(&input[i] * &stride),
            None => None,
        };
        let Some(target) = target else {
            output.push(&covered - &Dim::from(window.begin[i] + window.end[i]));
            continue;
        };
        let total = (&covered - &target)
            .known()
            .ok_or_else(|| TypeError("`output_shape` needs fixed spatial extents".into()))?
            .max(0);
        let small = total / 2;
        (window.begin[i], window.end[i]) =
            if auto == "SAME_UPPER" { (small, total - small) } else { (total - small, small) };
        output.push(&covered - &Dim::from(total));
    }
    Ok((window, output))
}
