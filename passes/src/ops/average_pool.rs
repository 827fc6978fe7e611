//! `AveragePool`: the mean of every window's cells inside the operand; with `count_include_pad`, of those in the padding too.

use super::conv::{reshape_around, transposed};
use super::window::{Window, pad_spatial, pooled};
use super::*;

/// Most taps of a constant kernel.
const LARGEST: i64 = 1 << 22;

pub(super) const AVERAGE_POOL: Row = Row {
    name: "AveragePool",
    infer: |cx| Ok(vec![pooled(cx)?]),
    // Each cell gets ȳ / count of every window that sees it. That is a repetition where the windows tile the operand, another
    // average pool at stride 1, and else a transposed convolution with a constant kernel.
    pullback: |p| {
        let mut ct = p.ct(0)?;
        let op = p.op();
        let (x, x_ty) = (p.operand(0)?, p.ty(0)?);
        let mut window = p.told(|cx| Window::of(cx, None)?.padded())?;
        let rank = window.rank();
        let include = op.int("count_include_pad") != 0;
        let mut share = 1.0 / window.taps() as f64;
        if window.ceil || (window.is_padded() && !include) {
            // The result's own type may still say a symbol.
            let known = |ty: &TensorType| ty.shape[2..].iter().map(Dim::known).collect::<Option<Vec<i64>>>();
            let Some((extents, windows)) = known(&x_ty).zip(known(&p.told(pooled)?)) else {
                return Err(p.unsupported(
                    "its windows hold different numbers of cells and the spatial extents are symbolic; --fix NAME=N gives a symbol its value",
                ));
            };
            let shares = shares(&window, &extents, &windows, include);
            let dims: Vec<i64> = [1, 1].into_iter().chain(windows.iter().copied()).collect();
            let shares = p.b.constant("const/shares", Tensor::floats(x_ty.dtype, &dims, &shares));
            ct = p.b.mul(ct, shares)?;
            share = 1.0;
            // Pads to the end of the last window.
            for i in 0..rank {
                let covered = (windows[i] - 1) * window.strides[i] + window.reach(i);
                window.end[i] = window.end[i].max(covered - extents[i] - window.begin[i]);
            }
        }
        let undilated = window.dilations.iter().all(|d| *d == 1);
        let fixed = x_ty.shape[2..].iter().all(|d| d.known().is_some());
        let term = if fixed && !window.is_padded() && undilated && window.strides == window.kernel {
            repeat(p, ct, &window, share, &x_ty)?
        } else if !window.is_strided()
            && undilated
            && (0..rank).all(|i| window.begin[i].max(window.end[i]) < window.kernel[i])
        {
            let mut pads: Vec<i64> = (0..rank).map(|i| window.kernel[i] - 1 - window.begin[i]).collect();
            pads.extend((0..rank).map(|i| window.kernel[i] - 1 - window.end[i]));
            let attrs =
                Attrs::new().with("kernel_shape", window.kernel.clone()).with("pads", pads).with("count_include_pad", 1);
            let pooled = p.b.op_with("AveragePool", attrs, &[ct])?;
            p.b.scale(pooled, share * window.taps() as f64)?
        } else {
            // Channels move into the batch, so that one kernel serves all of them.
            let fold = |p: &mut Pullback, v: ValueId| -> Result<ValueId, GradError> {
                let ty = p.b.ty(v)?;
                let mut shape = vec![&ty.shape[0] * &ty.shape[1], Dim::from(1)];
                shape.extend_from_slice(&ty.shape[2..]);
                Ok(reshape_around(p.b, v, &shape)?)
            };
            if window.taps() > LARGEST {
                return Err(p.unsupported("its window has too many cells for a constant kernel"));
            }
            let (folded, like) = (fold(p, ct)?, fold(p, x)?);
            let dims: Vec<i64> = [1, 1].into_iter().chain(window.kernel.iter().copied()).collect();
            let kernel = Tensor::floats(x_ty.dtype, &dims, &vec![share; window.taps() as usize]);
            let kernel = p.b.constant("const/kernel", kernel);
            let spread = transposed(p.b, folded, kernel, like, &window, 1)?;
            p.b.reshape_like(spread, x)?
        };
        p.accumulate(0, term)
    },
    samples: || {
        let of = |attrs: Attrs, x: &[i64]| sample(attrs, vec![floats(x)]);
        let a = |kernel: Vec<i64>| Attrs::new().with("kernel_shape", kernel);
        let two = |v: i64| vec![v, v];
        vec![
            of(a(two(2)).with("strides", two(2)), &[2, 3, 4, 6]),
            of(a(two(2)).with("strides", two(2)), &[2, 3, 5, 7]),
            of(a(two(3)), &[1, 2, 5, 6]),
            of(a(two(3)).with("pads", vec![1; 4]), &[1, 2, 5, 6]),
            of(a(two(3)).with("pads", vec![1; 4]).with("count_include_pad", 1), &[1, 2, 5, 6]),
            of(a(two(3)).with("pads", vec![1; 4]).with("strides", two(2)), &[2, 2, 6, 7]),
            of(a(two(3)).with("pads", vec![1; 4]).with("strides", two(2)).with("count_include_pad", 1), &[2, 2, 6, 7]),
            of(a(two(3)).with("pads", vec![1, 0, 0, 2]).with("strides", two(2)), &[1, 2, 6, 7]),
            of(a(two(3)).with("strides", two(2)).with("ceil_mode", 1), &[1, 2, 6, 6]),
            of(a(two(2)).with("strides", two(2)).with("ceil_mode", 1), &[1, 2, 5, 6]),
            of(a(two(2)).with("auto_pad", "SAME_UPPER").with("strides", two(2)), &[1, 2, 5, 5]),
            of(a(vec![3]).with("strides", vec![2]).with("pads", vec![1, 1]), &[2, 2, 7]),
            of(a(vec![2, 2, 2]).with("strides", vec![2, 2, 2]), &[1, 2, 4, 4, 4]),
        ]
    },
    ..ROW
};

