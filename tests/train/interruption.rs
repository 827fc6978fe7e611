//! Runs that are stopped: by a signal that gives no time, by Ctrl-C, by the end of another run; and what goes on from there.

use super::{Folder, samples, strings};
use crate::common::{Random, text, tool, write_safetensors};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What all these runs have in common: an order of samples, dropout, validation, a rate that depends on the run's end.
fn course<'a>(val: &'a str, steps: &'a str) -> Vec<&'a str> {
    let schedule = ["--schedule", "cosine", "--warmup", "5", "--lr", "0.01", "--batch-size", "7", "--seed", "3"];
    [&["--val", val, "--steps", steps][..], &schedule].concat()
}

fn start(arguments: &[String]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ancre-rewrite"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Step of the newest checkpoint.
fn newest(run: &Path) -> u64 {
    let entries = std::fs::read_dir(run).into_iter().flatten().flatten();
    let step = |name: String| name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok();
    entries.filter_map(|e| step(e.file_name().to_string_lossy().into_owned())).max().unwrap_or(0)
}

/// Waits until a run's newest checkpoint is a later one than `step`.
fn wait_for_progress(run: &Path, step: u64, child: &mut Child) {
    let begun = Instant::now();
    while newest(run) <= step {
        assert!(child.try_wait().unwrap().is_none(), "the run ended at step {step}");
        assert!(begun.elapsed() < Duration::from_secs(120), "no checkpoint after step {step}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_run_killed_twenty_times_ends_with_the_same_bits() {
    let f = Folder::new(None, &[]);
    let val = text(&f.path("val.safetensors"));
    let course = course(&val, "1500");
    let whole = f.train("whole", &course);
    assert_eq!(whole.status, 0, "{}", whole.err);

    let run = f.path("killed");
    let mut random = Random(17);
    // The first run too is told to resume: there is nothing, so it starts at the beginning.
    let arguments = f.arguments("killed", &[&course[..], &["--save-every", "4", "--resume"]].concat());
    for kill in 0..20 {
        let before = newest(&run);
        let mut child = start(&arguments);
        wait_for_progress(&run, before, &mut child);
        std::thread::sleep(Duration::from_micros(random.below(20_000) as u64));
        assert!(child.try_wait().unwrap().is_none(), "kill {kill} came after the end");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let killed_at = newest(&run);
    assert!(killed_at < 1500, "the run ended before it was killed often enough");
    let last = f.train("killed", &[&course[..], &["--save-every", "4", "--resume", "--json"]].concat());
    assert!(last.json()["steps_here"].as_u64() < Some(1500), "the last run began anew: {}", last.out);

    assert_eq!(f.last("killed"), f.last("whole"));
    let best = |run: &str| std::fs::read(f.path(run).join("best.safetensors")).unwrap();
    assert!(best("killed") == best("whole"), "the best checkpoints differ");
    let of = |run: &str| -> Vec<_> {
        f.log(run).iter().map(|l| (l["step"].as_u64(), l["loss"].as_f64(), l["val_loss"].as_f64())).collect()
    };
    assert_eq!(of("killed"), of("whole"));
}

#[cfg(unix)]
#[test]
fn an_interrupt_finishes_the_step_and_writes_a_checkpoint() {
    let f = Folder::new(None, &[]);
    let val = text(&f.path("val.safetensors"));
    let course = course(&val, "20000");
    for signal in ["-INT", "-TERM"] {
        let name = format!("run{signal}");
        let run = f.path(&name);
        let mut child = start(&f.arguments(&name, &course));
        wait_for_progress(&run, 0, &mut child);
        assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
        assert_eq!(child.wait().unwrap().code(), Some(130), "{signal}");
        // All that was done is in the checkpoint.
        let done = newest(&run);
        assert_eq!(f.log(&name).last().unwrap()["step"].as_u64(), Some(done));
        assert_eq!(f.last(&name)["ancre.step"].to_i64(), [done as i64]);
    }
}

#[test]
fn only_the_same_run_is_resumed() {
    let f = Folder::new(None, &[]);
    let val = text(&f.path("val.safetensors"));
    let first = course(&val, "10");
    assert_eq!(f.train("run", &first).status, 0);
    // A run that is done has nothing left to do, and says what it came to.
    let again = f.train("run", &[&first[..], &["--resume", "--json"]].concat()).json();
    assert_eq!((again["steps"].as_u64(), again["steps_here"].as_u64()), (Some(10), Some(0)));

    let ran = f.train("run", &first);
    assert!(ran.status == 2 && ran.err.contains("--resume") && ran.err.contains("--overwrite"), "{}", ran.err);
    for (option, value, said) in [
        ("--lr", "0.5", "--lr is 0.5, it was 0.01"),
        ("--steps", "11", "--steps is 11, it was 10"),
        ("--batch-size", "8", "--batch-size is 8, it was 7"),
        ("--seed", "4", "--seed is 4, it was 3"),
    ] {
        let mut other = first.clone();
        let at = other.iter().position(|o| *o == option).unwrap();
        other[at + 1] = value;
        let ran = f.train("run", &[&other[..], &["--resume"]].concat());
        assert!(ran.status == 2 && ran.err.contains(said), "{}", ran.err);
    }
    let other = Folder::new(None, &["--optimizer", "adam"]);
    let mut a = f.arguments("run", &[&first[..], &["--resume"]].concat());
    a[1] = text(&other.path("net.ancre.train.onnx"));
    let ran = crate::common::tool(&a);
    assert!(ran.status == 2 && ran.err.contains("the training graph is another one"), "{}", ran.err);
    write_safetensors(&f.path("train.safetensors"), &samples(90, 7), None);
    let ran = f.train("run", &[&first[..], &["--resume"]].concat());
    assert!(ran.status == 2 && ran.err.contains("the data are others"), "{}", ran.err);
    assert_eq!(f.train("run", &[&first[..], &["--overwrite"]].concat()).status, 0);
}

#[test]
fn a_constant_rate_may_go_on_longer() {
    let f = Folder::new(None, &[]);
    assert_eq!(f.train("parts", &["--lr", "1e-3", "--steps", "7"]).status, 0);
    assert_eq!(f.train("parts", &["--steps", "12", "--resume"]).status, 0);
    assert_eq!(f.train("whole", &["--lr", "1e-3", "--steps", "12"]).status, 0);
    assert_eq!(f.last("parts"), f.last("whole"));
}

#[cfg(unix)]
#[test]
fn a_comparison_that_is_stopped_goes_on_to_the_same_end() {
    let f = Folder::new(None, &[]);
    let arguments = |out: &str, more: &[&str]| {
        let (net, data, val) = (f.path("net.onnx"), f.path("train.safetensors"), f.path("val.safetensors"));
        let files = ["compare".into(), text(&net), "--data".into(), text(&data), "--val".into(), text(&val)];
        let own = ["--loss", "cross-entropy", "--steps", "400", "--seeds", "1", "--variants", "free", "--device", "cpu"];
        let place = ["--threads", "1", "--out", out].map(String::from);
        [&files[..], &strings(&own), &place, &strings(more)].concat()
    };
    let (stopped, whole) = (text(&f.path("stopped")), text(&f.path("whole")));
    let mut child = start(&arguments(&stopped, &[]));
    wait_for_progress(&f.path("stopped/cascaded/seed-0/run"), 0, &mut child);
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!f.path("stopped/cascaded/seed-0/result.json").exists() && !f.path("stopped/free").exists());

    let losses = |report: serde_json::Value| -> Vec<f64> {
        let of = |v: &serde_json::Value| ["train_loss", "val_loss"].map(|m| v[m]["mean"].as_f64().unwrap());
        report["variants"].as_array().unwrap().iter().flat_map(of).collect()
    };
    // Nothing needs to be said again but where it lies.
    let resumed = tool(&[
        "compare",
        &text(&f.path("net.onnx")),
        "--out",
        &stopped,
        "--seeds",
        "1",
        "--variants",
        "free",
        "--resume",
        "--json",
    ]);
    let all = tool(&arguments(&whole, &["--json"]));
    assert_eq!(losses(resumed.json()), losses(all.json()));
}
