//! A training graph in two: from a batch to gradients, and from gradients to the next state. What stands between them may sum
//! gradients over batches or over processes.
//!
//! ```text
//!   whole      x, labels, w, m, lr  =>  loss, grad_norm, w.next, m.next
//!   gradients  x, labels, w         =>  loss, w.grad
//!   update     w.grad, w, m, lr     =>  grad_norm, w.next, m.next
//! ```
//!
//! Both are cut out of the whole graph, so that one run after the other computes what that computes, by the same operators.

use super::training::Training;
use super::{PassError, PassManager};
use crate::contract::{Half, HalfRecord, Names, OptimizerRecord, Record, StateKind, StateRecord, States, StepForm};
use crate::ir::{Attrs, Graph, Op, Output};
use crate::transform::eliminate::{eliminate_dead, eliminate_inputs};
use crate::transform::in_place::mark_in_place;
use crate::transform::optimizer::Trained;
use crate::verify::Stage;
use std::collections::HashSet;

/// The two graphs of a split step.
pub struct Halves {
    /// Inputs, targets, parameters and running statistics to loss, the model's outputs, gradients and the next statistics.
    pub gradients: Graph,
    /// Gradients, parameters, moments, the counter and the rate to the gradients' norm and the next state.
    pub update: Graph,
}

impl Halves {
    /// Both graphs.
    pub fn graphs(&mut self) -> [&mut Graph; 2] {
        [&mut self.gradients, &mut self.update]
    }
}

/// Gives each gradient a value of its own, so that the graph can be cut there: tensors may share one, and it may be a value of the
/// source.
pub(super) fn part_gradients(g: &mut Graph, trained: &mut [Trained]) {
    let mut seen = HashSet::new();
    for t in trained {
        let ours = g.op(t.gradient.node).is_some_and(|op| op.source.is_none()) && !g.is_output(t.gradient);
        if !(seen.insert(t.gradient) && ours) {
            let ty = g.value(t.gradient).ty.clone();
            let node = g.add_op("grad/own", Op::new("Identity", Attrs::new()), &[Some(t.gradient)]);
            t.gradient = g.push_result(node, "grad/own", ty);
        }
    }
}

impl PassManager<'_> {
    /// Cuts a training graph in two, if its options ask for that.
    ///
    /// # Errors
    /// When a half is no legal graph; a fault of this tool.
    pub fn halves(&self, t: &Training) -> Result<Option<Halves>, PassError> {
        if t.cx.training.step == StepForm::Whole {
            return Ok(None);
        }
        let (whole, states) = (&t.graph, &t.cx.states);
        let unread = |e: crate::contract::Unreadable| PassError::unfit(e.to_string());
        let norm = Names::read(whole).map_err(unread)?.map(|names| names.grad_norm);
        let rate = OptimizerRecord::read(whole).map_err(unread)?.and_then(|o| o.lr);
        let of_update = |name: &str| {
            let next = states.iter().any(|s| s.output.as_deref() == Some(name) && s.kind != StateKind::Statistic);
            next || Some(name) == norm.as_deref()
        };
        let mut gradients = whole.clone();
        keep_outputs(&mut gradients, |name| !of_update(name));
        // The model's own inputs stay, read or not.
        eliminate_inputs(&mut gradients, |name| Some(name) == rate.as_deref());
        let mut update = whole.clone();
        for r in &t.cx.gradients {
            let v = super::context::value(&update, &r.name)?;
            let ty = update.value(v).ty.clone();
            update.rename(v, &format!("{}.computed", r.name));
            let input = update.add_input(&r.name, ty, None);
            update.replace_uses(v, input, |_| true);
        }
        keep_outputs(&mut update, |name| of_update(name));
        eliminate_inputs(&mut update, |_| true);
        let record = |half| HalfRecord { half, gradients: t.cx.gradients.clone() };
        for (g, half) in [(&mut gradients, Half::Gradients), (&mut update, Half::Update)] {
            let mut own = states_of(g, states);
            mark_in_place(g, &mut own);
            States(own).write(g);
            record(half).write(g);
            self.check(g, "split", Stage::Legal)?;
        }
        Ok(Some(Halves { gradients, update }))
    }
}

/// Keeps those outputs whose names are wanted, and what they need.
fn keep_outputs(g: &mut Graph, wanted: impl Fn(&str) -> bool) {
    let kept: Vec<Output> = g.outputs().iter().filter(|o| wanted(g.name(o.value))).cloned().collect();
    g.clear_outputs();
    kept.into_iter().for_each(|o| g.add_output(o.value, o.info));
    eliminate_dead(g, |_, _| false);
}

/// The states that a graph reads, each with its next value where the graph gives that.
fn states_of(g: &Graph, all: &[StateRecord]) -> Vec<StateRecord> {
    let outputs: HashSet<&str> = g.outputs().iter().map(|o| g.name(o.value)).collect();
    let own = |s: &StateRecord| {
        let v = g.find(&s.input)?;
        g.inputs().contains(&v.node).then_some(())?;
        let output = s.output.clone().filter(|name| outputs.contains(name.as_str()));
        Some(StateRecord { output, in_place: false, ..s.clone() })
    };
    all.iter().filter_map(own).collect()
}
