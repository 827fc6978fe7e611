//! Products into which ONNX Runtime has fused operators before them (transposes, a factor) or after them (an add, an activation).

use super::matmul::product_type;
use super::*;

/// α · op(A) op(B), where op transposes the last two axes.
pub(super) const MATMUL: Row = Row {
    domain: MICROSOFT,
    name: "FusedMatMul",
    infer: arranged_product,
    derivative: Derivative::Decompose("Transpose, MatMul, Mul"),
    decompose: |b, s| {
        let batched = ["transBatchA", "transBatchB"].iter().any(|a| s.op.int(a) == 1);
        refuse_if(batched, Why::Feature("transposed batches"))?;
        let operand = |b: &mut Builder, i: usize, attr: &str| -> Result<ValueId, Why> {
            let v = s.need(i)?;
            Ok(if s.op.int(attr) == 1 && b.ty(v)?.rank() > 1 { b.transpose_last(v)? } else { v })
        };
        let (x, y) = (operand(b, 0, "transA")?, operand(b, 1, "transB")?);
        let product = b.matmul(x, y)?;
        one(b.scale(product, s.op.float("alpha") as f64))
    },
    samples: || {
        let attrs = |a: i64, b: i64| Attrs::new().with("transA", a).with("transB", b).with("alpha", 0.5_f32);
        vec![
            sample(attrs(0, 1), vec![floats(&[2, 3, 4]), floats(&[2, 5, 4])]),
            sample(attrs(1, 0), vec![floats(&[2, 4, 3]), floats(&[4, 5])]),
        ]
    },
    ..ROW
};

/// The older name of [`MATMUL`].
pub(super) const TRANSPOSED: Row = Row { name: "TransposeMatMul", ..MATMUL };

/// Operands: x, weight, bias, and a value that is added before the activation.
pub(super) const CONV: Row = Row {
    name: "FusedConv",
    infer: |cx| super::conv::CONV.infer(cx),
    derivative: Derivative::Decompose("Conv, Add, its activation"),
    decompose: |b, s| {
        let mut y = b.node(Op::new("Conv", without_activation(s)), &[Some(s.need(0)?), Some(s.need(1)?), s.get(2)])?[0];
        if let Some(z) = s.get(3) {
            y = b.add(y, z)?;
        }
        let parameters = s.op.attrs.floats("activation_params").map(<[f32]>::to_vec).unwrap_or_default();
        activated(b, y, s.op.str("activation"), &parameters)
    },
    samples: || {
        let operands = || vec![floats(&[2, 3, 6, 6]), floats(&[4, 3, 3, 3]), floats(&[4])];
        let leaky = Attrs::new().with("activation", "LeakyRelu").with("activation_params", vec![0.1_f32]);
        vec![
            // A smooth activation suits finite differences.
            sample(Attrs::new().with("activation", "Tanh").with("pads", vec![1, 1, 1, 1]), operands()),
            sample(leaky, operands()).shape_only(),
        ]
    },
    ..MATMUL
};

pub(super) const GEMM: Row = Row {
    name: "FusedGemm",
    infer: |cx| super::gemm::GEMM.infer(cx),
    derivative: Derivative::Decompose("Gemm, its activation"),
    decompose: |b, s| {
        let operands = [Some(s.need(0)?), Some(s.need(1)?), s.get(2)];
        let y = b.node(Op::new("Gemm", without_activation(s)), &operands)?[0];
        let given = |name: &str| s.op.attrs.get(name).map(|_| s.op.float(name));
        let parameters: Vec<f32> = [given("activation_alpha"), given("activation_beta")].into_iter().flatten().collect();
        activated(b, y, s.op.str("activation"), &parameters)
    },
    samples: || {
        let attrs = Attrs::new().with("activation", "Tanh").with("transB", 1);
        vec![sample(attrs, vec![floats(&[2, 3]), floats(&[4, 3]), floats(&[4])])]
    },
    ..MATMUL
};

/// Applies the activation that is fused into an operator.
fn activated(b: &mut Builder, x: ValueId, name: &str, parameters: &[f32]) -> Decomposed {
    let number = |i: usize, default: f32| parameters.get(i).copied().unwrap_or(default);
    let attrs = match name {
        "" => return Ok(vec![x]),
        "Relu" | "Sigmoid" | "Tanh" => Attrs::new(),
        "LeakyRelu" => Attrs::new().with("alpha", number(0, 0.01)),
        "HardSigmoid" => Attrs::new().with("alpha", number(0, 0.2)).with("beta", number(1, 0.5)),
        "Clip" if b.opset() >= 11 => {
            let dtype = b.ty(x)?.dtype;
            let (low, high) = (number(0, f32::MIN), number(1, f32::MAX));
            let (low, high) = (b.scalar(dtype, low as f64), b.scalar(dtype, high as f64));
            return one(b.op("Clip", &[x, low, high]));
        }
        _ => return Err(Why::Attribute { attribute: "activation", value: name.to_string() }),
    };
    one(b.op_with(name, attrs, &[x]))
}

/// The attributes without those of the fused activation.
fn without_activation(s: &Source) -> Attrs {
    let mut attrs = s.op.attrs.clone();
    attrs.0.retain(|name, _| !name.starts_with("activation"));
    attrs
}

/// `transBatch…` moves the first axis to the second last place, then `trans…` swaps the last two.
fn arranged_product(cx: &Infer) -> Types {
    let arranged = |i: usize, trans: &str, batch: &str| -> Result<TensorType, TypeError> {
        let mut ty = cx.ty(i)?.clone();
        let rank = ty.rank();
        if rank < 2 {
            return Ok(ty);
        }
        if cx.op.int(batch) != 0 {
            ty.shape[..rank - 1].rotate_left(1);
        }
        if cx.op.int(trans) != 0 {
            ty.shape.swap(rank - 1, rank - 2);
        }
        Ok(ty)
    };
    let (a, b) = (arranged(0, "transA", "transBatchA")?, arranged(1, "transB", "transBatchB")?);
    Ok(vec![product_type(&a, &b)?])
}
