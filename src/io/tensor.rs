//! Tensors that go into and come out of engines: element type, shape and little-endian bytes.

use ancre_passes::ir::{DType, Tensor};
use ancre_passes::transform::initial_state::FirstValue;
use indexmap::IndexMap;

/// Evaluates an expression with `$t` as Rust's type for the elements, or `$other` where Rust has none.
macro_rules! with_type {
    ($dtype:expr, $t:ident => $body:expr, $other:expr) => {
        with_type!(@ $dtype, $t, $body, $other, F32 f32, F64 f64, I64 i64, I32 i32, I16 i16, I8 i8, U64 u64, U32 u32, U16 u16, U8 u8)
    };
    (@ $dtype:expr, $t:ident, $body:expr, $other:expr, $($name:ident $rust:ty),*) => {
        match $dtype {
            $(ancre_passes::ir::DType::$name => {
                type $t = $rust;
                $body
            })*
            _ => $other,
        }
    };
}
#[cfg(any(feature = "tract", feature = "ort"))]
pub(crate) use with_type;

/// The little-endian bytes of numbers. As arrays of bytes they are copied at the memory's speed, through an iterator of bytes one by one.
macro_rules! le_bytes {
    ($t:ty, $values:expr) => {{
        let values: &[$t] = $values;
        let mut bytes = vec![0u8; size_of_val(values)];
        let (places, _) = bytes.as_chunks_mut::<{ size_of::<$t>() }>();
        places.iter_mut().zip(values).for_each(|(place, v)| *place = v.to_le_bytes());
        bytes
    }};
}
#[cfg(feature = "ort")]
pub(crate) use le_bytes;

/// Tensors by name, of inputs or outputs.
pub type Tensors = IndexMap<String, NpTensor>;

/// A dense tensor, row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NpTensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Vec<u8>,
}

impl NpTensor {
    /// From little-endian bytes; `None` when they are not as many as type and shape ask for.
    pub fn new(dtype: DType, shape: &[usize], data: Vec<u8>) -> Option<NpTensor> {
        let bytes = shape.iter().try_fold(dtype.size()?, |n, d| n.checked_mul(*d))?;
        (bytes == data.len()).then(|| NpTensor { dtype, shape: shape.to_vec(), data })
    }

    /// From float32 numbers; `None` when they are not as many as the shape asks for.
    pub fn f32s(shape: &[usize], values: &[f32]) -> Option<NpTensor> {
        NpTensor::new(DType::F32, shape, le_bytes!(f32, values))
    }

    /// From int64 numbers; `None` when they are not as many as the shape asks for.
    pub fn i64s(shape: &[usize], values: &[i64]) -> Option<NpTensor> {
        NpTensor::new(DType::I64, shape, le_bytes!(i64, values))
    }

    /// From numbers that are rounded to a float, integer or boolean element type; `None` for other types or a wrong count.
    pub fn from_f64s(dtype: DType, shape: &[usize], values: &[f64]) -> Option<NpTensor> {
        let data: Vec<u8> = match dtype {
            DType::F16 | DType::BF16 => {
                let dims: Vec<i64> = vec![i64::try_from(values.len()).ok()?];
                Tensor::floats(dtype, &dims, values).bytes().ok()?.into_owned()
            }
            DType::Bool => values.iter().map(|v| (*v != 0.0) as u8).collect(),
            _ => with_type!(dtype, T => values.iter().flat_map(|v| (*v as T).to_le_bytes()).collect(), return None),
        };
        NpTensor::new(dtype, shape, data)
    }

    /// All zeros (false); `None` for types without a byte size.
    pub fn zeros(dtype: DType, shape: &[usize]) -> Option<NpTensor> {
        let bytes = shape.iter().try_fold(dtype.size()?, |n, d| n.checked_mul(*d))?;
        NpTensor::new(dtype, shape, vec![0; bytes])
    }

    /// The elements of a constant of a model; external data is read. Fails when the bytes cannot be had or the type has no
    /// byte size.
    pub fn from_constant(t: &Tensor) -> Result<NpTensor, String> {
        let shape: Vec<usize> = t.dims().iter().map(|d| *d as usize).collect();
        let data = t.bytes().map_err(|e| e.to_string())?.into_owned();
        NpTensor::new(t.dtype(), &shape, data).ok_or_else(|| format!("elements of type {} cannot be used", t.dtype()))
    }

    /// The first value of a state tensor, all its elements. Fails as [`NpTensor::from_constant`] does, and where no tensor can have
    /// its shape.
    pub fn first(f: &FirstValue) -> Result<NpTensor, String> {
        let t = NpTensor::from_constant(&f.elements)?;
        let spread = if f.is_uniform() { t.spread(&f.dims) } else { Some(t) };
        spread.ok_or_else(|| format!("`{}` cannot have shape {:?}", f.name, f.dims))
    }

