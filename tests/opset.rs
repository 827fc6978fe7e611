//! `--opset`: the forward graph in another operator set computes the same, the training graph follows or says why not.

use crate::common::{model, open_file, text, tool, tool_ok};
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
    assert!(ran.status == 2 && ran.err.contains("7..=26"), "{}", ran.err);
}
