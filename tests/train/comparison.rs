//! `compare`: what it trains, what it says, and that runs which are over are never made again.

use super::{network, samples, strings};
use crate::common::{Ran, emit, runtime, text, tool, write_safetensors};
use serde_json::Value;
use std::path::PathBuf;
use tempfile::TempDir;

struct Folder {
    dir: TempDir,
}

impl Folder {
    fn new() -> Folder {
        runtime();
        let f = Folder { dir: tempfile::tempdir().unwrap() };
        std::fs::write(f.path("net.onnx"), emit(&network(None))).unwrap();
        write_safetensors(&f.path("train.safetensors"), &samples(90, 1), None);
        write_safetensors(&f.path("val.safetensors"), &samples(30, 2), None);
        f
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn compare(&self, more: &[&str]) -> Ran {
        let own = ["--loss", "cross-entropy", "--device", "cpu", "--threads", "1", "--from-scratch", "--data"];
        let files = [text(&self.path("train.safetensors")), "--val".into(), text(&self.path("val.safetensors"))];
        let verb = ["compare".into(), text(&self.path("net.onnx"))];
        tool(&[&verb[..], &strings(&own), &files, &strings(more)].concat())
    }
}

fn of<'a>(report: &'a Value, variant: &str) -> &'a Value {
    report["variants"].as_array().unwrap().iter().find(|v| v["name"] == variant).unwrap()
}

#[test]
fn variants_are_compared_pair_by_pair_and_runs_are_made_once() {
    let f = Folder::new();
    let page = text(&f.path("page.html"));
    let out = text(&f.path("out"));
    let course = ["--steps", "12", "--out", &out];
    // A router that is closed for ever changes nothing; free weights that start alike and do not train neither.
    let variants = ["--variants", "default,still=--chains none,even=--parametrization constant"];
    let asked = [&course[..], &variants, &["--seeds", "2", "--html", &page, "--json"]].concat();
    let ran = f.compare(&asked);
    let report = ran.json();
    assert_eq!(ran.err.lines().filter(|l| l.starts_with('[')).count(), 8, "{}", ran.err);
    assert_eq!(
        (&report["against"], &report["steps"], &report["seeds"]),
        (&"cascaded".into(), &12.into(), &vec![0, 1].into())
    );

    // The same start, the same batches: what is the same network has the same losses, bit for bit.
    let losses =
        |v: &str| of(&report, v)["runs"].as_array().unwrap().iter().map(|r| r["val_loss"].clone()).collect::<Vec<_>>();
    assert_eq!(losses("still"), losses("cascaded"));
    assert_ne!(losses("even"), losses("cascaded"));
    assert_ne!(losses("cascaded")[0], losses("cascaded")[1], "seeds differ");
    let still = &of(&report, "still")["val_loss"]["difference"];
    assert_eq!(
        (&still["n"], &still["mean"], &still["low"], &still["high"]),
        (&2.into(), &0.0.into(), &0.0.into(), &0.0.into())
    );
    assert!(
        report["notices"].as_array().unwrap().iter().any(|n| n.as_str().unwrap().starts_with("still: no chain was routed"))
    );
    // Two pairs: t(0.975, 1) = 12.7062.
    let number = |v: &Value| v.as_f64().unwrap();
    let [a, b] = [0, 1].map(|i| number(&losses("even")[i]) - number(&losses("cascaded")[i]));
    let difference = &of(&report, "even")["val_loss"]["difference"];
    let half = 12.7062 * (a - b).abs() / 2.0;
    assert!((number(&difference["mean"]) - (a + b) / 2.0).abs() < 1e-9);
    assert!((number(&difference["high"]) - (a + b) / 2.0 - half).abs() < 1e-4 * half, "{difference}");
    for measure in ["train_loss", "step_seconds", "seconds", "peak_memory_bytes"] {
        assert!(number(&of(&report, "default")[measure]["mean"]) > 0.0, "{measure}");
    }
    assert!(of(&report, "default")["metrics"]["accuracy"]["difference"]["low"].is_number());
    let says = report["says"].as_str().unwrap();
    assert!(
        says.contains("over 2 seeds") && says.contains("no difference seen") && says.contains("seeds are few"),
        "{says}"
    );

    let written = std::fs::read_to_string(&page).unwrap();
    let linked = written.replace("http://www.w3.org/2000/svg", "");
    assert!(!["http", "src=", "href", "url(", "<script", "@import"].iter().any(|w| linked.contains(w)));
    assert!(written.contains("Training loss") && written.contains("stroke-dasharray") && written.contains("even"));

    // A directory that holds runs is not overwritten, and other options would not go on with them.
    let again = f.compare(&asked);
    assert!(again.status == 2 && again.err.contains("is of an earlier comparison"), "{}", again.err);
    let other = f.compare(&[&asked[..], &["--resume", "--lr", "0.5"]].concat());
    assert!(other.status == 2 && other.err.contains("--lr=0.5 is new"), "{}", other.err);

    // One more seed, and a run that was lost.
    std::fs::remove_dir_all(f.path("out/even/seed-1")).unwrap();
    let more = f.compare(&[&course[..], &variants, &["--seeds", "3", "--resume", "--json"]].concat());
    let lines: Vec<&str> = more.err.lines().filter(|l| l.starts_with('[')).collect();
    assert_eq!((lines.len(), lines.iter().filter(|l| l.ends_with("(kept)")).count()), (12, 7), "{}", more.err);
    let later = more.json();
    assert_eq!(of(&later, "even")["runs"][1]["val_loss"], losses("even")[1], "a run made anew is the same run");
    assert_eq!(of(&later, "even")["val_loss"]["difference"]["n"], 3);
}

