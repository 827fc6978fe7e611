//! `train` as a process: what it writes, what it says, and that nothing is lost when it is stopped, however it is stopped.

mod comparison;
mod interruption;

use crate::common::{Ran, Random, emit, open_file, runtime, text, tool, tool_ok, write_safetensors};
use ancre_passes::ir::{DType, Dim, Graph, Tensor, TensorType, ValueId};
use ancre_passes::ops::build::Builder;
use ancre_rewrite::engine::{Session, Tensors, tract};
use ancre_rewrite::io::tensor::NpTensor;
use ancre_rewrite::train::checkpoint;
use serde_json::Value;
use std::path::PathBuf;
use tempfile::TempDir;

const FEATURES: usize = 6;
const CLASSES: usize = 4;

/// A residual network with dropout in its branches: input `x` [batch, 6], output `y` [batch, 4].
fn network(batch: Option<i64>) -> Graph {
    let mut g = Graph::default();
    g.opsets.insert(String::new(), 18);
    let rows = batch.map_or(Dim::symbol("batch"), Dim::from);
    let x = g.add_input("x", TensorType::new(DType::F32, vec![rows, Dim::from(FEATURES as i64)]).into(), None);
    let mut random = Random(11);
    let mut b = Builder::new(&mut g, "net");
    let mut h = linear(&mut b, &mut random, x, FEATURES, 12, "stem");
    for block in 0..4 {
        let name = format!("block{block}");
        b.prefix = name.clone();
        let inner = linear(&mut b, &mut random, h, 12, 12, &format!("{name}.0"));
        let inner = b.op("Tanh", &[inner]).unwrap();
        let ratio = b.scalar(DType::F32, 0.2);
        let inner = b.op("Dropout", &[inner, ratio]).unwrap();
        let branch = linear(&mut b, &mut random, inner, 12, 12, &format!("{name}.1"));
        h = b.add(h, branch).unwrap();
    }
    b.prefix = "head".into();
    let y = linear(&mut b, &mut random, h, 12, CLASSES, "head");
    g.rename(y, "y");
    g.add_output(y, None);
    g
}

fn linear(b: &mut Builder, random: &mut Random, x: ValueId, from: usize, to: usize, name: &str) -> ValueId {
    let scale = 1.0 / (from as f64).sqrt();
    let values: Vec<f64> = random.normals(from * to).into_iter().map(|v| v * scale).collect();
    let w = Tensor::floats(DType::F32, &[from as i64, to as i64], &values);
    let w = b.graph.add_initializer(&format!("{name}.weight"), w, false);
    let bias = Tensor::floats(DType::F32, &[to as i64], &vec![0.0; to]);
    let bias = b.graph.add_initializer(&format!("{name}.bias"), bias, false);
    let product = b.matmul(x, w).unwrap();
    b.add(product, bias).unwrap()
}

/// Points around one centre a class.
fn samples(count: usize, seed: u64) -> Tensors {
    let mut centres = Random(5);
    let centres: Vec<Vec<f64>> = (0..CLASSES).map(|_| centres.normals(FEATURES)).collect();
    let mut random = Random(seed);
    let labels: Vec<i64> = (0..count).map(|_| random.below(CLASSES) as i64).collect();
    let points = labels.iter().flat_map(|l| {
        let noise = random.normals(FEATURES);
        centres[*l as usize].iter().zip(noise).map(|(c, n)| (c + 0.5 * n) as f32).collect::<Vec<_>>()
    });
    let x = NpTensor::f32s(&[count, FEATURES], &points.collect::<Vec<_>>()).unwrap();
    Tensors::from([("x".to_string(), x), ("labels".to_string(), NpTensor::i64s(&[count], &labels).unwrap())])
}

/// A folder with a model's graphs and data.
struct Folder {
    dir: TempDir,
}

