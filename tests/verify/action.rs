//! `verify --pairs` and `.ci/verify-models`, by which `action.yml` and people call it: pairs in, a summary, annotations and JUnit
//! reports out.

use super::command::{changed, small};
use crate::common::{listing, text, tool};
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

/// What a run left: its status, its output, its summary.
struct Left {
    status: i32,
    said: String,
    summary: String,
}

/// Runs the script in a folder with these inputs.
fn act(dir: &TempDir, inputs: &[(&str, &str)]) -> Left {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/verify-models");
    let summary = dir.path().join("summary.md");
    let _ = std::fs::remove_file(&summary);
    let out = Command::new("bash")
        .arg(script)
        .current_dir(dir.path())
        .env("GITHUB_ACTIONS", "true")
        .env("GITHUB_STEP_SUMMARY", &summary)
        .env("INPUT_BINARY", env!("CARGO_BIN_EXE_ancre-rewrite"))
        .env("INPUT_RUNTIME", "none")
        .env("INPUT_ARGUMENTS", "--trials 1")
        .envs(inputs.iter().copied())
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    let summary = std::fs::read_to_string(summary).unwrap_or_default();
    Left { status: out.status.code().unwrap(), said, summary }
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    dir
}

fn report(dir: &TempDir, name: &str) -> String {
    std::fs::read_to_string(dir.path().join("ancre-verify").join(name)).unwrap()
}

#[test]
fn every_pair_has_a_row_and_a_report_of_its_own() {
    let same = small(1);
    let other = changed(&same, |m| m.graph.as_mut().unwrap().initializer[0].raw_data[3] ^= 0x80);
    let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n";
    let dir = folder(&[
        ("nets/a_b/m.onnx", &same),
        ("nets/a_b/m.ancre.onnx", &same),
        ("nets/a/b_m.onnx", &same),
        ("nets/a/b_m.ancre.onnx", &other),
        ("nets/lfs.onnx", &same),
        ("nets/lfs.ancre.onnx", pointer),
        ("my nets/one.onnx", &same),
        ("my nets/two # new.onnx", &same),
    ]);
    let pairs = "# a comment\n\n  \"my nets/one.onnx\" 'my nets/two # new.onnx'  # and another\n";
    let left = act(&dir, &[("INPUT_DIRECTORY", "nets"), ("INPUT_PAIRS", pairs)]);
    assert_eq!(left.status, 2, "{}", left.said);
    for row in [
        "| my nets/one.onnx | my nets/two # new.onnx | equivalent |",
        "| nets/a_b/m.onnx | nets/a_b/m.ancre.onnx | equivalent |",
        "| nets/a/b_m.onnx | nets/a/b_m.ancre.onnx | **not equivalent** |",
        "| nets/lfs.onnx | nets/lfs.ancre.onnx | **could not be checked** |",
        "2 of 4 rewritten models",
    ] {
        assert!(left.summary.contains(row), "no {row}: {}", left.summary);
    }
    assert!(report(&dir, "nets%2Fa%2Fb_m.ancre.onnx.xml").contains("type=\"not equivalent\""));
    assert!(!report(&dir, "nets%2Fa_b%2Fm.ancre.onnx.xml").contains("<failure"));
    let lfs = report(&dir, "nets%2Flfs.ancre.onnx.xml");
    assert!(lfs.contains("type=\"could not be checked\"") && lfs.contains("lfs: true"), "{lfs}");
    let annotated = |file: &str, title: &str| left.said.contains(&format!("::error file={file},title={title}::"));
    assert!(annotated("nets/lfs.ancre.onnx", "could not be checked"), "{}", left.said);
    assert!(annotated("nets/a/b_m.ancre.onnx", "not equivalent"), "{}", left.said);
    assert_eq!(listing(&dir.path().join("ancre-verify")).len(), 4);
}

#[test]
fn a_rewrite_without_its_source_fails_unless_allowed() {
    let same = small(1);
    let dir = folder(&[("a.ancre.onnx", &same), ("b.onnx", &same), ("b.ancre.onnx", &same)]);
    let left = act(&dir, &[("INPUT_DIRECTORY", ".")]);
    assert!(left.status == 2 && left.said.contains("its source ./a.onnx is gone or renamed"), "{}", left.said);
    assert!(left.summary.contains("| ./a.onnx | ./a.ancre.onnx | **could not be checked** |"), "{}", left.summary);
    assert!(report(&dir, ".%2Fa.ancre.onnx.xml").contains("type=\"could not be checked\""));
    let left = act(&dir, &[("INPUT_DIRECTORY", "."), ("INPUT_ALLOW_MISSING_SOURCE", "true")]);
    assert_eq!(left.status, 0, "{}", left.said);
    // A pair that names it says where its source is.
    let left = act(&dir, &[("INPUT_DIRECTORY", "."), ("INPUT_PAIRS", "b.onnx a.ancre.onnx")]);
    assert_eq!(left.status, 0, "{}", left.said);
}

#[test]
fn one_model_with_two_sources_has_two_reports() {
    let same = small(1);
    let dir = folder(&[("a.onnx", &same), ("b.onnx", &same), ("r.onnx", &same)]);
    let left = act(&dir, &[("INPUT_PAIRS", "a.onnx r.onnx\nb.onnx r.onnx")]);
    assert_eq!(left.status, 0, "{}", left.said);
    assert_eq!(listing(&dir.path().join("ancre-verify")), ["r.onnx-2.xml", "r.onnx.xml"]);
    for wrong in ["a.onnx", "a.onnx b.onnx r.onnx", "a.onnx \"r.onnx"] {
        let left = act(&dir, &[("INPUT_PAIRS", wrong)]);
        assert!(left.status == 2 && left.said.contains("is not SOURCE REWRITTEN"), "{wrong}: {}", left.said);
    }
}

