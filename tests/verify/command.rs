//! The verb as a person and as CI run it.

use crate::common::nets::{Plan, network};
use crate::common::{Ran, emit, text, tool, tool_ok};
use onnx_protobuf::{Message, ModelProto};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn model(name: &str) -> String {
    text(&crate::common::model(name))
}

fn write(dir: &Path, name: &str, bytes: &[u8]) -> String {
    let path: PathBuf = dir.join(name);
    std::fs::write(&path, bytes).unwrap();
    text(&path)
}

pub(super) fn small(seed: u64) -> Vec<u8> {
    emit(&network(&Plan::of(3), seed))
}

pub(super) fn changed(bytes: &[u8], change: impl Fn(&mut ModelProto)) -> Vec<u8> {
    let mut m = ModelProto::parse_from_bytes(bytes).unwrap();
    change(&mut m);
    m.write_to_bytes().unwrap()
}

fn json(ran: &Ran) -> Value {
    serde_json::from_str(&ran.out).unwrap_or_else(|e| panic!("{e}: {}{}", ran.out, ran.err))
}

#[test]
fn a_rewrite_is_equivalent_to_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let out = text(&dir.path().join("r.onnx"));
    tool_ok(&[&model("deep_mlp"), "--no-train", "--verify", "none", "-o", &out]);
    for engine in ["tract", "ort", "both"] {
        let report = tool_ok(&["verify", &model("deep_mlp"), &out, "--no-proof", "--json", "--engine", engine]).json();
        assert_eq!(
            (&report["equivalent"], &report["method"], &report["engine"]),
            (&true.into(), &"numeric".into(), &engine.into())
        );
        assert_eq!(report["outputs"][0]["max_abs"], 0.0);
        assert_eq!((&report["trials"], &report["first_divergence"]), (&8.into(), &Value::Null));
        assert_eq!(report["engines_apart"].is_object(), engine == "both");
    }
}

#[test]
fn another_weight_is_found_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = small(1);
    let a = write(dir.path(), "a.onnx", &bytes);
    let other = changed(&bytes, |m| {
        let g = m.graph.as_mut().unwrap();
        let t = g.initializer.iter_mut().find(|t| t.name == "chain0.block1.1.weight").unwrap();
        t.raw_data[3] ^= 0x80;
    });
    let b = write(dir.path(), "b.onnx", &other);
    let junit = dir.path().join("out.xml");
    let ran = tool(&["verify", &a, &b, "--json", "--junit", &text(&junit)]);
    let report = json(&ran);
    assert_eq!((ran.status, &report["equivalent"]), (1, &false.into()));
    let first = &report["first_divergence"];
    let reads = |node: &Value| {
        let m = ModelProto::parse_from_bytes(&bytes).unwrap();
        let name = node.as_str().unwrap().to_string();
        m.graph.node.iter().any(|n| n.name == name && n.input.iter().any(|v| v == "chain0.block1.1.weight"))
    };
    assert!(reads(&first["node_a"]) && reads(&first["node_b"]), "{first}");
    assert!(first["max_abs"].as_f64().unwrap() > 1e-5, "{first}");
    let xml = std::fs::read_to_string(junit).unwrap();
    assert!(xml.contains("<testsuite") && xml.contains("output y") && xml.contains("<failure"), "{xml}");
    let ran = tool(&["verify", &a, &b, "--quiet"]);
    assert!(ran.status == 1 && ran.out.contains("NOT equivalent") && ran.out.contains("first at"), "{}", ran.out);
    assert_eq!(tool_ok(&["verify", &a, &a, "--quiet"]).out, "");
}

#[test]
fn the_same_seed_gives_the_same_report() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (write(dir.path(), "a.onnx", &small(1)), write(dir.path(), "b.onnx", &small(2)));
    let report = || {
        let mut report = json(&tool(&["verify", &a, &b, "--json", "--seed", "5", "--no-proof"]));
        for timing in ["seconds", "cost"] {
            report.as_object_mut().unwrap().remove(timing);
        }
        report
    };
    assert_eq!(report(), report());
}

#[test]
fn interfaces_come_first() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = small(1);
    let a = write(dir.path(), "a.onnx", &bytes);
    let renamed = changed(&bytes, |m| {
        let g = m.graph.as_mut().unwrap();
        g.input[0].name = "z".into();
        g.node.iter_mut().flat_map(|n| &mut n.input).filter(|v| *v == "x").for_each(|v| *v = "z".into());
    });
    let b = write(dir.path(), "b.onnx", &renamed);
    let ran = tool(&["verify", &a, &b]);
    assert!(ran.status == 1 && ran.out.contains("input `x`") && ran.out.contains("input `z`"), "{}", ran.out);
}

