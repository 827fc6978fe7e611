//! `Resize`: nearest, linear or cubic interpolation along each axis.
//!
//! Along an axis the result is a matrix W of weights [out, in] times the operand, so x̄ is ȳ times W over the same axis: one
//! `MatMul` per axis. If each element is only repeated k times in a row (nearest, a whole factor), ȳ is summed over blocks of k,
//! over all axes at once; only the factor has to be known.

use super::*;

pub(super) const RESIZE: Row = Row {
    name: "Resize",
    infer: |cx| {
        let ty = cx.ty(0)?;
        let axes = resized(cx.op, ty).ok_or_else(|| TypeError(format!("an axis is out of range for {ty}")))?;
        let stretch = cx.op.str("keep_aspect_ratio_policy") == "stretch";
        let sizes = cx.extents(3).filter(|s| stretch && s.len() == axes.len());
        // Opset 10 has no region of interest before the scales.
        let at = if (2..4).any(|i| (cx.present)(i)) { 2 } else { 1 };
        let scales = (cx.array)(at).filter(|s| s.elements.len() == axes.len());
        let mut shape = ty.shape.clone();
        for (i, axis) in axes.into_iter().enumerate() {
            let scaled = || match scales.as_ref()?.elements[i] {
                eval::Element::Float(scale) => scaled(&shape[axis], scale),
                _ => None,
            };
            let size = sizes.as_ref().map(|s| s[i].clone()).or_else(scaled);
            shape[axis] = size.unwrap_or_else(|| unknown_dim("resize"));
        }
        Ok(vec![TensorType::new(ty.dtype, shape)])
    },
    // Over each axis, ȳ is summed over blocks or multiplied by the weights.
    pullback: |p| {
        let (x, ct, ty) = (p.operand(0)?, p.ct(0)?, p.ty(0)?);
        let axes = plan(p, &ty).map_err(|why| p.unsupported(&why.to_string()))?;
        let mut v = sum_blocks(p.b, ct, x, &axes)?;
        for (axis, how) in axes.iter().enumerate() {
            if let Axis::Weights(weights) = how {
                v = weigh(p.b, v, axis, weights)?;
            }
        }
        p.b.graph.set_type(v, ty.into());
        p.accumulate(0, v)
    },
    samples: || {
        let scales =
            |values: &[f32]| SampleOperand::FloatConstant { dims: vec![values.len() as i64], values: values.to_vec() };
        let attrs = |mode: &str, place: &str| {
            Attrs::new().with("mode", mode).with("coordinate_transformation_mode", place).with("nearest_mode", "floor")
        };
        let by_scales =
            |attrs, values: &[f32]| sample(attrs, vec![floats(&[2, 1, 3, 4]), SampleOperand::Missing, scales(values)]);
        let by_sizes = |attrs, sizes: &[i64]| {
            let missing = SampleOperand::Missing;
            sample(attrs, vec![floats(&[1, 2, 4, 3]), missing.clone(), missing, ints(sizes)])
        };
        vec![
            by_scales(attrs("nearest", "asymmetric"), &[1.0, 1.0, 2.0, 3.0]),
            by_scales(attrs("nearest", "half_pixel"), &[1.0, 1.0, 2.0, 2.0]),
            by_scales(Attrs::new(), &[1.0, 1.0, 2.0, 0.5]),
            by_scales(attrs("linear", "half_pixel"), &[1.0, 1.0, 2.0, 1.5]),
            by_sizes(attrs("linear", "align_corners"), &[1, 2, 7, 5]),
            by_sizes(attrs("linear", "pytorch_half_pixel"), &[1, 2, 2, 1]),
            by_sizes(attrs("nearest", "half_pixel"), &[1, 2, 8, 2]),
            by_sizes(attrs("cubic", "half_pixel").with("cubic_coeff_a", -0.5f32), &[1, 2, 6, 6]),
            by_sizes(attrs("cubic", "align_corners").with("axes", vec![-1, 2]), &[5, 7]),
        ]
    },
    ..ROW
};

/// `Resize` of opsets 7 to 9, whose scales are an attribute or the second operand.
pub(super) const UPSAMPLE: Row = Row {
    name: "Upsample",
    infer: |cx| {
        let ty = cx.ty(0)?;
        let listed = cx.attrs().floats("scales").map(|s| s.iter().map(|s| f64::from(*s)).collect::<Vec<_>>());
        let float = |e: &eval::Element<_>| if let eval::Element::Float(s) = e { Some(*s) } else { None };
        let scales = listed.or_else(|| (cx.array)(1)?.elements.iter().map(float).collect()).filter(|s| s.len() == ty.rank());
        let of =
            |(i, d): (usize, &Dim)| scales.as_ref().and_then(|s| scaled(d, s[i])).unwrap_or_else(|| unknown_dim("upsample"));
        let shape: Vec<Dim> = ty.shape.iter().enumerate().map(of).collect();
        Ok(vec![TensorType::new(ty.dtype, shape)])
    },
    derivative: Derivative::None("a training graph has it as Resize"),
    samples: || {
        let scales = vec![1.0_f32, 1.0, 2.0, 3.0];
        let operand = SampleOperand::FloatConstant { dims: vec![4], values: scales.clone() };
        let x = || floats(&[2, 1, 3, 4]);
        vec![
            sample(Attrs::new().with("scales", scales), vec![x()]).at(7).shape_only(),
            plain(vec![x(), operand]).at(9).shape_only(),
        ]
    },
    ..ROW
};

