//! The documents of a Parquet file: a row's text in one column.

use crate::error::Failure;
use parquet::basic::Type;
use parquet::column::reader::ColumnReader;
use parquet::data_type::ByteArray;
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader, SerializedFileReader};
use std::fs::File;
use std::path::Path;

/// Rows that are read at once.
const ROWS: usize = 1024;

/// Hands over the text of each row. Fails when the file cannot be read, has no column of text of that name, or a row without a text.
pub(super) fn each(path: &Path, column: &str, take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>) -> Result<(), Failure> {
    let fail = |e: ParquetError| Failure::input(format!("cannot be read: {e}"));
    let file = File::open(path).map_err(|e| Failure::input(format!("cannot be read: {e}")))?;
    let reader = SerializedFileReader::new(file).map_err(fail)?;
    let schema = reader.metadata().file_metadata().schema_descr();
    let found = schema.columns().iter().position(|c| c.path().string() == column);
    // One text a row: no list of them.
    let is_text =
        |i: &usize| schema.column(*i).physical_type() == Type::BYTE_ARRAY && schema.column(*i).max_rep_level() == 0;
    let Some(index) = found.filter(is_text) else {
        let names: Vec<String> =
            (0..schema.num_columns()).filter(is_text).map(|i| schema.column(i).path().string()).collect();
        return Err(Failure::input(format!("has no column of text `{column}`; columns of text are {names:?}"))
            .help("name the column: --text-column NAME"));
    };
    let mut row = 0;
    for group in 0..reader.num_row_groups() {
        let group = reader.get_row_group(group).map_err(fail)?;
        let ColumnReader::ByteArrayColumnReader(mut texts) = group.get_column_reader(index).map_err(fail)? else {
            return Err(Failure::input(format!("its column `{column}` is no text")));
        };
        loop {
            let mut values: Vec<ByteArray> = Vec::new();
            let mut levels: Vec<i16> = Vec::new();
            let (rows, present, _) = texts.read_records(ROWS, Some(&mut levels), None, &mut values).map_err(fail)?;
            if present < rows {
                let deepest = schema.column(index).max_def_level();
                let missing = levels.iter().position(|l| *l < deepest).unwrap_or_default();
                return Err(Failure::input(format!("row {} has no text `{column}`", row + missing + 1)));
            }
            for value in &values {
                row += 1;
                take(value.data()).map_err(|e| Failure::input(format!("row {row}: {}", e.what)))?;
            }
            if rows == 0 {
                break;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    fn texts(name: &str, column: &str) -> Result<Vec<String>, Failure> {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/parquet").join(name);
        let mut all = Vec::new();
        each(&path, column, &mut |text| {
            all.push(String::from_utf8_lossy(text).into_owned());
            Ok(())
        })?;
        Ok(all)
    }

    #[test]
    fn a_column_of_text_is_read_row_by_row() {
        for codec in ["snappy", "zstd", "none"] {
            let seen = texts(&format!("{codec}.parquet"), "body").unwrap();
            assert_eq!(seen, ["to be", "or not", "tö be", "", "to be"], "{codec}");
        }
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        for (name, column, parts) in [
            ("snappy.parquet", "text", &["no column of text `text`", "[\"body\"]"][..]),
            ("snappy.parquet", "id", &["no column of text `id`"]),
            ("snappy.parquet", "words.list.element", &["no column of text"]),
            ("null.parquet", "text", &["row 2 has no text `text`"]),
            ("gzip.parquet", "body", &["cannot be read", "flate2"]),
            ("make.py", "text", &["cannot be read"]),
        ] {
            let said = texts(name, column).unwrap_err().what;
            assert!(parts.iter().all(|p| said.contains(p)), "{name}, {column}: {said}");
        }
    }
}
