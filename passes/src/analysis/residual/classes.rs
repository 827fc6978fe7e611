//! Operators that add, and the further steps of fused operators that add.

use crate::ir::{DType, Graph, NodeId, Op};
use crate::ops::{Class, Mixing};

/// Does the operator round to integers that stand for no number below zero? A quantised network writes its ReLU that
/// way: the zero point is the lowest value of the type.
pub(super) fn clips_at_zero(g: &Graph, node: NodeId) -> bool {
    let zero_point = match g.op(node).map(|op| op.name.as_str()) {
        Some("QuantizeLinear") => 2,
        Some("QLinearConv" | "QLinearMatMul" | "QLinearAdd" | "QLinearMul") => 7,
        Some("QGemm") => 8,
        _ => return false,
    };
    let Some(v) = g.operand(node, zero_point) else { return false };
    let Some(t) = g.constant(v) else { return false };
    let lowest = match t.dtype() {
        DType::U8 | DType::U16 => 0,
        DType::I8 => i64::from(i8::MIN),
        DType::I16 => i64::from(i16::MIN),
        _ => return false,
    };
    !t.is_empty() && t.to_i64().is_ok_and(|z| z.iter().all(|z| *z == lowest))
}

/// An addend of an operator that adds.
pub(super) struct Addend {
    /// Operand that carries the addend.
    pub(super) operand: usize,
    /// A mixing operator inside the node that the operand passes before it is added.
    pub(super) inner: Option<Mixing>,
}

/// The addends of a node, if it adds tensors. A bias that the operator defines as a vector is no addend.
pub(super) fn addends(g: &Graph, node: NodeId) -> Option<Vec<Addend>> {
    let op = g.op(node)?;
    let plain = |operands: &[usize]| operands.iter().map(|i| Addend { operand: *i, inner: None }).collect::<Vec<_>>();
    let count = g.node(node).operand_count();
    let fused = |z: usize, inner: Mixing| {
        let read = g.operand(node, z).is_some();
        read.then(|| vec![Addend { operand: 0, inner: Some(inner) }, Addend { operand: z, inner: None }])
    };
    match (op.domain.as_str(), op.name.as_str()) {
        ("" | "ai.onnx", "Add") => Some(plain(&[0, 1])),
        ("" | "ai.onnx", "Sum") => (count >= 2).then(|| plain(&(0..count).collect::<Vec<_>>())),
        ("" | "ai.onnx", "Gemm") => fused(2, Mixing::MatMul),
        ("com.microsoft", "QLinearAdd" | "SkipGroupNorm") => Some(plain(&[0, 3])),
        ("com.microsoft", "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization") => Some(plain(&[0, 1])),
        ("com.microsoft", "BiasAdd" | "BiasDropout" | "BitmaskBiasDropout") => {
            g.operand(node, 2).is_some().then(|| plain(&[0, 2]))
        }
        ("com.microsoft" | "com.microsoft.nhwc" | "com.ms.internal.nhwc", "FusedConv" | "NhwcFusedConv")
        | ("com.microsoft.nchwc", "Conv") => fused(3, Mixing::Conv),
        _ => None,
    }
}

/// The result slot that is the bare sum, when the first result is not.
pub(super) fn sum_slot(op: &Op) -> u32 {
    match op.name.as_str() {
        "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => 3,
        "SkipGroupNorm" => 1,
        _ => 0,
    }
}

/// What a fused adding operator applies to the sum before its first result.
pub(super) fn fused_post(op: &Op) -> Option<String> {
    match op.name.as_str() {
        "SkipLayerNormalization" => Some("LayerNormalization".into()),
        "SkipSimplifiedLayerNormalization" => Some("RMSNormalization".into()),
        "SkipGroupNorm" => Some("GroupNormalization".into()),
        _ => fused_activation(op).map(String::from),
    }
}

/// The activation that a fused convolution or product applies to its result.
pub(super) fn fused_activation(op: &Op) -> Option<&str> {
    let takes_one = matches!(Class::of(op), Class::Mixing(Mixing::Conv | Mixing::MatMul)) && !op.domain.is_empty();
    takes_one.then(|| op.str("activation")).filter(|a| !a.is_empty())
}
