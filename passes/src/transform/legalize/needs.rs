//! Which operator set a source's operators ask for, going down.

use super::edit;
use crate::ir::{Attr, Attrs, DType, Graph, NodeId};
use onnx_protobuf::GraphProto;

/// Operators that opset 18 does not have, with every version of theirs.
const NEW: &[(&str, &[i64])] = &[
    ("AffineGrid", &[20]),
    ("Attention", &[23, 24, 25]),
    ("BitCast", &[26]),
    ("CumProd", &[26]),
    ("DeformConv", &[19, 22]),
    ("Gelu", &[20]),
    ("ImageDecoder", &[20]),
    ("RMSNormalization", &[23]),
    ("RegexFullMatch", &[20]),
    ("RotaryEmbedding", &[23]),
    ("StringConcat", &[20]),
    ("StringSplit", &[20]),
    ("Swish", &[24]),
    ("TensorScatter", &[24]),
    // Changed in a way that an older version does not have.
    ("DFT", &[20]),
    ("GroupNormalization", &[18, 21]),
];

/// Attributes that came after opset 18: operator, attribute, version, and the value that says nothing (`None`: none does).
const LATER_ATTRS: &[(&str, &str, i64, Option<Silent>)] = &[
    ("AveragePool", "dilations", 19, Some(Silent::Ones)),
    ("Cast", "saturate", 19, Some(Silent::Int(1))),
    ("Cast", "round_mode", 24, Some(Silent::Str("up"))),
    ("CastLike", "saturate", 19, Some(Silent::Int(1))),
    ("CastLike", "round_mode", 24, Some(Silent::Str("up"))),
    ("DequantizeLinear", "block_size", 21, Some(Silent::Int(0))),
    ("DequantizeLinear", "output_dtype", 23, Some(Silent::Int(0))),
    ("QuantizeLinear", "block_size", 21, Some(Silent::Int(0))),
    ("QuantizeLinear", "output_dtype", 21, Some(Silent::Int(0))),
    ("QuantizeLinear", "precision", 23, Some(Silent::Int(0))),
    ("QuantizeLinear", "saturate", 19, Some(Silent::Int(1))),
];

/// Values that came after opset 18: operator, string attribute, value, version.
const LATER_VALUES: &[(&str, &str, &str, i64)] =
    &[("Pad", "mode", "wrap", 19), ("Resize", "coordinate_transformation_mode", "half_pixel_symmetric", 19)];

/// Operators whose version 22 added bfloat16.
const BFLOAT_22: &[&str] = &[
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "AveragePool",
    "Conv",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "Det",
    "Elu",
    "EyeLike",
    "GRU",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "GridSample",
    "HardSigmoid",
    "HardSwish",
    "InstanceNormalization",
    "LSTM",
    "LpNormalization",
    "LpPool",
    "MaxPool",
    "MaxRoiPool",
    "MaxUnpool",
    "Mish",
    "Multinomial",
    "NegativeLogLikelihoodLoss",
    "RNN",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "RoiAlign",
    "Round",
    "Selu",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Tan",
    "ThresholdedRelu",
];

/// An attribute value that means the same as no attribute.
enum Silent {
    Int(i64),
    Ones,
    Str(&'static str),
}

impl Silent {
    fn is(&self, a: &Attr) -> bool {
        match (self, a) {
            (Silent::Int(n), Attr::Int(v)) => n == v,
            (Silent::Ones, Attr::Ints(v)) => v.iter().all(|d| *d == 1),
            (Silent::Str(s), Attr::Str(v)) => s == v,
            _ => false,
        }
    }
}

/// The smallest operator set from `target` on (at most the source's own) that has every operator as it is used.
pub(super) fn smallest(g: &Graph, from: i64, target: i64) -> i64 {
    if from <= target {
        return target;
    }
    let needed = g.nodes().map(|id| of_node(g, id, from)).max().unwrap_or(target);
    needed.clamp(target, from)
}

/// A node that asks for a later operator set than `to`, and which.
pub(super) fn beyond(g: &Graph, from: i64, to: i64) -> Option<(NodeId, i64)> {
    let needed = |id: NodeId| (id, of_node(g, id, from));
    if from <= to { None } else { g.nodes().map(needed).find(|(_, n)| *n > to) }
}

/// Version of an operator that opset 18 lacks, as `from` means it; 0 for all others.
pub(super) fn version(name: &str, from: i64) -> i64 {
    of_operator(name, from)
}

fn of_node(g: &Graph, id: NodeId, from: i64) -> i64 {
    let Some(op) = g.op(id).filter(|op| op.domain.is_empty()) else { return 0 };
    let mut needed = of_operator(&op.name, from).max(of_attrs(&op.name, &op.attrs));
    let operands = g.operands(id);
    let rank = operands.first().copied().flatten().and_then(|v| g.tensor_type(v)).map(|t| t.rank());
    if op.name == "GridSample" && rank.is_some_and(|r| r > 4) {
        needed = needed.max(20);
    }
    for v in operands.iter().flatten().copied().chain(g.results(id)) {
        if let Some(t) = g.value(v).ty.dtype {
            needed = needed.max(of_type(&op.name, t));
        }
    }
    for a in op.attrs.0.values() {
        if let Attr::Opaque(a) = a {
            for sub in a.g.as_ref().into_iter().chain(&a.graphs) {
                needed = needed.max(of_subgraph(sub, from));
            }
        }
    }
    needed
}

/// Version of an operator that opset 18 lacks, as the source's opset means it.
fn of_operator(name: &str, from: i64) -> i64 {
    let versions = NEW.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, v)| v);
    versions.iter().copied().filter(|v| *v <= from).max().unwrap_or(0)
}

