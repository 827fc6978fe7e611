//! `Log`: y = ln x.

use super::sample::floats_in;
use super::*;

pub(super) struct Log;

impl OpRule for Log {
    fn name(&self) -> &'static str {
        "Log"
    }
    fn since(&self) -> i64 {
        6
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// x̄ = ȳ ⊘ x.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let x_ct = p.b.div(ct, x)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![Sample::of("Log", Attrs::new(), vec![floats_in(&[2, 3], 0.5, 2.0)])]
    }
}
