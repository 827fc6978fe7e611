//! `LpPool` and `GlobalLpPool`: the p-norm of every window or channel. Only the CPU provider has kernels.

use super::window::pooled;
use super::*;

const REASON: &str = "p-norm pools are not differentiated; write them as Pow, AveragePool and Pow";

pub(super) const LP_POOL: Row = Row {
    name: "LpPool",
    infer: |cx| Ok(vec![pooled(cx)?]),
    derivative: Derivative::None(REASON),
    samples: || {
        let attrs = Attrs::new().with("kernel_shape", vec![2, 2]).with("strides", vec![2, 2]);
        vec![sample(attrs, vec![floats(&[1, 2, 4, 5])]).shape_only()]
    },
    ..ROW
};

pub(super) const GLOBAL_LP_POOL: Row = Row {
    name: "GlobalLpPool",
    infer: super::global_pool::infer,
    derivative: Derivative::None(REASON),
    samples: || vec![plain(vec![floats(&[2, 3, 4, 4])]).shape_only()],
    ..ROW
};