/// Most elements of a matrix of weights.
const LARGEST: usize = 1 << 26;

/// What happens to one axis.
enum Axis {
    Kept,
    /// Each element is repeated this many times in a row.
    Blocks(i64),
    Weights(Weights),
}

/// A dense [out, in] matrix.
struct Weights {
    output: usize,
    input: usize,
    values: Vec<f64>,
}

/// An extent times a factor, rounded down.
fn scaled(d: &Dim, scale: f64) -> Option<Dim> {
    match d.known() {
        // The runtime multiplies in single precision.
        Some(n) => Some(Dim::from((n as f32 * scale as f32).floor() as i64)),
        None if scale.fract() == 0.0 => Some(d * &Dim::from(scale as i64)),
        None if (1.0 / scale).fract() == 0.0 => d.quotient((1.0 / scale) as i64),
        None => None,
    }
}

/// The axes of `scales` or `sizes`.
fn resized(op: &Op, ty: &TensorType) -> Option<Vec<usize>> {
    match op.attrs.ints("axes") {
        Some(axes) => axes.iter().map(|a| ty.axis(*a)).collect(),
        None => Some((0..ty.rank()).collect()),
    }
}

fn plan(p: &Pullback, ty: &TensorType) -> Result<Vec<Axis>, Why> {
    let op = p.op();
    if op.int("antialias") != 0 || op.int("exclude_outside") != 0 {
        return Err(Why::Feature("`antialias` or `exclude_outside`"));
    }
    if op.str("coordinate_transformation_mode") == "tf_crop_and_resize" {
        return Err(Why::Feature("cropping while resizing"));
    }
    if op.str("keep_aspect_ratio_policy") != "stretch" {
        return Err(Why::Feature("`keep_aspect_ratio_policy`"));
    }
    let axes = resized(&op, ty).ok_or(Why::Form("names an axis that is out of range".into()))?;
    let floats = |i| p.graph().constant(p.try_operand(i)?).and_then(|t| t.to_f64().ok()).filter(|v| v.len() == axes.len());
    let (scales, sizes) =
        (floats(2), p.try_operand(3).and_then(|v| constant_ints(p.graph(), v)).filter(|v| v.len() == axes.len()));
    let out = p.b.ty(p.result(0)).map_err(|e| Why::Unbuildable(e.to_string()))?;
    let mut plan: Vec<Axis> = (0..ty.rank()).map(|_| Axis::Kept).collect();
    for (i, axis) in axes.into_iter().enumerate() {
        let input = ty.shape[axis].known();
        let output = sizes.as_ref().map(|s| s[i]).or(out.shape[axis].known());
        let scale = match (&scales, input, output) {
            (Some(scales), _, _) => scales[i],
            (None, Some(n), Some(m)) => m as f64 / n as f64,
            _ if out.shape[axis] == ty.shape[axis] => 1.0,
            _ => return Err(Why::Form(format!("scales axis {axis} by what is only known at run time"))),
        };
        if scale == 1.0 {
            continue;
        }
        // A few elements show whether the factor only repeats; their number does not matter.
        let probe = input.unwrap_or(4);
        let length = match (input, output) {
            (Some(_), Some(m)) => m,
            _ => (probe as f64 * scale).floor() as i64,
        };
        let size = |n: i64| usize::try_from(n).map_err(|_| Why::Form(format!("gives axis {axis} the extent {n}")));
        let (probe, length) = (size(probe)?, size(length)?);
        if probe.checked_mul(length).is_none_or(|n| n > LARGEST) {
            let what = format!("has too many weights from {probe} to {length} elements of axis {axis} to be written out");
            return Err(Why::Form(what));
        }
        let weights = Weights::of(&op, probe, length, scale)?;
        plan[axis] = match weights.block() {
            Some(k) if input.is_some() || op.str("coordinate_transformation_mode") != "align_corners" => Axis::Blocks(k),
            _ if input.is_some() => Axis::Weights(weights),
            _ => {
                return Err(Why::Form(format!(
                    "does not merely repeat the elements of axis {axis}, whose extent is symbolic"
                )));
            }
        };
    }
    Ok(plan)
}

