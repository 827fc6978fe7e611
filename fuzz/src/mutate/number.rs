//! Numbers that are wrong nearly everywhere, and some that are right now and then.

use crate::{below, pick};
use ancre_passes::random::Random;

const EXTREMES: [i64; 22] = [
    0,
    -1,
    1,
    2,
    3,
    -2,
    -7,
    7,
    16,
    127,
    255,
    1 << 16,
    1 << 20,
    i32::MAX as i64,
    i32::MIN as i64,
    1 << 32,
    1 << 50,
    1 << 62,
    (1 << 53) + 1,
    i64::MAX - 1,
    i64::MAX,
    i64::MIN,
];

const FLOATS: [f32; 12] =
    [0.0, -0.0, 1.0, -1.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, 1e-45, f32::MAX, 1e-5, 0.5];

/// A whole number.
pub(super) fn extreme(r: &mut Random) -> i64 {
    *pick(r, &EXTREMES)
}

/// A number near another, or any.
pub(super) fn near(old: i64, r: &mut Random) -> i64 {
    match below(r, 6) {
        0 => old.wrapping_add(1),
        1 => old.wrapping_sub(1),
        2 => old.wrapping_neg(),
        3 => old.wrapping_mul(2),
        _ => extreme(r),
    }
}

/// A float.
pub(super) fn float(r: &mut Random) -> f32 {
    *pick(r, &FLOATS)
}
