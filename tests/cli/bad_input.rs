//! Bad input: errors name the file and leave nothing behind.

use super::{folder, with};
use crate::common::{listing, text, tool, tool_ok, write_npz};
use onnx_protobuf::{Message, ModelProto};

#[test]
fn bad_models_are_refused_by_name() {
    let (dir, model) = folder();
    let path = |name: &str| dir.path().join(name);
    let whole = std::fs::read(&model).unwrap();
    std::fs::write(path("empty.onnx"), b"").unwrap();
    std::fs::write(path("notes.txt"), "These are notes, and no network at all.\n".repeat(50)).unwrap();
    std::fs::write(path("half.onnx"), &whole[..whole.len() / 2]).unwrap();
    std::fs::write(path("nearly.onnx"), &whole[..whole.len() - 1]).unwrap();
    std::fs::write(path("zeros.onnx"), vec![0; 4096]).unwrap();
    std::fs::create_dir(path("folder.onnx")).unwrap();
    let before = listing(dir.path());
    for (name, word) in [
        ("empty.onnx", "empty"),
        ("notes.txt", "ONNX"),
        ("half.onnx", "ONNX"),
        ("nearly.onnx", "ONNX"),
        ("zeros.onnx", "ONNX"),
        ("folder.onnx", "directory"),
        ("missing.onnx", "cannot be read"),
    ] {
        let given = text(&path(name));
        for arguments in [vec![given.clone()], vec!["inspect".into(), given.clone()], vec!["freeze".into(), given.clone()]] {
            let ran = tool(&arguments);
            assert_eq!(ran.status, 2, "{arguments:?}: {}", ran.err);
            assert!(ran.err.contains(name) && ran.err.contains(word), "{arguments:?}: {}", ran.err);
            assert!(ran.out.is_empty(), "{arguments:?}");
        }
    }
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn bad_companions_are_refused_by_name() {
    let (dir, model) = folder();
    let path = |name: &str| dir.path().join(name);
    let file = |name: &str| format!("file:{}", text(&path(name)));
    write_npz(&path("other.npz"), &[("somebody".into(), vec![5, 5], vec![0.0; 25])]);
    let matrix = |n: usize| vec![0.0; n * n];
    write_npz(&path("one.npz"), &[("ancre.0.logits".into(), vec![5, 5], matrix(5))]);
    let shapes = [("ancre.0.logits".into(), vec![4, 4], matrix(4)), ("ancre.1.logits".into(), vec![3, 3], matrix(3))];
    write_npz(&path("shape.npz"), &shapes);
    std::fs::write(path("broken.npz"), b"PK\x03\x04 no archive").unwrap();
    std::fs::write(path("broken.safetensors"), b"\xff\xff\xff\xff\xff\xff\xff\x7f{}").unwrap();
    std::fs::write(path("logits.txt"), b"0 0 0").unwrap();
    std::fs::write(path("names.txt"), "stem.weight\nno.such.tensor\n").unwrap();
    let before = listing(dir.path());
    let names = text(&path("names.txt"));
    let cases: Vec<(Vec<String>, Vec<&str>)> = vec![
        (vec!["--init".into(), file("other.npz")], vec!["ancre.0.logits", "somebody"]),
        (vec!["--init".into(), file("one.npz")], vec!["ancre.1.logits"]),
        (vec!["--init".into(), file("shape.npz")], vec!["ancre.0.logits", "[4, 4]", "[5, 5]"]),
        (vec!["--init".into(), file("broken.npz")], vec!["broken.npz"]),
        (vec!["--init".into(), file("broken.safetensors")], vec!["broken.safetensors"]),
        (vec!["--init".into(), file("logits.txt")], vec!["logits.txt", "suffix"]),
        (vec!["--init".into(), file("missing.npz")], vec!["missing.npz"]),
        (vec!["--loss".into(), "mse".into(), "--trainable-from".into(), names], vec!["no.such.tensor", "net.onnx"]),
        (vec!["--loss".into(), "mse".into(), "--trainable-from".into(), text(&path("missing.txt"))], vec!["missing.txt"]),
        (vec!["--chains".into(), "0,9".into()], vec!["net.onnx", "9"]),
    ];
    for (more, words) in cases {
        let ran = tool(&[&[text(&model)], &more[..]].concat());
        assert_eq!(ran.status, 2, "{more:?}: {}", ran.err);
        for word in words {
            assert!(ran.err.contains(word), "{more:?} does not say {word}: {}", ran.err);
        }
    }
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn outputs_that_cannot_be_written_leave_nothing() {
    let (dir, model) = folder();
    std::fs::write(dir.path().join("file"), b"in the way").unwrap();
    std::fs::create_dir(dir.path().join("taken.onnx")).unwrap();
    std::fs::create_dir(dir.path().join("x.train.onnx")).unwrap();
    let before = listing(dir.path());
    for (out, word) in [("file/", "file"), ("file/x.onnx", "file"), ("x.onnx", "x.train.onnx")] {
        let out = format!("{}/{out}", dir.path().display());
        let ran = tool(&with(&model, &["--loss", "mse", "--out", &out]));
        assert_eq!(ran.status, 2, "{out}: {}", ran.err);
        assert!(ran.err.contains(word) && ran.err.contains("cannot be written"), "{out}: {}", ran.err);
        assert_eq!(listing(dir.path()), before, "{out}");
    }
    // A folder that happens to end in .onnx is a folder.
    let out = text(&dir.path().join("taken.onnx"));
    tool_ok(&with(&model, &["--no-train", "--out", &out]));
    assert!(dir.path().join("taken.onnx").join("net.ancre.onnx").is_file());
}

#[test]
fn weights_that_are_missing_do_not_hinder_inspection() {
    let (dir, model) = folder();
    let structure = tool_ok(&["inspect", &text(&model), "--json"]).json();
    let mut m = ModelProto::parse_from_bytes(&std::fs::read(&model).unwrap()).unwrap();
    for t in &mut m.graph.as_mut().unwrap().initializer {
        if t.name.ends_with(".weight") {
            t.raw_data.clear();
            t.float_data.clear();
            t.data_location = protobuf::EnumOrUnknown::new(onnx_protobuf::tensor_proto::DataLocation::EXTERNAL);
            let place = onnx_protobuf::StringStringEntryProto {
                key: "location".into(),
                value: "net.onnx.data".into(),
                ..Default::default()
            };
            t.external_data.push(place);
        }
    }
    std::fs::write(&model, m.write_to_bytes().unwrap()).unwrap();
    let without = tool_ok(&["inspect", &text(&model), "--json"]).json();
    assert_eq!(structure["chains"], without["chains"]);
    let ran = tool(&with(&model, &[]));
    assert_ne!(ran.status, 0);
    assert!(ran.err.contains("net.onnx.data"), "{}", ran.err);
    assert_eq!(listing(dir.path()), ["net.onnx"]);
}

#[test]
fn a_routed_model_is_refused() {
    let (dir, model) = folder();
    tool_ok(&with(&model, &["--no-train"]));
    let routed = dir.path().join("net.ancre.onnx");
    let before = listing(dir.path());
    let ran = tool(&[&routed]);
    assert_eq!(ran.status, 2, "{}", ran.err);
    assert!(ran.err.contains("net.ancre.onnx") && ran.err.contains("already routed"), "{}", ran.err);
    assert_eq!(listing(dir.path()), before);
}

/// The model with its graph changed.
fn changed(model: &std::path::Path, change: impl FnOnce(&mut ModelProto)) {
    let mut m = ModelProto::parse_from_bytes(&std::fs::read(model).unwrap()).unwrap();
    change(&mut m);
    std::fs::write(model, m.write_to_bytes().unwrap()).unwrap();
}

#[test]
fn an_operator_of_the_tool_s_own_domain_is_refused() {
    let (_dir, model) = folder();
    changed(&model, |m| {
        m.opset_import.push(onnx_protobuf::OperatorSetIdProto { domain: "ancre".into(), version: 1, ..Default::default() });
        m.graph.as_mut().unwrap().node[0].domain = "ancre".into();
    });
    let ran = tool(&[&model]);
    assert_eq!(ran.status, 2, "{}", ran.err);
    assert!(ran.err.contains("net.onnx") && ran.err.contains("another domain"), "{}", ran.err);
}

#[test]
fn a_value_of_the_model_may_have_the_counter_s_name() {
    let (dir, model) = folder();
    changed(&model, |m| {
        let graph = m.graph.as_mut().unwrap();
        let old = graph.node[0].output[0].clone();
        let names = graph.node.iter_mut().flat_map(|n| n.input.iter_mut().chain(&mut n.output));
        names.filter(|name| **name == old).for_each(|name| *name = "ancre.step".into());
        graph.value_info.clear();
    });
    tool_ok(&with(&model, &["--loss", "mse"]));
    let graph = std::fs::read(dir.path().join("net.ancre.train.onnx")).unwrap();
    let graph = ModelProto::parse_from_bytes(&graph).unwrap();
    let counters = graph.graph.input.iter().filter(|i| i.name.starts_with("ancre.step")).count();
    assert_eq!(counters, 1);
}