impl Weights {
    /// The weights by ONNX's definition of the operator.
    fn of(op: &Op, input: usize, output: usize, scale: f64) -> Result<Weights, Why> {
        let mode = op.str("mode");
        let place = op.str("coordinate_transformation_mode");
        let a = op.float("cubic_coeff_a") as f64;
        // Coordinates are computed in single precision and in this order, to round as in the runtime.
        let (n, m, scale) = (input as f32, output as f32, scale as f32);
        let mut values = vec![0.0; input * output];
        for i in 0..output {
            let o = i as f32;
            let at = match place {
                "asymmetric" => o / scale,
                "align_corners" if output == 1 => 0.0,
                "align_corners" => o * (n - 1.0) / (m - 1.0),
                "pytorch_half_pixel" if output == 1 => 0.0,
                "half_pixel_symmetric" => {
                    let adjustment = m / (scale * n);
                    n / 2.0 * (1.0 - adjustment) + (o + 0.5) / scale - 0.5
                }
                "half_pixel" | "pytorch_half_pixel" => (o + 0.5) / scale - 0.5,
                other => return Err(Why::Attribute { attribute: "coordinate_transformation_mode", value: other.into() }),
            };
            let (at, last) = (at as f64, input as f64 - 1.0);
            let mut put = |j: f64, w: f64| values[i * input + j.clamp(0.0, last) as usize] += w;
            let (low, t) = (at.floor(), at - at.floor());
            match mode {
                "nearest" => {
                    let j = match op.str("nearest_mode") {
                        "floor" => low,
                        "ceil" => at.ceil(),
                        "round_prefer_ceil" => (at + 0.5).floor(),
                        _ => (at - 0.5).ceil(),
                    };
                    put(j, 1.0);
                }
                "linear" => {
                    put(low, 1.0 - t);
                    put(low + 1.0, t);
                }
                "cubic" => {
                    let far = |d: f64| ((a * d - 5.0 * a) * d + 8.0 * a) * d - 4.0 * a;
                    let near = |d: f64| ((a + 2.0) * d - (a + 3.0)) * d * d + 1.0;
                    put(low - 1.0, far(1.0 + t));
                    put(low, near(t));
                    put(low + 1.0, near(1.0 - t));
                    put(low + 2.0, far(2.0 - t));
                }
                other => return Err(Why::Attribute { attribute: "mode", value: other.into() }),
            }
        }
        Ok(Weights { output, input, values })
    }

    /// k, if row i takes just element i / k.
    fn block(&self) -> Option<i64> {
        let k = self.output / self.input.max(1);
        let whole = k * self.input == self.output;
        let repeats =
            |(i, row): (usize, &[f64])| row.iter().enumerate().all(|(j, w)| *w == if j == i / k { 1.0 } else { 0.0 });
        (whole && k > 0 && self.values.chunks(self.input).enumerate().all(repeats)).then_some(k as i64)
    }
}

/// Splits each repeated axis into elements and repeats, and sums over the repeats.
fn sum_blocks(b: &mut Builder, ct: ValueId, x: ValueId, axes: &[Axis]) -> Built {
    let (like, from) = (b.ty(x)?, b.ty(ct)?);
    let (mut target, mut shape, mut over) = (Vec::new(), Vec::new(), Vec::new());
    for (i, how) in axes.iter().enumerate() {
        match how {
            Axis::Blocks(k) => {
                target.push(b.dim_of(x, i)?);
                shape.push(like.shape[i].clone());
                over.push(target.len() as i64);
                target.push(b.ints(&[*k]));
                shape.push(Dim::from(*k));
            }
            Axis::Kept | Axis::Weights(_) => {
                target.push(b.dim_of(ct, i)?);
                shape.push(from.shape[i].clone());
            }
        }
    }
    if over.is_empty() {
        return Ok(ct);
    }
    let target = b.shape_from(&target)?;
    let apart = b.reshape_dynamic(ct, target, &shape)?;
    b.reduce_sum(apart, &over, false)
}

/// v times the weights over an axis. An axis before the last two is moved to the end and back.
fn weigh(b: &mut Builder, v: ValueId, axis: usize, w: &Weights) -> Built {
    let ty = b.ty(v)?;
    let rank = ty.rank();
    let dims = [w.output as i64, w.input as i64];
    let mut shape = ty.shape.clone();
    shape[axis] = Dim::from(dims[1]);
    let product = if axis + 2 == rank {
        let mut turned = vec![0.0; w.values.len()];
        for (i, row) in w.values.chunks(w.input).enumerate() {
            for (j, value) in row.iter().enumerate() {
                turned[j * w.output + i] = *value;
            }
        }
        let turned = b.constant("const/resize", Tensor::floats(ty.dtype, &[dims[1], dims[0]], &turned));
        b.matmul(turned, v)?
    } else {
        let weights = b.constant("const/resize", Tensor::floats(ty.dtype, &dims, &w.values));
        let mut perm: Vec<i64> = (0..rank as i64).collect();
        perm.swap(axis, rank - 1);
        let last = b.transpose(v, &perm)?;
        let product = b.matmul(last, weights)?;
        b.transpose(product, &perm)?
    };
    Ok(b.state(product, TensorType::new(ty.dtype, shape)))
}