impl Folder {
    fn new(batch: Option<i64>, flags: &[&str]) -> Folder {
        runtime();
        let folder = Folder { dir: tempfile::tempdir().unwrap() };
        let model = folder.path("net.onnx");
        std::fs::write(&model, emit(&network(batch))).unwrap();
        let own = ["--verify", "none", "--loss", "cross-entropy"];
        tool_ok(&[&[text(&model)], strings(&own).as_slice(), strings(flags).as_slice()].concat());
        write_safetensors(&folder.path("train.safetensors"), &samples(90, 1), None);
        write_safetensors(&folder.path("val.safetensors"), &samples(30, 2), None);
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `train` on the training data, one thread, with checkpoints and log in the folder `run`.
    fn arguments(&self, run: &str, more: &[&str]) -> Vec<String> {
        let own = [
            "train".into(),
            text(&self.path("net.ancre.train.onnx")),
            "--data".into(),
            text(&self.path("train.safetensors")),
            "--out".into(),
            text(&self.path(run)),
            "--threads".into(),
            "1".into(),
            "--device".into(),
            "cpu".into(),
        ];
        [&own, strings(more).as_slice()].concat()
    }

    fn train(&self, run: &str, more: &[&str]) -> Ran {
        tool(&self.arguments(run, more))
    }

    fn log(&self, run: &str) -> Vec<Value> {
        let log = std::fs::read_to_string(self.path(run).join("log.jsonl")).unwrap();
        log.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}"))).collect()
    }

    /// The newest state of a run.
    fn last(&self, run: &str) -> Tensors {
        checkpoint::read(&self.path(run).join("last.safetensors")).unwrap().0
    }
}

fn strings(all: &[&str]) -> Vec<String> {
    all.iter().map(|s| s.to_string()).collect()
}

/// Loss and accuracy of a classifier's output.
fn judge(logits: &NpTensor, labels: &[i64]) -> (f64, f64) {
    let (mut loss, mut right) = (0.0, 0);
    for (row, label) in logits.to_f64().chunks(CLASSES).zip(labels) {
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        loss += row.iter().map(|v| (v - top).exp()).sum::<f64>().ln() + top - row[*label as usize];
        right += usize::from(row.iter().position(|v| *v == top) == Some(*label as usize));
    }
    (loss / labels.len() as f64, right as f64 / labels.len() as f64)
}

#[test]
fn a_run_learns_validates_logs_and_exports() {
    let f = Folder::new(None, &[]);
    let exported = f.path("deployed.onnx");
    let val = text(&f.path("val.safetensors"));
    let more = ["--val", &val, "--epochs", "6", "--batch-size", "16", "--lr", "0.02", "--schedule", "cosine", "--json"];
    let report = f.train("run", &[&more[..], &["--export", &text(&exported)]].concat()).json();
    // 90 samples in batches of 16: six a epoch, the last one of ten.
    assert_eq!(
        (report["steps"].as_u64(), report["samples"].as_u64(), report["device"].as_str()),
        (Some(36), Some(540), Some("cpu"))
    );
    assert!(report["validation"]["accuracy"].as_f64().unwrap() > 0.8, "{report}");
    assert!(report["host_bytes_per_step"]["fed"].as_u64().unwrap() < 16 * 40, "the state went over the host: {report}");

    let log = f.log("run");
    assert_eq!(log.len(), 36);
    for (i, line) in log.iter().enumerate() {
        assert_eq!(line["step"].as_u64(), Some(i as u64 + 1));
        for key in ["loss", "lr", "grad_norm", "seconds", "samples_per_second", "accuracy"] {
            assert!(line[key].as_f64().is_some(), "{key} is missing: {line}");
        }
        assert_eq!(line.get("val_loss").is_some(), (i + 1) % 6 == 0, "{line}");
    }
    assert!(log[35]["loss"].as_f64() < log[0]["loss"].as_f64() && log[35]["lr"].as_f64().unwrap() < 1e-9);

    // The validation is that of the forward graph with the state in it; so is the deployed model, in both engines.
    let set = samples(30, 2);
    let input = Tensors::from([("x".to_string(), set["x"].clone())]);
    let in_ort = open_file(&exported).run(&input).unwrap();
    let bytes = std::fs::read(&exported).unwrap();
    let in_tract = tract().load(&bytes, None).unwrap().run(&input).unwrap();
    for (a, b) in in_ort["y"].to_f64().iter().zip(in_tract["y"].to_f64()) {
        assert!((a - b).abs() < 1e-4, "ONNX Runtime {a}, tract {b}");
    }
    let (loss, accuracy) = judge(&in_ort["y"], &set["labels"].to_i64());
    let best = &report["best"];
    assert!((loss - best["loss"].as_f64().unwrap()).abs() < 1e-4, "{loss} deployed, validated {best}");
    assert!((accuracy - best["accuracy"].as_f64().unwrap()).abs() < 1e-9, "{accuracy} deployed, validated {best}");
    assert!(!bytes.windows(7).any(|w| w == b".logits"), "the deployed model still holds its router");
    // Four blocks in a chain: 0 + 1 + 2 + 3 earlier states besides each skip's own.
    assert_eq!(report["shortcuts"].as_array().unwrap().len(), 6);

    // The weights at the end: in the report, in the last checkpoint, and baked into what was exported.
    let shown = tool_ok(&["topology", &text(&f.path("run")), "--json"]).json();
    assert_eq!(shown["chains"][0]["weights"], report["topology"][0]["weights"]);
    assert_eq!((shown["step"].as_u64(), shown["log"].as_array().unwrap().len()), (Some(36), 36));
    assert_eq!(shown["chains"][0]["blocks"], serde_json::json!(["MLP", "MLP", "MLP", "MLP"]));
    let best = tool_ok(&["topology", &text(&f.path("run/best.safetensors")), "--json"]).json();
    assert_eq!(best["chains"][0]["weights"], report["export"]["topology"][0]["weights"]);
    // On the way: each step of so short a run begins with weights, the first one with those of the routed model.
    assert_eq!(shown["course"].as_array().unwrap().len(), 36);
    let routed = tool_ok(&["topology", &text(&f.path("net.ancre.onnx")), "--json"]).json();
    assert_eq!(log[0]["topology"][0]["weights"], routed["chains"][0]["weights"]);
    assert_ne!(log[35]["topology"], log[0]["topology"]);
    tool_ok(&["topology", &text(&f.path("run"))]);
    let page = std::fs::read_to_string(f.path("run/topology.html")).unwrap();
    for title in ["Loss", "Accuracy", "Learning rate", "validation"] {
        assert!(page.contains(&format!(">{title}</text>")), "{title}");
    }
    assert!(page.contains(">The furthest moved; all others by 0."));
}

