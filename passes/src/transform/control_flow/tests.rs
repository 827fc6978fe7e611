use super::*;
use crate::ir::{DType, Dim, Op, Tensor, TensorType, ValueType};
use crate::onnx::operator;
use crate::text::body;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, NodeProto, ValueInfoProto};

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let own = |names: &[&str]| names.iter().map(|n| n.to_string()).collect();
    NodeProto { op_type: op.into(), input: own(inputs), output: own(outputs), ..Default::default() }
}

fn subgraph(nodes: Vec<NodeProto>, inputs: &[&str], outputs: &[&str]) -> GraphProto {
    let infos = |names: &[&str]| {
        names.iter().map(|n| ValueInfoProto { name: n.to_string(), ..Default::default() }).collect::<Vec<_>>()
    };
    GraphProto { node: nodes, input: infos(inputs), output: infos(outputs), ..Default::default() }
}

fn with(mut n: NodeProto, name: &str, g: GraphProto) -> NodeProto {
    let type_ = AttributeType::GRAPH.into();
    n.attribute.push(AttributeProto { name: name.into(), type_, g: Some(g).into(), ..Default::default() });
    n
}

/// `y = If (c)`: `t = Squeeze (x, axis)`, or `x` itself.
fn squeeze(c: &str, y: &str) -> NodeProto {
    let then = subgraph(vec![node("Squeeze", &["x", "axis"], &["t"])], &[], &["t"]);
    let otherwise = subgraph(vec![node("Identity", &["x"], &["t"])], &[], &["t"]);
    with(with(node("If", &[c], &[y]), "then_branch", then), "else_branch", otherwise)
}

/// A graph that reads `x` [n, 3, 1] and the boolean `fed`, with the constants `axis`, `two` and `one`.
fn graph(nodes: Vec<NodeProto>, output: &str) -> Graph {
    let mut g = Graph::default();
    g.add_input("x", TensorType::new(DType::F32, [Dim::symbol("n"), Dim::from(3), Dim::from(1)]).into(), None);
    g.add_input("fed", TensorType::fixed(DType::Bool, &[]).into(), None);
    for (name, dims, value) in [("axis", &[1][..], 2), ("two", &[], 2), ("one", &[], 1)] {
        g.add_initializer(name, Tensor::i64s(dims, &[value]), false);
    }
    g.reserve("t");
    nodes.into_iter().for_each(|n| add(&mut g, n));
    g.add_output(g.find(output).unwrap(), None);
    g
}

fn add(g: &mut Graph, n: NodeProto) {
    let operands: Vec<_> = n.input.iter().map(|i| g.find(i)).collect();
    let (captured, outputs) = (crate::onnx::captured_names(&n).unwrap(), n.output.clone());
    let id = g.add_op("", operator(n, None).unwrap(), &operands);
    outputs.iter().for_each(|name| _ = g.push_result(id, name, ValueType::default()));
    for name in captured {
        let v = g.find(&name).unwrap();
        g.add_capture(id, v);
    }
}

/// `last = Shape (x)[2] == 1`.
fn last_is_one() -> Vec<NodeProto> {
    vec![node("Shape", &["x"], &["s"]), node("Gather", &["s", "two"], &["e"]), node("Equal", &["e", "one"], &["last"])]
}

fn run(g: &mut Graph) -> Applied {
    let mut applied = Applied::default();
    inline_control_flow(g, &mut applied);
    applied
}

#[test]
fn a_squeeze_exported_as_if_is_the_squeeze() {
    let nodes = [last_is_one(), vec![squeeze("last", "y"), node("Relu", &["y"], &["z"])]].concat();
    let mut g = graph(nodes, "z");
    assert_eq!(run(&mut g).changed, 1);
    assert!(body(&g).contains("y = Squeeze (x, axis)\n") && !body(&g).contains("If"), "{}", body(&g));
    let two = TensorType::new(DType::F32, [Dim::symbol("n"), Dim::from(3)]);
    assert_eq!(g.tensor_type(g.find("z").unwrap()), Some(two), "types go on behind it");
}

