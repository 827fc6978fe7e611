//! Losses of classes as operators: `NegativeLogLikelihoodLoss`, `SoftmaxCrossEntropyLoss`, of scores [N, C, d1, …] and labels
//! [N, d1, …].
//!
//! ```text
//! each = −w[label] log p[label]          0 where the label is the ignored one
//! mean = Σ each / Σ w[label]             over the labels that count
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

fn loss(b: &mut Builder, s: &Source, log_p: ValueId) -> Result<ValueId, Why> {
    let dtype = type_of(b, log_p)?.dtype;
    let mut labels = b.cast(s.need(1)?, DType::I64)?;
    let mut counts = None;
    if let Some(index) = s.op.attrs.int("ignore_index") {
        let index = b.int(index);
        let ignored = b.op("Equal", &[labels, index])?;
        let zero = b.int(0);
        labels = b.select(ignored, zero, labels)?;
        let kept = b.op("Not", &[ignored])?;
        counts = Some(b.cast(kept, dtype)?);
    }
    if let Some(weights) = s.get(2) {
        let own = b.op_with("Gather", Attrs::new().with("axis", 0), &[weights, labels])?;
        counts = Some(counts.map_or(Ok(own), |kept| b.mul(own, kept))?);
    }
    let column = b.unsqueeze(labels, &[1])?;
    let picked = b.op_with("GatherElements", Attrs::new().with("axis", 1), &[log_p, column])?;
    let picked = b.squeeze(picked, &[1])?;
    let mut each = b.neg(picked)?;
    if let Some(counts) = counts {
        each = b.mul(each, counts)?;
    }
    Ok(match (s.op.str("reduction"), counts) {
        ("none", _) => each,
        ("sum", _) => b.reduce_all("ReduceSum", each)?,
        ("mean", None) => b.reduce_all("ReduceMean", each)?,
        ("mean", Some(counts)) => {
            let (total, n) = (b.reduce_all("ReduceSum", each)?, b.reduce_all("ReduceSum", counts)?);
            b.div(total, n)?
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