#[test]
fn an_evaluation_graph_validates_as_what_is_made_without_it() {
    let losses: Vec<f64> = [&[][..], &["--eval-graph"]]
        .iter()
        .map(|flags| {
            let f = Folder::new(None, flags);
            let val = text(&f.path("val.safetensors"));
            let report = f.train("run", &["--val", &val, "--steps", "3", "--json"]).json();
            report["validation"]["loss"].as_f64().unwrap()
        })
        .collect();
    assert!((losses[0] - losses[1]).abs() < 1e-6, "{losses:?}");
}

#[test]
fn without_a_terminal_progress_is_lines_on_standard_error() {
    let f = Folder::new(None, &[]);
    let ran = f.train("run", &["--epochs", "2"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    assert!(ran.err.lines().filter(|l| l.starts_with("epoch ")).count() >= 2, "{}", ran.err);
    assert!(!ran.err.contains('\x1b') && !ran.err.contains('\r') && ran.out.starts_with("trained"), "{}", ran.err);
    let quiet = f.train("quiet", &["--epochs", "1", "--quiet"]);
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), ("", ""));
}

#[test]
fn a_diverging_run_stops_with_the_step_and_keeps_the_last_good_checkpoint() {
    let f = Folder::new(None, &["--optimizer", "sgd"]);
    let ran = f.train("run", &["--epochs", "9", "--lr", "1e30", "--save-every", "1"]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(ran.err.contains("diverged at step ") && ran.err.contains("--lr"), "{}", ran.err);
    let step: u64 = ran.err.split("diverged at step ").nth(1).unwrap().split(' ').next().unwrap().parse().unwrap();
    assert!((1..10).contains(&step), "{}", ran.err);
    if step > 1 {
        assert!(ran.err.contains(&format!("of step {}, is kept", step - 1)), "{}", ran.err);
        assert!(f.last("run").values().all(|t| t.to_f64().iter().all(|v| v.is_finite())));
    }
    assert_eq!(f.log("run").len() as u64, step - 1);
}

#[test]
fn a_loss_that_jumps_takes_the_run_back_to_its_best_state_at_a_lower_rate() {
    let f = Folder::new(None, &["--optimizer", "sgd"]);
    let val = text(&f.path("val.safetensors"));
    let more = ["--val", &val, "--epochs", "30", "--batch-size", "16", "--warmup", "0", "--lr", "20", "--json"];
    let ran = f.train("run", &more);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let report = ran.json();
    let jumps = report["jumps"].as_array().unwrap();
    assert!(!jumps.is_empty() && ran.err.contains("goes back to the state"), "{}", ran.err);
    assert!(report["validation"]["accuracy"].as_f64().unwrap() > 0.8, "{report}");
    let restored: Vec<_> =
        f.log("run").iter().filter_map(|l| Some((l["step"].as_u64()?, l["restored"].as_u64()?))).collect();
    let said: Vec<_> = jumps.iter().map(|j| (j["step"].as_u64().unwrap(), j["restored"].as_u64().unwrap())).collect();
    assert_eq!(restored, said);
    let at_once = f.train("once", &[&more[..], &["--guard", "0"]].concat());
    assert!(at_once.status == 1 && at_once.err.contains("diverged at step"), "{}", at_once.err);
}

#[test]
fn a_range_test_chooses_a_rate_and_leaves_the_state_as_it_was() {
    let f = Folder::new(None, &[]);
    let report = f.train("auto", &["--lr", "auto", "--steps", "5", "--json"]).json();
    let rate = report["lr"]["highest"].as_f64().unwrap();
    let curve = report["lr"]["range_test"].as_array().unwrap();
    assert!((1e-5..0.5).contains(&rate) && curve.len() > 10, "{report}");
    let said = f.train("said", &["--lr", &rate.to_string(), "--schedule", "wsd", "--steps", "5", "--json"]);
    assert_eq!(said.status, 0, "{}", said.err);
    assert_eq!(f.last("auto"), f.last("said"));
}

#[test]
fn what_a_run_came_to_is_said_with_what_to_try() {
    let f = Folder::new(None, &[]);
    let val = text(&f.path("val.safetensors"));
    let more = ["--val", &val, "--steps", "12", "--lr", "1e-9"];
    let ran = f.train("run", &more);
    let report = f.train("json", &[&more[..], &["--json"]].concat()).json();
    let verdicts = report["verdicts"].as_array().unwrap();
    assert!(!verdicts.is_empty(), "{report}");
    for verdict in verdicts {
        let said = |key: &str| ran.out.contains(verdict[key].as_str().unwrap());
        assert!(said("text") && said("try"), "{verdict}\n{}", ran.out);
    }
}

#[test]
fn a_run_stops_when_validations_bring_nothing_better() {
    let f = Folder::new(None, &[]);
    let val = text(&f.path("val.safetensors"));
    // At this rate no weight moves: the first validation stays the best.
    let more = ["--val", &val, "--epochs", "9", "--batch-size", "30", "--lr", "1e-30", "--patience", "2"];
    let ran = f.train("run", &more);
    assert_eq!((ran.status, f.log("run").len()), (0, 9), "{}", ran.err);
    assert!(
        ran.out.contains("9 of 27 steps") && ran.out.contains("2 validations in a row brought nothing better"),
        "{}",
        ran.out
    );
}

#[test]
fn without_a_rate_a_few_are_tried_and_the_state_is_as_it_was() {
    let f = Folder::new(None, &[]);
    let report = f.train("tried", &["--steps", "20", "--json"]).json();
    let (rate, trial) = (report["lr"]["highest"].as_f64().unwrap(), &report["lr"]["trial"]);
    let tried = trial["tried"].as_array().unwrap();
    assert!(trial["steps"] == 6 && tried.len() >= 3, "{report}");
    // Each ran for six steps, and for as many again where noise decided; of those that did as long none is far better.
    let steps = |t: &Value| t["steps"].as_u64().unwrap();
    assert!(trial["lr"] == rate && tried.iter().all(|t| [6, 12].contains(&steps(t)) || t["loss"].is_null()), "{report}");
    let found = tried.iter().find(|t| t["lr"] == rate).unwrap();
    let loss = |t: &Value| t["loss"].as_f64().unwrap_or(f64::INFINITY);
    assert!(tried.iter().all(|t| steps(t) != steps(found) || loss(found) < 1.1 * loss(t)), "{report}");
    let course = ["--lr", &rate.to_string(), "--schedule", "wsd", "--steps", "20", "--json"];
    assert_eq!(f.train("said", &course).json()["lr"]["trial"], serde_json::Value::Null);
    assert!(f.last("tried") == f.last("said"));
    // A resumed run keeps the rate that was found.
    let longer = f.train("tried", &["--resume", "--steps", "24", "--json"]).json();
    assert_eq!((&longer["lr"]["highest"], &longer["lr"]["trial"]), (&report["lr"]["highest"], &serde_json::Value::Null));
    let short = f.train("short", &["--steps", "9", "--json"]).json();
    assert_eq!(short["lr"]["trial"], serde_json::Value::Null);
}

#[test]
fn a_resumed_run_remembers_its_options() {
    let f = Folder::new(None, &[]);
    let course = ["--val-split", "0.2", "--lr", "0.003", "--schedule", "cosine", "--seed", "5", "--batch-size", "7"];
    let whole = f.train("whole", &[&course[..], &["--epochs", "4"]].concat());
    assert_eq!(whole.status, 0, "{}", whole.err);
    let dir = text(&f.path("whole"));
    let first = f.path("first");
    std::fs::create_dir(&first).unwrap();
    let kept = ["--save-every", "1", "--keep", "100"];
    assert_eq!(f.train("all", &[&course[..], &kept, &["--epochs", "4"]].concat()).status, 0);
    std::fs::copy(f.path("all").join("step-00000013.safetensors"), first.join("step-00000013.safetensors")).unwrap();
    let model = text(&f.path("net.ancre.train.onnx"));
    let resume = |dir: &str| {
        tool(&strings(&["train", &model, "--out", dir, "--resume", "--threads", "1", "--device", "cpu", "--json"]))
    };
    let report = resume(&text(&first)).json();
    assert_eq!((report["steps"].as_u64(), report["steps_here"].as_u64()), (Some(44), Some(31)));
    assert_eq!(f.last("first"), f.last("whole"));
    assert_eq!(resume(&dir).json()["steps_here"].as_u64(), Some(0));
}

/// 0.9 times the least numbers is rounded to them again: a moment without gradients would stay among the subnormal numbers, which kernels
/// are slow at.
#[test]
fn moments_of_weights_without_gradients_become_zero() {
    let folder = Folder::new(None, &[]);
    let mut data = samples(90, 1);
    let x: Vec<f32> = data["x"].to_f32().iter().enumerate().map(|(i, v)| if i % FEATURES == 0 { 0.0 } else { *v }).collect();
    data["x"] = NpTensor::f32s(&[90, FEATURES], &x).unwrap();
    write_safetensors(&folder.path("train.safetensors"), &data, None);
    let moment = NpTensor::f32s(&[FEATURES, 12], &[1e-39; FEATURES * 12]).unwrap();
    write_safetensors(&folder.path("state.safetensors"), &[("stem.weight.exp_avg".to_string(), moment)].into(), None);
    let state = text(&folder.path("state.safetensors"));
    let ran = folder.train("run", &["--state", &state, "--epochs", "1", "--batch-size", "30", "--lr", "1e-3"]);
    assert_eq!(ran.status, 0, "{}", ran.err);
    let after = folder.last("run")["stem.weight.exp_avg"].to_f32();
    assert!(after[..12].iter().all(|v| *v == 0.0) && after[12..].iter().all(|v| *v != 0.0), "{after:?}");
}

#[test]
fn a_fixed_batch_is_kept_to() {
    let f = Folder::new(Some(8), &["--batch", "keep", "--eval-graph"]);
    let ran = f.train("run", &["--batch-size", "4"]);
    assert!(ran.status == 2 && ran.err.contains("exactly 8"), "{}", ran.err);
    let val = text(&f.path("val.safetensors"));
    let ran = f.train("run", &["--val", &val, "--json"]);
    // 90 samples: eleven whole batches.
    assert_eq!((ran.json()["steps"].as_u64(), ran.json()["samples"].as_u64()), (Some(11), Some(88)));
    assert!(ran.err.contains("leaves out 6 of 30"), "{}", ran.err);
}

#[test]
fn a_graph_without_state_takes_it_from_the_file_beside_it() {
    let (inline, separate) = (Folder::new(None, &[]), Folder::new(None, &["--state", "separate"]));
    let more = ["--steps", "5", "--val", &text(&inline.path("val.safetensors"))];
    for f in [&inline, &separate] {
        assert_eq!(f.train("run", &more).status, 0);
    }
    assert_eq!(inline.last("run"), separate.last("run"));
    std::fs::rename(separate.path("net.ancre.state.safetensors"), separate.path("moved.safetensors")).unwrap();
    let ran = separate.train("other", &more);
    assert!(ran.status == 2 && ran.err.contains("--state"), "{}", ran.err);
    let moved = text(&separate.path("moved.safetensors"));
    assert_eq!(separate.train("other", &[&more[..], &["--state", &moved]].concat()).status, 0);
    assert_eq!(inline.last("run"), separate.last("other"));
}

#[test]
fn what_cannot_work_is_refused_before_the_first_step() {
    let f = Folder::new(None, &["--optimizer", "sgd"]);
    let empty = f.path("empty.safetensors");
    write_safetensors(&empty, &samples(0, 1), None);
    let (val, export) = (text(&f.path("val.safetensors")), text(&f.path("net.ancre.onnx")));
    let refused: [(&[&str], &str); 8] = [
        (&["--epochs", "0"], "nothing to do"),
        (&["--epochs", "1", "--steps", "1"], "cannot be used with"),
        (&["--lr", "0"], "--lr 0"),
        (&["--lr", "0.1", "--min-lr", "0.2"], "above --lr"),
        (&["--batch-size", "91", "--drop-last"], "fewer than one batch of 91"),
        (&["--export", &export], "would replace"),
        (&["--eval-graph", &export, "--val", &val], "ancre.onnx"),
        (&["--no-such-flag"], "--no-such-flag"),
    ];
    for (more, said) in refused {
        let ran = f.train("run", more);
        assert!(ran.status == 2 && ran.err.contains(said), "{more:?}: status {}: {}", ran.status, ran.err);
    }
    assert!(!f.path("run").join("last.safetensors").exists());
    let mut a = f.arguments("run", &[]);
    a[3] = text(&empty);
    let ran = tool(&a);
    assert!(ran.status == 2 && ran.err.contains("empty.safetensors"), "{}", ran.err);
    for (graph, said) in
        [("net.onnx", "no training graph"), ("net.ancre.onnx", "no training graph"), ("none.onnx", "none.onnx")]
    {
        a[1] = text(&f.path(graph));
        let ran = tool(&a);
        assert!(ran.status == 2 && ran.err.contains(said), "{graph}: {}", ran.err);
    }
}

#[test]
fn the_device_is_said_and_cuda_is_never_replaced_in_silence() {
    let f = Folder::new(None, &[]);
    let mut a = f.arguments("run", &["--steps", "1", "--json"]);
    let device = a.iter().position(|x| x == "cpu").unwrap();
    a[device] = "gpu".into();
    let ran = tool(&a);
    assert!(ran.status == 2 && ran.err.contains("auto, cpu, cuda or cuda:N"), "{}", ran.err);
    a[device] = "auto".into();
    let ran = tool(&a);
    let used = ran.json()["device"].as_str().unwrap().to_string();
    if used == "cpu" {
        assert!(ran.err.contains("runs on the CPU: "), "{}", ran.err);
        a[device] = "cuda".into();
        a.push("--overwrite".into());
        let ran = tool(&a);
        assert!(ran.status == 2 && ran.err.contains("--device cuda:0 cannot be used"), "{}", ran.err);
    } else {
        assert_eq!(used, "cuda:0");
    }
}

#[test]
fn running_statistics_that_are_taken_anew_are_those_of_the_training_data() {
    runtime();
    let dir = tempfile::tempdir().unwrap();
    let (model, data) = ("models/resnet_batch1.onnx", "models/data/digits_val.npz");
    // One batch of all samples, a rate that moves nothing: what a step without memory leaves is what is to be found.
    let state = |name: &str, rewriting: &[&str], training: &[&str]| {
        let out = dir.path().join(name);
        std::fs::create_dir(&out).unwrap();
        let own = ["--classes", "10", "--batch", "dynamic", "--verify", "none", "-o", &text(&out)];
        tool_ok(&[&[model.to_string()], strings(&own).as_slice(), strings(rewriting).as_slice()].concat());
        let graph = text(&out.join("resnet_batch1.ancre.train.onnx"));
        let own =
            ["train", &graph, "--data", data, "--batch-size", "360", "--steps", "1", "--lr", "1e-12", "--device", "cpu"];
        let ran = tool(&[strings(&own).as_slice(), strings(training).as_slice(), &["--json".into()]].concat());
        (
            ran.json()["recalibrated"].clone(),
            checkpoint::read(&out.join("resnet_batch1.ancre.run/last.safetensors")).unwrap().0,
        )
    };
    let (off, exact) = state("exact", &["--bn-momentum", "0"], &["--recalibrate-bn", "off"]);
    let (on, found) = state("found", &[], &["--recalibrate-bn"]);
    assert!(off.is_null() && on["replaced"] == true, "{off} {on}");
    let running = exact.keys().filter(|n| n.contains("running_")).collect::<Vec<_>>();
    assert!(running.len() > 10);
    for name in running {
        for (a, b) in exact[name].to_f64().iter().zip(found[name].to_f64()) {
            assert!((a - b).abs() <= 1e-4 * (1.0 + a.abs()), "{name}: {a} and {b}");
        }
    }
}

#[test]
fn figures_that_are_asked_for_are_told_and_event_files_hold_the_log() {
    let f = Folder::new(None, &[]);
    let (val, events) = (text(&f.path("val.safetensors")), f.path("events"));
    let more =
        ["--val", &val, "--epochs", "3", "--metric", "top-1,top-5", "--metric", "f1", "--metric", "perplexity", "--json"];
    let ran = f.train("run", &[&more[..], &["--log-dir", &text(&events)]].concat());
    let report = ran.json();
    let (metrics, validation) = (&report["metrics"], &report["validation"]);
    assert_eq!(metrics["top-1"], validation["accuracy"]);
    // There are four classes.
    assert_eq!(metrics["top-5"], 1.0);
    assert!((metrics["perplexity"].as_f64().unwrap().ln() - validation["loss"].as_f64().unwrap()).abs() < 1e-9);
    assert!(ran.err.contains("  f1 0.") || ran.err.contains("  f1 1."), "{}", ran.err);
    let log = f.log("run");
    assert_eq!(log.last().unwrap()["val_metrics"], *metrics);

    let file = std::fs::read_dir(&events).unwrap().next().unwrap().unwrap().path();
    let bytes = std::fs::read(&file).unwrap();
    // Each record: its length, four bytes, the event, four bytes.
    let (mut at, mut count) = (0, 0);
    while at < bytes.len() {
        at += u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize + 16;
        count += 1;
    }
    assert_eq!((at, count), (bytes.len(), log.len() + 1));
    let holds = |tag: &[u8]| bytes.windows(tag.len()).any(|w| w == tag);
    assert!(holds(b"brain.Event:2") && holds(b"train/loss") && holds(b"val/accuracy") && holds(b"val/f1"));
    let wrong = f.train("wrong", &["--val", &val, "--metric", "mae"]);
    assert!(wrong.status == 2 && wrong.err.contains("--metric mae needs a float target"), "{}", wrong.err);
}

/// Wherever the state starts from, the run is the same to the bit, validated and exported alike.
#[test]
fn the_same_run_from_every_kind_of_state() {
    let runs = ["init", "inline", "separate"].map(|kind| {
        let f = Folder::new(None, &["--state", kind]);
        let (val, export) = (text(&f.path("val.safetensors")), text(&f.path("deployed.onnx")));
        let report =
            f.train("run", &["--epochs", "2", "--batch-size", "30", "--val", &val, "--export", &export, "--json"]).json();
        let losses: Vec<f64> = f.log("run").iter().filter_map(|l| l["loss"].as_f64()).collect();
        assert!(losses.len() >= 6, "{kind}: {losses:?}");
        (losses, report["validation"]["loss"].as_f64().unwrap(), f.last("run"), std::fs::read(&export).unwrap())
    });
    for (other, kind) in runs.iter().zip(["init", "inline", "separate"]) {
        assert_eq!((&other.0, other.1), (&runs[0].0, runs[0].1), "{kind}");
        let differs = runs[0].2.iter().find(|(name, t)| other.2.get(*name) != Some(t));
        assert!(differs.is_none(), "{kind}: `{}` is another", differs.unwrap().0);
        assert!(other.3 == runs[0].3, "{kind}: the exported models differ");
    }
    // A graph that asks for its state is not run without.
    let f = Folder::new(None, &[]);
    std::fs::remove_file(f.path("net.ancre.init.onnx")).unwrap();
    let ran = f.train("run", &["--steps", "1"]);
    assert!(
        ran.status == 2 && ran.err.contains("STEM.ancre.init.onnx") && ran.err.contains("asks for its state"),
        "{}",
        ran.err
    );
}
