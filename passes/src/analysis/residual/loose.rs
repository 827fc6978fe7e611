//! Joins whose branch feeds more than the add.
//!
//! Some networks reuse a branch's results: channels split off for a dense path, keys and values that later blocks read again.
//! Then the add does not post-dominate its branch. It still is a join when all values that go past it meet its result again before
//! any mixing operator. Masks and position biases have this property too: the states between them and a later score meet the
//! score in the next residual add. But their adds lie inside the branch of a join, and they come from outside of that branch.
//! So candidates are taken smallest branch first, and a candidate that crosses a join already taken is refused, unless its state is
//! the sum of another join.
//!
//! Streams that are computed together exchange results of their branches: one attention reads the tokens of two streams,
//! resolutions are added to each other. A value that goes past the add then ends in the branch of a *partner*: an add around
//! another state that the first add's branch reads as well. Partners are joins together, or none of them is. Where an
//! add makes another join's state of a stream's message (from a virtual node to the nodes of a graph), the other stream begins.
//! A stream whose first state is a constant is found from its second join on; its first is taken last.

use super::branch::{self, Marks, Region};
use super::classes::{Addend, addends};
use super::flow::Flow;
use super::join::{AddNode, Finder, Refusal};
use super::skip::{Start, identity_starts};
use super::{JoinKind, Why};
use crate::ir::{NodeId, ValueId};
use crate::ops::Class;
use std::collections::{HashMap, HashSet};

/// Nodes of a branch looked at.
const LARGEST: usize = 2048;
/// Nodes after an add looked at.
const AHEAD: usize = 1024;

struct Candidate {
    add: usize,
    operand: usize,
    start: Start,
    region: Region,
    /// Adds in whose branches the values end that go past this add.
    partners: Vec<NodeId>,
}

/// Node sets for the questions about one add.
struct Sets {
    /// The nodes that the branch is computed from.
    behind: Marks,
    /// The nodes that depend on the state, later those that depend on the add.
    after: Marks,
    seen: Marks,
    /// What the states of the joins are results of.
    states: HashSet<NodeId>,
}

/// Adds such joins to those found.
pub(super) fn recover(finder: &mut Finder) {
    let marks = || Marks::new(finder.f.place.len());
    let states = finder.joins.iter().flatten().map(|j| j.state.node).collect();
    let mut sets = Sets { behind: marks(), after: marks(), seen: marks(), states };
    let mut candidates = Vec::new();
    for i in 0..finder.adds.len() {
        if !matches!(finder.adds[i].why, Some(Refusal::Branch(_, Why::Leaks(..)))) || finder.is_taken(finder.adds[i].node) {
            continue;
        }
        match candidate(finder, i, &mut sets) {
            Ok(c) => candidates.push(c),
            Err(refusal) => finder.adds[i].why = Some(refusal),
        }
    }
    without_lonely(finder, &mut candidates);
    candidates.sort_by_key(|c| c.region.nodes.len());
    for c in candidates {
        let stream = finder.is_taken(c.start.state.node);
        match crosses(finder, finder.adds[c.add].node, &c.start).filter(|_| !stream) {
            Some(join) => {
                finder.adds[c.add].why = Some(Refusal::Branch(c.operand, Why::Crosses(c.start.state, join)));
            }
            None => finder.accept(c.add, c.start, c.operand, JoinKind::Identity, c.region),
        }
    }
    begin_with_constants(finder, &mut sets);
}

/// Adds the joins by which a stream begins with a constant, such as the embedding of a virtual node. A constant may as well be a bias
/// that is added more than once: the branch has to be that of the join that follows.
fn begin_with_constants(finder: &mut Finder, sets: &mut Sets) {
    let f = finder.f;
    let followers = finder.joins.iter().flatten().filter(|j| j.kind == JoinKind::Identity);
    let next: HashMap<NodeId, Vec<String>> = followers.map(|j| (j.state.node, j.signature.clone())).collect();
    for i in 0..finder.adds.len() {
        let AddNode { node, addends, .. } = &finder.adds[i];
        let Some(signature) = next.get(node).filter(|_| !finder.is_taken(*node)) else { continue };
        let sum = f.g.result(*node, 0);
        let constant = |v: &ValueId| !f.is_live(*v) && f.may_agree(*v, sum) && f.active_readers(*v).count() > 1;
        let operands = addends.iter().filter(|a| a.inner.is_none()).map(|a| a.operand);
        let found = operands.filter(|o| f.g.operand(*node, *o).as_ref().is_some_and(constant)).find_map(|operand| {
            let start = identity_starts(f, *node, operand).into_iter().find(|s| s.path.is_empty())?;
            let (region, _) = region(finder, *node, &finder.adds[i].operands_but(operand), &start, sets).ok()?;
            Some((operand, start, region))
        });
        if let Some((operand, start, region)) = found
            && branch::signature(f, &region, None, &mut finder.marks) == *signature
        {
            finder.accept(i, start, operand, JoinKind::Identity, region);
        }
    }
}

