//! Tests with a `tokenizer.json`.

use super::{Tokens, tokenize};
use crate::cli::{TextOptions, TokenizeArgs};
use crate::error::Failure;
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

fn written(dir: &TempDir, name: &str, content: &[u8]) -> PathBuf {
    let path = dir.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn ids(path: &Path) -> Vec<u32> {
    let tokens = Tokens::read(path).unwrap();
    tokens.range(0..tokens.len()).collect()
}

fn run(texts: &[&Path], tokenizer: &Path, change: impl Fn(&mut TokenizeArgs)) -> Result<Value, Failure> {
    let text = TextOptions { tokenizer: Some(tokenizer.into()), ..TextOptions::default() };
    let texts = texts.iter().map(|p| p.to_path_buf()).collect();
    let mut a = TokenizeArgs { texts, text, out: None, val_split: None, json: true };
    change(&mut a);
    tokenize(&a).map(|done| done.json())
}

#[test]
fn documents_are_tokenized_one_by_one_and_ended() {
    let dir = tempfile::tempdir().unwrap();
    let words = tokenizer(dir.path(), 6);
    let (one, two) = (written(&dir, "a.txt", b"To be or"), dir.path().join("more"));
    std::fs::create_dir(&two).unwrap();
    std::fs::write(two.join("b.jsonl"), "{\"body\": \"not to be\"}\r\n\n{\"body\": \"rare be\", \"n\": 1}\n").unwrap();
    std::fs::write(two.join("c.csv"), "no text").unwrap();
    let out = dir.path().join("t.bin");
    let report = run(&[&one, &two], &words, |a| {
        (a.text.text_column, a.out) = (Some("body".into()), Some(out.clone()));
    });
    // The length at which this tokenizer cuts is left aside.
    assert_eq!(ids(&out), [1, 2, 3, 5, 4, 1, 2, 5, 6, 2, 5]);
    let file = &report.unwrap()["outputs"][0];
    assert_eq!((&file["tokens"], &file["dtype"], &file["documents"]), (&json!(11), &json!("u16"), &json!(3)));
    assert_eq!((&file["separator"], &file["vocabulary"]), (&json!("<|endoftext|>"), &json!(7)));
    assert_eq!(file["text_bytes"], json!(8 + 9 + 7));

    // A vocabulary beyond 16 bits, another token between documents, and a part held back.
    let words = tokenizer(dir.path(), 70_000);
    let report = run(&[&one], &words, |a| (a.text.end_of_text, a.val_split) = (Some("not".into()), Some(0.4))).unwrap();
    assert_eq!(report["outputs"][0]["dtype"], json!("u32"));
    assert_eq!((ids(&dir.path().join("a.bin")), ids(&dir.path().join("a.val.bin"))), (vec![1, 2], vec![3, 4]));
}

#[test]
fn a_text_that_cannot_be_tokenized_is_refused_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let words = tokenizer(dir.path(), 6);
    let refused = |file: PathBuf, tokenizer: &Path, said: &[&str]| {
        let e = run(&[&file], tokenizer, |_| ()).unwrap_err().to_string();
        assert!(said.iter().all(|s| e.contains(s)), "{said:?}: {e}");
    };
    let bytes = Path::new("bytes");
    refused(written(&dir, "latin.txt", b"caf\xe9"), &words, &["latin.txt", "byte 3", "--tokenizer bytes"]);
    let other = written(&dir, "a.jsonl", b"{\"text\": \"be\"}\n{\"txt\": \"be\"}");
    refused(other, &words, &["line 2 has no text `text`", "txt", "--text-column"]);
    refused(written(&dir, "b.jsonl", b"{\"text\": "), &words, &["b.jsonl", "line 1 is no JSON"]);
    refused(written(&dir, "empty.txt", b""), bytes, &["empty.txt", "holds no text"]);
    let (some, none) = (written(&dir, "some.txt", b"be"), written(&dir, "t.json", b"{}"));
    refused(some.clone(), &none, &["t.json", "is no readable tokenizer"]);
    let e = run(&[&some], &words, |a| a.text.end_of_text = Some("<eos>".into())).unwrap_err();
    assert!(e.what.contains("has no token `<eos>`"), "{e}");
}
