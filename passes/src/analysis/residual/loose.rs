//! Joins whose branch feeds more than the add.
//!
//! Some networks reuse a branch's results: channels split off for a dense path, keys and values that later blocks read again.
//! Then the add does not post-dominate its branch. It still is a join when what goes past it meets its result again before
//! any mixing operator. Masks and position biases have this property too (the states between them and a later score meet
//! the score in the next residual add), yet their adds lie inside the branch of a join while they come from outside of it. So
//! candidates are taken smallest branch first, and none that crosses a join already taken.

use super::branch::{Marks, Region};
use super::classes::{Class, Mixing};
use super::flow::Flow;
use super::join::{Finder, Refusal};
use super::skip::Start;
use super::{JoinKind, Why};
use crate::ir::NodeId;
use smallvec::SmallVec;

/// Nodes of a branch looked at.
const LARGEST: usize = 2048;
/// Nodes after an add looked at.
const AHEAD: usize = 1024;

struct Candidate {
    add: usize,
    operand: usize,
    start: Start,
    region: Region,
}

/// Adds such joins to those found.
pub(super) fn recover(finder: &mut Finder) {
    let mut between = Marks::new(finder.f.place.len());
    let mut after = Marks::new(finder.f.place.len());
    let mut candidates = Vec::new();
    for i in 0..finder.adds.len() {
        if !matches!(finder.adds[i].why, Some(Refusal::Branch(_, Why::Leaks(..)))) || finder.is_taken(finder.adds[i].node) {
            continue;
        }
        match candidate(finder, i, &mut between, &mut after) {
            Ok(c) => candidates.push(c),
            Err(refusal) => finder.adds[i].why = Some(refusal),
        }
    }
    candidates.sort_by_key(|c| c.region.nodes.len());
    for c in candidates {
        match crosses(finder, finder.adds[c.add].node, &c.start) {
            Some(join) => {
                finder.adds[c.add].why = Some(Refusal::Branch(c.operand, Why::Crosses(c.start.state, join)));
            }
            None => finder.accept(c.add, c.start, c.operand, JoinKind::Identity, c.region),
        }
    }
}

/// A join in whose branch the add is, while the state is neither in that branch nor its state.
fn crosses(finder: &Finder, add: NodeId, start: &Start) -> Option<NodeId> {
    finder.branches_around(add).find_map(|(id, join)| {
        let inside = start.state.node == join.state.node
            || start.path.contains(&join.state.node)
            || finder.branches_around(start.state.node).any(|(other, _)| other == id);
        (!inside).then_some(join.node)
    })
}

fn candidate(finder: &Finder, i: usize, between: &mut Marks, after: &mut Marks) -> Result<Candidate, Refusal> {
    let add = finder.adds[i].node;
    let all: SmallVec<[usize; 4]> = finder.adds[i].addends.iter().map(|a| a.operand).collect();
    let mut refusal = None;
    let mut leaks = None;
    for operand in finder.adds[i].addends.iter().filter(|a| a.inner.is_none()).map(|a| a.operand) {
        let others: SmallVec<[usize; 4]> = all.iter().copied().filter(|o| *o != operand).collect();
        for start in finder.identity_starts(add, operand) {
            if !start.through.is_empty() {
                continue;
            }
            let f = finder.f;
            if f.active_readers(start.state).count() < 2 || !f.is_live(start.state) {
                continue;
            }
            if let Some(join) = crosses(finder, add, &start) {
                refusal.get_or_insert(Refusal::Branch(operand, Why::Crosses(start.state, join)));
                break;
            }
            match region(f, add, &others, &start, between, after) {
                Ok(region) => return Ok(Candidate { add: i, operand, start, region }),
                Err(why @ Why::Leaks(..)) => leaks = Some(Refusal::Branch(operand, why)),
                Err(_) => {}
            }
        }
    }
    // What looked like a leak may have been other uses of the state only.
    Err(refusal.or(leaks).unwrap_or(Refusal::Branch(all[0], Why::Independent)))
}

/// The nodes between the start and the add, if some mix and all that goes past the add soon meets its result.
fn region(
    f: &Flow,
    add: NodeId,
    branch_operands: &[usize],
    start: &Start,
    between: &mut Marks,
    after: &mut Marks,
) -> Result<Region, Why> {
    // Backwards from the branch to everything after the state ...
    between.clear();
    let first = f.place_of(start.state.node);
    let mut stack: Vec<NodeId> = branch_operands.iter().filter_map(|o| f.g.operand(add, *o)).map(|v| v.node).collect();
    let roots = stack.clone();
    stack.retain(|n| f.place_of(*n) > first && between.insert(*n));
    let mut back = Vec::new();
    while let Some(n) = stack.pop() {
        back.push(n);
        if back.len() > LARGEST {
            return Err(Why::Leaks(start.state, n));
        }
        for (_, v) in &f.reads[n.index()] {
            if f.place_of(v.node) > first && between.insert(v.node) {
                stack.push(v.node);
            }
        }
    }
    // ... of which the region is what depends on the state.
    back.sort_unstable_by_key(|n| f.place_of(*n));
    after.clear();
    let mut nodes = Vec::new();
    for n in back {
        let depends = f.reads[n.index()].iter().any(|(_, v)| *v == start.state || after.contains(v.node));
        if depends && !start.path.contains(&n) {
            after.insert(n);
            nodes.push(n);
        }
    }
    let mixes = |n: &NodeId| matches!(f.class_of(*n), Class::Mixing(m) if m != Mixing::Pool);
    if !roots.iter().any(|n| after.contains(*n)) {
        return Err(Why::Independent);
    }
    let mut leaks = Vec::new();
    for n in &nodes {
        for r in &f.readers[n.index()] {
            let c = r.consumer;
            if start.path.contains(&c) {
                return Err(Why::Gated(start.state, c));
            }
            if c != add && !after.contains(c) && !f.spent[c.index()] {
                leaks.push(c);
            }
        }
    }
    let stray = leaks.first().copied().unwrap_or(add);
    descendants(f, add, after);
    if !nodes.iter().any(mixes) || !meets(f, leaks, after, between) {
        return Err(Why::Leaks(start.state, stray));
    }
    let mixing = nodes.iter().filter(|n| matches!(f.class_of(**n), Class::Mixing(_))).count();
    Ok(Region { nodes, mixing, nonlinear: true })
}

/// Marks what is computed from an add, as far as one looks.
fn descendants(f: &Flow, add: NodeId, marks: &mut Marks) {
    marks.clear();
    let mut queue = vec![add];
    let mut next = 0;
    while next < queue.len() && next < AHEAD {
        for r in &f.readers[queue[next].index()] {
            if marks.insert(r.consumer) {
                queue.push(r.consumer);
            }
        }
        next += 1;
    }
}

/// Does every path from the nodes reach a marked node, or end, before it passes a mixing operator?
fn meets(f: &Flow, from: Vec<NodeId>, marked: &Marks, seen: &mut Marks) -> bool {
    seen.clear();
    let mut stack = from;
    let mut looked = 0;
    while let Some(n) = stack.pop() {
        if marked.contains(n) || f.spent[n.index()] || !seen.insert(n) {
            continue;
        }
        looked += 1;
        if looked > AHEAD || matches!(f.class_of(n), Class::Mixing(_)) {
            return false;
        }
        stack.extend(f.readers[n.index()].iter().map(|r| r.consumer));
    }
    true
}
