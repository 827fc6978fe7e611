//! Losses, their gradients and optimisers against PyTorch's numbers (`torch_numbers/make.py`), and the names and types a training graph
//! has to keep apart.

use crate::common::{data, emit, first_state, floats, max_abs, open_file, read_npz, text, tool, tool_ok};
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Op, Tensor, TensorType, ValueId};
use ancre_passes::ops::build::Builder;
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::files::read_model;
use ancre_rewrite::io::tensor::NpTensor;
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const PARAMETERS: [&str; 4] = ["w1", "b1", "w2", "b2"];

fn numbers() -> Tensors {
    read_npz(&data("torch_numbers/numbers.npz"))
}

/// The flags of all cases of a kind.
fn cases(numbers: &Tensors, kind: &str) -> BTreeSet<String> {
    let flags = |n: &String| Some(n.strip_prefix(kind)?.strip_prefix('/')?.rsplit_once('/')?.0.to_string());
    numbers.keys().filter_map(flags).collect()
}

/// The training graph of a model with these flags.
fn train(model: &Path, dir: &Path, flags: &[&str]) -> PathBuf {
    let (m, o) = (text(model), text(dir) + "/");
    let mut a = vec![m.as_str(), "-o", &o, "--verify", "none", "--json"];
    a.extend(flags);
    tool_ok(&a).json();
    dir.join(format!("{}.ancre.train.onnx", model.file_stem().unwrap().to_str().unwrap()))
}

/// Row `i` of a tensor.
fn row(t: &NpTensor, i: usize) -> NpTensor {
    let one = t.slice(0, i, 1).unwrap();
    NpTensor::new(one.dtype(), &one.shape()[1..], one.bytes().to_vec()).unwrap()
}

fn near(what: &str, got: &NpTensor, want: &NpTensor, tolerance: f64) {
    let (a, b) = (got.to_f64(), want.to_f64());
    let largest = b.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    let error = max_abs(&a, &b);
    assert!(error <= tolerance * largest.max(1e-3), "{what}: off by {error:.2e} of {largest:.2e}");
}

#[test]
fn losses_and_gradients_are_pytorch_s() {
    let numbers = numbers();
    let mut count = 0;
    for (kind, model) in [("loss", "net"), ("grid", "grid")] {
        for flags in cases(&numbers, kind) {
            let dir = tempfile::tempdir().unwrap();
            let mut a = vec!["--optimizer", "none", "--loss"];
            a.extend(flags.split(' '));
            if kind == "grid" {
                // Its classes may be on either axis: both come of one weight.
                a.extend(["--class-axis", "1"]);
            }
            let path = train(&data(&format!("torch_numbers/{model}.onnx")), dir.path(), &a);
            let mut feeds = Tensors::from([("x".to_string(), row(&numbers["x"], 0))]);
            let (target, labels) = (row(&numbers["target"], 0), row(&numbers["labels"], 0));
            if kind == "grid" {
                feeds.insert("labels".into(), numbers["grid_labels"].clone());
            } else if flags.starts_with("cross") {
                let labels = if flags.contains("ignore") {
                    NpTensor::i64s(&[8], &labels.to_i64().iter().map(|l| (*l).max(0)).collect::<Vec<_>>()).unwrap()
                } else {
                    labels
                };
                feeds.insert("labels".into(), labels);
            } else if flags.starts_with("bce") {
                let squashed: Vec<f64> = target.to_f64().iter().map(|v| 1.0 / (1.0 + (-v).exp())).collect();
                feeds.insert("target".into(), floats(DType::F32, target.shape(), &squashed));
            } else {
                feeds.insert("target".into(), target);
            }
            let got = open_file(&path).run(&feeds).unwrap();
            let key = format!("{kind}/{flags}");
            near(&key, &got["loss"], &numbers[&format!("{key}/loss")], 1e-6);
            for p in PARAMETERS {
                near(&format!("{key} {p}"), &got[&format!("{p}.grad")], &numbers[&format!("{key}/{p}")], 2e-6);
            }
            count += 1;
        }
    }
    assert_eq!(count, 15);
}

