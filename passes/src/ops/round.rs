//! `Sign`, `Floor`, `Ceil`, `Round`: constant between their steps.

use super::flat::Flat;
use super::sample::floats;
use super::*;

pub(super) const SIGN: Flat = steps("Sign", 9);
pub(super) const FLOOR: Flat = steps("Floor", 6);
pub(super) const CEIL: Flat = steps("Ceil", 6);
pub(super) const ROUND: Flat = steps("Round", 11);

const fn steps(name: &'static str, since: i64) -> Flat {
    Flat { name, since, infer: like_first, applied: || vec![(Attrs::new(), vec![floats(&[2, 3])])] }
}
