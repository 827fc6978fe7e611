//! `ancre.ConvWeightCotangent`: the cotangent of a convolution's weight. For every tap it is the sum over windows and batch of ȳ
//! times the cell of x under the tap.
//!
//! Operands: x, ȳ, and the weight, of which only the type is read. Attributes: the convolution's. When the graph is lowered, the
//! [`Target`](crate::target::Target) chooses among the formulations below.

use super::batch_norm_train::channel_reduce;
use super::blocks;
use super::broadcast::sum_batch;
use super::conv::{merge_axes, reshape_around, split_axis};
use super::matmul::{contract_batch, contract_batches, is_long};
use super::window::{Window, pad_spatial};
use super::*;

/// Most cells of a mask that is written out for every row.
const LARGE_MASK: i64 = 16384;
/// Cells of the largest mask that is written: no image that is trained on has rows like that.
const LARGEST_MASK: usize = 1 << 24;
/// Most products that a kernel adds up one after the other: rounding leaves up to 3e-5 of a sum of positive ones.
const LONGEST_SUM: i64 = 1 << 20;
/// Numbers of the largest filters that lay windows out as columns: 9 taps over 26 thousand channels.
const LARGEST_FILTERS: usize = 1 << 21;

pub(super) const CONV_WEIGHT_COTANGENT: Row = Row {
    domain: ANCRE,
    name: "ConvWeightCotangent",
    infer: |cx| Ok(vec![cx.ty(2)?.clone()]),
    derivative: Derivative::None("second derivatives are not supported"),
    lower: |b, node| {
        let [Some(x), Some(ct), Some(w)] = b.graph.operands(node)[..] else {
            return Err(b.error("ConvWeightCotangent", TypeError("an operand is missing".into())));
        };
        let conv = Op::new("Conv", b.graph.op(node).map(|op| op.attrs.clone()).unwrap_or_default());
        let x_ty = b.ty(x)?;
        let window = Window::new(&conv, None, &x_ty.shape[2..])
            .and_then(Window::padded)
            .map_err(|e| b.error("ConvWeightCotangent", e))?;
        // The new nodes take the name of the convolution's gradient.
        b.prefix.truncate(b.prefix.rfind('/').unwrap_or(b.prefix.len()));
        Ok(vec![weight_gradient(b, x, ct, w, &window, conv.int("group"))?])
    },
    samples: || {
        let window = Attrs::new().with("kernel_shape", vec![1, 1]);
        vec![sample(window, vec![floats(&[2, 3, 5, 4]), floats(&[2, 4, 5, 4]), floats(&[4, 3, 1, 1])])]
    },
    ..ROW
};

/// The operator for the weight's cotangent from a convolution's input and its result's cotangent.
pub(super) fn weight_cotangent(b: &mut Builder, x: ValueId, ct: ValueId, w: ValueId, window: &Window, group: i64) -> Built {
    let w_ty = b.ty(w)?;
    if w_ty.shape.iter().filter(|d| d.known().is_none()).count() > 1 {
        return Err(b.error("ConvWeightCotangent", TypeError(format!("two extents of the weight {w_ty} are not known"))));
    }
    // The weight tells the channels where the types of x and ȳ do not.
    for (v, channels) in [(x, &w_ty.shape[1] * &Dim::from(group)), (ct, w_ty.shape[0].clone())] {
        let mut ty = b.ty(v)?;
        if ty.shape[1].known().is_none() {
            ty.shape[1] = channels;
            b.graph.set_type(v, ty.into());
        }
    }
    let op = Op::in_domain(ANCRE, "ConvWeightCotangent", window.attrs(group));
    Ok(b.node(op, &[Some(x), Some(ct), Some(w)])?[0])
}

