//! Attributes against the standard: what no version of an operator has, or has as something else, is a fault of the file.

use super::schema::{Kind, versions};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, NodeProto};

/// What is wrong with a node's attributes, in words that follow the node.
pub(super) fn fault(node: &NodeProto) -> Option<String> {
    let known = versions(&node.domain, &node.op_type);
    if known.is_empty() || !matches!(node.domain.as_str(), "" | "ai.onnx") {
        return None;
    }
    node.attribute.iter().find_map(|a| {
        let name = a.name.as_str();
        let kinds = || known.iter().filter_map(|s| Some(s.attribute(name)?.kind));
        match (kinds().next_back(), kind(a)) {
            // ONNX keeps such names for tools.
            (None, _) if name.starts_with("__") => None,
            (None, _) => {
                Some(format!("has an attribute `{name}`, which no version of {} has; re-export the model", node.op_type))
            }
            (Some(want), Some(kind)) if !kinds().any(|k| k == kind) => Some(format!(
                "has {} for its attribute `{name}`, {} was expected; re-export the model",
                word(kind),
                word(want)
            )),
            _ => None,
        }
    })
}

/// What an attribute holds; `None` where its message does not say, or holds what the standard's operators have not.
pub(super) fn kind(a: &AttributeProto) -> Option<Kind> {
    Some(match a.type_.enum_value().ok()? {
        AttributeType::INT => Kind::Int,
        AttributeType::FLOAT => Kind::Float,
        AttributeType::STRING => Kind::String,
        AttributeType::INTS => Kind::Ints,
        AttributeType::FLOATS => Kind::Floats,
        AttributeType::STRINGS => Kind::Strings,
        AttributeType::TENSOR => Kind::Tensor,
        AttributeType::GRAPH => Kind::Graph,
        AttributeType::SPARSE_TENSOR => Kind::SparseTensor,
        AttributeType::TYPE_PROTO => Kind::TypeProto,
        _ => return None,
    })
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Int => "an integer",
        Kind::Float => "a float",
        Kind::String => "a string",
        Kind::Ints => "a list of integers",
        Kind::Floats => "a list of floats",
        Kind::Strings => "a list of strings",
        Kind::Tensor => "a tensor",
        Kind::Graph => "a graph",
        Kind::SparseTensor => "a sparse tensor",
        Kind::TypeProto => "a type",
    }
}
