//! `ancre.BatchNormTrain`: batch normalisation with the batch's own statistics, as in PyTorch's training mode.
//!
//! y = d · s · scale + bias with the deviations d = x − mean and s = 1 / √(var + ε); mean and the biased variance of each
//! channel (axis 1) are taken over all other axes. Results: y, mean, var, s, d; the middle three are one number a channel.
//!
//! Stock runtimes have no kernel for `BatchNormalization` in training mode, so it is lowered to plain operators. Its pullback
//! reads d, var and s: d takes x's place in memory, since nothing after it reads x. Both keep to few passes over the
//! activations; the inference-mode `BatchNormalization` serves as the fused "times one number plus another, per channel".

use super::sample::floats;
use super::*;
use crate::ir::{ANCRE, NodeId, Tensor};
use crate::ops::build::{BuildError, Builder, Built};

pub(super) struct BatchNormTrain;

impl OpRule for BatchNormTrain {
    fn name(&self) -> &'static str {
        "BatchNormTrain"
    }
    fn domain(&self) -> &'static str {
        ANCRE
    }
    fn infer(&self, cx: &Infer) -> Types {
        let x = cx.ty(0)?;
        cx.require(x.rank() >= 2, || format!("{x} has no channel axis"))?;
        let channels = TensorType::new(x.dtype, vec![x.shape[1].clone()]);
        for i in 1..3 {
            let ty = cx.ty(i)?;
            let agree = ty.rank() == 1 && (ty.shape[0].known().is_none() || ty.shape[0] == x.shape[1]);
            cx.require(agree, || format!("{ty} is not one number a channel of {x}"))?;
        }
        Ok(vec![x.clone(), channels.clone(), channels.clone(), channels, x.clone()])
    }
    /// With n elements a channel, r = Σ ȳ (the bias' cotangent) and q = s Σ ȳ ⊙ d (the scale's):
    /// x̄ = scale · s · (ȳ − r / n − d s q / n).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        if (1..5).any(|i| p.try_ct(i).is_some()) {
            return Err(p.unsupported("the loss reads the batch statistics directly"));
        }
        let (x, x_ty, scale) = (p.operand(0)?, p.ty(0)?, p.operand(1)?);
        let (var, inverse, deviations) = (p.result(2), p.result(3), p.result(4));
        let rank = x_ty.rank();
        let sum = channel_reduce(p.b, "ReduceSum", ct)?;
        if p.wants(2) {
            p.accumulate(2, sum)?;
        }
        if !p.wants(0) && !p.wants(1) {
            return Ok(());
        }
        let products = p.b.mul(ct, deviations)?;
        let moment = channel_reduce(p.b, "ReduceSum", products)?;
        let scale_ct = p.b.mul(moment, inverse)?;
        if p.wants(1) {
            p.accumulate(1, scale_ct)?;
        }
        if !p.wants(0) {
            return Ok(());
        }
        let others: Vec<usize> = other_axes(rank).iter().map(|a| *a as usize).collect();
        let count = p.b.extent(x, &others, x_ty.dtype)?;
        let gain = p.b.mul(scale, inverse)?;
        // What is subtracted, d · (scale q s² / n) + gain r / n, comes from one normalisation of d, which supplies one s itself.
        let slope = p.b.mul(gain, scale_ct)?;
        let slope = p.b.div(slope, count)?;
        let shift = p.b.mul(gain, sum)?;
        let shift = p.b.div(shift, count)?;
        let node = p.node();
        let attrs = normalize_attrs(p.b, node);
        let zero = zeros(p.b, var)?;
        let removed = p.b.op_with("BatchNormalization", attrs, &[deviations, slope, shift, zero, var])?;
        let gain = per_channel(p.b, gain, rank)?;
        let kept = p.b.mul(ct, gain)?;
        let term = p.b.sub(kept, removed)?;
        p.accumulate(0, term)
    }
    fn lower(&self, b: &mut Builder, node: NodeId) -> Result<Vec<ValueId>, BuildError> {
        let [Some(x), Some(scale), Some(bias)] = b.graph.operands(node)[..] else {
            return Err(b.error(self.name(), TypeError("an operand is missing".into())));
        };
        let attrs = normalize_attrs(b, node);
        let epsilon = attrs.float("epsilon", 1e-5) as f64;
        let rank = b.ty(x)?.rank();
        let mean = channel_reduce(b, "ReduceMean", x)?;
        let column = per_channel(b, mean, rank)?;
        // The mean square of the deviations, not the difference of mean squares, which cancels.
        let deviations = b.sub(x, column)?;
        let squares = b.mul(deviations, deviations)?;
        let var = channel_reduce(b, "ReduceMean", squares)?;
        // On x and its mean rather than on the deviations: PyTorch's own formula, so that what is within rounding of a kink (a ReLU
        // after it) falls on the same side as there.
        let y = b.op_with("BatchNormalization", attrs, &[x, scale, bias, mean, var])?;
        let shifted = b.shift(var, epsilon)?;
        let root = b.sqrt(shifted)?;
        let inverse = b.op("Reciprocal", &[root])?;
        Ok(vec![y, mean, var, inverse, deviations])
    }
    fn samples(&self) -> Vec<Sample> {
        let of = |x: &[i64], epsilon: f32| {
            let mut s = Sample::of(
                "BatchNormTrain",
                Attrs::new().with("epsilon", epsilon),
                vec![floats(x), floats(&[x[1]]), floats(&[x[1]])],
            );
            s.op.domain = ANCRE.to_string();
            s
        };
        vec![of(&[3, 2, 4, 3], 1e-5), of(&[8, 3], 1e-3), of(&[2, 2, 5], 1e-5), of(&[2, 2, 2, 3, 2], 1e-2)]
    }
}

fn normalize_attrs(b: &Builder, node: NodeId) -> Attrs {
    Attrs::new().with("epsilon", b.graph.op(node).map_or(1e-5, |o| o.attrs.float("epsilon", 1e-5)))
}

/// Zeros of the shape of a [C] vector.
fn zeros(b: &mut Builder, like: ValueId) -> Built {
    let ty = b.ty(like)?;
    match ty.known_dims() {
        Some(dims) => {
            let values = vec![0.0; dims.iter().product::<i64>() as usize];
            Ok(b.constant("const/zeros", Tensor::floats(ty.dtype, &dims, &values)))
        }
        None => b.sub(like, like),
    }
}

/// One number a channel: over the spatial axes, which are contiguous and reduce fastest on every provider, then over the
/// batch.
pub(super) fn channel_reduce(b: &mut Builder, op: &str, v: ValueId) -> Built {
    let rank = b.ty(v)?.rank() as i64;
    let rows = b.reduce(op, v, &(2..rank).collect::<Vec<_>>(), false)?;
    b.reduce(op, rows, &[0], false)
}

/// Every axis but the channels'.
pub(super) fn other_axes(rank: usize) -> Vec<i64> {
    [0].into_iter().chain(2..rank as i64).collect()
}

/// [C] so that it broadcasts over axis 1.
pub(super) fn per_channel(b: &mut Builder, v: ValueId, rank: usize) -> Built {
    b.unsqueeze(v, &(1..rank as i64 - 1).collect::<Vec<_>>())
}