#[test]
fn what_is_decided_inside_a_branch_is_taken_too_and_later_captures_read_it() {
    let inner = subgraph(vec![squeeze("last", "inner"), node("Neg", &["inner"], &["n"])], &[], &["n"]);
    let outer = with(with(node("If", &["last"], &["y"]), "then_branch", inner.clone()), "else_branch", inner);
    let reads_y = subgraph(vec![node("Abs", &["y"], &["a"])], &[], &["a"]);
    let open = with(with(node("If", &["fed"], &["z"]), "then_branch", reads_y.clone()), "else_branch", reads_y);
    let mut g = graph([last_is_one(), vec![outer, open]].concat(), "z");
    let applied = run(&mut g);
    assert_eq!(applied.changed, 2);
    let y = g.find("y").unwrap();
    assert!(g.is_op(y.node, "Neg") && g.captures(g.find("z").unwrap().node).any(|v| v == y), "{}", body(&g));
    let why = applied.refused[0].to_string();
    assert!(why.contains("which branch it takes is only known when the graph runs, from `fed`"), "{why}");
}

#[test]
fn a_loop_of_known_length_becomes_its_steps() {
    let nodes = vec![
        node("Add", &["state", "x"], &["next"]),
        node("Identity", &["go"], &["goes on"]),
        node("Neg", &["next"], &["slice"]),
    ];
    let steps = subgraph(nodes, &["i", "go", "state"], &["goes on", "next", "slice"]);
    let mut g = graph(vec![with(node("Loop", &["two", "", "x"], &["last", "slices"]), "body", steps)], "slices");
    assert_eq!(run(&mut g).changed, 1);
    assert_eq!(g.nodes().filter(|n| g.is_op(*n, "Add")).count(), 2);
    let slices = TensorType::new(DType::F32, [Dim::from(2), Dim::symbol("n"), Dim::from(3), Dim::from(1)]);
    assert_eq!(g.tensor_type(g.find("slices").unwrap()), Some(slices));
}

#[test]
fn a_loop_beyond_the_bound_stays_and_the_bound_is_said() {
    let steps = subgraph(vec![node("Add", &["state", "x"], &["next"])], &["i", "go", "state"], &["go", "next"]);
    let mut g = graph(vec![with(node("Loop", &["many", "", "x"], &["last"]), "body", steps)], "last");
    let many = g.add_initializer("many", Tensor::i64s(&[], &[1 << 20]), false);
    let id = g.find("last").unwrap().node;
    let Kind::Op(Op { attrs, .. }) = g.node(id).kind.clone() else { panic!("a Loop") };
    g.replace_op(id, Op::new("Loop", attrs), &[Some(many), None, g.find("x")]);
    let why = run(&mut g).refused[0].to_string();
    assert!(why.contains("up to 20000 nodes are written out"), "{why}");
    assert!(g.is_op(g.find("last").unwrap().node, "Loop"));
}

#[test]
fn what_stays_is_brought_to_the_operator_set_in_its_subgraphs_too() {
    let axes =
        AttributeProto { name: "axes".into(), type_: AttributeType::INTS.into(), ints: vec![2], ..Default::default() };
    let old = |op: &str| {
        let mut n = node(op, &["x"], &["t"]);
        n.attribute = vec![axes.clone()];
        subgraph(vec![n], &[], &["t"])
    };
    let n = with(with(node("If", &["fed"], &["y"]), "then_branch", old("ReduceMean")), "else_branch", old("ReduceMax"));
    let mut g = graph(vec![n], "y");
    g.opsets.insert(String::new(), 16);
    crate::transform::legalize::to_opset(&mut g, 18, &mut Applied::default()).unwrap();
    let then = super::body(&g, g.find("y").unwrap().node, "then_branch").unwrap();
    assert_eq!((then.node[0].input.len(), then.node[0].attribute.len(), then.initializer.len()), (2, 0, 1), "{then:?}");
    assert!(then.input.is_empty() && then.output[0].name == "t");
}

