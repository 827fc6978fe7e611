//! Quantisation-aware training: gradients against PyTorch's numbers (`qat/make.py`), and networks as ONNX Runtime's own tools quantise them
//! (`qat/quantise.py`), which keep their function in training and are quantised as they were once they are frozen.

use crate::common::{
    Random, data, first_state, max_abs, model, onnx_files, open_file, read_npz, text, tool, tool_ok, write_safetensors,
};
use ancre_passes::contract::{Quantised, Record, StateKind, States};
use ancre_passes::ir::{Graph, Kind};
use ancre_rewrite::engine::ort::device::Optimization;
use ancre_rewrite::engine::ort::{OrtEngine, OrtSession};
use ancre_rewrite::engine::random_inputs::{Sizes, random_inputs, sizes};
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::files::read_model;
use ancre_rewrite::io::tensor::NpTensor;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Rewrites a model into a directory as `m.onnx`, `m.train.onnx`, …
fn rewritten(source: &Path, flags: &[&str]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let (m, o) = (text(source), text(&dir.path().join("m.onnx")));
    let mut a = vec![m.as_str(), "-o", &o, "--verify", "none", "--eval-graph", "--json"];
    a.extend(flags);
    tool_ok(&a).json();
    dir
}

/// Opens a model as it is written: ONNX Runtime's optimisers round the other operand of a product with 4-bit weights to 8 bits.
fn unoptimised(path: &Path) -> OrtSession {
    let engine = OrtEngine { level: Optimization::None, threads: Some(1), ..OrtEngine::default() };
    engine.open_file(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn graph(path: &Path) -> Graph {
    read_model(path).unwrap().0
}

#[test]
fn gradients_of_weights_biases_and_scales_are_pytorch_s() {
    let numbers = read_npz(&data("qat/numbers.npz"));
    let mut checked = 0;
    for name in ["convolutions", "widths"] {
        let part = |kind: &str| -> Tensors {
            let prefix = format!("{name}/{kind}");
            numbers.iter().filter_map(|(n, t)| Some((n.strip_prefix(&prefix)?.to_string(), t.clone()))).collect()
        };
        let flags = ["--qat-scales", "--loss", "mse", "--optimizer", "none", "--grad-outputs", "--state", "inline"];
        let dir = rewritten(&data(&format!("qat/{name}.onnx")), &flags);
        let mut feeds = part("state/");
        for input in ["x", "target"] {
            feeds.insert(input.into(), numbers[&format!("{name}/{input}")].clone());
        }
        let got = open_file(&dir.path().join("m.train.onnx")).bare().run(&feeds).unwrap();
        assert!(max_abs(&got["loss"].to_f64(), &numbers[&format!("{name}/loss")].to_f64()) < 1e-6);
        for (tensor, want) in part("grad/") {
            let (a, b) = (got[&format!("{tensor}.grad")].to_f64(), want.to_f64());
            let largest = b.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            // Sums of what nearly cancels: the gradient of the scale of values that are quantised already.
            let error = max_abs(&a, &b);
            assert!(error <= 2e-6 * largest + 2e-8, "{name}, `{tensor}`: off by {error:.1e} of {largest:.1e}");
            checked += 1;
        }
    }
    assert_eq!(checked, 15 + 9);
}

/// Every weight, bias and scale of a state moved a little.
fn moved(train: &Path) -> Tensors {
    let mut random = Random(5);
    let mut state = first_state(train);
    for s in States::read(&graph(train)).unwrap().unwrap().0 {
        let t = &state[&s.input];
        let values = t.to_f64();
        let size = values.iter().map(|v| v.abs()).sum::<f64>() / values.len() as f64;
        let shape: Vec<usize> = s.shape.iter().map(|d| *d as usize).collect();
        let next: Vec<f64> = match s.kind {
            StateKind::Parameter => values.iter().map(|v| v + 0.1 * size * random.normal()).collect(),
            StateKind::Scale => values.iter().map(|v| v * (0.9 + 0.2 * random.unit())).collect(),
            _ => continue,
        };
        state.insert(s.input.clone(), NpTensor::from_f64s(t.dtype(), &shape, &next).unwrap());
    }
    state
}

/// How often each operator, and each type of constant, occurs.
fn contents(g: &Graph) -> BTreeMap<String, usize> {
    let mut count = BTreeMap::new();
    for n in g.nodes() {
        let what = match &g.node(n).kind {
            Kind::Op(op) => op.full_name(),
            // Shapes may be written otherwise.
            Kind::Initializer { tensor, .. } if tensor.dtype() != ancre_passes::ir::DType::I64 => tensor.dtype().to_string(),
            _ => continue,
        };
        *count.entry(what).or_default() += 1;
    }
    count
}

/// `int8_cast_mul.onnx` scales its integers by hand, as exporters without `DequantizeLinear` do; the others are made by `qat/quantise.py`.
fn quantised_models() -> Vec<PathBuf> {
    onnx_files(&data("qat")).into_iter().chain([model("resnet_cifar_qdq")]).collect()
}

/// How far outputs lie from others, in parts of the largest.
fn distance(a: &NpTensor, b: &NpTensor) -> f64 {
    let largest = b.to_f64().iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    max_abs(&a.to_f64(), &b.to_f64()) / largest
}

#[test]
fn quantised_models_keep_their_function_and_deploy_as_they_came() {
    let files = quantised_models();
    assert_eq!(files.len(), 18);
    for source in files {
        for flag in ["--qat", "--qat-scales"] {
            let what = format!("{} {flag}", source.display());
            // With --chains none the deployed file is to have the source's operators and no others.
            let dir = rewritten(&source, &[flag, "--loss", "mse", "--chains", "none"]);
            let path = |name: &str| dir.path().join(name);
            let before = graph(&source);
            let inputs = random_inputs(&before, &sizes(&before, &Sizes::new())[0], 5).unwrap();
            let output = before.name(before.outputs()[0].value).to_string();
            let of_source = unoptimised(&source).run(&inputs).unwrap();
            let mut evaluation = unoptimised(&path("m.eval.onnx"));
            let takes = graph(&path("m.eval.onnx"));
            let mut evaluated = |state: &Tensors| {
                let mut feeds = inputs.clone();
                feeds.extend(state.clone());
                feeds.retain(|name, _| takes.find(name).is_some());
                feeds.insert(
                    "target".into(),
                    NpTensor::zeros(of_source[&output].dtype(), of_source[&output].shape()).unwrap(),
                );
                evaluation.run(&feeds).unwrap()
            };
            let start = distance(&evaluated(&first_state(&path("m.train.onnx")))[&output], &of_source[&output]);
            assert!(start <= 1e-6, "{what}: training begins {start:.1e} away from the source");
            let state = moved(&path("m.train.onnx"));
            write_safetensors(&path("state.safetensors"), &state, None);
            let (m, s, o) = (text(&path("m.onnx")), text(&path("state.safetensors")), text(&path("frozen.onnx")));
            tool_ok(&["freeze", &m, "--state", &s, "-o", &o]);
            let deployed = unoptimised(&path("frozen.onnx")).run(&inputs).unwrap();
            let trained = evaluated(&state);
            assert!(distance(&trained[&output], &of_source[&output]) > 1e-3, "{what}: nothing moved");
            let apart = distance(&deployed[&output], &trained[&output]);
            assert!(apart <= 1e-6, "{what}: deployed {apart:.1e} away from what was trained");
            assert_eq!(contents(&graph(&path("frozen.onnx"))), contents(&before), "{what}");
        }
    }
}

#[test]
fn a_quantised_model_learns_and_its_file_is_of_integers() {
    let dir = rewritten(&data("qat/qdq_channels.onnx"), &["--qat-scales", "--loss", "mse"]);
    let train = dir.path().join("m.train.onnx");
    let g = graph(&train);
    let quantised = Quantised::read(&g).unwrap().unwrap();
    assert_eq!((quantised.weights.len(), quantised.values), (8, 13), "{quantised:?}");
    let decayed = |name: &str| name.ends_with("_scale");
    assert!(quantised.scales.iter().all(|n| decayed(n)) && quantised.scales.len() == 15, "{:?}", quantised.scales);
    let mut random = Random(1);
    let (n, mut state) = (16, first_state(&train));
    let x = crate::common::floats(ancre_passes::ir::DType::F32, &[n, 3, 8, 8], &random.normals(n * 192));
    let target = crate::common::floats(ancre_passes::ir::DType::F32, &[n, 4], &random.normals(n * 4));
    let mut session = open_file(&train).bare();
    let mut losses = Vec::new();
    for _ in 0..60 {
        let lr = NpTensor::f32s(&[], &[5e-3]).unwrap();
        let feeds = Tensors::from([("x".to_string(), x.clone()), ("target".into(), target.clone()), ("lr".into(), lr)]);
        losses.push(crate::common::advance(&mut session, feeds, &mut state)["loss"].to_f64()[0]);
    }
    assert!(losses[59] < 0.7 * losses[0], "{losses:?}");
    let positive = |name: &String| state[name].to_f64().iter().all(|s| *s > 0.0);
    assert!(quantised.scales.iter().all(positive));
}

#[test]
fn what_cannot_be_trained_so_is_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let out = text(dir.path()) + "/";
    let refused = |source: &Path, flags: &[&str]| {
        let m = text(source);
        let ran = tool(&[&[m.as_str(), "-o", &out, "--verify", "none"], flags].concat());
        assert_eq!(ran.status, 2, "{}{}", ran.out, ran.err);
        ran.err
    };
    let of_floats = refused(&model("resnet_cifar"), &["--qat"]);
    assert!(of_floats.contains("this one is not") && of_floats.contains("quantize_static"), "{of_floats}");
    let unasked = refused(&model("resnet_cifar_qdq"), &["--loss", "cross-entropy"]);
    assert!(unasked.contains("is quantised") && unasked.contains("--qat trains it"), "{unasked}");
    let fresh = refused(&model("resnet_cifar_qdq"), &["--qat", "--classes", "3"]);
    assert!(fresh.contains("`node_linear` (Gemm)") && fresh.contains("then quantise it"), "{fresh}");
    for source in quantised_models() {
        let fresh = refused(&source, &["--classes", "3"]);
        assert!(fresh.contains("the last linear map, has a quantised weight"), "{}: {fresh}", source.display());
    }
}
