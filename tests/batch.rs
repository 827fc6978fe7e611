//! `--batch`: files with a batch in their shapes are rebuilt for another one; each sample comes out as it does alone, in the forward
//! graph and, through loss and gradients, in the training graph.

use crate::common::{Random, emit, floats, max_abs, model, open, open_file, text, tool, tool_ok, without_state};
use ancre_passes::ir::{DType, Graph};
use ancre_passes::text::parse;
use ancre_passes::transform::rebatch::{self, Batch, Samples};
use ancre_rewrite::engine::random_inputs::{self, Sizes};
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::files::read_model;
use ancre_rewrite::io::tensor::NpTensor;
use ancre_rewrite::rewrite;
use std::path::Path;

/// Models of `models/` that were exported with batch 1.
const FIXED: [&str; 4] = ["efficientnet", "llama", "resnet_cifar_folded", "swin"];

/// Random inputs of a model for a batch.
fn inputs(path: &Path, batch: i64) -> Tensors {
    let (g, _) = read_model(path).unwrap();
    let mut sizes = random_inputs::sizes(&g, &Sizes::new()).remove(0);
    sizes.values_mut().for_each(|n| *n = batch);
    let mut feeds = without_state(&g, random_inputs::random_inputs(&g, &sizes, 5).unwrap());
    for t in feeds.iter_mut().filter(|(n, _)| n.contains("mask")).map(|(_, t)| t) {
        // Nothing is masked, so that a mean over positions is one over samples.
        *t = NpTensor::from_f64s(t.dtype(), t.shape(), &vec![1.0; t.len()]).unwrap();
    }
    feeds
}

/// One sample's part of what carries samples.
fn sample(feeds: &Tensors, i: usize) -> Tensors {
    feeds
        .iter()
        .map(|(n, t)| (n.clone(), if t.shape().is_empty() { t.clone() } else { t.slice(0, i, 1).unwrap() }))
        .collect()
}

#[test]
fn every_sample_as_by_itself() {
    for name in FIXED {
        for (batch, extent) in [("dynamic", None), ("3", Some(3))] {
            let dir = tempfile::tempdir().unwrap();
            let r =
                tool_ok(&[&text(&model(name)), "-o", &text(dir.path()), "--batch", batch, "--no-train", "--json"]).json();
            assert_eq!(r["verify"]["emitted"]["equivalent"], true, "{name}");
            let forward = dir.path().join(format!("{name}.ancre.onnx"));
            let (g, _) = rewrite::load(&forward).unwrap();
            let first = g.tensor_type(g.outputs()[0].value).unwrap().shape[0].clone();
            assert_eq!(first.known(), extent, "{name} {first}");
            // In an engine that took no part in the proof.
            let feeds = inputs(&forward, 3);
            let (mut together, mut alone) = (open_file(&forward), open_file(&model(name)));
            let got = together.run(&feeds).unwrap();
            for i in 0..3 {
                for (output, want) in alone.run(&sample(&feeds, i)).unwrap() {
                    let (a, b) = (got[&output].slice(0, i, 1).unwrap().to_f64(), want.to_f64());
                    let largest = b.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
                    assert!(max_abs(&a, &b) <= 1e-4 * largest, "{name} --batch {batch}: {output} of sample {i}");
                }
            }
        }
    }
}

/// Loss and gradients of a batch are the means of its samples' in the graph that keeps batch 1.
#[test]
fn the_training_graph_takes_any_batch_by_default() {
    for name in ["efficientnet", "llama", "swin"] {
        let dir = tempfile::tempdir().unwrap();
        let build = |out: &str, batch: &[&str]| {
            let out = dir.path().join(out);
            std::fs::create_dir(&out).unwrap();
            let (m, o) = (text(&model(name)), text(&out));
            let mut a = vec![&m, "-o", &o, "--optimizer", "none", "--grad-outputs", "--frozen-bn", "--json"];
            a.extend(batch);
            let r = tool_ok(&a).json();
            (r["training"]["batch"].clone(), out.join(format!("{name}.ancre.train.onnx")))
        };
        let ((any, one), (kept, other)) = (build("any", &[]), build("kept", &["--batch", "keep"]));
        assert_eq!((any, kept), ("batch".into(), 1.into()), "{name}");
        let feeds = inputs(&one, 3);
        let got = open_file(&one).run(&feeds).unwrap();
        let mut alone = open_file(&other);
        let runs: Vec<Tensors> = (0..3).map(|i| alone.run(&sample(&feeds, i)).unwrap()).collect();
        let names: Vec<&String> = got.keys().filter(|n| *n == "loss" || n.ends_with(".grad")).collect();
        assert!(names.len() > 20, "{name}");
        let norm = got["grad_norm"].to_f64()[0];
        for n in names {
            let mut mean = vec![0.0; got[n].len()];
            runs.iter().for_each(|r| mean.iter_mut().zip(r[n].to_f64()).for_each(|(m, v)| *m += v / 3.0));
            let error = max_abs(&got[n].to_f64(), &mean);
            assert!(error <= 1e-5 * (1.0 + norm), "{name}: {n} is off by {error:.1e}");
        }
    }
}