/// The cotangent of a convolution's weight in plain operators.
///
/// At stride 1 the taps' shifts are shared out between the operands (see [`shifted`]), if the image is large beside the channels.
/// Other windows that are not too large take one product with the windows' columns (see [`columns`]), where the target has those, else
/// a slice and a product a tap; so do windows over few input channels, which make narrow products. Groups of single
/// channels are element-wise products of slices. Large windows take one convolution (see [`swapped`]), whose nodes do not grow with
/// the taps.
fn weight_gradient(b: &mut Builder, x: ValueId, ct: ValueId, w: ValueId, window: &Window, group: i64) -> Built {
    let costs = &b.target.conv_weight;
    let (x_ty, ct_ty, w_ty) = (b.ty(x)?, b.ty(ct)?, b.ty(w)?);
    let single = w_ty.shape[1].is_one() && group > 1;
    let fixed = x_ty.shape[2..].iter().chain(&ct_ty.shape[2..]).all(|d| d.known().is_some());
    if single
        && fixed
        && let Some(gradient) = single_in_blocks(b, x, ct, w, window)?
    {
        return Ok(gradient);
    }
    let few = group == 1 && w_ty.shape[1].known().is_some_and(|c| c < costs.few_channels);
    let copies = window.kernel[0] + window.kernel[1..].iter().product::<i64>();
    let shifts = fixed && !window.is_strided() && window.taps() > 1 && copies <= costs.shifted_copies;
    let shifts = shifts && (!single || window.taps() > costs.depthwise_taps && copies <= costs.depthwise_copies);
    let many = match (single, window.is_strided()) {
        (true, strided) => !shifts && (strided || window.taps() > costs.depthwise_taps),
        (false, true) => window.taps() > costs.strided_taps,
        (false, false) => copies > costs.shifted_copies,
    };
    if many && (fixed || group == 1) {
        return swapped(b, x, ct, w, window, group);
    }
    // Columns move N · P numbers for each that the products of shifts write N times and transpose.
    let batch = b.batch(&x_ty.shape[0]);
    let small_image = match (product(&ct_ty.shape[2..]).known(), ct_ty.shape[1].known()) {
        (Some(windows), Some(channels)) => 3 * batch * windows < 2 * channels * (batch + costs.transposed_samples),
        _ => true,
    };
    if group == 1 && window.taps() > 1 && costs.transposed_samples > 0 && (few || small_image || !shifts) {
        let taps = window.taps();
        let filters = w_ty.shape[1].known().map(|c| [vec![c * taps, 1], window.kernel.clone()].concat());
        if let Some(filters) = filters.filter(|dims| eval::places::count(dims, LARGEST_FILTERS).is_some()) {
            return columns(b, x, ct, w, window, &filters);
        }
    }
    if shifts {
        return shifted(b, x, ct, w, window, group);
    }
    let windows = ct_ty.shape[2..].to_vec();
    let padded = window.pad(b, x, None)?;
    let mut seen = Vec::new();
    for offset in window.offsets() {
        seen.push(window.tap(b, padded, &offset, &windows)?);
    }
    if single && w_ty.shape[0] == x_ty.shape[1] {
        return depthwise(b, &seen, ct, w);
    }
    if group == 1 && seen.len() > 1 && !ct_ty.shape[0].is_one() {
        let area = product(&ct_ty.shape[2..]);
        if !is_long(b, &ct_ty.shape[1], &x_ty.shape[1], &area) {
            return summed_once(b, &seen, ct, w);
        }
    }
    let mut products = Vec::new();
    for v in &seen {
        let product = channel_products(b, *v, ct, group)?;
        products.push(if seen.len() == 1 { product } else { b.unsqueeze(product, &[-1])? });
    }
    let joined = b.concat(&products, -1)?;
    b.reshape_like(joined, w)
}

/// The windows of x as columns, [N, C · taps, windows], by a convolution whose filters have a one at a single tap; then one product with
/// ȳ, whose result is in the weight's order.
fn columns(b: &mut Builder, x: ValueId, ct: ValueId, w: ValueId, window: &Window, filters: &[i64]) -> Built {
    let (taps, cells) = (window.taps(), filters.iter().product::<i64>());
    let ones: Vec<f64> = (0..cells).map(|i| f64::from(u8::from(i % taps == i / taps % taps))).collect();
    let dtype = b.ty(x)?.dtype;
    let ones = b.constant("const/taps", Tensor::floats(dtype, filters, &ones));
    let columns = b.op_with("Conv", window.attrs(filters[0] / taps), &[x, ones])?;
    // The windows' extents, where the rule cannot tell them, are those of ȳ.
    let windows = b.ty(ct)?.shape[2..].to_vec();
    let mut shape = b.ty(columns)?.shape;
    shape.splice(2.., windows);
    let columns = b.state(columns, TensorType::new(dtype, shape));
    let product = channel_products(b, columns, ct, 1)?;
    b.reshape_like(product, w)
}

