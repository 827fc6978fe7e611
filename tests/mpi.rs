//! `mpirun -n N ancre-rewrite train`: several ranks of batch B are one rank of batch N × B, whatever becomes of them.
#![cfg(feature = "mpi")]
#![allow(clippy::unwrap_used)]

use ancre_rewrite::engine::Tensors;
use ancre_rewrite::engine::ort::{install, locate};
use ancre_rewrite::io::tensor::NpTensor;
use ancre_rewrite::train::checkpoint;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const TOOL: &str = env!("CARGO_BIN_EXE_ancre-rewrite");

/// A folder with the two graphs of a model's step, and data.
struct Folder(TempDir);

impl Folder {
    fn new(model: &str, flags: &[&str]) -> Folder {
        if locate().is_err() {
            install::install(None, false).unwrap();
        }
        let dir = tempfile::tempdir().unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("models").join(format!("{model}.onnx"));
        std::fs::copy(model, dir.path().join("net.onnx")).unwrap();
        let folder = Folder(dir);
        let out = Command::new(TOOL)
            .arg(folder.path("net.onnx"))
            .args(["--verify", "none", "--step", "split", "--eval-graph"])
            .args(flags)
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", said(&out));
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `train` on the data, one thread, in the folder `run`.
    fn arguments(&self, run: &str, more: &[&str]) -> Vec<String> {
        let text = |name: &str| self.path(name).to_string_lossy().into_owned();
        let own = ["train", &text("net.ancre.grad.onnx"), "--data", &text("train.safetensors"), "--out", &text(run)];
        let own = own.into_iter().chain(["--threads", "1", "--device", "cpu", "--quiet"]);
        own.chain(more.iter().copied()).map(str::to_string).collect()
    }

    /// So many ranks; none: without mpirun.
    fn train(&self, ranks: Option<usize>, run: &str, more: &[&str]) -> Output {
        let mut command = match ranks {
            None => Command::new(TOOL),
            Some(n) => mpirun(n),
        };
        command.args(self.arguments(run, more)).output().unwrap()
    }

    fn train_well(&self, ranks: Option<usize>, run: &str, more: &[&str]) {
        let out = self.train(ranks, run, more);
        assert!(out.status.success(), "{ranks:?} {more:?}: {}", said(&out));
    }

    fn log(&self, run: &str) -> Vec<Value> {
        let log = std::fs::read_to_string(self.path(run).join("log.jsonl")).unwrap();
        log.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    fn numbers(&self, run: &str, key: &str) -> Vec<f64> {
        self.log(run).iter().map(|l| l[key].as_f64().unwrap()).collect()
    }

    fn last(&self, run: &str) -> Tensors {
        checkpoint::read(&self.path(run).join("last.safetensors")).unwrap().0
    }

    fn put(&self, name: &str, set: &[(&str, NpTensor)]) {
        let views = set.iter().map(|(name, t)| {
            let dtype = if name.contains("ids") || *name == "labels" { Dtype::I64 } else { Dtype::F32 };
            (name.to_string(), TensorView::new(dtype, t.shape().to_vec(), t.bytes()).unwrap())
        });
        let views: Vec<_> = views.collect();
        safetensors::serialize_to_file(views, None, &self.path(name)).unwrap();
    }
}

fn mpirun(ranks: usize) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", &ranks.to_string(), TOOL]);
    command
}

/// The processes that a process has started.
fn children(parent: u32) -> Vec<u32> {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.unwrap().file_name().to_str()?.parse().ok());
    let is_child = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|l| l.strip_prefix("PPid:").is_some_and(|p| p.trim() == parent.to_string()))
    };
    processes.filter(is_child).collect()
}

fn signal(name: &str, process: u32) {
    let done = Command::new("sh").args(["-c", &format!("kill -{name} {process}")]).status().unwrap();
    assert!(done.success());
}

fn said(out: &Output) -> String {
    String::from_utf8_lossy(&[out.stdout.as_slice(), &out.stderr].concat()).into_owned()
}

/// Numbers in [0, 1), the same in every run.
fn random(seed: u64) -> impl FnMut() -> f64 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as f64 / (1u64 << 31) as f64
    }
}

/// Texts of which every one counts another number of labels: 43 of them, so that an epoch's last batch is short.
fn texts(folder: &Folder) {
    let (n, length) = (43, 12);
    let mut next = random(5);
    let tokens: Vec<i64> = (0..n * length).map(|i| ((i % length) as i64 * 7 + (next() * 8.0) as i64) % 256).collect();
    let labels: Vec<i64> =
        tokens.iter().enumerate().map(|(i, t)| if next() < (i / length) as f64 / n as f64 { -100 } else { *t }).collect();
    let of = |values: &[i64]| NpTensor::i64s(&[n, length], values).unwrap();
    folder.put("train.safetensors", &[("input_ids", of(&tokens)), ("labels", of(&labels))]);
}

