//! `ancre.BatchNormTrain`: batch normalisation with the batch's own statistics, as in PyTorch's training mode.
//!
//! y = d · s · scale + bias with the deviations d = x − mean and s = 1 / √(var + ε); mean and the biased variance of each
//! channel (axis 1) are taken over all other axes. Results: y, mean, var, s, d; mean, var and s have one number per channel.
//!
//! Stock runtimes have no kernel for `BatchNormalization` in training mode, so it is lowered to plain operators. Its pullback
//! reads d, var and s; d can take the memory of x, which nothing reads afterwards. Inference-mode `BatchNormalization` computes
//! "times one number plus another, per channel" in one pass over the activations.
//!
//! A copy that computes the same again has the mean and the variance that were found as operands 3 and 4.

use super::*;

pub(super) const BATCH_NORM_TRAIN: Row = Row {
    domain: ANCRE,
    name: "BatchNormTrain",
    infer: |cx| {
        let x = cx.ty(0)?;
        cx.require(x.rank() >= 2, || format!("{x} has no channel axis"))?;
        let channels = TensorType::new(x.dtype, vec![x.shape[1].clone()]);
        for i in 1..3 {
            let ty = cx.ty(i)?;
            let agree =
                ty.dtype == x.dtype && ty.rank() == 1 && (ty.shape[0].known().is_none() || ty.shape[0] == x.shape[1]);
            cx.require(agree, || format!("operand {i} is {ty}; it has one number of that type for each channel of {x}"))?;
        }
        Ok(vec![x.clone(), channels.clone(), channels.clone(), channels, x.clone()])
    },
    // With n elements a channel, r = Σ ȳ (the bias' cotangent) and q = s Σ ȳ ⊙ d (the scale's):
    // x̄ = (ȳ − r / n − d s q / n) · scale · s, with the product last, so that a convolution before this node can take it into its weight.
    pullback: |p| {
        let ct = p.ct(0)?;
        if (1..5).any(|i| p.try_ct(i).is_some()) {
            return Err(p.unsupported("the loss reads the batch statistics directly"));
        }
        let (x, x_ty, scale) = (p.operand(0)?, p.ty(0)?, p.operand(1)?);
        let (var, inverse, deviations) = (p.result(2), p.result(3), p.result(4));
        let sum = channel_reduce(p.b, "ReduceSum", ct)?;
        p.accumulate(2, sum)?;
        if !p.wants(0) && !p.wants(1) {
            return Ok(());
        }
        let scale_ct = formula(p.b, [ct, deviations, inverse], |[ct, d, s]| (ct * d).by_channel("ReduceSum") * s)?;
        p.accumulate(1, scale_ct)?;
        if !p.wants(0) {
            return Ok(());
        }
        let others: Vec<usize> = other_axes(x_ty.rank()).iter().map(|a| *a as usize).collect();
        let count = p.b.extent(x, &others, x_ty.dtype)?;
        let gain = p.b.mul(scale, inverse)?;
        // One normalisation of d, which supplies one factor s, computes what is subtracted: d · (q s / n) + r / n.
        let share = p.b.op("Reciprocal", &[count])?;
        let slope = p.b.mul(scale_ct, share)?;
        let shift = p.b.mul(sum, share)?;
        let node = p.node();
        let attrs = normalize_attrs(p.b, node);
        let zero = zeros(p.b, var)?;
        let removed = p.b.op_with("BatchNormalization", attrs, &[deviations, slope, shift, zero, var])?;
        p.give(0, |b| formula(b, [ct, gain, removed], |[ct, gain, removed]| (ct - removed) * gain.per_channel(x_ty.rank())))
    },
    lower: |b, node| {
        let operands = b.graph.operands(node);
        let given = operands.get(3).copied().flatten().zip(operands.get(4).copied().flatten());
        let [Some(x), Some(scale), Some(bias), ..] = operands[..] else {
            return Err(b.error("BatchNormTrain", TypeError("an operand is missing".into())));
        };
        let attrs = normalize_attrs(b, node);
        let epsilon = attrs.float("epsilon").unwrap_or_default() as f64;
        let rank = b.ty(x)?.rank();
        let mean = match given {
            Some((mean, _)) => mean,
            None => channel_reduce(b, "ReduceMean", x)?,
        };
        // The mean square of the deviations, not the difference of mean squares, which cancels.
        let deviations = formula(b, [x, mean], |[x, mean]| x - mean.per_channel(rank))?;
        let var = match given {
            Some((_, var)) => var,
            None => formula(b, [deviations], |[d]| (d * d).by_channel("ReduceMean"))?,
        };
        // PyTorch computes y from x and its mean, not from the deviations. The same formula puts values near a kink (a ReLU after
        // it) on the same side as there.
        let y = b.op_with("BatchNormalization", attrs, &[x, scale, bias, mean, var])?;
        let inverse = formula(b, [var], |[var]| (var + epsilon).sqrt().op("Reciprocal"))?;
        Ok(vec![y, mean, var, inverse, deviations])
    },
    samples: || {
        let of = |x: &[i64], epsilon: f32| {
            sample(Attrs::new().with("epsilon", epsilon), vec![floats(x), floats(&[x[1]]), floats(&[x[1]])])
        };
        vec![of(&[3, 2, 4, 3], 1e-5), of(&[8, 3], 1e-3), of(&[2, 2, 5], 1e-5), of(&[2, 2, 2, 3, 2], 1e-2)]
    },
    ..ROW
};

fn normalize_attrs(b: &Builder, node: NodeId) -> Attrs {
    let attrs = b.graph.op(node).map(|op| op.attrs.clone()).unwrap_or_default();
    Attrs::new().with("epsilon", Op::new("BatchNormalization", attrs).float("epsilon"))
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

/// One number per channel. The contiguous spatial axes are reduced first, which is fastest on every provider, then the batch.
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
