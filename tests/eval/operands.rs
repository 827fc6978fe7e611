//! Random operands, small and at the ends of their types.

use crate::common::Random;
use ancre_passes::ir::{DType, Tensor};

pub const INTS: &[DType] =
    &[DType::I64, DType::I64, DType::I32, DType::I16, DType::I8, DType::U8, DType::U16, DType::U32, DType::U64];
pub const FLOATS: &[DType] = &[DType::F32, DType::F64, DType::F16];

pub fn one_of<T: Copy>(r: &mut Random, of: &[T]) -> T {
    of[r.below(of.len())]
}

pub fn between(r: &mut Random, low: i64, high: i64) -> i64 {
    low + r.below((high - low + 1) as usize) as i64
}

pub fn shape(r: &mut Random, most: usize) -> Vec<i64> {
    let rank = r.below(most + 1);
    (0..rank).map(|_| if r.below(24) == 0 { 0 } else { between(r, 1, 4) }).collect()
}

/// A shape that broadcasts with another.
pub fn partner(r: &mut Random, of: &[i64]) -> Vec<i64> {
    let from = r.below(of.len() + 1);
    of[from..].iter().map(|d| if r.below(4) == 0 { 1 } else { *d }).collect()
}

pub fn count(dims: &[i64]) -> usize {
    dims.iter().product::<i64>() as usize
}

pub fn ints(dtype: DType, dims: &[i64], values: &[i64]) -> Tensor {
    let size = dtype.size().unwrap();
    Tensor::from_bytes(dtype, dims, values.iter().flat_map(|v| v.to_le_bytes()[..size].to_vec()).collect())
}

/// Mostly small numbers, some at the ends of the type.
pub fn integer(r: &mut Random, dtype: DType) -> i64 {
    let bits = 8 * dtype.size().unwrap() as u32;
    match (dtype, r.below(8)) {
        (DType::Bool, n) => (n % 2) as i64,
        (_, 0) => (r.bits() as i64) >> r.below(64),
        (DType::U8 | DType::U16 | DType::U32 | DType::U64, 1) => (u64::MAX >> (64 - bits)) as i64,
        (DType::U8 | DType::U16 | DType::U32 | DType::U64, _) => between(r, 0, 9),
        (_, 1) => i64::MAX >> (64 - bits),
        (_, 2) => i64::MIN >> (64 - bits),
        _ => between(r, -9, 9),
    }
}

pub fn float(r: &mut Random) -> f64 {
    match r.below(12) {
        0 => 0.0,
        1 => -0.0,
        2 => f64::INFINITY,
        3 => 1e5 * r.normal(),
        4..7 => between(r, -9, 9) as f64 + one_of(r, &[0.0, 0.5]),
        _ => 3.0 * r.normal(),
    }
}

pub fn tensor(r: &mut Random, dtype: DType, dims: &[i64]) -> Tensor {
    if dtype.is_float() {
        let values: Vec<f64> = (0..count(dims)).map(|_| float(r)).collect();
        return Tensor::floats(dtype, dims, &values);
    }
    let values: Vec<i64> = (0..count(dims)).map(|_| integer(r, dtype)).collect();
    ints(dtype, dims, &values)
}

pub fn any(r: &mut Random, dims: &[i64]) -> Tensor {
    let t = any_type(r);
    tensor(r, t, dims)
}

pub fn of_types(r: &mut Random, types: &[DType], dims: &[i64]) -> Tensor {
    let t = one_of(r, types);
    tensor(r, t, dims)
}

pub fn vector(values: &[i64]) -> Option<Tensor> {
    Some(Tensor::i64s(&[values.len() as i64], values))
}

pub fn scalar(v: i64) -> Option<Tensor> {
    Some(Tensor::i64s(&[], &[v]))
}

/// An axis of a shape, from either end.
pub fn axis(r: &mut Random, rank: usize) -> i64 {
    between(r, -(rank as i64), rank as i64 - 1)
}

/// A bound of a slice: inside, outside or far outside.
pub fn bound(r: &mut Random) -> i64 {
    let far = [1_000_000_000, i64::from(i32::MAX), i64::MAX, -1_000_000_000, i64::from(i32::MIN), i64::MIN];
    if r.below(4) == 0 { one_of(r, &far) } else { between(r, -6, 6) }
}

pub fn any_type(r: &mut Random) -> DType {
    match r.below(3) {
        0 => one_of(r, FLOATS),
        1 => one_of(r, INTS),
        _ => one_of(r, &[DType::I64, DType::Bool, DType::F32, DType::I32]),
    }
}

/// A shape of rank 1 or more without empty axes.
pub fn solid(r: &mut Random) -> Vec<i64> {
    let rank = 1 + r.below(3);
    (0..rank).map(|_| between(r, 1, 4)).collect()
}