/// At stride 1: w̄[d, e] = Σ ȳ[i, j] x[i + d, j + e]. ȳ takes the shifts d along the first axis: copies of ȳ laid end to end with
/// zeros between them hold all of them. x takes the shifts e along the other axes; if the convolution keeps those extents, copies
/// of x are laid out likewise. A kernel of k × k taps is then one product over 2k copies, where one slice per tap would be k².
fn shifted(b: &mut Builder, x: ValueId, ct: ValueId, w: ValueId, window: &Window, group: i64) -> Built {
    let (x_ty, ct_ty, w_ty) = (b.ty(x)?, b.ty(ct)?, b.ty(w)?);
    let taps = window.kernel[0];
    let row: i64 = ct_ty.shape[3..].iter().map(known).product();
    let step = row * window.dilations[0];
    let length = known(&ct_ty.shape[2]) * row + step * (taps - 1);
    let flat = flat_windows(b, ct)?;
    let rows: Vec<(ValueId, i64)> = (0..taps).map(|d| (flat, d * step)).collect();
    let rows = lay_out(b, &rows, length)?;
    let rows = by_group(b, rows, group)?;

    let mut across = window.clone();
    across.kernel[0] = 1;
    let offsets = across.offsets();
    let keeps = x_ty.shape[3..] == ct_ty.shape[3..];
    let places: Vec<i64> = offsets.iter().map(|o| place(&x_ty.shape[2..], window, o)).collect();
    let area: i64 = x_ty.shape[2..].iter().map(known).product();
    let seen = if keeps && places.iter().all(|p| (0..=length - area).contains(p)) {
        let mut copies = Vec::new();
        for (offset, place) in offsets.iter().zip(&places) {
            let v = without_wrapped(b, x, window, offset)?;
            copies.push((flat_windows(b, v)?, *place));
        }
        vec![lay_out(b, &copies, length)?]
    } else {
        let mut seen = Vec::new();
        for offset in &offsets {
            let begin: Vec<i64> = (0..window.rank()).map(|i| window.begin[i] - offset[i]).collect();
            let mut end: Vec<i64> =
                (0..window.rank()).map(|i| known(&ct_ty.shape[2 + i]) - known(&x_ty.shape[2 + i]) - begin[i]).collect();
            end[0] = window.end[0];
            let v = pad_spatial(b, x, &begin, &end, None)?;
            seen.push(flat_windows(b, v)?);
        }
        seen
    };
    let seen = seen.into_iter().map(|v| by_group(b, v, group)).collect::<Result<Vec<_>, _>>()?;
    let mut products = Vec::new();
    for product in contract_batches(b, rows, &seen)? {
        // [O · d, C / G (· e)]: a product for each e, or one for all.
        let product = if group == 1 { product } else { merge_axes(b, product, 0)? };
        products.push(if seen.len() == 1 { product } else { b.unsqueeze(product, &[-1])? });
    }
    let joined = b.concat(&products, -1)?;
    if taps == 1 {
        return b.reshape_like(joined, w);
    }
    let shape = [w_ty.shape[0].clone(), Dim::from(taps), w_ty.shape[1].clone(), Dim::from(offsets.len() as i64)];
    let spread = reshape_around(b, joined, &shape)?;
    let ordered = b.transpose(spread, &[0, 2, 1, 3])?;
    b.reshape_like(ordered, w)
}

/// Where x begins in a row as long as the padded x, if a tap's offset shifts it along every axis but the first.
fn place(extents: &[Dim], window: &Window, offset: &[i64]) -> i64 {
    let mut stride = 1;
    let mut place = 0;
    for i in (0..extents.len()).rev() {
        place += stride * if i == 0 { window.begin[0] } else { window.begin[i] - offset[i] };
        stride *= known(&extents[i]);
    }
    place
}