fn of_attrs(name: &str, attrs: &Attrs) -> i64 {
    let mut needed = 0;
    for (_, attr, version, silent) in LATER_ATTRS.iter().filter(|(n, ..)| *n == name) {
        if let Some(a) = attrs.get(attr)
            && !silent.as_ref().is_some_and(|s| s.is(a))
        {
            needed = needed.max(*version);
        }
    }
    for (_, attr, value, version) in LATER_VALUES.iter().filter(|(n, ..)| *n == name) {
        if attrs.str(attr, "") == *value {
            needed = needed.max(*version);
        }
    }
    // Version 19 says which elements the last window counts.
    if name == "AveragePool" && attrs.int("ceil_mode", 0) == 1 && attrs.int("count_include_pad", 0) == 1 {
        needed = needed.max(19);
    }
    needed
}

/// First version of an operator from 19 on that takes an element type which its version in opset 18 does not.
fn of_type(name: &str, t: DType) -> i64 {
    use DType::*;
    let quantizes = matches!(name, "QuantizeLinear" | "DequantizeLinear");
    match t {
        F8E4M3 | F8E4M3Z | F8E5M2 | F8E5M2Z => match name {
            "Dropout" => 22,
            "Flatten" | "Pad" | "Squeeze" | "Transpose" | "Unsqueeze" | "QLinearMatMul" => 21,
            "IsInf" | "IsNaN" | "ConstantOfShape" => 20,
            _ => 19,
        },
        F4 => 23,
        I4 | U4 => 21,
        I16 | U16 if quantizes => 21,
        F16 | BF16 if quantizes => 19,
        F16 if name == "IsInf" => 20,
        BF16 if matches!(name, "IsInf" | "ConstantOfShape") => 20,
        BF16 if matches!(name, "TopK" | "SplitToSequence") => 24,
        BF16 if BFLOAT_22.contains(&name) => 22,
        Bool if matches!(name, "ReduceMax" | "ReduceMin") => 20,
        Str if name == "Equal" => 19,
        _ => 0,
    }
}

/// What the nodes of a subgraph ask for. Their types are not known here; attributes that came later are not taken away.
fn of_subgraph(graph: &GraphProto, from: i64) -> i64 {
    let mut needed = 0;
    for n in graph.node.iter().filter(|n| n.domain.is_empty() || n.domain == "ai.onnx") {
        needed = needed.max(of_operator(&n.op_type, from));
        for a in &n.attribute {
            let later = LATER_ATTRS.iter().filter(|(op, attr, ..)| *op == n.op_type && *attr == a.name).map(|(.., v, _)| *v);
            needed = needed.max(later.max().unwrap_or(0));
            for sub in a.g.as_ref().into_iter().chain(&a.graphs) {
                needed = needed.max(of_subgraph(sub, from));
            }
        }
    }
    needed
}

/// Removes attributes that the operator set does not know and that say nothing, and renames values it spells differently.
pub(super) fn strip(g: &mut Graph, opset: i64) {
    let nodes: Vec<NodeId> = g.nodes().collect();
    for id in nodes {
        let Some(op) = g.op(id).filter(|op| op.domain.is_empty()) else { continue };
        let unknown: Vec<&str> = LATER_ATTRS
            .iter()
            .filter(|(n, attr, version, _)| *n == op.name && *version > opset && op.attrs.get(attr).is_some())
            .map(|(_, attr, ..)| *attr)
            .collect();
        let mode = match op.attrs.str("mode", "") {
            "linear" if op.name == "GridSample" && opset < 20 => Some("bilinear"),
            "cubic" if op.name == "GridSample" && opset < 20 => Some("bicubic"),
            _ => None,
        };
        if unknown.is_empty() && mode.is_none() {
            continue;
        }
        edit(g, id, |attrs| {
            attrs.0.retain(|name, _| !unknown.contains(&name.as_str()));
            if let Some(mode) = mode {
                attrs.0.insert("mode".into(), mode.into());
            }
        });
    }
}
