//! `--opset`: the forward graph in another operator set computes the same, the training graph follows or says why not.

use crate::common::{emit, floats, model, open, open_file, text, tool, tool_ok};
use ancre_passes::ir::DType;
use ancre_passes::refusal::Applied;
use ancre_passes::text::parse;
use ancre_passes::transform::legalize;
use ancre_rewrite::engine::Session;
use ancre_rewrite::io::files::read_model;

#[test]
fn the_forward_graph_computes_the_same_in_another_operator_set() {
    // Up from 13, 14 and 17, down from 20; Gelu and newer reductions among them.
    for (name, opset) in [("seresnext", 17), ("bert", 18), ("densenet", 21), ("vit", 18), ("dit", 18), ("swin", 20)] {
        let dir = tempfile::tempdir().unwrap();
        let (m, o, n) = (text(&model(name)), text(dir.path()), opset.to_string());
        let r = tool_ok(&[&m, "-o", &o, "--opset", &n, "--no-train", "--json"]).json();
        let proof = &r["verify"]["emitted"];
        assert_eq!(proof["equivalent"], true, "{name} in opset {opset}: {proof}");
        let path = dir.path().join(format!("{name}.ancre.onnx"));
        assert_eq!(read_model(&path).unwrap().0.opsets[""], opset, "{name}");
        open_file(&path);
    }
}

#[test]
fn the_training_graph_is_in_18_or_in_what_was_asked_for() {
    for (flags, opset) in [(vec![], 18), (vec!["--opset", "20"], 20), (vec!["--opset", "17"], 18)] {
        let dir = tempfile::tempdir().unwrap();
        let (m, o) = (text(&model("resnet_cifar")), text(dir.path()));
        let mut a = vec![m.as_str(), "-o", &o, "--verify", "none", "--json"];
        a.extend(&flags);
        let r = tool_ok(&a).json();
        let path = dir.path().join("resnet_cifar.ancre.train.onnx");
        assert_eq!(read_model(&path).unwrap().0.opsets[""], opset);
        open_file(&path);
        let told = r["notices"].as_array().unwrap().iter().any(|n| n.as_str().unwrap().contains("is of opset 18"));
        assert_eq!(told, flags.contains(&"17"));
    }
}

#[test]
fn what_an_operator_set_lacks_is_named() {
    let ran = tool(&[&text(&model("vit")), "--opset", "17", "--no-train"]);
    assert!(ran.status == 2 && ran.err.contains("--opset 17: the graph is of opset 20"), "{}", ran.err);
    let ran = tool(&[&text(&model("resnet_cifar_qdq")), "--opset", "6"]);
    assert!(ran.status == 2 && ran.err.contains("7..=28"), "{}", ran.err);
}

/// The runtime has no kernel for it: numbers of onnx's reference implementation.
#[test]
fn a_gated_product_is_what_the_reference_computes() {
    let mut g = parse(
        "<opset_import: [\"\" : 28]> g (float[1, 3] a, float[1, 3] b) => (float[1, 3] y) { y = SwiGLU <alpha = 0.5> (a, b) }",
    )
    .unwrap();
    legalize::to_opset(&mut g, legalize::TARGET, &mut Applied::default()).unwrap();
    let mut session = open(&emit(&g)).unwrap();
    let feed = |name: &str, values: &[f64]| (name.to_string(), floats(DType::F32, &[1, 3], values));
    let feeds = [feed("a", &[-1.0, 0.5, 2.0]), feed("b", &[3.0, -2.0, 0.25])].into_iter().collect();
    let y = session.run(&feeds).unwrap()["y"].to_f64();
    let want = [-1.132_622, -0.562_176_53, 0.365_529_3];
    assert!(y.iter().zip(want).all(|(have, want)| (have - want).abs() < 1e-6), "{y:?}");
}

/// A small residual network with a pooling that is undone, in an operator set's spelling of `up` and of its adds.
fn shrinking(opset: i64, up: &str, add: &str) -> Vec<u8> {
    let text = format!(
        "<opset_import: [\"\" : {opset}]> g (float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y)
        <float[2, 2, 1, 1] w = {{0.5, -0.25, 0.125, 0.75}}, float[4] scales = {{1.0, 1.0, 2.0, 2.0}}> {{
            a = Conv (x, w)  h = {add} (x, a)  b = Conv (h, w)  k = {add} (h, b)
            p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (k)  u = {up}  y = Sigmoid (u) }}"
    );
    emit(&parse(&text).unwrap())
}

#[test]
fn case_27_upsample_is_trained_as_the_resize_that_it_became() {
    let nodes = |opset: i64, up: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        std::fs::write(&path, shrinking(opset, up, "Add")).unwrap();
        tool_ok(&[&text(&path), "-o", &text(dir.path()), "--loss", "mse"]);
        let train = read_model(&dir.path().join("m.ancre.train.onnx")).unwrap().0;
        let mut names: Vec<String> = train.nodes().filter_map(|n| train.op(n)).map(|op| op.name.clone()).collect();
        names.sort();
        names
    };
    let resized = nodes(10, "Resize (p, scales)");
    assert_eq!(nodes(9, "Upsample (p, scales)"), resized);
    assert_eq!(nodes(7, "Upsample <scales = [1.0, 1.0, 2.0, 2.0]> (p)"), resized);
}

#[test]
fn an_operator_set_before_7_is_read_as_7() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: Vec<u8>| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        text(&path)
    };
    let old = write("old.onnx", shrinking(6, "Upsample <height_scale = 2.0, width_scale = 2.0> (p)", "Add <broadcast = 1>"));
    let new = write("new.onnx", shrinking(7, "Upsample <scales = [1.0, 1.0, 2.0, 2.0]> (p)", "Add"));
    let r = tool_ok(&["verify", &old, &new, "--proof", "--json"]).json();
    assert_eq!(r["proof"]["proved"], true, "{r}");
}
