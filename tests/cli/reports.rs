//! What is reported, as text and as JSON.

use super::{folder, has_keys, with};
use crate::common::nets::{Plan, network};
use crate::common::{emit, listing, model, text, tool, tool_ok};
use serde_json::Value;

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
    assert_eq!(kinds, ["forward", "train", "init"]);
    for o in outputs {
        has_keys(o, &["kind", "path", "bytes", "nodes"]);
        let written = std::fs::metadata(o["path"].as_str().unwrap()).unwrap().len();
        assert_eq!(o["bytes"], written);
    }
    let verify = &report["verify"];
    has_keys(verify, &["engine", "one_hot", "emitted", "trials"]);
    for what in ["one_hot", "emitted"] {
        has_keys(&verify[what], &["equivalent", "max_abs", "max_rel", "method"]);
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
    has_keys(&report["placement"], &["target", "graph", "fallbacks", "forward"]);
    assert_eq!(report["placement"]["graph"], "train");
    has_keys(&report["seconds"], &["parse", "analyse", "rewrite", "differentiate", "emit", "verify"]);
    assert_eq!(listing(dir.path()), ["net.ancre.init.onnx", "net.ancre.onnx", "net.ancre.train.onnx", "net.onnx"]);

    let report = tool_ok(&with(&model, &["--json", "--no-train", "--verify", "none"])).json();
    assert!(report["verify"].is_null());
    assert_eq!(report["outputs"].as_array().unwrap().len(), 1);
    assert_eq!(report["placement"]["graph"], "forward");
}

/// The forward graph's operators are looked up too, those of ONNX Runtime's own domain and quantised ones among them.
#[test]
fn placement_of_the_forward_graph_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let said = |name: &str| {
        let (model, out) = (text(&model(name)), text(dir.path()));
        let ran = tool_ok(&[&model, "--no-train", "--verify", "none", "--json", "--dry-run", "-o", &out]);
        ran.json()["placement"].clone()
    };
    let fused = said("bert_ort");
    assert_eq!(fused["fallbacks"].as_array().map(Vec::len), Some(0), "{fused}");
    let quantised = said("resnet_cifar_qdq");
    let listed = quantised["forward"].as_array().unwrap();
    // The provider's partitioner leaves exactly these to the CPU.
    assert!(listed.len() == 22 && listed.iter().all(|f| f["op"] == "DequantizeLinear"), "{quantised}");
    assert!(listed.iter().all(|f| f["why"].as_str().unwrap().contains("does not take i32")), "{quantised}");
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
    assert_eq!(said(&["--preset", "deep"]), ["input", "add", "softmax", "uniform"]);
    assert_eq!(
        said(&["--preset", "deep", "--form", "reassign", "--parametrization", "free"]),
        ["reassign", "add", "free", "identity"]
    );
    let tau = |more: &[&str]| {
        tool_ok(&with(&model, &[more, &["--json", "--dry-run", "--no-train"]].concat())).json()["router"]["tau"]
            .as_f64()
            .unwrap()
    };
    assert_eq!(
        [tau(&["--preset", "deep"]), tau(&["--preset", "paper"]), tau(&["--preset", "deep", "--tau", "0.5"])],
        [0.1, 0.01, 0.5]
    );
    assert_eq!(said(&["--preset", "paper", "--granularity", "add"]), ["augment", "add", "softmax", "uniform"]);
    assert_eq!(said(&["--parametrization", "free"])[3], "identity");
}

#[test]
fn a_router_over_few_blocks_is_said_to_have_little_to_learn() {
    let said = |chains: Vec<usize>, preset: &str| {
        let dir = tempfile::tempdir().unwrap();
        let model = dir.path().join("net.onnx");
        std::fs::write(&model, emit(&network(&Plan { chains, ..Plan::of(5) }, 1))).unwrap();
        let out = tool_ok(&[&text(&model), "--preset", preset, "--dry-run", "--no-train", "--verify", "none"]).out;
        ["that is next to nothing", "chains of at most 4 blocks had little to learn"].map(|what| out.contains(what))
    };
    for chains in [vec![4, 3], vec![4]] {
        assert_eq!(said(chains, "finetune"), [false, true]);
    }
    assert_eq!(said(vec![2], "finetune"), [true, false]);
    assert_eq!(said(vec![5, 3], "deep"), [false; 2]);
    // What is added to whole blocks changes short chains as well.
    assert_eq!(said(vec![4, 3], "paper"), [false; 2]);
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

#[test]
fn passes_can_be_looked_into() {
    let (dir, model) = folder();
    let out = format!("{}/out/", dir.path().display());
    let ran = tool(&with(&model, &["--stop-after", "lower-routes", "-o", &out]));
    assert!(ran.status == 0 && ran.err.contains("# after lower-routes") && ran.err.contains("ancre/0/"), "{}", ran.err);
    assert!(!dir.path().join("out").exists());
    let ran = tool(&with(&model, &["--print-after", "route-skips", "--no-train", "--dry-run", "--verify", "none"]));
    assert!(ran.status == 0 && ran.err.contains("ancre.Route") && !ran.err.contains("# after lower-routes"), "{}", ran.err);
    let ran = tool(&with(&model, &["--max-changes", "1", "--no-train", "--dry-run", "--verify", "none", "--json"]));
    assert!(ran.err.contains("# route-skips: 1 changes, the last at chain 0"), "{}", ran.err);
    assert_eq!(ran.json()["router"]["chains"].as_array().unwrap().len(), 1);
    let ran = tool(&with(&model, &["--print-after", "nobody"]));
    assert!(ran.status == 2 && ran.err.contains("`nobody`") && ran.err.contains("fold-constants"), "{}", ran.err);
}
