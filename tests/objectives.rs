//! Losses in whole runs: teachers, several outputs, weights of classes, groups of parameters, and what `train` says of them.

use crate::common::{
    Random, advance, data, emit, floats, model, open_file, random_data, read_npz, text, tool, tool_ok, write_npz,
    write_safetensors,
};
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Op, Tensor, TensorType};
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::files::read_model;
use ancre_rewrite::io::tensor::NpTensor;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The training graph of a model with these flags.
fn train(source: &Path, dir: &Path, flags: &[&str]) -> PathBuf {
    let (m, o) = (text(source), text(dir) + "/");
    tool_ok(&[&[m.as_str(), "-o", &o, "--verify", "none"], flags].concat());
    dir.join(format!("{}.ancre.train.onnx", source.file_stem().unwrap().to_str().unwrap()))
}

fn loss(out: &Tensors) -> f64 {
    out["loss"].to_f64()[0]
}

/// A run of `train`: its report and the lines of its log.
fn trained(graph: &Path, arrays: &Path, flags: &[&str]) -> (Value, Vec<Value>) {
    let (g, d) = (text(graph), text(arrays));
    let dir = graph.with_file_name("run");
    let common = ["--device", "cpu", "--json", "--overwrite", "--out", dir.to_str().unwrap()];
    let report = tool_ok(&[&["train", &g, "--data", &d], &common[..], flags].concat()).json();
    let log = std::fs::read_to_string(dir.join("log.jsonl")).unwrap();
    (report, log.lines().map(|l| serde_json::from_str(l).unwrap()).collect())
}

/// A rewritten network computes what its source does, so the distance from the source is zero until a weight moves.
#[test]
fn a_rewritten_network_starts_at_its_source() {
    for (name, flags) in [("gpt2", &[][..]), ("vit", &[]), ("swin", &[]), ("mixer", &[]), ("resnet_cifar", &["--frozen-bn"])]
    {
        let dir = tempfile::tempdir().unwrap();
        let flags = [&["--distill", "source:2", "--optimizer", "sgd"], flags].concat();
        let path = train(&model(name), dir.path(), &flags);
        let (g, _) = read_model(&path).unwrap();
        let mut feeds = random_data(&path);
        assert!(!feeds.keys().any(|n| n == "labels" || n == "target"), "{name}");
        feeds.insert("lr".into(), floats(DType::F32, &[], &[0.0]));
        let mut session = open_file(&path);
        let out = session.run(&feeds).unwrap();
        assert!(loss(&out).abs() < 2e-6, "{name}: {}", loss(&out));
        // The teacher stays where a weight moves.
        let state = crate::common::first_state(&path);
        let moved = |t: &NpTensor| {
            NpTensor::f32s(t.shape(), &t.to_f32().iter().map(|v| v * 1.2 + 0.01).collect::<Vec<_>>()).unwrap()
        };
        assert!(
            state.keys().all(|n| !n.starts_with("teacher/")) && g.nodes().any(|n| g.site(n).name.starts_with("teacher/"))
        );
        feeds.extend(state.iter().filter(|(_, t)| t.dtype() == DType::F32).map(|(n, t)| (n.clone(), moved(t))));
        let out = session.run(&feeds).unwrap();
        assert!(loss(&out) > 1e-4, "{name}: {}", loss(&out));
    }
}

/// A loss that begins at zero does not jump, at a rate that is given and without one; rates cannot be told by it.
#[test]
fn a_network_that_is_its_own_teacher_trains() {
    let dir = tempfile::tempdir().unwrap();
    let path = train(&model("deep_mlp"), dir.path(), &["--distill", "source"]);
    let npz = dir.path().join("x.npz");
    let x = Random(1).normals(256 * 24);
    write_npz(&npz, &[("observation".into(), vec![256, 24], x.iter().map(|v| *v as f32).collect())]);
    for flags in [&["--lr", "1e-3"][..], &[]] {
        let (report, log) = trained(&path, &npz, &[&["--steps", "40", "--batch-size", "32"], flags].concat());
        assert_eq!((report["steps"].as_u64(), report["jumps"].as_array().unwrap().len()), (Some(40), 0), "{report}");
        let losses: Vec<f64> = log.iter().map(|l| l["loss"].as_f64().unwrap()).collect();
        assert!(losses[0].abs() < 1e-6 && losses[39] < 0.05, "{losses:?}");
        assert!(
            flags.len() == 2 || report["lr"]["trial"]["tried"].as_array().unwrap().iter().all(|t| t["loss"].is_null()),
            "{report}"
        );
    }
}

