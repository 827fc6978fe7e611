//! Low-rank adapters: they start as nothing, train in the weights' place, and become part of the weights.

use crate::common::{
    Random, advance, data, emit, floats, max_abs, model, open, open_file, random_data, read_npz, text, tool, tool_ok,
    write_npz,
};
use crate::train_loop::python;
use ancre_passes::contract::{AdaptersRecord, Record};
use ancre_passes::ir::{DType, Graph, Tensor};
use ancre_passes::pipeline::{Cx, PassManager, run_words};
use ancre_passes::proof::{ProofOptions, prove_equal};
use ancre_passes::text::parse;
use ancre_passes::transform::adapters::merge_adapters;
use ancre_passes::verify;
use ancre_rewrite::engine::random_inputs::{Sizes, random_inputs, sizes};
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::files::read_model;
use ancre_rewrite::io::tensor::NpTensor;
use std::path::Path;
use std::process::Command;

/// Every form in which a node reads a weight.
const FORMS: &str = "<opset_import: [\"\" : 18, \"com.microsoft\" : 1]>
g (int64[5] ids, float[2, 5, 3] s, float[2, 4, 6, 6] x) => (a, b, c, d, e, f, i, j, k, l, m)
    <float[7, 3] table = {…}, float[3, 6] w = {…}, float[2, 5] left = {…}, float[6, 3] turned = {…}, float[2, 4, 3, 3] kernel = {…},
     float[5, 4, 1, 1] point = {…}, float[5] bias = {…}, float[6] vector = {…}, int64[1] zero = {0}, int64[1] two = {2}>
{
    h = Gather (table, ids)
    t = Transpose <perm = [1, 0]> (table)
    a = MatMul (h, t)
    b = MatMul (s, w)
    c = MatMul (left, s)
    d = Gemm <transB = 1, alpha = 0.5> (h, turned, vector)
    p = Transpose <perm = [1, 0]> (h)
    e = Gemm <transA = 1> (p, w)
    two_rows = Slice (h, zero, two)
    f = Gemm <transA = 1> (left, two_rows)
    i = Conv <kernel_shape = [3, 3], pads = [1, 0, 1, 1], strides = [2, 1]> (x, kernel)
    j = Conv (x, point, bias)
    k = Conv <auto_pad = \"SAME_UPPER\", strides = [2, 2]> (x, kernel)
    l = MatMul (d, turned)
    m = com.microsoft.FusedMatMul <transB = 1, alpha = 0.25> (s, turned)
}";
fn adapted(text: &str, words: &str) -> (Graph, Graph) {
    let source = parse(text).unwrap();
    let mut g = source.clone();
    run_words(words, &mut g, &mut Cx::default(), &mut PassManager::default()).unwrap();
    verify::verify(&g, verify::Stage::Legal).unwrap_or_else(|e| panic!("{}", e.join("; ")));
    (source, g)
}

fn run(g: &Graph, feeds: &Tensors) -> Tensors {
    open(&emit(g)).unwrap().run(feeds).unwrap()
}

fn feeds(g: &Graph) -> Tensors {
    let mut feeds = random_inputs(g, &sizes(g, &Sizes::new())[0], 3).unwrap();
    feeds.retain(|name, _| g.inputs().iter().any(|n| g.name(g.result(*n, 0)) == name));
    feeds
}

/// Gives every B numbers, so that the adapters count.
fn trained(g: &mut Graph) {
    let mut random = Random(9);
    for adapter in AdaptersRecord::read(g).unwrap().unwrap().adapters {
        let b = g.find(&adapter.b).unwrap();
        let old = g.initializer(b).unwrap().clone();
        assert!(old.to_f64().unwrap().iter().all(|v| *v == 0.0));
        let values = random.normals(old.len());
        g.set_initializer(b, Tensor::floats(old.dtype(), old.dims(), &values), false);
    }
}