/// In float64, against PyTorch's of `torch_numbers/losses.py`: weights of classes and positions, several losses, distillation.
#[test]
fn losses_in_double_precision_are_pytorch_s() {
    let numbers = read_npz(&data("torch_numbers/losses.npz"));
    let all: BTreeSet<&str> = numbers.keys().filter_map(|n| n.strip_suffix("/loss")).collect();
    assert_eq!(all.len(), 34);
    for flags in all {
        let dir = tempfile::tempdir().unwrap();
        let a: Vec<&str> = ["--optimizer", "none", "--loss"].into_iter().chain(flags.split(' ')).collect();
        let path = train(&data("torch_numbers/two.onnx"), dir.path(), &a);
        let mut feeds = Tensors::from([("x".to_string(), numbers["x"].clone())]);
        let of = |n: &String| n.strip_prefix(flags)?.strip_prefix("/in/").map(String::from);
        feeds.extend(numbers.iter().filter_map(|(n, t)| Some((of(n)?, t.clone()))));
        let got = open_file(&path).run(&feeds).unwrap_or_else(|e| panic!("{flags}: {e}"));
        near(flags, &got["loss"], &numbers[&format!("{flags}/loss")], 2e-7);
        for p in PARAMETERS.iter().chain(&["w3"]) {
            match (got.get(&format!("{p}.grad")), numbers.get(&format!("{flags}/{p}"))) {
                (Some(got), Some(want)) => near(&format!("{flags} {p}"), got, want, 1e-12),
                (None, None) => {}
                (got, _) => panic!("{flags}: only one has a gradient of {p}: {}", got.is_some()),
            }
        }
    }
}

#[test]
fn optimizers_are_pytorch_s() {
    let numbers = numbers();
    let all = cases(&numbers, "optimizer");
    assert_eq!(all.len(), 11);
    for (flags, target) in all.iter().flat_map(|flags| [(flags, "cpu"), (flags, "webgpu")]) {
        let dir = tempfile::tempdir().unwrap();
        let mut a = vec!["--loss", "mse", "--target", target, "--optimizer"];
        a.extend(flags.split(' '));
        let path = train(&data("torch_numbers/net.onnx"), dir.path(), &a);
        if target == "webgpu" {
            runs_without_float64(&read_model(&path).unwrap().0);
        }
        let mut session = open_file(&path);
        let mut state = Tensors::new();
        let key = format!("optimizer/{flags}");
        let losses = numbers[&format!("{key}/losses")].to_f64();
        for (i, want) in losses.iter().enumerate() {
            let mut feeds = Tensors::from([
                ("x".to_string(), row(&numbers["x"], i)),
                ("target".into(), row(&numbers["target"], i)),
                ("lr".into(), floats(DType::F32, &[], &[0.05])),
            ]);
            feeds.extend(state);
            let out = session.run(&feeds).unwrap();
            let loss = out["loss"].to_f64()[0];
            assert!((loss - want).abs() <= 1e-5 * want.abs(), "{key}: loss {loss} of step {i}, PyTorch's is {want}");
            state = out.into_iter().filter_map(|(n, t)| Some((n.strip_suffix(".next")?.to_string(), t))).collect();
        }
        assert_eq!(state["ancre.step"].to_i64(), [12], "{key}: micro-batches");
        for p in PARAMETERS {
            near(&format!("{key} {p}"), &state[p], &numbers[&format!("{key}/{p}")], 2e-5);
        }
    }
}

/// WebGPU has no float64, and few buffers for one shader.
fn runs_without_float64(g: &Graph) {
    for id in g.nodes() {
        let wide = g.results(id).find(|v| g.value(*v).ty.dtype == Some(DType::F64));
        assert!(wide.is_none(), "{} computes in float64", g.site(id));
        assert!(!g.is_op(id, "Split") || g.results(id).count() <= 8, "{} has many results", g.site(id));
    }
}

fn op(g: &mut Graph, name: &str, kind: &str, attrs: Attrs, operands: &[ValueId], dims: &[i64]) -> ValueId {
    let operands: Vec<Option<ValueId>> = operands.iter().copied().map(Some).collect();
    let node = g.add_op(name, Op::new(kind, attrs), &operands);
    let shape: Vec<Dim> = [Dim::symbol("n")].into_iter().chain(dims.iter().map(|d| Dim::from(*d))).collect();
    g.push_result(node, name, TensorType::new(DType::F32, shape).into())
}

fn input(g: &mut Graph, name: &str) -> ValueId {
    g.add_input(name, TensorType::new(DType::F32, [Dim::symbol("n"), Dim::from(3)]).into(), None)
}

fn save(g: &Graph, dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, emit(g)).unwrap();
    path
}