/// Data without labels are enough: a network with fresh weights learns what its source says.
#[test]
fn a_fresh_network_learns_from_its_source_without_labels() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--reinit", "3", "--loss", "distill-mse", "--eval-graph"];
    let path = train(&model("deep_mlp"), dir.path(), &flags);
    let npz = dir.path().join("x.npz");
    let x = Random(1).normals(256 * 24);
    write_npz(&npz, &[("observation".into(), vec![256, 24], x.iter().map(|v| *v as f32).collect())]);
    let (report, _) = trained(&path, &npz, &["--epochs", "12", "--batch-size", "32", "--lr", "3e-3", "--val-split", "0.25"]);
    let (first, last) = (report["loss"]["first"].as_f64().unwrap(), report["loss"]["last_epoch"].as_f64().unwrap());
    let held_back = report["validation"]["loss"].as_f64().unwrap();
    assert!(last < 0.5 * first && held_back < 0.7 * first, "{first} {last} {held_back}");
}

#[test]
fn a_teacher_that_does_not_fit_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = text(dir.path()) + "/";
    let m = text(&model("resnet_cifar"));
    for (flags, said) in [
        (vec!["--distill".to_string(), text(&model("deep_mlp"))], "the teacher reads f32[batch,24] `observation`"),
        (vec!["--distill".into(), "source".into(), "--classes".into(), "3".into()], "the teacher's is f32[batch,10]"),
        (vec!["--distill".into(), "output=none".into()], "no output `none` to learn from"),
        (vec!["--distill".into(), "source:0".into()], "a temperature above 0"),
        (vec!["--distill".into(), "no.onnx".into()], "no.onnx"),
        (vec!["--loss".into(), "mse:logits:0".into()], "every loss has the weight 0"),
        (vec!["--loss".into(), "mse:nothing:0.5".into()], "the model has no output `nothing`"),
        (vec!["--loss".into(), "nothing".into()], "cross-entropy, next-token"),
        (vec!["--loss".into(), "mse:logits:nan".into()], "a weight of 0 or more"),
        (
            ["--loss", "focal", "--loss", "focal:logits:0.5"].map(String::from).into(),
            "the loss focal of output `logits` is asked for twice",
        ),
        (vec!["--mask".into(), "labels".into()], "a mask needs another name"),
        (vec!["--mask".into(), "m".into(), "--mask".into(), "n".into()], "one output has two"),
        (vec!["--class-weights".into(), "1,2".into()], "has 10 classes, and there are 2 class weights"),
        (vec!["--group".into(), "no.*=lr*2".into()], "no trained tensor is of the group `no.*`"),
        (vec!["--group".into(), "fc=2".into()], "GLOB=lr*X,decay=Y was expected"),
    ] {
        let ran = tool(&[&[m.clone(), "-o".into(), out.clone(), "--verify".into(), "none".into()], &flags[..]].concat());
        assert!(ran.status == 2 && ran.err.contains(said), "{flags:?}: {}", ran.err);
    }
}

