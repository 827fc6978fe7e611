//! Messages through the IR and back.

use super::*;
use crate::ir::SharedBytes;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto, type_proto,
};
use std::path::Path;

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|n| n.to_string()).collect()
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto { op_type: op.into(), input: names(inputs), output: names(outputs), ..Default::default() }
}

fn info(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |d: &i64| tensor_shape_proto::Dimension {
        value: Some(tensor_shape_proto::dimension::Value::DimValue(*d)),
        ..Default::default()
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect(), ..Default::default() };
    let tensor = type_proto::Tensor { elem_type: 1, shape: Some(shape).into(), ..Default::default() };
    let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
    ValueInfoProto { name: name.into(), type_: Some(ty).into(), ..Default::default() }
}

fn tensor(name: &str, dims: &[i64]) -> TensorProto {
    let bytes = dims.iter().product::<i64>() as usize * 4;
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: 1,
        raw_data: (0..bytes).map(|i| i as u8).collect(),
        ..Default::default()
    }
}

/// `y = relu(x + w)` with a weight large enough to stay in the file.
fn model() -> ModelProto {
    let graph = GraphProto {
        name: "g".into(),
        node: vec![node("Add", &["x", "w"], &["s"]), node("Relu", &["s"], &["y"])],
        input: vec![info("x", &[20, 20])],
        output: vec![info("y", &[20, 20])],
        initializer: vec![tensor("w", &[20, 20])],
        ..Default::default()
    };
    let opset = OperatorSetIdProto { version: 17, ..Default::default() };
    ModelProto { ir_version: 8, opset_import: vec![opset], graph: Some(graph).into(), ..Default::default() }
}

fn through(model: &ModelProto) -> ModelProto {
    let bytes = SharedBytes::new(model.write_to_bytes().unwrap());
    let emitted = emit(&read(&bytes, None).unwrap()).unwrap().to_bytes().unwrap();
    ModelProto::parse_from_bytes(&emitted).unwrap()
}

