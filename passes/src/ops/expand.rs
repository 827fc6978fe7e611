//! `Expand`: broadcasts to the broadcast of its own shape and the given one.

use super::sample::{floats, ints};
use super::*;

pub(super) struct Expand;

impl OpRule for Expand {
    fn name(&self) -> &'static str {
        "Expand"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let ty = cx.ty(0)?;
        Ok(vec![TensorType::new(ty.dtype, broadcast::broadcast(&ty.shape, &cx.target(1, "expand")?)?)])
    }
    /// x̄ = unbroadcast(ȳ).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        p.accumulate_broadcast(0, ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Expand", Attrs::new(), vec![floats(&[3, 1]), ints(&[2, 1, 4])]),
            Sample::of("Expand", Attrs::new(), vec![floats(&[2, 3]), ints(&[1, 1])]),
            Sample::of("Expand", Attrs::new(), vec![floats(&[]), ints(&[2])]),
        ]
    }
}
