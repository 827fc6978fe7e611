//! Types of operators that have no rule. The operators are kept as they are; the values after them need types.

use super::window::{Window, pooled};
use super::*;

/// The types of such an operator's results; `None` for an unknown operator.
pub(super) fn infer(cx: &Infer) -> Option<Types> {
    let name = cx.op.name.as_str();
    Some(match cx.op.domain.as_str() {
        "" | "ai.onnx" => standard(cx, name)?,
        "com.microsoft" => contributed(cx, name)?,
        blocks::NCHWC => blocked(cx, name)?,
        _ => return None,
    })
}

fn standard(cx: &Infer, name: &str) -> Option<Types> {
    Some(match name {
        "ReverseSequence"
        | "Hardmax"
        | "Shrink"
        | "Scatter"
        | "TensorScatter"
        | "BitwiseNot"
        | "MeanVarianceNormalization" => like_first(cx),
        "Bernoulli" => like(cx, |ty| cx.asked_dtype(ty.dtype)),
        "BitShift" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" => like_all(cx),
        "QuantizeLinear" => quantized(cx),
        "DequantizeLinear" => like(cx, |_| Ok(cx.ty(1)?.dtype)),
        "DynamicQuantizeLinear" => like(cx, |_| Ok(DType::U8)).and_then(|mut types| {
            let scale = cx.ty(0)?.dtype;
            types.extend([TensorType::new(scale, vec![]), TensorType::new(DType::U8, vec![])]);
            Ok(types)
        }),
        "ConvInteger" => convolved(cx, 1, |_| Ok(DType::I32)),
        "MatMulInteger" => multiplied(cx, 1, |_| Ok(DType::I32)),
        "DeformConv" => convolved(cx, 1, |cx| Ok(cx.ty(0)?.dtype)),
        "RoiAlign" => regions(cx),
        "GridSample" => grid_sampled(cx),
        _ => return None,
    })
}

fn contributed(cx: &Infer, name: &str) -> Option<Types> {
    Some(match name {
        "QuantizeLinear" => quantized(cx),
        "DequantizeLinear" => like(cx, |_| Ok(cx.ty(1)?.dtype)),
        _ => return None,
    })
}

/// Operators on [N, C, H, W] whose channels lie in blocks. C is rounded up to whole blocks.
fn blocked(cx: &Infer, name: &str) -> Option<Types> {
    Some(match name {
        "Conv" => convolved(cx, 1, |cx| Ok(cx.ty(0)?.dtype)),
        "MaxPool" | "AveragePool" => pooled(cx).map(|ty| vec![ty]),
        "GlobalMaxPool" | "GlobalAveragePool" => of_image(cx, |[n, c, ..]| [n, c, 1.into(), 1.into()]),
        "Upsample" => upsampled(cx),
        // No processor has blocks of more than 16 channels.
        "ReorderInput" => of_image(cx, |image| {
            let [n, c, h, w] = if cx.op.int("channels_last") != 0 { channels_second(image) } else { image };
            let whole = c.known().is_some_and(|c| c % 16 == 0);
            [n, if whole { c } else { unknown_dim("channels") }, h, w]
        }),
        "ReorderOutput" => of_image(cx, |[n, _, h, w]| {
            let c = Dim::from(cx.op.int("channels"));
            if cx.op.int("channels_last") != 0 { [n, h, w, c] } else { [n, c, h, w] }
        }),
        _ => return None,
    })
}

fn channels_second([n, h, w, c]: [Dim; 4]) -> [Dim; 4] {
    [n, c, h, w]
}

fn of_image(cx: &Infer, shape: impl Fn([Dim; 4]) -> [Dim; 4]) -> Types {
    let x = cx.ty(0)?;
    let image = x.shape.clone().try_into().map_err(|_| TypeError(format!("{x} is no batch of images")))?;
    Ok(vec![TensorType::new(x.dtype, shape(image).to_vec())])
}

/// Whole factors for each axis.
fn upsampled(cx: &Infer) -> Types {
    let (x, scales) = (cx.ty(0)?, cx.attrs().ints("scales").unwrap_or_default());
    cx.require(scales.len() == x.rank(), || format!("it has {} scales for {x}", scales.len()))?;
    let shape: Vec<Dim> = x.shape.iter().zip(scales).map(|(d, s)| d * &Dim::from(*s)).collect();
    Ok(vec![TensorType::new(x.dtype, shape)])
}

/// The first operand's shape with another element type.
fn like(cx: &Infer, dtype: impl Fn(&TensorType) -> Result<DType, TypeError>) -> Types {
    let ty = cx.ty(0)?;
    Ok(vec![TensorType::new(dtype(ty)?, ty.shape.clone())])
}

/// The element type is that of the zero point, else the one that `output_dtype` asks for, else unsigned bytes.
fn quantized(cx: &Infer) -> Types {
    like(cx, |_| {
        let asked = DType::from_onnx(cx.op.int("output_dtype") as i32);
        Ok(if (cx.present)(2) { cx.ty(2)?.dtype } else { asked.unwrap_or(DType::U8) })
    })
}

