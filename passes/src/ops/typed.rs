//! Types of operators that have no rule: they are kept as they are, and what follows them still has to be typed.

use super::window::Window;
use super::*;

/// The types of such an operator's results; `None` of one that is not known.
pub(super) fn infer(cx: &Infer) -> Option<Types> {
    let name = cx.op.name.as_str();
    Some(match cx.op.domain.as_str() {
        "" | "ai.onnx" => standard(cx, name)?,
        "com.microsoft" => contributed(cx, name)?,
        _ => return None,
    })
}

fn standard(cx: &Infer, name: &str) -> Option<Types> {
    Some(match name {
        "ReverseSequence" | "Hardmax" | "Shrink" | "BitwiseNot" | "MeanVarianceNormalization" => like_first(cx),
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
        "QLinearConv" => convolved(cx, 3, |cx| Ok(cx.ty(7)?.dtype)),
        "MatMulInteger" => product(cx, 1, |_| Ok(DType::I32)),
        "QLinearMatMul" => product(cx, 3, |cx| Ok(cx.ty(7)?.dtype)),
        "LSTM" | "GRU" | "RNN" => recurrent(cx, name),
        "GridSample" => grid_sampled(cx),
        _ => return None,
    })
}

fn contributed(cx: &Infer, name: &str) -> Option<Types> {
    Some(match name {
        "QLinearSigmoid" | "QLinearLeakyRelu" => like_first(cx),
        "QuantizeLinear" => quantized(cx),
        "DequantizeLinear" => like(cx, |_| Ok(cx.ty(1)?.dtype)),
        "QLinearAdd" | "QLinearMul" => broadcast::broadcast(&cx.ty(0).ok()?.shape, &cx.ty(3).ok()?.shape)
            .and_then(|shape| Ok(vec![TensorType::new(cx.ty(0)?.dtype, shape)])),
        _ => return None,
    })
}

/// The first operand's shape with another element type.
fn like(cx: &Infer, dtype: impl Fn(&TensorType) -> Result<DType, TypeError>) -> Types {
    let ty = cx.ty(0)?;
    Ok(vec![TensorType::new(dtype(ty)?, ty.shape.clone())])
}

/// The element type is the zero point's, else the one asked for, else unsigned bytes.
fn quantized(cx: &Infer) -> Types {
    like(cx, |_| {
        let asked = DType::from_onnx(cx.op.int("output_dtype") as i32);
        Ok(if (cx.present)(2) { cx.ty(2)?.dtype } else { asked.unwrap_or(DType::U8) })
    })
}

/// A convolution whose kernel is operand `kernel`.
fn convolved(cx: &Infer, kernel: usize, dtype: impl Fn(&Infer) -> Result<DType, TypeError>) -> Types {
    let (x, w) = (cx.ty(0)?, cx.ty(kernel)?);
    cx.require(x.rank() >= 3 && w.rank() == x.rank(), || format!("{w} is no kernel for {x}"))?;
    let window = Window::new(cx.op, Some(&w.shape[2..]), &x.shape[2..])?;
    let mut shape = vec![x.shape[0].clone(), w.shape[0].clone()];
    shape.extend(window.output(&x.shape[2..])?);
    Ok(vec![TensorType::new(dtype(cx)?, shape)])
}

/// A matrix product with operand `right`.
fn product(cx: &Infer, right: usize, dtype: impl Fn(&Infer) -> Result<DType, TypeError>) -> Types {
    let (a, b) = (&cx.ty(0)?.shape, &cx.ty(right)?.shape);
    cx.require(a.len() >= 2 && b.len() >= 2, || "its operands are no matrices".into())?;
    let mut shape = broadcast::broadcast(&a[..a.len() - 2], &b[..b.len() - 2])?;
    shape.extend([a[a.len() - 2].clone(), b[b.len() - 1].clone()]);
    Ok(vec![TensorType::new(dtype(cx)?, shape)])
}

/// Y [steps, directions, batch, hidden], Y_h and, of an LSTM, Y_c [directions, batch, hidden].
fn recurrent(cx: &Infer, name: &str) -> Types {
    let (x, w, r) = (cx.ty(0)?, cx.ty(1)?, cx.ty(2)?);
    cx.require(x.rank() == 3 && w.rank() == 3 && r.rank() == 3, || format!("{x} is no sequence of vectors"))?;
    let (directions, hidden) = (w.shape[0].clone(), r.shape[2].clone());
    let batch_first = cx.op.int("layout") == 1;
    let [steps, batch] = if batch_first { [1, 0] } else { [0, 1] }.map(|i| x.shape[i].clone());
    let (all, last) = if batch_first {
        (vec![batch.clone(), steps, directions.clone(), hidden.clone()], vec![batch, directions, hidden])
    } else {
        (vec![steps, directions.clone(), batch.clone(), hidden.clone()], vec![directions, batch, hidden])
    };
    let mut types = vec![TensorType::new(x.dtype, all), TensorType::new(x.dtype, last)];
    types.extend((name == "LSTM").then(|| types[1].clone()));
    Ok(types)
}

/// The places of the grid, for each channel.
fn grid_sampled(cx: &Infer) -> Types {
    let (x, grid) = (cx.ty(0)?, cx.ty(1)?);
    cx.require(x.rank() >= 3 && grid.rank() == x.rank(), || format!("{grid} is no grid for {x}"))?;
    let mut shape = x.shape[..2].to_vec();
    shape.extend_from_slice(&grid.shape[1..grid.rank() - 1]);
    Ok(vec![TensorType::new(x.dtype, shape)])
}
