//! The whole way: a training graph trained by the documented Python loop and by the Rust one, its state written back by
//! `freeze`, the result run in both engines.

use crate::common::{Random, advance, data, floats, max_abs, open_file, runtime, text, tool_ok, write_safetensors};
use crate::golden::{Exporter, Family};
use ancre_passes::ir::{DType, Graph};
use ancre_passes::onnx;
use ancre_rewrite::engine::{Session, Tensors, tract};
use ancre_rewrite::io::files::read_model;
use ancre_rewrite::io::tensor::NpTensor;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const STEPS: usize = 50;

/// A Python that has numpy and onnxruntime: the one on the path, else one with a fresh environment below `target/`.
pub(crate) fn python() -> &'static Path {
    static PYTHON: OnceLock<PathBuf> = OnceLock::new();
    PYTHON.get_or_init(|| {
        let able = |python: &Path| {
            let out = Command::new(python).args(["-c", "import numpy, onnxruntime"]).output();
            out.is_ok_and(|o| o.status.success())
        };
        let own = PathBuf::from("python3");
        if able(&own) {
            return own;
        }
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python");
        let python = dir.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
        if !able(&python) {
            let run = |program: &Path, arguments: &[&str]| {
                let out = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program:?}: {e}"));
                assert!(out.status.success(), "{program:?} {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
            };
            run(&own, &["-m", "venv", &text(&dir)]);
            run(&python, &["-m", "pip", "install", "--quiet", "onnxruntime", "numpy"]);
        }
        python
    })
}

/// The rows of a tensor.
fn rows(t: &NpTensor, which: &[usize]) -> NpTensor {
    let size = t.bytes().len() / t.shape()[0];
    let bytes = which.iter().flat_map(|r| t.bytes()[r * size..(r + 1) * size].to_vec()).collect();
    let shape: Vec<usize> = [which.len()].into_iter().chain(t.shape()[1..].iter().copied()).collect();
    NpTensor::new(t.dtype(), &shape, bytes).unwrap()
}

/// The forward graph with the state put in by hand.
fn with_state(forward: &Path, state: &Tensors) -> Vec<u8> {
    let (mut g, _) = read_model(forward).unwrap();
    for (name, t) in state {
        if let Some(v) = g.find(name).filter(|v| g.initializer(*v).is_some()) {
            g.set_initializer(v, t.to_constant(), false);
        }
    }
    onnx::emit(&g).unwrap().to_bytes().unwrap()
}

/// Names of the state tensors that a deployed model needs.
fn deployed_state(train: &Graph) -> Vec<String> {
    let listed: Vec<Value> = serde_json::from_str(&train.metadata["ancre.state"]).unwrap();
    let kinds = ["parameter", "logits", "gate", "statistic"];
    let kept = listed.iter().filter(|s| kinds.contains(&s["kind"].as_str().unwrap()));
    kept.map(|s| s["name"].as_str().unwrap().to_string()).collect()
}

fn close(what: &str, a: &NpTensor, b: &NpTensor, tolerance: f64) {
    assert_eq!(a.shape(), b.shape(), "{what}");
    let (a, b) = (a.to_f64(), b.to_f64());
    let largest = b.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    let error = max_abs(&a, &b) / largest;
    assert!(error <= tolerance, "{what}: off by {error:.2e} of the largest value");
}

