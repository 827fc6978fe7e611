//! Text: `tokenize`, and `train` on text.

use crate::common::{data, model, runtime, text, tool, tool_ok};
use ancre_rewrite::text::Tokens;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

fn written(dir: &TempDir, name: &str, content: &[u8]) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    text(&path)
}

fn ids(path: &Path) -> Vec<u32> {
    let tokens = Tokens::read(path).unwrap();
    tokens.range(0..tokens.len()).collect()
}

/// Trains gpt2 (256 tokens) for three steps.
fn train(dir: &TempDir, name: &str, more: &[&str]) -> crate::common::Ran {
    let (graph, out) = (text(&dir.path().join("gpt2.ancre.train.onnx")), text(&dir.path().join(name)));
    let own =
        ["train", &graph, "--out", &out, "--steps", "3", "--window", "16", "--device", "cpu", "--threads", "1", "--json"];
    tool(&[&own[..], more].concat())
}

#[test]
fn training_on_a_text_is_training_on_its_tokens_and_tells_perplexity_and_bits() {
    runtime();
    let dir = tempfile::tempdir().unwrap();
    tool_ok(&[text(&model("gpt2")), "-o".into(), text(dir.path()), "--verify".into(), "none".into()]);
    let flat = std::fs::read(data("../models/data/coriolanus_train.bin")).unwrap();
    let play: Vec<u8> = flat.iter().step_by(2).copied().take(4000).collect();
    let corpus = written(&dir, "play.txt", &play);
    let bin = written(&dir, "flat.bin", &flat[..8000]);
    tool_ok(&["tokenize", &corpus, "--tokenizer", "bytes"]);
    let made = text(&dir.path().join("play.bin"));
    assert_eq!(ids(Path::new(&made)), ids(Path::new(&bin)));

    let split = ["--val-split", "0.1"];
    let of_text = train(&dir, "a", &[&["--data", &corpus, "--tokenizer", "bytes"][..], &split].concat()).json();
    let of_file = train(&dir, "b", &[&["--data", &made][..], &split].concat()).json();
    let of_flat = train(&dir, "c", &[&["--data", &bin][..], &split].concat()).json();
    let number = |v: &Value, key: &str| v["validation"][key].as_f64();
    for key in ["loss", "perplexity"] {
        assert!(
            number(&of_text, key).is_some() && number(&of_text, key) == number(&of_file, key),
            "{key}: {of_text} {of_file}"
        );
        assert_eq!(number(&of_text, key), number(&of_flat, key), "{key}");
    }
    let loss = number(&of_text, "loss").unwrap();
    assert!((number(&of_text, "perplexity").unwrap() - loss.exp()).abs() < 1e-9 * loss.exp());
    assert!((number(&of_text, "bits_per_byte").unwrap() - loss / 2f64.ln()).abs() < 1e-9);
    // Flat numbers do not say how much text they stand for.
    assert_eq!(number(&of_flat, "bits_per_byte"), None);
    let log = std::fs::read_to_string(dir.path().join("a/log.jsonl")).unwrap();
    let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
    assert_eq!(last["val_perplexity"].as_f64(), number(&of_text, "perplexity"));

    let none = train(&dir, "d", &["--data", &corpus]);
    assert!(
        none.status == 2 && none.err.contains("is text") && none.err.contains("--tokenizer tokenizer.json"),
        "{}",
        none.err
    );
    // Words that the model has no place for.
    let about = json!({"tokenizer": "words.json", "vocabulary": 301}).to_string();
    let view = TensorView::new(Dtype::U32, vec![64], &[0; 256]).unwrap();
    let large = dir.path().join("large.bin");
    safetensors::serialize_to_file([("tokens", view)], Some([("ancre.tokens".to_string(), about)].into()), &large).unwrap();
    let ran = train(&dir, "e", &["--data", &text(&large)]);
    assert_eq!(ran.status, 2);
    assert!(ran.err.contains("words.json, whose vocabulary of 301 is larger than the model's of 256"), "{}", ran.err);
}