    /// A tensor of this shape, each element of which is this tensor's only one; `None` where there are more, or where no tensor can
    /// have that shape.
    pub fn spread(&self, dims: &[i64]) -> Option<NpTensor> {
        let shape = dims.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<Vec<usize>>>()?;
        let count = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).filter(|_| self.len() == 1)?;
        // More than there is memory for is no reason to die.
        Vec::<u8>::new().try_reserve_exact(self.data.len().checked_mul(count)?).ok()?;
        NpTensor::new(self.dtype, &shape, self.data.repeat(count))
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Little-endian element bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.data
    }

    /// The bytes alone.
    pub fn into_bytes(self) -> Vec<u8> {
        self.data
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Does the tensor have no elements?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `width` places along an axis from `start` on; `None` where it has fewer.
    pub fn slice(&self, axis: usize, start: usize, width: usize) -> Option<NpTensor> {
        self.slice_runs(axis, 1, start, width)
    }

    /// As [`NpTensor::slice`], of each of the axis's `runs` equal parts.
    pub fn slice_runs(&self, axis: usize, runs: usize, start: usize, width: usize) -> Option<NpTensor> {
        let extent = self.shape.get(axis)?.checked_div(runs)?;
        let (end, size) = (start.checked_add(width).filter(|end| *end <= extent)?, self.dtype.size()?);
        let row = self.shape[axis + 1..].iter().product::<usize>() * size;
        let mut shape = self.shape.clone();
        shape[axis] = runs * width;
        let blocks = self.data.chunks_exact((extent * row).max(1));
        let data = blocks.flat_map(|block| block[start * row..end * row].iter().copied()).collect();
        NpTensor::new(self.dtype, &shape, data)
    }

    /// Tensors side by side along an axis, in each of its `runs` equal parts: the inverse of [`NpTensor::slice_runs`]. `None`
    /// where they do not fit together.
    pub fn join_runs(parts: &[NpTensor], axis: usize, runs: usize) -> Option<NpTensor> {
        let first = parts.first()?;
        let alike = |p: &NpTensor| p.dtype == first.dtype && p.shape == first.shape;
        let extent = first.shape.get(axis)?;
        if !parts.iter().all(alike) || extent.checked_rem(runs)? != 0 {
            return None;
        }
        let block = extent / runs * first.shape[axis + 1..].iter().product::<usize>() * first.dtype.size()?;
        let mut shape = first.shape.clone();
        shape[axis] *= parts.len();
        let blocks = (0..first.data.len().checked_div(block).unwrap_or(0)).map(|i| i * block..(i + 1) * block);
        let data = blocks.flat_map(|at| parts.iter().flat_map(move |p| p.data[at.clone()].iter().copied())).collect();
        NpTensor::new(first.dtype, &shape, data)
    }

    /// The elements as a constant of a model.
    pub fn to_constant(&self) -> Tensor {
        let dims: Vec<i64> = self.shape.iter().map(|d| *d as i64).collect();
        Tensor::from_bytes(self.dtype, &dims, self.data.clone())
    }

    /// Elements as f64, whatever the type; empty for complex numbers and 8-bit floats.
    pub fn to_f64(&self) -> Vec<f64> {
        match self.dtype {
            DType::F32 => self.data.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c) as f64).collect(),
            DType::F64 => self.data.as_chunks::<8>().0.iter().map(|c| f64::from_le_bytes(*c)).collect(),
            _ => self.to_constant().to_f64().unwrap_or_default(),
        }
    }

    /// Elements as f32, whatever the type.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => self.data.as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect(),
            _ => self.to_f64().into_iter().map(|v| v as f32).collect(),
        }
    }

    /// Elements of an integer or boolean tensor; empty for other types.
    pub fn to_i64(&self) -> Vec<i64> {
        self.to_constant().to_i64().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_element_is_spread_over_what_a_tensor_can_be() {
        let one = NpTensor::f32s(&[1, 1], &[2.0]).unwrap();
        assert_eq!(one.spread(&[2, 3]).unwrap(), NpTensor::f32s(&[2, 3], &[2.0; 6]).unwrap());
        assert_eq!(one.spread(&[0, 3]).unwrap().len(), 0);
        for absurd in [&[-1][..], &[i64::MAX, 4], &[1 << 61], &[1 << 31, 1 << 31]] {
            assert_eq!(one.spread(absurd), None, "{absurd:?}");
        }
        assert_eq!(NpTensor::f32s(&[2], &[1.0, 2.0]).unwrap().spread(&[4]), None);
    }

    #[test]
    fn elements_round_trip_through_every_type() {
        use DType::*;
        for dtype in [F32, F64, F16, BF16, I64, I32, I16, I8, U64, U32, U16, U8] {
            let t = NpTensor::from_f64s(dtype, &[2, 2], &[0.0, 1.0, 2.0, 100.0]).unwrap();
            assert_eq!(t.to_f64(), [0.0, 1.0, 2.0, 100.0], "{dtype}");
        }
        let t = NpTensor::from_f64s(Bool, &[3], &[0.0, 1.0, 5.0]).unwrap();
        assert_eq!((t.bytes(), t.to_i64()), (&[0, 1, 1][..], vec![0, 1, 1]));
    }

    #[test]
    fn runs_are_joined_as_they_were_sliced() {
        let whole = NpTensor::f32s(&[2, 6, 2], &(0..24).map(|v| v as f32).collect::<Vec<_>>()).unwrap();
        for (axis, runs, width) in [(0, 1, 1), (1, 1, 2), (1, 1, 3), (1, 2, 1), (1, 3, 1), (2, 1, 1)] {
            let count = whole.shape()[axis] / runs / width;
            let parts: Vec<NpTensor> = (0..count).map(|i| whole.slice_runs(axis, runs, i * width, width).unwrap()).collect();
            assert_eq!(NpTensor::join_runs(&parts, axis, runs).as_ref(), Some(&whole), "{axis} {runs} {width}");
        }
        let other = NpTensor::f32s(&[1], &[0.0]).unwrap();
        assert_eq!(NpTensor::join_runs(&[whole, other], 0, 1), None);
    }

    #[test]
    fn a_wrong_count_is_refused() {
        assert_eq!(NpTensor::f32s(&[2, 3], &[0.0; 5]), None);
        assert_eq!(NpTensor::zeros(DType::Str, &[1]), None);
    }
}