#[test]
fn a_backslash_in_an_argument_stays() {
    let same = small(1);
    let dir = folder(&[("a.onnx", &same), ("b.onnx", &same), ("odd\\ list", b"a.onnx b.onnx"), ("c.onnx", &same)]);
    let arguments = "--trials 1 --pairs \"odd\\ list\" # \"what follows";
    let left = act(&dir, &[("INPUT_PAIRS", "a.onnx c.onnx"), ("INPUT_ARGUMENTS", arguments)]);
    assert_eq!(left.status, 0, "{}", left.said);
    assert_eq!(listing(&dir.path().join("ancre-verify")), ["b.onnx.xml", "c.onnx.xml"]);
    let left = act(&dir, &[("INPUT_PAIRS", "a.onnx c.onnx"), ("INPUT_ARGUMENTS", "--engine 'tract")]);
    assert!(left.status == 2 && left.said.contains("a quote does not end"), "{}", left.said);
}

#[test]
fn a_tool_that_is_killed_could_not_check() {
    let same = small(1);
    let dir = folder(&[("a.onnx", &same), ("b.onnx", &same), ("killed", b"#!/bin/sh\nkill -9 $$\n")]);
    let killed = dir.path().join("killed");
    assert!(Command::new("chmod").arg("+x").arg(&killed).status().unwrap().success());
    let left = act(&dir, &[("INPUT_PAIRS", "a.onnx b.onnx"), ("INPUT_BINARY", &text(&killed))]);
    assert!(left.status == 2 && left.said.contains("::error::ancre-rewrite ended with status 137"), "{}", left.said);
}

#[test]
fn the_script_runs_by_hand() {
    let same = small(1);
    let dir = folder(&[("my nets/a.onnx", &same), ("my nets/a.ancre.onnx", &same), ("list", b"'my nets/a.onnx' \"b c\"")]);
    std::fs::write(dir.path().join("b c"), &same).unwrap();
    let by_hand = |arguments: &[&str]| {
        let out = Command::new("bash")
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/verify-models"))
            .args(arguments)
            .current_dir(dir.path())
            .env("INPUT_BINARY", env!("CARGO_BIN_EXE_ancre-rewrite"))
            .env("INPUT_RUNTIME", "none")
            .env_remove("GITHUB_ACTIONS")
            .env_remove("GITHUB_STEP_SUMMARY")
            .output()
            .unwrap();
        let said = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (out.status.code().unwrap(), said(&out.stdout), said(&out.stderr))
    };
    let (status, out, err) = by_hand(&["my nets", "list", "--", "--trials", "1"]);
    assert_eq!(status, 0, "{out}{err}");
    assert!(out.contains("equivalent            my nets/a.ancre.onnx\n") && out.contains("2 of 2"), "{out}");
    assert!(!err.contains("::group"), "{err}");
    assert_eq!(listing(&dir.path().join("ancre-verify")), ["b%20c.xml", "my%20nets%2Fa.ancre.onnx.xml"]);
    // Reports of an earlier run go; what else lies there stays.
    std::fs::write(dir.path().join("ancre-verify/other.xml"), "<testsuites name=\"mine\"/>").unwrap();
    assert_eq!(by_hand(&["my nets"]).0, 0);
    assert_eq!(listing(&dir.path().join("ancre-verify")), ["my%20nets%2Fa.ancre.onnx.xml", "other.xml"]);
    let (status, out, _) = by_hand(&["--help"]);
    assert!(status == 0 && out.contains("DIRECTORY"), "{out}");
    for wrong in [&[][..], &["--no"], &["missing"], &["my nets", "--", "--trials", "x"]] {
        let (status, out, err) = by_hand(wrong);
        assert_eq!(status, 2, "{wrong:?}: {out}{err}");
    }
}

#[test]
fn pairs_are_reported_as_json() {
    let same = small(1);
    let other = changed(&same, |m| m.graph.as_mut().unwrap().initializer[0].raw_data[3] ^= 0x80);
    let dir = folder(&[("a.onnx", &same), ("a.ancre.onnx", &other), ("b.ancre.onnx", &same)]);
    let ran = tool(&["verify", "--pairs", &text(dir.path()), "--trials", "1", "--json"]);
    let said: serde_json::Value = serde_json::from_str(&ran.out).unwrap();
    let results: Vec<&str> = said["pairs"].as_array().unwrap().iter().filter_map(|p| p["result"].as_str()).collect();
    assert_eq!((ran.status, results), (2, vec!["not equivalent", "could not be checked"]));
    assert!(said["pairs"][0]["why"].as_str().unwrap().contains("differs by"), "{said}");
    assert_eq!((&said["equivalent"], &said["of"]), (&0.into(), &2.into()));
    // Where only a proof counts, the word is another.
    let ran = tool(&["verify", "--pairs", &text(dir.path()), "--proof", "--allow-missing-source"]);
    assert!(ran.status == 1 && ran.out.contains("not proved            "), "{}", ran.out);
}
