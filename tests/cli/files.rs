//! Which files are written, where, and how; freezing.

use super::{folder, has_keys, with};
use crate::common::{data, emit, listing, text, tool, tool_ok, write_npz};
use ancre_passes::ir::SharedBytes;
use ancre_passes::pipeline::rewrite::{RewriteOptions, read_model, rewrite};
use ancre_passes::pipeline::training::TrainingOptions;
use ancre_passes::transform::auto_loss;
use ancre_passes::transform::loss::LossOptions;
use ancre_passes::transform::optimizer::{OptimizerKind, OptimizerOptions};
use onnx_protobuf::{Message, ModelProto};
use std::path::Path;

#[test]
fn the_same_input_gives_the_same_bytes() {
    let (dir, model) = folder();
    let run = |name: &str| {
        let out = format!("{}/{name}/", dir.path().display());
        tool_ok(&with(&model, &["--loss", "mse", "--grad-outputs", "--out", &out]));
        ["net.ancre.onnx", "net.ancre.train.onnx"].map(|f| std::fs::read(Path::new(&out).join(f)).unwrap())
    };
    assert!(run("first") == run("second"));
    let report = || {
        let mut r = tool_ok(&with(&model, &["--loss", "mse", "--dry-run", "--json"])).json();
        r.as_object_mut().unwrap().shift_remove("seconds");
        r.to_string()
    };
    assert_eq!(report(), report());
}

#[test]
fn a_larger_model_gives_the_same_bytes_twice() {
    let dir = tempfile::tempdir().unwrap();
    let model = data("golden/resnet/cascaded_alt.onnx");
    let run = |name: &str| {
        let out = format!("{}/{name}/", dir.path().display());
        tool_ok(&with(&model, &["--loss", "cross-entropy", "--verify", "none", "--out", &out]));
        ["cascaded_alt.ancre.onnx", "cascaded_alt.ancre.train.onnx"].map(|f| std::fs::read(Path::new(&out).join(f)).unwrap())
    };
    assert!(run("first") == run("second"));
}

#[test]
fn a_dry_run_writes_nothing() {
    let (dir, model) = folder();
    let report = tool_ok(&with(
        &model,
        &["--dry-run", "--json", "--loss", "mse", "--out", &format!("{}/new/", dir.path().display())],
    ));
    assert_eq!(report.json()["outputs"].as_array().unwrap().len(), 3);
    assert_eq!(listing(dir.path()), ["net.onnx"]);
    assert!(!dir.path().join("new").exists());
}

#[test]
fn outputs_are_named_as_asked() {
    let (dir, model) = folder();
    let root = dir.path();
    let go = |out: &str| tool_ok(&with(&model, &["--loss", "mse", "-o", &format!("{}/{out}", root.display())]));
    let exists = |name: &str| assert!(root.join(name).is_file(), "{name} of {:?}", listing(root));
    tool_ok(&with(&model, &["--loss", "mse"]));
    exists("net.ancre.onnx");
    exists("net.ancre.train.onnx");
    exists("net.ancre.init.onnx");
    std::fs::create_dir(root.join("there")).unwrap();
    go("there");
    exists("there/net.ancre.onnx");
    exists("there/net.ancre.train.onnx");
    go("new/deep/");
    exists("new/deep/net.ancre.onnx");
    go("named.onnx");
    exists("named.onnx");
    exists("named.train.onnx");
    exists("named.init.onnx");
    go("made/v1.2.onnx");
    exists("made/v1.2.onnx");
    exists("made/v1.2.train.onnx");
    assert!(!listing(root).iter().any(|n| n.starts_with(".ancre-")), "{:?}", listing(root));
}

#[test]
fn an_existing_output_is_replaced_whole() {
    let (dir, model) = folder();
    let out = dir.path().join("net.ancre.onnx");
    std::fs::write(&out, vec![7; 1 << 20]).unwrap();
    tool_ok(&with(&model, &["--no-train"]));
    let bytes = std::fs::read(&out).unwrap();
    assert!(bytes.len() < 1 << 20 && ModelProto::parse_from_bytes(&bytes).is_ok());
    // A failure leaves the old one.
    let ran = tool(&with(&model, &["--no-train", "--chains", "9"]));
    assert_eq!(ran.status, 2);
    assert_eq!(std::fs::read(&out).unwrap(), bytes);
}

#[test]
fn quiet_is_quiet() {
    let (_dir, model) = folder();
    let ran = tool_ok(&with(&model, &["-q", "--loss", "mse"]));
    assert_eq!((ran.out.as_str(), ran.err.as_str()), ("", ""));
    assert!(!tool(&with(&model, &["-q", "--chains", "9"])).err.is_empty(), "an error is said even so");
}

// ---- freeze -----------------------------------------------------------------------------------------------------------

