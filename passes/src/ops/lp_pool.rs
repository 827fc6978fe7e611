//! `LpPool` and `GlobalLpPool`: the p-norm of every window, of every channel. No provider but the CPU's has a kernel.

use super::sample::floats;
use super::window::pooled;
use super::*;

pub(super) struct LpPool;
pub(super) struct GlobalLpPool;

const REASON: &str = "p-norm pools are not differentiated; write them as Pow, AveragePool and Pow";

impl OpRule for LpPool {
    fn name(&self) -> &'static str {
        "LpPool"
    }
    fn infer(&self, cx: &Infer) -> Types {
        Ok(vec![pooled(cx)?])
    }
    fn derivative(&self) -> Derivative {
        Derivative::None(REASON)
    }
    fn samples(&self) -> Vec<Sample> {
        let attrs = Attrs::new().with("kernel_shape", vec![2, 2]).with("strides", vec![2, 2]);
        vec![Sample::of("LpPool", attrs, vec![floats(&[1, 2, 4, 5])]).shape_only()]
    }
}

impl OpRule for GlobalLpPool {
    fn name(&self) -> &'static str {
        "GlobalLpPool"
    }
    fn infer(&self, cx: &Infer) -> Types {
        super::global_pool::infer(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::None(REASON)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("GlobalLpPool", Attrs::new(), vec![floats(&[2, 3, 4, 4])]).shape_only()]
    }
}
