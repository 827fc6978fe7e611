//! `ArgMax`, `ArgMin`: the index of the extremum along an axis.

use super::flat::Flat;
use super::sample::floats;
use super::*;

pub(super) const ARG_MAX: Flat = place_of_extremum("ArgMax");
pub(super) const ARG_MIN: Flat = place_of_extremum("ArgMin");

const fn place_of_extremum(name: &'static str) -> Flat {
    let applied = || {
        let (kept, dropped) = (Attrs::new().with("axis", -1), Attrs::new().with("axis", 0).with("keepdims", 0));
        vec![(kept, vec![floats(&[2, 3, 4])]), (dropped, vec![floats(&[2, 3])])]
    };
    Flat { name, since: 1, infer, applied }
}

fn infer(cx: &Infer) -> Types {
    let (ty, axis) = (cx.ty(0)?, cx.axis(0)?);
    let mut shape = ty.shape.clone();
    if cx.attrs().int("keepdims", 1) != 0 {
        shape[axis] = Dim::from(1);
    } else {
        shape.remove(axis);
    }
    Ok(vec![TensorType::new(DType::I64, shape)])
}