/// Two outputs, three losses: the sum is that of the parts, and `train` reports each.
#[test]
fn several_losses_are_reported_each() {
    let dir = tempfile::tempdir().unwrap();
    let flags =
        ["--loss", "cross-entropy:logits", "--loss", "mse:aux:0.5", "--loss", "focal:logits:0", "--eval-graph", "--json"];
    let path = train(&data("torch_numbers/two.onnx"), dir.path(), &flags);
    let (g, _) = read_model(&path).unwrap();
    let record: Value = serde_json::from_str(&g.metadata["ancre.loss"]).unwrap();
    assert_eq!((&record["kind"], &record["target"]), (&"cross-entropy".into(), &"logits.labels".into()));
    let terms: Vec<(&str, f64, &str)> = record["terms"]
        .as_array()
        .unwrap()
        .iter()
        .map(|t| (t["value"].as_str().unwrap(), t["weight"].as_f64().unwrap(), t["target"].as_str().unwrap()))
        .collect();
    let want = [
        ("logits.cross-entropy", 1.0, "logits.labels"),
        ("aux.mse", 0.5, "aux.target"),
        ("logits.focal", 0.0, "logits.labels"),
    ];
    assert_eq!(terms, want);
    let numbers = read_npz(&data("torch_numbers/losses.npz"));
    let case = "cross-entropy:logits:0.7 --loss mse:aux:0.3 --loss focal:logits/in";
    let mut feeds = Tensors::from([("x".to_string(), numbers["x"].clone()), ("lr".into(), floats(DType::F32, &[], &[0.1]))]);
    for name in ["logits.labels", "aux.target"] {
        feeds.insert(name.into(), numbers[&format!("{case}/{name}")].clone());
    }
    let out = open_file(&path).run(&feeds).unwrap();
    let value = |name: &str| out[name].to_f64()[0];
    assert!((value("loss") - value("logits.cross-entropy") - 0.5 * value("aux.mse")).abs() < 1e-6);
    let set = dir.path().join("set.safetensors");
    let four = |name: &str, shape: &[usize]| {
        let t = &feeds[name];
        NpTensor::from_f64s(t.dtype(), shape, &t.to_f64().repeat(4)).unwrap()
    };
    let (x, labels, numbers) = (four("x", &[32, 5]), four("logits.labels", &[32]), four("aux.target", &[32, 4]));
    write_safetensors(
        &set,
        &[("x", x), ("logits.labels", labels), ("aux.target", numbers)].map(|(n, t)| (n.to_string(), t)).into(),
        None,
    );
    let (report, log) = trained(
        &path,
        &set,
        &[
            "--steps",
            "6",
            "--batch-size",
            "8",
            "--lr",
            "0.01",
            "--val-split",
            "0.25",
            "--metric",
            "top-5",
            "--metric",
            "mae",
        ],
    );
    let first = &log[0];
    let named: Vec<&String> = first["losses"].as_object().unwrap().keys().collect();
    assert_eq!(named, ["aux.mse", "logits.cross-entropy", "logits.focal"]);
    let sum = first["losses"]["logits.cross-entropy"].as_f64().unwrap() + 0.5 * first["losses"]["aux.mse"].as_f64().unwrap();
    assert!((sum - first["loss"].as_f64().unwrap()).abs() < 1e-5, "{first}");
    assert!(first["accuracies"]["logits"].is_number() && first["accuracy"] == first["accuracies"]["logits"], "{first}");
    let last = log.last().unwrap();
    assert!(last["val_losses"]["aux.mse"].is_number() && last["val_accuracies"]["logits"].is_number(), "{last}");
    assert_eq!(last["val_metrics"]["top-5"], 1.0, "{last}");
    assert!(last["val_metrics"]["mae"].is_number() && report["losses"]["aux.mse"].is_number(), "{last} {report}");
}

/// `train` weights classes by how seldom they are: as if the weights had been given.
/// The validation of a CTC loss tells how far what the frames spell is from the labels, whichever axis holds the frames.
#[test]
fn spellings_have_an_error_rate() {
    let (samples, frames, classes) = (12, 6, 4);
    let x: Vec<f64> = Random(5).normals(samples * frames * 5);
    for time_first in [false, true] {
        let turn = if time_first { "y = Transpose <perm = [1, 0, 2]> (m)" } else { "y = Identity (m)" };
        let shape = if time_first { "6, n, 4" } else { "n, 6, 4" };
        let net = format!(
            "net (float[n, 6, 5] x) => (float[{shape}] y) <float[5, 4] w = {{0.5, -1, 2, 0.25, -0.75, 1.5, -2, 1, 1, 0.5, -0.5, -1, 2, -2, 0.125, 0.75, -1.25, 0.5, 1, -0.25}}> {{ m = MatMul (x, w) {turn} }}"
        );
        let g = ancre_passes::text::parse(&net).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("net.onnx");
        std::fs::write(&source, emit(&g)).unwrap();
        let feeds = Tensors::from([("x".to_string(), floats(DType::F32, &[samples, frames, 5], &x))]);
        let y = open_file(&source).run(&feeds).unwrap()["y"].to_f64();
        let of = |n: usize, t: usize| (if time_first { t * samples + n } else { n * frames + t }) * classes;
        // What the frames spell; 0 is the blank.
        let best = |at: usize| (0..classes).fold(0, |b, c| if y[at + c] > y[at + b] { c } else { b });
        let spelt: Vec<Vec<f64>> = (0..samples)
            .map(|n| {
                let mut all: Vec<usize> = (0..frames - n % 2).map(|t| best(of(n, t))).collect();
                all.dedup();
                all.into_iter().filter(|c| *c != 0).map(|c| c as f64).collect()
            })
            .collect();
        let path = train(&source, dir.path(), &["--loss", "ctc"]);
        // One label too many in every third sample.
        for more in [0, 1] {
            let labels: Vec<Vec<f64>> = spelt
                .iter()
                .enumerate()
                .map(|(n, s)| [s.as_slice(), &vec![1.0; if n % 3 == 0 { more } else { 0 }]].concat())
                .collect();
            let padded = |l: &Vec<f64>| [l.as_slice(), &vec![-100.0; 8 - l.len()]].concat();
            let ints = |shape: &[usize], v: Vec<f64>| NpTensor::from_f64s(DType::I64, shape, &v).unwrap();
            let set = Tensors::from([
                ("x".to_string(), feeds["x"].clone()),
                ("labels".into(), ints(&[samples, 8], labels.iter().flat_map(padded).collect())),
                ("input_lengths".into(), ints(&[samples], (0..samples).map(|n| (frames - n % 2) as f64).collect())),
                ("target_lengths".into(), ints(&[samples], labels.iter().map(|l| l.len() as f64).collect())),
            ]);
            let file = dir.path().join("set.safetensors");
            write_safetensors(&file, &set, None);
            let val = self::text(&file);
            let (report, _) = trained(&path, &file, &["--val", &val, "--steps", "1", "--lr", "1e-12", "--batch-size", "4"]);
            let count: usize = labels.iter().map(Vec::len).sum();
            let want = (4 * more) as f64 / count as f64;
            assert_eq!(report["metrics"]["label-error-rate"].as_f64(), Some(want), "{time_first} {more}: {report}");
        }
    }
}

