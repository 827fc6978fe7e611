//! `ScatterElements`: x with the updates written (or added) at the indices along an axis.
//!
//! Duplicate indices are only defined with a reduction; of the reductions only `add` is differentiated.

use super::sample::floats;
use super::*;
use crate::ops::build::{Builder, Built};

pub(super) struct ScatterElements;

impl OpRule for ScatterElements {
    fn name(&self) -> &'static str {
        "ScatterElements"
    }
    fn infer(&self, cx: &Infer) -> Types {
        like_first(cx)
    }
    /// Writing: x̄ = ȳ with zeros at the places; adding: x̄ = ȳ. updates̅ = ȳ gathered at the places.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (indices, ct, op) = (p.operand(1)?, p.ct(0)?, p.op());
        let axis = Attrs::new().with("axis", op.int("axis"));
        let adds = match op.str("reduction") {
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
                p.b.op_with("ScatterElements", axis.clone(), &[ct, indices, zeros])?
            };
            p.accumulate(0, x_ct)?;
        }
        if p.wants(2) {
            let updates_ct = p.b.op_with("GatherElements", axis, &[ct, indices])?;
            p.accumulate(2, updates_ct)?;
        }
        Ok(())
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of(
                "ScatterElements",
                Attrs::new().with("axis", 1),
                vec![floats(&[2, 4]), SampleOperand::Ints { dims: vec![2, 2], values: vec![1, -1, 0, 2] }, floats(&[2, 2])],
            ),
            Sample::of(
                "ScatterElements",
                Attrs::new().with("reduction", "add"),
                vec![floats(&[3, 2]), SampleOperand::Ints { dims: vec![2, 2], values: vec![2, 0, 2, 0] }, floats(&[2, 2])],
            ),
        ]
    }
}

/// `base` with `updates` added at `places` along an axis. Half precision is summed in single precision: ONNX Runtime has no
/// addition of float16 here on the CPU, nor one of bfloat16 anywhere.
pub(super) fn add_at(b: &mut Builder, base: ValueId, places: ValueId, updates: ValueId, axis: usize) -> Built {
    let dtype = b.ty(base)?.dtype;
    let half = matches!(dtype, DType::F16 | DType::BF16);
    let (base, updates) = if half { (b.cast(base, DType::F32)?, b.cast(updates, DType::F32)?) } else { (base, updates) };
    let attrs = Attrs::new().with("axis", axis as i64).with("reduction", "add");
    let sum = b.op_with("ScatterElements", attrs, &[base, places, updates])?;
    if half { b.cast(sum, dtype) } else { Ok(sum) }
}