#[test]
fn a_symbolic_batch_becomes_a_number() {
    let dir = tempfile::tempdir().unwrap();
    let m = text(&model("vit"));
    let r = tool_ok(&[&m, "-o", &text(dir.path()), "--batch", "4", "--json"]).json();
    assert_eq!(r["training"]["batch"], 4);
    let (g, _) = rewrite::load(&dir.path().join("vit.ancre.onnx")).unwrap();
    assert_eq!(g.tensor_type(g.outputs()[0].value).unwrap().shape[0].known(), Some(4));
    let r = tool_ok(&[&m, "-o", &text(dir.path()), "--batch", "dynamic", "--no-train", "--json"]).json();
    assert_eq!(r["verify"]["emitted"]["equivalent"], true);
}

#[test]
fn a_batch_that_is_none_is_refused() {
    for wrong in ["0", "-2", "many", "1.5"] {
        let ran = tool(&[&text(&model("swin")), &format!("--batch={wrong}")]);
        assert_eq!(ran.status, 2, "{wrong}");
        assert!(ran.err.contains("is not keep, dynamic or a positive number"), "{}", ran.err);
    }
}

/// Part of one sample of three.
fn part(t: &NpTensor, s: &Samples, i: usize) -> Vec<f64> {
    assert_eq!(s.outer, 1, "no output of these repeats all samples");
    let inner = t.shape()[s.axis] / 3;
    t.slice(s.axis, i * inner, inner).unwrap().to_f64()
}

/// Operators that cannot take samples where they lie get them elsewhere: in another engine every sample comes out as by itself.
#[test]
fn samples_that_go_to_another_axis_come_out_as_by_themselves() {
    for (inputs, y, body) in [
        ("float[1, 3, 2] x", "float[1, 3, 2] y", "{ y = Softmax <axis = 0> (x) }"),
        ("float[1, 3, 2] x", "float[3, 2] y", "<int64 a = {0}> { y = Gather <axis = 0> (x, a) }"),
        ("float[1, 3, 2] x", "float[2, 3, 2] y", "<float[1, 3, 2] c = {1, 2, 3, 4, 5, 6}> { y = Concat <axis = 0> (x, c) }"),
        ("float[1, 3, 2] x", "float[2] y", "<int64[2] a = {0, 1}> { y = ReduceMax <keepdims = 0> (x, a) }"),
        (
            "float[1, 3, 2] x",
            "float[2, 2] y",
            "<int64[1] a = {0}, float[2, 3] w = {1, 2, 3, 4, 5, 6}> { s = Squeeze (x, a) y = MatMul (w, s) }",
        ),
        (
            "float[1, 4, 3, 2] x",
            "float[1, 4, 3, 3] y",
            "<int64[3] h = {4, 3, 2}> { r = Reshape (x, h) t = Transpose <perm = [0, 2, 1]> (r) y = MatMul (x, t) }",
        ),
        (
            "float[1, 4, 3, 2] x",
            "float[2, 3, 4] y",
            "<int64[1] all = {-1}, int64[2, 3] at = {20, 1, 7, 0, 23, 11}, int64[2, 3, 4] more = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5}> { f = Reshape (x, all) g = Gather (f, at) h = Reshape (g, all) y = Gather (h, more) }",
        ),
        (
            "float[1, 5] x",
            "float[5, 1] y",
            "<int64[2, 1] at = {0, 3}, int64[2] two = {2, 1}, int64[1] b = {1}, int64[1] e = {3}, int64[1] a = {0}> { t = Transpose <perm = [1, 0]> (x) s = Slice (t, b, e, a) y = ScatterND (t, at, s) }",
        ),
        (
            "float[1, 5] x",
            "float[1, 5] y",
            "<int64[1, 2, 2] at = {0, 4, 0, 2}, float[1, 2] u = {7, 9}> { y = ScatterND (x, at, u) }",
        ),
        (
            "float[1, 3, 2] x",
            "float[1, 1, 1] y",
            "<int64[1] a = {1}> { m = ReduceMax <keepdims = 0> (x, a) i = ArgMax <axis = 1> (m) y = Gather <axis = 1> (m, i) }",
        ),
        (
            "float[1, 3] x",
            "float[2, 3] y",
            "<int64[2] a = {2, 1}, float[2, 3] w = {1, 2, 3, 4, 5, 6}> { t = Tile (x, a) y = Mul (t, w) }",
        ),
    ] {
        let source: Graph = parse(&format!("g ({inputs}) => ({y}) {body}")).unwrap();
        let mut rebuilt = source.clone();
        let plan = rebatch::plan(&rebuilt, 1).unwrap_or_else(|e| panic!("{body}: {e}"));
        let done = plan.apply(&mut rebuilt, Batch::Fixed(3)).unwrap();
        let x = source.tensor_type(source.find("x").unwrap()).unwrap().known_dims().unwrap();
        let one: Vec<usize> = x.iter().map(|d| *d as usize).collect();
        let mut three = one.clone();
        three[0] = 3;
        let n: usize = one.iter().product();
        let values = Random(7).normals(3 * n);
        let run = |g: &Graph, shape: &[usize], v: &[f64]| {
            let feeds = Tensors::from([("x".to_string(), floats(DType::F32, shape, v))]);
            open(&emit(g)).unwrap_or_else(|e| panic!("{body}: {e}")).run(&feeds).unwrap().swap_remove("y").unwrap()
        };
        let together = run(&rebuilt, &three, &values);
        for i in 0..3 {
            let alone = run(&source, &one, &values[i * n..(i + 1) * n]).to_f64();
            assert!(max_abs(&part(&together, &done.outputs[0], i), &alone) < 1e-6, "{body}: sample {i}");
        }
    }
}