#[test]
fn classes_are_balanced_by_the_training_data() {
    let dir = tempfile::tempdir().unwrap();
    let x: Vec<f32> = Random(4).normals(24 * 24).iter().map(|v| *v as f32).collect();
    // Of 24 labels 12, 6, 4 and 2; classes 4 and 5 are never there.
    let labels: Vec<i64> = [(0, 12), (1, 6), (2, 4), (3, 2)].into_iter().flat_map(|(c, n)| vec![c; n]).collect();
    let set = dir.path().join("set.safetensors");
    let (x, labels) = (NpTensor::f32s(&[24, 24], &x).unwrap(), NpTensor::i64s(&[24], &labels).unwrap());
    write_safetensors(&set, &[("observation", x), ("labels", labels)].map(|(n, t)| (n.to_string(), t)).into(), None);
    let run = |weights: &str| {
        let out = dir.path().join(weights.replace(',', "_"));
        let path = train(&model("deep_mlp"), &out, &["--loss", "cross-entropy", "--class-weights", weights]);
        trained(&path, &set, &["--steps", "3", "--batch-size", "8", "--lr", "1e-3"])
    };
    let weights: Vec<String> =
        [12.0, 6.0, 4.0, 2.0].map(|n| (24.0 / (6.0 * n)).to_string()).into_iter().chain(["1".into(), "1".into()]).collect();
    let ((balanced, a), (_, b)) = (run("balanced"), run(&weights.join(",")));
    assert!(balanced["notices"].to_string().contains("2 of 6 classes have no label"), "{}", balanced["notices"]);
    for (a, b) in a.iter().zip(&b) {
        let (a, b) = (a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap());
        assert!((a - b).abs() < 1e-5 * b, "{a} {b}");
    }
}