/// Trains, freezes, runs. `normalises`: batch normalisation makes the training graph's own output another function.
fn check(family: &str, rate: &str, normalises: bool, flags: &[&str]) {
    let family = Family::open(family, Exporter::First);
    let dir = tempfile::tempdir().unwrap();
    let mut a = vec![text(&family.model()), "-o".into(), text(dir.path()), "--loss".into(), family.loss().into()];
    a.extend(flags.iter().map(|f| f.to_string()));
    tool_ok(&a);
    let (forward, train) = (dir.path().join("cascaded.ancre.onnx"), dir.path().join("cascaded.ancre.train.onnx"));

    // Batches of half the rows.
    let count = family.inputs["target"].shape()[0];
    let mut random = Random(3);
    let steps: Vec<Vec<usize>> = (0..STEPS).map(|_| (0..count.div_ceil(2)).map(|_| random.below(count)).collect()).collect();

    // The Rust loop.
    let mut session = open_file(&train);
    let target = session.inputs().iter().find(|n| ["labels", "target"].contains(&n.as_str())).unwrap().clone();
    let mut state = Tensors::new();
    let mut losses = Vec::new();
    let feeds = |which: &[usize]| {
        let mut feeds: Tensors = family.data().iter().map(|(n, t)| (n.clone(), rows(t, which))).collect();
        feeds.insert(target.clone(), rows(&family.inputs["target"], which));
        feeds.insert("lr".into(), floats(DType::F32, &[], &[rate.parse().unwrap()]));
        feeds
    };
    for which in &steps {
        losses.push(advance(&mut session, feeds(which), &mut state)["loss"].to_f64()[0]);
    }
    let tenth = |l: &[f64]| l.iter().sum::<f64>() / l.len() as f64;
    let (start, end) = (tenth(&losses[..10]), tenth(&losses[STEPS - 10..]));
    assert!(end < 0.95 * start, "the loss falls only from {start} to {end}: {losses:?}");

    // The Python loop: the same library gives the same numbers, another version may round otherwise.
    let listed = dir.path().join("steps.json");
    std::fs::write(&listed, serde_json::to_string(&steps).unwrap()).unwrap();
    let inputs = family.model().with_file_name("inputs.npz");
    let arguments = [text(&data("loop.py")), text(&train), text(&inputs), text(&listed), rate.to_string()];
    let out = Command::new(python()).args(&arguments).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said: Value = serde_json::from_slice(&out.stdout).unwrap();
    let same = runtime().to_string_lossy().contains(said["version"].as_str().unwrap());
    let tolerance = if same { 1e-6 } else { 1e-2 };
    for (step, (loss, other)) in losses.iter().zip(said["losses"].as_array().unwrap()).enumerate() {
        let other = other.as_f64().unwrap();
        assert!((loss - other).abs() <= tolerance * loss.abs(), "step {step}: {loss} in Rust, {other} in Python");
    }
    for (name, t) in state.iter().filter(|_| same) {
        let (sum, other) = (t.to_f64().iter().sum::<f64>(), said["sums"][name].as_f64().unwrap());
        assert!((sum - other).abs() <= 1e-5 * (1.0 + sum.abs()), "state `{name}` sums to {sum} in Rust, {other} in Python");
    }

    // The state goes back into the forward graph, all of it.
    let checkpoint = dir.path().join("trained.safetensors");
    write_safetensors(&checkpoint, &state, None);
    let frozen = dir.path().join("deployed.onnx");
    let kept = dir.path().join("kept.onnx");
    let given = ["freeze".into(), text(&forward), "--state".into(), text(&checkpoint), "--json".into()];
    let report = tool_ok(&[&given[..], &["-o".into(), text(&frozen)]].concat()).json();
    tool_ok(&[&given[..], &["-o".into(), text(&kept), "--keep-router".into()]].concat());
    let unused: Vec<&str> = report["unused"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    for name in deployed_state(&read_model(&train).unwrap().0) {
        assert!(state.contains_key(&name), "the training graph hands no `{name}` on");
        assert!(!unused.contains(&name.as_str()), "`{name}` was not written back");
    }

    // The frozen graph: both engines alike, and alike with what was trained.
    let all: Vec<usize> = (0..count).collect();
    let input: Tensors = family.data();
    let bytes = std::fs::read(&frozen).unwrap();
    let in_ort = open_file(&frozen).run(&input).unwrap();
    let in_tract = tract().load(&bytes, None).unwrap().run(&input).unwrap();
    let output = in_ort.keys().next().unwrap().clone();
    close("tract and ONNX Runtime", &in_tract[&output], &in_ort[&output], 1e-4);
    close("the router kept", &open_file(&kept).run(&input).unwrap()[&output], &in_ort[&output], 1e-5);
    let by_hand = crate::common::open(&with_state(&forward, &state)).unwrap().run(&input).unwrap();
    close("the state put in by hand", &by_hand[&output], &in_ort[&output], 1e-5);
    let untrained = open_file(&forward).run(&input).unwrap();
    assert!(max_abs(&untrained[&output].to_f64(), &in_ort[&output].to_f64()) > 1e-3, "training changed nothing");
    if !normalises {
        let mut now = feeds(&all);
        now.extend(state);
        let trained = session.run(&now).unwrap();
        close("the training graph's own output", &trained[&output], &in_ort[&output], 1e-5);
    }
    let deployed = read_model(&frozen).unwrap().0;
    let own = deployed.nodes().filter_map(|n| deployed.op(n)).filter(|o| o.domain == "ancre").count();
    assert!(own == 0 && !bytes.windows(7).any(|w| w == b".logits"), "the frozen model still holds its router");
}

#[test]
fn an_mlp_trains_and_deploys() {
    check("mlp", "1e-3", false, &["--optimizer", "adamw"]);
}

#[test]
fn a_transformer_trains_and_deploys() {
    check(
        "llama",
        "1e-3",
        false,
        &["--optimizer", "adam", "--clip-norm", "1", "--preset", "paper", "--router-lr-scale", "0.5"],
    );
}

#[test]
fn a_convolutional_network_trains_and_deploys() {
    check(
        "resnet",
        "3e-3",
        true,
        &["--optimizer", "sgd", "--momentum", "0.9", "--weight-decay", "1e-4", "--accumulate", "2"],
    );
}
