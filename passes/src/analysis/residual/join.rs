//! Which adds are joins.

use super::branch::{Marks, Question, Region, branch, signature};
use super::classes::{Addend, addends, sum_slot};
use super::flow::{Flow, Read};
use super::layout::restores;
use super::skip::{Start, identity_starts, projection_starts};
use super::{Join, JoinKind, Why};
use crate::ir::{NodeId, ValueId};
use crate::ops::{Class, Mixing};
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};

/// A float add.
pub(super) struct AddNode {
    pub(super) node: NodeId,
    pub(super) addends: Vec<Addend>,
    /// Why it is no join, once that is known.
    pub(super) why: Option<Refusal>,
}

impl AddNode {
    /// The operands of all addends but one.
    pub(super) fn operands_but(&self, operand: usize) -> SmallVec<[usize; 4]> {
        self.addends.iter().map(|a| a.operand).filter(|o| *o != operand).collect()
    }
}

/// Why an add is no join, in the order of how much it says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Refusal {
    /// This operand is a constant.
    ConstantOperand(usize),
    /// This operand is broadcast.
    Broadcast(usize),
    /// With this operand as the skip.
    Branch(usize, Why),
}

/// No region: the node is in no branch.
const NOWHERE: u32 = u32::MAX;

/// Finds joins add by add, in execution order.
pub(super) struct Finder<'f, 'g> {
    pub(super) f: &'f Flow<'g>,
    pub(super) adds: Vec<AddNode>,
    /// Joins found, not in order; `None` for one that became part of another.
    pub(super) joins: Vec<Option<Join>>,
    /// The join of an add, by its last node.
    pub(super) join_of: HashMap<NodeId, usize>,
    /// The innermost join in whose branch a node is.
    pub(super) within: Vec<u32>,
    /// The innermost join around a join.
    around: Vec<u32>,
    /// Some join around it, the outermost after [`Finder::outermost`].
    outer: Vec<u32>,
    /// Joins with a skip scaled by channel: number, place in `adds`, skip operand.
    by_channel: Vec<(usize, usize, usize)>,
    /// Adds that became part of another join.
    parts: HashSet<NodeId>,
    pub(super) marks: Marks,
}

impl<'f, 'g> Finder<'f, 'g> {
    pub(super) fn new(f: &'f Flow<'g>) -> Finder<'f, 'g> {
        let bound = f.place.len();
        let mut adds = Vec::new();
        for node in &f.order {
            let Some(addends) = addends(f.g, *node) else { continue };
            let quantised = f.g.op(*node).is_some_and(|o| o.name.starts_with("QLinear"));
            if quantised || !f.is_integer(f.g.result(*node, 0)) {
                adds.push(AddNode { node: *node, addends, why: None });
            }
        }
        Finder {
            f,
            adds,
            joins: Vec::new(),
            join_of: HashMap::new(),
            within: vec![NOWHERE; bound],
            around: Vec::new(),
            outer: Vec::new(),
            by_channel: Vec::new(),
            parts: HashSet::new(),
            marks: Marks::new(bound),
        }
    }

    /// Takes every add whose branch feeds nothing but it.
    pub(super) fn strict(&mut self) {
        for i in 0..self.adds.len() {
            if let Err(why) = self.examine(i) {
                self.adds[i].why = Some(why);
            }
        }
        self.drop_inner_terms();
    }

    /// Inside a branch, a skip with a factor for each channel is a term of that branch's formula (the direct term of a state
    /// space model), not a path around a block.
    fn drop_inner_terms(&mut self) {
        for (id, i, operand) in std::mem::take(&mut self.by_channel) {
            let node = self.adds[i].node;
            let around = self.branches_around(node).map(|(_, j)| j.node).next();
            let (Some(around), Some(join)) = (around, self.joins[id].as_ref()) else { continue };
            if join.node == node {
                self.adds[i].why = Some(Refusal::Branch(operand, Why::Term(join.state, around)));
                self.join_of.remove(&node);
                self.joins[id] = None;
            }
        }
    }