/// Images of three classes.
fn images(folder: &Folder, n: usize) {
    let mut next = random(9);
    let labels: Vec<i64> = (0..n as i64).map(|i| i % 3).collect();
    let pixels: Vec<f32> = labels
        .iter()
        .flat_map(|l| (0..3 * 32 * 32).map(|_| (next() + *l as f64 - 1.5) as f32).collect::<Vec<_>>())
        .collect();
    let x = NpTensor::f32s(&[n, 3, 32, 32], &pixels).unwrap();
    folder.put("train.safetensors", &[("input", x), ("labels", NpTensor::i64s(&[n], &labels).unwrap())]);
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs() / a.abs().max(1e-6)).fold(0.0, f64::max)
}

#[test]
fn ranks_of_batch_b_are_one_rank_of_batch_n_b_and_go_on_as_another_number() {
    for flags in [&["--clip-norm", "0.5"][..], &["--optimizer", "sgd", "--momentum", "0.9", "--reduction", "sum"]] {
        let folder = Folder::new("gpt2", flags);
        texts(&folder);
        let lr = if flags.contains(&"sgd") { "1e-4" } else { "3e-3" };
        let of = |batch: &'static str| ["--steps", "50", "--warmup", "4", "--lr", lr, "--batch-size", batch];
        folder.train_well(None, "one", &of("12"));
        folder.train_well(Some(2), "two", &of("6"));
        folder.train_well(Some(3), "three", &of("4"));
        let first = folder.numbers("one", "loss");
        assert!(first[49] < 0.9 * first[0], "{first:?}");
        for run in ["two", "three"] {
            for (key, most) in [("loss", 1e-5), ("grad_norm", 1e-3)] {
                let d = apart(&folder.numbers("one", key), &folder.numbers(run, key));
                assert!(d < most, "{flags:?} {run}: {key} {d:e}");
            }
            assert_eq!(folder.numbers("one", "samples"), folder.numbers(run, "samples"));
            let accuracy = folder.numbers("one", "accuracy").into_iter().zip(folder.numbers(run, "accuracy"));
            accuracy.for_each(|(a, b)| assert!((a - b).abs() < 0.011, "{a} {b}"));
        }
        // Ended after 20 steps, and gone on with by three, by one.
        let begun = ["--steps", "20", "--warmup", "4", "--lr", lr, "--batch-size", "6"];
        folder.train_well(Some(2), "moved", &begun);
        folder.train_well(Some(3), "moved", &["--steps", "35", "--resume"]);
        folder.train_well(None, "moved", &["--steps", "50", "--resume"]);
        let d = apart(&first, &folder.numbers("moved", "loss"));
        assert!(d < 1e-5, "{flags:?}: {d:e}");
    }
}

#[test]
fn one_rank_is_the_ordinary_run() {
    let folder = Folder::new("gpt2", &[]);
    texts(&folder);
    let course = ["--steps", "8", "--batch-size", "6"];
    folder.train_well(None, "ordinary", &course);
    folder.train_well(Some(1), "one", &course);
    assert_eq!(folder.last("ordinary"), folder.last("one"));
}

#[test]
fn running_statistics_are_the_mean_of_the_ranks_and_validation_sees_them() {
    let folder = Folder::new("resnet_cifar", &[]);
    images(&folder, 16);
    let val = folder.path("train.safetensors").to_string_lossy().into_owned();
    let of = |batch: &'static str| ["--steps", "1", "--batch-size", batch, "--recalibrate-bn", "off", "--lr", "1e-3"];
    folder.train_well(None, "one", &of("16"));
    folder.train_well(Some(2), "two", &[of("8").as_slice(), &["--val", &val, "--metric", "top-1,f1"]].concat());
    let (one, two) = (folder.last("one"), folder.last("two"));
    let mean = one.keys().find(|n| n.contains("running_mean")).unwrap();
    let variance = one.keys().find(|n| n.contains("running_var")).unwrap();
    // Means of halves have the mean of all; variances about each half's own mean are smaller.
    let (a, b) = (one[mean].to_f64(), two[mean].to_f64());
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{a:?} {b:?}");
    assert_ne!(one[variance], two[variance]);
    let entry = folder.log("two").pop().unwrap();
    assert!(entry["val_loss"].is_f64() && entry["val_metrics"]["f1"].is_f64(), "{entry}");
    folder.train_well(Some(2), "long", &["--epochs", "2", "--batch-size", "3", "--recalibrate-bn", "on"]);
}

