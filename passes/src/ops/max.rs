//! `Max`, `Min` of any number of operands, with broadcasting.
//!
//! x̄ᵢ = unbroadcast([xᵢ = y] ⊙ ȳ / n) where n counts the operands that attain the extremum: ties share evenly.

use super::sample::floats_in;
use super::*;

pub(super) struct Max;

impl OpRule for Max {
    fn name(&self) -> &'static str {
        "Max"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_all(cx)
    }
    /// As in the module's text.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        pullback(p)
    }
    fn samples(&self) -> Vec<Sample> {
        samples("Max")
    }
}

pub(super) struct Min;

impl OpRule for Min {
    fn name(&self) -> &'static str {
        "Min"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_all(cx)
    }
    /// As in the module's text.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        pullback(p)
    }
    fn samples(&self) -> Vec<Sample> {
        samples("Min")
    }
}

fn pullback(p: &mut Pullback) -> Result<(), GradError> {
    let (y, ct) = (p.result(0), p.ct(0)?);
    let dtype = p.b.ty(y)?.dtype;
    let count = p.operand_count();
    if count == 1 {
        return p.accumulate(0, ct);
    }
    let (mut attained, mut masks) = (Vec::with_capacity(count), Vec::with_capacity(count));
    for i in 0..count {
        let x = p.operand(i)?;
        let equal = p.b.op("Equal", &[x, y])?;
        attained.push(equal);
        masks.push(p.b.cast(equal, dtype)?);
    }
    let ties = p.b.sum(&masks)?;
    let share = p.b.div(ct, ties)?;
    for (i, (equal, mask)) in attained.into_iter().zip(masks).enumerate() {
        if p.wants(i) {
            let x_ct = if p.b.steep { p.b.keep(share, equal, true)? } else { p.b.mul(share, mask)? };
            p.accumulate_broadcast(i, x_ct)?;
        }
    }
    Ok(())
}

fn samples(name: &str) -> Vec<Sample> {
    let of = |operands| Sample::of(name, Attrs::new(), operands);
    let values = |values: [f32; 4]| SampleOperand::Values { dims: vec![4], values: values.to_vec() };
    vec![
        of(vec![floats_in(&[2, 3], 0.0, 1.0), floats_in(&[3], 1.2, 2.0), floats_in(&[2, 1], -2.0, -0.2)]),
        of(vec![floats_in(&[4], -1.0, -0.2), SampleOperand::FloatConstant { dims: vec![], values: vec![0.0] }]),
        of(vec![values([0.3, -0.4, 2.0, 0.9]), values([0.7, -0.9, 1.0, 1.2])]),
    ]
}
