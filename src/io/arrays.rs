//! Arrays in files: `.npy`, `.npz`, `.safetensors`. Files are mapped, not read, so that they may be larger than memory.

use crate::error::Failure;
use crate::io::tensor::NpTensor;
use ancre_passes::ir::{DType, SharedBytes};
use indexmap::IndexMap;
use safetensors::{Dtype, SafeTensorError, View};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::Path;
#[cfg(feature = "ort")]
use std::path::PathBuf;

/// A compressed array up to this size is unpacked into memory, a larger one into a temporary file.
const LARGEST_IN_MEMORY: u64 = 256 << 20;

/// Element types that files hold: ours, safetensors', the one in the header of an .npy file, and the name that numpy gives it.
const TYPES: [(DType, Dtype, &str, &str); 13] = [
    (DType::F32, Dtype::F32, "f4", "float32"),
    (DType::F64, Dtype::F64, "f8", "float64"),
    (DType::F16, Dtype::F16, "f2", "float16"),
    (DType::BF16, Dtype::BF16, "no code", "bfloat16"),
    (DType::I64, Dtype::I64, "i8", "int64"),
    (DType::I32, Dtype::I32, "i4", "int32"),
    (DType::I16, Dtype::I16, "i2", "int16"),
    (DType::I8, Dtype::I8, "i1", "int8"),
    (DType::U64, Dtype::U64, "u8", "uint64"),
    (DType::U32, Dtype::U32, "u4", "uint32"),
    (DType::U16, Dtype::U16, "u2", "uint16"),
    (DType::U8, Dtype::U8, "u1", "uint8"),
    (DType::Bool, Dtype::BOOL, "b1", "bool"),
];

/// An array of a file.
#[derive(Clone, Debug)]
pub(crate) struct Array {
    /// Its name in the file, or the file's name.
    pub(crate) name: String,
    pub(crate) dtype: DType,
    pub(crate) shape: Vec<usize>,
    /// Column-major?
    fortran: bool,
    /// Most significant byte first?
    big_endian: bool,
    bytes: SharedBytes,
}

impl Array {
    /// The bytes as the file holds them.
    pub(crate) fn bytes(&self) -> &SharedBytes {
        &self.bytes
    }

    /// Elements of one sample: what one step along the first axis covers.
    pub(crate) fn row_len(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Appends the bytes of one sample, row-major and little-endian.
    pub(crate) fn read_row(&self, row: usize, out: &mut Vec<u8>) {
        let size = self.dtype.size().unwrap_or(1);
        let count = self.row_len();
        let start = out.len();
        if self.fortran {
            // The first axis is the fastest one; an index of the rest, last axis fastest, is turned round digit by digit.
            let rows = self.shape[0];
            for flat in 0..count {
                let (mut rest, mut place) = (flat, 0);
                for (axis, extent) in self.shape.iter().enumerate().skip(1).rev() {
                    let below: usize = self.shape[1..axis].iter().product();
                    place += rest % extent * below;
                    rest /= extent;
                }
                let at = (place * rows + row) * size;
                out.extend_from_slice(&self.bytes[at..at + size]);
            }
        } else {
            let at = row * count * size;
            out.extend_from_slice(&self.bytes[at..at + count * size]);
        }
        if self.big_endian {
            out[start..].chunks_exact_mut(size).for_each(<[u8]>::reverse);
        }
    }

    /// The whole array, row-major and little-endian.
    pub(crate) fn read_all(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.bytes.len());
        if self.fortran {
            (0..self.shape[0]).for_each(|row| self.read_row(row, &mut out));
            return out;
        }
        out.extend_from_slice(&self.bytes);
        if self.big_endian {
            out.chunks_exact_mut(self.dtype.size().unwrap_or(1)).for_each(<[u8]>::reverse);
        }
        out
    }

    #[cfg(feature = "ort")]
    pub(crate) fn rows(&self, rows: impl ExactSizeIterator<Item = usize>) -> Option<NpTensor> {
        let shape: Vec<usize> = [rows.len()].into_iter().chain(self.shape.iter().skip(1).copied()).collect();
        let mut bytes = Vec::with_capacity(rows.len() * self.row_len() * self.dtype.size()?);
        rows.for_each(|row| self.read_row(row, &mut bytes));
        NpTensor::new(self.dtype, &shape, bytes)
    }

