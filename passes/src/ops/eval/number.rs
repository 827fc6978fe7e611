//! Arithmetic on numbers, as ONNX Runtime does it on a CPU. Integers wrap to their type, and each operator rounds floats to theirs
//! once. Where C++ leaves the result undefined, there is none.

use crate::ir::{DType, Op};
use std::cmp::Ordering;

/// A function of two integers of a type; the caller wraps the result to its type. A `u64` is held by its bits.
pub(super) type Ints = fn(DType, i64, i64) -> Option<i64>;
/// A function of two floats, exact or in float64; a comparison gives 0 or 1.
pub(super) type Floats = fn(f64, f64) -> Option<f64>;

/// float64 represents all integers up to this.
const EXACT: u64 = 1 << 53;

/// The integer of a type that has the same low bits.
pub(super) fn wrap(t: DType, v: i64) -> Option<i64> {
    use DType::*;
    Some(match t {
        I64 | U64 => v,
        I32 => i64::from(v as i32),
        U32 => i64::from(v as u32),
        I16 => i64::from(v as i16),
        U16 => i64::from(v as u16),
        I8 => i64::from(v as i8),
        U8 => i64::from(v as u8),
        Bool => i64::from(v != 0),
        _ => return None,
    })
}

/// A float rounded to its type. An operation in f64 on operands of a narrower type rounds to it as the exact result does, since f64
/// has more than twice as many digits.
pub(super) fn round(t: DType, v: f64) -> Option<f64> {
    t.round(v)
}

/// An integer as a float.
pub(super) fn to_float(from: DType, v: i64, to: DType) -> Option<f64> {
    let unsigned = from == DType::U64;
    match to {
        DType::F64 => Some(if unsigned { v as u64 as f64 } else { v as f64 }),
        DType::F32 => Some(f64::from(if unsigned { v as u64 as f32 } else { v as f32 })),
        // The runtime converts by way of float32, which must not round.
        _ => round(to, v as f64).filter(|_| v.unsigned_abs() <= 1 << 24),
    }
}

/// A float as an integer, if it lies in the integer's range.
pub(super) fn to_int(v: f64, to: DType) -> Option<i64> {
    use DType::*;
    let (low, past) = match to {
        Bool => return Some(i64::from(v != 0.0)),
        U64 => return (v > -1.0 && v < 2f64.powi(64)).then_some(v as u64 as i64),
        I64 => (i64::MIN as f64, 2f64.powi(63)),
        I32 => (f64::from(i32::MIN), 2f64.powi(31)),
        I16 => (-32768.0, 32768.0),
        I8 => (-128.0, 128.0),
        U32 => (0.0, 2f64.powi(32)),
        U16 => (0.0, 65536.0),
        U8 => (0.0, 256.0),
        _ => return None,
    };
    let v = v.trunc();
    (low <= v && v < past).then_some(v as i64)
}

fn order(t: DType, x: i64, y: i64) -> Ordering {
    if t == DType::U64 { (x as u64).cmp(&(y as u64)) } else { x.cmp(&y) }
}

fn divided(t: DType, x: i64, y: i64) -> Option<i64> {
    if t == DType::U64 {
        return (x as u64).checked_div(y as u64).map(|v| v as i64);
    }
    // The smallest integer divided by −1 overflows its type.
    x.checked_div(y).filter(|v| wrap(t, *v) == Some(*v))
}

fn remainder(t: DType, x: i64, y: i64) -> Option<i64> {
    if t == DType::U64 {
        return (x as u64).checked_rem(y as u64).map(|v| v as i64);
    }
    divided(t, x, y).and_then(|_| x.checked_rem(y))
}

/// The remainder with the divisor's sign.
fn modulo(t: DType, x: i64, y: i64) -> Option<i64> {
    let r = remainder(t, x, y)?;
    Some(if t != DType::U64 && r != 0 && (r < 0) != (y < 0) { r + y } else { r })
}

/// The remainder with the dividend's sign, which engines compute on floats.
fn float_modulo(t: DType, x: i64, y: i64) -> Option<i64> {
    remainder(t, x, y).filter(|_| x.unsigned_abs() <= EXACT && y.unsigned_abs() <= EXACT)
}

/// The power, which engines compute on floats.
fn power(t: DType, x: i64, y: i64) -> Option<i64> {
    let v = x.checked_pow(u32::try_from(y).ok()?)?;
    (v.unsigned_abs() <= EXACT && wrap(t, v) == Some(v)).then_some(v)
}

fn shift(t: DType, x: i64, by: i64, left: bool) -> Option<i64> {
    let by = u32::try_from(by).ok().filter(|by| t.size().is_some_and(|s| (*by as usize) < 8 * s))?;
    Some(if left { x << by } else { (x as u64 >> by) as i64 })
}

