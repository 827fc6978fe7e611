//! What the command line promises: exit statuses, reports, file names, and that nothing is left behind.

mod bad_input;
mod external;
mod files;
mod messages;
mod reports;
mod verified;

use crate::common::nets::{Plan, network};
use crate::common::{emit, listing, tool, tool_ok};
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

/// Makes what computes `y` in the model an operator that nothing knows, in a node named `odd`.
fn with_unknown_operator(model: &Path) {
    let mut m = ModelProto::parse_from_bytes(&std::fs::read(model).unwrap()).unwrap();
    let graph = m.graph.as_mut().unwrap();
    let at = graph.node.iter().position(|n| n.output.contains(&"y".to_string())).unwrap();
    graph.node[at].op_type = "NoSuchOperator".into();
    graph.node[at].name = "odd".into();
    std::fs::write(model, m.write_to_bytes().unwrap()).unwrap();
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
    for verb in ["inspect", "freeze", "grad", "topology", "tokenize", "compare"] {
        assert!(verbs.iter().any(|v| v == verb), "{verb} is missing from the help");
    }
    for verb in &verbs {
        assert!(tool_ok(&[verb.as_str(), "--help"]).out.contains("Usage:"), "{verb}");
        let said = tool(&[verb.as_str(), "no-such-file.onnx"]).err;
        assert!(!said.contains("not supported yet"), "{verb} is listed and does not work");
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
        &["--trials", "0"],
        &["--tau", "1e-60"],
        &["--eps", "-1"],
        &["--labels", ""],
        &["--require-equivalent", "--verify", "none"],
        &["-q", "-v"],
    ] {
        let ran = tool(&with(&model, more));
        assert_eq!(ran.status, 2, "{more:?}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains("error:") && ran.out.is_empty(), "{more:?}: {} {}", ran.out, ran.err);
    }
    assert_eq!(listing(dir.path()), before);
}

#[test]
fn options_without_effect_are_said() {
    let (_dir, model) = folder();
    for (more, says) in [
        (&["--parametrization", "free", "--tau", "2"][..], "--tau has no effect: it belongs to --parametrization softmax"),
        (
            &["--loss", "mse", "--label-smoothing", "0.1"],
            "--label-smoothing has no effect: it belongs to --loss cross-entropy",
        ),
        (
            &["--loss", "mse", "--optimizer", "sgd", "--beta1", "0.8"],
            "--beta1 has no effect: it belongs to --optimizer adamw or adam",
        ),
        (&["--no-train", "--clip-norm", "1"], "the training graph has no effect"),
        (&["--verify", "none", "--trials", "3"], "--trials has no effect"),
    ] {
        let ran = tool_ok(&with(&model, more));
        assert!((ran.out.clone() + &ran.err).contains(says), "{more:?}: {}{}", ran.out, ran.err);
    }
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
fn an_operator_without_derivative_ends_the_training_graph() {
    let (_dir, model) = folder();
    with_unknown_operator(&model);
    // Asked for, a training graph is an error; else only a notice.
    let ran = tool(&with(&model, &["--verify", "none", "--loss", "mse"]));
    assert_eq!(ran.status, 2, "{}", ran.err);
    assert!(ran.err.contains("NoSuchOperator") || ran.err.contains("`y`"), "{}", ran.err);
    let report = tool_ok(&with(&model, &["--verify", "none", "--json"])).json();
    assert!(report["training"]["reason"].is_string(), "{report}");
}
