//! `NonZero`: the places of the elements that are not 0, one column each.

use super::sample::floats;
use super::*;

pub(super) struct NonZero;

impl OpRule for NonZero {
    fn name(&self) -> &'static str {
        "NonZero"
    }
    fn since(&self) -> i64 {
        9
    }
    fn infer(&self, cx: &Infer) -> Types {
        let rank = cx.ty(0)?.rank() as i64;
        Ok(vec![TensorType::new(DType::I64, vec![Dim::from(rank), unknown_dim("nonzero")])])
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("NonZero", Attrs::new(), vec![floats(&[2, 3])]).shape_only()]
    }
}
