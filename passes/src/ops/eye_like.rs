//! `EyeLike`: ones on a diagonal, zeros elsewhere, in the operand's shape.

use super::flat::Flat;
use super::random::like_operand;

pub(super) const EYE_LIKE: Flat = like_operand("EyeLike", 9);
