//! A head tied to its embedding, whose transpose the exporter stored as a second tensor: one parameter, whose gradient is the sum
//! of both and whose trained value goes to both.

use crate::common::{floats, max_abs, model, open_file, random_data, text, tool_ok, write_safetensors};
use ancre_passes::ir::DType;
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::files::read_model;
use ancre_rewrite::io::tensor::NpTensor;
use serde_json::Value;
use std::path::Path;

const TABLE: &str = "net.lm_head.weight";

/// Rewrites `gpt2`; the report and the name of the tensor that holds the table's transpose.
fn built(dir: &Path, flags: &[&str]) -> Value {
    let (m, o) = (text(&model("gpt2")), format!("{}/", text(dir)));
    let all = [&[m.as_str(), "-o", &o, "--verify", "none", "--json"], flags].concat();
    tool_ok(&all).json()
}

/// The inputs of a training graph, the same for every one of a model.
fn feeds(path: &Path) -> Tensors {
    let mut feeds = random_data(path);
    if feeds.contains_key("lr") {
        feeds.insert("lr".into(), floats(DType::F32, &[], &[1e-2]));
    }
    feeds
}

fn turned(t: &NpTensor) -> Vec<f64> {
    let (rows, columns) = (t.shape()[0], t.shape()[1]);
    let v = t.to_f64();
    (0..columns).flat_map(|j| (0..rows).map(|i| v[i * columns + j]).collect::<Vec<_>>()).collect()
}

#[test]
fn the_gradient_of_a_tied_weight_is_the_sum_of_both() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let flags = ["--optimizer", "none"];
    let report = built(one.path(), &flags);
    let apart = built(two.path(), &[&flags[..], &["--untied"]].concat());
    let ties = report["training"]["tied"].as_array().unwrap();
    assert_eq!((ties.len(), ties[0]["name"].as_str()), (1, Some(TABLE)));
    assert!(apart["training"]["tied"].as_array().unwrap().is_empty());
    let map = ties[0]["transposed"].as_str().unwrap();
    let trains = |r: &Value, name: &str| r["training"]["trainable"].as_array().unwrap().iter().any(|n| n == name);
    assert!(trains(&report, TABLE) && !trains(&report, map) && trains(&apart, TABLE) && trains(&apart, map));
    let elements = |r: &Value| r["parameters"].as_u64().unwrap();

    let path = one.path().join("gpt2.ancre.train.onnx");
    let feeds = feeds(&path);
    let tied = open_file(&path).run(&feeds).unwrap();
    let both = open_file(&two.path().join("gpt2.ancre.train.onnx")).run(&feeds).unwrap();
    let (table, transposed) = (&both[&format!("{TABLE}.grad")], &both[&format!("{map}.grad")]);
    assert_eq!(elements(&apart) - elements(&report), table.to_f64().len() as u64);
    let sum: Vec<f64> = table.to_f64().iter().zip(turned(transposed)).map(|(a, b)| a + b).collect();
    let got = tied[&format!("{TABLE}.grad")].to_f64();
    let largest = sum.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let error = max_abs(&got, &sum) / largest;
    assert!(error < 1e-5 && largest > 0.0, "off by {error:.1e} of the largest element");
    assert!(max_abs(&table.to_f64(), &sum) / largest > 0.1, "the head's part is no small one");
}

#[test]
fn a_trained_tie_is_deployed_to_both_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let report = built(dir.path(), &["--chains", "none", "--optimizer", "sgd", "--eval-graph"]);
    let map = report["training"]["tied"][0]["transposed"].as_str().unwrap();
    let feeds = feeds(&at("gpt2.ancre.train.onnx"));
    let stepped = open_file(&at("gpt2.ancre.train.onnx")).run(&feeds).unwrap();
    let state: Tensors =
        stepped.iter().filter_map(|(n, t)| Some((n.strip_suffix(".next")?.to_string(), t.clone()))).collect();
    assert!(!state.contains_key(map));
    // Evaluated with the state, by the evaluation graph.
    let mut evaluated = feeds.clone();
    evaluated.shift_remove("lr");
    evaluated.extend(state.iter().filter(|(n, _)| *n != "ancre.step").map(|(n, t)| (n.clone(), t.clone())));
    let want = open_file(&at("gpt2.ancre.eval.onnx")).run(&evaluated).unwrap();

    write_safetensors(&at("s.safetensors"), &state, None);
    // Into the forward graph, which says what is tied, and into the source, where equality says it.
    for forward in [at("gpt2.ancre.onnx"), model("gpt2")] {
        let frozen = at("frozen.onnx");
        let [f, s, o] = [&forward, &at("s.safetensors"), &frozen].map(|p| text(p));
        tool_ok(&["freeze", &f, "--state", &s, "-o", &o]);
        let (g, _) = read_model(&frozen).unwrap();
        let constant = |name: &str| g.initializer(g.find(name).unwrap()).unwrap().to_f64().unwrap();
        assert_eq!(constant(map), turned(&state[TABLE]), "{f}");
        assert_eq!(constant(TABLE), state[TABLE].to_f64(), "{f}");
        assert!(g.metadata.keys().all(|k| !k.starts_with("ancre.")), "{:?}", g.metadata);
        let inputs = feeds.iter().filter(|(n, _)| g.find(n).is_some()).map(|(n, t)| (n.clone(), t.clone())).collect();
        for (name, got) in open_file(&frozen).run(&inputs).unwrap() {
            let error = max_abs(&got.to_f64(), &want[&name].to_f64());
            assert!(error < 1e-4, "{f}: `{name}` differs by {error:.1e}");
        }
    }
}

#[test]
fn fresh_weights_stay_tied_and_either_name_chooses() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("gpt2.ancre.train.onnx");
    let report = built(dir.path(), &["--reinit", "5"]);
    let map = report["training"]["tied"][0]["transposed"].as_str().unwrap().to_string();
    let (forward, _) = read_model(&dir.path().join("gpt2.ancre.onnx")).unwrap();
    let constant = |name: &str| forward.initializer(forward.find(name).unwrap()).unwrap();
    let table = NpTensor::from_constant(constant(TABLE)).unwrap();
    assert_eq!(constant(&map).to_f64().unwrap(), turned(&table));
    for name in [TABLE, &map] {
        let report = built(dir.path(), &["--frozen", name]);
        assert!(!report["training"]["trainable"].as_array().unwrap().iter().any(|n| n == TABLE || n == &map), "{name}");
        assert!(read_model(&path).unwrap().0.find(&format!("{TABLE}.next")).is_none());
    }
}
