//! Constants that an exporter wrote where the model has no parameter. ONNX's normalisations have a scale and a bias, so the exporter
//! writes ones and zeros for a normalisation that has neither.
//!
//! Ones and zeros alone are no evidence: the parameters of a network that was not trained yet are the same. One of these must hold
//! too, each for a single use of the constant:
//!
//! * PyTorch's newer exporter notes at every node the call it comes from, and that call was given `None`;
//! * the operator is the inner part of a group normalisation: it normalises groups, and a product after it scales the channels;
//! * the tensor has the name of an intermediate value, in a file that keeps the parameters' names.

use crate::ir::{Graph, Kind, NodeId, Tensor, ValueId};

/// The metadata in which PyTorch's exporter keeps the call that a node stems from.
const CALL: &str = "pkg.torch.onnx.fx_node";

/// The two operands of a normalisation that may be parameters.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Scale,
    Bias,
}

/// Does a node read, as this operand, a constant that stands for a parameter the model lacks?
pub(super) fn is_of_exporter(g: &Graph, node: NodeId, operand: usize, v: ValueId) -> bool {
    let Some(part) = part(g, node, operand) else { return false };
    // A group normalisation is written in two parts, and the call describes the outer part.
    let said = call(g, node).and_then(|text| is_none(text, part));
    let inner = is_normalisation(g, node) && is_inner(g, node, v);
    let named = said.is_none() && is_normalisation(g, node) && is_intermediate(g, v);
    // The call is evidence enough, whatever the data is.
    said == Some(true) && !inner || (inner || named) && g.initializer(v).is_none_or(|t| is_neutral(t, part))
}

fn is_normalisation(g: &Graph, node: NodeId) -> bool {
    const ALL: &[&str] =
        &["BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"];
    g.op(node).is_some_and(|op| op.name == "BatchNormTrain" || op.domain.is_empty() && ALL.contains(&op.name.as_str()))
}

/// Which part an operand would be: of a normalisation, or of the product and the sum at the end of a decomposed normalisation.
fn part(g: &Graph, node: NodeId, operand: usize) -> Option<Part> {
    match (g.op(node)?.name.as_str(), operand) {
        _ if is_normalisation(g, node) => [None, Some(Part::Scale), Some(Part::Bias)].get(operand).copied().flatten(),
        ("Mul", 0 | 1) => Some(Part::Scale),
        ("Add", 0 | 1) => Some(Part::Bias),
        _ => None,
    }
}

fn call(g: &Graph, node: NodeId) -> Option<&str> {
    let source = g.op(node)?.source.as_ref()?;
    source.metadata_props.iter().find(|p| p.key == CALL).map(|p| p.value.as_str())
}

/// The parameter that a linear map was called with as its weight, by the name that PyTorch's newer exporter gave it (`p_h_0_mlp_weight`).
pub(crate) fn weight_of_call(g: &Graph, node: NodeId) -> Option<&str> {
    let (_, arguments) = call(g, node)?.split_once("torch.ops.aten.linear.default](args = (%")?;
    let name = arguments.split_once(", %")?.1.split([',', ')']).next()?;
    name.starts_with("p_").then_some(name)
}

/// Was a normalisation called without this parameter? `None`: the call is not of a normalisation, or cannot be read.
fn is_none(call: &str, part: Part) -> Option<bool> {
    let (_, rest) = call.split_once("torch.ops.aten.")?;
    let (name, rest) = rest.split_once(['.', ']'])?;
    let scale = match name {
        "layer_norm" | "native_layer_norm" | "group_norm" | "rms_norm" | "_fused_rms_norm" => 2,
        "batch_norm" | "instance_norm" | "native_group_norm" => 1,
        _ if name.starts_with("_native_batch_norm") || name == "native_batch_norm" => 1,
        _ => return None,
    };
    let (_, rest) = rest.split_once("args = (")?;
    let place = scale + usize::from(part == Part::Bias);
    match arguments(rest).get(place) {
        Some(text) => Some(text.trim() == "None"),
        // An argument that is not listed has its default, or is given by name.
        None => Some(!rest.contains(if part == Part::Scale { "weight:" } else { "bias:" })),
    }
}

