//! `--step split`: the two graphs, one after the other, are the whole step.

use crate::common::{
    Random, advance, first_state, max_abs, model, models, open_file, random_data, text, tool, tool_ok, tool_where,
};
use crate::train_loop::python;
use ancre_rewrite::engine::ort::OrtSession;
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::tensor::NpTensor;
use ancre_rewrite::train::checkpoint;
use ndarray_npy::NpzWriter;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// The graphs of a model by kind, in a folder of their own.
fn rewritten(model: &Path, flags: &[&str]) -> (TempDir, impl Fn(&str) -> PathBuf + use<>) {
    let dir = tempfile::tempdir().unwrap();
    let out = format!("{}/", text(dir.path()));
    let own = [text(model), "-o".into(), out, "--verify".into(), "none".into()];
    let stem = model.file_stem().unwrap().to_string_lossy().into_owned();
    let loss: &[&str] = match stem.as_str() {
        "bert" | "bert_ort" => &["--output", "pooler_output", "--loss", "mse"],
        "deep_mlp" | "dit" => &["--loss", "mse"],
        "llama_past" => &["--output", "logits"],
        _ => &[],
    };
    let flags = [loss, flags].concat();
    tool_ok(&[own.to_vec(), flags.iter().map(|f| f.to_string()).collect()].concat());
    let at = dir.path().to_path_buf();
    (dir, move |kind: &str| at.join(format!("{stem}.ancre.{kind}.onnx")))
}

fn only(names: &[String], from: &[&Tensors]) -> Tensors {
    let all = from.iter().flat_map(|t| t.iter()).filter(|(n, _)| names.contains(n));
    all.map(|(n, t)| (n.clone(), t.clone())).collect()
}

/// One run of a half, which is fed what it takes; the state goes on, the rest comes back.
fn run(half: &mut OrtSession, feeds: &[&Tensors], state: &mut Tensors) -> Tensors {
    let takes = half.inputs().to_vec();
    let feeds = only(&takes, &[feeds, &[&*state]].concat());
    let (next, rest): (Tensors, Tensors) = half.run(&feeds).unwrap().into_iter().partition(|(n, _)| n.ends_with(".next"));
    state.extend(next.into_iter().map(|(n, t)| (n.trim_end_matches(".next").to_string(), t)));
    rest
}

fn rate(lr: f64) -> Tensors {
    Tensors::from([("lr".to_string(), NpTensor::f32s(&[], &[lr as f32]).unwrap())])
}

const OPTIMIZERS: [&[&str]; 5] = [
    &["--optimizer", "adamw", "--clip-norm", "0.5"],
    &["--optimizer", "adam", "--weight-decay", "0.1", "--router-lr-scale", "10"],
    &["--optimizer", "sgd", "--momentum", "0.9", "--nesterov"],
    &["--optimizer", "sgd", "--clip-norm", "0.1"],
    &["--accumulate", "2"],
];

/// Three steps of both; how far their losses are apart, and their states after the first step (later, Adam makes steps of rounding, where
/// a gradient is nothing else, as of a bias before a normalisation), and how many state tensors ever differ by a bit.
fn difference(whole: &dyn Fn(&str) -> PathBuf, split: &dyn Fn(&str) -> PathBuf) -> (f64, usize) {
    let mut step = open_file(&whole("train")).bare();
    let (mut grad, mut update) = (open_file(&split("grad")).bare(), open_file(&split("update")).bare());
    let mut one = first_state(&whole("train"));
    let mut two = first_state(&split("grad"));
    assert!(one == two, "both start from the same state");
    let mut data = random_data(&whole("train"));
    data.shift_remove("lr");
    let (mut apart, mut differ) = (0f64, 0);
    for step_number in 0..3 {
        let mut feeds: Tensors = data.iter().chain(&rate(0.01)).map(|(n, t)| (n.clone(), t.clone())).collect();
        feeds.extend(one.clone());
        let said = advance(&mut step, feeds, &mut one);
        let handed = run(&mut grad, &[&data], &mut two);
        let gradients: Tensors =
            handed.iter().filter(|(n, _)| n.ends_with(".grad")).map(|(n, t)| (n.clone(), t.clone())).collect();
        assert!(gradients.len() > 3 && !handed.contains_key("grad_norm"));
        let updated = run(&mut update, &[&gradients, &rate(0.01)], &mut two);
        assert!(updated.keys().eq(["grad_norm"]), "{:?}", updated.keys());
        for (a, b) in [(&said["loss"], &handed["loss"]), (&said["grad_norm"], &updated["grad_norm"])] {
            let (a, b) = (a.to_f64()[0], b.to_f64()[0]);
            apart = apart.max((a - b).abs() / a.abs().max(1e-3));
        }
        assert!(one.keys().all(|n| two.contains_key(n)) && one.len() == two.len());
        for (name, a) in &one {
            let (x, y) = (a.to_f64(), two[name].to_f64());
            let size = x.iter().fold(1e-2, |m: f64, v| m.max(v.abs()));
            differ += usize::from(a.bytes() != two[name].bytes());
            if step_number > 0 {
                continue;
            }
            apart = x.iter().zip(&y).fold(apart, |m, (x, y)| m.max((x - y).abs() / size));
        }
        // Every step begins at the same state: what rounding made of one does not grow in the next.
        two.clone_from(&one);
    }
    (apart, differ)
}

