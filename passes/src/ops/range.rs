//! `Range`: start, start + delta, … below the limit.

use super::*;

pub(super) const RANGE: Row = Row {
    name: "Range",
    infer: |cx| {
        let dtype = cx.ty(0)?.dtype;
        let length = match (cx.ints(0).as_deref(), cx.ints(1).as_deref(), cx.ints(2).as_deref()) {
            (Some([start]), Some([limit]), Some([delta])) if *delta != 0 => {
                let length = eval::length(*start, *limit, *delta).unwrap_or(0);
                Dim::from(i64::try_from(length).map_err(|_| TypeError(format!("{length} elements are too many")))?)
            }
            // From an extent to another that is not smaller.
            (_, _, Some([1])) => match (cx.extents(0).as_deref(), cx.extents(1).as_deref()) {
                (Some([start]), Some([limit])) if (limit - start).bounds().0 >= 0 => limit - start,
                _ => unknown_dim("range"),
            },
            _ => unknown_dim("range"),
        };
        Ok(vec![TensorType::new(dtype, vec![length])])
    },
    derivative: Derivative::None("a range computed from trained numbers"),
    samples: || vec![plain(vec![ints_of(&[], &[1]), ints_of(&[], &[8]), ints_of(&[], &[3])]).shape_only()],
    ..ROW
};
