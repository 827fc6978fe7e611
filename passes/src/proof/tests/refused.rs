//! Small changes that must be found, with the reason given.

use super::{differ, equal, graph, of_x, prove};

const IMAGE: &str = "float[n, 3, 8, 8]";
const KERNEL: &str = "float[3, 3, 3, 3] w = {…}, float[3] b = {1, 2, 3}";

#[test]
fn attributes_that_differ_are_named() {
    let conv = |attrs: &str| format!("y = Conv <{attrs}> (x, w, b)");
    let base = conv("pads = [1, 1, 1, 1]");
    for same in [
        "pads = [1, 1, 1, 1], strides = [1, 1]",
        "pads = [1, 1, 1, 1], group = 1, dilations = [1, 1], kernel_shape = [3, 3], auto_pad = \"NOTSET\"",
    ] {
        equal(IMAGE, KERNEL, &base, &conv(same));
    }
    for (other, name) in [
        ("pads = [1, 1, 1, 0]", "pads"),
        ("pads = [1, 1, 1, 1], strides = [2, 2]", "strides"),
        ("auto_pad = \"SAME_UPPER\"", "pads"),
    ] {
        let why = differ(IMAGE, KERNEL, &base, &conv(other));
        assert!(why.contains(name) && why.contains("Conv"), "{why}");
    }
    let norm = |attrs: &str| format!("y = LayerNormalization <{attrs}> (x, s)");
    let s = "float[8] s = {1, 2, 3, 4, 5, 6, 7, 8}";
    equal(IMAGE, s, &norm("axis = -1"), &norm("axis = 3, epsilon = 1e-5"));
    assert!(differ(IMAGE, s, &norm("axis = -1"), &norm("axis = -1, epsilon = 1e-6")).contains("epsilon"));
    assert!(differ(IMAGE, s, "y = Softmax <axis = 1> (x)", "y = Softmax <axis = 2> (x)").contains("axis"));
    equal(IMAGE, s, "y = Softmax (x)", "y = Softmax <axis = 3> (x)");
    equal(
        IMAGE,
        s,
        "y = ReduceMean <keepdims = 1> (x)",
        "a = Constant <value = int64[4] {0, 1, 2, 3}> () y = ReduceMean (x, a)",
    );
    differ(
        IMAGE,
        s,
        "y = ReduceMean <keepdims = 1> (x)",
        "a = Constant <value = int64[3] {0, 1, 2}> () y = ReduceMean (x, a)",
    );
}

#[test]
fn ranges_that_are_off_by_one_are_found() {
    let c = "int64[1] i0 = {0}, int64[1] i1 = {1}, int64[1] i7 = {7}, int64[1] i8 = {8}, int64[1] a = {2}, int64[1] big = {9223372036854775807}, int64[1] m1 = {-1}";
    let slice = |s: &str, e: &str| format!("y = Slice (x, {s}, {e}, a)");
    equal(IMAGE, c, &slice("i0", "i8"), "y = Identity (x)");
    equal(IMAGE, c, &slice("i1", "big"), &slice("i1", "i8"));
    equal(IMAGE, c, &slice("i0", "m1"), &slice("i0", "i7"));
    for (s, e) in [("i0", "i7"), ("i1", "i8"), ("i1", "i7")] {
        differ(IMAGE, c, &slice(s, e), "y = Identity (x)");
    }
    let why = differ(IMAGE, c, &slice("i0", "i7"), &slice("i1", "i8"));
    assert!(why.contains("Slice") || why.contains("slices"), "{why}");
    differ(IMAGE, c, "y = Gather <axis = 2> (x, i0)", "y = Gather <axis = 2> (x, i1)");
    equal(IMAGE, c, "y = Gather <axis = 2> (x, m1)", "y = Gather <axis = 2> (x, i7)");
    equal(IMAGE, c, "y = Gather <axis = 2> (x, i0)", "y = Slice (x, i0, i1, a)");
}