/// The arguments of a call up to its closing bracket.
fn arguments(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' if depth > 0 => depth -= 1,
            ')' | ',' if depth == 0 => {
                if !text[start..i].trim().is_empty() {
                    found.push(&text[start..i]);
                }
                start = i + 1;
                if c == ')' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

/// Is it an instance normalisation between two reshapes, on a tensor without a parameter's name? Exporters write the inner part of a
/// group normalisation in this way.
fn is_inner(g: &Graph, node: NodeId, v: ValueId) -> bool {
    let before = g.operand(node, 0).is_some_and(|x| g.is_op(x.node, "Reshape"));
    let after = g.single_use(g.result(node, 0)).is_some_and(|(n, _)| g.is_op(n, "Reshape"));
    g.is_op(node, "InstanceNormalization") && before && after && !is_path(g.name(v))
}

/// Has the tensor an intermediate value's name (`val_12`, `/block/Constant_output_0`), in a file where parameters have theirs?
fn is_intermediate(g: &Graph, v: ValueId) -> bool {
    let name = g.name(v);
    let numbered = name.strip_prefix("val_").is_some_and(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()));
    let keeps_names =
        || g.nodes().any(|n| matches!(g.node(n).kind, Kind::Initializer { .. }) && is_path(g.name(g.result(n, 0))));
    (numbered || name.starts_with('/')) && keeps_names()
}

/// `layers.0.norm.weight`: the path of an attribute, as parameters are named.
fn is_path(name: &str) -> bool {
    let word = |s: &str| !s.is_empty() && s.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    name.contains('.') && name.split('.').all(word)
}

fn is_neutral(t: &Tensor, part: Part) -> bool {
    let neutral = if part == Part::Scale { 1.0 } else { 0.0 };
    t.to_f64().is_ok_and(|values| values.iter().all(|v| *v == neutral))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, DType, Op, TensorType, ValueType};
    use onnx_protobuf::{NodeProto, StringStringEntryProto};
    use std::sync::Arc;

    fn ty(dims: &[i64]) -> ValueType {
        TensorType::fixed(DType::F32, dims).into()
    }

    fn node(g: &mut Graph, op: &str, operands: &[ValueId], call: Option<&str>) -> NodeId {
        let mut op = Op::new(op, Attrs::new());
        if let Some(call) = call {
            let entry = StringStringEntryProto { key: CALL.into(), value: call.into(), ..Default::default() };
            op.source = Some(Arc::new(NodeProto { metadata_props: vec![entry], ..Default::default() }));
        }
        let n = g.add_op("", op, &operands.iter().map(|v| Some(*v)).collect::<Vec<_>>());
        g.push_result(n, "", ty(&[2, 4]));
        n
    }

    fn constant(g: &mut Graph, name: &str, value: f32) -> ValueId {
        g.add_initializer(name, Tensor::f32s(&[4], &[value; 4]), false)
    }

    #[test]
    fn a_call_says_which_parameters_it_was_given() {
        let call = |args: &str| format!("%y : [num_users=1] = call_function[target=torch.ops.aten.{args}, kwargs = {{}})");
        for (args, scale, bias) in [
            ("group_norm.default](args = (%x, 2, None, None, 1e-05, False)", true, true),
            ("group_norm.default](args = (%x, 2, %p_n_weight, %p_n_bias, 1e-05)", false, false),
            ("layer_norm.default](args = (%x, [4, 5], None, %p_n_bias)", true, false),
            ("layer_norm.default](args = (%x, [4])", true, true),
            ("_native_batch_norm_legit_no_training.default](args = (%x, None, None, %m, %v, 0.1, 1e-05)", true, true),
            ("instance_norm.default](args = (%x, %w, %b, None, None, True, 0.1, 1e-05, True)", false, false),
        ] {
            let mut g = Graph::default();
            let x = g.add_input("x", ty(&[2, 4]), None);
            let (ones, zeros) = (constant(&mut g, "a.ones", 1.0), constant(&mut g, "a.zeros", 0.0));
            let text = call(args);
            let mul = node(&mut g, "Mul", &[x, ones], Some(&text));
            let add = node(&mut g, "Add", &[x, zeros], Some(&text));
            assert_eq!(is_of_exporter(&g, mul, 1, ones), scale, "{args}");
            assert_eq!(is_of_exporter(&g, add, 1, zeros), bias, "{args}");
        }
        let mut g = Graph::default();
        let x = g.add_input("x", ty(&[2, 4]), None);
        let ones = constant(&mut g, "val_1", 1.0);
        let text = call("mul.Tensor](args = (%x, %to)");
        let mul = node(&mut g, "Mul", &[x, ones], Some(&text));
        assert!(!is_of_exporter(&g, mul, 1, ones), "no normalisation");
    }

    #[test]
    fn names_of_intermediate_values_tell_only_where_parameters_have_names() {
        for (scale, other, value, expected) in [
            ("val_3", "a.weight", 1.0, true),
            ("/n/Constant_output_0", "a.weight", 1.0, true),
            ("val_3", "val_1", 1.0, false),
            ("val_3", "a.weight", 1.5, false),
            ("n.weight", "a.weight", 1.0, false),
            ("value", "a.weight", 1.0, false),
        ] {
            let mut g = Graph::default();
            let x = g.add_input("x", ty(&[2, 4]), None);
            let (v, w) = (constant(&mut g, scale, value), constant(&mut g, other, 0.5));
            let y = node(&mut g, "LayerNormalization", &[x, v], None);
            node(&mut g, "Mul", &[x, w], None);
            assert_eq!(is_of_exporter(&g, y, 1, v), expected, "{scale}, {other}, {value}");
        }
    }

    #[test]
    fn the_inner_part_of_a_group_normalisation_has_no_parameters() {
        let call = "call_function[target=torch.ops.aten.group_norm.default](args = (%x, 2, %p_w, %p_b, 1e-05, False)";
        for (name, expected) in [("scale", true), ("n.weight", false)] {
            let mut g = Graph::default();
            let x = g.add_input("x", ty(&[2, 4]), None);
            let (ones, zeros) = (constant(&mut g, name, 1.0), constant(&mut g, "zeros", 0.0));
            let shape = g.add_initializer("shape", Tensor::i64s(&[2], &[2, 4]), false);
            let before = node(&mut g, "Reshape", &[x, shape], None);
            let before = g.result(before, 0);
            let norm = node(&mut g, "InstanceNormalization", &[before, ones, zeros], Some(call));
            let y = g.result(norm, 0);
            node(&mut g, "Reshape", &[y, shape], None);
            assert_eq!(is_of_exporter(&g, norm, 1, ones), expected, "{name}");
        }
    }
}