/// 1 / count of every window.
fn shares(window: &Window, extents: &[i64], windows: &[i64], include_pad: bool) -> Vec<f64> {
    let mut shares = vec![1.0];
    for i in 0..window.rank() {
        let (low, high) = if include_pad { (-window.begin[i], extents[i] + window.end[i]) } else { (0, extents[i]) };
        let counts: Vec<i64> = (0..windows[i])
            .map(|w| {
                let start = w * window.strides[i] - window.begin[i];
                let inside = |k: &i64| (low..high).contains(&(start + k * window.dilations[i]));
                ((0..window.kernel[i]).filter(inside).count() as i64).max(1)
            })
            .collect();
        shares = shares.iter().flat_map(|s| counts.iter().map(move |c| s / *c as f64)).collect();
    }
    shares
}

/// For windows side by side: every cell takes its window's share, and cells past the last window take none.
fn repeat(p: &mut Pullback, ct: ValueId, window: &Window, share: f64, x: &TensorType) -> Result<ValueId, GradError> {
    let rank = window.rank();
    let ty = p.b.ty(ct)?;
    let scaled = p.b.scale(ct, share)?;
    let spread = p.b.unsqueeze(scaled, &(0..rank as i64).map(|i| 3 + 2 * i).collect::<Vec<_>>())?;
    let mut target = vec![1, 1];
    let mut wide = ty.shape[..2].to_vec();
    let mut shape = ty.shape[..2].to_vec();
    for i in 0..rank {
        target.extend([1, window.kernel[i]]);
        wide.extend([ty.shape[2 + i].clone(), Dim::from(window.kernel[i])]);
        shape.push(&ty.shape[2 + i] * &Dim::from(window.kernel[i]));
    }
    let target = p.b.ints(&target);
    let repeated = p.b.op("Expand", &[spread, target])?;
    p.b.graph.set_type(repeated, TensorType::new(ty.dtype, wide).into());
    let whole = reshape_around(p.b, repeated, &shape)?;
    let rest = (0..rank).map(|i| p.b.number(&(&x.shape[2 + i] - &shape[2 + i]))).collect::<Result<Vec<i64>, _>>()?;
    Ok(pad_spatial(p.b, whole, &vec![0; rank], &rest, None)?)
}
