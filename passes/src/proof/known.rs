//! Elements of small constants, and exact arithmetic on them.
//!
//! Only operators whose result every engine must agree on, bit for bit, are computed: integer arithmetic, movement of elements,
//! and the float operations that IEEE 754 rounds correctly (+ − × ÷ √). Where a result is not of that kind but bounded (a
//! softmax that is not saturated), its elements stay unknown; a product with an exact zero is still known then.

use super::constant::{ConstId, Constants};
use crate::ir::{DType, Dim, Tensor};

/// Most elements that are worked with one by one.
pub(super) const MOST: usize = 1 << 22;
/// Bound of unknown elements above which nothing more is said of them, so that no product of theirs can overflow.
const LARGEST: f64 = 1e15;

/// Elements of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Known {
    pub(super) dtype: DType,
    pub(super) dims: Vec<i64>,
    pub(super) elements: Elements,
    /// No unknown element is larger than this.
    pub(super) bound: f64,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Elements {
    /// Integers and booleans.
    Int(Vec<i64>),
    /// Integers computed from the inputs' extents.
    Extents(Vec<Dim>),
    /// Finite floats; NaN stands for one that is finite but not known.
    Float(Vec<f64>),
}

impl Known {
    /// The elements of a constant, if there are not too many and all are finite.
    pub(super) fn of_constant(constants: &Constants, id: ConstId) -> Option<Known> {
        if constants.len(id) > MOST {
            return None;
        }
        let dtype = constants.dtype(id);
        let elements = if dtype.is_float() {
            let v = constants.floats(id)?;
            if !v.iter().all(|v| v.is_finite()) {
                return None;
            }
            Elements::Float(v)
        } else {
            Elements::Int(constants.ints(id)?)
        };
        Some(Known { dtype, dims: constants.dims(id).to_vec(), elements, bound: 0.0 })
    }

    pub(super) fn ints(dtype: DType, dims: Vec<i64>, v: Vec<i64>) -> Known {
        Known { dtype, dims, elements: Elements::Int(v), bound: 0.0 }
    }

    pub(super) fn extents(dtype: DType, dims: Vec<i64>, v: Vec<Dim>) -> Known {
        let known: Option<Vec<i64>> = v.iter().map(Dim::known).collect();
        let elements = known.map_or(Elements::Extents(v), Elements::Int);
        Known { dtype, dims, elements, bound: 0.0 }
    }

    pub(super) fn floats(dtype: DType, dims: Vec<i64>, v: Vec<f64>, bound: f64) -> Option<Known> {
        let largest = if dtype == DType::F16 { 1e4 } else { LARGEST };
        let fits = bound <= largest && v.iter().all(|v| !v.is_infinite());
        fits.then_some(Known { dtype, dims, elements: Elements::Float(v), bound })
    }

    pub(super) fn len(&self) -> usize {
        match &self.elements {
            Elements::Int(v) => v.len(),
            Elements::Extents(v) => v.len(),
            Elements::Float(v) => v.len(),
        }
    }

    /// Little-endian bytes, if every element is known.
    pub(super) fn bytes(&self) -> Option<Vec<u8>> {
        use DType::*;
        match &self.elements {
            Elements::Extents(_) => None,
            Elements::Float(v) => {
                let known = v.iter().all(|v| !v.is_nan());
                known.then(|| Tensor::floats(self.dtype, &self.dims, v).bytes().ok().map(|b| b.into_owned()))?
            }
            Elements::Int(v) => Some(match self.dtype {
                I64 => v.iter().flat_map(|v| v.to_le_bytes()).collect(),
                I32 | U32 => v.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect(),
                I16 | U16 => v.iter().flat_map(|v| (*v as i16).to_le_bytes()).collect(),
                I8 | U8 | Bool => v.iter().map(|v| *v as u8).collect(),
                _ => return None,
            }),
        }
    }

    /// The elements in the places that `from` names, under other dimensions.
    pub(super) fn picked(&self, dims: Vec<i64>, from: &[usize]) -> Option<Known> {
        fn pick<T: Clone>(v: &[T], from: &[usize]) -> Option<Vec<T>> {
            from.iter().map(|i| v.get(*i).cloned()).collect()
        }
        let elements = match &self.elements {
            Elements::Int(v) => Elements::Int(pick(v, from)?),
            Elements::Extents(v) => return Some(Known::extents(self.dtype, dims, pick(v, from)?)),
            Elements::Float(v) => Elements::Float(pick(v, from)?),
        };
        Some(Known { dtype: self.dtype, dims, elements, bound: self.bound })
    }

    /// Broadcast to other dimensions.
    pub(super) fn broadcast(&self, dims: &[i64]) -> Option<Known> {
        self.picked(dims.to_vec(), &broadcast_places(&self.dims, dims)?)
    }

    /// The only element of a one-element tensor of integers.
    pub(super) fn single(&self) -> Option<i64> {
        match &self.elements {
            Elements::Int(v) if v.len() == 1 => v.first().copied(),
            _ => None,
        }
    }
}

/// Number of elements, if it is not too large.
pub(super) fn count(dims: &[i64]) -> Option<usize> {
    let n = dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?))?;
    (n <= MOST).then_some(n)
}