#[test]
fn weights_are_told_apart_to_the_last_bit() {
    let of = |w: &str| of_x("float[n, 2]", &format!("float[2, 2] w = {w}"), "y = MatMul (x, w)");
    let base = of("{1, 2, 3, 4}");
    // One unit in the last place; transposed; two elements exchanged.
    for other in ["{1, 2.0000002, 3, 4}", "{1, 3, 2, 4}", "{2, 1, 3, 4}"] {
        let proof = prove(&base, &of(other));
        assert!(!proof.proved && proof.reason.contains("differ in"), "{}", proof.reason);
    }
    let t = of_x("float[n, 2]", "float[2, 2] w = {1, 2, 3, 4}", "v = Transpose (w) y = MatMul (x, v)");
    assert!(!prove(&base, &t).proved);
    assert!(prove(&t, &of("{1, 3, 2, 4}")).proved);
}

#[test]
fn other_edges_and_operators_are_found() {
    let two = |body: &str| graph(&format!("(float[n, 4] a, float[n, 4] b) => (y) {{ {body} }}"));
    let base = two("s = Sigmoid (a) t = Tanh (b) y = Mul (s, t)");
    for other in [
        "s = Sigmoid (b) t = Tanh (a) y = Mul (s, t)",
        "s = Sigmoid (a) t = Tanh (a) y = Mul (s, t)",
        "s = Sigmoid (a) y = Mul (s, b)",
        "s = Sigmoid (a) t = Sigmoid (b) y = Mul (s, t)",
        "s = Sigmoid (a) t = Tanh (b) y = Mul (s, s)",
    ] {
        let proof = prove(&base, &two(other));
        assert!(!proof.proved && proof.parting.is_some(), "{other}");
    }
    let proof = prove(&base, &two("s = Sigmoid (a) t = Tanh (b) u = Tanh (t) y = Mul (s, u)"));
    let parting = proof.parting.unwrap();
    assert_eq!(
        (parting.output.as_str(), parting.value_a.as_str(), parting.value_b.as_str()),
        ("y", "b", "t"),
        "{parting:?}"
    );
}

#[test]
fn the_interface_must_agree() {
    let base = graph("(float[n, 4] x) => (y) { y = Relu (x) }");
    for (other, says) in [
        ("(float[n, 5] x) => (y) { y = Relu (x) }", "input `x`"),
        ("(double[n, 4] x) => (y) { y = Relu (x) }", "input `x`"),
        ("(float[n, 4] z) => (y) { y = Relu (z) }", "missing"),
        ("(float[n, 4] x) => (z) { z = Relu (x) }", "output"),
        ("(float[n, 4] x) => (y, z) { y = Relu (x) z = Relu (x) }", "output `z`"),
    ] {
        let g = graph(other);
        let proof = super::prove_equal(&base, &g, &Default::default());
        assert!(!proof.proved && proof.reason.contains(says), "{other}: {}", proof.reason);
    }
}

#[test]
fn what_a_node_draws_is_equal_to_what_it_draws_and_to_nothing_else() {
    let drawn = |body: &str| graph(&format!("(float[n, 4] x) => (y) {{ {body} y = Add (x, r) }}"));
    for body in ["r = RandomNormalLike (x)", "r = RandomNormalLike <seed = 1.0> (x)"] {
        let proof = prove(&drawn(body), &drawn(body));
        let says = proof.assumptions.iter().any(|a| a.contains("`r` (RandomNormalLike) draws the same"));
        assert!(proof.proved && says, "{:?}", proof.assumptions);
        for other in [
            "q = RandomNormalLike (x) r = Identity (q)",
            "r = RandomNormalLike <seed = 2.0> (x)",
            "r = RandomNormalLike <scale = 2.0> (x)",
            "r = RandomUniformLike (x)",
        ] {
            assert!(!prove(&drawn(body), &drawn(other)).proved, "{body}, {other}");
        }
    }
    let twice = graph("(float[n, 4] x) => (y, z) { y = RandomNormalLike (x) z = RandomNormalLike (x) }");
    let once = graph("(float[n, 4] x) => (y, z) { y = RandomNormalLike (x) z = Identity (y) }");
    assert!(!prove(&twice, &once).proved);
    let c = "float ratio = {0.5}, bool yes = {1}, bool no = {0}";
    let g = of_x("float[n, 4]", c, "y = Dropout (x, ratio, yes)");
    assert!(prove(&g, &g).proved);
    differ("float[n, 4]", c, "y = Dropout (x, ratio, yes)", "q = Dropout (x, ratio, yes) y = Identity (q)");
    equal("float[n, 4]", c, "y = Dropout (x, ratio, no)", "y = Identity (x)");
}

