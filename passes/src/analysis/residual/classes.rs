//! What an operator does to the values that pass through it, as far as the residual structure is concerned.

use crate::ir::{DType, Graph, NodeId, Op};

/// The kinds of operators that the analysis tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Combines elements across positions or channels with weights, or across positions by a window: what a branch must have.
    Mixing(Mixing),
    /// Hands its first operand on as it is, up to precision.
    Carry,
    /// Hands its first operand on in another arrangement of the same elements.
    Layout,
    /// Normalises its first operand.
    Norm,
    /// Mean, maximum, … over axes.
    Reduce,
    /// Multiplies or divides two operands.
    Scale,
    /// Adds.
    Add,
    /// Selects, pads, resizes: keeps values, changes which there are.
    Select,
    /// Joins tensors side by side.
    Concat,
    /// A nonlinear function of each element, or of each row (softmax).
    Nonlinear,
    /// Element-wise and none of the above.
    Elementwise,
    /// Anything else.
    Other,
}

/// The mixing operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mixing {
    Conv,
    MatMul,
    Attention,
    Pool,
    Recurrent,
    Fourier,
    Opaque,
}

impl Mixing {
    /// Its word in a branch's signature.
    pub(super) fn name(self) -> &'static str {
        match self {
            Mixing::Conv => "Conv",
            Mixing::MatMul => "MatMul",
            Mixing::Attention => "Attention",
            Mixing::Pool => "Pool",
            Mixing::Recurrent => "Recurrent",
            Mixing::Fourier => "Fourier",
            Mixing::Opaque => "Opaque",
        }
    }
}

/// Classifies by operator, whatever its domain: fused and quantised variants carry the plain operator's word in their name.
pub(super) fn class(op: &Op) -> Class {
    use Class::*;
    let name = op.name.as_str();
    match name {
        "Identity" | "Cast" | "CastLike" | "Dropout" | "QuantizeLinear" | "DequantizeLinear" | "Contiguous" => Carry,
        "Reshape" | "Transpose" | "Squeeze" | "Unsqueeze" | "Flatten" => Layout,
        "Mul" | "Div" | "QLinearMul" => Scale,
        "Add" | "Sum" | "QLinearAdd" => Add,
        "Slice" | "Pad" | "Resize" | "Upsample" | "DepthToSpace" | "SpaceToDepth" | "Gather" | "Split" | "Expand"
        | "Tile" | "GatherElements" | "GatherND" | "ScatterND" | "ScatterElements" | "Compress" | "CenterCropPad"
        | "Col2Im" => Select,
        "Concat" | "QLinearConcat" => Concat,
        "BatchNormalization"
        | "LayerNormalization"
        | "InstanceNormalization"
        | "GroupNormalization"
        | "GroupNorm"
        | "RMSNormalization"
        | "SimplifiedLayerNormalization"
        | "LpNormalization"
        | "MeanVarianceNormalization" => Norm,
        "Relu" | "LeakyRelu" | "PRelu" | "Elu" | "Selu" | "Celu" | "Gelu" | "FastGelu" | "BiasGelu" | "QuickGelu"
        | "Sigmoid" | "HardSigmoid" | "HardSwish" | "Swish" | "Mish" | "Tanh" | "Erf" | "Clip" | "ThresholdedRelu"
        | "Softplus" | "Softsign" | "Softmax" | "LogSoftmax" | "Hardmax" | "Exp" | "Log" | "Sin" | "Cos" | "Abs" | "Max"
        | "Min" | "QLinearSigmoid" | "QLinearLeakyRelu" | "Shrink" | "Sign" => Nonlinear,
        "Sub" | "Neg" | "Pow" | "Sqrt" | "Reciprocal" | "Where" | "IsNaN" | "IsInf" | "Equal" | "Not" | "Greater"
        | "Less" | "GreaterOrEqual" | "LessOrEqual" | "And" | "Or" | "Mean" => Elementwise,
        "LSTM" | "GRU" | "RNN" | "DynamicQuantizeLSTM" => Mixing(self::Mixing::Recurrent),
        "DFT" | "STFT" | "Rfft" | "Irfft" => Mixing(self::Mixing::Fourier),
        "Loop" | "Scan" | "MoE" | "QMoE" => Mixing(self::Mixing::Opaque),
        _ if name.starts_with("Reduce") || name.contains("GlobalAveragePool") || name.contains("GlobalMaxPool") => Reduce,
        _ if name == "GlobalLpPool" => Reduce,
        _ if name.contains("Conv") => Mixing(self::Mixing::Conv),
        _ if name.contains("MatMul") || name.contains("Gemm") || name == "Einsum" => Mixing(self::Mixing::MatMul),
        _ if name.contains("Attention") => Mixing(self::Mixing::Attention),
        _ if name.contains("Pool") || name == "RoiAlign" => Mixing(self::Mixing::Pool),
        _ => match op.domain.as_str() {
            // An operator of a custom library: most likely somebody's convolution or attention.
            "" | "ai.onnx" | "ai.onnx.ml" | "com.microsoft" | "ancre" => Other,
            _ => Mixing(self::Mixing::Opaque),
        },
    }
}

/// Does the operator read this operand for its numbers, rather than for a shape, a type or the axes to work on?
pub(super) fn reads_data(op: &Op, operand: usize) -> bool {
    let described = matches!(
        (op.name.as_str(), operand),
        ("Shape" | "Size" | "ConstantOfShape" | "Range" | "EyeLike" | "RandomNormalLike" | "RandomUniformLike", _)
            | (
                "Reshape"
                    | "Expand"
                    | "Tile"
                    | "Slice"
                    | "Pad"
                    | "Resize"
                    | "Upsample"
                    | "Unsqueeze"
                    | "Squeeze"
                    | "Split"
                    | "TopK"
                    | "CastLike"
                    | "Dropout",
                1..
            )
    ) || (op.name.starts_with("Reduce") && operand > 0);
    !described
}

/// Does the operator round to integers of which none stands for a number below zero? A quantised network spells its ReLU that
/// way: the zero point is the type's lowest value.
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

/// Addends of an operator that adds: groups of operand numbers, and whether the operator first applies a weight to the group.
pub(super) struct Addend {
    /// Operand that carries the addend.
    pub(super) operand: usize,
    /// A mixing operator inside the node that the operand passes before it is added.
    pub(super) inner: Option<Mixing>,
}

/// The addends of a node, if it adds tensors. A bias that is a vector by definition of the operator is no addend.
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
        ("com.microsoft", "QLinearAdd") => Some(plain(&[0, 3])),
        ("com.microsoft", "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization") => Some(plain(&[0, 1])),
        ("com.microsoft", "SkipGroupNorm") => Some(plain(&[0, 3])),
        ("com.microsoft", "BiasAdd" | "BiasDropout" | "BitmaskBiasDropout") => {
            let fits = g.operand(node, 2).is_some();
            fits.then(|| plain(&[0, 2]))
        }
        ("com.microsoft" | "com.microsoft.nhwc" | "com.ms.internal.nhwc", "FusedConv" | "NhwcFusedConv") => {
            fused(3, Mixing::Conv)
        }
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
        "FusedConv" | "NhwcFusedConv" => match op.attrs.str("activation", "") {
            "" => None,
            activation => Some(activation.to_string()),
        },
        _ => None,
    }
}
