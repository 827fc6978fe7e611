//! The user's own inputs: `.npy` and `.npz` files.

use crate::engine::Tensors;
use crate::error::Failure;
use crate::tensor::NpTensor;
use ancre_passes::ir::{DType, Graph};
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;

/// Reads all `--input` options; names must be inputs of the model.
///
/// # Errors
/// The first file that cannot be read, or name that is no input.
pub fn read_inputs(options: &[String], g: &Graph) -> Result<Tensors, Failure> {
    let mut given = Tensors::new();
    for text in options {
        let (name, file) = match text.split_once('=') {
            Some((name, file)) if !name.is_empty() => (Some(name), file),
            _ => (None, text.as_str()),
        };
        let path = Path::new(file);
        let is = |suffix: &str| path.extension().is_some_and(|e| e.eq_ignore_ascii_case(suffix));
        match name {
            Some(name) if is("npy") => {
                given.insert(name.to_string(), read_npy(path)?);
            }
            Some(name) if is("npz") => {
                let mut all = read_npz(path)?;
                let t = all.swap_remove(name).ok_or_else(|| {
                    let has = all.keys().cloned().collect::<Vec<_>>().join(", ");
                    Failure::input(format!("--input {text}: holds no array `{name}`, only {has}")).at(path)
                })?;
                given.insert(name.to_string(), t);
            }
            None if is("npz") => given.extend(read_npz(path)?),
            _ => {
                return Err(Failure::input(format!("--input `{text}` is not NAME=FILE.npy, NAME=FILE.npz or FILE.npz")));
            }
        }
    }
    let inputs: Vec<&str> = g.required_inputs().map(|v| g.name(v)).collect();
    match given.keys().find(|name| !inputs.contains(&name.as_str())) {
        None => Ok(given),
        Some(name) => Err(Failure::input(format!("--input {name}: the model's inputs are {}", inputs.join(", ")))),
    }
}

fn open(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(|e| Failure::input(format!("cannot be read: {e}")).at(path))
}

fn read_npy(path: &Path) -> Result<NpTensor, Failure> {
    let mut bytes = Vec::new();
    open(path)?.read_to_end(&mut bytes).map_err(|e| Failure::input(format!("cannot be read: {e}")).at(path))?;
    parse_npy(&bytes).map_err(|e| Failure::input(format!("is not a readable .npy: {e}")).at(path))
}

fn read_npz(path: &Path) -> Result<Tensors, Failure> {
    let fail = |e: String| Failure::input(format!("is not a readable .npz: {e}")).at(path);
    let mut archive = ndarray_npy::NpzReader::new(open(path)?).map_err(|e| fail(e.to_string()))?;
    let names = archive.names().map_err(|e| fail(e.to_string()))?;
    let mut all = Tensors::new();
    for name in names {
        let key = name.trim_end_matches(".npy").to_string();
        let t = read_entry(&mut archive, &name).ok_or_else(|| fail(format!("`{key}` has a type that cannot be used")))?;
        all.insert(key, t);
    }
    all.sort_keys();
    Ok(all)
}

/// One array of an archive, whatever its type is.
fn read_entry<R: Read + Seek>(archive: &mut ndarray_npy::NpzReader<R>, name: &str) -> Option<NpTensor> {
    macro_rules! attempt {
        ($($t:ty => $dtype:ident),*) => {
            $(if let Ok(a) = archive.by_name::<ndarray::OwnedRepr<$t>, ndarray::IxDyn>(name) {
                return NpTensor::new(DType::$dtype, a.shape(), a.iter().flat_map(|v| v.to_le_bytes()).collect());
            })*
        };
    }
    attempt!(f32 => F32, i64 => I64, f64 => F64, i32 => I32, u8 => U8, i8 => I8, i16 => I16, u16 => U16, u32 => U32, u64 => U64);
    let bools = archive.by_name::<ndarray::OwnedRepr<bool>, ndarray::IxDyn>(name).ok()?;
    NpTensor::new(DType::Bool, bools.shape(), bools.iter().map(|v| *v as u8).collect())
}

/// An array in numpy's format: magic, version, header as a Python dictionary, elements.
///
/// # Errors
/// What is wrong with it.
pub fn parse_npy(bytes: &[u8]) -> Result<NpTensor, String> {
    let body = bytes.strip_prefix(b"\x93NUMPY").ok_or("it does not start as one")?;
    let (major, length_bytes) = match body {
        [1, _, ..] => (1, 2),
        [2 | 3, _, ..] => (2, 4),
        _ => return Err("its version is unknown".into()),
    };
    let length = body.get(2..2 + length_bytes).ok_or("it is cut off")?;
    let length = length.iter().rev().fold(0usize, |n, b| (n << 8) | *b as usize);
    let start = 2 + length_bytes;
    let header = body.get(start..).and_then(|b| b.get(..length)).ok_or("its header is cut off")?;
    let header = std::str::from_utf8(header).map_err(|_| format!("its header (version {major}) is no text"))?;
    let field = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let descr = field("descr").and_then(|r| r.strip_prefix('\'')).and_then(|r| r.split_once('\'')).map(|(d, _)| d);
    let descr = descr.ok_or("it has no simple element type")?;
    if field("fortran_order").is_some_and(|r| r.starts_with("True")) {
        return Err("it is in Fortran order; save numpy.ascontiguousarray of it".into());
    }
    let shape = field("shape").and_then(|r| r.strip_prefix('(')).and_then(|r| r.split_once(')')).map(|(s, _)| s);
    let shape: Vec<usize> = shape
        .ok_or("it has no shape")?
        .split(',')
        .map(str::trim)
        .filter(|s| !s.is_empty())
        .map(|s| s.parse().map_err(|_| format!("extent `{s}` is no number")))
        .collect::<Result<_, String>>()?;
    let dtype = match descr.trim_start_matches(['<', '|', '=']) {
        "f4" => DType::F32,
        "f8" => DType::F64,
        "f2" => DType::F16,
        "i8" => DType::I64,
        "i4" => DType::I32,
        "i2" => DType::I16,
        "i1" => DType::I8,
        "u8" => DType::U64,
        "u4" => DType::U32,
        "u2" => DType::U16,
        "u1" => DType::U8,
        "b1" => DType::Bool,
        _ => return Err(format!("elements of type `{descr}` cannot be used")),
    };
    let data = body[start + length..].to_vec();
    let has = data.len();
    NpTensor::new(dtype, &shape, data)
        .ok_or_else(|| format!("it holds {has} bytes of elements, not what {descr}{shape:?} needs"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray_npy::WriteNpyExt;

    #[test]
    fn npy_files_are_read() {
        let mut bytes = Vec::new();
        ndarray::arr2(&[[1f32, 2.0, 3.0], [4.0, 5.0, 6.5]]).write_npy(&mut bytes).unwrap();
        assert_eq!(parse_npy(&bytes).unwrap(), NpTensor::f32s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.5]).unwrap());
        let mut bytes = Vec::new();
        ndarray::arr1(&[7i64, -1]).write_npy(&mut bytes).unwrap();
        assert_eq!(parse_npy(&bytes).unwrap(), NpTensor::i64s(&[2], &[7, -1]).unwrap());
        let mut bytes = Vec::new();
        ndarray::arr0(true).write_npy(&mut bytes).unwrap();
        assert_eq!(parse_npy(&bytes).unwrap().shape(), [0usize; 0]);
        bytes.pop();
        assert!(parse_npy(&bytes).is_err() && parse_npy(b"PK").is_err() && parse_npy(b"\x93NUMPY").is_err());
    }
}