/// The common shape of two (numpy's rule).
pub(super) fn common(a: &[i64], b: &[i64]) -> Option<Vec<i64>> {
    let rank = a.len().max(b.len());
    let at = |s: &[i64], i: usize| if i + s.len() < rank { 1 } else { s[i + s.len() - rank] };
    (0..rank)
        .map(|i| match (at(a, i), at(b, i)) {
            (x, y) if x == y || y == 1 => Some(x),
            (1, y) => Some(y),
            _ => None,
        })
        .collect()
}

/// For each element of a tensor, the one it is of a tensor that is broadcast to it.
pub(super) fn broadcast_places(from: &[i64], to: &[i64]) -> Option<Vec<usize>> {
    if common(from, to)? != to {
        return None;
    }
    let mut stride = 1;
    let mut strides = vec![0; to.len()];
    for (i, d) in from.iter().enumerate().rev() {
        if *d != 1 {
            strides[to.len() - from.len() + i] = stride;
        }
        stride *= *d as usize;
    }
    places(to, &strides, 0)
}

/// Offsets of all elements of dimensions in row-major order, given the strides they are read with.
pub(super) fn places(dims: &[i64], strides: &[usize], start: usize) -> Option<Vec<usize>> {
    let n = count(dims)?;
    let mut out = Vec::with_capacity(n);
    let mut index = vec![0i64; dims.len()];
    let mut at = start;
    for _ in 0..n {
        out.push(at);
        for axis in (0..dims.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < dims[axis] {
                break;
            }
            at -= strides[axis] * dims[axis] as usize;
            index[axis] = 0;
        }
    }
    Some(out)
}

/// Row-major strides.
pub(super) fn strides(dims: &[i64]) -> Vec<usize> {
    let mut all = vec![1; dims.len()];
    for i in (1..dims.len()).rev() {
        all[i - 1] = all[i] * dims[i].max(0) as usize;
    }
    all
}

/// An integer in the range of its type.
pub(super) fn in_range(t: DType, v: i64) -> Option<i64> {
    use DType::*;
    let fits = match t {
        I64 => true,
        I32 => i32::try_from(v).is_ok(),
        I16 => i16::try_from(v).is_ok(),
        I8 => i8::try_from(v).is_ok(),
        U32 => u32::try_from(v).is_ok(),
        U16 => u16::try_from(v).is_ok(),
        U8 => u8::try_from(v).is_ok(),
        Bool => v == 0 || v == 1,
        _ => false,
    };
    fits.then_some(v)
}

/// Float values rounded to their type, once. (Results of one operation in f64 on operands of a narrower type round to it as
/// the exact result does: f64 has more than twice its digits.)
pub(super) fn rounded(t: DType, v: Vec<f64>) -> Option<Vec<f64>> {
    match t {
        DType::F64 => Some(v),
        DType::F32 => Some(v.into_iter().map(|v| v as f32 as f64).collect()),
        DType::F16 | DType::BF16 => {
            let holes: Vec<bool> = v.iter().map(|v| v.is_nan()).collect();
            let mut r = Tensor::floats(t, &[v.len() as i64], &v).to_f64().ok()?;
            r.iter_mut().zip(holes).filter(|(_, hole)| *hole).for_each(|(r, _)| *r = f64::NAN);
            Some(r)
        }
        _ => None,
    }
}

/// Softmax along the last axis of rows of `width`. Where one entry is so much larger than the others that their exponentials
/// underflow, the result is exactly one-hot; entries that underflow are exactly zero; others are not known.
pub(super) fn softmax(k: &Known, width: usize) -> Option<Known> {
    let Elements::Float(v) = &k.elements else { return None };
    // Far below ln(smallest denormal / 2), whatever way exp is computed.
    let gone = if k.dtype == DType::F64 { -760.0 } else { -110.0 };
    if width == 0 || v.iter().any(|v| v.is_nan()) {
        return None;
    }
    let mut out = Vec::with_capacity(v.len());
    for row in v.chunks(width) {
        let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let near = row.iter().filter(|v| **v - top > gone).count();
        out.extend(row.iter().map(|v| match (*v - top > gone, near) {
            (false, _) => 0.0,
            (true, 1) => 1.0,
            (true, _) => f64::NAN,
        }));
    }
    Known::floats(k.dtype, k.dims.clone(), out, 1.001)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_saturated_softmax_is_exact_and_another_is_not() {
        let row = |v: &[f64]| {
            let k = Known::floats(DType::F32, vec![1, v.len() as i64], v.to_vec(), 0.0).unwrap();
            match softmax(&k, v.len()).unwrap().elements {
                Elements::Float(v) => v,
                _ => unreachable!(),
            }
        };
        assert_eq!(row(&[0.0, 128.0, -1e30]), [0.0, 1.0, 0.0]);
        assert_eq!(row(&[5.0]), [1.0]);
        let near = row(&[0.0, 100.0, -1e30]);
        assert!(near[0].is_nan() && near[1].is_nan() && near[2] == 0.0);
    }

    #[test]
    fn places_follow_strides() {
        assert_eq!(broadcast_places(&[2, 1], &[2, 3]), Some(vec![0, 0, 0, 1, 1, 1]));
        assert_eq!(broadcast_places(&[3], &[2, 3]), Some(vec![0, 1, 2, 0, 1, 2]));
        assert_eq!(broadcast_places(&[2], &[2, 3]), None);
        assert_eq!(places(&[3, 2], &[1, 3], 0), Some(vec![0, 3, 1, 4, 2, 5]));
        assert_eq!(count(&[1 << 20, 1 << 20]), None);
    }
}
