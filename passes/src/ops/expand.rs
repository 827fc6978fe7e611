//! `Expand`: broadcasts to the broadcast of its own shape and the given one.

use super::sample::{floats, ints};
use super::*;

pub(super) struct Expand;

impl OpRule for Expand {
    fn name(&self) -> &'static str {
        "Expand"
    }
    fn since(&self) -> i64 {
        8
    }
    fn infer(&self, cx: &Infer) -> Types {
        let ty = cx.ty(0)?;
        let target: Vec<Dim> = match (cx.ints)(1) {
            Some(target) => target.into_iter().map(Dim::from).collect(),
            None => {
                let rank = cx.ty(1)?.shape.first().and_then(Dim::known);
                let rank = rank.ok_or_else(|| TypeError("the rank of the target shape is unknown".into()))?;
                (0..rank).map(|_| unknown_dim("expand")).collect()
            }
        };
        Ok(vec![TensorType::new(ty.dtype, broadcast::broadcast(&ty.shape, &target)?)])
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