/// x without the cells that a shift of x as one vector would carry into a neighbouring line.
fn without_wrapped(b: &mut Builder, x: ValueId, window: &Window, offset: &[i64]) -> Built {
    let ty = b.ty(x)?;
    let extents: Vec<i64> = ty.shape[2..].iter().map(known).collect();
    let shifts: Vec<i64> = (0..extents.len()).map(|i| if i == 0 { 0 } else { window.begin[i] - offset[i] }).collect();
    if shifts.iter().all(|s| *s == 0) {
        return Ok(x);
    }
    let stays = |cell: usize| {
        let mut rest = cell as i64;
        (0..extents.len()).rev().all(|i| {
            let at = rest % extents[i];
            rest /= extents[i];
            (0..extents[i]).contains(&(at + shifts[i]))
        })
    };
    // A mask of all rows multiplies faster; a large one is written for one row, to keep the file small.
    let mut dims: Vec<i64> = [1, 1].iter().chain(&extents).copied().collect();
    if eval::places::count(&extents, LARGE_MASK as usize).is_none() {
        dims[2] = 1;
    }
    let Some(count) = eval::places::count(&dims, LARGEST_MASK) else {
        return Err(b.error("Mul", TypeError(format!("images of {ty} need a mask of more than {LARGEST_MASK} cells"))));
    };
    let mask: Vec<f64> = (0..count).map(|cell| f64::from(stays(cell) as u8)).collect();
    let mask = b.constant("const/mask", Tensor::floats(ty.dtype, &dims, &mask));
    b.mul(x, mask)
}

/// Copies [N, C, area], each at its place in a row of `length` cells, with zeros elsewhere: [N, C · copies, length].
fn lay_out(b: &mut Builder, copies: &[(ValueId, i64)], length: i64) -> Built {
    let first = copies[0].0;
    let ty = b.ty(first)?;
    let area = known(&ty.shape[2]);
    let mut parts = Vec::new();
    let mut at = 0;
    for (i, (copy, place)) in copies.iter().enumerate() {
        let begin = i as i64 * length + place;
        if begin > at {
            parts.push(zeros(b, first, &ty, begin - at)?);
        }
        parts.push(*copy);
        at = begin + area;
    }
    let end = copies.len() as i64 * length;
    if end > at {
        parts.push(zeros(b, first, &ty, end - at)?);
    }
    let laid = b.concat(&parts, 2)?;
    let shape = [ty.shape[0].clone(), &ty.shape[1] * &Dim::from(copies.len() as i64), Dim::from(length)];
    reshape_around(b, laid, &shape)
}

fn known(d: &Dim) -> i64 {
    d.known().unwrap_or(1)
}

/// Zeros [N, C, length] for a value [N, C, ..].
fn zeros(b: &mut Builder, like: ValueId, ty: &TensorType, length: i64) -> Built {
    let shape = [ty.shape[0].clone(), ty.shape[1].clone(), Dim::from(length)];
    b.zeros(TensorType::new(ty.dtype, shape), like)
}

/// [N, C, windows] as [N, G, C / G, windows]; unchanged for one group.
fn by_group(b: &mut Builder, v: ValueId, group: i64) -> Built {
    if group == 1 { Ok(v) } else { split_axis(b, v, 1, group) }
}

/// Joins the taps' products of all samples, so that one sum over the batch serves all taps.
fn summed_once(b: &mut Builder, seen: &[ValueId], ct: ValueId, w: ValueId) -> Built {
    let ct = flat_windows(b, ct)?;
    let mut products = Vec::new();
    for v in seen {
        let flat = flat_windows(b, *v)?;
        let transposed = b.transpose_last(flat)?;
        products.push(b.matmul(ct, transposed)?);
    }
    let joined = b.concat(&products, 1)?;
    let sum = sum_batch(b, joined)?;
    let spread = split_axis(b, sum, 0, seen.len() as i64)?;
    let ordered = b.transpose(spread, &[1, 2, 0])?;
    b.reshape_like(ordered, w)
}

