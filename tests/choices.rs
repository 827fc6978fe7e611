//! What trains, and from what: `--classes`, `--freeze-backbone`, `--reinit`, `--trainable`, `--frozen`, the loss that a model shows,
//! the evaluation graph and separate state.

use crate::common::{emit, first_state, floats, max_abs, model, open_file, random_data, text, tool, tool_ok};
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Op, Tensor, TensorType};
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::files::read_model;
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Runs the tool on a model, unverified; the folder, the report and the path of an output.
fn built(name: &str, flags: &[&str]) -> (TempDir, Value) {
    let dir = tempfile::tempdir().unwrap();
    let (m, o) = (text(&model(name)), text(dir.path()));
    let mut a = vec![m.as_str(), "-o", &o, "--verify", "none", "--json"];
    a.extend(flags);
    let report = tool_ok(&a).json();
    (dir, report)
}

fn output(dir: &TempDir, name: &str, kind: &str) -> PathBuf {
    dir.path().join(format!("{name}.ancre.{kind}onnx"))
}

fn names(v: &Value) -> Vec<&str> {
    v.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

/// Random inputs of a training graph for a batch of 2, with a learning rate.
fn feeds(path: &Path, lr: f64) -> Tensors {
    let mut feeds = random_data(path);
    if feeds.contains_key("lr") {
        feeds.insert("lr".into(), floats(DType::F32, &[], &[lr]));
    }
    feeds
}

fn constant(path: &Path, name: &str) -> Vec<f64> {
    let (g, _) = read_model(path).unwrap();
    g.initializer(g.find(name).unwrap_or_else(|| panic!("{name}"))).unwrap().to_f64().unwrap()
}

#[test]
fn the_loss_is_chosen_by_what_the_model_shows() {
    let cases = [
        ("convnext", "cross-entropy"),
        ("densenet", "cross-entropy"),
        ("keras_resnetv2_nhwc", "cross-entropy"),
        ("mixer", "cross-entropy"),
        ("resnet_cifar", "cross-entropy"),
        ("swin", "cross-entropy"),
        ("vit", "cross-entropy"),
        ("gpt2", "next-token"),
        ("gpt_neox", "next-token"),
        ("llama", "next-token"),
    ];
    for (name, loss) in cases {
        let r = tool_ok(&[&text(&model(name)), "--dry-run", "--verify", "none", "--json"]).json();
        assert_eq!(r["training"]["loss"], loss, "{name}");
    }
    for (name, why) in [
        ("deep_mlp", "next-token (language models), mse, l1"),
        ("dit", "mse, l1, huber, bce or own"),
        ("bert", "--output NAME"),
    ] {
        let ran = tool(&[&text(&model(name)), "--dry-run", "--verify", "none", "--loss", "auto"]);
        assert!(ran.status == 2 && ran.err.contains(why), "{name}: {}", ran.err);
    }
    // Who asks for a head of so many classes has labels.
    let r = tool_ok(&[&text(&model("deep_mlp")), "--dry-run", "--verify", "none", "--json", "--classes", "7"]).json();
    assert_eq!(r["training"]["loss"], "cross-entropy");
}

#[test]
fn a_fresh_head_on_a_frozen_backbone() {
    for name in ["resnet_cifar", "vit", "convnext", "keras_resnetv2_nhwc", "swin"] {
        let (dir, r) = built(name, &["--classes", "7", "--freeze-backbone", "--optimizer", "sgd"]);
        let trained = names(&r["training"]["trainable"]);
        let weights: Vec<&&str> = trained.iter().filter(|n| !n.starts_with("ancre.")).collect();
        assert!(weights.len() == 2, "{name}: {weights:?}");
        let path = output(&dir, name, "train.");
        let (out, first) = (open_file(&path).run(&feeds(&path, 0.1)).unwrap(), first_state(&path));
        let logits = out.values().find(|t| t.shape().len() == 2 && t.shape()[1] == 7);
        assert!(logits.is_some(), "{name}: no logits of 7 classes");
        // Nothing but the head, the router and the counter has a next value: batch normalisation stays as in evaluation.
        let next: Vec<&str> = out.keys().filter_map(|n| n.strip_suffix(".next")).collect();
        assert_eq!(next.len(), trained.len() + 1, "{name}: {next:?}");
        for w in &weights {
            assert!(max_abs(&out[&format!("{w}.next")].to_f64(), &first[**w].to_f64()) > 0.0, "{name}: {w} does not move");
        }
    }
    // What counts no classes gets no new ones.
    let ran = tool(&[&text(&model("dit")), "--dry-run", "--classes", "7", "--loss", "mse"]);
    assert!(ran.status == 2 && ran.err.contains("is no classifier"), "{}", ran.err);
}

#[test]
fn fresh_weights_follow_the_seed_and_pytorch_s_bounds() {
    let start = |seed: &str| built("resnet_cifar", &["--reinit", seed, "--no-train"]);
    let ((a, r), (b, _), (c, _)) = (start("1"), start("1"), start("2"));
    let of = |dir: &TempDir, name: &str| constant(&output(dir, "resnet_cifar", ""), name);
    assert_eq!(of(&a, "fc.weight"), of(&b, "fc.weight"));
    assert_ne!(of(&a, "fc.weight"), of(&c, "fc.weight"));
    let bound = 1.0 / (of(&a, "fc.weight").len() as f64 / 10.0).sqrt();
    let largest = of(&a, "fc.weight").iter().fold(0.0, |m: f64, v| m.max(v.abs()));
    assert!(largest <= bound && largest > 0.9 * bound, "{largest} within {bound}");
    assert!(of(&a, "layer1.0.bn1.weight").iter().all(|v| *v == 1.0));
    assert!(of(&a, "layer1.0.bn1.bias").iter().all(|v| *v == 0.0));
    let warns = |r: &Value| names(&r["notices"]).iter().any(|n| n.contains("folded into the convolutions"));
    assert!(!warns(&r));
    for flags in [&["--reinit", "1"][..], &["--preset", "paper"], &[]] {
        assert!(warns(&built("resnet_cifar_folded", flags).1), "{flags:?}");
    }
    assert!(!warns(&built("resnet_cifar_folded", &["--no-train"]).1));
}

#[test]
fn globs_and_lists_choose_what_trains() {
    let all = built("resnet_cifar", &[]).1;
    let (_, r) = built("resnet_cifar", &["--frozen", "layer1.*", "--frozen", "*.bias"]);
    let left = names(&r["training"]["trainable"]);
    assert!(!left.is_empty() && left.len() < names(&all["training"]["trainable"]).len());
    assert!(left.iter().all(|n| !n.starts_with("layer1.") && !n.ends_with(".bias")), "{left:?}");
    assert!(names(&r["training"]["frozen"]).contains(&"layer1.0.conv1.weight"));
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("names.txt");
    std::fs::write(&list, "fc.weight\n\nconv1.weight\n").unwrap();
    let (_, r) = built("resnet_cifar", &["--trainable-from", &text(&list), "--chains", "none"]);
    assert_eq!(names(&r["training"]["trainable"]), ["conv1.weight", "fc.weight"]);
    // What does not train by its role does when asked to.
    let (_, r) = built("gpt_neox", &[]);
    let fixed = names(&r["training"]["frozen"])[0].to_string();
    let (_, r) = built("gpt_neox", &["--trainable", &fixed]);
    assert!(names(&r["training"]["trainable"]).contains(&fixed.as_str()), "{fixed}");
    for (flags, why) in [
        (["--frozen", "nothing*"], "no initializer matches"),
        (["--trainable", "no"], "no initializer matches"),
        (["--frozen", "*"], "`conv1.weight`, for one) are frozen by option; let --frozen GLOB match fewer"),
    ] {
        let mut a = ["--dry-run", "--chains", "none"].map(String::from).to_vec();
        a.insert(0, text(&model("resnet_cifar")));
        a.extend(flags.map(String::from));
        let ran = tool(&a);
        assert!(ran.status == 2 && ran.err.contains(why), "{}", ran.err);
    }
}

#[test]
fn the_graphs_agree_wherever_their_state_lies() {
    let built = |flags: &[&str]| built("vit", &[&["--eval-graph", "--infer-graph"], flags].concat());
    let (inline, r) = built(&["--state", "inline"]);
    let kinds = |r: &Value| -> Vec<String> {
        r["outputs"].as_array().unwrap().iter().map(|o| o["kind"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(kinds(&r), ["forward", "train", "eval", "infer"]);
    let path = |dir: &TempDir, kind: &str| output(dir, "vit", kind);
    // Zero moments take no room: the training graph holds the weights once.
    let size = |p: PathBuf| std::fs::metadata(p).unwrap().len() as f64;
    let (forward, train) = (size(path(&inline, "")), size(path(&inline, "train.")));
    assert!(train < 2.5 * forward, "{train} against {forward}");
    let data = feeds(&path(&inline, "train."), 0.0);
    let of_model: Tensors =
        data.iter().filter(|(n, _)| !["lr", "labels"].contains(&n.as_str())).map(|(n, t)| (n.clone(), t.clone())).collect();
    let mut plain = data.clone();
    plain.shift_remove("lr");
    let want = open_file(&path(&inline, "train.")).bare().run(&data).unwrap()["loss"].to_f64()[0];
    let logits = open_file(&path(&inline, "")).run(&of_model).unwrap();
    let near = |a: &Tensors, b: &Tensors, name: &str| max_abs(&a[name].to_f64(), &b[name].to_f64()) < 1e-5;
    let (init, r) = built(&[]);
    assert_eq!(kinds(&r), ["forward", "train", "eval", "infer", "init"]);
    let (apart, r) = built(&["--state", "separate"]);
    assert_eq!(kinds(&r), ["forward", "train", "eval", "infer", "state"]);
    for dir in [&inline, &init, &apart] {
        let train_file = path(dir, "train.");
        assert!((open_file(&train_file).run(&data).unwrap()["loss"].to_f64()[0] - want).abs() < 1e-6);
        let first = first_state(&train_file);
        let fed = |mut feeds: Tensors, kind: &str| {
            let mut session = open_file(&path(dir, kind)).bare();
            let asks = session.inputs().to_vec();
            let asked = first.iter().filter(|(n, _)| asks.contains(n)).map(|(n, t)| (n.clone(), t.clone()));
            let asked: Tensors = asked.collect();
            // State that is asked for cannot be left out.
            assert_eq!(session.run(&feeds).is_err(), !asked.is_empty(), "{kind}");
            assert_eq!(asked.is_empty(), std::ptr::eq(dir, &inline), "{kind}");
            feeds.extend(asked);
            session.run(&feeds).unwrap()
        };
        let eval = fed(plain.clone(), "eval.");
        assert!((eval["loss"].to_f64()[0] - want).abs() < 1e-6 && !eval.keys().any(|n| n.ends_with(".next")));
        let infer = fed(of_model.clone(), "infer.");
        assert!(infer.keys().eq(logits.keys()) && infer.keys().all(|n| near(&infer, &logits, n)), "{:?}", infer.keys());
    }
    // What lies outside is whole: moments too, which take no room in a graph that gives them.
    for dir in [&init, &apart] {
        assert!(size(path(dir, "train.")) < train - 0.7 * forward);
        let first = first_state(&path(dir, "train."));
        assert_eq!(first["head.weight.exp_avg"].shape(), first["head.weight"].shape());
    }
    assert!(size(path(&init, "init.")) < 1.3 * forward);
    let given = open_file(&path(&init, "init.")).bare().run(&Tensors::new()).unwrap();
    assert!(given.iter().eq(first_state(&path(&init, "train.")).iter()), "ONNX Runtime gives what the tool reads");
    // Metadata for those whose runtime shows none of a model's.
    let bytes = std::fs::read(apart.path().join("vit.ancre.state.safetensors")).unwrap();
    let (_, about) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let states: Vec<Value> = serde_json::from_str(&about.metadata().as_ref().unwrap()["ancre.state"]).unwrap();
    assert_eq!(states.len(), given.len());
}

/// One tensor used twice is one parameter: its gradient is the sum of both uses'. Equal ones that an exporter merged are two.
#[test]
fn tied_weights_stay_tied_and_merged_ones_do_not() {
    let ty = || TensorType::new(DType::F32, [Dim::symbol("n"), Dim::from(3)]);
    let network = |tied: bool| {
        let mut g = Graph::default();
        let x = g.add_input("x", ty().into(), None);
        let values = [0.5, -0.1, 0.2, 0.3, 0.8, -0.6, 0.1, 0.4, 0.9];
        let first = g.add_initializer("w", Tensor::f32s(&[3, 3], &values), false);
        let second = if tied { first } else { g.add_initializer("v", Tensor::f32s(&[3, 3], &values), false) };
        let scale = g.add_initializer("ones", Tensor::f32s(&[3], &[1.0; 3]), false);
        let bias = g.add_initializer("zeros", Tensor::f32s(&[3], &[0.0; 3]), false);
        let mut y = x;
        for (name, w) in [("one", first), ("two", second)] {
            let node = g.add_op(&format!("{name}/mm"), Op::new("MatMul", Attrs::new()), &[Some(y), Some(w)]);
            y = g.push_result(node, &format!("{name}.product"), ty().into());
            let node = g.add_op(name, Op::new("LayerNormalization", Attrs::new()), &[Some(y), Some(scale), Some(bias)]);
            y = g.push_result(node, name, ty().into());
        }
        g.add_output(y, None);
        g
    };
    let run = |tied: bool| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.onnx");
        std::fs::write(&path, emit(&network(tied))).unwrap();
        let a = [&text(&path), "-o", &text(dir.path()), "--loss", "mse", "--optimizer", "none", "--verify", "none"];
        tool_ok(&a);
        let x = floats(DType::F32, &[2, 3], &[1.0, -1.0, 0.5, 0.2, 0.3, -0.4]);
        let target = floats(DType::F32, &[2, 3], &[0.5, 0.1, -0.5, -1.0, 0.3, 0.4]);
        open_file(&dir.path().join("m.ancre.train.onnx"))
            .run(&Tensors::from([("x".into(), x), ("target".into(), target)]))
            .unwrap()
    };
    let (tied, apart) = (run(true), run(false));
    let sum: Vec<f64> = apart["w.grad"].to_f64().iter().zip(apart["v.grad"].to_f64()).map(|(a, b)| a + b).collect();
    assert!(max_abs(&tied["w.grad"].to_f64(), &sum) < 1e-6);
    for name in ["one.scale", "two.scale", "one.bias", "two.bias"] {
        assert!(tied.contains_key(&format!("{name}.grad")), "{name}: {:?}", tied.keys().collect::<Vec<_>>());
    }
}