    /// The array as a tensor; `None` when its elements have no byte size.
    pub(crate) fn tensor(&self) -> Option<NpTensor> {
        NpTensor::new(self.dtype, &self.shape, self.read_all())
    }

    /// The array as messages name it: `x` float32 [10, 3].
    pub(crate) fn text(&self) -> String {
        format!("`{}` {} {:?}", self.name, numpy_name(self.dtype), self.shape)
    }
}

/// The arrays of an `.npz` or `.safetensors` file.
pub(crate) fn read_arrays(path: &Path) -> Result<Vec<Array>, Failure> {
    let suffix = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
    match suffix.as_str() {
        "npz" => read_npz(path),
        "safetensors" => Ok(read_safetensors(path)?.0),
        _ => Err(Failure::input("has an unknown suffix, .safetensors or .npz was expected").at(path)),
    }
}

/// The tensors of an `.npz` or `.safetensors` file, by name.
pub(crate) fn read_tensors(path: &Path) -> Result<IndexMap<String, NpTensor>, Failure> {
    tensors(&read_arrays(path)?, path)
}

/// The arrays of a file as tensors, by name.
pub(crate) fn tensors(arrays: &[Array], path: &Path) -> Result<IndexMap<String, NpTensor>, Failure> {
    let unusable = |a: &Array| Failure::input(format!("array {} has elements that cannot be fed", a.text())).at(path);
    arrays.iter().map(|a| Ok((a.name.clone(), a.tensor().ok_or_else(|| unusable(a))?))).collect()
}

/// Does a directory hold .npy files?
#[cfg(feature = "ort")]
pub(crate) fn holds_arrays(dir: &Path) -> Result<bool, Failure> {
    Ok(!npy_files(dir)?.is_empty())
}