#[test]
fn a_comparison_of_networks_that_only_guess_says_so() {
    let f = Folder::new();
    let of = |name: &str, lr: &str, steps: &str| {
        let out = text(&f.path(name));
        f.compare(&["--lr", lr, "--steps", steps, "--seeds", "1", "--variants", "free", "--out", &out]).out
    };
    let says = "in 1 of 1 runs the validation is no better than always naming the commonest label";
    let idle = of("idle", "1e-9", "2");
    assert!(idle.contains(&format!("cascaded: {says}")) && idle.contains(&format!("free: {says}")), "{idle}");
    let learned = of("learned", "1e-2", "120");
    assert!(!learned.contains(says), "{learned}");

    // The same rate in other digits is no other option.
    let again =
        ["--lr", "1E-9", "--steps", "2", "--seeds", "1", "--variants", "free", "--resume", "--out", &text(&f.path("idle"))];
    let again = f.compare(&again);
    assert!(again.status == 0 && again.err.matches("(kept)").count() == 2, "{}", again.err);
}

#[test]
fn a_comparison_that_cannot_be_made_leaves_nothing_and_says_why() {
    let f = Folder::new();
    let out = text(&f.path("out"));
    let missing = ["compare", &text(&f.path("net.onnx")), "--data", &text(&f.path("train.safetensors")), "--out", &out];
    let ran = tool(&missing);
    assert!(ran.status == 2 && ran.err.contains("variant `cascaded`, seed 0") && ran.err.contains("--loss"), "{}", ran.err);
    assert!(!f.path("out").exists());
    let ran = tool(&["compare", &text(&f.path("net.onnx")), "--resume", "--out", &out]);
    assert!(ran.status == 2 && ran.err.contains("no comparison to go on with") && !f.path("out").exists(), "{}", ran.err);
    let ran = f.compare(&["--variants", "papr"]);
    assert!(ran.status == 2 && ran.err.contains("`papr` is no variant"), "{}", ran.err);

    // Without validation data the training loss is what is compared; with one seed nothing can be said.
    let words = [
        &missing[..],
        &["--loss", "cross-entropy", "--steps", "6", "--seeds", "1", "--variants", "free", "--device", "cpu"],
    ]
    .concat();
    let ran = tool(&words);
    assert!(ran.status == 0 && ran.out.contains("With one seed nothing can be said"), "{}{}", ran.out, ran.err);
    assert!(ran.out.contains("training loss") && !ran.out.contains("validation"), "{}", ran.out);
    // Linux alone lets a name be any bytes.
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::ffi::OsStrExt;
        let odd = f.dir.path().join(std::ffi::OsStr::from_bytes(b"od\xffd.html"));
        let again = words.iter().chain(&["--resume", "--json", "--html"]).map(std::ffi::OsStr::new);
        let report = tool(&again.chain([odd.as_os_str()]).collect::<Vec<_>>()).json();
        assert!(report["pages"][1].as_str().unwrap().ends_with("od\u{fffd}d.html") && odd.exists(), "{report}");
    }
}
