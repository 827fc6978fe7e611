//! Reading and writing without a rewrite: nothing is lost, whatever is in the file.

use crate::common::{data, emit, floats, listing, models, onnx_files, open, text, tool_ok};
use ancre_passes::ir::{DType, SharedBytes};
use ancre_passes::onnx;
use ancre_rewrite::engine::{Session, Tensors};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorAnnotation, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use std::collections::HashSet;
use std::path::Path;

fn parse(path: &Path) -> ModelProto {
    ModelProto::parse_from_bytes(&std::fs::read(path).unwrap()).unwrap()
}

/// Through the tool, which is told to rewrite nothing.
fn through_the_tool(model: &Path) -> ModelProto {
    let dir = tempfile::tempdir().unwrap();
    let out = text(&dir.path().join("same.onnx"));
    tool_ok(&[&text(model), "--chains", "none", "--no-train", "--verify", "none", "-q", "-o", &out]);
    assert_eq!(listing(dir.path()), ["same.onnx"]);
    parse(Path::new(&out))
}

#[test]
fn a_model_that_is_not_rewritten_is_the_same_message() {
    let mut files = models();
    files.extend(["llama", "mlp", "resnet"].iter().flat_map(|f| onnx_files(&data("golden").join(f))));
    assert!(files.len() > 24, "{} files", files.len());
    for path in files {
        let bytes = std::fs::read(&path).unwrap();
        let mut source = ModelProto::parse_from_bytes(&bytes).unwrap();
        forget_what_is_not_there(&mut source);
        let g = onnx::read(&SharedBytes::new(bytes), None).unwrap();
        assert!(ModelProto::parse_from_bytes(&emit(&g)).unwrap() == source, "{} changes", path.display());
    }
}

/// Drops declarations of values that the graph does not have: the only thing that is not written again.
fn forget_what_is_not_there(m: &mut ModelProto) {
    let g = m.graph.as_mut().unwrap();
    let mut there: HashSet<&str> = g.node.iter().flat_map(|n| &n.output).map(String::as_str).collect();
    there.extend(g.input.iter().map(|i| i.name.as_str()));
    there.extend(g.initializer.iter().map(|t| t.name.as_str()));
    g.value_info.retain(|i| there.contains(i.name.as_str()));
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| n.to_string()).collect()
}

pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        name: format!("the {op}"),
        input: names(inputs),
        output: names(outputs),
        ..Default::default()
    }
}

fn of_type(name: &str, elements: i32, dims: &[i64]) -> ValueInfoProto {
    let dim = |d: &i64| {
        let mut dim = tensor_shape_proto::Dimension { denotation: "DATA_FEATURE".into(), ..Default::default() };
        dim.value = Some(tensor_shape_proto::dimension::Value::DimValue(*d));
        dim
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect(), ..Default::default() };
    let tensor = type_proto::Tensor { elem_type: elements, shape: Some(shape).into(), ..Default::default() };
    let ty =
        TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: "TENSOR".into(), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), doc_string: format!("of {name}"), ..Default::default() }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: name.into(), type_: kind.into(), doc_string: "of an attribute".into(), ..Default::default() }
}

fn graph(name: &str, g: GraphProto) -> AttributeProto {
    AttributeProto { g: Some(g).into(), ..attribute(name, AttributeType::GRAPH) }
}

fn entry(key: &str, value: &str) -> StringStringEntryProto {
    StringStringEntryProto { key: key.into(), value: value.into(), ..Default::default() }
}

fn scalar(name: &str, kind: i32, bytes: &[u8]) -> TensorProto {
    TensorProto { name: name.into(), data_type: kind, raw_data: bytes.to_vec(), ..Default::default() }
}

const FLOAT: i32 = 1;
const INT64: i32 = 7;
const BOOL: i32 = 9;

/// `Loop` that adds the captured `w` to its state three times.
fn counted_loop() -> NodeProto {
    let body = GraphProto {
        name: "body".into(),
        doc_string: "of a body".into(),
        input: vec![of_type("i", INT64, &[]), of_type("go", BOOL, &[]), of_type("state", FLOAT, &[2, 3])],
        node: vec![node("Add", &["state", "w"], &["state.next"]), node("Identity", &["go"], &["go.next"])],
        output: vec![of_type("go.next", BOOL, &[]), of_type("state.next", FLOAT, &[2, 3])],
        ..Default::default()
    };
    let mut n = node("Loop", &["three", "", "x"], &["looped"]);
    n.attribute = vec![graph("body", body)];
    n
}