/// The smaller or larger float. Engines differ for two zeros of different sign.
fn pick(x: f64, y: f64, v: f64) -> Option<f64> {
    (x != y || x.is_sign_negative() == y.is_sign_negative()).then_some(v)
}

/// Is a sum or product of two integers the same however it is computed? A reduction may compute on floats, which do not wrap.
pub(super) fn is_total(name: &str, t: DType, x: Option<i64>, y: Option<i64>, total: Option<i64>) -> bool {
    let (Some(x), Some(y), Some(total)) = (x, y, total) else { return true };
    let exact = if name == "Add" { x.checked_add(y) } else { x.checked_mul(y) };
    exact == Some(total) && t != DType::U64 && [x, y, total].iter().all(|v| v.unsigned_abs() <= EXACT)
}

/// Does the operator compare, so that its result is a boolean?
pub(super) fn compares(name: &str) -> bool {
    matches!(name, "Equal" | "Less" | "Greater" | "LessOrEqual" | "GreaterOrEqual")
}

/// A binary operator on numbers.
pub(super) fn binary(name: &str, op: &Op) -> Option<(Ints, Floats)> {
    let none: Floats = |_, _| None;
    Some(match name {
        "Add" => (|_, x, y| Some(x.wrapping_add(y)), |x, y| Some(x + y)),
        "Sub" => (|_, x, y| Some(x.wrapping_sub(y)), |x, y| Some(x - y)),
        "Mul" => (|_, x, y| Some(x.wrapping_mul(y)), |x, y| Some(x * y)),
        "Div" => (divided, |x, y| Some(x / y)),
        "Mod" if op.int("fmod") == 0 => (modulo, none),
        "Mod" => (float_modulo, |x, y| Some(x % y)),
        "Pow" => (power, none),
        "Min" => (|t, x, y| Some(if order(t, y, x).is_lt() { y } else { x }), |x, y| pick(x, y, x.min(y))),
        "Max" => (|t, x, y| Some(if order(t, y, x).is_gt() { y } else { x }), |x, y| pick(x, y, x.max(y))),
        "Equal" => (|_, x, y| Some(i64::from(x == y)), |x, y| Some(f64::from(u8::from(x == y)))),
        "Less" => (|t, x, y| Some(i64::from(order(t, x, y).is_lt())), |x, y| Some(f64::from(u8::from(x < y)))),
        "Greater" => (|t, x, y| Some(i64::from(order(t, x, y).is_gt())), |x, y| Some(f64::from(u8::from(x > y)))),
        "LessOrEqual" => (|t, x, y| Some(i64::from(order(t, x, y).is_le())), |x, y| Some(f64::from(u8::from(x <= y)))),
        "GreaterOrEqual" => (|t, x, y| Some(i64::from(order(t, x, y).is_ge())), |x, y| Some(f64::from(u8::from(x >= y)))),
        "And" | "BitwiseAnd" => (|_, x, y| Some(x & y), none),
        "Or" | "BitwiseOr" => (|_, x, y| Some(x | y), none),
        "Xor" | "BitwiseXor" => (|_, x, y| Some(x ^ y), none),
        "BitShift" if op.str("direction") == "LEFT" => (|t, x, y| shift(t, x, y, true), none),
        "BitShift" => (|t, x, y| shift(t, x, y, false), none),
        _ => return None,
    })
}

/// A unary operator on an integer.
pub(super) fn of_int(name: &str, t: DType, v: i64) -> Option<i64> {
    let signed = !matches!(t, DType::U64);
    let v = match name {
        "Neg" => v.wrapping_neg(),
        "Abs" if signed => v.checked_abs().filter(|a| wrap(t, *a) == Some(*a))?,
        "Sign" if signed => v.signum(),
        "Abs" => v,
        "Sign" => i64::from(v != 0),
        "Relu" if signed => v.max(0),
        "Not" if t == DType::Bool => 1 - v,
        "BitwiseNot" if t != DType::Bool => !v,
        _ => return None,
    };
    wrap(t, v)
}

/// A unary operator on a float, exact or in float64.
pub(super) fn of_float(name: &str, v: f64) -> Option<f64> {
    Some(match name {
        "Neg" => -v,
        "Abs" => v.abs(),
        "Sign" if v == 0.0 => 0.0,
        "Sign" => v.signum(),
        "Floor" => v.floor(),
        "Ceil" => v.ceil(),
        "Round" => v.round_ties_even(),
        "Sqrt" => v.sqrt(),
        "Reciprocal" => 1.0 / v,
        // Engines differ for −0.
        "Relu" if v != 0.0 || v.is_sign_positive() => v.max(0.0),
        _ => return None,
    })
}