#[test]
fn zero_times_is_zero_only_of_its_type_and_shape() {
    let c = "float zero = {0}, float[3, 1] zeros = {0, …}, int64 z = {0}";
    // 0 · x has x's shape, not zero's.
    differ("float[n, 4]", c, "y = Mul (x, zero)", "y = Identity (zero)");
    let proof = equal("float[n, 4]", c, "a = Mul (x, zero) y = Add (a, x)", "y = Identity (x)");
    assert!(proof.assumptions.iter().any(|a| a.contains("finite") && a.contains("`x`")), "{:?}", proof.assumptions);
    assert!(proof.assumptions.iter().any(|a| a.contains("sign of zero")), "{:?}", proof.assumptions);
    // Integers have no infinities.
    let proof = equal("int64[n, 4]", c, "a = Mul (x, z) y = Add (a, x)", "y = Identity (x)");
    assert!(!proof.assumptions.iter().any(|a| a.contains("finite")), "{:?}", proof.assumptions);
    differ("float[1, 4]", c, "a = Mul (x, zeros) y = Add (a, x)", "y = Identity (x)");
    // A constant that is not finite is nothing to compute with.
    let why = differ(
        "float[n, 4]",
        "float inf = {inf}, float zero = {0}",
        "a = Mul (inf, zero) y = Add (a, x)",
        "y = Identity (x)",
    );
    assert!(!why.is_empty());
}

#[test]
fn subgraphs_and_local_functions_are_compared_whole() {
    use crate::onnx::import;
    use onnx_protobuf::attribute_proto::AttributeType;
    use onnx_protobuf::{AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, ValueInfoProto};
    let node = |op: &str, inputs: &[&str], output: &str| NodeProto {
        op_type: op.into(),
        input: inputs.iter().map(|s| s.to_string()).collect(),
        output: vec![output.into()],
        ..Default::default()
    };
    let branch = |name: &str, op: &str, reads: &str, output: &str| AttributeProto {
        name: name.into(),
        type_: AttributeType::GRAPH.into(),
        g: Some(GraphProto {
            node: vec![node(op, &[reads], output)],
            output: vec![ValueInfoProto { name: output.into(), ..Default::default() }],
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let model = |branches: Vec<AttributeProto>| {
        let base = graph("(float[n, 4] a, float[n, 4] b, bool c) => (y) { y = Add (a, b) }");
        let mut m: ModelProto =
            onnx_protobuf::Message::parse_from_bytes(&crate::onnx::emit(&base).unwrap().to_bytes().unwrap()).unwrap();
        m.opset_import = vec![OperatorSetIdProto { version: 18, ..Default::default() }];
        let mut n = node("If", &["c"], "y");
        n.attribute = branches;
        m.graph.as_mut().unwrap().node = vec![n];
        import(m, None).unwrap()
    };
    let base = model(vec![branch("then_branch", "Relu", "a", "p"), branch("else_branch", "Tanh", "b", "q")]);
    assert!(prove(&base, &base).proved);
    assert!(
        prove(&base, &model(vec![branch("then_branch", "Relu", "a", "other"), branch("else_branch", "Tanh", "b", "names")]))
            .proved
    );
    for other in [
        vec![branch("then_branch", "Relu", "b", "p"), branch("else_branch", "Tanh", "a", "q")],
        vec![branch("then_branch", "Tanh", "a", "p"), branch("else_branch", "Relu", "b", "q")],
        vec![branch("else_branch", "Relu", "a", "p"), branch("then_branch", "Tanh", "b", "q")],
        vec![branch("else_branch", "Tanh", "a", "q"), branch("then_branch", "Relu", "b", "p")],
        vec![branch("then_branch", "RandomNormalLike", "a", "p"), branch("else_branch", "Tanh", "b", "q")],
    ] {
        let g = model(other);
        assert!(!prove(&base, &g).proved);
    }
    let random = model(vec![branch("then_branch", "RandomNormalLike", "a", "p"), branch("else_branch", "Tanh", "b", "q")]);
    assert!(prove(&random, &random).proved);
}
