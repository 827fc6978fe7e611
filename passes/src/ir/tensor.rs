//! Constant tensors. Bytes stay where they came from: the parsed message, the source file, a shared buffer, or an external
//! file.

use super::bytes::SharedBytes;
use super::external::{ExternalPlace, Home, begins_as_pointer, external_path, external_place};
use super::types::DType;
use onnx_protobuf::{SparseTensorProto, TensorProto};
use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// Why a constant's bytes cannot be read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("tensor `{name}`: {what}")]
pub struct TensorError {
    /// Name of the tensor, if it has one.
    pub name: String,
    /// What is wrong with it and what to try.
    pub what: String,
}

/// Bytes that a sparse constant may have once all its elements are written out. A small message may stand for any number of them.
const LARGEST_DENSE: usize = 1 << 32;

/// Where the bytes of a constant live.
#[derive(Clone, Debug)]
enum Data {
    /// In the source's own message, never copied; emitted verbatim.
    Proto(Arc<TensorProto>),
    /// In the source's file: its message without `raw_data`, and that.
    Mapped(Arc<TensorProto>, SharedBytes),
    /// The source's own sparse message.
    Sparse(Arc<SparseTensorProto>),
    /// Little-endian elements owned by us.
    Raw(Arc<Vec<u8>>),
}

/// A constant tensor.
#[derive(Clone, Debug)]
pub struct Tensor {
    dtype: DType,
    dims: Vec<i64>,
    data: Data,
    /// Where relative external data paths start.
    home: Option<Arc<Home>>,
    /// The external bytes, once they were asked for.
    external: OnceLock<SharedBytes>,
}