/// `If` whose branches capture values, one of them through a second `If`.
fn nested_ifs() -> NodeProto {
    let branch = |n: NodeProto, out: &str| GraphProto {
        name: format!("to {out}"),
        node: vec![n],
        output: vec![of_type(out, FLOAT, &[2, 3])],
        ..Default::default()
    };
    let mut inner = node("If", &["c"], &["inner"]);
    inner.attribute = vec![
        graph("then_branch", branch(node("Neg", &["looped"], &["a"]), "a")),
        graph("else_branch", branch(node("Mul", &["x", "w"], &["b"]), "b")),
    ];
    let mut outer = node("If", &["c"], &["chosen"]);
    outer.attribute = vec![
        graph("then_branch", branch(inner, "inner")),
        graph("else_branch", branch(node("Abs", &["looped"], &["d"]), "d")),
    ];
    outer
}

/// `Scan` of running sums over the first axis.
fn running_sums() -> NodeProto {
    let body = GraphProto {
        name: "step".into(),
        input: vec![of_type("sum", FLOAT, &[3]), of_type("row", FLOAT, &[3])],
        node: vec![node("Add", &["sum", "row"], &["sum.next"]), node("Identity", &["sum.next"], &["out"])],
        output: vec![of_type("sum.next", FLOAT, &[3]), of_type("out", FLOAT, &[3])],
        ..Default::default()
    };
    let mut n = node("Scan", &["zeros", "chosen"], &["total", "sums"]);
    n.attribute = vec![graph("body", body), AttributeProto { i: 1, ..attribute("num_scan_inputs", AttributeType::INT) }];
    n
}

/// A local function `shift(x, by) = x + by · scale`, with an attribute of its own.
fn function() -> FunctionProto {
    let mut scale = node("Constant", &[], &["scale"]);
    scale.attribute =
        vec![AttributeProto { ref_attr_name: "scale".into(), ..attribute("value_float", AttributeType::FLOAT) }];
    FunctionProto {
        name: "Shift".into(),
        domain: "com.example".into(),
        doc_string: "of a function".into(),
        input: names(&["x", "by"]),
        output: names(&["y"]),
        attribute: names(&["scale"]),
        node: vec![scale, node("Mul", &["by", "scale"], &["m"]), node("Add", &["x", "m"], &["y"])],
        opset_import: vec![OperatorSetIdProto { version: 17, ..Default::default() }],
        metadata_props: vec![entry("of", "a function")],
        ..Default::default()
    }
}

/// Something of everything a model may hold.
pub fn everything() -> ModelProto {
    let mut shift = node("Shift", &["sums", "w"], &["shifted"]);
    shift.domain = "com.example".into();
    shift.doc_string = "a call".into();
    shift.overload = String::new();
    shift.metadata_props = vec![entry("namespace", "layer.0")];
    shift.attribute = vec![AttributeProto { f: 0.5, ..attribute("scale", AttributeType::FLOAT) }];
    shift.special_fields.mut_unknown_fields().add_fixed32(900, 5);
    let mut gelu = node("Gelu", &["shifted"], &["y"]);
    gelu.domain = "com.microsoft".into();
    let floats = |v: [f32; 6]| v.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let mut w = TensorProto { dims: vec![2, 3], ..scalar("w", FLOAT, &floats([0.5, -1.0, 2.0, 0.25, 3.0, -0.5])) };
    w.doc_string = "of a weight".into();
    w.metadata_props = vec![entry("of", "a weight")];
    let words = TensorProto {
        name: "words".into(),
        data_type: 8,
        dims: vec![2],
        string_data: vec![b"one".to_vec(), b"two".to_vec()],
        ..Default::default()
    };
    let graph = GraphProto {
        name: "everything".into(),
        doc_string: "of the graph".into(),
        node: vec![counted_loop(), nested_ifs(), running_sums(), shift, gelu, node("Size", &["words"], &["n"])],
        input: vec![of_type("x", FLOAT, &[2, 3]), of_type("c", BOOL, &[]), of_type("w", FLOAT, &[2, 3])],
        output: vec![of_type("y", FLOAT, &[2, 3]), of_type("total", FLOAT, &[3]), of_type("n", INT64, &[])],
        initializer: vec![
            w,
            scalar("three", INT64, &3i64.to_le_bytes()),
            TensorProto { dims: vec![3], ..scalar("zeros", FLOAT, &[0; 12]) },
            words,
            TensorProto { dims: vec![2], ..scalar("unread", 16, &[0, 0x3f, 0x80, 0x3f]) },
            TensorProto { dims: vec![3], ..scalar("four bits", 22, &[0x21, 0x03]) },
        ],
        value_info: vec![of_type("sums", FLOAT, &[2, 3]), of_type("nobody", FLOAT, &[1])],
        quantization_annotation: vec![TensorAnnotation {
            tensor_name: "x".into(),
            quant_parameter_tensor_names: vec![entry("SCALE_TENSOR", "w")],
            ..Default::default()
        }],
        metadata_props: vec![entry("of", "the graph")],
        ..Default::default()
    };
    let set = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version, ..Default::default() };
    let mut model = ModelProto {
        ir_version: 10,
        producer_name: "a test".into(),
        producer_version: "1".into(),
        domain: "org.example".into(),
        model_version: 7,
        doc_string: "of the model".into(),
        opset_import: vec![set("com.example", 1), set("", 17), set("com.microsoft", 1), set("nobody.uses", 4)],
        graph: Some(graph).into(),
        functions: vec![function()],
        metadata_props: vec![entry("a", "b"), entry("c", "")],
        ..Default::default()
    };
    model.special_fields.mut_unknown_fields().add_length_delimited(7000, b"from the future".to_vec());
    model
}

