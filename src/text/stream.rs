//! A stream of tokens: flat u16 numbers, or a file that says what it holds.
//!
//! What `tokenize` writes is a `.safetensors` file whatever its name: the tensor `tokens`, u16 or u32, and [`About`] as JSON under
//! `ancre.tokens` in its header.

use super::{Tokenizer, documents};
use crate::error::Failure;
use crate::io::arrays::{map, read_safetensors};
use ancre_passes::ir::{DType, SharedBytes};
use safetensors::tensor::{Dtype, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// The key in a token file's header.
const KEY: &str = "ancre.tokens";

/// A stream of tokens.
#[derive(Clone, Debug)]
pub struct Tokens {
    bytes: SharedBytes,
    /// Bytes of a token: 2 or 4.
    size: usize,
    about: About,
}

/// What is known of a stream.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct About {
    /// `bytes`, or the file name of the tokenizer.
    pub tokenizer: Option<String>,
    /// Number of tokens that the tokenizer has.
    pub vocabulary: Option<usize>,
    /// Documents.
    pub documents: Option<usize>,
    /// The token between documents.
    pub separator: Option<String>,
    /// Bytes of the text.
    pub bytes: Option<u64>,
}

impl Tokens {
    /// Reads a token file: one that says what it holds, or else flat u16 numbers, little-endian.
    ///
    /// # Errors
    /// When it cannot be read, or is neither.
    pub fn read(path: &Path) -> Result<Tokens, Failure> {
        let bytes = map(path)?;
        // The header of a .safetensors file begins with its length and a brace.
        if bytes.get(8) == Some(&b'{') && safetensors::SafeTensors::read_metadata(&bytes).is_ok() {
            return Tokens::of_file(path);
        }
        if bytes.len() % 2 == 1 {
            let what = format!("has {} bytes, an odd number; tokens are u16, two bytes each", bytes.len());
            return Err(Failure::input(what).at(path).help(
                "numpy: numpy.asarray(ids, '<u2').tofile('tokens.bin'); `ancre-rewrite tokenize` writes files of u16 or u32",
            ));
        }
        Ok(Tokens { bytes, size: 2, about: About::default() })
    }

    fn of_file(path: &Path) -> Result<Tokens, Failure> {
        let (arrays, header) = read_safetensors(path)?;
        let about = header.get(KEY).map(|text| serde_json::from_str(text)).transpose();
        let about = about.map_err(|e| Failure::input(format!("its `{KEY}` cannot be read: {e}")).at(path))?;
        let found = arrays.iter().find(|a| a.name == "tokens" && a.shape.len() == 1);
        let size = match found.map(|a| a.dtype) {
            Some(DType::U16) => 2,
            Some(DType::U32) => 4,
            _ => return Err(Failure::input("holds no tensor `tokens` of u16 or u32 [N]").at(path)),
        };
        let bytes = found.map_or_else(|| SharedBytes::new(Vec::new()), |a| a.bytes().clone());
        Ok(Tokens { bytes, size, about: about.unwrap_or_default() })
    }

    /// Is this the name of a text, which has to be tokenized first?
    pub fn are_in_text(path: &Path) -> bool {
        documents::is_text(path)
    }