/// A model whose values have every name that a training graph would like: the model's win.
#[test]
fn the_model_s_names_win() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Graph::default();
    let x = input(&mut g, "labels");
    let w = g.add_initializer("loss", Tensor::f32s(&[3, 3], &[0.5, -0.1, 0.2, 0.3, 0.8, -0.6, 0.1, 0.4, 0.9]), false);
    let a = op(&mut g, "grad_norm", "MatMul", Attrs::new(), &[x, w], &[3]);
    let b = op(&mut g, "loss.next", "Tanh", Attrs::new(), &[a], &[3]);
    let y = op(&mut g, "lr", "Add", Attrs::new(), &[b, a], &[3]);
    g.add_output(y, None);
    let path = train(&save(&g, dir.path(), "names.onnx"), dir.path(), &["--loss", "cross-entropy"]);
    let (t, _) = read_model(&path).unwrap();
    let read = |key: &str| serde_json::from_str::<Value>(&t.metadata[key]).unwrap();
    assert_eq!(
        (&read("ancre.loss")["target"], &read("ancre.optimizer")["lr"]),
        (&"ancre.labels".into(), &"ancre.lr".into())
    );
    assert_eq!(
        read("ancre.names"),
        serde_json::json!({"loss": "ancre.loss", "grad_norm": "ancre.grad_norm", "state": "init"})
    );
    let state = read("ancre.state");
    let own = state.as_array().unwrap().iter().find(|s| s["name"] == "loss").unwrap();
    assert_eq!((&own["input"], &own["output"]), (&"loss".into(), &"ancre.loss.next".into()));
    let out = open_file(&path)
        .run(&Tensors::from([
            ("labels".to_string(), floats(DType::F32, &[2, 3], &[1.0, -1.0, 0.5, 0.2, 0.3, -0.4])),
            ("ancre.labels".into(), NpTensor::i64s(&[2], &[0, 2]).unwrap()),
            ("ancre.lr".into(), floats(DType::F32, &[], &[0.1])),
        ]))
        .unwrap();
    assert_eq!(out["lr"].shape(), [2, 3]);
    assert!(out["ancre.loss"].to_f64()[0] > 0.0 && out["ancre.loss.next"].shape() == [3, 3]);
}

/// The loss reads the logits before a softmax or sigmoid, also where the shape changes after it.
#[test]
fn a_squash_behind_a_change_of_shape_is_taken_into_the_loss() {
    let graph = |squash: Option<&str>| {
        let mut g = Graph::default();
        let x = input(&mut g, "x");
        let w = g.add_initializer(
            "w",
            Tensor::f32s(&[3, 4], &[0.5, -0.1, 0.2, 0.3, 0.8, -0.6, 0.1, 0.4, 0.9, 0.7, -0.2, 0.3]),
            false,
        );
        let mut y = op(&mut g, "h", "MatMul", Attrs::new(), &[x, w], &[4]);
        if let Some(squash) = squash {
            let apart = g.add_initializer("apart", Tensor::i64s(&[4], &[-1, 4, 1, 1]), false);
            let flat = g.add_initializer("flat", Tensor::i64s(&[2], &[-1, 4]), false);
            y = op(&mut g, "map", "Reshape", Attrs::new(), &[y, apart], &[4, 1, 1]);
            let attrs = if squash == "Sigmoid" { Attrs::new() } else { Attrs::new().with("axis", 1) };
            y = op(&mut g, "squashed", squash, attrs, &[y], &[4, 1, 1]);
            y = op(&mut g, "probabilities", "Reshape", Attrs::new(), &[y, flat], &[4]);
            y = op(&mut g, "copy", "Identity", Attrs::new(), &[y], &[4]);
        }
        g.add_output(y, None);
        g
    };
    let run = |squash: Option<&str>, loss: &str| {
        let dir = tempfile::tempdir().unwrap();
        let path = train(&save(&graph(squash), dir.path(), "m.onnx"), dir.path(), &["--loss", loss, "--optimizer", "none"]);
        let x = floats(DType::F32, &[2, 3], &[1.0, -1.0, 0.5, 0.2, 0.3, -0.4]);
        let mut feeds = Tensors::from([("x".to_string(), x)]);
        if loss == "bce" {
            feeds.insert("target".into(), floats(DType::F32, &[2, 4], &[1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0]));
        } else {
            feeds.insert("labels".into(), NpTensor::i64s(&[2], &[3, 1]).unwrap());
        }
        let out = open_file(&path).run(&feeds).unwrap();
        (out["loss"].clone(), out["w.grad"].clone())
    };
    for (squash, loss) in [("Softmax", "cross-entropy"), ("LogSoftmax", "cross-entropy"), ("Sigmoid", "bce")] {
        let (with, without) = (run(Some(squash), loss), run(None, loss));
        near(squash, &with.0, &without.0, 1e-6);
        near(squash, &with.1, &without.1, 1e-6);
    }
    // And so is what tells the loss by itself.
    let dir = tempfile::tempdir().unwrap();
    let path = save(&graph(Some("Softmax")), dir.path(), "m.onnx");
    let r = tool_ok(&[&text(&path), "--dry-run", "--json"]).json();
    assert_eq!(r["training"]["loss"], "cross-entropy");
    let path = save(&graph(None), dir.path(), "plain.onnx");
    let refused = tool(&[&text(&path), "--dry-run", "--loss", "auto"]);
    assert!(refused.status == 2 && refused.err.contains("mse, l1, huber, bce or own"), "{}", refused.err);
}

