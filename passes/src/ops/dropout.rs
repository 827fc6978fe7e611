//! `Dropout`: the identity unless `training_mode` holds; its second result is the mask of the kept elements.
//!
//! Before differentiation the training graph replaces the source's dropouts by masks in plain operators. What remains is the
//! inference form, or a dropout whose mask is read.

use super::*;

pub(super) const DROPOUT: Row = Row {
    name: "Dropout",
    infer: |cx| {
        let x = cx.ty(0)?;
        cx.single_from(1)?;
        Ok(vec![x.clone(), TensorType::new(DType::Bool, x.shape.clone())])
    },
    // x̄ = ȳ in inference form, else ȳ ⊙ mask / (1 − ratio).
    pullback: |p| {
        let ct = p.ct(0)?;
        let Some(mode) = p.try_operand(2) else { return p.accumulate(0, ct) };
        match p.b.graph.constant(mode).and_then(|t| t.to_i64().ok()).as_deref() {
            Some([0]) => return p.accumulate(0, ct),
            Some(_) => {}
            None => return Err(p.unsupported("`training_mode` is computed in the graph")),
        }
        let ratio = match p.try_operand(1) {
            None => Some(0.5),
            Some(v) => p.b.graph.constant(v).and_then(|t| t.scalar()),
        };
        let ratio = ratio.ok_or_else(|| p.unsupported("`ratio` is computed in the graph"))?;
        let mask = p.graph().results(p.node()).nth(1).filter(|m| !p.graph().name(*m).is_empty());
        let mask = mask.ok_or_else(|| p.unsupported("`training_mode` is set and its mask is no result"))?;
        let dtype = p.ty(0)?.dtype;
        let mask = p.b.cast(mask, dtype)?;
        let scaled = p.b.scale(ct, 1.0 / (1.0 - ratio))?;
        p.give(0, |b| b.mul(scaled, mask))
    },
    samples: || vec![plain(vec![floats(&[2, 3])]), plain(vec![floats(&[2, 3]), fixed(&[], &[0.3]), truths(&[], &[false])])],
    ..ROW
};