/// Runs the main job on a graph in text form; returns its JSON report.
fn rebuilt(name: &str, source: &str, batch: &str) -> serde_json::Value {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("{name}.onnx"));
    std::fs::write(&path, emit(&parse(source).unwrap())).unwrap();
    let out = dir.path().join("out.onnx");
    tool_ok(&[&text(&path), "-o", &text(&out), "--batch", batch, "--no-train", "--json"]).json()
}

/// Old simplifiers list every initializer among the inputs; nobody feeds them.
#[test]
fn slim_320_a_shape_that_is_listed_among_the_inputs_is_a_constant() {
    let listed = "g (float[1, 3, 4] x, int64[3] shape = {1, 4, 3}) => (float[1, 4, 3] y) { y = Reshape (x, shape) }";
    let r = rebuilt("listed", listed, "3");
    assert_eq!(r["verify"]["emitted"]["equivalent"], true);
    assert!(r["notices"].to_string().contains("takes the default of input `shape` for a constant"), "{}", r["notices"]);
}

/// Elements of a sample may be as many as only the run tells, and lie one after the other.
#[test]
fn attacut_samples_may_share_one_axis() {
    let flat = "g (float[1, len, 3] x) => (float[all] y) <float[3, 1] w = {1, 2, 3}, int64[1] flat = {-1}>
                { m = MatMul (x, w) y = Reshape (m, flat) }";
    for batch in ["3", "dynamic"] {
        assert_eq!(rebuilt("flat", flat, batch)["verify"]["emitted"]["equivalent"], true, "{batch}");
    }
}

/// An exporter declared the batch to be free and wrote the shapes of one sample.
#[test]
fn khmersm_a_batch_that_the_graph_itself_bakes_in_is_rebuilt() {
    let baked = "g (float[batch, 4] x) => (float[batch, 4] y) <float[2, 2] w = {1, 2, 3, 4}, int64[3] one = {1, 2, 2}, int64[2] back = {-1, 4}>
                 { r = Reshape (x, one) m = MatMul (r, w) y = Reshape (m, back) }";
    let r = rebuilt("baked", baked, "3");
    assert_eq!(r["verify"]["emitted"]["equivalent"], true);
    assert!(r["notices"].to_string().contains("takes the batch `batch`"), "{}", r["notices"]);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    std::fs::write(&path, emit(&parse(baked).unwrap())).unwrap();
    let r = tool_ok(&[&text(&path), "--loss", "mse", "--optimizer", "none", "--json"]).json();
    assert_eq!(r["training"]["batch_change"]["before"], 1, "{r}");
    let feeds = ["x", "target"].map(|n| (n.to_string(), NpTensor::f32s(&[3, 4], &[0.5; 12]).unwrap()));
    let ran = open_file(&dir.path().join("m.ancre.train.onnx")).run(&Tensors::from(feeds)).unwrap();
    assert!(ran["loss"].to_f64()[0] > 0.0);
}