/// A group's rate and decay are its own; the updates are the optimiser's formula with them.
#[test]
fn groups_have_rates_and_decays_of_their_own() {
    let net = "net (float[n, 4] x) => (float[n, 4] h2) <float[4, 4] w = {…}, float[4, 4] v = {…}, float[4] bias = {…}> {
        f = MatMul (x, w) h1 = Add (x, f) g = MatMul (h1, v) k = Add (g, bias) h2 = Add (h1, k) }";
    for optimizer in [
        &["--optimizer", "adamw", "--router-lr-scale", "2"][..],
        &["--optimizer", "adam", "--weight-decay", "0.1"],
        &["--optimizer", "sgd", "--momentum", "0.9", "--accumulate", "2"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("net.onnx");
        std::fs::write(&source, emit(&ancre_passes::text::parse(net).unwrap())).unwrap();
        let groups = [
            "--group",
            "bias=lr*3,decay=0",
            "--group",
            "*logits=lr*0.5,decay=0.1",
            "--group",
            "w=decay=0.3",
            "--loss",
            "mse",
        ];
        let path = train(&source, dir.path(), &[&groups[..], optimizer].concat());
        let (g, _) = read_model(&path).unwrap();
        let record: Value = serde_json::from_str(&g.metadata["ancre.optimizer"]).unwrap();
        let groups = record["groups"].as_array().unwrap();
        assert!(groups.len() == 3 && groups.iter().all(|g| !g["tensors"].as_array().unwrap().is_empty()), "{record}");
        let ran = tool(&["verify", "--gradient", &text(&path)]);
        assert_eq!(ran.status, 0, "{optimizer:?}: {}{}", ran.out, ran.err);
    }
    let step = |flags: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let flags = [&["--loss", "mse", "--optimizer", "sgd"], flags].concat();
        let path = train(&data("torch_numbers/net.onnx"), dir.path(), &flags);
        let numbers = read_npz(&data("torch_numbers/numbers.npz"));
        let row = |name: &str| {
            let one = numbers[name].slice(0, 0, 1).unwrap();
            NpTensor::new(one.dtype(), &one.shape()[1..], one.bytes().to_vec()).unwrap()
        };
        let feeds = [("x", row("x")), ("target", row("target")), ("lr", floats(DType::F32, &[], &[0.1]))];
        let out = open_file(&path).run(&feeds.map(|(n, t)| (n.to_string(), t)).into()).unwrap();
        let first = crate::common::first_state(&path);
        move |name: &str| {
            let (a, b) = (out[&format!("{name}.next")].to_f64(), first[name].to_f64());
            a.iter().zip(&b).map(|(a, b)| a - b).sum::<f64>()
        }
    };
    let (plain, grouped) = (step(&[]), step(&["--group", "w1=lr*0", "--group", "b1=lr*2", "--group", "b?=lr*3"]));
    assert!(plain("w1") != 0.0 && grouped("w1") == 0.0 && grouped("w2") == plain("w2"));
    for (b, scale) in [("b1", 2.0), ("b2", 3.0)] {
        assert!((grouped(b) - scale * plain(b)).abs() < 1e-6, "{b}");
    }
}

/// Where nothing counts there is no number and no gradient; beside other losses it is zero.
#[test]
fn what_does_not_count_has_no_gradient() {
    let numbers = read_npz(&data("torch_numbers/losses.npz"));
    let run = |flags: &[&str], feeds: &[(&str, NpTensor)]| {
        let dir = tempfile::tempdir().unwrap();
        let path = train(&data("torch_numbers/two.onnx"), dir.path(), &[&["--optimizer", "none"], flags].concat());
        let mut all = Tensors::from([("x".to_string(), numbers["x"].clone())]);
        all.extend(feeds.iter().map(|(n, t)| (n.to_string(), t.clone())));
        open_file(&path).run(&all).unwrap()
    };
    let labels = |values: &[i64]| NpTensor::i64s(&[8], values).unwrap();
    let gone = labels(&[-100; 8]);
    let zeros = |out: &Tensors, name: &str| out[name].to_f64().iter().all(|v| *v == 0.0);
    for flags in [
        &["--loss", "cross-entropy:logits"][..],
        &["--loss", "cross-entropy:logits", "--class-weights", "1,2,3,4", "--label-smoothing", "0.1"],
        &["--loss", "focal:logits"],
    ] {
        let out = run(flags, &[("labels", gone.clone())]);
        assert!(loss(&out).is_nan() && zeros(&out, "w2.grad"), "{flags:?}");
    }
    // Only a class of weight zero is there.
    let out = run(&["--loss", "cross-entropy:logits", "--class-weights", "0,1,1,1"], &[("labels", labels(&[0; 8]))]);
    assert!(loss(&out).is_nan() && zeros(&out, "w2.grad"));
    let mask = floats(DType::F32, &[8, 4], &[0.0; 32]);
    let target = floats(DType::F64, &[8, 4], &[0.5; 32]);
    let out = run(&["--loss", "mse:aux", "--mask", "mask"], &[("target", target.clone()), ("mask", mask)]);
    assert!(loss(&out).is_nan() && zeros(&out, "w3.grad"));
    let both = ["--loss", "cross-entropy:logits", "--loss", "mse:aux"];
    let out = run(&both, &[("logits.labels", gone.clone()), ("aux.target", target)]);
    assert!(loss(&out) > 0.0 && zeros(&out, "w2.grad") && !zeros(&out, "w3.grad"));
    assert_eq!(out["logits.cross-entropy"].to_f64(), [0.0]);
    // Dice of what is nowhere: all labels ignored, or a class that no one has.
    let nowhere = NpTensor::i64s(&[8, 2], &[-100; 16]).unwrap();
    let out = run(&["--loss", "dice:grid", "--class-axis", "1"], &[("labels", nowhere)]);
    assert!(loss(&out) == 0.0 && zeros(&out, "w2.grad"));
    let out = run(&["--loss", "dice:map"], &[("target", floats(DType::F64, &[8, 1, 2, 2], &[0.0; 32]))]);
    assert!(loss(&out).is_finite() && out["w3.grad"].to_f64().iter().all(|v| v.is_finite()));
}

