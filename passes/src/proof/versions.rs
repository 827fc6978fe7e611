//! Operator sets: which operators mean the same in all of them.

use super::canonical::{Side, Site};
use crate::ir::Op;

/// Operators of the standard domain whose meaning, for the attributes that are compared and the operands as they stand, is
/// the same in operator sets 7 to 26.
const STABLE: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvInteger",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "CumSum",
    "DepthToSpace",
    "DequantizeLinear",
    "Div",
    "Dropout",
    "Einsum",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "EyeLike",
    "Floor",
    "Flatten",
    "GRU",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LRN",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LpNormalization",
    "MatMul",
    "MatMulInteger",
    "Max",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "NonZero",
    "Not",
    "OneHot",
    "Or",
    "PRelu",
    "Pow",
    "QLinearConv",
    "QLinearMatMul",
    "QuantizeLinear",
    "RMSNormalization",
    "RNN",
    "Range",
    "Reciprocal",
    "Relu",
    "Reshape",
    "Round",
    "Selu",
    "Shape",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Size",
    "Slice",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Tile",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
    "Xor",
];

/// Part of an operator's key: 0 where its meaning does not depend on the operator set, or the two graphs have the same.
pub(super) fn version_key(side: &Side, op: &Op, site: &Site, has_subgraph: bool) -> i64 {
    if !side.versions_differ {
        return 0;
    }
    if !op.domain.is_empty() {
        return side.graph.opsets.get(&op.domain).copied().unwrap_or(0) + 1;
    }
    let a = &op.attrs;
    let stable = match op.name.as_str() {
        _ if has_subgraph || a.0.values().any(|a| matches!(a, crate::ir::Attr::Opaque(_))) => false,
        // 19 says which elements the last window counts.
        "AveragePool" => a.int("ceil_mode", 0) == 0,
        "MaxPool" => a.int("ceil_mode", 0) == 0 && site.results == 1,
        "BatchNormalization" => site.opset >= 9 && site.results == 1 && a.int("training_mode", 0) == 0,
        // Before 13 the axes from this one on were taken together.
        "Softmax" | "LogSoftmax" | "Hardmax" => {
            let rank = site.ty().map(|t| t.rank() as i64);
            let axis = a.int("axis", if site.opset < 13 { 1 } else { -1 });
            rank.is_some_and(|r| axis == -1 || axis == r - 1)
        }
        // Axes given the same way: `None` of both means all of them.
        name if name.starts_with("Reduce") => a.int("noop_with_empty_axes", 0) == 0,
        name => STABLE.contains(&name),
    };
    if stable { 0 } else { site.opset + 1 }
}