    fn examine(&mut self, i: usize) -> Result<(), Refusal> {
        let f = self.f;
        let node = self.adds[i].node;
        let result = f.g.result(node, 0);
        let plain = |a: &&Addend| a.inner.is_none();
        let mut fitting: SmallVec<[usize; 4]> = SmallVec::new();
        let mut refusal = None;
        for a in self.adds[i].addends.iter().filter(plain) {
            match f.g.operand(node, a.operand) {
                Some(v) if f.may_agree(v, result) => fitting.push(a.operand),
                Some(_) => refusal = Some(Refusal::Broadcast(a.operand)),
                None => {}
            }
        }
        let mut all = self.adds[i].addends.iter().map(|a| a.operand);
        let inner = self.adds[i].addends.iter().find_map(|a| a.inner);
        let constant = all.find(|o| f.g.operand(node, *o).is_none_or(|v| !f.is_live(v)));
        if let Some(refusal) = refusal {
            return Err(constant.map_or(refusal, Refusal::ConstantOperand));
        }
        let mut worst: Option<(usize, Why)> = None;
        let mut note = |operand: usize, why: Why| {
            if worst.is_none_or(|(_, w)| weight(&why) > weight(&w)) {
                worst = Some((operand, why));
            }
        };
        let mut best: Option<(Start, usize, Region)> = None;
        for operand in &fitting {
            let branch_operands = self.adds[i].operands_but(*operand);
            for start in identity_starts(f, node, *operand) {
                if best.as_ref().is_some_and(|(b, _, _)| b.path.len() <= start.path.len()) {
                    break;
                }
                match self.ask(node, *operand, &branch_operands, inner, &start) {
                    Ok(region) => best = Some((start, *operand, region)),
                    Err(why) => note(*operand, why),
                }
            }
        }
        if let Some((start, operand, region)) = best {
            self.accept(i, start, operand, JoinKind::Identity, region);
            return Ok(());
        }
        for a in 0..self.adds[i].addends.len() {
            let (operand, own) = (self.adds[i].addends[a].operand, self.adds[i].addends[a].inner);
            let branch_operands = self.adds[i].operands_but(operand);
            let inner = if own.is_some() { None } else { inner };
            for start in self.projection_starts(node, operand, own.is_some()) {
                let region = self.ask(node, operand, &branch_operands, inner, &start);
                match region.and_then(|r| self.projects(node, &start, inner, r)) {
                    Ok(region) => {
                        self.accept(i, start, operand, JoinKind::Projection, region);
                        return Ok(());
                    }
                    Err(why) => note(operand, why),
                }
            }
        }
        Err(match (worst, constant) {
            (Some((operand, why)), _) if weight(&why) > 1 => Refusal::Branch(operand, why),
            (_, Some(constant)) => Refusal::ConstantOperand(constant),
            (Some((operand, why)), None) => Refusal::Branch(operand, why),
            (None, None) => Refusal::Branch(self.adds[i].addends[0].operand, Why::Independent),
        })
    }

    fn projection_starts(&self, node: NodeId, operand: usize, inner: bool) -> Vec<Start> {
        projection_starts(self.f, node, operand, inner, &|n| {
            // A fused one gives its sum beside what it makes of it.
            let alone = self.f.g.results(n).map(|r| self.f.active_readers(r).count()).sum::<usize>() == 1;
            let join = self.join_of.get(&n).and_then(|j| self.joins[*j].as_ref())?;
            (alone && join.kind == JoinKind::Projection).then_some(join.skip_operand)
        })
    }

    /// Is there a branch from that start? Adds on the way must each take one up.
    fn ask(
        &mut self,
        add: NodeId,
        skip_operand: usize,
        branch_operands: &[usize],
        inner: Option<Mixing>,
        start: &Start,
    ) -> Result<Region, Why> {
        let q = Question { add, skip_operand, branch_operands, inner, state: start.state, path: &start.path };
        let region = branch(self.f, &q, &mut self.marks)?;
        for (add, skip) in &start.through {
            let others = self.f.reads[add.index()].iter().filter(|(i, _)| *i as usize != *skip);
            if !others.into_iter().any(|(_, v)| region.nodes.contains(&v.node)) {
                return Err(Why::Independent);
            }
        }
        Ok(region)
    }

    /// Is what a skip passes less than what the branch does?
    fn projects(&self, add: NodeId, start: &Start, inner: Option<Mixing>, region: Region) -> Result<Region, Why> {
        let branch = region.nodes.iter().filter(|n| self.f.is_map(**n)).count() + usize::from(inner.is_some());
        if branch <= start.maps || (start.maps > 0 && !region.nonlinear) {
            return Err(Why::Parallel(start.state));
        }
        // A branch that reads a value on the skip's way starts later than the state.
        let feeds_branch = |n: &NodeId| {
            let other = |r: &Read| r.consumer != add && !start.path.contains(&r.consumer);
            self.f.active_readers(self.f.g.result(*n, 0)).any(|r| other(&r) && self.f.post_dominates(add, r.consumer))
        };
        if start.path.iter().any(feeds_branch) {
            return Err(Why::Parallel(start.state));
        }
        let inner: SmallVec<[NodeId; 4]> =
            region.nodes.iter().copied().filter(|n| self.join_of.contains_key(n)).take(2).collect();
        match inner.as_slice() {
            [] => Ok(region),
            [only] if self.is_detail(*only, &region) => Ok(region),
            _ => Err(Why::Fusion(start.state)),
        }
    }