fn error(change: impl FnOnce(&mut ModelProto)) -> String {
    let mut m = model();
    change(&mut m);
    let bytes = SharedBytes::new(m.write_to_bytes().unwrap());
    match read(&bytes, Some(Path::new("."))) {
        Ok(_) => "no error".into(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn what_is_not_touched_survives() {
    let mut m = model();
    m.doc_string = "of the model".into();
    // The standard domain by its other name, and one that no node uses.
    m.opset_import[0].domain = "ai.onnx".into();
    m.opset_import[0].special_fields.mut_unknown_fields().add_varint(1001, 6);
    m.opset_import.push(OperatorSetIdProto { domain: "com.example".into(), version: 3, ..Default::default() });
    m.special_fields.mut_unknown_fields().add_length_delimited(1002, b"from the future".to_vec());
    m.metadata_props = vec![StringStringEntryProto { key: "k".into(), value: "v".into(), ..Default::default() }];
    let g = m.graph.as_mut().unwrap();
    g.doc_string = "of the graph".into();
    g.node[0].doc_string = "of the node".into();
    g.node[0].special_fields.mut_unknown_fields().add_varint(1003, 7);
    g.initializer[0].doc_string = "of the tensor".into();
    g.initializer[0].special_fields.mut_unknown_fields().add_varint(1004, 8);
    g.value_info = vec![info("s", &[20, 20])];
    let small =
        TensorProto { data_type: 1, dims: vec![2], float_data: vec![1.0, 2.0], name: "small".into(), ..Default::default() };
    g.initializer.push(small);
    assert_eq!(through(&m), m);
}

#[test]
fn subgraphs_keep_what_they_capture() {
    let mut m = model();
    let g = m.graph.as_mut().unwrap();
    let branch = |op: &str| GraphProto {
        name: op.into(),
        // The name `t` is also one of the main graph's, further down.
        node: vec![node(op, &["s"], &["t"])],
        output: vec![info("t", &[20, 20])],
        ..Default::default()
    };
    let attribute = |name: &str, g: GraphProto| AttributeProto {
        name: name.into(),
        type_: AttributeType::GRAPH.into(),
        g: Some(g).into(),
        ..Default::default()
    };
    let mut cond = node("If", &["c"], &["y"]);
    cond.attribute = vec![attribute("then_branch", branch("Neg")), attribute("else_branch", branch("Abs"))];
    g.node[1] = cond;
    g.node.push(node("Tanh", &["y"], &["t"]));
    g.output.push(info("t", &[20, 20]));
    let mut c = info("c", &[]);
    if let Some(type_proto::Value::TensorType(t)) = &mut c.type_.as_mut().unwrap().value {
        t.elem_type = 9;
    }
    g.input.push(c);
    assert_eq!(through(&m), m);
}

#[test]
fn listed_and_sparse_initializers_survive() {
    let mut m = model();
    m.ir_version = 3;
    let g = m.graph.as_mut().unwrap();
    let mut listed = info("w", &[20, 20]);
    listed.doc_string = "a weight".into();
    g.input.push(listed);
    assert_eq!(through(&m), m);

    let mut m = model();
    let g = m.graph.as_mut().unwrap();
    g.initializer.clear();
    let indices =
        TensorProto { name: "i".into(), dims: vec![2], data_type: 7, int64_data: vec![3, 41], ..Default::default() };
    let sparse = SparseTensorProto {
        values: Some(tensor("w", &[2])).into(),
        indices: Some(indices).into(),
        dims: vec![20, 20],
        ..Default::default()
    };
    g.sparse_initializer = vec![sparse];
    assert_eq!(through(&m), m);
    let mut outside = m.clone();
    outside.graph.as_mut().unwrap().sparse_initializer[0].indices.as_mut().unwrap().int64_data[1] = 400;
    assert!(import(outside, None).unwrap_err().to_string().contains("an element at [400], outside its shape [20, 20]"));
    // Too large to be written out, it is still what it is.
    let mut vast = m.clone();
    vast.graph.as_mut().unwrap().sparse_initializer[0].dims = vec![1 << 20, 1 << 20];
    let vast = import(vast, None).unwrap();
    let proof = crate::proof::prove_equal(&vast, &vast.clone(), &Default::default());
    assert!(proof.proved, "{}", proof.reason);
    let read = import(m, None).unwrap();
    let dense = read.initializer(read.find("w").unwrap()).unwrap().to_f32().unwrap();
    let places: Vec<usize> = dense.iter().enumerate().filter(|(_, v)| **v != 0.0).map(|(i, _)| i).collect();
    assert_eq!(places, [3, 41]);
}

#[test]
fn faults_of_a_file_are_named() {
    fn graph(m: &mut ModelProto) -> &mut GraphProto {
        m.graph.as_mut().unwrap()
    }
    fn external(m: &mut ModelProto, entries: &[(&str, &str)]) {
        let t = &mut graph(m).initializer[0];
        t.raw_data.clear();
        t.data_location = DataLocation::EXTERNAL.into();
        let entry = |(k, v): &(&str, &str)| StringStringEntryProto {
            key: k.to_string(),
            value: v.to_string(),
            ..Default::default()
        };
        t.external_data = entries.iter().map(entry).collect();
    }
    let cases: [(&str, String); 18] = [
        ("no graph", error(|m| m.graph = None.into())),
        ("no nodes", error(|m| graph(m).node.clear())),
        ("IR version 15", error(|m| m.ir_version = 15)),
        ("IR version 2", error(|m| m.ir_version = 2)),
        ("`w`: element type 27 is not known", error(|m| graph(m).initializer[0].data_type = 27)),
        ("ai.onnx 29", error(|m| m.opset_import[0].version = 29)),
        ("no operator set", error(|m| m.opset_import.clear())),
        ("node `s` (Add) reads `w`", error(|m| graph(m).initializer.clear())),
        ("output `z`", error(|m| graph(m).output[0].name = "z".into())),
        ("`s` is defined twice, the second time by node `s` (Relu)", error(|m| graph(m).node[1].output = names(&["s"]))),
        ("is on a cycle", error(|m| graph(m).node[0].input[1] = "y".into())),
        (
            "holds 1600 bytes where its type f32 and shape [21, 20] need 1680",
            error(|m| graph(m).initializer[0].dims[0] = 21),
        ),
        ("absurd size", error(|m| graph(m).initializer[0].dims[0] = 1 << 60)),
        ("negative dimension", error(|m| graph(m).initializer[0].dims[0] = -20)),
        ("`x` is declared with an absurd size", error(|m| graph(m).input[0] = info("x", &[1 << 40, 1 << 40]))),
        ("`x` has no type", error(|m| graph(m).input[0].type_ = None.into())),
        ("path `../w` must be relative", error(|m| external(m, &[("location", "../w")]))),
        ("has offset `-4`", error(|m| external(m, &[("location", "w"), ("offset", "-4")]))),
    ];
    for (want, got) in cases {
        assert!(got.contains(want), "{want}: {got}");
    }
}

#[test]
fn cut_and_foreign_files_are_named() {
    let read = |bytes: &[u8]| read(&SharedBytes::new(bytes.to_vec()), None).map(|_| ()).unwrap_err().to_string();
    let whole = model().write_to_bytes().unwrap();
    for end in 1..whole.len() {
        read(&whole[..end]);
    }
    assert!(read(&whole[..whole.len() / 2]).contains("the file is cut off"));
    assert!(read(b"just a text").contains("is not a readable ONNX model"));
    let mut deep = Vec::new();
    for _ in 0..2000 {
        // node { attribute { g { … } } }
        for tag in [6, 5, 1] {
            let mut outer = vec![tag << 3 | 2];
            protobuf::CodedOutputStream::vec(&mut outer).write_raw_varint32(deep.len() as u32).unwrap();
            outer.extend(&deep);
            deep = outer;
        }
    }
    let m = ModelProto { ir_version: 8, ..Default::default() };
    let mut bytes = m.write_to_bytes().unwrap();
    bytes.push(7 << 3 | 2);
    protobuf::CodedOutputStream::vec(&mut bytes).write_raw_varint32(deep.len() as u32).unwrap();
    bytes.extend(&deep);
    assert!(read(&bytes).contains("nested too deeply"), "{}", read(&bytes));
}

#[test]
fn a_name_that_one_node_or_a_subgraph_defines_twice_is_named() {
    let twice = |node: NodeProto| error(|m| m.graph.as_mut().unwrap().node[1] = node);
    let said = twice(node("Split", &["s"], &["y", "y"]));
    assert!(said.contains("`y` is defined twice, the second time by node `y` (Split)"), "{said}");
    let mut choice = node("If", &["s"], &["y"]);
    let inner = vec![node("Relu", &["s"], &["t"]), node("Neg", &["s"], &["t"])];
    let g = Some(GraphProto { node: inner, ..Default::default() }).into();
    choice.attribute =
        vec![AttributeProto { name: "then_branch".into(), g, type_: AttributeType::GRAPH.into(), ..Default::default() }];
    let said = twice(choice);
    assert!(said.contains("`t` is defined twice, the second time by a subgraph of node `y` (If)"), "{said}");
}

#[test]
fn a_graph_without_outputs_and_attributes_against_the_standard_are_named() {
    let said = |change: &dyn Fn(&mut GraphProto)| {
        let mut m = model();
        change(m.graph.as_mut().unwrap());
        import(m, None).unwrap_err().to_string()
    };
    let nothing = said(&|g| g.output.clear());
    assert!(nothing.contains("has no outputs"), "{nothing}");
    let with = |name: &str, kind: AttributeType| {
        said(&|g| {
            g.node[1] = node("LeakyRelu", &["s"], &["y"]);
            g.node[1].attribute = vec![AttributeProto { name: name.into(), type_: kind.into(), ..Default::default() }];
        })
    };
    let unknown = with("slope", AttributeType::FLOAT);
    assert!(unknown.contains("node `y` (LeakyRelu) has an attribute `slope`, which no version"), "{unknown}");
    let other = with("alpha", AttributeType::STRING);
    assert!(other.contains("has a string for its attribute `alpha`, a float was expected"), "{other}");
    let at_opset = |version: i64| {
        let mut m = model();
        m.opset_import[0].version = version;
        let g = m.graph.as_mut().unwrap();
        g.node[1] = node("Cast", &["s"], &["y"]);
        let int =
            |name: &str| AttributeProto { name: name.into(), i: 1, type_: AttributeType::INT.into(), ..Default::default() };
        g.node[1].attribute = vec![int("to"), int("saturate")];
        import(m, None).map(drop).map_err(|e| e.to_string())
    };
    let not_yet = at_opset(18).unwrap_err();
    assert!(not_yet.contains("node `y` (Cast) has no attribute `saturate` in version 13; re-export"), "{not_yet}");
    at_opset(19).unwrap();
}
