//! Batch normalisation in training mode, as PyTorch: batch statistics normalise, running statistics follow with the node's
//! momentum and the unbiased variance.
//!
//! Stock ONNX Runtime has no kernel for `training_mode = 1`, so the node becomes `ancre.BatchNormTrain`, with its own
//! pullback, and is lowered to plain operators after differentiation.

use super::master;
use super::optimizer::StateTensor;
use crate::contract::StateKind;
use crate::ir::{ANCRE, Attrs, Graph, NodeId, Op, TensorType, ValueId, ValueType};
use crate::ops::build::{BuildError, Builder};
use indexmap::IndexMap;

/// Puts every batch normalisation with stored statistics into training mode; returns the statistics as state.
///
/// # Errors
/// When a node cannot be built because types are unknown.
pub fn train_batch_norm(g: &mut Graph) -> Result<Vec<StateTensor>, BuildError> {
    let mut next: IndexMap<ValueId, ValueId> = IndexMap::new();
    for id in g.topological_order() {
        if !g.is_op(id, "BatchNormalization") {
            continue;
        }
        let operands = g.operands(id);
        let [Some(x), Some(scale), Some(bias), Some(mean), Some(var)] = operands[..] else { continue };
        let (mean, var) = (master::through(g, mean), master::through(g, var));
        let stored = |v: ValueId| g.initializer(v).is_some();
        if !stored(mean) || !stored(var) {
            continue;
        }
        let (epsilon, momentum) = match g.op(id) {
            Some(op) => (op.float("epsilon"), op.float("momentum")),
            None => continue,
        };
        convert(g, id, [x, scale, bias, mean, var], epsilon, momentum, &mut next)?;
    }
    let mut states = Vec::new();
    for (v, new) in next {
        g.set_overridable(v, true);
        // A tensor's extents are numbers.
        let shape = g.initializer(v).map(|t| t.dims().to_vec()).unwrap_or_default();
        states.push(StateTensor { value: v, next: Some(new), kind: StateKind::Statistic, trainable: false, shape });
    }
    Ok(states)
}

fn convert(
    g: &mut Graph,
    id: NodeId,
    [x, scale, bias, mean, var]: [ValueId; 5],
    epsilon: f32,
    momentum: f32,
    next: &mut IndexMap<ValueId, ValueId>,
) -> Result<(), BuildError> {
    let name = g.node(id).name.clone();
    let stem = if name.is_empty() { g.name(g.result(id, 0)).to_string() } else { name };
    let old = g.result(id, 0);
    let ty = g.value(old).ty.clone();
    let statistic = ValueType { dtype: g.value(scale).ty.dtype, ..g.value(mean).ty.clone() };
    let op = Op::in_domain(ANCRE, "BatchNormTrain", Attrs::new().with("epsilon", epsilon));
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

    let mut b = Builder::new(g, &format!("{stem}/running"));
    let kind: TensorType = b.ty(x)?;
    let rank = kind.rank();
    let axes: Vec<usize> = (0..rank).filter(|a| *a != 1).collect();
    let dtype = b.ty(mean)?.dtype;
    let n = b.extent(x, &axes, dtype)?;
    // A single element has no deviation: its variance stays 0 rather than become 0 / 0.
    let less = b.shift(n, -1.0)?;
    let one = b.scalar(dtype, 1.0);
    let less = b.op("Max", &[less, one])?;
    let unbias = b.div(n, less)?;
    let (batch_mean, batch_var) = (b.cast(batch_mean, dtype)?, b.cast(batch_var, dtype)?);
    let unbiased = b.mul(batch_var, unbias)?;
    for (stored, batch) in [(mean, batch_mean), (var, unbiased)] {
        // A statistic that two nodes share follows both batches, one after the other.
        let before = next.get(&stored).copied().unwrap_or(stored);
        let kept = b.scale(before, momentum as f64)?;
        let added = b.scale(batch, 1.0 - momentum as f64)?;
        let new = b.add(kept, added)?;
        next.insert(stored, new);
    }
    Ok(())
}
