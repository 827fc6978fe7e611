//! Outputs and metadata of training, evaluation and gradient graphs.

use super::{Cx, PassError};
use crate::contract::{
    ClassWeights as Weights, GradientRecord, GroupRecord, LossRecord, Names, OptimizerRecord, Record, StateFrom, StateKind,
    StateRecord, States, StepForm,
};
use crate::ir::{Attrs, Graph, Op, ValueId};
use crate::transform::loss::{ClassWeights, Loss, LossKind, LossOptions};
use crate::transform::optimizer::{OptimizerKind, ParameterGroup, declare_moments};

/// Declares the outputs in the order of the training graph's contract, and gives every state its names.
pub(super) fn declare_outputs(g: &mut Graph, cx: &mut Cx) -> Result<(), PassError> {
    let loss = cx.loss(g)?;
    let of_model: Vec<_> = g.outputs().iter().map(|o| (o.value, o.info.clone())).filter(|(v, _)| *v != loss).collect();
    g.clear_outputs();
    g.add_output(loss, None);
    of_model.into_iter().for_each(|(v, info)| g.add_output(v, info));
    // Each loss of several beside their sum; one of the model's own is an output already.
    for v in cx.losses.iter().map(|(_, v)| *v).filter(|v| *v != loss) {
        if !g.is_output(v) {
            g.add_output(v, None);
        }
    }
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
    let split = cx.training.step == StepForm::Split;
    if split || cx.training.grad_outputs || cx.training.optimizer.kind == OptimizerKind::None {
        declare_gradients(g, cx);
    }
    declare_moments(g, &states);
    Ok(())
}

/// Declares the gradient of everything that trains.
pub(super) fn declare_gradients(g: &mut Graph, cx: &mut Cx) {
    for t in &cx.trained {
        let tensor = g.name(t.value).to_string();
        let name = publish_as(g, t.gradient, &format!("{tensor}.grad"));
        cx.gradients.push(GradientRecord { tensor, name });
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

/// What is recorded of a loss.
pub(super) fn record(g: &Graph, loss: &Loss, o: &LossOptions, several: bool) -> LossRecord {
    let kind = loss.kind;
    let name = |v: ValueId| g.name(v).to_string();
    let heat = kind.has_teacher().then_some(o.temperature).filter(|_| kind != LossKind::DistillMse);
    LossRecord {
        kind: kind.name().into(),
        reduction: if o.sum { "sum" } else { "mean" }.into(),
        target: loss.target.map(name),
        output: Some(name(loss.output)),
        class_axis: loss.class_axis,
        label_smoothing: o.smoothing,
        ignore_index: o.ignore_index,
        huber_delta: Some(o.huber_delta),
        class_weights: match (&o.class_weights, loss.class_weights) {
            (ClassWeights::Given(weights), _) if kind.weights_classes() => Some(Weights::Given(weights.clone())),
            (_, Some(v)) => Some(Weights::Fed(name(v))),
            _ => None,
        },
        focal_gamma: matches!(kind, LossKind::Focal | LossKind::BinaryFocal).then_some(o.gamma),
        dice_smooth: matches!(kind, LossKind::Dice | LossKind::BinaryDice).then_some(o.dice_smooth),
        mask: loss.mask.map(name),
        blank: (kind == LossKind::Ctc).then_some(o.blank),
        lengths: loss.lengths.map(|of| of.map(name)),
        temperature: heat,
        value: several.then(|| name(loss.value)),
        weight: (several || o.weight != 1.0).then_some(o.weight),
        terms: Vec::new(),
    }
}

impl Cx {
    /// What is recorded of the groups of parameters.
    pub fn groups(&self) -> Vec<GroupRecord> {
        let o = &self.training.optimizer;
        let tensors = |i: usize| self.trainable.iter().filter(|n| o.group_of(n) == Some(i)).cloned().collect();
        let record = |(i, g): (usize, &ParameterGroup)| GroupRecord {
            pattern: g.pattern.clone(),
            lr_scale: g.lr_scale,
            weight_decay: g.decay,
            tensors: tensors(i),
        };
        o.groups.iter().enumerate().map(record).collect()
    }

    /// What is recorded of the losses: the first, and all of several with their values and weights.
    pub fn record(&self) -> Option<LossRecord> {
        let mut first = self.losses.first()?.0.clone();
        if self.losses.len() > 1 {
            first.terms = self.losses.iter().map(|(record, _)| record.clone()).collect();
            (first.weight, first.value) = (None, None);
        }
        Some(first)
    }
}

/// Writes the metadata of a graph with state: its loss and optimiser too, if it has them.
pub(super) fn describe(g: &mut Graph, cx: &mut Cx) {
    States(cx.states.clone()).write(g);
    if !cx.quantised.is_empty() {
        cx.quantised.scales = cx.states.iter().filter(|s| s.kind == StateKind::Scale).map(|s| s.name.clone()).collect();
        cx.quantised.write(g);
    }
    if cx.loss.is_none() {
        return;
    }
    if let Some(first) = cx.record() {
        first.write(g);
    }
    let o = &cx.training;
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
        groups: cx.groups(),
    };
    record.write(g);
}