/// Half-precision parameters are float32 state; the network computes as it did.
#[test]
fn half_precision_trains_in_float32() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Graph::default();
    let ty = |d: i64| TensorType::new(DType::F16, [Dim::symbol("n"), Dim::from(d)]);
    let x = g.add_input("x", ty(3).into(), None);
    let values = [0.5, -0.1, 0.2, 0.3, 0.8, -0.6, 0.1, 0.4, 0.9];
    let w = g.add_initializer("w", Tensor::floats(DType::F16, &[3, 3], &values), false);
    let node = g.add_op("", Op::new("MatMul", Attrs::new()), &[Some(x), Some(w)]);
    let y = g.push_result(node, "y", ty(3).into());
    g.add_output(y, None);
    let path = train(&save(&g, dir.path(), "half.onnx"), dir.path(), &["--loss", "mse", "--optimizer", "sgd"]);
    let (t, _) = read_model(&path).unwrap();
    assert_eq!(t.value(t.find("w").unwrap()).ty.dtype, Some(DType::F32));
    assert_eq!(t.value(t.find("y").unwrap()).ty.dtype.or(Some(DType::F16)), Some(DType::F16));
    let mut session = open_file(&path);
    let x = floats(DType::F16, &[2, 3], &[1.0, -1.0, 0.5, 0.25, 0.5, -0.5]);
    let feeds = Tensors::from([
        ("x".to_string(), x),
        ("target".into(), floats(DType::F32, &[2, 3], &[0.0; 6])),
        ("lr".into(), floats(DType::F32, &[], &[1e-5])),
    ]);
    let out = session.run(&feeds).unwrap();
    assert_eq!((out["y"].dtype(), out["w.next"].dtype()), (DType::F16, DType::F32));
    // A step too small for half precision is not lost.
    let before = first_state(&path)["w"].to_f64();
    let moved = max_abs(&out["w.next"].to_f64(), &before);
    assert!(moved > 1e-7 && moved < 1e-4, "{moved}");
}

/// The rows of a half-precision table that are read twice get the sum of their gradients, which ONNX Runtime cannot form in half
/// precision on the CPU.
#[test]
fn a_half_precision_embedding_trains() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Graph::default();
    let ids = g.add_input("ids", TensorType::new(DType::I64, [Dim::symbol("n"), Dim::from(3)]).into(), None);
    let table = g.add_initializer("table", Tensor::floats(DType::F16, &[4, 2], &[0.5; 8]), false);
    let node = g.add_op("", Op::new("Gather", Attrs::new()), &[Some(table), Some(ids)]);
    let ty = TensorType::new(DType::F16, [Dim::symbol("n"), Dim::from(3), Dim::from(2)]);
    let y = g.push_result(node, "y", ty.into());
    g.add_output(y, None);
    let options = ["--loss", "mse", "--reduction", "sum", "--optimizer", "none", "--grad-outputs"];
    let mut session = open_file(&train(&save(&g, dir.path(), "table.onnx"), dir.path(), &options));
    let feeds = Tensors::from([
        ("ids".to_string(), NpTensor::i64s(&[1, 3], &[2, 0, 2]).unwrap()),
        ("target".into(), floats(DType::F32, &[1, 3, 2], &[0.0; 6])),
    ]);
    let out = session.run(&feeds).unwrap();
    assert_eq!(out["table.grad"].to_f64(), [1.0, 1.0, 0.0, 0.0, 2.0, 2.0, 0.0, 0.0]);
}

