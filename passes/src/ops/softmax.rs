//! `Softmax`: y = exp(x) / Σ exp(x), and `LogSoftmax`, its logarithm, along one axis (opset 13 on; import rewrites the older
//! coercion to a matrix).

use super::sample::floats;
use super::*;

pub(super) struct Softmax;
pub(super) struct LogSoftmax;

impl OpRule for Softmax {
    fn name(&self) -> &'static str {
        "Softmax"
    }
    fn infer(&self, cx: &Infer) -> Types {
        cx.axis()?;
        like_first(cx)
    }
    /// x̄ = y ⊙ (ȳ − Σ ȳ ⊙ y). Reads the result only: the operand need not stay alive.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (ct, y) = (p.ct(0)?, p.result(0));
        let axis = p.op().int("axis");
        let weighted = p.b.mul(ct, y)?;
        let dot = p.b.reduce_sum(weighted, &[axis], true)?;
        let share = p.b.mul(y, dot)?;
        let term = p.b.sub(weighted, share)?;
        p.accumulate(0, term)
    }
    fn samples(&self) -> Vec<Sample> {
        samples("Softmax")
    }
}

impl OpRule for LogSoftmax {
    fn name(&self) -> &'static str {
        "LogSoftmax"
    }
    fn infer(&self, cx: &Infer) -> Types {
        cx.axis()?;
        like_first(cx)
    }
    /// x̄ = ȳ − exp(y) Σ ȳ.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (ct, y) = (p.ct(0)?, p.result(0));
        let axis = p.op().int("axis");
        let probabilities = p.b.op("Exp", &[y])?;
        let total = p.b.reduce_sum(ct, &[axis], true)?;
        let share = p.b.mul(probabilities, total)?;
        let term = p.b.sub(ct, share)?;
        p.accumulate(0, term)
    }
    fn samples(&self) -> Vec<Sample> {
        samples("LogSoftmax")
    }
}

fn samples(name: &str) -> Vec<Sample> {
    vec![
        Sample::of(name, Attrs::new(), vec![floats(&[3, 5])]),
        Sample::of(name, Attrs::new().with("axis", 1), vec![floats(&[2, 4, 3])]),
        Sample::of(name, Attrs::new().with("axis", 0), vec![floats(&[3, 2])]),
        Sample::of(name, Attrs::new().with("axis", -2), vec![floats(&[2, 3, 4])]),
    ]
}