/// The largest difference, in parts of the largest value of its output.
fn distance(a: &Tensors, b: &Tensors) -> f64 {
    assert_eq!(a.len(), b.len());
    let each = |(name, t): (&String, &NpTensor)| {
        let (got, want) = (t.to_f64(), b[name].to_f64());
        max_abs(&got, &want) / want.iter().fold(1e-30, |m: f64, v| m.max(v.abs()))
    };
    a.iter().map(each).fold(0.0, f64::max)
}

#[test]
fn adapters_start_as_nothing_and_merge_into_their_weights() {
    let (source, mut g) = adapted(FORMS, "add-adapters rank=2 alpha=3 on=*");
    let record = AdaptersRecord::read(&g).unwrap().unwrap();
    let names: Vec<&str> = record.adapters.iter().map(|a| a.weight.as_str()).collect();
    assert_eq!(names.len(), 6, "{names:?}");
    let feeds = feeds(&source);
    let before = run(&source, &feeds);
    assert_eq!(distance(&before, &run(&g, &feeds)), 0.0);
    let proof = prove_equal(&source, &g, &ProofOptions::default());
    assert!(proof.proved, "{:?}", proof.reason);
    trained(&mut g);
    let with = run(&g, &feeds);
    for (name, t) in &with {
        assert!(max_abs(&t.to_f64(), &before[name].to_f64()) > 1e-2, "`{name}` does not depend on its adapter");
    }
    let nodes = g.op_count();
    assert_eq!(merge_adapters(&mut g).unwrap().merged, 6);
    assert!(g.op_count() < nodes && !AdaptersRecord::is_in(&g));
    assert!(g.nodes().all(|n| !g.node(n).name.contains("lora")));
    let apart = distance(&with, &run(&g, &feeds));
    assert!(apart < 2e-6, "{apart}");
}

/// Adapters and their masters' types: a half-precision network has half-precision adapters, rounded once when merged.
#[test]
fn adapters_of_a_half_precision_weight_are_of_its_type() {
    let text = "g (float16[2, 3] x) => (float16[2, 3] y) <float16[3, 3] w = {…}> { f = MatMul (x, w) y = Add (x, f) }";
    let (source, mut g) = adapted(text, "add-adapters rank=2");
    let ty = |name: &str| g.initializer(g.find(name).unwrap()).unwrap().dtype();
    assert_eq!([ty("w.lora_a"), ty("w.lora_b")], [DType::F16; 2]);
    trained(&mut g);
    let feeds = feeds(&source);
    let with = run(&g, &feeds);
    merge_adapters(&mut g).unwrap();
    assert_eq!(g.initializer(g.find("w").unwrap()).unwrap().dtype(), DType::F16);
    assert!(distance(&with, &run(&g, &feeds)) < 2e-3);
}

/// Against PyTorch's of `torch_numbers/lora.py`.
#[test]
fn gradients_of_adapters_are_pytorch_s() {
    let numbers = read_npz(&data("torch_numbers/lora.npz"));
    for (net, maps, tolerance) in [("lora", 4, 1e-12), ("lora_conv", 2, 2e-6)] {
        let dir = tempfile::tempdir().unwrap();
        let (path, out) = (text(&data(&format!("torch_numbers/{net}.onnx"))), text(dir.path()) + "/");
        let lora = ["--lora", "2", "--lora-alpha", "3", "--lora-on", "*"];
        let rest = ["--loss", "mse", "--optimizer", "none", "--state", "inline", "--batch", "keep"];
        tool_ok(&[&[path.as_str(), "-o", &out][..], &lora, &rest].concat());
        let of = |n: &String| n.strip_prefix(net)?.strip_prefix('/').map(String::from);
        let own: Tensors = numbers.iter().filter_map(|(n, t)| Some((of(n)?, t.clone()))).collect();
        let fed = |n: &str| !n.ends_with(".grad") && n != "loss";
        let feeds: Tensors = own.iter().filter(|(n, _)| fed(n)).map(|(n, t)| (n.clone(), t.clone())).collect();
        let got = open_file(&dir.path().join(format!("{net}.ancre.train.onnx"))).bare().run(&feeds).unwrap();
        let gradients: Vec<&String> = got.keys().filter(|n| n.ends_with(".grad")).collect();
        assert_eq!(gradients.len(), 2 * maps, "{gradients:?}");
        for name in gradients {
            let (a, b) = (got[name].to_f64(), own[name].to_f64());
            let largest = b.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            let error = max_abs(&a, &b) / largest;
            assert!(error <= tolerance, "{net} {name}: off by {error:.2e}");
        }
    }
}