#[test]
fn two_graphs_one_after_the_other_are_the_whole_step_of_every_model() {
    let mut bit_equal = 0;
    for (i, file) in models().iter().filter(|f| !f.ends_with("resnet_cifar_qdq.onnx")).enumerate() {
        let flags = OPTIMIZERS[i % OPTIMIZERS.len()];
        let (_a, whole) = rewritten(file, flags);
        let (_b, split) = rewritten(file, &[flags, &["--step", "split"]].concat());
        assert!(!split("train").exists() && split("init").exists());
        let (apart, differ) = difference(&whole, &split);
        println!("{}: {flags:?}: apart {apart:.1e}, {differ} tensors differ", file.display());
        assert!(apart < 2e-5, "{}: {flags:?}: {apart:e}", file.display());
        bit_equal += usize::from(differ == 0);
    }
    // ONNX Runtime may fuse an operator of the backward pass with one of the update.
    assert!(bit_equal > 18, "{bit_equal}");
}

#[test]
fn every_optimizer_s_step_can_be_split() {
    for flags in OPTIMIZERS {
        let (_a, whole) = rewritten(&model("deep_mlp"), flags);
        let (_b, split) = rewritten(&model("deep_mlp"), &[flags, &["--step", "split"]].concat());
        assert_eq!(difference(&whole, &split).1, 0, "{flags:?}");
    }
}

#[test]
fn state_lies_inside_or_apart_as_in_the_whole_graph_and_no_optimizer_is_refused() {
    let file = model("resnet_cifar");
    for state in ["inline", "separate"] {
        let (_a, whole) = rewritten(&file, &["--state", state]);
        let (_b, split) = rewritten(&file, &["--state", state, "--step", "split"]);
        let named = |path: PathBuf| open_file(&path).bare().optional_inputs().len();
        let optional = [named(whole("train")), named(split("grad")), named(split("update"))];
        assert_eq!(optional.iter().all(|n| *n > 0), state == "inline", "{optional:?}");
    }
    let ran = tool(&[text(&file).as_str(), "--step", "split", "--optimizer", "none", "--dry-run"]);
    assert!(ran.status == 2 && ran.err.contains("--step split needs an optimizer"), "{}", ran.err);
}

/// Texts of which every one counts another number of labels.
fn texts(path: &Path) {
    let (n, length) = (43, 12);
    let mut random = Random(3);
    let tokens: Vec<i64> = (0..n * length).map(|i| ((i % length) * 7 + random.below(8)) as i64 % 256).collect();
    let ignored = |i: usize, random: &mut Random| random.unit() < (i / length) as f64 / n as f64;
    let labels = tokens.iter().enumerate().map(|(i, t)| if ignored(i, &mut random) { -100 } else { *t });
    let labels: Vec<i64> = labels.collect();
    let mut file = NpzWriter::new_compressed(std::fs::File::create(path).unwrap());
    for (name, values) in [("input_ids", tokens), ("labels", labels)] {
        file.add_array(name, &ndarray::Array2::from_shape_vec((n, length), values).unwrap()).unwrap();
    }
    file.finish().unwrap();
}

/// Two processes of six samples each against one of twelve, whose batches count other numbers of labels each.
#[test]
fn two_processes_that_sum_gradients_train_as_one() {
    let (dir, split) = rewritten(&model("gpt2"), &["--step", "split", "--clip-norm", "0.5"]);
    let data = dir.path().join("texts.npz");
    texts(&data);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ranks.py");
    let out = Command::new(python()).arg(script).arg(split("grad")).arg(&data).args(["3e-3", "20", "6"]).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let r: Value = serde_json::from_slice(&out.stdout).unwrap();
    let losses = |key: &str| r[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect::<Vec<_>>();
    let (two, one) = (losses("two"), losses("one"));
    assert!(r["equal"] == true && two.len() == 20 && two[19] < 0.85 * two[0], "{r}");
    assert!(max_abs(&two, &one) < 2e-5, "{r}");
}

#[test]
fn train_runs_both_graphs_as_it_runs_the_whole_one() {
    let (dir, split) = rewritten(&model("gpt2"), &["--step", "split"]);
    let (_kept, whole) = rewritten(&model("gpt2"), &[]);
    let data = dir.path().join("texts.npz");
    texts(&data);
    let run = |graph: PathBuf, name: &str, variables: &[(&str, &str)]| {
        let out = text(&dir.path().join(name));
        let own = ["--threads", "1", "--device", "cpu", "--steps", "6", "--lr", "1e-3", "--quiet", "--out", &out];
        tool_where(variables, &[&["train", &text(&graph), "--data", &text(&data)], own.as_slice()].concat())
    };
    for (graph, name) in [(whole("train"), "one"), (split("update"), "two")] {
        let ran = run(graph, name, &[]);
        assert_eq!(ran.status, 0, "{}", ran.err);
    }
    let last = |name: &str| std::fs::read(dir.path().join(name).join("last.safetensors")).unwrap();
    let state = |name: &str| checkpoint::read(&dir.path().join(name).join("last.safetensors")).unwrap().0;
    assert!(state("one") == state("two") && last("one") != last("two"), "the same state of another course");
    if cfg!(not(feature = "mpi")) {
        let ran = run(split("grad"), "lost", &[("OMPI_COMM_WORLD_SIZE", "2")]);
        assert!(ran.status == 2 && ran.err.contains("--features mpi"), "{}", ran.err);
    }
    std::fs::remove_file(split("update")).unwrap();
    let ran = run(split("grad"), "half", &[]);
    assert!(ran.status == 2 && ran.err.contains("STEM.ancre.update.onnx is not beside it"), "{}", ran.err);
}
