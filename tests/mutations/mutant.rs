//! Structural damage to a model: a message that is well formed, and a network that is not.

use crate::common::Random;
use onnx_protobuf::tensor_shape_proto::dimension;
use onnx_protobuf::type_proto;
use onnx_protobuf::{GraphProto, ModelProto, NodeProto, StringStringEntryProto, ValueInfoProto};

/// Numbers that are wrong nearly everywhere.
const NUMBERS: [i64; 10] = [0, -1, 1, 2, -7, 1 << 20, 1 << 33, 1 << 50, i64::MAX, i64::MIN];

/// Operators that take the place of others.
const OPERATORS: [&str; 22] = [
    "Add",
    "Mul",
    "MatMul",
    "Gemm",
    "Conv",
    "Reshape",
    "Transpose",
    "Concat",
    "Split",
    "Slice",
    "Gather",
    "Expand",
    "Softmax",
    "LayerNormalization",
    "BatchNormalization",
    "ReduceMean",
    "Unsqueeze",
    "Squeeze",
    "Pad",
    "Resize",
    "Identity",
    "NoSuchOperator",
];

fn number(r: &mut Random) -> i64 {
    NUMBERS[r.below(NUMBERS.len())]
}

/// The name of some value of the graph.
fn some_value(g: &GraphProto, r: &mut Random) -> String {
    let names: Vec<&String> = g
        .node
        .iter()
        .flat_map(|n| &n.output)
        .chain(g.input.iter().map(|i| &i.name))
        .chain(g.initializer.iter().map(|t| &t.name))
        .collect();
    names.get(r.below(names.len().max(1))).map(|n| n.to_string()).unwrap_or_default()
}

fn some_node<'g>(g: &'g mut GraphProto, r: &mut Random) -> Option<&'g mut NodeProto> {
    let at = r.below(g.node.len().max(1));
    g.node.get_mut(at)
}

/// Makes one change; returns what it was.
pub fn change(m: &mut ModelProto, r: &mut Random) -> &'static str {
    match r.below(26) {
        0 => {
            m.ir_version = number(r);
            "another file format"
        }
        1 => {
            let version = if r.below(2) == 0 { 7 + r.below(20) as i64 } else { number(r) };
            m.opset_import.iter_mut().for_each(|o| o.version = version);
            "another operator set"
        }
        n => match m.graph.as_mut() {
            Some(g) => change_graph(g, n, r),
            None => "nothing",
        },
    }
}

fn change_graph(g: &mut GraphProto, n: usize, r: &mut Random) -> &'static str {
    match n {
        2..=9 => change_node(g, n, r),
        10..=13 => change_attribute(g, n, r),
        14..=19 => change_tensor(g, n, r),
        20 => {
            let at = r.below(g.node.len().max(1));
            if at < g.node.len() {
                g.node.remove(at);
            }
            "a node less"
        }
        21 => {
            let (a, b) = (r.below(g.node.len().max(1)), r.below(g.node.len().max(1)));
            if a.max(b) < g.node.len() {
                g.node.swap(a, b);
            }
            "nodes in another order"
        }
        22 => {
            g.node.iter_mut().for_each(|n| n.name = "same".into());
            "nodes of one name"
        }
        23 => {
            let name = some_value(g, r);
            g.output.push(ValueInfoProto { name, ..Default::default() });
            "an output without a type"
        }
        24 => {
            let at = r.below(g.input.len().max(1));
            change_declaration(g.input.get_mut(at), r);
            "an input of another type"
        }
        _ => {
            let at = r.below(g.output.len() + g.value_info.len());
            let declarations = g.output.iter_mut().chain(&mut g.value_info);
            change_declaration(declarations.into_iter().nth(at), r);
            "a value of another type"
        }
    }
}

fn change_declaration(info: Option<&mut ValueInfoProto>, r: &mut Random) {
    let Some(info) = info else { return };
    let Some(type_proto::Value::TensorType(t)) = info.type_.as_mut().and_then(|t| t.value.as_mut()) else { return };
    match r.below(4) {
        0 => t.elem_type = [0, 7, 8, 10, 11, 21, 99, -1][r.below(8)],
        1 => t.shape = None.into(),
        n => {
            let Some(shape) = t.shape.as_mut() else { return };
            let at = r.below(shape.dim.len().max(1));
            if n == 2 {
                let Some(d) = shape.dim.get_mut(at) else { return };
                d.value = Some(match r.below(3) {
                    0 => dimension::Value::DimParam(
                        ["", "batch * -3", "((((", "a/0", "9999999999999999999999"][r.below(5)].into(),
                    ),
                    _ => dimension::Value::DimValue(number(r)),
                });
            } else if at < shape.dim.len() && r.below(2) == 0 {
                shape.dim.remove(at);
            } else {
                shape.dim.push(shape.dim.first().cloned().unwrap_or_default());
            }
        }
    }
}

