//! `Dropout`: the identity unless `training_mode` holds; its second result is the mask of what is kept.
//!
//! The training graph replaces source dropouts by masks in plain operators before it differentiates; what comes here is either the
//! inference form or one whose mask is read.

use super::sample::floats;
use super::*;

pub(super) struct Dropout;

impl OpRule for Dropout {
    fn name(&self) -> &'static str {
        "Dropout"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let x = cx.ty(0)?;
        Ok(vec![x.clone(), TensorType::new(DType::Bool, x.shape.clone())])
    }
    /// x̄ = ȳ in inference form, else ȳ ⊙ mask / (1 − ratio).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
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
        let mask = mask.ok_or_else(|| p.unsupported("`training_mode` is set and the mask is not a result"))?;
        let dtype = p.ty(0)?.dtype;
        let mask = p.b.cast(mask, dtype)?;
        let scaled = p.b.scale(ct, 1.0 / (1.0 - ratio))?;
        let x_ct = p.b.mul(scaled, mask)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Dropout", Attrs::new(), vec![floats(&[2, 3])]),
            Sample::of(
                "Dropout",
                Attrs::new(),
                vec![
                    floats(&[2, 3]),
                    SampleOperand::FloatConstant { dims: vec![], values: vec![0.3] },
                    SampleOperand::Bools { dims: vec![], values: vec![false] },
                ],
            ),
        ]
    }
}