    /// Is the join a detail of a branch, rather than a block of its own? An example is a query that is added to what it attends to.
    /// Its state is a value that the branch makes, a map follows it in the branch, and nothing on the way is enlarged.
    fn is_detail(&self, join: NodeId, region: &Region) -> bool {
        let f = self.f;
        let Some(j) = self.join_of.get(&join).and_then(|j| self.joins[*j].as_ref()) else { return false };
        let enlarges = |name: &str| matches!(name, "Resize" | "Upsample" | "DepthToSpace") || name.contains("ConvTranspose");
        let last_map = region.nodes.iter().filter(|n| f.is_map(**n)).map(|n| f.place_of(*n)).max();
        j.kind == JoinKind::Identity
            && region.nodes.contains(&j.state.node)
            && last_map.is_some_and(|m| m > f.place_of(join))
            && !region.nodes.iter().filter_map(|n| f.g.op(*n)).any(|op| enlarges(&op.name))
    }

    /// Records a join.
    pub(super) fn accept(&mut self, i: usize, start: Start, operand: usize, kind: JoinKind, region: Region) {
        let f = self.f;
        let node = self.adds[i].node;
        let start = if kind == JoinKind::Identity { in_form_of_sum(f, start, node) } else { start };
        self.around.push(NOWHERE);
        self.outer.push(NOWHERE);
        let inner = self.adds[i].addends.iter().find(|a| a.operand != operand).and_then(|a| a.inner);
        let id = self.joins.len() as u32;
        for n in &region.nodes {
            self.enclose(*n, id, region.nodes.len());
        }
        let mut also = Vec::new();
        for (add, _) in &start.through {
            also.push(*add);
            self.parts.insert(*add);
            // Its own join, if it was one, is now part of this.
            if let Some(j) = self.join_of.remove(add)
                && let Some(part) = self.joins[j].take()
            {
                also.extend(part.also);
            }
        }
        let first = start.through.first().copied().unwrap_or((node, operand));
        let own = self.adds[i].addends.iter().filter(|a| a.operand != operand && a.inner.is_none());
        let mut branches = own.filter_map(|a| f.g.operand(node, a.operand)).chain(
            start
                .through
                .iter()
                .flat_map(|(n, skip)| f.reads[n.index()].iter().filter(|(o, _)| *o as usize != *skip).map(|(_, v)| *v)),
        );
        let scaled_branch = branches.any(|v| ends_scaled(f, v, &region));
        self.join_of.insert(node, self.joins.len());
        if start.by_channel {
            self.by_channel.push((self.joins.len(), i, operand));
        }
        self.joins.push(Some(Join {
            node,
            skip_operand: first.1,
            kind,
            state: start.state,
            entry: start.entry,
            direct: start.entry.0 == first.0,
            scaled_skip: start.scaled,
            scaled_branch,
            signature: signature(f, &region, inner, &mut self.marks),
            sum: sum_of(f, node),
            also,
            branch_nodes: region.nodes.len(),
            inside: None,
        }));
    }

    /// Puts a node into the branch of a new join, among the joins around the node by size.
    fn enclose(&mut self, n: NodeId, id: u32, size: usize) {
        let inner = self.within[n.index()];
        if inner == NOWHERE || self.is_larger(inner, size) {
            self.within[n.index()] = id;
            if inner != NOWHERE {
                self.put_inside(id, inner);
            }
            return;
        }
        let outermost = self.outermost(inner);
        if !self.is_larger(outermost, size) {
            if outermost != id {
                self.put_inside(outermost, id);
            }
            return;
        }
        // A join found after the joins around it comes to stand between two.
        let mut at = inner;
        while at != id && !self.is_larger(self.around[at as usize], size) {
            at = self.around[at as usize];
        }
        if at != id {
            let above = self.around[at as usize];
            self.put_inside(at, id);
            self.put_inside(id, above);
        }
    }

    fn is_larger(&self, id: u32, size: usize) -> bool {
        self.joins.get(id as usize).and_then(Option::as_ref).is_some_and(|j| j.branch_nodes > size)
    }

    fn put_inside(&mut self, inner: u32, outer: u32) {
        self.around[inner as usize] = outer;
        self.outer[inner as usize] = outer;
    }

    /// The outermost join around a join; shortens the way for the next question.
    fn outermost(&mut self, id: u32) -> u32 {
        let mut top = id;
        while self.outer[top as usize] != NOWHERE {
            top = self.outer[top as usize];
        }
        let mut at = id;
        while at != top {
            at = std::mem::replace(&mut self.outer[at as usize], top);
        }
        top
    }

