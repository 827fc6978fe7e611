//! What turns text into tokens: its bytes, or Hugging Face's `tokenizer.json`.

use crate::error::Failure;
use std::path::Path;

/// Turns text into tokens.
pub struct Tokenizer {
    /// `bytes`, or the file's name.
    name: String,
    kind: Kind,
}

enum Kind {
    Bytes,
    #[cfg(feature = "text")]
    File(Box<tokenizers::Tokenizer>),
}

/// Tokens that end a document, of the tokenizers that are known.
#[cfg(feature = "text")]
const ENDS: [&str; 6] = ["<|endoftext|>", "<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "[SEP]"];

impl Tokenizer {
    /// `bytes`, or a `tokenizer.json`.
    pub fn open(name: &Path) -> Result<Tokenizer, Failure> {
        if name == Path::new("bytes") {
            return Ok(Tokenizer { name: "bytes".into(), kind: Kind::Bytes });
        }
        Tokenizer::of_file(name)
    }

    #[cfg(feature = "text")]
    fn of_file(path: &Path) -> Result<Tokenizer, Failure> {
        let fail = |e: String| {
            Failure::input(format!("is no readable tokenizer: {e}"))
                .at(path)
                .help("give the tokenizer.json of a Hugging Face model, or --tokenizer bytes")
        };
        let text = std::fs::read(path).map_err(|e| fail(e.to_string()))?;
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(&text).map_err(|e| fail(e.to_string()))?;
        // A document is taken whole: no length is cut or filled up.
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|e| fail(e.to_string()))?;
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        Ok(Tokenizer { name, kind: Kind::File(Box::new(tokenizer)) })
    }

    #[cfg(not(feature = "text"))]
    fn of_file(path: &Path) -> Result<Tokenizer, Failure> {
        Err(Failure::input("cannot be read: this build of ancre-rewrite lacks the feature `text`")
            .at(path)
            .help("build with it (cargo install --path . --features text), or take --tokenizer bytes, which needs none"))
    }

    /// `bytes`, or the file's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Number of tokens: the largest id and one.
    pub fn vocabulary(&self) -> usize {
        match &self.kind {
            Kind::Bytes => 256,
            #[cfg(feature = "text")]
            Kind::File(t) => t.get_vocab(true).values().max().map_or(0, |id| *id as usize + 1),
        }
    }

    /// The token that ends a document, with its id: the one that is asked for, or the one that the tokenizer is known to have.
    ///
    /// # Errors
    /// When the tokenizer lacks the token that is asked for.
    pub fn separator(&self, asked: Option<&str>) -> Result<Option<(String, u32)>, Failure> {
        let found = match (&self.kind, asked) {
            (Kind::Bytes, _) => None,
            #[cfg(feature = "text")]
            (Kind::File(t), Some(word)) => t.token_to_id(word).map(|id| (word.to_string(), id)),
            #[cfg(feature = "text")]
            (Kind::File(t), None) => ENDS.iter().find_map(|word| Some((word.to_string(), t.token_to_id(word)?))),
        };
        match (asked, &found) {
            (Some(word), None) => Err(Failure::input(format!("--end-of-text: {} has no token `{word}`", self.name))),
            _ => Ok(found),
        }
    }

    /// The tokens of a document, without any that the tokenizer would add around it.
    ///
    /// # Errors
    /// When it is no UTF-8 and the tokenizer takes nothing else.
    pub fn encode(&self, text: &[u8]) -> Result<Vec<u32>, Failure> {
        match &self.kind {
            Kind::Bytes => Ok(text.iter().map(|b| u32::from(*b)).collect()),
            #[cfg(feature = "text")]
            Kind::File(t) => {
                let text = std::str::from_utf8(text).map_err(|e| {
                    Failure::input(format!("is no UTF-8 text: byte {} begins no letter", e.valid_up_to()))
                        .help("convert it to UTF-8, or take --tokenizer bytes")
                })?;
                let fail = |e: tokenizers::Error| Failure::input(format!("cannot be tokenized: {e}"));
                Ok(t.encode_fast(text, false).map_err(fail)?.get_ids().to_vec())
            }
        }
    }
}