/// Drops candidates whose partners are no joins, as long as there are any.
fn without_lonely(finder: &mut Finder, candidates: &mut Vec<Candidate>) {
    loop {
        let known: HashSet<NodeId> = candidates.iter().map(|c| finder.adds[c.add].node).collect();
        let joined = |n: &NodeId| known.contains(n) || finder.is_taken(*n);
        let (kept, lonely): (Vec<_>, Vec<_>) =
            std::mem::take(candidates).into_iter().partition(|c| c.partners.iter().all(joined));
        *candidates = kept;
        if lonely.is_empty() {
            return;
        }
        for c in lonely {
            let stray = c.partners.first().copied().unwrap_or(finder.adds[c.add].node);
            finder.adds[c.add].why = Some(Refusal::Branch(c.operand, Why::Leaks(c.start.state, stray)));
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

fn candidate(finder: &Finder, i: usize, sets: &mut Sets) -> Result<Candidate, Refusal> {
    let (f, add, addends) = (finder.f, finder.adds[i].node, &finder.adds[i].addends);
    let mut refusal = None;
    let mut leaks = None;
    for operand in addends.iter().filter(|a| a.inner.is_none()).map(|a| a.operand) {
        let others = finder.adds[i].operands_but(operand);
        for start in identity_starts(f, add, operand).into_iter().filter(|start| start.through.is_empty()) {
            if f.active_readers(start.state).count() < 2 || !f.is_live(start.state) {
                continue;
            }
            let may_be_sum = self::addends(f.g, start.state.node).is_some();
            if let Some(join) = crosses(finder, add, &start).filter(|_| !may_be_sum) {
                refusal.get_or_insert(Refusal::Branch(operand, Why::Crosses(start.state, join)));
                break;
            }
            match region(finder, add, &others, &start, sets) {
                Ok((region, partners)) => return Ok(Candidate { add: i, operand, start, region, partners }),
                Err(why @ Why::Leaks(..)) => leaks = Some(Refusal::Branch(operand, why)),
                Err(_) => {}
            }
        }
    }
    // What looked like a leak may have been another use of the state.
    Err(refusal.or(leaks).unwrap_or(Refusal::Branch(addends[0].operand, Why::Independent)))
}

/// The nodes between the start and the add, with the add's partners. Some node must mix. Every value that goes past the add must soon
/// meet the add's result or end in a partner's branch.
fn region(
    finder: &Finder,
    add: NodeId,
    branch_operands: &[usize],
    start: &Start,
    sets: &mut Sets,
) -> Result<(Region, Vec<NodeId>), Why> {
    let f = finder.f;
    // First the walk goes back from the branch to every node after the state.
    sets.behind.clear();
    let first = f.place_of(start.state.node);
    let mut stack: Vec<NodeId> = branch_operands.iter().filter_map(|o| f.g.operand(add, *o)).map(|v| v.node).collect();
    let roots = stack.clone();
    stack.retain(|n| f.place_of(*n) > first && sets.behind.insert(*n));
    let mut back = Vec::new();
    while let Some(n) = stack.pop() {
        back.push(n);
        if back.len() > LARGEST {
            return Err(Why::Leaks(start.state, n));
        }
        for (_, v) in &f.reads[n.index()] {
            if f.place_of(v.node) > first && sets.behind.insert(v.node) {
                stack.push(v.node);
            }
        }
    }
    // The nodes among these that depend on the state are the region.
    back.sort_unstable_by_key(|n| f.place_of(*n));
    sets.after.clear();
    let mut nodes = Vec::new();
    for n in back {
        let depends = f.reads[n.index()].iter().any(|(_, v)| *v == start.state || sets.after.contains(v.node));
        if depends && !start.path.contains(&n) && !enters_stream(finder, n, add, &sets.states) {
            sets.after.insert(n);
            nodes.push(n);
        }
    }
    // A message to another stream leads to no operand of the add within the region.
    sets.seen.clear();
    let mut stack = roots.clone();
    while let Some(n) = stack.pop() {
        if sets.after.contains(n) && sets.seen.insert(n) {
            stack.extend(f.reads[n.index()].iter().map(|(_, v)| v.node));
        }
    }
    nodes.retain(|n| sets.seen.contains(*n));
    std::mem::swap(&mut sets.after, &mut sets.seen);
    if !roots.iter().any(|n| sets.after.contains(*n)) {
        return Err(Why::Independent);
    }
    let mut leaks = Vec::new();
    for n in &nodes {
        for r in &f.readers[n.index()] {
            let c = r.consumer;
            if start.path.contains(&c) {
                return Err(Why::Gated(start.state, c));
            }
            if c != add && !sets.after.contains(c) && !f.spent[c.index()] {
                leaks.push((c, r.operand as usize));
            }
        }
    }
    let stray = leaks.first().map_or(add, |(n, _)| *n);
    let leak = Why::Leaks(start.state, stray);
    let partner = |n: NodeId, operand: usize| is_partner(finder, n, operand, &nodes, &sets.behind);
    descendants(f, add, &mut sets.after);
    if !nodes.iter().any(|n| f.is_map(*n)) {
        return Err(leak);
    }
    let partners = meets(f, leaks, &sets.after, &mut sets.seen, partner).ok_or(leak)?;
    Ok((Region { nodes, nonlinear: true }, partners))
}

/// Does an add outside of the branch make another join's state of what is computed from this one?
fn enters_stream(finder: &Finder, n: NodeId, add: NodeId, states: &HashSet<NodeId>) -> bool {
    let f = finder.f;
    f.class_of(n) == Class::Add && states.contains(&n) && !finder.is_taken(n) && !f.post_dominates(add, n)
}

/// Is the node an add that takes its operand up as the branch around another state? That state is no part of the region, and the
/// add's branch is computed from it as well.
fn is_partner(finder: &Finder, n: NodeId, operand: usize, region: &[NodeId], behind: &Marks) -> bool {
    let f = finder.f;
    let (Some(branch), Some(addends)) = (f.g.operand(n, operand), addends(f.g, n)) else { return false };
    let may_skip =
        |a: &Addend| a.inner.is_none() && a.operand != operand && f.g.operand(n, a.operand).is_some_and(|v| f.is_live(v));
    addends.iter().any(|a| a.operand == operand)
        && addends.iter().filter(|a| may_skip(a)).any(|a| {
            identity_starts(f, n, a.operand).iter().any(|s| {
                !region.contains(&s.state.node)
                    && f.active_readers(s.state).any(|r| r.consumer != n && behind.contains(r.consumer))
                    && depends(f, branch, s.state) == Some(true)
            })
        })
}

/// Is a value computed from another? The search gives up at [`LARGEST`] nodes.
pub(super) fn depends(f: &Flow, v: ValueId, on: ValueId) -> Option<bool> {
    let first = f.place_of(on.node);
    let mut seen: HashSet<NodeId> = HashSet::from([v.node]);
    let mut stack = vec![v.node];
    while let Some(n) = stack.pop() {
        if seen.len() >= LARGEST {
            return None;
        }
        for (_, v) in &f.reads[n.index()] {
            if *v == on {
                return Some(true);
            }
            if f.place_of(v.node) > first && seen.insert(v.node) {
                stack.push(v.node);
            }
        }
    }
    Some(false)
}

/// Marks what is computed from an add, at most [`AHEAD`] nodes far.
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

/// Follows every path from these reads and returns the partners at which paths end. A path that meets a mixing operator must end at
/// a partner. Any other path must reach a marked node or a partner, or end. `None` if a path does not.
fn meets(
    f: &Flow,
    from: Vec<(NodeId, usize)>,
    marked: &Marks,
    seen: &mut Marks,
    partner: impl Fn(NodeId, usize) -> bool,
) -> Option<Vec<NodeId>> {
    let mut partners = Vec::new();
    let mut beyond = Vec::new();
    let mut looked = 0;
    let ahead = |n: NodeId| f.readers[n.index()].iter().map(|r| (r.consumer, r.operand as usize));
    seen.clear();
    let mut stack = from;
    while let Some((n, operand)) = stack.pop() {
        if marked.contains(n) || f.spent[n.index()] {
            continue;
        }
        if f.class_of(n) == Class::Add && partner(n, operand) {
            partners.push(n);
        } else if seen.insert(n) {
            looked += 1;
            if matches!(f.class_of(n), Class::Mixing(_)) {
                beyond.push((n, operand));
            } else {
                stack.extend(ahead(n));
            }
        }
    }
    // Past a mixing operator a path must end at a partner.
    seen.clear();
    while let Some((n, operand)) = beyond.pop() {
        if f.spent[n.index()] || (f.class_of(n) == Class::Add && partner(n, operand)) {
            partners.push(n);
        } else if marked.contains(n) || looked > AHEAD {
            return None;
        } else if seen.insert(n) {
            looked += 1;
            beyond.extend(ahead(n));
        }
    }
    partners.retain(|n| !f.spent[n.index()]);
    (looked <= AHEAD).then_some(partners)
}