#[test]
fn freezing_needs_something_to_freeze() {
    let (dir, model) = folder();
    tool_ok(&with(&model, &["--no-train"]));
    let path = |name: &str| text(&dir.path().join(name));
    write_npz(Path::new(&path("shape.npz")), &[("head.bias".into(), vec![4], vec![0.0; 4])]);
    write_npz(Path::new(&path("other.npz")), &[("somebody".into(), vec![4], vec![0.0; 4])]);
    let before = listing(dir.path());
    let routed = path("net.ancre.onnx");
    for (arguments, word) in [
        (vec![text(&model)], "no router"),
        (vec![routed.clone(), "--state".into(), path("missing.safetensors")], "missing.safetensors"),
        (vec![routed.clone(), "--state".into(), path("shape.npz")], "head.bias"),
        (vec![routed.clone(), "--state".into(), path("other.npz")], "other.npz"),
        (vec![routed.clone(), "--prune".into(), "2".into()], "--prune"),
        (vec![routed.clone(), "--prune".into(), "nan".into()], "--prune"),
        (vec![routed.clone(), "--prune".into(), "0.1".into(), "--keep-router".into()], "--keep-router"),
    ] {
        let ran = tool(&[&["freeze".to_string()], &arguments[..]].concat());
        assert_eq!(ran.status, 2, "{arguments:?}: {}", ran.err);
        assert!(ran.err.contains(word), "{arguments:?}: {}", ran.err);
    }
    assert_eq!(listing(dir.path()), before);
    let ran = tool_ok(&["freeze", &routed, "--json"]);
    has_keys(&ran.json(), &["output", "restored", "unused", "router"]);
    assert!(dir.path().join("net.frozen.onnx").is_file());
}

#[test]
fn an_untrained_gated_router_freezes_to_the_source() {
    let (dir, model) = folder();
    tool_ok(&with(&model, &["--no-train"]));
    tool_ok(&["freeze", &text(&dir.path().join("net.ancre.onnx"))]);
    let nodes =
        |name: &str| ModelProto::parse_from_bytes(&std::fs::read(dir.path().join(name)).unwrap()).unwrap().graph.node.len();
    assert_eq!(nodes("net.frozen.onnx"), nodes("net.onnx"));
}

/// One call of the library makes the graphs that the tool writes, byte for byte.
#[test]
fn the_library_makes_what_the_tool_writes() {
    for name in ["resnet_cifar", "swin", "gpt_neox"] {
        let source = crate::common::model(name);
        let dir = tempfile::tempdir().unwrap();
        let flags = ["--verify", "none", "--batch", "keep", "--eval-graph", "--infer-graph"];
        tool_ok(&[&[text(&source), "-o".into(), text(dir.path())], &flags.map(String::from)[..]].concat());
        let bytes = SharedBytes::new(std::fs::read(&source).unwrap());
        let g = read_model(&bytes, source.parent()).unwrap();
        let mut loss = LossOptions::of(auto_loss::choose(&g, None).unwrap());
        loss.ignore_index = Some(-100);
        let mut options = RewriteOptions::default();
        options.training = Some(TrainingOptions::of(loss, OptimizerOptions::of(OptimizerKind::AdamW)));
        (options.evaluation, options.inference) = (true, true);
        let made = rewrite(&g, &options).unwrap();
        let training = made.training.as_ref().map(|t| &t.graph);
        let graphs = [("", Some(&made.forward)), ("train.", training), ("init.", made.init.as_ref())];
        let more = [("eval.", made.evaluation.as_ref()), ("infer.", made.inference.as_ref())];
        for (kind, g) in graphs.into_iter().chain(more) {
            let written = std::fs::read(dir.path().join(format!("{name}.ancre.{kind}onnx"))).unwrap();
            assert!(emit(g.unwrap()) == written, "{name}: `{kind}` is another");
        }
    }
}

/// Linux alone lets a name be any bytes.
#[cfg(target_os = "linux")]
#[test]
fn reports_of_files_whose_names_are_no_utf_8_are_json() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStrExt;
    let (dir, model) = folder();
    let odd = dir.path().join(OsStr::from_bytes(b"od\xffd"));
    std::fs::create_dir(&odd).unwrap();
    std::fs::rename(model, odd.join("net.onnx")).unwrap();
    std::fs::write(odd.join("text.txt"), "to be or not").unwrap();
    let json = |words: &[&str]| {
        let named = |w: &&str| if w.starts_with("net") || *w == "text.txt" { odd.join(w).into() } else { OsString::from(w) };
        let report = tool(&words.iter().map(named).chain(["--json".into()]).collect::<Vec<_>>()).json();
        assert!(report.to_string().contains("od\u{fffd}d"), "{words:?}: {report}");
    };
    json(&["net.onnx", "--loss", "mse"]);
    json(&["inspect", "net.onnx"]);
    json(&["verify", "net.onnx", "net.ancre.onnx"]);
    json(&["freeze", "net.ancre.onnx"]);
    json(&["net.onnx", "--loss", "mse", "--lora", "2"]);
    json(&["freeze", "net.ancre.onnx", "--adapter", "net.safetensors"]);
    json(&["topology", "net.ancre.onnx"]);
    json(&["grad", "net.onnx", "--of", "y=sum"]);
    json(&["tokenize", "text.txt", "--tokenizer", "bytes"]);
    let pairs = [OsStr::new("verify"), OsStr::new("--pairs"), odd.as_os_str(), OsStr::new("--json")];
    assert_eq!(tool(&pairs).json()["equivalent"], 1);
}