/// Outputs of half precision, the classes in the middle: losses are computed in float32, and the masters learn.
#[test]
fn losses_of_half_precision_fall() {
    let mut g = Graph::default();
    let rows = || Dim::symbol("n");
    let ty =
        |dims: [i64; 3]| TensorType::new(DType::F16, [rows()].into_iter().chain(dims.map(Dim::from)).collect::<Vec<_>>());
    let x = g.add_input("x", ty([6, 5, 3]).into(), None);
    let values: Vec<f64> = Random(2).normals(24).iter().map(|v| v * 0.5).collect();
    let w = g.add_initializer("w", Tensor::floats(DType::F16, &[4, 6, 1, 1], &values), false);
    let n = g.add_op("", Op::new("Conv", Attrs::new()), &[Some(x), Some(w)]);
    let y = g.push_result(n, "y", ty([4, 5, 3]).into());
    g.add_output(y, None);
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("half.onnx");
    std::fs::write(&source, emit(&g)).unwrap();
    for flags in [
        &["--loss", "cross-entropy", "--class-weights", "1,2,3,4"][..],
        &["--loss", "focal", "--mask", "mask"],
        &["--loss", "dice", "--class-axis", "1"],
        &["--loss", "binary-dice", "--mask", "mask"],
        &["--loss", "bce", "--loss", "cross-entropy:y:0.5"],
    ] {
        let path = train(&source, dir.path(), &[&["--optimizer", "sgd"], flags].concat());
        let mut feeds = random_data(&path);
        feeds.insert("lr".into(), floats(DType::F32, &[], &[0.3]));
        for (_, t) in feeds.iter_mut().filter(|(n, _)| n.ends_with("target")) {
            let shares: Vec<f64> = t.to_f64().iter().map(|v| 1.0 / (1.0 + (-v).exp())).collect();
            *t = floats(t.dtype(), t.shape(), &shares);
        }
        let (mut session, mut state) = (open_file(&path), crate::common::first_state(&path));
        let losses: Vec<f64> = (0..12).map(|_| loss(&advance(&mut session, feeds.clone(), &mut state))).collect();
        assert!(losses.iter().all(|l| l.is_finite()) && losses[11] < losses[0], "{flags:?}: {losses:?}");
        assert_eq!(state["w"].dtype(), DType::F32);
    }
}

/// Every loss's gradient against finite differences in another engine, in half precision and with the classes in the middle too.
#[test]
fn gradients_of_losses_are_finite_differences() {
    for flags in [
        &["--loss", "cross-entropy:logits:0.5", "--loss", "huber:aux", "--loss", "dice:grid", "--class-axis", "1"][..],
        &["--loss", "focal:grid", "--class-axis", "1", "--mask", "mask", "--class-weights", "balanced"],
        &["--loss", "ctc:frames"],
        &["--loss", "kl:logits", "--loss", "distill:logits:2", "--distill", "output=aux:2"],
        &["--loss", "next-token:seq", "--mask", "mask"],
        &["--loss", "binary-focal:map", "--loss", "dice:shares"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = train(&data("torch_numbers/two.onnx"), dir.path(), flags);
        let path = text(&path);
        let mut a = vec!["verify", "--gradient", path.as_str(), "--dim", "batch=8"];
        if flags[1].starts_with("next") {
            a.extend(["--dim", "?seq_1=4"]);
        }
        let ran = tool(&a);
        assert_eq!(ran.status, 0, "{flags:?}: {}{}", ran.out, ran.err);
    }
}
