//! Outputs and metadata of training, evaluation and gradient graphs.

use super::{Cx, PassError};
use crate::contract::{LossRecord, Names, OptimizerRecord, Record, StateFrom, StateRecord, States};
use crate::ir::{Attrs, Graph, Op, ValueId};
use crate::transform::optimizer::{OptimizerKind, declare_moments};

/// Declares the outputs in the order of the training graph's contract, and gives every state its names.
pub(super) fn declare_outputs(g: &mut Graph, cx: &mut Cx) -> Result<(), PassError> {
    let loss = cx.loss(g)?;
    let of_model: Vec<_> = g.outputs().iter().map(|o| (o.value, o.info.clone())).filter(|(v, _)| *v != loss).collect();
    g.clear_outputs();
    g.add_output(loss, None);
    of_model.into_iter().for_each(|(v, info)| g.add_output(v, info));
    let Some(update) = &cx.update else { return Ok(()) };
    let norm = publish_as(g, update.grad_norm, "grad_norm");
    Names { loss: g.name(loss).to_string(), grad_norm: norm, state_from: StateFrom::Inline }.write(g);
    let states: Vec<_> = update.states.iter().chain(&cx.statistics).cloned().collect();
    for s in &states {
        let shape = g.tensor_type(s.value).and_then(|ty| ty.known_dims()).unwrap_or_default();
        let record = StateRecord::new(g.name(s.value), s.kind, shape);
        let output = s.next.map(|next| publish_as(g, next, &format!("{}.next", record.name)));
        cx.states.push(StateRecord { output, ..record });
    }
    if cx.training.grad_outputs || cx.training.optimizer.kind == OptimizerKind::None {
        declare_gradients(g, cx);
    }
    declare_moments(g, &states);
    Ok(())
}

/// Declares the gradient of everything that trains.
pub(super) fn declare_gradients(g: &mut Graph, cx: &Cx) {
    for t in &cx.trained {
        let name = format!("{}.grad", g.name(t.value));
        publish_as(g, t.gradient, &name);
    }
}

/// Declares a value a graph output under a name. Where the value has a name of the source, an `Identity` of it gets the new one.
fn publish_as(g: &mut Graph, v: ValueId, name: &str) -> String {
    let name = if g.is_free(name) { name.to_string() } else { format!("ancre.{name}") };
    let ours = g.op(v.node).is_some_and(|op| op.source.is_none()) && !g.is_output(v);
    let published = if ours {
        v
    } else {
        let ty = g.value(v).ty.clone();
        let node = g.add_op(&name, Op::new("Identity", Attrs::new()), &[Some(v)]);
        g.push_result(node, &format!("{name}.copy"), ty)
    };
    let got = g.rename(published, &name);
    g.add_output(published, None);
    got
}

/// Writes the metadata of a graph with state: its loss and optimiser too, if it has them.
pub(super) fn describe(g: &mut Graph, cx: &Cx) {
    let o = &cx.training;
    States(cx.states.clone()).write(g);
    if cx.loss.is_none() {
        return;
    }
    let loss = LossRecord {
        kind: o.loss.kind.name().into(),
        reduction: if o.loss.sum { "sum" } else { "mean" }.into(),
        target: cx.target.clone(),
        output: Some(cx.loss_output.clone()),
        class_axis: cx.class_axis,
        label_smoothing: o.loss.smoothing,
        ignore_index: o.loss.ignore_index,
        huber_delta: Some(o.loss.huber_delta),
    };
    loss.write(g);
    if cx.update.is_none() {
        return;
    }
    let opt = &o.optimizer;
    let adam = opt.kind.is_adam();
    let sgd = opt.kind == OptimizerKind::Sgd;
    let updates = opt.kind != OptimizerKind::None;
    // The input is called `lr` unless the model has a value of that name.
    let lr = if g.find("ancre.lr").is_some() { "ancre.lr" } else { "lr" };
    let record = OptimizerRecord {
        kind: opt.kind.name().into(),
        betas: adam.then_some([opt.beta1, opt.beta2]),
        eps: adam.then_some(opt.eps),
        momentum: sgd.then_some(opt.momentum),
        nesterov: sgd.then_some(opt.nesterov),
        lr: updates.then(|| lr.into()),
        weight_decay: updates.then(|| opt.decay()),
        clip_norm: updates.then_some(opt.clip_norm),
        accumulate: updates.then_some(opt.accumulate),
        router_lr_scale: updates.then_some(opt.router_lr_scale),
    };
    record.write(g);
}
