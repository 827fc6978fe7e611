//! Rearrangements that last for one block only.
//!
//! Some networks compute one branch over [B, H, W, C] and the next over [B, H·W, C], or put a convolution over [B, C, H, W]
//! between blocks over tokens. By the strict rule every change of form starts a new run. A change that is undone after a single
//! add is a detail of that block:
//!
//! ```text
//!   h1 ── Reshape ──┬────────── + ── Reshape ── h2       the skip runs from h1 to h2, by way of two reshapes
//!                   └─ branch ──┘
//! ```
//!
//! A run of two adds or more in another form has inner states that exist in that form only. Then the strict rule holds for the
//! whole sequence.

use super::chains::Run;
use super::flow::Flow;
use super::layout::restores;
use super::{Join, JoinKind};
use crate::ir::{NodeId, ValueId};
use crate::ops::Class;
use std::collections::HashMap;

/// Nodes looked at on the way to a value's other form.
const LONGEST: usize = 12;

/// Joins runs that follow each other into one, where all of them can be written in one form. The result is in the order of the first
/// joins.
pub(super) fn bridge(f: &Flow, runs: Vec<Run>) -> Vec<Run> {
    let ends: HashMap<NodeId, usize> =
        runs.iter().enumerate().filter_map(|(i, r)| r.joins.last().map(|j| (j.node, i))).collect();
    let mut follower: Vec<Option<usize>> = vec![None; runs.len()];
    let mut follows = vec![false; runs.len()];
    for (i, r) in runs.iter().enumerate() {
        let before = r.links[0].as_ref().and_then(|l| ends.get(&l.from));
        // Of several runs that follow, the first one continues; the others are long skips.
        let beside = |b: &&usize| runs[**b].joins[0].inside == r.joins[0].inside;
        if let Some(before) = before.filter(|b| follower[**b].is_none()).filter(beside) {
            follower[*before] = Some(i);
            follows[i] = true;
        }
    }
    let mut left: Vec<Option<Run>> = runs.into_iter().map(Some).collect();
    let mut bridged = Vec::new();
    for (first, _) in follows.iter().enumerate().filter(|(_, follows)| !**follows) {
        let places: Vec<usize> = std::iter::successors(Some(first), |i| follower[*i]).collect();
        let sequence: Vec<Run> = places.into_iter().filter_map(|i| left[i].take()).collect();
        match in_one_form(f, &sequence) {
            Some(run) => bridged.push(run),
            None => bridged.extend(sequence),
        }
    }
    bridged.sort_by_key(|r| f.place_of(r.joins[0].node));
    bridged
}

/// The whole sequence as one run in the form of its first or second part, if every part in another form is a single add.
fn in_one_form(f: &Flow, sequence: &[Run]) -> Option<Run> {
    let [first, second, rest @ ..] = sequence else { return None };
    let led = || -> Option<Run> {
        let [only] = first.joins.as_slice() else { return None };
        let mut run = second.clone();
        run.joins.insert(0, lead_in(f, only, second)?);
        run.links.splice(0..0, first.links.iter().cloned());
        Some(run)
    };
    extended(f, first.clone(), &sequence[1..]).or_else(|| extended(f, led()?, rest))
}

/// The run and all that follows it, every second part being a single add in another form.
fn extended(f: &Flow, mut run: Run, mut rest: &[Run]) -> Option<Run> {
    while let [single, after @ ..] = rest {
        let step = detour(f, &run, single, after.first())?;
        run.joins.push(step.join);
        run.links.extend(single.links.iter().cloned());
        rest = after;
        match (step.end, after) {
            (end @ Some(_), []) => run.end = end,
            (None, [next, after @ ..]) => {
                run.joins.extend(next.joins.iter().cloned());
                run.links.extend(next.links.iter().cloned());
                rest = after;
            }
            _ => return None,
        }
    }
    Some(run)
}