/// A run of three steps on random numbers; the folder with the forward graph and the state.
fn trained_mlp(dir: &Path, flags: &[&str]) {
    let out = text(dir) + "/";
    let lora = ["--lora", "2", "--lora-alpha", "4", "--loss", "mse"];
    tool_ok(&[&[text(&model("deep_mlp")).as_str(), "-o", &out][..], &lora, flags].concat());
    let mut random = Random(3);
    let arrays = [("observation", 24), ("target", 6)].map(|(name, width)| {
        (name.to_string(), vec![12, width], random.normals(12 * width).iter().map(|v| *v as f32).collect())
    });
    write_npz(&dir.join("data.npz"), &arrays);
    let (train, data) = (text(&dir.join("deep_mlp.ancre.train.onnx")), text(&dir.join("data.npz")));
    tool_ok(&[
        "train",
        &train,
        "--data",
        &data,
        "--steps",
        "3",
        "--batch-size",
        "4",
        "--lr",
        "0.1",
        "--out",
        &text(&dir.join("run")),
    ]);
}

#[test]
fn a_stock_session_loads_the_adapter_beside_an_untouched_base() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&dir.path().join(name));
    trained_mlp(dir.path(), &[]);
    let (forward, state) = (path("deep_mlp.ancre.onnx"), path("run/last.safetensors"));
    // The state holds adapters and the router, nothing of the base.
    let names: Vec<String> = read_safetensors(&path("run/last.safetensors"));
    let ours = |n: &String| n.contains(".lora_a") || n.contains(".lora_b") || n.starts_with("ancre.");
    assert!(names.iter().all(ours) && names.len() > 100, "{names:?}");
    tool_ok(&["freeze", &forward, "--state", &state, "--adapter", &path("mine.safetensors"), "--prune", "0"]);
    tool_ok(&["freeze", &forward, "--state", &state, "-o", &path("merged.onnx"), "--prune", "0"]);
    let script = text(&data("adapter.py"));
    let arguments = [script, path("mine.onnx"), path("mine.onnx_adapter"), path("merged.onnx")];
    let out = Command::new(python()).args(&arguments).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let said: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let [with, without] = ["with", "without"].map(|key| said[key].as_f64().unwrap());
    assert!(with < 2e-6 && without > 1e-2, "{said}");
    // PEFT's description has one name: that of another adapter stays, one's own is written again.
    let other = path("other");
    tool_ok(&[text(&model("deep_mlp")).as_str(), "-o", &path("other/"), "--lora", "3", "--loss", "mse", "--verify", "none"]);
    let other_forward = format!("{other}/deep_mlp.ancre.onnx");
    let ran = tool(&["freeze", &other_forward, "--adapter", &path("other.safetensors")]);
    assert!(ran.status == 2 && ran.err.contains("describes another adapter"), "{}", ran.err);
    tool_ok(&["freeze", &other_forward, "--adapter", &(other + "/mine.safetensors")]);
    tool_ok(&["freeze", &forward, "--state", &state, "--adapter", &path("mine.safetensors"), "--prune", "0"]);
    // What both formats hold.
    let (base, _) = read_model(&dir.path().join("mine.onnx")).unwrap();
    let record = AdaptersRecord::read(&base).unwrap().unwrap();
    assert_eq!(record.adapters.len() * 2, said["tensors"].as_object().unwrap().len());
    let config: serde_json::Value = serde_json::from_slice(&std::fs::read(path("adapter_config.json")).unwrap()).unwrap();
    assert_eq!((config["r"].as_i64(), config["lora_alpha"].as_i64()), (Some(2), Some(4)));
    let modules = config["target_modules"].as_array().unwrap();
    assert_eq!(modules.len(), record.adapters.len());
    let peft = read_safetensors(&path("mine.safetensors"));
    for module in modules {
        for part in ["A", "B"] {
            let name = format!("base_model.model.{}.lora_{part}.weight", module.as_str().unwrap());
            assert!(peft.contains(&name), "{name} is not among {peft:?}");
        }
    }
    // The weights of the base are those before training.
    let (source, _) = read_model(&dir.path().join("deep_mlp.ancre.onnx")).unwrap();
    for a in &record.adapters {
        let of = |g: &Graph| g.initializer(g.find(&a.weight).unwrap()).unwrap().to_f64().unwrap();
        assert_eq!(of(&base), of(&source), "{}", a.weight);
    }
}

