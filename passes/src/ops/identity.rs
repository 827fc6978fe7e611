//! `Identity`: y = x.

use super::sample::floats;
use super::*;

pub(super) struct Identity;

impl OpRule for Identity {
    fn name(&self) -> &'static str {
        "Identity"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        p.accumulate(0, ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Identity", Attrs::new(), vec![floats(&[2, 3])])]
    }
}