/// [N, C, ..] as [N, C, windows].
fn flat_windows(b: &mut Builder, v: ValueId) -> Built {
    let ty = b.ty(v)?;
    if ty.rank() == 3 {
        return Ok(v);
    }
    let area = product(&ty.shape[2..]);
    let shape = [ty.shape[0].clone(), ty.shape[1].clone(), area];
    reshape_around(b, v, &shape)
}

/// The products of ȳ's and x's channels within each group, summed over batch and windows: [O, C / G].
fn channel_products(b: &mut Builder, x: ValueId, ct: ValueId, group: i64) -> Built {
    let (ct, x) = (flat_windows(b, ct)?, flat_windows(b, x)?);
    let (ct, x) = (by_group(b, ct, group)?, by_group(b, x, group)?);
    let product = contract_batch(b, ct, x)?;
    if group == 1 { Ok(product) } else { merge_axes(b, product, 0) }
}

/// One input and one output channel a group: w̄ at a tap is the sum of ȳ ⊙ slice.
fn depthwise(b: &mut Builder, seen: &[ValueId], ct: ValueId, w: ValueId) -> Built {
    let mut sums = Vec::new();
    for v in seen {
        let product = b.mul(*v, ct)?;
        let sum = channel_reduce(b, "ReduceSum", product)?;
        sums.push(b.unsqueeze(sum, &[1])?);
    }
    let joined = b.concat(&sums, 1)?;
    b.reshape_like(joined, w)
}

/// Channel by channel in blocks: the samples of x and ȳ, one below the other with zeros between them, are one image and one weight
/// of a convolution whose result is w̄, stride and dilation exchanged. `None` where the target or the channels have no blocks.
/// The kernel adds one product after the other, in float32, so that long sums are left to other formulations.
fn single_in_blocks(
    b: &mut Builder,
    x: ValueId,
    ct: ValueId,
    w: ValueId,
    window: &Window,
) -> Result<Option<ValueId>, BuildError> {
    let (x_ty, ct_ty, w_ty) = (b.ty(x)?, b.ty(ct)?, b.ty(w)?);
    let channels = &w_ty.shape[0];
    let products = b.batch(&ct_ty.shape[0]).saturating_mul(product(&ct_ty.shape[2..]).known().unwrap_or(i64::MAX));
    if products > LONGEST_SUM || x_ty.shape[1] != *channels || !blocks::fill(b, channels, x_ty.dtype) || window.rank() > 2 {
        return Ok(None);
    }
    if window.rank() == 1 {
        let (x, ct, w) = (b.unsqueeze(x, &[2])?, b.unsqueeze(ct, &[2])?, b.unsqueeze(w, &[2])?);
        let gradient = single_in_blocks(b, x, ct, w, &window.on_a_row())?;
        return gradient.map(|v| b.squeeze(v, &[2])).transpose();
    }
    let (stride, dilation, kernel) = (&window.strides, &window.dilations, &window.kernel);
    let below = dilation[0] * (kernel[0] - 1) - (stride[0] - 1);
    if below < 0 {
        return Ok(None);
    }
    let extents = |ty: &TensorType| [known(&ty.shape[2]), known(&ty.shape[3])];
    let (image, windows) = (extents(&x_ty), extents(&ct_ty));
    // Rows of a sample of ȳ, so that stride times as many hold every row that its windows read.
    let used = |i: usize| stride[i] * (windows[i] - 1) + window.reach(i);
    let rows = (used(0) + stride[0] - 1) / stride[0];
    let seen = [stride[0] * rows, used(1)];
    let end: Vec<i64> = (0..2).map(|i| seen[i] - window.begin[i] - image[i]).collect();
    let x = pad_spatial(b, x, &window.begin, &end, None)?;
    let ct = pad_spatial(b, ct, &[0, 0], &[rows - windows[0], 0], None)?;
    let (x, ct) = (stack_samples(b, x)?, stack_samples(b, ct)?);
    let x = blocks::reorder(b, x)?;
    let kernel_of = b.ty(ct)?.shape;
    let as_weight = [channels.clone(), Dim::from(1), kernel_of[2].clone(), kernel_of[3].clone()];
    let ct = blocks::reorder(b, ct)?;
    let ct = reshape_around(b, ct, &as_weight)?;
    let group = b.number(channels)?;
    let attrs = Attrs::new()
        .with("strides", dilation.clone())
        .with("dilations", stride.clone())
        .with("pads", vec![0, 0, below, 0])
        .with("group", group);
    let taps = [Dim::from(1), channels.clone(), kernel[0].into(), kernel[1].into()];
    let ty = TensorType::new(x_ty.dtype, taps);
    let op = blocks::own_op(b, "Conv", attrs);
    let gradient = b.node_of(op, &[Some(x), Some(ct)], vec![ty])[0];
    let back = blocks::restore_op(b, group);
    let plain = b.node(back, &[Some(gradient)])?[0];
    Ok(Some(b.reshape_like(plain, w)?))
}