fn read_safetensors(path: &str) -> Vec<String> {
    let bytes = std::fs::read(path).unwrap();
    safetensors::SafeTensors::deserialize(&bytes).unwrap().names().into_iter().map(String::from).collect()
}

#[test]
fn what_gets_no_adapter_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let out = text(dir.path()) + "/";
    let said = |name: &str, glob: &str| {
        let ran = tool(&[text(&model(name)).as_str(), "-o", &out, "--lora", "2", "--lora-on", glob, "--verify", "none"]);
        assert_eq!(ran.status, 2, "{}", ran.out);
        ran.err
    };
    let e = said("gpt2", "nothing-*");
    assert!(e.contains("`nothing-*`") && e.contains("--lora-on GLOB"), "{e}");
    // A convolution in groups.
    let e = said("mobilenetv2", "*features.3/conv/conv.1/conv.1.0/Conv");
    assert!(e.contains("groups"), "{e}");
    assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
}

#[test]
fn a_quantised_base_keeps_its_integers() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (model("resnet_cifar_qdq"), text(dir.path()) + "/");
    tool_ok(&[text(&source).as_str(), "-o", &out, "--lora", "2", "--verify", "none", "--state", "inline"]);
    let path = dir.path().join("resnet_cifar_qdq.ancre.train.onnx");
    let mut feeds = random_data(&path);
    feeds.insert("lr".into(), floats(DType::F32, &[], &[2e-3]));
    let (mut session, mut state) = (open_file(&path), Tensors::new());
    let mut step = || advance(&mut session, feeds.clone(), &mut state)["loss"].to_f64()[0];
    let losses = [step(), step(), step(), step()];
    assert!(losses[3] < losses[0], "{losses:?}");
    assert!(state.keys().all(|n| n.contains(".lora_") || n.starts_with("ancre.")), "{:?}", state.keys());
    // Frozen, the adapters stay beside the integers, which are the source's.
    let (forward, frozen) = (text(&dir.path().join("resnet_cifar_qdq.ancre.onnx")), text(&dir.path().join("frozen.onnx")));
    let report = tool_ok(&["freeze", &forward, "-o", &frozen, "--json"]).json();
    assert_eq!(
        (report["adapters"]["merged"].as_u64(), report["adapters"]["beside"].as_array().unwrap().len()),
        (Some(0), 18)
    );
    let (source, frozen) = (read_model(&source).unwrap().0, read_model(Path::new(&frozen)).unwrap().0);
    for a in AdaptersRecord::read(&frozen).unwrap().unwrap().adapters {
        let of = |g: &Graph| g.initializer(g.find(&a.weight).unwrap()).unwrap().to_i64().unwrap();
        assert!(a.quantised && of(&frozen) == of(&source), "{}", a.weight);
    }
}
