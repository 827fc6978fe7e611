//! Text: `tokenize`, and `train` on text.

use crate::common::{data, model, runtime, text, tool, tool_ok};
use ancre_rewrite::text::Tokens;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// A `tokenizer.json` of whole words; the last word has the id `last`.
fn tokenizer(dir: &Path, last: u32) -> PathBuf {
    let vocabulary = json!({"[UNK]": 0, "to": 1, "be": 2, "or": 3, "not": 4, "<|endoftext|>": 5, "rare": last});
    let end = json!({"id": 5, "content": "<|endoftext|>", "single_word": false, "lstrip": false, "rstrip": false,
                     "normalized": false, "special": true});
    let file = json!({"version": "1.0", "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": null, "added_tokens": [end], "normalizer": {"type": "Lowercase"},
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"}});
    let path = dir.join("tokenizer.json");
    std::fs::write(&path, file.to_string()).unwrap();
    path
}

fn written(dir: &TempDir, name: &str, content: &[u8]) -> String {
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    text(&path)
}

fn ids(path: &Path) -> Vec<u32> {
    let tokens = Tokens::read(path).unwrap();
    tokens.range(0..tokens.len()).collect()
}

#[test]
fn documents_are_tokenized_one_by_one_and_ended() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = text(&tokenizer(dir.path(), 6));
    let (one, two) = (written(&dir, "a.txt", b"To be or"), dir.path().join("more"));
    std::fs::create_dir(&two).unwrap();
    std::fs::write(two.join("b.jsonl"), "{\"body\": \"not to be\"}\r\n\n{\"body\": \"rare be\", \"n\": 1}\n").unwrap();
    std::fs::write(two.join("c.csv"), "no text").unwrap();
    let out = dir.path().join("t.bin");
    let (two, file) = (text(&two), text(&out));
    let report = tool_ok(&["tokenize", &one, &two, "--tokenizer", &tokens, "--text-column", "body", "-o", &file, "--json"]).json();
    // The length at which this tokenizer cuts is left aside.
    assert_eq!(ids(&out), [1, 2, 3, 5, 4, 1, 2, 5, 6, 2, 5]);
    let file = &report["outputs"][0];
    assert_eq!((file["tokens"].as_u64(), file["dtype"].as_str(), file["documents"].as_u64()), (Some(11), Some("u16"), Some(3)));
    assert_eq!((file["separator"].as_str(), file["vocabulary"].as_u64()), (Some("<|endoftext|>"), Some(7)));
    assert_eq!(file["text_bytes"].as_u64(), Some(8 + 9 + 7));

    // A vocabulary beyond 16 bits, another token between documents, and a part held back.
    let tokens = text(&tokenizer(dir.path(), 70_000));
    let more = ["--end-of-text", "not", "--val-split", "0.4", "--json"];
    let report = tool_ok(&[&["tokenize", &one, "--tokenizer", &tokens][..], &more].concat()).json();
    let place = |i: usize| PathBuf::from(report["outputs"][i]["path"].as_str().unwrap());
    assert_eq!((report["outputs"][0]["dtype"].as_str(), place(0), place(1).ends_with("a.val.bin")), (Some("u32"), dir.path().join("a.bin"), true));
    assert_eq!((ids(&place(0)), ids(&place(1))), (vec![1, 2], vec![3, 4]));
}

#[test]
fn a_text_that_cannot_be_tokenized_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = text(&tokenizer(dir.path(), 6));
    let refused = |file: &str, tokens: &str, said: &[&str]| {
        let ran = tool(&["tokenize", file, "--tokenizer", tokens]);
        assert_eq!(ran.status, 2, "{}", ran.out);
        assert!(said.iter().all(|s| ran.err.contains(s)), "{said:?}: {}", ran.err);
    };
    refused(&written(&dir, "latin.txt", b"caf\xe9"), &tokens, &["latin.txt", "byte 3", "--tokenizer bytes"]);
    refused(&written(&dir, "a.jsonl", b"{\"text\": \"be\"}\n{\"txt\": \"be\"}"), &tokens, &["line 2 has no text `text`", "txt", "--text-column"]);
    refused(&written(&dir, "b.jsonl", b"{\"text\": "), &tokens, &["b.jsonl", "line 1 is no JSON"]);
    refused(&written(&dir, "empty.txt", b""), "bytes", &["empty.txt", "holds no text"]);
    refused(&written(&dir, "some.txt", b"be"), &written(&dir, "t.json", b"{}"), &["t.json", "is no readable tokenizer"]);
    let ran = tool(&["tokenize", &written(&dir, "some.txt", b"be"), "--tokenizer", &tokens, "--end-of-text", "<eos>"]);
    assert!(ran.status == 2 && ran.err.contains("has no token `<eos>`"), "{}", ran.err);
}

/// Trains gpt2 (256 tokens) for three steps.
fn train(dir: &TempDir, name: &str, more: &[&str]) -> crate::common::Ran {
    let (graph, out) = (text(&dir.path().join("gpt2.ancre.train.onnx")), text(&dir.path().join(name)));
    let own = ["train", &graph, "--out", &out, "--steps", "3", "--window", "16", "--device", "cpu", "--threads", "1", "--json"];
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
        assert!(number(&of_text, key).is_some() && number(&of_text, key) == number(&of_file, key), "{key}: {of_text} {of_file}");
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
    assert!(none.status == 2 && none.err.contains("is text") && none.err.contains("--tokenizer tokenizer.json"), "{}", none.err);
    // Words that the model has no place for.
    let tokens = text(&tokenizer(dir.path(), 300));
    let large = train(&dir, "e", &["--data", &corpus, "--tokenizer", &tokens]);
    assert_eq!(large.status, 2);
    assert!(large.err.contains("tokenizer.json, whose vocabulary of 301 is larger than the model's of 256"), "{}", large.err);
}