/// A single add in another form that continues a run.
struct Detour {
    /// Its join, with the skip starting from the run's form of the state.
    join: Join,
    /// The last state in the run's form, where no run goes on in it.
    end: Option<ValueId>,
}

fn detour(f: &Flow, run: &Run, single: &Run, next: Option<&Run>) -> Option<Detour> {
    let [join] = single.joins.as_slice() else { return None };
    let link = single.links[0].as_ref()?;
    let (first, sum) = (run.joins.first()?.state, run.joins.last()?.sum);
    let (state, walked) = lift(f, join, first)?;
    // The rearrangements before the lifted state must cancel out.
    let before = link.rearranging.iter().copied().filter(|n| !walked.contains(n)).collect::<Vec<_>>();
    if !restores(f, sum, &before) {
        return None;
    }
    let end = match next {
        None => Some(after(f, join.sum, state, &walked)?),
        Some(next) => {
            let back = &next.links[0].as_ref()?.rearranging;
            if !cancels(f, state, &walked, back, next.joins[0].state) {
                return None;
            }
            None
        }
    };
    Some(Detour { join: lifted(join, state, &walked), end })
}

/// The join before a run with its skip starting from the run's form, if there is such a value and the run starts with the
/// join's sum in that form.
fn lead_in(f: &Flow, join: &Join, run: &Run) -> Option<Join> {
    let (state, walked) = lift(f, join, run.joins.first()?.state)?;
    let back = run.links[0].as_ref().filter(|l| l.from == join.node)?;
    cancels(f, state, &walked, &back.rearranging, run.joins[0].state).then(|| lifted(join, state, &walked))
}

/// Does a value keep its form from `state` through both lists to `end`?
fn cancels(f: &Flow, state: ValueId, there: &[NodeId], back: &[NodeId], end: ValueId) -> bool {
    let all: Vec<NodeId> = there.iter().chain(back).copied().collect();
    agrees(f, state, end) && restores(f, state, &all)
}

fn agrees(f: &Flow, a: ValueId, b: ValueId) -> bool {
    let (a_ty, b_ty) = (&f.g.value(a).ty, &f.g.value(b).ty);
    f.may_agree(a, b) && a_ty.dtype == b_ty.dtype && a_ty.shape.is_some() && b_ty.shape.is_some()
}

/// Walks back from a join's state, over rearrangements only, to a value of the type of `like`. Also returns the nodes passed, in
/// order of execution.
fn lift(f: &Flow, join: &Join, like: ValueId) -> Option<(ValueId, Vec<NodeId>)> {
    if join.kind != JoinKind::Identity {
        return None;
    }
    let mut walked = Vec::new();
    let mut at = join.state;
    while walked.len() < LONGEST && matches!(f.class_of(at.node), Class::Layout | Class::Carry) && at.slot == 0 {
        walked.insert(0, at.node);
        at = f.g.operand(at.node, 0)?;
        if agrees(f, at, like) {
            return Some((at, walked));
        }
    }
    None
}

fn lifted(join: &Join, state: ValueId, walked: &[NodeId]) -> Join {
    let entry = walked.first().map_or(join.entry, |n| (*n, 0));
    Join { state, entry, direct: false, ..join.clone() }
}

/// The value by which a sum takes the form of `state` again, through rearrangements only.
fn after(f: &Flow, sum: ValueId, state: ValueId, there: &[NodeId]) -> Option<ValueId> {
    let mut at = sum;
    let mut back = Vec::new();
    while back.len() < LONGEST {
        let mut readers = f.readers_of(at).filter(|r| matches!(f.class_of(r.consumer), Class::Layout | Class::Carry));
        let (next, other) = (readers.next()?, readers.next());
        if other.is_some() || next.operand != 0 {
            return None;
        }
        back.push(next.consumer);
        at = f.g.result(next.consumer, 0);
        if cancels(f, state, there, &back, at) {
            return Some(at);
        }
    }
    None
}