    /// Number of tokens.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.size
    }

    /// Has it no token?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A range of the tokens, which the stream has.
    pub fn range(&self, range: Range<usize>) -> impl Iterator<Item = u32> + '_ {
        let bytes = &self.bytes[range.start * self.size..range.end * self.size];
        bytes.chunks_exact(self.size).map(|c| match *c {
            [a, b] => u32::from(u16::from_le_bytes([a, b])),
            [a, b, c, d] => u32::from_le_bytes([a, b, c, d]),
            _ => 0,
        })
    }

    /// What is known of it.
    pub fn about(&self) -> &About {
        &self.about
    }

    /// Bytes of text for each token, over the whole of what was tokenized.
    pub fn bytes_per_token(&self) -> Option<f64> {
        let bytes = self.about.bytes.filter(|_| !self.is_empty())?;
        Some(bytes as f64 / self.len() as f64)
    }

    /// A part of it by itself. Its bytes of text are its share of the whole's.
    pub(super) fn part(&self, range: Range<usize>) -> Tokens {
        let share = range.len() as f64 / self.len().max(1) as f64;
        let bytes = self.about.bytes.map(|b| (b as f64 * share).round() as u64);
        let about = About { bytes, documents: None, ..self.about.clone() };
        Tokens { bytes: self.bytes.slice(range.start * self.size..range.end * self.size), size: self.size, about }
    }

    /// `u16` or `u32`.
    pub fn type_name(&self) -> &'static str {
        if self.size == 2 { "u16" } else { "u32" }
    }

    /// The stream in a line.
    pub fn describe(&self) -> String {
        let a = &self.about;
        let mut text = format!("{} tokens of {}", self.len(), self.type_name());
        if let (Some(name), Some(size)) = (&a.tokenizer, a.vocabulary) {
            text.push_str(&format!(", by {name} (vocabulary {size})"));
        }
        let word = |n: usize| if n == 1 { "document" } else { "documents" };
        match (a.documents, &a.separator) {
            (Some(n), Some(separator)) => text.push_str(&format!(", {n} {} ended by {separator}", word(n))),
            (Some(n), None) if n > 1 => text.push_str(&format!(", {n} documents with nothing between them")),
            (Some(n), None) => text.push_str(&format!(", {n} {}", word(n))),
            _ => {}
        }
        text
    }

    /// The file's bytes.
    pub(super) fn to_file(&self) -> Result<Vec<u8>, String> {
        let dtype = if self.size == 2 { Dtype::U16 } else { Dtype::U32 };
        let view = TensorView::new(dtype, vec![self.len()], &self.bytes).map_err(|e| e.to_string())?;
        let about = serde_json::to_string(&self.about).map_err(|e| e.to_string())?;
        safetensors::serialize([("tokens", view)], Some(HashMap::from([(KEY.to_string(), about)])))
            .map_err(|e| e.to_string())
    }
}

/// Collects tokens, in two bytes each where the vocabulary allows it.
pub(super) struct Packer {
    bytes: Vec<u8>,
    size: usize,
    about: About,
}

impl Packer {
    pub(super) fn new(tokenizer: &Tokenizer, separator: Option<String>) -> Packer {
        let (name, vocabulary) = (Some(tokenizer.name().to_string()), tokenizer.vocabulary());
        let (documents, bytes) = (Some(0), Some(0));
        let about = About { tokenizer: name, vocabulary: Some(vocabulary), documents, separator, bytes };
        let size = if vocabulary <= 1 << 16 { 2 } else { 4 };
        Packer { bytes: Vec::new(), size, about }
    }

    /// Adds the tokens of a document of so many bytes, or one between documents.
    pub(super) fn add(&mut self, text: usize, ids: &[u32]) {
        ids.iter().for_each(|id| self.bytes.extend_from_slice(&id.to_le_bytes()[..self.size]));
        self.about.bytes = self.about.bytes.map(|n| n + text as u64);
        self.about.documents = self.about.documents.map(|n| n + usize::from(text > 0));
    }

    pub(super) fn done(self) -> Tokens {
        Tokens { bytes: SharedBytes::new(self.bytes), size: self.size, about: self.about }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_says_what_it_holds_and_flat_ones_are_read_as_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.bin");
        for (size, ids) in [(2, vec![7u32, 65_535, 0]), (4, vec![128_255, 9])] {
            let bytes = ids.iter().flat_map(|id| id.to_le_bytes()[..size].to_vec()).collect();
            let about = About { vocabulary: Some(128_256), bytes: Some(11), ..About::default() };
            let written = Tokens { bytes: SharedBytes::new(bytes), size, about };
            std::fs::write(&path, written.to_file().unwrap()).unwrap();
            let read = Tokens::read(&path).unwrap();
            assert_eq!((read.len(), read.range(0..read.len()).collect::<Vec<_>>()), (ids.len(), ids));
            assert_eq!(read.about(), written.about());
        }
        std::fs::write(&path, [1, 0, 2, 1]).unwrap();
        assert_eq!(Tokens::read(&path).unwrap().range(0..2).collect::<Vec<_>>(), [1, 258]);
        std::fs::write(&path, [1, 0, 2]).unwrap();
        assert!(Tokens::read(&path).unwrap_err().what.contains("3 bytes, an odd number"));
    }
}