    /// Is the add a join or part of one?
    pub(super) fn is_taken(&self, add: NodeId) -> bool {
        self.join_of.contains_key(&add) || self.parts.contains(&add)
    }

    /// The adds of the joins in whose branches a join stands with its state, innermost first. A stream that passes through a branch
    /// stands in none.
    pub(super) fn around<'a>(&'a self, join: &'a Join) -> impl Iterator<Item = NodeId> + 'a {
        let state = join.state.node;
        let holds = move |id: usize, outer: &Join| {
            state == outer.state.node || self.branches_around(state).any(|(other, _)| other == id)
        };
        self.branches_around(join.node).filter(move |(id, outer)| holds(*id, outer)).map(|(_, outer)| outer.node)
    }

    /// The joins in whose branches a node is, with their numbers, innermost first.
    pub(super) fn branches_around(&self, n: NodeId) -> impl Iterator<Item = (usize, &Join)> + '_ {
        let mut at = self.within[n.index()];
        std::iter::from_fn(move || {
            let id = (at != NOWHERE).then_some(at as usize)?;
            at = self.around[id];
            Some(id)
        })
        .filter_map(|id| self.joins[id].as_ref().map(|j| (id, j)))
    }
}

/// How much a reason says about an add.
fn weight(why: &Why) -> u32 {
    match why {
        Why::Independent => 0,
        Why::Constant(_) => 1,
        Why::NoMixing(_) => 2,
        Why::Parallel(_) => 3,
        Why::Gated(..) | Why::Term(..) => 4,
        Why::Fusion(_) => 5,
        Why::Leaks(..) => 6,
        Why::Crosses(..) => 7,
    }
}

/// The result of a join that is the sum.
fn sum_of(f: &Flow, node: NodeId) -> ValueId {
    let slot = f.g.op(node).map_or(0, sum_slot);
    let named = f.g.results(node).any(|v| v.slot == slot && !f.g.name(v).is_empty());
    f.g.result(node, if named { slot } else { 0 })
}

/// Moves the start of an identity skip past rearrangements and conversions that the state needs to have the sum's type: the
/// states of a chain are what its adds add.
fn in_form_of_sum(f: &Flow, mut start: Start, add: NodeId) -> Start {
    let sum = sum_of(f, add);
    let same = |v: ValueId, path: &[NodeId]| f.may_agree(v, sum) && f.may_have_one_dtype(v, sum) && restores(f, v, path);
    let mut at = start.state;
    for (i, n) in start.path.iter().enumerate() {
        if same(at, &start.path[i..]) || !matches!(f.class_of(*n), Class::Carry | Class::Layout) {
            break;
        }
        at = f.g.result(*n, 0);
        if same(at, &start.path[i + 1..]) {
            let next = start.path.get(i + 1).copied().unwrap_or(add);
            let operand = f.reads[next.index()].iter().find(|(_, v)| *v == at).map_or(0, |(o, _)| *o as usize);
            start.state = at;
            start.entry = (next, operand);
            start.path.drain(..=i);
            break;
        }
    }
    start
}

/// Is the last step of a branch a product with a scale or gate from outside of the region? Neither the weight of a normalisation
/// nor a gate that the branch itself computes counts.
fn ends_scaled(f: &Flow, v: ValueId, region: &Region) -> bool {
    let inside = |v: ValueId| region.nodes.binary_search_by_key(&f.place_of(v.node), |n| f.place_of(*n)).is_ok();
    let mut at = v;
    for _ in 0..8 {
        let n = at.node;
        match f.class_of(n) {
            Class::Carry | Class::Layout => match f.g.operand(n, 0) {
                Some(v) => at = v,
                None => return false,
            },
            Class::Scale => {
                let within: SmallVec<[ValueId; 2]> =
                    f.reads[n.index()].iter().map(|(_, v)| *v).filter(|v| inside(*v)).collect();
                let [main] = within.as_slice() else { return false };
                let outside = f.reads[n.index()].iter().any(|(_, v)| !inside(*v));
                return outside && !normalises(f, *main);
            }
            _ => return false,
        }
    }
    false
}

/// Is the value the quotient (or product) of something and a reduction of it: a normalisation written out?
fn normalises(f: &Flow, v: ValueId) -> bool {
    f.class_of(v.node) == Class::Scale
        && f.reads[v.node.index()].iter().any(|(_, r)| {
            let mut at = *r;
            for _ in 0..6 {
                match f.class_of(at.node) {
                    Class::Reduce => return true,
                    Class::Elementwise | Class::Carry | Class::Add => {
                        let Some(next) = f.reads[at.node.index()].iter().map(|(_, v)| *v).find(|v| f.is_live(*v)) else {
                            return false;
                        };
                        at = next;
                    }
                    _ => return false,
                }
            }
            false
        })
}
