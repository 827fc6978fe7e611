//! Engines run in processes of their own: what they die of, in loops, without memory, by signals, is a check that could not be
//! made, wherever CI looks.

use crate::common::{emit, runtime, text, tool, tool_ok, tool_where, write_npz};
use ancre_passes::text::parse;
use onnx_protobuf::{Message, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use tempfile::TempDir;

fn model(graph: &str) -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    std::fs::write(&path, emit(&parse(graph).unwrap_or_else(|e| panic!("{graph}: {e}")))).unwrap();
    (dir, text(&path))
}

/// The message of a comparison that an engine does not survive.
fn dies(graph: &str, more: &[&str]) -> String {
    let (dir, m) = model(graph);
    let junit = text(&dir.path().join("out.xml"));
    let arguments = [&["verify", &m, &m, "--no-proof", "--junit", &junit], more].concat();
    let ran = tool_where(&[("GITHUB_ACTIONS", "true")], &arguments);
    assert_eq!(ran.status, 2, "{graph} {more:?}: {}{}", ran.out, ran.err);
    let (annotation, said) = ran.err.split_once("error: ").unwrap();
    let xml = std::fs::read_to_string(junit).unwrap();
    let why = said.lines().next().unwrap().split(": ").last().unwrap().replace(['<', '>', '"'], "");
    for place in [annotation, &xml] {
        assert!(place.contains("could not be checked") && !place.contains("not equivalent"), "{place}");
        assert!(place.replace("&quot;", "").contains(&why[..why.len().min(30)]), "{place} does not say {why}");
    }
    assert!(xml.contains("<error") && !xml.contains("<failure"), "{xml}");
    assert!(said.contains("m.onnx") && !said.contains("fault of ancre-rewrite"), "{said}");
    said.into()
}

#[test]
fn a_comparison_that_takes_too_much_memory_leaves_its_report() {
    // What this process itself takes: 400 MB of weights.
    let graph = "g (float[1] x) => (float[1] y) { y = Tanh (x) }";
    let (dir, m) = model(graph);
    let mut large = ModelProto::parse_from_bytes(&std::fs::read(&m).unwrap()).unwrap();
    let weight = TensorProto {
        name: "w".into(),
        dims: vec![25 << 20],
        data_type: 1,
        float_data: vec![1.0; 25 << 20],
        ..Default::default()
    };
    large.graph.as_mut().unwrap().initializer.push(weight);
    let node =
        NodeProto { op_type: "ReduceSum".into(), input: vec!["w".into()], output: vec!["s".into()], ..Default::default() };
    large.graph.as_mut().unwrap().node.push(node);
    let info = ValueInfoProto { name: "s".into(), ..large.graph.output[0].clone() };
    large.graph.as_mut().unwrap().output.push(info);
    std::fs::write(&m, large.write_to_bytes().unwrap()).unwrap();
    let junit = dir.path().join("out.xml");
    let arguments = ["verify", &m, &m, "--no-proof", "--max-memory", "30M", "--junit", &text(&junit)];
    let ran = tool_where(&[("GITHUB_ACTIONS", "true")], &arguments);
    assert!(ran.status == 2 && ran.err.contains("--max-memory allows 30.0 MB"), "{} {}", ran.status, ran.err);
    let xml = std::fs::read_to_string(junit).unwrap();
    for place in [&xml, &ran.err] {
        assert!(place.contains("could not be checked") && place.contains("--max-memory allows"), "{place}");
    }
}

