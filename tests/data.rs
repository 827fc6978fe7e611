//! Data sets against training graphs as the tool writes them: what the graphs want is read from the files, and what does not fit
//! is refused by the verb before anything is written.

use crate::common::{listing, model, text, tool, tool_ok, write_npz};
use ancre_rewrite::train::data::{DataOptions, Wanted, open};
use ancre_rewrite::train::graph::TrainingGraph;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The training graph of a model.
fn training_graph(name: &str, flags: &[&str]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let source = text(&model(name));
    let out = text(&dir.path().join("m.onnx"));
    tool_ok(&[&[source.as_str(), "-o", &out, "--verify", "none"], flags].concat());
    let train = dir.path().join("m.train.onnx");
    (dir, train)
}

fn wanted(train: &Path) -> Wanted {
    TrainingGraph::read(train).unwrap().wanted
}

#[test]
fn a_training_graph_tells_what_it_wants() {
    for (model, flags, inputs, target, classes) in [
        ("resnet_cifar", &[][..], "`input` float32 [N, 3, 32, 32]", "`labels` int64 [N]", Some(10)),
        ("gpt2", &[], "`input_ids` int64 [N, ?]", "`labels` int64 [N, ?]", Some(256)),
        ("deep_mlp", &["--loss", "mse"], "`observation` float32 [N, 24]", "`target` float32 [N, 6]", None),
        ("llama", &[], "`input_ids` int64 [N, 8], `attention_mask` int64 [N, 8]", "`labels` int64 [N, 8]", Some(256)),
    ] {
        let (_dir, train) = training_graph(model, flags);
        let w = wanted(&train);
        let listed: Vec<String> = w.inputs.iter().map(|s| s.text()).collect();
        let [one] = &w.targets[..] else { panic!("{model}: {:?}", w.targets) };
        assert_eq!(
            (listed.join(", ").as_str(), one.slot.text().as_str(), one.classes),
            (inputs, target, classes),
            "{model}"
        );
    }
    let e = TrainingGraph::read(&model("vit")).err().unwrap().to_string();
    assert!(e.contains("no training graph") && e.contains("STEM.ancre.train.onnx"), "{e}");
}

#[test]
fn the_text_fits_the_language_models() {
    let (_dir, train) = training_graph("llama", &[]);
    let set =
        open(&model("gpt2").with_file_name("data").join("coriolanus_val.bin"), &wanted(&train), &DataOptions::default())
            .unwrap();
    let batch = set.batch(&[0, 999], 0).unwrap();
    assert_eq!((set.len(), batch["attention_mask"].to_i64()), (1000, vec![1; 16]));
    assert_eq!(batch["labels"], batch["input_ids"]);
}

#[test]
fn the_verb_refuses_before_the_first_step() {
    let (dir, train) = training_graph("deep_mlp", &["--loss", "mse"]);
    let npz = dir.path().join("set.npz");
    write_npz(&npz, &[("observation".into(), vec![4, 25], vec![0.0; 100]), ("target".into(), vec![4, 6], vec![0.0; 24])]);
    let before = listing(dir.path());
    let ran = tool(&["train", &text(&train), "--data", &text(&npz), "--steps", "1", "--device", "cpu"]);
    assert_eq!(ran.status, 2, "{}", ran.err);
    for part in ["set.npz", "`observation` float32 [4, 25]", "`observation` float32 [N, 24]", "try:"] {
        assert!(ran.err.contains(part), "`{part}`: {}", ran.err);
    }
    assert_eq!(listing(dir.path()), before);
}
