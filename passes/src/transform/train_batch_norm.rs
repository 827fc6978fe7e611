//! Batch normalisation in training mode, as in PyTorch: batch statistics normalise; running statistics follow them with the node's
//! momentum, the variance unbiased.
//!
//! Stock ONNX Runtime has no kernel for `training_mode = 1`, so the node becomes `ancre.BatchNormTrain`, with its own
//! pullback, and is lowered to plain operators after differentiation.

use super::master;
use super::optimizer::StateTensor;
use super::update::blend;
use crate::contract::StateKind;
use crate::ir::{ANCRE, Attrs, Graph, NodeId, Op, ValueId, ValueType};
use crate::ops;
use crate::ops::build::{BuildError, Builder};
use indexmap::IndexMap;

/// The momentum that exporters write: PyTorch's default of 0.1, which counts the other part.
pub const USUAL_MOMENTUM: f32 = 0.9;

/// Puts every batch normalisation with stored statistics into training mode; returns the statistics as state, and how many nodes
/// had the momentum 1, with which statistics never move (PyTorch's exporter of 2019 wrote it whatever the model's was).
/// `momentum`: another than the nodes'.
///
/// # Errors
/// When a node cannot be built because types are unknown.
pub fn train_batch_norm(g: &mut Graph, momentum: Option<f32>) -> Result<(Vec<StateTensor>, usize), BuildError> {
    let mut next: IndexMap<ValueId, ValueId> = IndexMap::new();
    let mut still = 0;
    for id in g.topological_order() {
        if !g.is_op(id, "BatchNormalization") {
            continue;
        }
        let operands = g.operands(id);
        let [Some(x), Some(scale), Some(bias), Some(mean), Some(var)] = operands[..] else { continue };
        let (mean, var) = (master::through(g, mean), master::through(g, var));
        let only_first = !g.results(id).skip(1).any(|v| g.is_needed(v));
        if only_first && [mean, var].iter().all(|v| g.initializer(*v).is_some()) {
            still += usize::from(g.op(id).is_some_and(|op| op.float("momentum") == 1.0));
            convert(g, id, [x, scale, bias, mean, var], momentum, &mut next)?;
        }
    }
    next.keys().for_each(|v| g.set_overridable(*v, true));
    let state = |(value, next)| StateTensor { value, next: Some(next), kind: StateKind::Statistic };
    Ok((next.into_iter().map(state).collect(), still))
}

fn convert(
    g: &mut Graph,
    id: NodeId,
    [x, scale, bias, mean, var]: [ValueId; 5],
    momentum: Option<f32>,
    next: &mut IndexMap<ValueId, ValueId>,
) -> Result<(), BuildError> {
    let Some((epsilon, own)) = g.op(id).map(|op| (op.float("epsilon"), op.float("momentum"))) else { return Ok(()) };
    let momentum = momentum.unwrap_or(if own == 1.0 { USUAL_MOMENTUM } else { own });
    let (stem, [x, batch_mean, batch_var]) = with_batch_statistics(g, id, [x, scale, bias, mean], epsilon)?;

    let mut b = Builder::new(g, &format!("{stem}/running"));
    let rank = b.ty(x)?.rank();
    let axes: Vec<usize> = (0..rank).filter(|a| *a != 1).collect();
    let dtype = b.ty(mean)?.dtype;
    let n = b.extent(x, &axes, dtype)?;
    // A single element has no deviation. Its variance stays 0 and does not become 0 / 0.
    let less = b.shift(n, -1.0)?;
    let one = b.scalar(dtype, 1.0);
    let less = b.op("Max", &[less, one])?;
    let unbias = b.div(n, less)?;
    let (batch_mean, batch_var) = (b.cast(batch_mean, dtype)?, b.cast(batch_var, dtype)?);
    let unbiased = b.mul(batch_var, unbias)?;
    for (stored, batch) in [(mean, batch_mean), (var, unbiased)] {
        // A statistic that two nodes share follows both batches, one after the other.
        let before = next.get(&stored).copied().unwrap_or(stored);
        next.insert(stored, blend(&mut b, before, batch, momentum as f64)?);
    }
    Ok(())
}

