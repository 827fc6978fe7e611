//! Comparisons, with broadcasting, and tests of elements: a boolean of the common shape.

use super::flat::Flat;
use super::sample::floats;
use super::*;

pub(super) const EQUAL: Flat = compared("Equal", 7);
pub(super) const GREATER: Flat = compared("Greater", 7);
pub(super) const LESS: Flat = compared("Less", 7);
pub(super) const GREATER_OR_EQUAL: Flat = compared("GreaterOrEqual", 12);
pub(super) const LESS_OR_EQUAL: Flat = compared("LessOrEqual", 12);
pub(super) const IS_NAN: Flat = tested("IsNaN", 9);
pub(super) const IS_INF: Flat = tested("IsInf", 10);

const fn compared(name: &'static str, since: i64) -> Flat {
    let applied = || vec![(Attrs::new(), vec![floats(&[2, 1, 3]), floats(&[4, 1])])];
    Flat { name, since, infer: bool_like_all, applied }
}

const fn tested(name: &'static str, since: i64) -> Flat {
    Flat { name, since, infer: bool_like_all, applied: || vec![(Attrs::new(), vec![floats(&[2, 3])])] }
}
