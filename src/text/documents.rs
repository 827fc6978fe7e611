//! The documents of text files: a plain file is one, a line of a `.jsonl` file is one, a row of a Parquet file is one.

use crate::error::Failure;
use serde_json::Value;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

/// Suffixes of the files that are taken from a directory.
const SUFFIXES: [&str; 5] = ["txt", "text", "md", "jsonl", "parquet"];

fn suffix(path: &Path) -> String {
    path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase()
}

fn unreadable(e: std::io::Error) -> Failure {
    Failure::input(format!("cannot be read: {e}"))
}

/// Is this the name of a text file?
pub(super) fn is_text(path: &Path) -> bool {
    SUFFIXES.contains(&suffix(path).as_str())
}

/// The files, and in place of a directory its text files in the order of their names.
pub(super) fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let mut all = Vec::new();
    for path in paths {
        if !path.is_dir() {
            all.push(path.clone());
            continue;
        }
        let entries = std::fs::read_dir(path).map_err(|e| unreadable(e).at(path))?;
        let mut found: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| is_text(p) && p.is_file()).collect();
        if found.is_empty() {
            let what = format!("holds no text file ({})", SUFFIXES.map(|s| format!(".{s}")).join(", "));
            return Err(Failure::input(what).at(path));
        }
        found.sort();
        all.extend(found);
    }
    Ok(all)
}

#[cfg(feature = "parquet")]
use super::parquet::each as each_row;

#[cfg(not(feature = "parquet"))]
fn each_row(_: &Path, _: &str, _: &mut dyn FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    Err(Failure::input("is a Parquet file, and this build of ancre-rewrite lacks the feature `parquet`")
        .help("cargo install --path . --features parquet; or write its text as .jsonl"))
}

/// Hands over each document of a file, with the column of this name where it has columns.
pub(super) fn each(path: &Path, column: &str, take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    match suffix(path).as_str() {
        "parquet" => return each_row(path, column, take),
        "jsonl" => {}
        _ => return take(&std::fs::read(path).map_err(unreadable)?),
    }
    for (i, line) in BufReader::new(File::open(path).map_err(unreadable)?).split(b'\n').enumerate() {
        let line = line.map_err(unreadable)?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let n = i + 1;
        let row: Value = serde_json::from_slice(&line).map_err(|e| Failure::input(format!("line {n} is no JSON: {e}")))?;
        match row.get(column) {
            Some(Value::String(text)) => {
                take(text.as_bytes()).map_err(|e| Failure::input(format!("line {n}: {}", e.what)))?
            }
            _ => {
                let names: Vec<&String> = row.as_object().into_iter().flat_map(|o| o.keys()).collect();
                return Err(Failure::input(format!("line {n} has no text `{column}`; it has {names:?}"))
                    .help("name the column: --text-column NAME"));
            }
        }
    }
    Ok(())
}