#[test]
fn weights_of_bodies_become_the_graph_s_own() {
    let weight = |values: [f32; 3]| onnx_protobuf::TensorProto {
        name: "w".into(),
        dims: vec![3, 1],
        data_type: 1,
        float_data: values.to_vec(),
        ..Default::default()
    };
    let mut then = subgraph(vec![node("Mul", &["x", "w"], &["t"])], &[], &["t"]);
    then.initializer = vec![weight([1.0, 2.0, 3.0])];
    let mut constant = node("Constant", &[], &["w"]);
    let type_ = AttributeType::TENSOR.into();
    let t = Some(weight([4.0, 5.0, 6.0])).into();
    constant.attribute = vec![AttributeProto { name: "value".into(), type_, t, ..Default::default() }];
    let otherwise = subgraph(vec![constant, node("Add", &["x", "w"], &["t"])], &[], &["t"]);
    let n = with(with(node("If", &["fed"], &["y"]), "then_branch", then), "else_branch", otherwise);
    let mut g = graph(vec![n], "y");
    g.reserve("w");
    assert_eq!(lift_weights(&mut g), 2);
    let y = g.find("y").unwrap().node;
    let captured: Vec<&str> = g.captures(y).map(|v| g.name(v)).collect();
    assert_eq!(captured, ["x", "w_1", "w_2"]);
    assert_eq!(super::body(&g, y, "else_branch").unwrap().node[0].input, ["x", "w_2"]);
    assert_eq!(lift_weights(&mut g), 0, "there are none left");
}

#[test]
fn an_input_decides_once_it_is_fixed() {
    let condition = vec![node("Equal", &["rate", "two"], &["fast"]), squeeze("fast", "y")];
    let mut g = graph(vec![], "x");
    g.clear_outputs();
    g.add_input("rate", TensorType::fixed(DType::I64, &[]).into(), None);
    condition.into_iter().for_each(|n| add(&mut g, n));
    g.add_output(g.find("y").unwrap(), None);
    let why = run(&mut g.clone()).refused[0].clone();
    assert!(why.to_string().contains("from `rate`") && why.why.hint() == Some(crate::refusal::Hint::FixInput), "{why}");
    crate::transform::fix_inputs::fix_inputs(&mut g, &[("rate".into(), 2)]).unwrap();
    assert_eq!(run(&mut g).changed, 1);
    assert!(g.is_op(g.find("y").unwrap().node, "Squeeze"));
    let e = crate::transform::fix_inputs::fix_inputs(&mut g, &[("speed".into(), 2)]).unwrap_err();
    assert!(e.contains("`speed`") && e.contains("`n`"), "{e}");
}

#[test]
fn an_input_of_very_many_integers_is_not_fixed() {
    let mut g = graph(vec![], "x");
    g.add_input("ids", TensorType::fixed(DType::I64, &[1 << 20]).into(), None);
    let e = crate::transform::fix_inputs::fix_inputs(&mut g, &[("ids".into(), 2)]).unwrap_err();
    assert!(e.contains("`ids`"), "{e}");
}

#[test]
fn an_undecided_choice_is_named_where_its_type_is_needed() {
    let mut g = graph(vec![squeeze("fed", "y"), node("Unsqueeze", &["y", "axis"], &["z"])], "z");
    let (x, z) = (g.find("x").unwrap(), g.find("z").unwrap());
    g.set_type(z, TensorType::new(DType::F32, [Dim::symbol("n"), Dim::from(3), Dim::from(1)]).into());
    let loss = crate::ops::build::Builder::new(&mut g, "loss").reduce_all("ReduceSum", z).unwrap();
    let e = crate::transform::differentiate::differentiate(&mut g, &crate::target::CPU, loss, &[x]).unwrap_err().to_string();
    assert!(e.contains("node `y` (If)") && e.contains("which branch it takes"), "{e}");
}