/// A convolution whose kernel is operand `kernel`.
pub(super) fn convolved(cx: &Infer, kernel: usize, dtype: impl Fn(&Infer) -> Result<DType, TypeError>) -> Types {
    let (x, w) = (cx.ty(0)?, cx.ty(kernel)?);
    let is_open =
        cx.attrs().ints("kernel_shape").is_none() && w.rank() > 2 && w.shape[2..].iter().any(|d| d.known().is_none());
    let shape = if is_open && x.rank() == w.rank() {
        // A kernel that is computed, such as the result's cotangent in the gradient of a weight.
        let sides = [x.shape[0].clone(), w.shape[0].clone()];
        sides.into_iter().chain(w.shape[2..].iter().map(|_| unknown_dim("window"))).collect()
    } else {
        Window::of(cx, Some(kernel))?.result(&x.shape, &w.shape[0])?
    };
    Ok(vec![TensorType::new(dtype(cx)?, shape)])
}

/// A matrix product with operand `right`.
pub(super) fn multiplied(cx: &Infer, right: usize, dtype: impl Fn(&Infer) -> Result<DType, TypeError>) -> Types {
    let (a, b) = (&cx.ty(0)?.shape, &cx.ty(right)?.shape);
    cx.require(a.len() >= 2 && b.len() >= 2, || "its operands are vectors or scalars; it multiplies matrices".into())?;
    let mut shape = broadcast(&a[..a.len() - 2], &b[..b.len() - 2])?;
    shape.extend([a[a.len() - 2].clone(), b[b.len() - 1].clone()]);
    Ok(vec![TensorType::new(dtype(cx)?, shape)])
}

/// One element for each place of the grid and each channel.
fn grid_sampled(cx: &Infer) -> Types {
    let (x, grid) = (cx.ty(0)?, cx.ty(1)?);
    cx.require(x.rank() >= 3 && grid.rank() == x.rank(), || format!("{grid} is no grid for {x}"))?;
    let mut shape = x.shape[..2].to_vec();
    shape.extend_from_slice(&grid.shape[1..grid.rank() - 1]);
    Ok(vec![TensorType::new(x.dtype, shape)])
}

/// A window of `output_height` × `output_width` for each region and channel.
fn regions(cx: &Infer) -> Types {
    let (x, regions) = (cx.ty(0)?, cx.ty(1)?);
    cx.require(x.rank() == 4 && regions.rank() == 2, || format!("{regions} are no regions of images {x}"))?;
    let [height, width] = ["output_height", "output_width"].map(|name| Dim::from(cx.op.int(name)));
    Ok(vec![TensorType::new(x.dtype, vec![regions.shape[0].clone(), x.shape[1].clone(), height, width])])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(op: Op, operands: &[&[i64]]) -> String {
        let mut g = Graph::default();
        let operands: Vec<_> =
            operands.iter().map(|dims| Some(g.add_input("x", TensorType::fixed(DType::F32, dims).into(), None))).collect();
        let types = result_types(&op, &operands, &g).expect("known").expect("typed");
        types[0].to_string()
    }

    #[test]
    fn operators_without_a_derivative_are_typed() {
        let plain = |name: &str| Op::new(name, Attrs::new());
        let strided = Op::new("DeformConv", Attrs::new().with("strides", vec![2, 2]));
        assert_eq!(result(strided, &[&[2, 3, 9, 8], &[4, 3, 3, 2], &[2, 12, 4, 4]]), "f32[2,4,4,4]");
        let large = Op::new("RoiAlign", Attrs::new().with("output_height", 7).with("output_width", 5));
        assert_eq!(result(large, &[&[2, 3, 9, 8], &[6, 4], &[6]]), "f32[6,3,7,5]");
        assert_eq!(result(plain("RoiAlign"), &[&[2, 3, 9, 8], &[6, 4], &[6]]), "f32[6,3,1,1]");
        assert_eq!(result(plain("Shrink"), &[&[2, 3]]), "f32[2,3]");
    }

    #[test]
    fn operators_on_blocked_channels_are_typed() {
        let blocked = |name: &str, attrs: Attrs| Op::in_domain("com.microsoft.nchwc", name, attrs);
        let conv = blocked("Conv", Attrs::new().with("pads", vec![1; 4]).with("strides", vec![2, 2]).with("group", 1));
        assert_eq!(result(conv, &[&[2, 3, 9, 8], &[16, 3, 3, 3], &[16]]), "f32[2,16,5,4]");
        let last = || Attrs::new().with("channels_last", 1);
        assert_eq!(result(blocked("ReorderInput", last()), &[&[2, 5, 4, 32]]), "f32[2,32,5,4]");
        assert_eq!(result(blocked("ReorderOutput", last().with("channels", 28)), &[&[2, 32, 5, 4]]), "f32[2,5,4,28]");
        assert_eq!(result(blocked("ReorderOutput", Attrs::new().with("channels", 28)), &[&[2, 32, 5, 4]]), "f32[2,28,5,4]");
        let scales = Attrs::new().with("scales", vec![1, 1, 2, 3]);
        assert_eq!(result(blocked("Upsample", scales), &[&[2, 16, 5, 4]]), "f32[2,16,10,12]");
        assert_eq!(result(blocked("GlobalAveragePool", Attrs::new()), &[&[2, 16, 5, 4]]), "f32[2,16,1,1]");
    }
}