#[cfg(feature = "ort")]
fn npy_files(dir: &Path) -> Result<Vec<PathBuf>, Failure> {
    let entries = std::fs::read_dir(dir).map_err(|e| Failure::input(format!("cannot be read: {e}")).at(dir))?;
    let mut all: Vec<PathBuf> = entries.flatten().map(|e| e.path()).collect();
    all.retain(|p| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy")) && p.is_file());
    all.sort();
    Ok(all)
}

/// The arrays of a directory, each named like its file.
#[cfg(feature = "ort")]
pub(crate) fn read_dir(dir: &Path) -> Result<Vec<Array>, Failure> {
    npy_files(dir)?.iter().map(|p| read_npy(p)).collect()
}

/// The array of an `.npy` file, named like the file.
pub(crate) fn read_npy(path: &Path) -> Result<Array, Failure> {
    let name = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    parse(name, map(path)?).map_err(|e| Failure::input(e).at(path))
}

/// The arrays of an `.npz`. What is stored is mapped where it lies; what is compressed has to be unpacked first.
fn read_npz(path: &Path) -> Result<Vec<Array>, Failure> {
    let fail = |what: String| Failure::input(what).at(path);
    let unreadable = |e: std::io::Error| fail(format!("cannot be read: {e}"));
    let mut file = File::open(path).map_err(unreadable)?;
    let reader = std::io::BufReader::new(file.try_clone().map_err(unreadable)?);
    let damaged = |e: zip::result::ZipError| fail(format!("is no readable .npz: {e}"));
    let mut archive = zip::ZipArchive::new(reader).map_err(damaged)?;
    let mut all = Vec::new();
    for i in 0..archive.len() {
        let mut entry = archive.by_index(i).map_err(damaged)?;
        let Some(name) = entry.name().strip_suffix(".npy").map(str::to_string) else { continue };
        let bytes = if entry.compression() == zip::CompressionMethod::Stored {
            SharedBytes::of_range(&mut file, entry.data_start(), entry.size())
        } else {
            unpack(&mut entry)
        };
        let bytes = bytes.map_err(|e| {
            fail(format!("array `{name}` cannot be unpacked: {e}")).help(
                "save it uncompressed (numpy.savez) or as a directory of .npy files, which are mapped and need no room",
            )
        })?;
        all.push(parse(&name, bytes).map_err(|e| fail(format!("array `{name}`: {e}")))?);
    }
    Ok(all)
}

fn unpack(entry: &mut zip::read::ZipFile<'_, impl Read + Seek>) -> std::io::Result<SharedBytes> {
    if entry.size() <= LARGEST_IN_MEMORY {
        let mut bytes = Vec::with_capacity(usize::try_from(entry.size()).unwrap_or(0));
        entry.read_to_end(&mut bytes)?;
        return Ok(SharedBytes::new(bytes));
    }
    let mut file = tempfile::tempfile()?;
    std::io::copy(entry, &mut file)?;
    file.rewind()?;
    SharedBytes::of_file(&mut file)
}

/// The bytes of a file, mapped.
pub(crate) fn map(path: &Path) -> Result<SharedBytes, Failure> {
    let bytes = File::open(path).and_then(|mut file| SharedBytes::of_file(&mut file));
    bytes.map_err(|e| Failure::input(format!("cannot be read: {e}")).at(path))
}

/// The tensors of a `.safetensors` file by name, and its metadata.
pub(crate) fn read_safetensors(path: &Path) -> Result<(Vec<Array>, HashMap<String, String>), Failure> {
    let fail = |what: String| Failure::input(what).at(path);
    let bytes = map(path)?;
    let damaged = |e: SafeTensorError| fail(format!("is no readable .safetensors: {e}"));
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).map_err(damaged)?;
    let data = 8 + header;
    let mut all: Vec<Array> = Vec::new();
    for (name, info) in metadata.tensors() {
        let Some((dtype, ..)) = TYPES.iter().find(|t| t.1 == info.dtype) else {
            return Err(fail(format!("tensor `{name}` has element type {:?}, which cannot be fed", info.dtype)));
        };
        let (start, end) = info.data_offsets;
        if data + end > bytes.len() {
            return Err(fail(format!("tensor `{name}` ends after the file does; the file is cut off")));
        }
        let bytes = bytes.slice(data + start..data + end);
        let shape = info.shape.clone();
        all.push(Array { name, dtype: *dtype, shape, fortran: false, big_endian: false, bytes });
    }
    all.sort_by(|a, b| a.name.cmp(&b.name));
    Ok((all, metadata.metadata().clone().unwrap_or_default()))
}

/// A tensor as a `.safetensors` file holds it.
pub(crate) struct Stored<'t>(Dtype, &'t NpTensor);

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.0
    }

    fn shape(&self) -> &[usize] {
        self.1.shape()
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.1.bytes().into()
    }

    fn data_len(&self) -> usize {
        self.1.bytes().len()
    }
}

/// Tensors as a `.safetensors` file holds them.
pub(crate) fn stored(all: &IndexMap<String, NpTensor>) -> Result<Vec<(&str, Stored<'_>)>, String> {
    let mut stored = Vec::new();
    for (name, t) in all {
        let known = TYPES.iter().find(|types| types.0 == t.dtype());
        let (_, dtype, ..) =
            known.ok_or_else(|| format!("`{name}` has element type {}, which .safetensors has not", t.dtype()))?;
        stored.push((name.as_str(), Stored(*dtype, t)));
    }
    Ok(stored)
}

