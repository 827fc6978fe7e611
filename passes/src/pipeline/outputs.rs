//! Outputs and metadata of training, evaluation and gradient graphs.

use super::{Cx, PassError};
use crate::ir::{Attrs, Graph, Kind, Op, ValueId};
use crate::transform::optimizer::{OptimizerKind, StateRecord, declare_moments};
use serde_json::json;

/// Declares the outputs in the order of the training graph's contract, and gives every state its names.
pub(super) fn declare_outputs(g: &mut Graph, cx: &mut Cx) -> Result<(), PassError> {
    let loss = cx.loss(g)?;
    let of_model: Vec<_> = g.outputs().iter().map(|o| (o.value, o.info.clone())).filter(|(v, _)| *v != loss).collect();
    g.clear_outputs();
    g.add_output(loss, None);
    // A float output's declared shape may have the batch's old extent; what we know is better.
    of_model.into_iter().for_each(|(v, info)| g.add_output(v, info));
    let Some(update) = &cx.update else { return Ok(()) };
    let norm = publish_as(g, update.grad_norm, "grad_norm");
    g.metadata.insert("ancre.names".into(), json!({"loss": g.name(loss), "grad_norm": norm}).to_string());
    let states: Vec<_> = update.states.iter().chain(&cx.statistics).cloned().collect();
    for s in &states {
        let name = g.name(s.value).to_string();
        cx.states.push(StateRecord {
            output: s.next.map(|next| publish_as(g, next, &format!("{name}.next"))),
            input: name.clone(),
            name,
            kind: s.kind,
            trainable: s.trainable,
            shape: s.shape.clone(),
            in_place: false,
        });
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

/// Declares a value a graph output under a name; goes through `Identity` where the value already has a name that counts.
fn publish_as(g: &mut Graph, v: ValueId, name: &str) -> String {
    let name = if g.is_free(name) { name.to_string() } else { format!("ancre.{name}") };
    let ours = match &g.node(v.node).kind {
        Kind::Op(op) => op.source.is_none() && !g.is_output(v),
        _ => false,
    };
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

/// Writes the metadata of a graph with a loss.
pub(super) fn describe(g: &mut Graph, cx: &Cx) {
    let o = &cx.training;
    g.metadata.insert("ancre.state".into(), serde_json::to_string(&cx.states).unwrap_or_default());
    let loss = json!({"kind": o.loss.kind.name(), "reduction": if o.loss.sum { "sum" } else { "mean" }, "target": cx.target,
                      "output": cx.loss_output, "label_smoothing": o.loss.smoothing, "ignore_index": o.loss.ignore_index,
                      "huber_delta": o.loss.huber_delta});
    g.metadata.insert("ancre.loss".into(), loss.to_string());
    if cx.update.is_none() {
        return;
    }
    let opt = &o.optimizer;
    let adam = matches!(opt.kind, OptimizerKind::Adam | OptimizerKind::AdamW);
    let mut record = json!({"kind": opt.kind.name()});
    if let Some(r) = record.as_object_mut() {
        if adam {
            r.insert("betas".into(), json!([opt.beta1, opt.beta2]));
            r.insert("eps".into(), json!(opt.eps));
        }
        if opt.kind == OptimizerKind::Sgd {
            r.insert("momentum".into(), json!(opt.momentum));
            r.insert("nesterov".into(), json!(opt.nesterov));
        }
        if opt.kind != OptimizerKind::None {
            // Unless the model has a value of that name.
            r.insert("lr".into(), json!(if g.find("ancre.lr").is_some() { "ancre.lr" } else { "lr" }));
            r.insert("weight_decay".into(), json!(opt.decay()));
            r.insert("clip_norm".into(), json!(opt.clip_norm));
            r.insert("accumulate".into(), json!(opt.accumulate));
            r.insert("router_lr_scale".into(), json!(opt.router_lr_scale));
        }
    }
    g.metadata.insert("ancre.optimizer".into(), record.to_string());
}
