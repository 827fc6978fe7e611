//! What the command line promises: exit statuses, reports, file names, and that nothing is left behind.

use crate::common::nets::{Plan, network};
use crate::common::{data, emit, listing, runtime, text, tool, tool_ok, write_npz};
use onnx_protobuf::{Message, ModelProto};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A folder with `net.onnx`, a chain of five blocks (id 0) and one of three (id 1).
fn folder() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan { chains: vec![5, 3], ..Plan::of(5) };
    let model = dir.path().join("net.onnx");
    std::fs::write(&model, emit(&network(&plan, 1))).unwrap();
    (dir, model)
}

/// `model` and further arguments.
fn with<'a>(model: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    [&[model.to_str().unwrap()], more].concat()
}

fn keys(v: &Value) -> Vec<&str> {
    v.as_object().unwrap_or_else(|| panic!("no object: {v}")).keys().map(String::as_str).collect()
}

fn has_keys(v: &Value, wanted: &[&str]) {
    let missing: Vec<_> = wanted.iter().filter(|k| v.get(**k).is_none()).collect();
    assert!(missing.is_empty(), "the report lacks {missing:?}; it has {:?}", keys(v));
}

// ---- help -------------------------------------------------------------------------------------------------------------

/// The verbs that `--help` lists.
fn listed_verbs(help: &str) -> Vec<String> {
    let section = help.split("Commands:").nth(1).expect("a list of commands").split("\n\n").next().unwrap();
    section.lines().filter_map(|l| l.split_whitespace().next()).filter(|v| *v != "help").map(str::to_string).collect()
}

#[test]
fn help_lists_what_works_only() {
    let help = tool_ok(&["--help"]).out;
    let verbs = listed_verbs(&help);
    for verb in ["inspect", "freeze"] {
        assert!(verbs.iter().any(|v| v == verb), "{verb} is missing from the help");
    }
    for verb in &verbs {
        assert!(tool_ok(&[verb.as_str(), "--help"]).out.contains("Usage:"), "{verb}");
        let said = tool(&[verb.as_str(), "no-such-file.onnx"]).err;
        assert!(!said.contains("not supported yet"), "{verb} is listed and does not work");
    }
    for verb in ["topology", "grad"] {
        assert!(!verbs.iter().any(|v| v == verb), "{verb} is reserved");
    }
    assert!(help.contains("Examples:") && help.contains("Exit status"), "{help}");
}

#[test]
fn an_option_that_is_refused_is_not_advertised() {
    let (_dir, model) = folder();
    let help = tool_ok(&["--help"]).out;
    let options: [&[&str]; 7] = [
        &["--state", "separate"],
        &["--batch", "4"],
        &["--classes", "3"],
        &["--freeze-backbone"],
        &["--reinit", "1"],
        &["--eval-graph"],
        &["--opset", "19"],
    ];
    for option in options {
        let ran = tool(&with(&model, &[option, &["--dry-run"]].concat()));
        let listed = help.lines().any(|l| l.trim_start().starts_with(option[0]));
        if ran.err.contains("not supported yet") {
            assert_eq!(ran.status, 2, "{option:?}");
            assert!(!listed, "{option:?} is in the help and is refused");
        }
    }
}

#[test]
fn completions_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(tool_ok(&["completions", shell]).out.contains("ancre-rewrite"), "{shell}");
    }
}

// ---- exit statuses ----------------------------------------------------------------------------------------------------

