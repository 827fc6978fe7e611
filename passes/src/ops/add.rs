//! `Add`: z = x + y with broadcasting.

use super::sample::floats;
use super::*;

pub(super) struct Add;

impl OpRule for Add {
    fn name(&self) -> &'static str {
        "Add"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_all(cx)
    }
    /// x̄ = unbroadcast(z̄), ȳ = unbroadcast(z̄).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        p.accumulate_broadcast(0, ct)?;
        p.accumulate_broadcast(1, ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Add", Attrs::new(), vec![floats(&[2, 3]), floats(&[2, 3])]),
            Sample::of("Add", Attrs::new(), vec![floats(&[2, 1, 3]), floats(&[4, 1])]),
            Sample::of("Add", Attrs::new(), vec![floats(&[]), floats(&[3])]),
        ]
    }
}