#[test]
fn a_rank_that_dies_ends_the_run_on_all_and_the_last_checkpoint_is_whole() {
    let folder = Folder::new("gpt2", &[]);
    texts(&folder);
    let mut command = mpirun(2);
    command.args(folder.arguments("run", &["--steps", "100000", "--batch-size", "4", "--save-every", "3"]));
    let err = folder.path("err");
    let mut running = command.stderr(std::fs::File::create(&err).unwrap()).spawn().unwrap();
    let begun = Instant::now();
    while !folder.path("run/last.safetensors").exists() {
        assert!(begun.elapsed() < Duration::from_secs(300), "{}", std::fs::read_to_string(&err).unwrap());
        std::thread::sleep(Duration::from_millis(50));
    }
    signal("KILL", *children(running.id()).last().unwrap());
    let killed = Instant::now();
    let status = running.wait().unwrap();
    let said = std::fs::read_to_string(&err).unwrap();
    assert!(!status.success() && killed.elapsed() < Duration::from_secs(60), "{said}");
    assert!(said.contains("of 2: the run was ended from outside") && said.contains("--resume"), "{said}");
    assert!(folder.last("run").len() > 100);
    let step = folder.log("run").len();
    let more = (step + 3).to_string();
    folder.train_well(Some(2), "run", &["--resume", "--steps", &more]);
    assert_eq!(folder.log("run").len(), step + 3);
}

#[test]
fn a_rank_that_fails_tells_the_others() {
    let folder = Folder::new("gpt2", &[]);
    texts(&folder);
    // The second rank has other data, or none.
    let lost = folder.path("lost.safetensors").to_string_lossy().into_owned();
    let other = folder.path("net.onnx").to_string_lossy().into_owned();
    for data in [lost, other] {
        let mut command = mpirun(1);
        command.args(folder.arguments("run", &["--steps", "3"])).args([":", "-n", "1", TOOL]);
        let mut second = folder.arguments("run", &["--steps", "3"]);
        second[3] = data;
        let begun = Instant::now();
        let out = command.args(second).output().unwrap();
        let said = said(&out);
        assert!(!out.status.success() && begun.elapsed() < Duration::from_secs(60), "{said}");
        let told = "rank 0 of 2: rank 1 failed, which ends the run on all ranks";
        assert!(said.contains("rank 1 of 2: ") && said.contains(told), "{said}");
    }
    // Another course.
    let mut command = mpirun(1);
    command.args(folder.arguments("run", &["--steps", "3"])).args([":", "-n", "1", TOOL]);
    let out = command.args(folder.arguments("run", &["--steps", "3", "--seed", "5"])).output().unwrap();
    assert!(
        said(&out).contains("what the run is to do (graph, data, options) of rank 1 is not that of rank 0"),
        "{}",
        said(&out)
    );
}

#[test]
fn all_ranks_stop_at_the_same_step_when_they_are_asked_to() {
    let folder = Folder::new("gpt2", &[]);
    texts(&folder);
    let mut command = mpirun(2);
    command.args(folder.arguments("run", &["--steps", "100000", "--batch-size", "4", "--save-every", "3"]));
    let mut running = command.spawn().unwrap();
    while !folder.path("run/last.safetensors").exists() {
        std::thread::sleep(Duration::from_millis(50));
    }
    signal("USR1", running.id());
    assert_eq!(running.wait().unwrap().code(), Some(130));
    let step = folder.log("run").last().unwrap()["step"].as_u64().unwrap();
    assert!(folder.path(&format!("run/step-{step:08}.safetensors")).exists());
}

#[test]
fn a_step_in_one_graph_is_refused_and_its_halves_are_found_by_its_name() {
    let folder = Folder::new("gpt2", &[]);
    texts(&folder);
    let whole = |run: &str| {
        let mut arguments = folder.arguments(run, &["--steps", "2"]);
        arguments[1] = arguments[1].replace(".grad.", ".train.");
        mpirun(2).args(arguments).output().unwrap()
    };
    let out = whole("halves");
    assert!(out.status.success(), "{}", said(&out));
    let made = Command::new(TOOL).arg(folder.path("net.onnx")).args(["--verify", "none"]).output().unwrap();
    assert!(made.status.success());
    for kind in ["grad", "update"] {
        std::fs::remove_file(folder.path(&format!("net.ancre.{kind}.onnx"))).unwrap();
    }
    let out = whole("whole");
    assert!(!out.status.success() && said(&out).contains("rewrite the model with --step split"), "{}", said(&out));
}