/// What a constant is written from.
pub(crate) enum Parts<'t> {
    /// This message, but for its name.
    Message(&'t TensorProto),
    /// This message, but for its name, and these elements as `raw_data`.
    Split(&'t TensorProto, &'t [u8]),
    /// Elements alone.
    Elements(&'t [u8]),
    /// A sparse message, but for its values' name.
    Sparse(&'t SparseTensorProto),
}

impl Tensor {
    /// Takes a message over. Checks that its type is known and that inline data has the size that type and shape ask for.
    pub fn from_proto(proto: TensorProto, home: Option<Arc<Home>>) -> Result<Tensor, TensorError> {
        let (dtype, elements) = described(&proto)?;
        let dims = proto.dims.clone();
        let tensor = Tensor { dtype, dims, data: Data::Proto(Arc::new(proto)), home, external: OnceLock::new() };
        tensor.check_place()?;
        tensor.check_size(elements)?;
        Ok(tensor)
    }

    /// Takes a message over. Its `raw_data` was left in the source's bytes.
    pub fn from_slice(head: TensorProto, bytes: SharedBytes) -> Result<Tensor, TensorError> {
        let (dtype, elements) = described(&head)?;
        let (have, want) = (bytes.len(), dtype.bytes_of(elements).unwrap_or(bytes.len()));
        let tensor = Tensor::from_parts(dtype, head.dims.clone(), Data::Mapped(Arc::new(head), bytes));
        if have == want { Ok(tensor) } else { Err(tensor.wrong_size(have, "bytes", want)) }
    }

    /// Takes a sparse message over.
    pub fn from_sparse(sparse: SparseTensorProto) -> Result<Tensor, TensorError> {
        let values = sparse.values.clone().unwrap_or_default();
        let like = TensorProto {
            dims: sparse.dims.clone(),
            name: values.name.clone(),
            data_type: values.data_type,
            ..Default::default()
        };
        let (dtype, _) = described(&like)?;
        Tensor::from_proto(values, None)?;
        let sparse = Arc::new(sparse);
        let tensor = Tensor::from_parts(dtype, like.dims, Data::Sparse(sparse.clone()));
        tensor.offsets(&sparse)?;
        Ok(tensor)
    }

    fn from_parts(dtype: DType, dims: Vec<i64>, data: Data) -> Tensor {
        Tensor { dtype, dims, data, home: None, external: OnceLock::new() }
    }

    fn check_size(&self, elements: usize) -> Result<(), TensorError> {
        let Data::Proto(p) = &self.data else { return Ok(()) };
        if self.external().is_some() {
            return Ok(());
        }
        // Elements in a field of another type than the tensor's do not count.
        let typed = match self.dtype {
            DType::F32 | DType::C64 => p.float_data.len(),
            DType::F64 | DType::C128 => p.double_data.len(),
            DType::I64 => p.int64_data.len(),
            DType::U64 | DType::U32 => p.uint64_data.len(),
            DType::Str => p.string_data.len(),
            _ => p.int32_data.len(),
        };
        let per_element = if matches!(self.dtype, DType::C64 | DType::C128) { 2 } else { 1 };
        let raw = !p.raw_data.is_empty() || typed == 0;
        let (have, unit, want) = match (self.dtype.size(), self.dtype.bytes_of(elements)) {
            (_, None) if raw => return Ok(()),
            (_, Some(bytes)) if raw => (p.raw_data.len(), "bytes", bytes),
            // Packed bytes are in fields of one each.
            (None, Some(bytes)) => (typed, "bytes", bytes),
            _ => (typed, "elements", elements * per_element),
        };
        if have == want { Ok(()) } else { Err(self.wrong_size(have, unit, want)) }
    }

    fn wrong_size(&self, have: usize, unit: &str, want: usize) -> TensorError {
        self.fail(format!(
            "holds {have} {unit} where its type {} and shape {:?} need {want}; the file is damaged or was written wrongly",
            self.dtype, self.dims
        ))
    }

    /// A constant from little-endian bytes.
    pub fn from_bytes(dtype: DType, dims: &[i64], bytes: Vec<u8>) -> Tensor {
        let size = |unit: usize| dims.iter().fold(unit as i64, |n, d| n.saturating_mul(*d));
        debug_assert_eq!(dtype.size().map(size), Some(bytes.len() as i64));
        Tensor::from_parts(dtype, dims.to_vec(), Data::Raw(Arc::new(bytes)))
    }

    /// A float32 constant.
    pub fn f32s(dims: &[i64], values: &[f32]) -> Tensor {
        Tensor::from_bytes(DType::F32, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// An int64 constant.
    pub fn i64s(dims: &[i64], values: &[i64]) -> Tensor {
        Tensor::from_bytes(DType::I64, dims, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    /// A bool constant.
    pub fn bools(dims: &[i64], values: &[bool]) -> Tensor {
        Tensor::from_bytes(DType::Bool, dims, values.iter().map(|v| *v as u8).collect())
    }

    /// A constant of a number type from f64 values, rounded once; float32 for other types.
    pub fn floats(dtype: DType, dims: &[i64], values: &[f64]) -> Tensor {
        macro_rules! integers {
            ($t:ty) => {
                values.iter().flat_map(|v| (*v as $t).to_le_bytes()).collect()
            };
        }
        let bytes = match dtype {
            DType::I8 => integers!(i8),
            DType::U8 => integers!(u8),
            DType::I16 => integers!(i16),
            DType::U16 => integers!(u16),
            DType::I32 => integers!(i32),
            DType::U32 => integers!(u32),
            DType::I64 => integers!(i64),
            DType::U64 => integers!(u64),
            DType::F64 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            DType::F16 => values.iter().flat_map(|v| half_bits(*v as f32).to_le_bytes()).collect(),
            DType::BF16 => values.iter().flat_map(|v| bfloat_bits(*v as f32).to_le_bytes()).collect(),
            _ => return Tensor::f32s(dims, &values.iter().map(|v| *v as f32).collect::<Vec<_>>()),
        };
        Tensor::from_bytes(dtype, dims, bytes)
    }

    /// A constant of an integer type, those of less than a byte included, from numbers that it can hold.
    pub fn integers(dtype: DType, dims: &[i64], values: &[i64]) -> Tensor {
        let bits = match dtype {
            DType::U4 | DType::I4 => 4,
            DType::U2 | DType::I2 => 2,
            _ => return Tensor::floats(dtype, dims, &values.iter().map(|v| *v as f64).collect::<Vec<_>>()),
        };
        let byte = |part: &[i64]| part.iter().rev().fold(0u8, |byte, v| byte << bits | (*v as u8) & ((1 << bits) - 1));
        let bytes = values.chunks(8 / bits).map(byte).collect();
        Tensor::from_parts(dtype, dims.to_vec(), Data::Raw(Arc::new(bytes)))
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape.
    pub fn dims(&self) -> &[i64] {
        &self.dims
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.dims.iter().fold(1i64, |n, d| n.saturating_mul(*d)) as usize
    }

    /// Has it no elements?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in the file that holds it, in bytes.
    pub fn byte_len(&self) -> usize {
        self.dtype.bytes_of(self.len()).unwrap_or(self.len())
    }

    /// What it is written from.
    pub(crate) fn parts(&self) -> Parts<'_> {
        match &self.data {
            Data::Proto(p) => Parts::Message(p),
            Data::Mapped(head, bytes) => Parts::Split(head, bytes),
            Data::Sparse(p) => Parts::Sparse(p),
            Data::Raw(b) => Parts::Elements(b),
        }
    }

    /// The message it came from, if that is complete without other bytes of the source's file.
    pub(crate) fn message(&self) -> Option<&TensorProto> {
        match &self.data {
            Data::Proto(p) => Some(p),
            _ => None,
        }
    }

    /// Where the bytes are, if they are in an external file.
    pub fn external(&self) -> Option<ExternalPlace> {
        let Data::Proto(p) = &self.data else { return None };
        external_place(p)
    }

    /// The checked path of the external file: relative, below the model's directory, not through a link that leaves it.
    pub fn external_path(&self) -> Result<PathBuf, TensorError> {
        let place = self.external().ok_or_else(|| self.fail("is not external".into()))?;
        external_path(self.home.as_deref(), &place.location).map_err(|e| self.fail(e.to_string()))
    }

    /// Little-endian element bytes. Reads the external file when the data is there.
    pub fn bytes(&self) -> Result<Cow<'_, [u8]>, TensorError> {
        let p = match &self.data {
            Data::Raw(b) => return Ok(Cow::Borrowed(b)),
            Data::Mapped(_, b) => return Ok(Cow::Borrowed(b)),
            Data::Sparse(p) => return self.densify(p).map(Cow::Owned),
            Data::Proto(p) => p,
        };
        if self.external().is_some() {
            let bytes = match self.external.get() {
                Some(bytes) => bytes,
                None => {
                    let bytes = self.map_external()?;
                    self.external.get_or_init(|| bytes)
                }
            };
            return Ok(Cow::Borrowed(bytes));
        }
        if !p.raw_data.is_empty() || self.is_empty() {
            return Ok(Cow::Borrowed(&p.raw_data));
        }
        use DType::*;
        let bytes: Vec<u8> = match self.dtype {
            F32 => p.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            F64 => p.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            I64 => p.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            I32 => p.int32_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            U64 => p.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
            U32 => p.uint64_data.iter().flat_map(|v| (*v as u32).to_le_bytes()).collect(),
            I16 | U16 | F16 | BF16 => p.int32_data.iter().flat_map(|v| (*v as u16).to_le_bytes()).collect(),
            I8 | U8 | Bool | F8E4M3 | F8E4M3Z | F8E5M2 | F8E5M2Z | F8E8M0 => p.int32_data.iter().map(|v| *v as u8).collect(),
            U4 | I4 | U2 | I2 => p.int32_data.iter().map(|v| *v as u8).collect(),
            Str | C64 | C128 | F4 => {
                return Err(self.fail(format!("elements of type {} cannot be read", self.dtype)));
            }
        };
        Ok(Cow::Owned(bytes))
    }

    /// Checks that the offset and length of external data are numbers.
    fn check_place(&self) -> Result<(), TensorError> {
        let Some(p) = self.message().filter(|_| self.external().is_some()) else { return Ok(()) };
        for e in p.external_data.iter().filter(|e| e.key == "offset" || e.key == "length") {
            e.value.parse::<u64>().map_err(|_| {
                self.fail(format!("its external data has {} `{}`, which is no number of bytes", e.key, e.value))
            })?;
        }
        Ok(())
    }

    /// Where the external bytes are, checked against the file: its path and their range.
    pub fn external_range(&self) -> Result<(PathBuf, Range<u64>), TensorError> {
        let place = self.external().ok_or_else(|| self.fail("is not external".into()))?;
        let path = self.external_path()?;
        let want = self.dtype.bytes_of(self.len()).map_or(place.length.unwrap_or(0), |n| n as u64);
        if let Some(length) = place.length.filter(|l| *l != want) {
            return Err(self.fail(format!(
                "its external data has {length} bytes where its type {} and shape {:?} need {want}",
                self.dtype, self.dims
            )));
        }
        let meta = std::fs::metadata(&path).map_err(|e| {
            self.fail(format!("its external data file `{}` cannot be opened: {e}; put it beside the model", path.display()))
        })?;
        if !meta.is_file() {
            return Err(self.fail(format!("its external data file `{}` is no regular file", path.display())));
        }
        if begins_as_pointer(&path) {
            let what = "is a Git LFS pointer, not the data; `git lfs pull` fetches it (in a GitHub workflow: actions/checkout with `lfs: true`)";
            return Err(self.fail(format!("its external data file `{}` {what}", path.display())));
        }
        let end = place.offset.checked_add(want).filter(|end| *end <= meta.len()).ok_or_else(|| {
            self.fail(format!(
                "its external data ends at byte {} but `{}` has only {}; the data file is cut off or belongs to another model",
                place.offset.saturating_add(want),
                path.display(),
                meta.len()
            ))
        })?;
        Ok((path, place.offset..end))
    }

    fn map_external(&self) -> Result<SharedBytes, TensorError> {
        let (path, range) = self.external_range()?;
        std::fs::File::open(&path)
            .and_then(|mut file| SharedBytes::of_range(&mut file, range.start, range.end - range.start))
            .map_err(|e| self.fail(format!("reading `{}` failed: {e}", path.display())))
    }

    /// Where the elements of a sparse constant stand in the order of all elements.
    fn offsets(&self, sparse: &SparseTensorProto) -> Result<Vec<usize>, TensorError> {
        let indices = Tensor::from_proto(sparse.indices.clone().unwrap_or_default(), None)?;
        // Indices are offsets ([count]) or coordinates ([count, rank]).
        let rank = if indices.dims.len() == 2 { self.dims.len().max(1) } else { 1 };
        let inside = |place: &[i64]| {
            let extents = if rank == 1 { &[self.len() as i64] } else { self.dims.as_slice() };
            let mut offset = 0i64;
            for (at, extent) in place.iter().zip(extents) {
                offset = offset.checked_mul(*extent)?.checked_add(*at).filter(|_| (0..*extent).contains(at))?;
            }
            usize::try_from(offset).ok().filter(|_| place.len() == rank)
        };
        let places = indices.to_i64()?;
        let outside = |place: &[i64]| self.fail(format!("has an element at {place:?}, outside its shape {:?}", self.dims));
        places.chunks(rank).map(|place| inside(place).ok_or_else(|| outside(place))).collect()
    }

    /// All elements of a sparse constant.
    fn densify(&self, sparse: &SparseTensorProto) -> Result<Vec<u8>, TensorError> {
        let size = self.dtype.size().ok_or_else(|| self.fail(format!("elements of type {} cannot be read", self.dtype)))?;
        let values = Tensor::from_proto(sparse.values.clone().unwrap_or_default(), None)?;
        let all = size.saturating_mul(self.len());
        if all > LARGEST_DENSE {
            return Err(self.fail(format!("is sparse; all elements of its shape {:?} would take {all} bytes", self.dims)));
        }
        let mut dense = vec![0; all];
        for (offset, value) in self.offsets(sparse)?.into_iter().zip(values.bytes()?.chunks_exact(size)) {
            if let Some(slot) = dense.get_mut(offset * size..(offset + 1) * size) {
                slot.copy_from_slice(value);
            }
        }
        Ok(dense)
    }

    fn fail(&self, what: String) -> TensorError {
        let name = match &self.data {
            Data::Proto(p) | Data::Mapped(p, _) => p.name.clone(),
            Data::Sparse(p) => p.values.name.clone(),
            Data::Raw(_) => String::new(),
        };
        TensorError { name, what }
    }

    /// Elements as f64, whatever the float type.
    pub fn to_f64(&self) -> Result<Vec<f64>, TensorError> {
        let b = self.bytes()?;
        Ok(match self.dtype {
            DType::F32 => b.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c) as f64).collect(),
            DType::F64 => b.as_chunks::<8>().0.iter().map(|c| f64::from_le_bytes(*c)).collect(),
            DType::F16 => b.as_chunks::<2>().0.iter().map(|c| half_value(u16::from_le_bytes(*c)) as f64).collect(),
            DType::BF16 => {
                b.as_chunks::<2>().0.iter().map(|c| f32::from_bits((u16::from_le_bytes(*c) as u32) << 16) as f64).collect()
            }
            _ => self.to_i64()?.into_iter().map(|v| v as f64).collect(),
        })
    }

    /// Elements as f32, whatever the float type.
    pub fn to_f32(&self) -> Result<Vec<f32>, TensorError> {
        if self.dtype == DType::F32 {
            let b = self.bytes()?;
            return Ok(b.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect());
        }
        Ok(self.to_f64()?.into_iter().map(|v| v as f32).collect())
    }

    /// Elements of an integer or bool tensor.
    pub fn to_i64(&self) -> Result<Vec<i64>, TensorError> {
        let b = self.bytes()?;
        Ok(match self.dtype {
            DType::I64 => b.as_chunks::<8>().0.iter().map(|c| i64::from_le_bytes(*c)).collect(),
            DType::U64 => b.as_chunks::<8>().0.iter().map(|c| u64::from_le_bytes(*c) as i64).collect(),
            DType::I32 => b.as_chunks::<4>().0.iter().map(|c| i32::from_le_bytes(*c) as i64).collect(),
            DType::U32 => b.as_chunks::<4>().0.iter().map(|c| u32::from_le_bytes(*c) as i64).collect(),
            DType::I16 => b.as_chunks::<2>().0.iter().map(|c| i16::from_le_bytes(*c) as i64).collect(),
            DType::U16 => b.as_chunks::<2>().0.iter().map(|c| u16::from_le_bytes(*c) as i64).collect(),
            DType::I8 => b.iter().map(|v| *v as i8 as i64).collect(),
            DType::U8 | DType::Bool => b.iter().map(|v| *v as i64).collect(),
            DType::U4 | DType::I4 => unpacked(&b, 4, self.dtype == DType::I4, self.len()),
            DType::U2 | DType::I2 => unpacked(&b, 2, self.dtype == DType::I2, self.len()),
            other => return Err(self.fail(format!("has element type {other}, integers were expected"))),
        })
    }

    /// The single element of a one-element float tensor.
    pub fn scalar(&self) -> Option<f64> {
        if self.len() == 1 && self.dtype.is_float() { self.to_f64().ok()?.first().copied() } else { None }
    }
}

/// Elements of less than a byte; the first lies in the lowest bits.
fn unpacked(bytes: &[u8], bits: u32, signed: bool, len: usize) -> Vec<i64> {
    let (mask, per) = ((1u8 << bits) - 1, 8 / bits as usize);
    let at = |i: usize| {
        let v = i64::from(bytes.get(i / per).copied().unwrap_or(0) >> (bits as usize * (i % per)) & mask);
        if signed && v >> (bits - 1) == 1 { v - (1 << bits) } else { v }
    };
    (0..len).map(at).collect()
}

/// Element type and number of elements of a message.
fn described(proto: &TensorProto) -> Result<(DType, usize), TensorError> {
    let fail = |what: String| TensorError { name: proto.name.clone(), what };
    let dtype = DType::from_onnx(proto.data_type).ok_or_else(|| {
        fail(format!(
            "element type {} is not known to this tool (1 to 26 are); the file is damaged or too new",
            proto.data_type
        ))
    })?;
    let mut elements: usize = 1;
    for d in &proto.dims {
        let d =
            usize::try_from(*d).map_err(|_| fail(format!("negative dimension in {:?}; the file is damaged", proto.dims)))?;
        elements = elements
            .checked_mul(d)
            .filter(|n| *n < (1 << 48))
            .ok_or_else(|| fail(format!("absurd size {:?}; the file is damaged", proto.dims)))?;
    }
    Ok((dtype, elements))
}

impl DType {
    /// A value rounded to this float type; of a half by way of float32.
    pub(crate) fn round(self, v: f64) -> Option<f64> {
        Some(match self {
            DType::F64 => v,
            DType::F32 => f64::from(v as f32),
            DType::F16 => f64::from(half_value(half_bits(v as f32))),
            DType::BF16 => f64::from(f32::from_bits(u32::from(bfloat_bits(v as f32)) << 16)),
            _ => return None,
        })
    }
}

/// IEEE half bits of a float, rounded to nearest even.
fn half_bits(v: f32) -> u16 {
    let bits = v.to_bits();
    let sign = ((bits >> 16) & 0x8000) as u16;
    let exponent = ((bits >> 23) & 0xff) as i32;
    let mantissa = bits & 0x7f_ffff;
    if exponent == 255 {
        return sign | 0x7c00 | if mantissa != 0 { 0x200 } else { 0 };
    }
    let e = exponent - 112;
    if e >= 31 {
        return sign | 0x7c00;
    }
    // Subnormal halves shift the mantissa with its hidden bit further right.
    let (value, shift) = if e <= 0 { (mantissa | 0x80_0000, 14 - e) } else { (mantissa, 13) };
    if shift > 24 {
        return sign;
    }
    let base = if e <= 0 { 0 } else { (e as u32) << 10 };
    let half = 1u32 << (shift - 1);
    let rest = value & ((1 << shift) - 1);
    let mut r = base + (value >> shift);
    if rest > half || (rest == half && r & 1 == 1) {
        r += 1;
    }
    sign | r as u16
}

fn half_value(h: u16) -> f32 {
    let sign = if h & 0x8000 != 0 { -1.0 } else { 1.0 };
    let e = (h >> 10) & 0x1f;
    let m = (h & 0x3ff) as f32;
    sign * match e {
        0 => m * 2f32.powi(-24),
        31 if m == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        e => (1.0 + m / 1024.0) * 2f32.powi(e as i32 - 15),
    }
}

/// bfloat16 bits of a float, rounded to nearest even.
fn bfloat_bits(v: f32) -> u16 {
    let bits = v.to_bits();
    if v.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_round_trip() {
        for bits in (0u16..=0xffff).filter(|b| (b >> 10) & 0x1f != 31) {
            assert_eq!(half_bits(half_value(bits)), bits);
        }
        assert_eq!(half_bits(65520.0), 0x7c00);
        assert_eq!(half_bits(1.0 + 1.0 / 2048.0), 0x3c00);
        assert_eq!(bfloat_bits(1.0), 0x3f80);
    }

    #[test]
    fn numbers_of_less_than_a_byte_are_packed_from_the_lowest_bits() {
        let t = Tensor::integers(DType::I4, &[3], &[-8, 7, -1]);
        assert_eq!((t.bytes().unwrap().as_ref(), t.to_i64().unwrap()), (&[0x78, 0x0f][..], vec![-8, 7, -1]));
        let t = Tensor::integers(DType::U2, &[5], &[3, 0, 1, 2, 3]);
        assert_eq!((t.bytes().unwrap().as_ref(), t.to_i64().unwrap()), (&[0b1001_0011, 3][..], vec![3, 0, 1, 2, 3]));
    }

    #[test]
    fn short_data_is_named() {
        let p =
            TensorProto { name: "w".into(), dims: vec![2, 3], data_type: 1, raw_data: vec![0; 20], ..Default::default() };
        let e = Tensor::from_proto(p, None).unwrap_err().to_string();
        assert!(e.contains("`w`") && e.contains("holds 20 bytes") && e.contains("need 24"), "{e}");
    }
}