/// Neither proof nor engine: that is no difference.
#[test]
fn without_an_engine_that_runs_them_models_are_not_called_different() {
    let (dir, m) = model("g (float[4] x) => (float[4] y) { a = NoSuchOperator (x) y = Tanh (a) }");
    let junit = dir.path().join("out.xml");
    let nowhere = [("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so"), ("GITHUB_ACTIONS", "true")];
    let ran = tool_where(&nowhere, &["verify", &m, &m, "--no-proof", "--junit", &text(&junit)]);
    assert!(ran.status == 2 && ran.err.contains("tract cannot run it") && ran.err.contains("NoSuchOperator"), "{}", ran.err);
    assert!(ran.err.contains("/nowhere/libonnxruntime.so"), "{}", ran.err);
    let xml = std::fs::read_to_string(junit).unwrap();
    assert!(xml.contains("could not be checked") && !xml.contains("not equivalent"), "{xml}");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn an_engine_that_dies_while_it_opens_a_training_graph_is_survived() {
    runtime();
    let (dir, m) = model("g (float[N, 3] x) => (float y) <float[3, 2] w = {1, 2, 3, 4, 5, 6}> { y = MatMul (x, w) }");
    let said = tool_ok(&[&m, "--loss", "mse", "--json"]).json();
    assert_eq!(said["outputs"][1]["opened_by"], "ort", "{said}");
    let train = dir.path().join("m.ancre.train.onnx");
    let mut damaged = ModelProto::parse_from_bytes(&std::fs::read(&train).unwrap()).unwrap();
    let g = damaged.graph.as_mut().unwrap();
    // ONNX Runtime computes what is constant as it opens a graph. This division overflows.
    for (name, value) in [("lowest", i64::MIN), ("minus", -1)] {
        g.initializer.push(TensorProto {
            name: name.into(),
            dims: vec![1],
            data_type: 7,
            int64_data: vec![value],
            ..Default::default()
        });
    }
    let input = vec!["lowest".to_string(), "minus".to_string()];
    g.node.push(NodeProto {
        op_type: "Div".into(),
        name: "ratio".into(),
        input,
        output: vec!["r".into()],
        ..Default::default()
    });
    let mut info = g.output[0].clone();
    info.name = "r".into();
    info.type_.as_mut().unwrap().mut_tensor_type().elem_type = 7;
    info.type_.as_mut().unwrap().mut_tensor_type().shape.clear();
    g.output.push(info);
    std::fs::write(&train, damaged.write_to_bytes().unwrap()).unwrap();
    let data = dir.path().join("data.npz");
    write_npz(&data, &[("x".into(), vec![4, 3], vec![1.0; 12]), ("target".into(), vec![4, 2], vec![0.0; 8])]);
    let ran = tool(&["train", &text(&train), "--data", &text(&data), "--steps", "1", "--batch-size", "4"]);
    assert!(ran.status == 2 && ran.err.contains("ort died of signal 8 (SIGFPE"), "{} {}", ran.status, ran.err);
    assert!(ran.err.contains("m.ancre.train.onnx"), "{}", ran.err);
}

#[test]
fn an_engine_that_does_not_end_is_ended() {
    // tract goes through a window of 2^40 elements one by one.
    let pool = "g (float[1, 1, 4, 4] x) => (float y) { y = AveragePool <kernel_shape = [1099511627776, 2], pads = [1099511627776, 0, 1099511627776, 0]> (x) }";
    let said = dies(pool, &["--engine", "tract", "--engine-timeout", "2"]);
    assert!(said.contains("tract took more than 2 s (--engine-timeout)"), "{said}");
}

#[test]
fn an_engine_without_bound_is_bounded() {
    // 2 GiB of ones.
    let (_dir, m) =
        model("g (float[1] x) => (float y) <int64[1] s = {536870912}> { c = Expand (x, s) e = Exp (c) y = ReduceSum (e) }");
    let ran = tool(&[&m, "--no-train", "--dry-run", "--verify", "tract", "--max-memory", "300M"]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    let said = "tract used more than 300.0 MB of memory (--max-memory), at node `c` (Expand)";
    assert!(ran.err.contains(said), "{}", ran.err);
}

#[test]
fn an_engine_that_panics_or_divides_by_zero_is_survived() {
    runtime();
    for (graph, engine, node) in [
        // A dilation of 2^62: the kernel's extent overflows.
        (
            "g (float[1, 3, 8, 8] x) => (float y) { y = MaxPool <kernel_shape = [2, 2], dilations = [4611686018427387904, 4611686018427387904]> (x) }",
            "ort",
            "",
        ),
        ("g (int64[4] x) => (int64[4] y) { a = Neg (x) z = Sub (a, a) m = Mod (x, z) y = Abs (m) }", "ort", "Mod"),
        // tract's rule reads an axis that is not there.
        (BATCH_NORM, "tract", "at node `y` (BatchNormalization)"),
    ] {
        let said = dies(graph, &["--engine", engine]);
        assert!(said.contains(&format!("{engine} cannot run it: ")) && said.contains(node), "{said}");
    }
}

const BATCH_NORM: &str = "g (float[4] x) => (float[4] y) <float[4] a = {1, 1, 1, 1}, float[4] b = {1, 2, 3, 4}> { y = BatchNormalization (x, a, b, a, b) }";

#[test]
#[cfg(target_arch = "x86_64")]
fn the_node_that_an_engine_dies_of_is_named() {
    runtime();
    let graph = "g (int64[1] x) => (int64[1] y) <int64[1] l = {-9223372036854775807}, int64[1] o = {-1}> { a = Neg (x) s = Add (l, o) m = Div (s, o) y = Add (a, m) }";
    let said = dies(graph, &["--engine", "ort"]);
    assert!(said.contains("ort died of signal 8 (SIGFPE), at node `m` (Div)"), "{said}");
}

#[test]
fn a_batch_norm_of_a_vector_is_survived() {
    let (_dir, m) = model(BATCH_NORM);
    let ran = tool(&["inspect", &m]);
    assert_eq!(ran.status, 0, "{}", ran.err);
}

#[test]
fn a_process_of_its_own_says_the_same() {
    runtime();
    // Errors come through as they are, and several models live in one process.
    let graph = "g (float[N, 3] x) => (float y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = MatMul (x, w) }";
    for engine in ["tract", "ort"] {
        let said = dies(graph, &["--engine", engine]);
        assert!(said.contains("MatMul") || said.contains("dimension"), "{said}");
    }
    let (_dir, m) = model("g (float[N, 3] x) => (float[N, 3] y) { y = Tanh (x) }");
    for engine in ["tract", "ort", "both"] {
        let ran = tool(&["verify", &m, &m, "--no-proof", "--engine", engine]);
        assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
    }
}