/// [N, C, H, W] as [1, C, N · H, W].
fn stack_samples(b: &mut Builder, v: ValueId) -> Built {
    let moved = b.transpose(v, &[1, 0, 2, 3])?;
    let merged = merge_axes(b, moved, 1)?;
    b.unsqueeze(merged, &[0])
}

/// The padding after each axis without the cells that no window covers, which a convolution with x would compute positions for. Products
/// with the kernels of one group take no longer for them, and less if those fill their registers (8 x 8 positions against 7 x 7).
fn used_padding(b: &Builder, x: ValueId, ct: ValueId, window: &Window, group: i64) -> Result<Vec<i64>, BuildError> {
    if group == 1 {
        return Ok(window.end.clone());
    }
    let (x_ty, ct_ty) = (b.ty(x)?, b.ty(ct)?);
    let unused = |i: usize| {
        let (n, windows) = (x_ty.shape[2 + i].known()?, ct_ty.shape[2 + i].known()?);
        Some(n + window.begin[i] + window.end[i] - window.reach(i) - (windows - 1) * window.strides[i])
    };
    Ok((0..window.rank()).map(|i| window.end[i] - unused(i).unwrap_or(0).clamp(0, window.end[i].max(0))).collect())
}

/// x as [C/G, G·N, ..], ȳ as a weight [O, N, ..], stride and dilation exchanged: a convolution whose output is [C/G, O, k..].
fn swapped(b: &mut Builder, x: ValueId, ct: ValueId, w: ValueId, window: &Window, group: i64) -> Built {
    let rank = window.rank() as i64;
    let w_ty = b.ty(w)?;
    let perm: Vec<i64> = [1, 0].into_iter().chain(2..2 + rank).collect();
    let moved = if group == 1 {
        b.transpose(x, &perm)?
    } else {
        let spread = split_axis(b, x, 1, group)?;
        let by_channel: Vec<i64> = [2, 1, 0].into_iter().chain(3..3 + rank).collect();
        let moved = b.transpose(spread, &by_channel)?;
        merge_axes(b, moved, 1)?
    };
    let kernel = b.transpose(ct, &perm)?;
    let attrs = Attrs::new()
        .with("strides", window.dilations.clone())
        .with("dilations", window.strides.clone())
        .with("pads", [window.begin.clone(), used_padding(b, x, ct, window, group)?].concat())
        .with("group", group);
    let wide = b.op_with("Conv", attrs, &[moved, kernel])?;
    // If the stride leaves cells of x itself unused, the result has more positions than taps.
    let extents = &b.ty(wide)?.shape[2..];
    let taps: Vec<Dim> = window.kernel.iter().map(|k| Dim::from(*k)).collect();
    let cut = if *extents == taps {
        wide
    } else {
        let axes: Vec<i64> = (2..2 + rank).collect();
        b.slices(wide, &axes, &vec![0; window.rank()], &window.kernel)?
    };
    if w_ty.shape[1].is_one() { b.reshape_like(cut, w) } else { b.transpose(cut, &perm) }
}
