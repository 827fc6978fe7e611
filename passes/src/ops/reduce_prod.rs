//! `ReduceProd`: y = Π x.

use super::listed::{Reduction, reduced, reduction_samples};
use super::*;

pub(super) struct ReduceProd;

impl OpRule for ReduceProd {
    fn name(&self) -> &'static str {
        "ReduceProd"
    }
    fn since(&self) -> i64 {
        18
    }
    fn infer(&self, cx: &Infer) -> Types {
        reduced(cx)
    }
    /// x̄ᵢ = ȳ · Π_{j≠i} xⱼ: with zeros replaced by 1, the product over the element, kept where no *other* element is 0.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let reduction = Reduction::of(p)?;
        if reduction.is_identity() {
            return p.accumulate(0, ct);
        }

        let dtype = p.ty(0)?.dtype;
        let ct = reduction.restore(p, ct)?;
        let zero = p.b.scalar(dtype, 0.0);
        let is_zero = p.b.op("Equal", &[x, zero])?;
        let is_zero = p.b.cast(is_zero, dtype)?;
        let safe = p.b.add(x, is_zero)?;
        let product = reduction.apply(p, "ReduceProd", safe)?;
        let zeros = reduction.apply(p, "ReduceSum", is_zero)?;
        let numerator = p.b.mul(ct, product)?;
        let others = p.b.sub(zeros, is_zero)?;
        let alone = p.b.compare("Less", others, 0.5)?;
        let quotient = p.b.div(numerator, safe)?;
        let x_ct = p.b.mul(quotient, alone)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        with_zeros()
    }
}

fn with_zeros() -> Vec<Sample> {
    let mut samples = reduction_samples("ReduceProd", 0.5, 1.5);
    let values = vec![0.0, 0.7, -1.2, 0.0, 0.0, 1.1, 0.8, -0.6, 1.4];
    let zeros = SampleOperand::Values { dims: vec![3, 3], values };
    samples.push(Sample::of("ReduceProd", Attrs::new(), vec![zeros, super::sample::ints(&[1])]));
    samples
}
