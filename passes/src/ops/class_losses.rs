//! Losses of classes as operators: `NegativeLogLikelihoodLoss`, `SoftmaxCrossEntropyLoss`, of scores [N, C, d1, …] and labels
//! [N, d1, …].
//!
//! ```text
//! each = −w[label] log p[label]          0 where the label is the ignored one
//! mean = Σ each / Σ w[label]             over the labels that count; of none NaN, with the gradient 0
//! ```

use super::*;

pub(super) const NLL: Row = Row {
    name: "NegativeLogLikelihoodLoss",
    infer: |cx| Ok(vec![loss_type(cx)?]),
    derivative: Derivative::Decompose("GatherElements, Mul, ReduceSum"),
    decompose: |b, s| Ok(vec![loss(b, s, s.need(0)?)?]),
    samples: || samples(1),
    ..ROW
};

pub(super) const CROSS_ENTROPY: Row = Row {
    name: "SoftmaxCrossEntropyLoss",
    infer: |cx| Ok(vec![loss_type(cx)?, cx.ty(0)?.clone()]),
    derivative: Derivative::Decompose("LogSoftmax, GatherElements, Mul, ReduceSum"),
    decompose: |b, s| {
        let log_p = b.op_with("LogSoftmax", Attrs::new().with("axis", 1), &[s.need(0)?])?;
        Ok(vec![loss(b, s, log_p)?, log_p])
    },
    samples: || samples(2),
    ..ROW
};

fn loss_type(cx: &Infer) -> Result<TensorType, TypeError> {
    let (scores, labels) = (cx.ty(0)?, cx.ty(1)?);
    let fits = scores.rank() >= 2 && labels.rank() + 1 == scores.rank();
    cx.require(fits, || format!("labels {labels} do not fit scores {scores}, which have one axis more: their classes"))?;
    let shape = if cx.op.str("reduction") == "none" { labels.shape.clone() } else { vec![] };
    Ok(TensorType::new(scores.dtype, shape))
}

/// What a loss reads of its labels.
pub(crate) struct Picked {
    /// log p[label] of each position.
    pub(crate) log_p: ValueId,
    /// 1 where a label counts, else 0; `None` if all do.
    pub(crate) counted: Option<ValueId>,
    /// The labels, 0 in place of the ignored one.
    pub(crate) labels: ValueId,
}

/// Picks from log p [N, C, d1, …] by labels [N, d1, …] of int64, of which one may be ignored.
///
/// # Errors
/// When a type is not known.
pub(crate) fn pick(b: &mut Builder, log_p: ValueId, labels: ValueId, ignored: Option<i64>) -> Result<Picked, BuildError> {
    let dtype = b.ty(log_p)?.dtype;
    let (mut labels, mut counted) = (labels, None);
    if let Some(index) = ignored {
        let index = b.int(index);
        let ignored = b.op("Equal", &[labels, index])?;
        let zero = b.int(0);
        labels = b.select(ignored, zero, labels)?;
        let kept = b.op("Not", &[ignored])?;
        counted = Some(b.cast(kept, dtype)?);
    }
    let column = b.unsqueeze(labels, &[1])?;
    let picked = b.op_with("GatherElements", Attrs::new().with("axis", 1), &[log_p, column])?;
    Ok(Picked { log_p: b.squeeze(picked, &[1])?, counted, labels })
}

/// sum / Σ weights. Of no weight it is `of_none` (PyTorch: no number), and has the gradient 0.
///
/// # Errors
/// When a type is not known.
pub(crate) fn weighted_mean(b: &mut Builder, sum: ValueId, weights: ValueId, of_none: f64) -> Built {
    let total = b.reduce_all("ReduceSum", weights)?;
    let dtype = b.ty(total)?.dtype;
    let (none, one, nan) = (b.scalar(dtype, 0.0), b.scalar(dtype, 1.0), b.scalar(dtype, of_none));
    let empty = b.op("Equal", &[total, none])?;
    let divisor = b.select(empty, one, total)?;
    let mean = b.div(sum, divisor)?;
    b.select(empty, nan, mean)
}

fn loss(b: &mut Builder, s: &Source, log_p: ValueId) -> Result<ValueId, Why> {
    let labels = b.cast(s.need(1)?, DType::I64)?;
    let picked = pick(b, log_p, labels, s.op.attrs.int("ignore_index"))?;
    let mut weights = picked.counted;
    if let Some(of_classes) = s.get(2) {
        let own = b.op_with("Gather", Attrs::new().with("axis", 0), &[of_classes, picked.labels])?;
        weights = Some(weights.map_or(Ok(own), |counted| b.mul(own, counted))?);
    }
    let mut each = b.neg(picked.log_p)?;
    if let Some(weights) = weights {
        each = b.mul(each, weights)?;
    }
    Ok(match (s.op.str("reduction"), weights) {
        ("none", _) => each,
        ("sum", _) => b.reduce_all("ReduceSum", each)?,
        ("mean", None) => b.reduce_all("ReduceMean", each)?,
        ("mean", Some(weights)) => {
            let sum = b.reduce_all("ReduceSum", each)?;
            weighted_mean(b, sum, weights, f64::NAN)?
        }
        (other, _) => return Err(unfit(format!("reduces by `{other}`; mean, sum and none are known"))),
    })
}

fn samples(results: usize) -> Vec<Sample> {
    let of = |attrs: Attrs, operands| sample(attrs, operands).results(results);
    vec![
        of(Attrs::new(), vec![floats(&[3, 4]), ints_of(&[3], &[1, 0, 3])]),
        of(Attrs::new().with("ignore_index", -1), vec![floats(&[2, 3, 2]), ints_of(&[2, 2], &[0, -1, 2, 1]), floats(&[3])]),
        of(Attrs::new().with("reduction", "none"), vec![floats(&[2, 3]), ints_of(&[2], &[2, 1])]),
        of(Attrs::new().with("reduction", "sum").with("ignore_index", 1), vec![floats(&[2, 3]), ints_of(&[2], &[2, 1])]),
    ]
}
