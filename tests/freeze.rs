//! `freeze` against its contract: states of every kind of router go back into the forward graph, what comes out runs in both
//! engines and bears no trace of training; a state that does not fit is refused.

use crate::common::{
    Random, emit, first_state, max_abs, model, open, open_file, text, tool, tool_ok, write_npz, write_safetensors,
};
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Kind, Op, Tensor, TensorType, ValueId};
use ancre_rewrite::engine::random_inputs::{Sizes, random_inputs, sizes};
use ancre_rewrite::engine::{Session, Tensors, tract};
use ancre_rewrite::io::files::read_model;
use ancre_rewrite::io::tensor::NpTensor;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A routed model with its training graph and a state that is as if it had been trained.
struct Trained {
    dir: TempDir,
    state: Tensors,
}

impl Trained {
    fn new(name: &str, flags: &[&str]) -> Trained {
        Trained::of(&model(name), flags)
    }

    fn of(source: &Path, flags: &[&str]) -> Trained {
        let dir = tempfile::tempdir().unwrap();
        let mut a = vec![text(source), "-o".into(), text(&dir.path().join("m.onnx")), "--verify".into(), "none".into()];
        a.extend(flags.iter().map(|f| f.to_string()));
        tool_ok(&a);
        let train = read_model(&dir.path().join("m.train.onnx")).unwrap().0;
        Trained { state: disturbed(&train, &first_state(&dir.path().join("m.train.onnx"))), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn graph(&self, name: &str) -> Graph {
        read_model(&self.path(name)).unwrap().0
    }

    /// Writes the state and freezes with it.
    fn freeze(&self, flags: &[&str]) -> Value {
        write_state(&self.path("state.safetensors"), &self.state);
        let given = [text(&self.path("m.onnx")), text(&self.path("state.safetensors")), text(&self.path("frozen.onnx"))];
        let a = ["freeze", &given[0], "--state", &given[1], "-o", &given[2], "--json"];
        tool_ok(&[&a[..], flags].concat()).json()
    }

    /// The outputs of the training graph's own forward part, fed with the state.
    fn of_training_graph(&self, inputs: &Tensors) -> Tensors {
        let train = self.graph("m.train.onnx");
        let mut feeds = inputs.clone();
        feeds.extend(self.state.iter().map(|(n, t)| (n.clone(), t.clone())));
        for v in train.required_inputs() {
            let name = train.name(v).to_string();
            if !feeds.contains_key(&name) {
                let ty = train.tensor_type(v).unwrap();
                let first = inputs.values().next().unwrap().shape();
                let at = |(i, d): (usize, &ancre_passes::ir::Dim)| d.known().map_or(first[i], |n| n as usize);
                let shape: Vec<usize> = ty.shape.iter().enumerate().map(at).collect();
                feeds.insert(name, NpTensor::zeros(ty.dtype, &shape).unwrap());
            }
        }
        open_file(&self.path("m.train.onnx")).run(&feeds).unwrap()
    }
}

/// Every state tensor of a training graph, moved a little away from its start.
fn disturbed(train: &Graph, first: &Tensors) -> Tensors {
    let listed: Vec<Value> = serde_json::from_str(&train.metadata["ancre.state"]).unwrap();
    let mut random = Random(11);
    let mut state = Tensors::new();
    for s in &listed {
        let (name, kind) = (s["input"].as_str().unwrap(), s["kind"].as_str().unwrap());
        let shape: Vec<usize> = s["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap() as usize).collect();
        let start = &first[name];
        let mut values = start.to_f64();
        values.resize(shape.iter().product(), 0.0);
        match kind {
            "parameter" => values.iter_mut().for_each(|v| *v += 0.02 * random.normal()),
            "logits" => values.iter_mut().for_each(|v| *v += 0.02 * random.normal()),
            "gate" => values.iter_mut().for_each(|v| *v = random.unit()),
            "statistic" => values.iter_mut().for_each(|v| *v *= 1.0 + 0.2 * random.unit()),
            "counter" => values[0] = 7.0,
            _ => values.iter_mut().for_each(|v| *v = random.unit()),
        }
        state.insert(name.into(), NpTensor::from_f64s(start.dtype(), &shape, &values).unwrap());
    }
    state
}

/// As a checkpoint is: with metadata besides the tensors.
fn write_state(path: &Path, state: &Tensors) {
    write_safetensors(path, state, Some(("ancre.train", "{\"step\": 7}")));
}

fn inputs_of(g: &Graph) -> Tensors {
    let chosen = sizes(g, &Sizes::new());
    random_inputs(g, &chosen[0], 5).unwrap()
}

fn close(what: &str, a: &NpTensor, b: &NpTensor, tolerance: f64) {
    assert_eq!(a.shape(), b.shape(), "{what}");
    let largest = b.to_f64().iter().fold(1.0, |m: f64, v| m.max(v.abs()));
    let error = max_abs(&a.to_f64(), &b.to_f64()) / largest;
    assert!(error <= tolerance, "{what}: off by {error:.2e} of the largest value");
}

/// Freezes, runs in both engines, compares with `reference`, looks for traces. Returns the outputs.
fn check(t: &Trained, what: &str, reference: impl Fn(&Tensors) -> Tensors) {
    let report = t.freeze(&[]);
    let frozen = t.graph("frozen.onnx");
    let inputs = inputs_of(&frozen);
    let bytes = std::fs::read(t.path("frozen.onnx")).unwrap();
    let in_ort = open(&bytes).unwrap().run(&inputs).unwrap();
    let in_tract = tract().load(&bytes, None).unwrap().run(&inputs).unwrap();
    let want = reference(&inputs);
    for (name, got) in &in_ort {
        close(&format!("{what}: `{name}`, tract and ONNX Runtime"), &in_tract[name], got, 2e-5);
        close(&format!("{what}: `{name}`, frozen and trained"), got, &want[name], 2e-5);
    }
    assert!(report["restored"].as_u64().unwrap() > 0 && report["kept"].as_array().unwrap().is_empty(), "{what}: {report}");
    assert!(frozen.metadata.keys().all(|k| !k.starts_with("ancre.")), "{what}: {:?}", frozen.metadata);
    for n in frozen.nodes() {
        let ours = |name: &str| {
            [".logits", ".gate", ".weights", ".next"].iter().any(|s| name.ends_with(s)) || name.starts_with("ancre.")
        };
        let names: Vec<&str> = frozen.results(n).map(|r| frozen.name(r)).collect();
        assert!(!names.iter().any(|name| ours(name)), "{what}: {names:?}");
    }
}

#[test]
fn states_of_every_kind_of_router_are_deployed() {
    let rows: [&[&str]; 7] = [
        &[],
        &["--preset", "paper"],
        &["--parametrization", "softmax", "--init", "near-identity", "--tau", "0.1"],
        &["--parametrization", "free", "--granularity", "2"],
        &["--form", "augment", "--parametrization", "constant"],
        &["--form", "augment", "--parametrization", "softmax", "--normalize", "outgoing"],
        &["--chains", "none"],
    ];
    for flags in rows {
        let all = [flags, &["--loss", "mse", "--optimizer", "sgd", "--momentum", "0.9"]].concat();
        let t = Trained::new("deep_mlp", &all);
        check(&t, &flags.join(" "), |inputs| t.of_training_graph(inputs));
    }
}

/// Three residual blocks whose normalisations read one tensor of ones and one of zeros, as the newer exporter merges them.
fn merged() -> Graph {
    let mut g = Graph::default();
    g.opsets.insert(String::new(), 17);
    let mut random = Random(2);
    let ty = TensorType::new(DType::F32, [Dim::symbol("batch"), Dim::from(8)]);
    let mut h = g.add_input("x", ty.clone().into(), None);
    let ones = g.add_initializer("ones", Tensor::f32s(&[8], &[1.0; 8]), false);
    let zeros = g.add_initializer("zeros", Tensor::f32s(&[8], &[0.0; 8]), false);
    for k in 0..3 {
        let w = Tensor::floats(DType::F32, &[8, 8], &random.normals(64));
        let w = g.add_initializer(&format!("w{k}"), w, false);
        let mut node = |op: &str, name: String, operands: &[ValueId]| {
            let operands: Vec<_> = operands.iter().map(|v| Some(*v)).collect();
            let n = g.add_op(&name, Op::new(op, Attrs::new()), &operands);
            g.push_result(n, &name, ty.clone().into())
        };
        let n = node("LayerNormalization", format!("norm{k}"), &[h, ones, zeros]);
        let f = node("MatMul", format!("f{k}"), &[n, w]);
        h = node("Add", format!("h{k}"), &[h, f]);
    }
    g.add_output(h, None);
    g
}

#[test]
fn merged_parameters_are_separated_again() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source.onnx");
    std::fs::write(&source, emit(&merged())).unwrap();
    let t = Trained::of(&source, &["--loss", "mse", "--accumulate", "2"]);
    assert!(t.state.contains_key("norm1.scale") && t.graph("m.onnx").find("norm1.scale").is_none());
    check(&t, "merged", |inputs| t.of_training_graph(inputs));
}

#[test]
fn statistics_new_heads_and_network_routers_are_deployed() {
    for flags in [
        &["--scope", "network"][..],
        &["--classes", "7", "--preset", "paper"],
        &["--scope", "network", "--preset", "paper", "--form", "reassign"],
    ] {
        let t = Trained::new("resnet_cifar", flags);
        // Batch normalisation makes the training graph another function; the forward graph, with the state put in by hand.
        let mut g = t.graph("m.onnx");
        for (name, tensor) in &t.state {
            if let Some(v) = g.find(name).filter(|v| g.initializer(*v).is_some()) {
                g.set_initializer(v, tensor.to_constant(), false);
            }
        }
        let by_hand = emit(&g);
        check(&t, &flags.join(" "), |inputs| open(&by_hand).unwrap().run(inputs).unwrap());
    }
}

#[test]
fn a_frozen_backbone_stays_and_is_said() {
    let t = Trained::new("resnet_cifar", &["--classes", "10", "--freeze-backbone"]);
    let report = t.freeze(&[]);
    let kept: Vec<&str> = report["kept"].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
    assert!(kept.contains(&"conv1.weight") && !kept.iter().any(|n| n.starts_with("fc.")), "{kept:?}");
}

#[test]
fn the_router_can_be_kept() {
    let t = Trained::new("deep_mlp", &["--loss", "mse"]);
    t.freeze(&["--keep-router"]);
    let kept = t.graph("frozen.onnx");
    assert!(kept.metadata.contains_key("ancre.router") && kept.find("ancre.0.logits").is_some());
    let inputs = inputs_of(&kept);
    let got = open_file(&t.path("frozen.onnx")).run(&inputs).unwrap();
    let want = t.of_training_graph(&inputs);
    got.iter().for_each(|(name, got)| close(name, got, &want[name], 2e-5));
    // It can be frozen once more, without a state.
    tool_ok(&["freeze", &text(&t.path("frozen.onnx")), "-o", &text(&t.path("again.onnx"))]);
    let again = open_file(&t.path("again.onnx")).run(&inputs).unwrap();
    again.iter().for_each(|(name, got)| close(name, got, &want[name], 2e-5));
}

/// The sums of the weights of each baked row that is a product.
fn row_sums(g: &Graph) -> Vec<f64> {
    let all = g.nodes().filter(|n| matches!(g.node(*n).kind, Kind::Initializer { .. })).map(|n| g.result(n, 0));
    let baked = all.filter(|v| g.name(*v).contains("baked") && g.name(*v).contains("weights"));
    baked.map(|v| g.initializer(v).unwrap().to_f64().unwrap().iter().sum()).collect()
}

#[test]
fn pruning_renormalises_softmax_rows_only_and_says_how_far_it_moves_the_outputs() {
    for (flags, softmax) in [(&["--preset", "paper"][..], true), (&["--tau", "0.05"], false)] {
        let t = Trained::new("deep_mlp", &[flags, &["--loss", "mse"]].concat());
        assert!(t.freeze(&["--prune", "0"])["drift"].is_null());
        let before = row_sums(&t.graph("frozen.onnx"));
        assert!(before.iter().all(|s| (s - 1.0).abs() < 1e-6), "rows of both sum to one: {before:?}");
        let report = t.freeze(&["--prune", "0.08"]);
        assert!(report["router"]["dropped"].as_u64().unwrap() > 0, "{report}");
        let drift = report["drift"]["max_abs"].as_f64().unwrap();
        assert!(drift > 0.0 && report["drift"]["engine"] == "tract", "{report}");
        let sums = row_sums(&t.graph("frozen.onnx"));
        let off = sums.iter().filter(|s| (**s - 1.0).abs() > 1e-6).count();
        assert!(if softmax { off == 0 } else { off > 0 }, "{flags:?}: {sums:?}");
    }
}

#[test]
fn a_pruned_router_costs_nothing() {
    let mut t = Trained::new("deep_mlp", &["--loss", "mse", "--parametrization", "softmax", "--tau", "0.1"]);
    let nodes = |g: &Graph| g.nodes().filter(|n| g.op(*n).is_some()).count();
    // Each row prefers the state before it, by a weight of 0.999 and more.
    let logits = t.state["ancre.0.logits"].clone();
    let (k, width) = (logits.shape()[0], logits.shape()[1]);
    let values: Vec<f64> = (0..k * width).map(|i| if i / width == i % width { 0.0 } else { -1.0 }).collect();
    t.state.insert("ancre.0.logits".into(), NpTensor::from_f64s(DType::F32, &[k, width], &values).unwrap());
    let source = nodes(&read_model(&model("deep_mlp")).unwrap().0);
    t.freeze(&[]);
    assert!(nodes(&t.graph("frozen.onnx")) > source);
    t.freeze(&["--prune", "0.01"]);
    assert_eq!(nodes(&t.graph("frozen.onnx")), source);
    // Weights that a softmax does not bind may all go; nothing of the router stays then either.
    let mut t = Trained::new("deep_mlp", &["--loss", "mse", "--parametrization", "free"]);
    let zeros = NpTensor::zeros(DType::F32, &[k, width]).unwrap();
    t.state.insert("ancre.0.logits".into(), zeros);
    t.freeze(&[]);
    let frozen = t.graph("frozen.onnx");
    assert!(frozen.find("ancre.0.logits").is_none() && nodes(&frozen) <= source + k, "{} {source}", nodes(&frozen));
}

#[test]
fn edges_that_move_nothing_are_left_out_and_those_that_move_something_stay() {
    let mut t = Trained::new("deep_mlp", &["--loss", "mse", "--parametrization", "free"]);
    let nodes = |g: &Graph| g.nodes().filter(|n| g.op(*n).is_some()).count();
    let (k, width) = (t.state["ancre.0.logits"].shape()[0], t.state["ancre.0.logits"].shape()[1]);
    let mut with = |other: f64| {
        let values: Vec<f64> = (0..k * width).map(|i| if i / width == i % width { 1.0 } else { other }).collect();
        t.state.insert("ancre.0.logits".into(), NpTensor::from_f64s(DType::F32, &[k, width], &values).unwrap());
        [&[][..], &["--prune", "0"]].map(|flags| (t.freeze(flags), nodes(&t.graph("frozen.onnx"))))
    };
    let source = nodes(&read_model(&model("deep_mlp")).unwrap().0);
    let all = (k * (k + 1) / 2) as u64;
    let [(found, few), (whole, many)] = with(1e-9);
    assert!(few == source && many > source, "{few} and {many} nodes, the source has {source}");
    assert_eq!((found["router"]["kept"].as_u64(), whole["router"]["kept"].as_u64()), (Some(k as u64), Some(all)));
    let drift = &found["drift"];
    assert!(drift["within"] == true && drift["max_abs"].as_f64().unwrap() < 1e-5 && drift["below"] == 1e-8, "{drift}");
    assert!(whole["drift"].is_null(), "{whole}");
    // A thousandth moves the outputs by more than the tolerance.
    let [(found, some), (_, same)] = with(1e-3);
    assert_eq!((found["router"]["kept"].as_u64(), some), (Some(all), same), "{found}");
}

#[test]
fn states_that_do_not_fit_are_refused() {
    let t = Trained::new("deep_mlp", &["--loss", "mse"]);
    let refused = |change: &dyn Fn(&mut Tensors), parts: &[&str]| {
        let mut state = t.state.clone();
        change(&mut state);
        write_state(&t.path("bad.safetensors"), &state);
        let ran = tool(&[
            "freeze",
            &text(&t.path("m.onnx")),
            "--state",
            &text(&t.path("bad.safetensors")),
            "-o",
            &text(&t.path("no.onnx")),
        ]);
        assert_eq!(ran.status, 2, "{parts:?}: {}{}", ran.out, ran.err);
        for part in [&["bad.safetensors", "try:"], parts].concat() {
            assert!(ran.err.contains(part), "`{part}`: {}", ran.err);
        }
        assert!(!t.path("no.onnx").exists());
    };
    let head = "head.weight";
    let set = |name: &'static str, tensor: NpTensor| move |s: &mut Tensors| drop(s.insert(name.into(), tensor.clone()));
    let floats = |n: usize, v: f32| NpTensor::f32s(&[n], &vec![v; n]).unwrap();
    refused(&|s| drop(s.shift_remove("ancre.0.gate")), &["lacks the router's `ancre.0.gate`"]);
    refused(&|s| s.retain(|n, _| !n.starts_with("ancre.0.")), &["lacks the router's `ancre.0.logits`"]);
    refused(&|s| drop(s.shift_remove(head)), &["lacks `head.weight`, of which it holds the optimiser's tensors"]);
    refused(&set("other.weight", floats(3, 0.0)), &["holds `other.weight`, of which the model has nothing"]);
    refused(&set(head, floats(3, 0.0)), &["`head.weight` has shape [3]"]);
    refused(&set("head.bias", floats(6, f32::NAN)), &["`head.bias`", "NaN", "earlier checkpoint"]);
    refused(&set("head.bias", NpTensor::i64s(&[6], &[0; 6]).unwrap()), &["`head.bias` has element type i64"]);
    refused(&|s| s.retain(|n, _| n == "ancre.step"), &["holds no tensor of the model"]);

    let ran = tool(&["freeze", &text(&t.path("m.train.onnx"))]);
    assert!(ran.status == 2 && ran.err.contains("is a training graph"), "{}", ran.err);
    tool_ok(&[
        text(&model("deep_mlp")).as_str(),
        "--loss",
        "mse",
        "--infer-graph",
        "--verify",
        "none",
        "-o",
        &text(&t.path("n.onnx")),
    ]);
    let ran = tool(&["freeze", &text(&t.path("n.infer.onnx"))]);
    assert!(ran.status == 2 && ran.err.contains("is an inference graph"), "{}", ran.err);
    std::fs::write(t.path("cut.safetensors"), &std::fs::read(t.path("bad.safetensors")).unwrap()[..100]).unwrap();
    let ran = tool(&["freeze", &text(&t.path("m.onnx")), "--state", &text(&t.path("cut.safetensors"))]);
    assert!(ran.status == 2 && ran.err.contains("no readable .safetensors"), "{}", ran.err);
    write_npz(&t.path("part.npz"), &[("head.bias".into(), vec![6], vec![0.0; 6])]);
    let ran = tool(&["freeze", &text(&t.path("m.onnx")), "--state", &text(&t.path("part.npz"))]);
    assert!(ran.status == 2 && ran.err.contains("lacks the router's"), "{}", ran.err);
}
