//! `Loop` and `Scan` of a known number of steps as that many copies of their bodies.

use super::{Inliner, MOST_NODES, body, undecided};
use crate::ir::{NodeId, Tensor, ValueId};
use crate::ops::build::{BuildError, Builder, Built};
use crate::refusal::Why;
use onnx_protobuf::GraphProto;

/// Where a value's slices of all steps lie.
#[derive(Clone, Copy)]
struct Slices {
    axis: i64,
    backwards: bool,
}

impl Slices {
    fn in_order<T>(self, mut all: Vec<T>) -> Vec<T> {
        if self.backwards {
            all.reverse();
        }
        all
    }
}

impl Inliner<'_, '_> {
    /// `Loop (M, condition, states…) → (states…, slices…)`, whose body is `(step, condition, states…) → (condition, states…, slices…)`.
    pub(super) fn repeat(&mut self, id: NodeId) -> Result<Vec<ValueId>, Why> {
        let unknown = |s: &Self| undecided(s.walk.g, id);
        let operand = |s: &Self, i| s.walk.g.operand(id, i);
        let most = operand(self, 0).map(|v| self.number(v).ok_or_else(|| unknown(self))).transpose()?;
        let mut goes_on = operand(self, 1).is_none_or(|v| self.flag(v) != Some(false));
        if most.is_none() && operand(self, 1).is_none() {
            return Err(Why::Form("repeats without an end".into()));
        }
        let body = body(self.walk.g, id, "body")?;
        let mut states: Vec<ValueId> = self.walk.g.operands(id).iter().skip(2).flatten().copied().collect();
        let mut slices: Vec<Vec<ValueId>> = vec![Vec::new(); body.output.len().saturating_sub(1 + states.len())];
        if let Some(v) = operand(self, 1)
            && self.flag(v).is_none()
        {
            return Err(unknown(self));
        }
        let mut step = 0;
        while goes_on && most.is_none_or(|most| step < most) {
            bounded(&body, step + 1)?;
            let stem = self.walk.g.site(id).name;
            let number = self.walk.g.add_initializer(&format!("{stem}/step"), Tensor::i64s(&[], &[step]), false);
            let truth = self.walk.g.add_initializer(&format!("{stem}/condition"), Tensor::bools(&[], &[true]), false);
            let results = self.body(&body, &[&[number, truth], states.as_slice()].concat(), id)?;
            goes_on = self.flag(results[0]).ok_or_else(|| unknown(self))?;
            let (next, parts) = results[1..].split_at(states.len());
            states = next.to_vec();
            slices.iter_mut().zip(parts).for_each(|(all, part)| all.push(*part));
            step += 1;
        }
        let first = Slices { axis: 0, backwards: false };
        let slices = slices.into_iter().map(|all| (all, first)).collect();
        self.joined(id, states, slices)
    }

    /// `Scan (states…, sliced…) → (states…, slices…)`, whose body reads and gives one slice of each.
    pub(super) fn scan(&mut self, id: NodeId) -> Result<Vec<ValueId>, Why> {
        let g = &*self.walk.g;
        if g.opsets.get("").is_some_and(|v| *v < 9) {
            return Err(Why::Form("has the form of opset 8".into()));
        }
        let body = body(g, id, "body")?;
        let operands: Vec<ValueId> = g.operands(id).iter().flatten().copied().collect();
        let attrs = &g.op(id).map(|op| op.attrs.clone()).unwrap_or_default();
        let read = attrs.int("num_scan_inputs").unwrap_or(0).clamp(0, operands.len() as i64) as usize;
        let (states, scanned) = operands.split_at(operands.len() - read);
        let place = |of: &str, i: usize| {
            let listed = |what: &str| attrs.ints(&format!("scan_{of}_{what}")).and_then(|l| l.get(i)).copied().unwrap_or(0);
            Slices { axis: listed("axes"), backwards: listed("directions") != 0 }
        };
        let mut steps = None;
        let mut sliced = Vec::new();
        for (i, v) in scanned.iter().enumerate() {
            let of = place("input", i);
            let ty = g.tensor_type(*v);
            let axis = ty.as_ref().and_then(|ty| ty.axis(of.axis)).ok_or_else(|| undecided(g, id))?;
            let extent = ty.and_then(|ty| ty.shape[axis].known()).ok_or_else(|| undecided(g, id))?;
            steps = Some(extent);
            sliced.push((*v, Slices { axis: axis as i64, ..of }));
        }
        let steps = steps.ok_or_else(|| undecided(g, id))?;
        bounded(&body, steps)?;
        let mut parts = Vec::new();
        for (v, of) in sliced {
            let all = self.build(id, |b| parted(b, v, of.axis, steps))?;
            parts.push(of.in_order(all));
        }
        let mut states = states.to_vec();
        let mut slices: Vec<Vec<ValueId>> = vec![Vec::new(); body.output.len().saturating_sub(states.len())];
        for step in 0..steps as usize {
            let now = parts.iter().filter_map(|all| all.get(step)).copied();
            let actual: Vec<ValueId> = states.iter().copied().chain(now).collect();
            let results = self.body(&body, &actual, id)?;
            let (next, given) = results.split_at(states.len().min(results.len()));
            states = next.to_vec();
            slices.iter_mut().zip(given).for_each(|(all, part)| all.push(*part));
        }
        let slices = slices.into_iter().enumerate().map(|(i, all)| (all, place("output", i))).collect();
        self.joined(id, states, slices)
    }

    /// The states at the end, and each value's slices as one.
    fn joined(
        &mut self,
        id: NodeId,
        states: Vec<ValueId>,
        slices: Vec<(Vec<ValueId>, Slices)>,
    ) -> Result<Vec<ValueId>, Why> {
        let mut results = states;
        for (all, of) in slices {
            if all.is_empty() {
                return Err(Why::Form("runs no step".into()));
            }
            results.push(self.build(id, |b| {
                let rank = b.ty(all[0])?.rank() as i64 + 1;
                let axis = if of.axis < 0 { of.axis + rank } else { of.axis };
                let rows = of.in_order(all).into_iter().map(|v| b.unsqueeze(v, &[axis])).collect::<Result<Vec<_>, _>>()?;
                b.concat(&rows, axis)
            })?);
        }
        Ok(results)
    }

    fn build<T>(&mut self, id: NodeId, what: impl FnOnce(&mut Builder) -> Result<T, BuildError>) -> Result<T, Why> {
        let stem = self.walk.g.site(id).name;
        what(&mut Builder::new(self.walk.g, &stem)).map_err(|e| Why::Unbuildable(e.to_string()))
    }
}

fn bounded(body: &GraphProto, steps: i64) -> Result<(), Why> {
    let nodes = (steps.max(0) as usize).saturating_mul(body.node.len());
    if nodes > MOST_NODES {
        let what =
            format!("has {steps} or more steps of {} nodes; up to {MOST_NODES} nodes are written out", body.node.len());
        return Err(Why::Form(what));
    }
    Ok(())
}

/// The slices of a value along an axis, which they no longer have.
fn parted(b: &mut Builder, v: ValueId, axis: i64, steps: i64) -> Result<Vec<ValueId>, BuildError> {
    let parts = if steps == 1 { vec![v] } else { b.split(v, axis, &vec![1; steps as usize])? };
    parts.into_iter().map(|part| -> Built { b.squeeze(part, &[axis]) }).collect()
}