/// Puts `ancre.BatchNormTrain` in the place of a batch normalisation; returns the start of its names, its operand and the batch's
/// mean and variance.
fn with_batch_statistics(
    g: &mut Graph,
    id: NodeId,
    [x, scale, bias, mean]: [ValueId; 4],
    epsilon: f32,
) -> Result<(String, [ValueId; 3]), BuildError> {
    let name = g.node(id).name.clone();
    let stem = if name.is_empty() { g.name(g.result(id, 0)).to_string() } else { name };
    let old = g.result(id, 0);
    let ty = g.value(old).ty.clone();
    let op = Op::in_domain(ANCRE, "BatchNormTrain", Attrs::new().with("epsilon", epsilon));
    if let Some(Err(error)) = ops::result_types(&op, &[Some(x), Some(scale), Some(bias)], g) {
        return Err(BuildError { op: "BatchNormalization".into(), prefix: stem, error });
    }
    let statistic = ValueType { dtype: g.value(scale).ty.dtype, ..g.value(mean).ty.clone() };
    let node = g.add_op(&stem, op, &[Some(x), Some(scale), Some(bias)]);
    let y =
        g.push_result(node, &format!("{stem}.train"), if ty == ValueType::default() { g.value(x).ty.clone() } else { ty });
    let batch_mean = g.push_result(node, &format!("{stem}.mean"), statistic.clone());
    let batch_var = g.push_result(node, &format!("{stem}.var"), statistic.clone());
    g.push_result(node, &format!("{stem}.inv_std"), statistic);
    let deviations = g.value(x).ty.clone();
    g.push_result(node, &format!("{stem}.deviations"), deviations);
    g.place_after(node, id);
    g.supplant(old, y);
    g.remove(id);
    Ok((stem, [x, batch_mean, batch_var]))
}

/// Gives every batch normalisation that the source itself runs in training mode, on statistics that it computes, its batch's own ones.
/// Exporters write so what standardises a weight (`F.batch_norm` of a convolution's kernel); the statistics they pass along decide nothing.
///
/// # Errors
/// When a node cannot be built because types are unknown.
pub(super) fn normalize_by_batch(g: &mut Graph) -> Result<(), BuildError> {
    for id in g.topological_order() {
        let Some(epsilon) = g.op(id).filter(|op| op.is("BatchNormalization") && op.int("training_mode") != 0) else {
            continue;
        };
        let epsilon = epsilon.float("epsilon");
        let [Some(x), Some(scale), Some(bias), Some(mean), Some(var)] = g.operands(id)[..] else { continue };
        if computes_statistics(g, id) && !g.results(id).skip(1).any(|v| g.is_needed(v)) {
            with_batch_statistics(g, id, [x, scale, bias, mean], epsilon)?;
            remove_unread(g, vec![mean, var]);
        }
    }
    Ok(())
}

/// Are the statistics that a batch normalisation is given computed in the graph, rather than stored?
pub(super) fn computes_statistics(g: &Graph, id: NodeId) -> bool {
    let computed = |v: ValueId| g.op(master::through(g, v).node).is_some_and(|op| !op.is("Constant"));
    [3, 4].into_iter().all(|i| g.operand(id, i).is_some_and(computed))
}

/// Removes operators that nobody reads, and what only they read: a second copy of the weight would be trained to no effect.
fn remove_unread(g: &mut Graph, mut open: Vec<ValueId>) {
    while let Some(v) = open.pop() {
        if g.contains(v) && g.op(v.node).is_some() && g.results(v.node).all(|r| !g.is_needed(r)) {
            open.extend(g.operands(v.node).iter().flatten());
            g.remove(v.node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse;

    /// The part of the running mean that a step keeps, and how many nodes are said to have stood still.
    fn kept(own: f32, asked: Option<f32>) -> (f64, usize) {
        let text = format!(
            "net (float[2, 3, 4] x) => (y) <float[3] s = {{1, 1, 1}}, float[3] b = {{0, 0, 0}}, float[3] m = {{0, 0, 0}},
             float[3] v = {{1, 1, 1}}> {{ y = BatchNormalization <momentum = {own:?}> (x, s, b, m, v) }}"
        );
        let mut g = parse(&text).unwrap();
        let (states, still) = train_batch_norm(&mut g, asked).unwrap();
        let sum = states[0].next.unwrap().node;
        let product = g.operand(sum, 0).unwrap().node;
        (g.constant(g.operand(product, 1).unwrap()).unwrap().scalar().unwrap(), still)
    }

    #[test]
    fn statistics_that_would_never_move_do_unless_asked_otherwise() {
        for (own, asked, want, still) in
            [(0.75, None, 0.75, 0), (1.0, None, 0.9, 1), (0.75, Some(0.5), 0.5, 0), (1.0, Some(0.5), 0.5, 1)]
        {
            let (part, found) = kept(own, asked);
            assert!((part - want).abs() < 1e-6 && found == still, "{own} {asked:?}: {part}, {found}");
        }
    }
}