#[test]
fn usage_errors_have_status_2() {
    let (dir, model) = folder();
    let before = listing(dir.path());
    assert_eq!(tool::<&str>(&[]).status, 2);
    for more in [
        &["--no-such-option"][..],
        &["--tau", "zero"],
        &["--tau", "0"],
        &["--tau", "-1"],
        &["--tau", "nan"],
        &["--form", "neither"],
        &["--granularity", "layer"],
        &["--granularity", "0"],
        &["--init", "random"],
        &["--init", "near-identity=2"],
        &["--init", "near-identity=x"],
        &["--parametrization", "free", "--init", "near-identity"],
        &["--parametrization", "constant", "--init", "identity"],
        &["--chains", "zero"],
        &["--chains", "7"],
        &["--momentum", "0.9"],
        &["--optimizer", "sgd", "--nesterov"],
        &["--label-smoothing", "1.5"],
        &["--clip-norm", "0"],
        &["--clip-norm", "nan"],
        &["--accumulate", "0"],
        &["--beta1", "1"],
        &["--dim", "batch"],
        &["--dim", "batch=0"],
        &["--loss", "cross-entropy", "--output", "nobody"],
        &["--loss", "mse", "--trainable", "nobody*"],
        &["--loss", "mse", "--frozen", "nobody*"],
        &["--trials", "-1"],
    ] {
        let ran = tool(&with(&model, more));
        assert_eq!(ran.status, 2, "{more:?}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains("error:") && ran.out.is_empty(), "{more:?}: {} {}", ran.out, ran.err);
    }
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn a_check_that_says_no_has_status_1() {
    let dir = tempfile::tempdir().unwrap();
    let plain = dir.path().join("plain.onnx");
    std::fs::write(&plain, emit(&network(&Plan::of(0), 1))).unwrap();
    let ran = tool(&with(&plain, &["--require"]));
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(ran.err.contains("plain.onnx") && ran.err.contains("nothing to rewrite"), "{}", ran.err);
    assert_eq!(listing(dir.path()), ["plain.onnx"]);
    // Without the demand there is nothing wrong with it.
    tool_ok(&with(&plain, &["--no-train"]));

    let (dir, model) = folder();
    let ran = tool(&with(&model, &["--parametrization", "softmax", "--require-equivalent"]));
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(ran.err.contains("net.onnx") && ran.err.contains("not equivalent"), "{}", ran.err);
    assert_eq!(listing(dir.path()), ["net.onnx"]);
    tool_ok(&with(&model, &["--require-equivalent"]));
}

#[test]
fn an_operator_that_tract_lacks_is_named() {
    let (dir, model) = folder();
    let mut m = ModelProto::parse_from_bytes(&std::fs::read(&model).unwrap()).unwrap();
    let graph = m.graph.as_mut().unwrap();
    let at = graph.node.iter().position(|n| n.output.contains(&"y".to_string())).unwrap();
    graph.node[at].op_type = "NoSuchOperator".into();
    graph.node[at].name = "odd".into();
    std::fs::write(&model, m.write_to_bytes().unwrap()).unwrap();
    let ran = tool(&with(&model, &["--no-train"]));
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(ran.err.contains("NoSuchOperator") && ran.err.contains("--verify none"), "{}", ran.err);
    assert_eq!(listing(dir.path()), ["net.onnx"]);
    tool_ok(&with(&model, &["--no-train", "--verify", "none"]));
    // Asked for, a training graph is an error; else only a notice.
    let ran = tool(&with(&model, &["--verify", "none", "--loss", "mse"]));
    assert_eq!(ran.status, 2, "{}", ran.err);
    assert!(ran.err.contains("NoSuchOperator") || ran.err.contains("`y`"), "{}", ran.err);
    let report = tool_ok(&with(&model, &["--verify", "none", "--json"])).json();
    assert!(report["training"]["reason"].is_string(), "{report}");
}

// ---- bad input --------------------------------------------------------------------------------------------------------

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

// ---- reports ----------------------------------------------------------------------------------------------------------

#[test]
fn inspect_reports_the_chains() {
    let (_dir, model) = folder();
    let report = tool_ok(&["inspect", &text(&model), "--json"]).json();
    has_keys(&report, &["model", "opset", "residual_adds", "identity", "projection", "chains"]);
    assert_eq!(report["residual_adds"], 9);
    assert_eq!(report["identity"], 8);
    assert_eq!(report["projection"], 1);
    let chains = report["chains"].as_array().unwrap();
    assert_eq!(chains.len(), 2);
    for (id, (chain, blocks)) in chains.iter().zip([5, 3]).enumerate() {
        has_keys(chain, &["id", "blocks", "shape", "dtype", "post", "scaled", "adds", "states", "signature", "period"]);
        assert_eq!(chain["id"], id);
        assert_eq!(chain["blocks"], blocks);
        assert_eq!(chain["adds"].as_array().unwrap().len(), blocks);
        assert_eq!(chain["states"].as_array().unwrap().len(), blocks + 1);
        assert_eq!(chain["dtype"], "f32");
        assert_eq!(chain["post"], "none");
        assert_eq!(chain["scaled"], false);
        assert_eq!(chain["shape"].as_array().unwrap().len(), 2);
        assert_eq!(chain["shape"][0], "batch");
    }
    let add = chains[0]["adds"][0].as_str().unwrap();
    assert!(tool_ok(&["inspect", &text(&model), "--why", add]).out.contains(add));
    assert_eq!(tool(&["inspect", &text(&model), "--why", "nobody"]).status, 2);
    tool_ok(&["inspect", &text(&model), "--rejected"]);
    assert!(tool_ok(&["inspect", &text(&model)]).out.contains('5'));
}

#[test]
fn inspect_draws() {
    let (dir, model) = folder();
    let path = dir.path().join("chains.dot");
    tool_ok(&["inspect", &text(&model), "--dot", &text(&path)]);
    let drawing = std::fs::read_to_string(path).unwrap();
    assert!(drawing.starts_with("digraph") && drawing.trim_end().ends_with('}'), "{drawing}");
}

#[test]
fn the_report_has_the_contract_s_keys() {
    let (dir, model) = folder();
    let ran = tool_ok(&with(&model, &["--json", "--loss", "mse"]));
    let report = ran.json();
    let all = [
        "model",
        "opset",
        "nodes",
        "parameters",
        "chains",
        "router",
        "outputs",
        "verify",
        "placement",
        "training",
        "seconds",
    ];
    has_keys(&report, &all);
    let router = &report["router"];
    let wanted = ["form", "granularity", "scope", "parametrization", "init", "tau", "normalize", "coefficients", "chains"];
    has_keys(router, &wanted);
    let said = ["form", "granularity", "scope", "parametrization", "init", "normalize"].map(|k| router[k].as_str().unwrap());
    assert_eq!(said, ["reassign", "add", "stage", "gated", "uniform", "incoming"]);
    assert_eq!(router["tau"], 0.01);
    assert_eq!(router["coefficients"], 5 * 6 / 2 + 3 * 4 / 2);
    for (chain, k) in router["chains"].as_array().unwrap().iter().zip([5, 3]) {
        has_keys(chain, &["id", "K", "adds_per_block", "note"]);
        assert_eq!(chain["K"], k);
    }
    let outputs = report["outputs"].as_array().unwrap();
    let kinds: Vec<_> = outputs.iter().map(|o| o["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["forward", "train"]);
    for o in outputs {
        has_keys(o, &["kind", "path", "bytes", "nodes"]);
        let written = std::fs::metadata(o["path"].as_str().unwrap()).unwrap().len();
        assert_eq!(o["bytes"], written);
    }
    let verify = &report["verify"];
    has_keys(verify, &["engine", "one_hot", "emitted", "trials"]);
    assert_eq!(verify["engine"], "tract");
    for what in ["one_hot", "emitted"] {
        has_keys(&verify[what], &["equivalent", "max_abs", "max_rel"]);
        assert_eq!(verify[what]["equivalent"], true);
    }
    has_keys(&report["training"], &["loss", "optimizer", "batch", "trainable", "frozen"]);
    assert_eq!(report["training"]["loss"], "mse");
    assert_eq!(report["training"]["optimizer"], "adamw");
    let trainable: Vec<&str> =
        report["training"]["trainable"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    for name in ["stem.weight", "chain0.block0.0.bias", "head.weight", "ancre.0.logits", "ancre.0.gate", "ancre.1.logits"] {
        assert!(trainable.contains(&name), "{name} does not train: {trainable:?}");
    }
    has_keys(&report["placement"], &["target", "fallbacks"]);
    has_keys(&report["seconds"], &["parse", "analyse", "rewrite", "differentiate", "emit", "verify"]);
    assert_eq!(listing(dir.path()), ["net.ancre.onnx", "net.ancre.train.onnx", "net.onnx"]);

    let report = tool_ok(&with(&model, &["--json", "--no-train", "--verify", "none"])).json();
    assert!(report["verify"].is_null());
    assert_eq!(report["outputs"].as_array().unwrap().len(), 1);
}

#[test]
fn presets_and_later_flags() {
    let (_dir, model) = folder();
    let said = |more: &[&str]| {
        let report = tool_ok(&with(&model, &[more, &["--json", "--dry-run", "--no-train"]].concat())).json();
        ["form", "granularity", "parametrization", "init"].map(|k| report["router"][k].as_str().unwrap().to_string())
    };
    assert_eq!(said(&["--preset", "paper"]), ["augment", "block", "softmax", "uniform"]);
    assert_eq!(said(&["--preset", "finetune"]), ["reassign", "add", "gated", "uniform"]);
    assert_eq!(said(&["--preset", "paper", "--granularity", "add"]), ["augment", "add", "softmax", "uniform"]);
    assert_eq!(said(&["--parametrization", "free"])[3], "identity");
}

#[test]
fn every_router_verifies() {
    let (_dir, model) = folder();
    for form in ["reassign", "augment"] {
        for rule in ["softmax", "gated", "free", "constant"] {
            for normalize in ["incoming", "outgoing"] {
                let more = ["--form", form, "--parametrization", rule, "--normalize", normalize, "--dry-run", "--json"];
                let report = tool_ok(&with(&model, &more)).json();
                assert_eq!(report["verify"]["one_hot"]["equivalent"], true, "{more:?}");
                let exact = form == "reassign" && ["gated", "free"].contains(&rule);
                assert_eq!(report["verify"]["emitted"]["equivalent"], exact, "{more:?}: {}", report["verify"]);
            }
        }
    }
}

#[test]
fn the_other_engine_and_both() {
    runtime();
    let (_dir, model) = folder();
    for engine in ["ort", "both"] {
        let report = tool_ok(&with(&model, &["--verify", engine, "--dry-run", "--json", "--trials", "3"])).json();
        assert_eq!(report["verify"]["engine"], engine);
        assert_eq!(report["verify"]["trials"], 3);
        assert_eq!(report["verify"]["emitted"]["equivalent"], true);
    }
}

#[test]
fn chosen_chains_only() {
    let (_dir, model) = folder();
    let routed = |chains: &str| -> Vec<u64> {
        let report = tool_ok(&with(&model, &["--chains", chains, "--dry-run", "--json"])).json();
        report["router"]["chains"].as_array().unwrap().iter().map(|c| c["id"].as_u64().unwrap()).collect()
    };
    assert_eq!(routed("all"), [0, 1]);
    assert_eq!(routed("1"), [1]);
    assert_eq!(routed("1, 0"), [0, 1]);
    assert_eq!(routed("none"), [] as [u64; 0]);
}

#[test]
fn identity_logits_that_cannot_learn_are_announced() {
    let (_dir, model) = folder();
    let more = ["--parametrization", "softmax", "--init", "identity", "--loss", "mse", "--dry-run"];
    let ran = tool_ok(&with(&model, &more));
    assert!(format!("{}{}", ran.out, ran.err).contains("cannot learn"), "{}", ran.out);
}

#[test]
fn without_evidence_for_a_loss_there_is_a_reason() {
    let (dir, model) = folder();
    let report = tool_ok(&with(&model, &["--json"])).json();
    if report["training"].get("loss").is_none() {
        assert!(report["training"]["reason"].as_str().unwrap().contains("--loss"), "{}", report["training"]);
        assert_eq!(listing(dir.path()), ["net.ancre.onnx", "net.onnx"]);
        let ran = tool(&with(&model, &["--optimizer", "sgd"]));
        assert_eq!(ran.status, 2, "{}", ran.out);
        assert!(ran.err.contains("no training graph") && ran.err.contains("net.onnx"), "{}", ran.err);
    }
}

// ---- files ------------------------------------------------------------------------------------------------------------

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
    assert_eq!(report.json()["outputs"].as_array().unwrap().len(), 2);
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
    std::fs::create_dir(root.join("there")).unwrap();
    go("there");
    exists("there/net.ancre.onnx");
    exists("there/net.ancre.train.onnx");
    go("new/deep/");
    exists("new/deep/net.ancre.onnx");
    go("named.onnx");
    exists("named.onnx");
    exists("named.train.onnx");
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
