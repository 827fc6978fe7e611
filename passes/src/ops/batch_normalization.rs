//! `BatchNormalization` in inference mode: y = (x − mean) · s · scale + bias with s = 1 / √(var + ε), per channel (axis 1).
//! Mean and variance are given; in training mode it is `ancre.BatchNormTrain`.

use super::batch_norm_train::{channel_reduce, per_channel};
use super::sample::floats;
use super::*;

pub(super) struct BatchNormalization;

impl OpRule for BatchNormalization {
    fn name(&self) -> &'static str {
        "BatchNormalization"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let x = cx.ty(0)?;
        cx.require(x.rank() >= 2, || format!("{x} has no channel axis"))?;
        let vector = |t: &TensorType| t.rank() == 1 && TensorType::new(t.dtype, vec![x.shape[1].clone()]).may_be(t);
        let vectors = cx.types.iter().skip(1).flatten().all(vector);
        cx.require(vectors, || format!("its statistics and parameters are no vectors of the channels of {x}"))?;
        let mut all = vec![x.clone()];
        if cx.op.int("training_mode") != 0 {
            all.extend([cx.ty(3)?.clone(), cx.ty(4)?.clone()]);
        }
        Ok(all)
    }
    /// x̄ = ȳ · scale · s; the scale's cotangent is s Σ ȳ (x − mean), the bias' Σ ȳ. Mean and variance are constants.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let op = p.op();
        if op.int("training_mode") != 0 {
            return Err(
                p.unsupported("training mode is differentiated as ancre.BatchNormTrain, which must replace it first")
            );
        }
        if p.wants(3) || p.wants(4) {
            return Err(p.unsupported("its mean or variance is trained by gradient"));
        }
        let ct = p.ct(0)?;
        let (x_ty, mean, var) = (p.ty(0)?, p.operand(3)?, p.operand(4)?);
        let rank = x_ty.rank();
        if p.wants(2) {
            let term = channel_reduce(p.b, "ReduceSum", ct)?;
            p.accumulate(2, term)?;
        }
        if !p.wants(0) && !p.wants(1) {
            return Ok(());
        }
        let shifted = p.b.shift(var, op.float("epsilon") as f64)?;
        let root = p.b.sqrt(shifted)?;
        if p.wants(0) {
            let scale = p.operand(1)?;
            let gain = p.b.div(scale, root)?;
            let gain = per_channel(p.b, gain, rank)?;
            let term = p.b.mul(ct, gain)?;
            p.accumulate(0, term)?;
        }
        if p.wants(1) {
            let x = p.operand(0)?;
            let column = per_channel(p.b, mean, rank)?;
            let centred = p.b.sub(x, column)?;
            let products = p.b.mul(ct, centred)?;
            let moment = channel_reduce(p.b, "ReduceSum", products)?;
            let term = p.b.div(moment, root)?;
            p.accumulate(1, term)?;
        }
        Ok(())
    }
    fn samples(&self) -> Vec<Sample> {
        let of = |x: &[i64], attrs: Attrs| {
            let c = x[1];
            let fixed = |from: f32| SampleOperand::FloatConstant {
                dims: vec![c],
                values: (0..c).map(|i| from + 0.25 * i as f32).collect(),
            };
            Sample::of("BatchNormalization", attrs, vec![floats(x), floats(&[c]), floats(&[c]), fixed(-0.5), fixed(0.5)])
        };
        vec![
            of(&[2, 3, 4, 3], Attrs::new()),
            of(&[4, 3], Attrs::new().with("epsilon", 0.1_f32)),
            of(&[2, 3, 5], Attrs::new().with("epsilon", 1e-3_f32)),
        ]
    }
}
