//! `tokenize`, and text for `train`: documents of text files as a stream of tokens.

mod documents;
#[cfg(feature = "parquet")]
mod parquet;
mod stream;
#[cfg(test)]
#[cfg(feature = "text")]
mod tests;
mod tokenizer;

pub use stream::Tokens;
pub use tokenizer::Tokenizer;

use crate::cli::{TextOptions, TokenizeArgs};
use crate::engine::memory::bytes;
use crate::error::Failure;
use crate::io::files::Outputs;
use crate::io::lines::{Lines, put};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use stream::Packer;

/// What `tokenize` did.
pub struct Tokenized {
    /// Files written: place, size, and what they hold.
    files: Vec<(PathBuf, u64, Tokens)>,
}

/// Runs `tokenize`. Fails when the tokenizer or a text cannot be read, or an output cannot be written.
pub fn tokenize(a: &TokenizeArgs) -> Result<Tokenized, Failure> {
    let name = a.text.tokenizer.as_deref().ok_or_else(|| Failure::input("--tokenizer is missing").help(HOW))?;
    let tokenizer = Tokenizer::open(name)?;
    let whole = encode(&a.texts, &tokenizer, &a.text)?;
    let first = a.texts.first().map(PathBuf::as_path).unwrap_or(Path::new("tokens"));
    let path = a.out.clone().unwrap_or_else(|| first.with_extension("bin"));
    let mut parts = vec![(path.clone(), whole.clone())];
    if let Some(share) = a.val_split {
        if !(share > 0.0 && share < 1.0) {
            return Err(Failure::input(format!("--val-split {share} is no part of the whole, such as 0.1")));
        }
        let held_back = ((whole.len() as f64 * share).round() as usize).max(1);
        let end = whole.len().saturating_sub(held_back);
        parts = vec![(path.clone(), whole.part(0..end)), (path.with_extension("val.bin"), whole.part(end..whole.len()))];
    }
    let spared: Vec<&Path> = a.texts.iter().map(PathBuf::as_path).chain([name]).collect();
    let (mut outputs, mut files) = (Outputs::sparing(&spared), Vec::new());
    for (path, tokens) in parts {
        let content = tokens.to_file().map_err(|e| Failure::input(e).at(&path))?;
        outputs.add_bytes(&content, &path)?;
        files.push((path, content.len() as u64, tokens));
    }
    outputs.commit()?;
    Ok(Tokenized { files })
}

/// How a text becomes tokens.
pub(crate) const HOW: &str = "--tokenizer tokenizer.json (Hugging Face's), or --tokenizer bytes";

/// The tokens of text files and of the text files in directories, one document after the other.
///
/// # Errors
/// A file that cannot be read, that is no UTF-8 where the tokenizer asks for it, or that holds no token.
pub fn encode(paths: &[PathBuf], tokenizer: &Tokenizer, o: &TextOptions) -> Result<Tokens, Failure> {
    let separator = tokenizer.separator(o.end_of_text.as_deref())?;
    let mut packer = Packer::new(tokenizer, separator.as_ref().map(|(word, _)| word.clone()));
    let column = o.text_column.as_deref().unwrap_or("text");
    for path in documents::files(paths)? {
        documents::each(&path, column, &mut |text| {
            packer.add(text.len(), &tokenizer.encode(text)?);
            if let Some((_, id)) = &separator {
                packer.add(0, &[*id]);
            }
            Ok(())
        })
        .map_err(|e| e.at(&path))?;
    }
    let tokens = packer.done();
    if tokens.is_empty() {
        return Err(Failure::input("holds no text").at(paths.first().map_or(Path::new("?"), PathBuf::as_path)));
    }
    Ok(tokens)
}

impl Tokenized {
    /// The report as JSON.
    pub fn json(&self) -> Value {
        let file = |(path, bytes, tokens): &(PathBuf, u64, Tokens)| {
            let mut report = json!(tokens.about());
            report["path"] = json!(path.to_string_lossy());
            report["bytes"] = json!(bytes);
            report["tokens"] = json!(tokens.len());
            report["dtype"] = json!(tokens.type_name());
            report["text_bytes"] = json!(tokens.about().bytes);
            report
        };
        json!({"outputs": self.files.iter().map(file).collect::<Vec<_>>()})
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut out = Lines::new(10);
        for (i, (path, size, tokens)) in self.files.iter().enumerate() {
            let name = if i == 0 { "tokens" } else { "held back" };
            put!(out, name, "{}  ({}; {})", path.display(), bytes(*size), tokens.describe());
        }
        out.text
    }
}
