//! `BatchNormalization` in inference mode: y = (x − mean) · s · scale + bias with s = 1 / √(var + ε), per channel (axis 1).
//! Mean and variance are given; in training mode it is `ancre.BatchNormTrain`.

use super::batch_norm_train::channel_reduce;
use super::*;

pub(super) const BATCH_NORMALIZATION: Row = Row {
    name: "BatchNormalization",
    infer: |cx| {
        let x = cx.ty(0)?;
        cx.require(x.rank() >= 2, || format!("{x} has no channel axis"))?;
        let vector = |t: &TensorType| t.rank() == 1 && TensorType::new(t.dtype, vec![x.shape[1].clone()]).may_be(t);
        let vectors = cx.types.iter().skip(1).flatten().all(vector);
        // Before opset 9 each element might have its own.
        let each = cx.op.attrs.int("spatial") == Some(0);
        cx.require(vectors || each, || format!("its statistics and parameters are no vectors of the channels of {x}"))?;
        let mut all = vec![x.clone()];
        if cx.op.int("training_mode") != 0 {
            all.extend([cx.ty(3)?.clone(), cx.ty(4)?.clone()]);
        }
        Ok(all)
    },
    // x̄ = ȳ · scale · s; the scale's cotangent is s Σ ȳ (x − mean), the bias' Σ ȳ, the mean's −scale · s Σ ȳ, the variance's
    // −½ scale · s³ Σ ȳ (x − mean).
    pullback: |p| {
        let op = p.op();
        if op.int("training_mode") != 0 {
            return Err(
                p.unsupported("training mode is differentiated as ancre.BatchNormTrain, which must replace it first")
            );
        }
        let (x, scale, mean, var) = (p.operand(0)?, p.operand(1)?, p.operand(3)?, p.operand(4)?);
        let (ct, rank) = (p.ct(0)?, p.ty(0)?.rank());
        p.give(2, |b| channel_reduce(b, "ReduceSum", ct))?;
        if [0, 1, 3, 4].into_iter().all(|i| !p.wants(i)) {
            return Ok(());
        }
        let epsilon = op.float("epsilon") as f64;
        let root = formula(p.b, [var], |[var]| (var + epsilon).sqrt())?;
        p.give(0, |b| formula(b, [scale, root, ct], |[scale, root, ct]| ct * (scale / root).per_channel(rank)))?;
        p.give(1, |b| {
            formula(b, [x, mean, root, ct], |[x, mean, root, ct]| {
                (ct * (x - mean.per_channel(rank))).by_channel("ReduceSum") / root
            })
        })?;
        p.give(3, |b| formula(b, [scale, root, ct], |[scale, root, ct]| -(ct.by_channel("ReduceSum") * scale / root)))?;
        p.give(4, |b| {
            formula(b, [x, scale, mean, root, ct], |[x, scale, mean, root, ct]| {
                let sum = (ct * (x - mean.per_channel(rank))).by_channel("ReduceSum");
                sum * scale / (root * root * root) * -0.5
            })
        })
    },
    samples: || {
        let of = |x: &[i64], attrs: Attrs| {
            let c = x[1];
            let fixed = |from: f32| SampleOperand::FloatConstant {
                dims: vec![c],
                values: (0..c).map(|i| from + 0.25 * i as f32).collect(),
            };
            sample(attrs, vec![floats(x), floats(&[c]), floats(&[c]), fixed(-0.5), fixed(0.5)])
        };
        let moving = |x: &[i64]| {
            sample(Attrs::new(), vec![floats(x), floats(&[3]), floats(&[3]), floats(&[3]), floats_in(&[3], 0.5, 2.0)])
        };
        vec![
            moving(&[2, 3, 4, 3]),
            of(&[2, 3, 4, 3], Attrs::new()),
            of(&[4, 3], Attrs::new().with("epsilon", 0.1_f32)),
            of(&[2, 3, 5], Attrs::new().with("epsilon", 1e-3_f32)),
        ]
    },
    ..ROW
};