/// ONNX Runtime has bfloat16 kernels for some operators only, on any device: around the others stand casts.
#[test]
fn bfloat16_stays_where_there_are_kernels() {
    let dir = tempfile::tempdir().unwrap();
    let mut g = Graph::default();
    let ty = |d: i64| TensorType::new(DType::BF16, [Dim::symbol("n"), Dim::from(d)]);
    let x = g.add_input("x", ty(3).into(), None);
    let w = g.add_initializer("w", Tensor::floats(DType::BF16, &[3, 3], &[0.5; 9]), false);
    let mut b = Builder::new(&mut g, "net");
    let h = b.matmul(x, w).unwrap();
    // Its gradient compares, the slice's pads: neither has a bfloat16 kernel.
    let h = b.op("Relu", &[h]).unwrap();
    let y = b.slice(h, 1, 0, 2).unwrap();
    g.add_output(y, None);
    let source = save(&g, dir.path(), "bfloat.onnx");
    let ran =
        tool(&[&text(&source), "--loss", "mse", "--verify", "none", "--json", "-o", &format!("{}/", text(dir.path()))]);
    let report = ran.json();
    assert_eq!(report["placement"]["fallbacks"].as_array().map(Vec::len), Some(0), "{report}");
    assert!(report["notices"].to_string().contains("compute in float32, between casts"), "{}", report["notices"]);
    let (t, _) = read_model(&dir.path().join("bfloat.ancre.train.onnx")).unwrap();
    for n in t.nodes().filter(|n| t.is_op(*n, "Greater") || t.is_op(*n, "Pad")) {
        assert_eq!(t.operand(n, 0).and_then(|v| t.value(v).ty.dtype.or(Some(DType::F32))), Some(DType::F32));
    }
    assert!(t.nodes().any(|n| t.is_op(n, "Pad")) && t.nodes().any(|n| t.is_op(n, "Greater")));
}

/// A model that computes its loss itself trains on it; its labels are its own input.
#[test]
fn a_model_s_own_loss_trains_it() {
    let dir = tempfile::tempdir().unwrap();
    let net = "<opset_import: [\"\" : 17]> net (float[n, 3] x, int64[n] labels) => (float loss, float[n, 2] logits)
        <float[3, 2] w = {0.5, -0.1, 0.2, 0.3, 0.8, -0.6}> {
            logits = MatMul (x, w)
            loss = SoftmaxCrossEntropyLoss <ignore_index = -100> (logits, labels)
        }";
    let model = save(&ancre_passes::text::parse(net).unwrap(), dir.path(), "own.onnx");
    let out = text(dir.path()) + "/own/";
    let flags = ["--output", "loss", "--optimizer", "none", "--verify", "none", "--json", "-o", &out];
    let said = tool_ok(&[&[text(&model).as_str()], &flags[..]].concat()).json();
    assert_eq!((&said["training"]["loss"], &said["training"]["target"]), (&"own".into(), &"labels".into()));
    let plain = ["--output", "logits", "--loss", "cross-entropy", "--labels", "t", "--optimizer", "none"];
    let plain = train(&model, dir.path(), &plain);
    let x = floats(DType::F32, &[3, 3], &[1.0, -1.0, 0.5, 0.2, 0.3, -0.4, 2.0, 0.1, 0.7]);
    let labels = NpTensor::i64s(&[3], &[0, 1, -100]).unwrap();
    let mut feeds = Tensors::from([("x".to_string(), x), ("labels".into(), labels.clone())]);
    let own = open_file(&Path::new(&out).join("own.ancre.train.onnx")).run(&feeds).unwrap();
    feeds.insert("t".into(), labels);
    let plain = open_file(&plain).run(&feeds).unwrap();
    near("loss", &own["loss"], &plain["ancre.loss"], 1e-6);
    near("w.grad", &own["w.grad"], &plain["w.grad"], 1e-6);
    // Of labels that are all ignored there is no mean, and nothing to learn.
    feeds.shift_remove("t");
    feeds.insert("labels".into(), NpTensor::i64s(&[3], &[-100; 3]).unwrap());
    let own = open_file(&Path::new(&out).join("own.ancre.train.onnx")).run(&feeds).unwrap();
    assert!(own["loss"].to_f64()[0].is_nan());
    assert_eq!(own["w.grad"].to_f64(), [0.0; 6]);
}