#[test]
fn everything_a_model_may_hold_survives() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("all.onnx");
    let source = everything();
    std::fs::write(&path, source.write_to_bytes().unwrap()).unwrap();
    let emitted = through_the_tool(&path);
    // What is declared of a value that is not there goes, nothing else does.
    let mut expected = source.clone();
    forget_what_is_not_there(&mut expected);
    assert_eq!(expected.graph.value_info.len(), 1);
    assert!(emitted == expected, "{emitted:#?}");

    let mut feeds = Tensors::from([("x".to_string(), floats(DType::F32, &[2, 3], &[1.0, -2.0, 0.5, 0.1, 0.0, -0.3]))]);
    for condition in [0.0, 1.0] {
        feeds.insert("c".into(), floats(DType::Bool, &[], &[condition]));
        let run = |m: &ModelProto| open(&m.write_to_bytes().unwrap()).unwrap().run(&feeds).unwrap();
        let (before, after) = (run(&source), run(&emitted));
        assert_eq!(before["y"].bytes(), after["y"].bytes());
        assert_eq!(before["total"].bytes(), after["total"].bytes());
    }
}

/// Beside the network that is routed, what is none of the router's business stays: a function is inlined, a subgraph is not.
#[test]
fn a_subgraph_s_captured_values_live_on_when_a_skip_is_rewritten() {
    use crate::common::nets::{Plan, network};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.onnx");
    let mut m = ModelProto::parse_from_bytes(&emit(&network(&Plan::of(4), 1))).unwrap();
    let states: Vec<String> = m.graph.node.iter().filter(|n| n.op_type == "Add").map(|n| n.output[0].clone()).collect();
    let branch = |state: &str| GraphProto {
        name: "branch".into(),
        node: vec![NodeProto { name: String::new(), ..node("ReduceSum", &[state], &["out of the branch"]) }],
        output: vec![ValueInfoProto { name: "out of the branch".into(), ..Default::default() }],
        ..Default::default()
    };
    let mut cond = node("If", &["c"], &["seen"]);
    cond.attribute = vec![graph("then_branch", branch(&states[0])), graph("else_branch", branch(states.last().unwrap()))];
    let g = m.graph.as_mut().unwrap();
    g.node.push(cond);
    g.input.push(of_type("c", BOOL, &[]));
    g.output.push(of_type("seen", FLOAT, &[1, 1]));
    std::fs::write(&path, m.write_to_bytes().unwrap()).unwrap();
    for more in [&["--no-train"][..], &["--no-train", "--preset", "paper"], &["--no-train", "--form", "input"]] {
        let ran = tool_ok(&[&[text(&path).as_str(), "--json", "--verify", "ort"], more].concat()).json();
        assert_eq!(ran["router"]["chains"][0]["K"], 4);
        assert_eq!(ran["verify"]["one_hot"]["equivalent"], true, "{more:?}: {}", ran["verify"]);
    }
}