fn change_node(g: &mut GraphProto, n: usize, r: &mut Random) -> &'static str {
    let value = some_value(g, r);
    let Some(node) = some_node(g, r) else { return "nothing" };
    let input = r.below(node.input.len().max(1));
    match n {
        2 => {
            if let Some(i) = node.input.get_mut(input) {
                *i = value;
            }
            "another operand"
        }
        3 => {
            if input < node.input.len() {
                node.input.remove(input);
            }
            "an operand less"
        }
        4 => {
            node.input.push(value);
            "an operand more"
        }
        5 => {
            if let Some(i) = node.input.get_mut(input) {
                i.clear();
            }
            "an operand left out"
        }
        6 => {
            node.output.push("one.more".into());
            "a result more"
        }
        7 => {
            if node.input.len() > 1 {
                node.input.swap(0, input);
            }
            "operands in another order"
        }
        _ => {
            node.op_type = OPERATORS[r.below(OPERATORS.len())].into();
            "another operator"
        }
    }
}

fn change_attribute(g: &mut GraphProto, n: usize, r: &mut Random) -> &'static str {
    let with: Vec<usize> = g.node.iter().enumerate().filter(|(_, n)| !n.attribute.is_empty()).map(|(i, _)| i).collect();
    let Some(at) = with.get(r.below(with.len().max(1))) else { return "nothing" };
    let attributes = &mut g.node[*at].attribute;
    let which = r.below(attributes.len());
    if n == 10 {
        attributes.remove(which);
        return "an attribute less";
    }
    let a = &mut attributes[which];
    if n == 11 {
        let kinds = [1, 2, 3, 4, 5, 6, 7, 0, 13];
        a.type_ = protobuf::EnumOrUnknown::from_i32(kinds[r.below(kinds.len())]);
        return "an attribute of another kind";
    }
    a.i = number(r);
    a.f = f32::NAN;
    match r.below(4) {
        0 => a.ints.clear(),
        1 => a.ints.push(number(r)),
        _ => {
            let at = r.below(a.ints.len().max(1));
            if let Some(v) = a.ints.get_mut(at) {
                *v = number(r);
            }
        }
    }
    "an attribute of another value"
}

fn change_tensor(g: &mut GraphProto, n: usize, r: &mut Random) -> &'static str {
    let at = r.below(g.initializer.len().max(1));
    let Some(t) = g.initializer.get_mut(at) else { return "nothing" };
    let axis = r.below(t.dims.len().max(1));
    match n {
        14 => {
            t.dims.reverse();
            "a transposed constant"
        }
        15 => {
            if let Some(d) = t.dims.get_mut(axis) {
                *d = number(r);
            }
            "a constant of another size"
        }
        16 => {
            t.data_type = r.below(30) as i32;
            "a constant of another type"
        }
        17 => {
            // Shapes and axes live in constants too.
            let ints: Vec<usize> =
                g.initializer.iter().enumerate().filter(|(_, t)| t.data_type == 7).map(|(i, _)| i).collect();
            let Some(at) = ints.get(r.below(ints.len().max(1))) else { return "nothing" };
            let t = &mut g.initializer[*at];
            let count = t.raw_data.len() / 8;
            if count > 0 {
                let place = 8 * r.below(count);
                t.raw_data[place..place + 8].copy_from_slice(&number(r).to_le_bytes());
            }
            "another number in a constant"
        }
        18 => {
            let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value, ..Default::default() };
            t.data_location = protobuf::EnumOrUnknown::from_i32(1);
            t.raw_data.clear();
            t.float_data.clear();
            t.external_data = vec![entry("location", "elsewhere.bin".into()), entry("offset", number(r).to_string())];
            "a constant in a file that is not there"
        }
        _ => {
            t.dims.push(1);
            "a constant of a higher rank"
        }
    }
}