#[test]
fn own_inputs_are_fed() {
    let dir = tempfile::tempdir().unwrap();
    let a = write(dir.path(), "a.onnx", &small(1));
    let path = dir.path().join("x.npy");
    ndarray_npy::write_npy(&path, &ndarray::Array2::<f32>::ones((5, 4))).unwrap();
    let given = format!("x={}", path.display());
    let report = json(&tool_ok(&["verify", &a, &a, "--no-proof", "--json", "--input", &given]));
    assert_eq!(report["trials"], 1);
    let out = dir.path().join("out.onnx").display().to_string();
    let report = json(&tool_ok(&[&a, "-o", &out, "--no-train", "--verify", "tract", "--json", "--input", &given]));
    assert_eq!(report["verify"]["trials"], 1, "the main job's");
    let ran = tool(&["verify", &a, &a, "--no-proof", "--input", &given.replace("x=", "nothing=")]);
    assert!(ran.status == 2 && ran.err.contains("the model's inputs are x"), "{}", ran.err);
    ndarray_npy::write_npy(&path, &ndarray::Array2::<f64>::ones((5, 4))).unwrap();
    let ran = tool(&["verify", &a, &a, "--no-proof", "--input", &given]);
    assert!(ran.status == 2 && ran.err.contains("f64[5, 4]") && ran.err.contains("astype"), "{}", ran.err);
}

#[test]
fn bad_input_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let a = write(dir.path(), "a.onnx", &small(1));
    for (arguments, says) in [
        (vec!["verify", "missing.onnx", &a], "missing.onnx"),
        (vec!["verify", &a, &a, "--dim", "nothing=3"], "symbolic dimensions are batch"),
        (vec!["verify", &a, &a, "--max-memory", "much"], "no size"),
        (vec!["verify", &a, &a, "--no-proof", "--max-memory", "1M"], "--max-memory allows"),
        (vec!["verify", &a, &a, "--atol", "-1"], "--atol"),
        (vec!["verify", "--gradient", &a], "no training graph"),
    ] {
        let ran = tool(&arguments);
        assert!(ran.status == 2 && ran.err.contains(says), "{arguments:?}: {} {}", ran.status, ran.err);
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    let dir = tempfile::tempdir().unwrap();
    // With layer normalisation, whose squares tract would sum in float32.
    let normed = network(&Plan { normed: true, ..Plan::of(3) }, 1);
    let model = write(dir.path(), "m.onnx", &emit(&normed));
    for options in [
        vec!["--loss", "mse", "--optimizer", "adamw"],
        vec!["--loss", "mse", "--optimizer", "sgd", "--grad-outputs"],
        vec![
            "--loss",
            "mse",
            "--optimizer",
            "sgd",
            "--momentum",
            "0.9",
            "--nesterov",
            "--weight-decay",
            "0.1",
            "--clip-norm",
            "0.5",
        ],
        vec!["--loss", "mse", "--optimizer", "adam", "--accumulate", "3", "--router-lr-scale", "2"],
        vec!["--loss", "mse", "--state", "inline"],
        vec!["--loss", "mse", "--state", "separate"],
    ] {
        let mut arguments = vec![model.as_str(), "--verify", "none"];
        arguments.extend(&options);
        tool_ok(&arguments);
        let train = text(&dir.path().join("m.ancre.train.onnx"));
        let report = tool_ok(&["verify", "--gradient", &train, "--json"]).json();
        let check = &report["checks"][0];
        assert_eq!((&report["equivalent"], &check["precision"]), (&true.into(), &"float64".into()), "{options:?}: {report}");
        assert!(check["tensors"].as_array().unwrap().len() > 10 && check["updates"].as_array().unwrap().len() > 10);
    }
}

#[test]
fn a_wrong_gradient_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let model = write(dir.path(), "m.onnx", &small(1));
    tool_ok(&[&model, "--verify", "none", "--loss", "mse", "--grad-outputs"]);
    let path = dir.path().join("m.ancre.train.onnx");
    let train = std::fs::read(&path).unwrap();
    // The gradient of one weight, and with it its update, is doubled.
    let wrong = changed(&train, |m| {
        let g = m.graph.as_mut().unwrap();
        let i = g.node.iter().position(|n| n.output.iter().any(|o| o == "head.weight.grad")).unwrap();
        let n = &mut g.node[i];
        n.output[0] = "half".into();
        let double = onnx_protobuf::NodeProto {
            op_type: "Add".into(),
            input: vec!["half".into(), "half".into()],
            output: vec!["head.weight.grad".into()],
            ..Default::default()
        };
        g.node.insert(i + 1, double);
    });
    std::fs::write(&path, wrong).unwrap();
    let ran = tool(&["verify", "--gradient", &text(&path)]);
    assert!(ran.status == 1 && ran.out.contains("wrong      `head.weight`"), "{}{}", ran.out, ran.err);
}