/// In double precision everything but the learning rate and what is reported is float64, to its last digits.
#[test]
fn double_precision_trains_in_double_precision() {
    let dir = tempfile::tempdir().unwrap();
    let net = "net (double[n, 3] x) => (double[n, 1] y) <double[3, 1] w = {0.5, -0.1, 0.2}> { y = MatMul (x, w) }";
    let model = save(&ancre_passes::text::parse(net).unwrap(), dir.path(), "double.onnx");
    let (x, t, w, rate): ([f64; 6], [f64; 2], [f64; 3], f64) =
        ([1.0 / 3.0, -1.0, 0.5, 0.2, 0.3, -0.4], [0.1, 0.7], [0.5, -0.1, 0.2], 0.25);
    let error: Vec<f64> = (0..2).map(|i| (0..3).map(|j| x[3 * i + j] * w[j]).sum::<f64>() - t[i]).collect();
    let gradient: Vec<f64> = (0..3).map(|j| (0..2).map(|i| x[3 * i + j] * error[i]).sum()).collect();
    let feeds = Tensors::from([
        ("x".to_string(), floats(DType::F64, &[2, 3], &x)),
        ("target".into(), floats(DType::F64, &[2, 1], &t)),
        ("lr".into(), floats(DType::F32, &[], &[rate])),
    ]);
    for optimizer in [&["--optimizer", "sgd"][..], &["--optimizer", "adamw", "--weight-decay", "0", "--clip-norm", "9"]] {
        let flags = [&["--loss", "mse", "--grad-outputs", "--reduction", "mean"], optimizer].concat();
        let out = open_file(&train(&model, dir.path(), &flags)).run(&feeds).unwrap();
        near("gradient", &out["w.grad"], &floats(DType::F64, &[3, 1], &gradient), 1e-14);
        // Adam's first step is the rate, but for its epsilon of 1e-8 beside the gradient.
        let step = |g: f64| if optimizer.len() == 2 { g } else { g / (g.abs() + 1e-8) };
        let next: Vec<f64> = w.iter().zip(&gradient).map(|(w, g)| w - rate * step(*g)).collect();
        assert_eq!((out["w.next"].dtype(), out["loss"].dtype()), (DType::F64, DType::F32));
        near("next", &out["w.next"], &floats(DType::F64, &[3, 1], &next), 1e-12);
    }
}

/// A softmax over the last axis of [N, T, C] tells that each position has a label.
#[test]
fn a_softmax_over_the_last_axis_labels_each_position() {
    let dir = tempfile::tempdir().unwrap();
    let net = "net (float[n, t, 2] x) => (float[n, t, 2] y) <float[2, 2] w = {0.5, -0.25, 1, 2}> {
        h = MatMul (x, w) y = Softmax <axis = -1> (h) }";
    let path = train(&save(&ancre_passes::text::parse(net).unwrap(), dir.path(), "tags.onnx"), dir.path(), &[]);
    let x: [f64; 6] = [1.0, 0.5, -1.0, 2.0, 0.25, -0.5];
    let labels = [1usize, 0, 1];
    let loss = |i: usize| {
        let h = [0.5 * x[2 * i] + x[2 * i + 1], -0.25 * x[2 * i] + 2.0 * x[2 * i + 1]];
        (h[0].exp() + h[1].exp()).ln() - h[labels[i]]
    };
    let want = (0..3).map(loss).sum::<f64>() / 3.0;
    let feeds = Tensors::from([
        ("x".to_string(), floats(DType::F32, &[1, 3, 2], &x)),
        ("labels".into(), NpTensor::i64s(&[1, 3], &[1, 0, 1]).unwrap()),
        ("lr".into(), floats(DType::F32, &[], &[0.1])),
    ]);
    let out = open_file(&path).run(&feeds).unwrap();
    near("loss", &out["loss"], &floats(DType::F32, &[], &[want]), 1e-6);
}

/// ONNX declares the statistics of a layer normalisation as float, also those of a double operand.
#[test]
fn a_layer_normalisation_trains_in_double_precision() {
    let dir = tempfile::tempdir().unwrap();
    let net = "net (double[n, 4] x) => (double[n, 4] y)
        <double[4, 4] w = {0.3, -0.2, 0.5, 0.1, …}, double[4] s = {1, 0.5, 2, 1}, double[4] b = {0, 0.1, -0.2, 0}> {
        h = MatMul (x, w) n = LayerNormalization <axis = -1> (h, s, b) y = Tanh (n) }";
    let model = save(&ancre_passes::text::parse(net).unwrap(), dir.path(), "double.onnx");
    let training = train(&model, dir.path(), &["--loss", "mse"]);
    open_file(&training);
    let ran = tool(&["verify", "--gradient", &text(&training)]);
    assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
}