/// Reads the header of an `.npy` file.
fn parse(name: &str, bytes: SharedBytes) -> Result<Array, String> {
    let no = |what: &str| format!("is no readable .npy: {what}");
    if bytes.len() < 10 || &bytes[..6] != b"\x93NUMPY" {
        return Err(no("it does not start as one"));
    }
    let (start, length): (usize, usize) = if bytes[6] == 1 {
        (10, usize::from(u16::from_le_bytes([bytes[8], bytes[9]])))
    } else {
        let four = bytes.get(8..12).ok_or_else(|| no("it is cut off"))?;
        (12, u32::from_le_bytes([four[0], four[1], four[2], four[3]]) as usize)
    };
    let header = bytes.get(start..start.saturating_add(length)).ok_or_else(|| no("it is cut off"))?;
    let header = std::str::from_utf8(header).map_err(|_| no("its header is no text"))?;
    let after = |key: &str| header.split_once(&format!("'{key}':")).map(|(_, rest)| rest.trim_start());
    let descr = after("descr").ok_or_else(|| no("its header has no `descr`"))?;
    let code = descr.strip_prefix('\'').and_then(|r| r.split_once('\'')).map_or(descr, |(code, _)| code);
    let (big_endian, dtype) = element_type(code)?;
    let fortran = after("fortran_order").is_some_and(|r| r.starts_with("True"));
    let shape = after("shape").and_then(|r| r.strip_prefix('(')?.split_once(')')).map(|(inside, _)| inside);
    let shape = shape.ok_or_else(|| no("its header has no `shape`"))?;
    let shape = shape.split(',').map(str::trim).filter(|d| !d.is_empty()).map(|d| d.trim_end_matches('L').parse());
    let shape: Vec<usize> = shape.collect::<Result<_, _>>().map_err(|_| no("its shape is no list of numbers"))?;
    let size = shape.iter().try_fold(dtype.size().unwrap_or(1), |n, d| n.checked_mul(*d));
    let data = bytes.slice(start + length..bytes.len());
    match size {
        Some(size) if data.len() >= size => {
            let fortran = fortran && shape.len() > 1;
            Ok(Array { name: name.into(), dtype, shape, fortran, big_endian, bytes: data.slice(0..size) })
        }
        _ => Err(format!("holds {} bytes where its type {dtype} and shape {shape:?} need more; it is cut off", data.len())),
    }
}

fn element_type(code: &str) -> Result<(bool, DType), String> {
    let (order, kind) = code.split_at(code.len().min(1));
    match TYPES.iter().find(|t| t.2 == kind) {
        Some((dtype, ..)) => Ok((order == ">", *dtype)),
        None => Err(format!(
            "has element type `{code}`, which cannot be fed; save it as a plain numeric array (numpy.asarray(x, 'float32'))"
        )),
    }
}

/// The name by which numpy, and so everyone who makes a data set, knows a type.
pub(crate) fn numpy_name(t: DType) -> &'static str {
    TYPES.iter().find(|types| types.0 == t).map_or(t.name(), |types| types.3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, data: &[u8]) -> Result<Array, String> {
        let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
        bytes.extend((header.len() as u16).to_le_bytes());
        bytes.extend(header.as_bytes());
        bytes.extend(data);
        parse("a", SharedBytes::new(bytes))
    }

    #[test]
    fn column_major_and_big_endian_arrays_read_as_any_other() {
        // a[r][i][j] = 100 r + 10 i + j over shape (2, 2, 3).
        let element = |r: u16, i: u16, j: u16| 100 * r + 10 * i + j;
        let mut stored = Vec::new();
        for (j, i, r) in (0..3).flat_map(|j| (0..2).flat_map(move |i| (0..2).map(move |r| (j, i, r)))) {
            stored.extend(element(r, i, j).to_be_bytes());
        }
        let a = npy("{'descr': '>u2', 'fortran_order': True, 'shape': (2, 2, 3), }", &stored).unwrap();
        let mut row = Vec::new();
        a.read_row(1, &mut row);
        let wanted: Vec<u8> = (0..2).flat_map(|i| (0..3).flat_map(move |j| element(1, i, j).to_le_bytes())).collect();
        assert_eq!(row, wanted);
        assert_eq!(a.read_all().len(), 24);
    }

    #[test]
    fn what_is_no_array_is_refused() {
        for (header, data, said) in [
            ("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }", &[0u8; 8][..], "cut off"),
            ("{'descr': '|O', 'fortran_order': False, 'shape': (3,), }", &[0; 8], "element type `|O`"),
            ("{'descr': '<f4', 'shape': (99999999999, 99999999999), }", &[0; 8], "cut off"),
            ("{'descr': '<f4', 'shape': (x,), }", &[0; 8], "no list of numbers"),
            ("{}", &[], "descr"),
        ] {
            let e = npy(header, data).unwrap_err();
            assert!(e.contains(said), "{header}: {e}");
        }
        assert!(parse("a", SharedBytes::new(b"PK\x03\x04 and so on".to_vec())).is_err());
    }
}
