//! `ScatterND`: x with the updates written (or added) at the slices that the last axis of the indices names.
//!
//! Duplicate indices are only defined with a reduction; of the reductions only `add` is differentiated.

use super::sample::floats;
use super::*;

pub(super) struct ScatterND;

impl OpRule for ScatterND {
    fn name(&self) -> &'static str {
        "ScatterND"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// Writing: x̄ = ȳ with zeros at the places; adding: x̄ = ȳ. updates̅ = ȳ gathered at the places.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (indices, ct) = (p.operand(1)?, p.ct(0)?);
        let adds = match p.op().str("reduction") {
            "none" => false,
            "add" => true,
            _ => return Err(p.unsupported("only writing and adding are differentiated")),
        };
        if p.wants(0) {
            let x_ct = if adds {
                ct
            } else {
                let zeros = p.operand(2)?;
                let zeros = p.b.zeros_like(zeros)?;
                p.b.op("ScatterND", &[ct, indices, zeros])?
            };
            p.accumulate(0, x_ct)?;
        }
        if p.wants(2) {
            let updates_ct = p.b.op("GatherND", &[ct, indices])?;
            p.accumulate(2, updates_ct)?;
        }
        Ok(())
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of(
                "ScatterND",
                Attrs::new(),
                vec![floats(&[4, 2]), SampleOperand::Ints { dims: vec![2, 1], values: vec![1, -1] }, floats(&[2, 2])],
            ),
            Sample::of(
                "ScatterND",
                Attrs::new().with("reduction", "add"),
                vec![floats(&[3, 3]), SampleOperand::Ints { dims: vec![2, 2], values: vec![1, 0, 1, 0] }, floats(&[2])],
            ),
        ]
    }
}
