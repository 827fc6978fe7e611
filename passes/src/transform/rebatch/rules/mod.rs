//! Where each operator puts the samples of its operands, and which operators would mix them.

pub(super) mod bring;
mod indexed;
mod sequence;
mod shapes;

use super::Analysis;
use super::edit::{Change, Edit, Entry};
use super::integers::{self, Integers};
use super::place::Place;
use crate::ir::{DType, Dim, NodeId, Op, TensorType, ValueId};
use crate::ops::{Along, Axes, Class, Infer, Label, Mixing, axes, reads_element_type};
use crate::refusal::Why;
use bring::Effort;
use std::collections::BTreeMap;

/// What a rule found of a node's results.
pub(super) enum Found {
    /// The places of the samples.
    Places(Vec<Option<Place>>),
    /// The place of the samples in every part of the sequence that is the result.
    Sequence(Place),
    /// Integers that depend on the batch.
    Integers(Integers),
    /// They are the same for every sample, whatever the batch.
    Same,
}

/// A node whose rule is applied.
pub(super) struct Visit<'r, 'g> {
    a: &'r Analysis<'g>,
    id: NodeId,
    op: &'r Op,
    operands: &'r [Option<ValueId>],
    /// What has to change.
    pub(super) edits: Vec<Edit>,
    /// Number of answers.
    pub(super) answers: usize,
    /// Which answer to take.
    answer: usize,
    /// How far it may go to bring operands together.
    effort: Effort,
    /// Operands whose samples it brings elsewhere, and the number of axes it puts in front of them.
    moved: BTreeMap<usize, (Place, usize)>,
    /// Operands whose integers it takes for what they were in the source.
    was: BTreeMap<usize, Integers>,
}

impl<'r, 'g> Visit<'r, 'g> {
    pub(super) fn new(a: &'r Analysis<'g>, id: NodeId, op: &'r Op, answer: usize) -> Visit<'r, 'g> {
        let effort = a.efforts.get(&id).copied().unwrap_or_default();
        let (edits, moved, was) = Default::default();
        Visit { a, id, op, operands: a.g.operands(id), edits, answers: 1, answer, effort, moved, was }
    }

    pub(super) fn apply(&mut self) -> Result<Found, Why> {
        let found = self.by_name();
        let unclear = match &found {
            Ok(Found::Integers(None)) => self.a.as_was,
            Ok(_) => false,
            Err(_) => self.effort > Effort::Asis || self.a.as_was,
        };
        if !unclear {
            return found;
        }
        self.edits.clear();
        self.moved.clear();
        if !self.take_as_was() {
            return found;
        }
        if self.placed().is_empty() {
            let found = integers::evaluate(self.a.g, self.id, &*self);
            return Ok(found.map_or(Found::Same, |i| Found::Integers(Some(i))));
        }
        self.by_name()
    }

    fn by_name(&mut self) -> Result<Found, Why> {
        let name = self.op.name.as_str();
        // Integers about shapes are no values of the samples.
        let evaluated = || integers::evaluate(self.a.g, self.id, &*self);
        if (self.placed().is_empty() || name == "Shape" || name == "Size")
            && let Some(i) = evaluated()
        {
            return Ok(Found::Integers(Some(i)));
        }
        // One operand of these is a shape, which may be computed from the batch.
        match name {
            "Reshape" => return self.reshape(),
            "Expand" => return self.expand(),
            "Tile" => return self.tile(),
            "ConstantOfShape" => return self.everywhere(self.named_by(0, |_| true)?),
            "Resize" | "Upsample" => return self.resize(),
            _ => {}
        }
        if let Some(i) = (0..self.operands.len()).find(|i| self.depends(*i)) {
            // What is computed from such integers is no longer known.
            if self.placed().is_empty() && !self.a.g.is_float(self.a.g.result(self.id, 0)) {
                return Ok(Found::Integers(None));
            }
            return Err(format!("operand {i} is computed from the number of samples").into());
        }
        match name {
            "SplitToSequence" => self.split_to_sequence(),
            "SequenceConstruct" => self.sequence_construct(),
            "SequenceAt" => self.sequence_at(),
            "Flatten" => self.flatten(),
            "Slice" => self.slice(),
            "Gather" => self.gather(),
            "GatherND" => self.gather_nd(),
            "ScatterND" => self.scatter_nd(),
            // Unknown amounts are taken to leave the samples alone.
            "Pad" if self.listed("pads", 1).is_err() => self.everywhere(self.need(0)?),
            _ => self.by_axes(),
        }
    }

    // ---- reading ----------------------------------------------------------------------------------------------------

    fn place(&self, i: usize) -> Option<&Place> {
        if reads_element_type(self.op, i) {
            return None;
        }
        let v = self.operands.get(i).copied().flatten()?;
        self.moved.get(&i).map(|m| &m.0).or_else(|| self.a.places.get(&v))
    }

    fn placed(&self) -> Vec<usize> {
        (0..self.operands.len()).filter(|i| self.place(*i).is_some()).collect()
    }

    fn need(&self, i: usize) -> Result<Place, Why> {
        self.place(i).cloned().ok_or_else(|| format!("operand {i} carries no samples, but another one does").into())
    }

    fn shape(&self, i: usize) -> Result<Vec<Dim>, Why> {
        let v = self.operands.get(i).copied().flatten().ok_or_else(|| format!("operand {i} is missing"))?;
        let mut shape = vec![Dim::from(1); self.moved.get(&i).map_or(0, |m| m.1)];
        shape.extend(self.a.shape(v)?);
        Ok(shape)
    }

    fn rank(&self, i: usize) -> Result<usize, Why> {
        Ok(self.shape(i)?.len())
    }

    fn result_shape(&self) -> Result<Vec<Dim>, Why> {
        self.a.shape(self.a.g.result(self.id, 0))
    }

    fn integers(&self, i: usize) -> Option<&Integers> {
        if let Some(was) = self.was.get(&i) {
            return Some(was);
        }
        self.a.integers.get(&self.operands.get(i).copied().flatten()?)
    }

    /// The elements of an integer operand for the new batch, if they are known.
    fn extents(&self, i: usize) -> Option<Vec<Dim>> {
        self.integers(i)?.as_ref()?.extents()
    }

    /// The same as numbers, if they do not depend on the batch.
    fn numbers(&self, i: usize) -> Option<Vec<i64>> {
        self.integers(i)?.as_ref()?.ints()
    }

    fn depends(&self, i: usize) -> bool {
        self.integers(i).is_some_and(|n| integers::depends(n, &self.a.batch))
    }

    /// The attribute `axis`, counted from the front of operand 0.
    fn axis(&self, default: i64) -> Result<usize, Why> {
        let (axis, rank) = (self.op.attrs.int("axis").unwrap_or(default), self.rank(0)? as i64);
        let counted = usize::try_from(if axis < 0 { axis + rank } else { axis });
        counted.map_err(|_| format!("its axis {axis} is out of range").into())
    }

    /// A list of integers given as an attribute or an operand.
    fn listed(&self, name: &str, operand: usize) -> Result<Option<Vec<i64>>, Why> {
        if let Some(list) = self.op.attrs.ints(name) {
            return Ok(Some(list.to_vec()));
        }
        if self.operands.get(operand).copied().flatten().is_none() {
            return Ok(None);
        }
        self.numbers(operand).map(Some).ok_or_else(|| format!("its {name} are computed in the graph").into())
    }

    /// All results have the samples at one place.
    fn everywhere(&self, p: Place) -> Result<Found, Why> {
        Ok(Found::Places(vec![Some(p); self.a.g.node(self.id).results().len()]))
    }

    // ---- changing ---------------------------------------------------------------------------------------------------

    fn change(&mut self, operand: usize, change: Change) {
        self.edits.push(Edit { operand, change });
    }

    /// Changes one entry of a vector of integers.
    fn set_entry(&mut self, operand: usize, len: usize, at: usize, entry: Entry) {
        let known = self.extents(operand);
        let old = |i: usize| known.as_ref().and_then(|e| e.get(i)?.known()).map_or(Entry::Old(i), Entry::Is);
        let entries = (0..len).map(|i| if i == at { entry.clone() } else { old(i) }).collect();
        self.change(operand, Change::Vector(entries));
    }

    /// Lets an operand without samples meet one with samples along an axis of its own. It broadcasts where its extent is 1, else it is
    /// repeated for every sample.
    fn meet(&mut self, i: usize, axis: usize, p: &Place, broadcasts: bool) -> Result<(), Why> {
        let d = self.shape(i)?.get(axis).cloned().ok_or("an operand has too few axes")?;
        if d.is_one() && (broadcasts || self.a.before != 1) && (p.is_pure() || broadcasts) {
            return if broadcasts { Ok(()) } else { self.repeat(i, axis, p) };
        }
        if self.a.before == 1 {
            return if d == p.beside() { self.repeat(i, axis, p) } else { Err(self.odd(i, &d, p)) };
        }
        if d == p.extent(&Dim::from(self.a.before)) && p.is_pure() {
            if !self.equal_along(i, axis) {
                return Err(format!("operand {i} is a constant that differs from sample to sample").into());
            }
            self.change(i, Change::First { axis });
            return if broadcasts { Ok(()) } else { self.repeat(i, axis, p) };
        }
        Err(self.odd(i, &d, p))
    }

    fn odd(&self, i: usize, d: &Dim, p: &Place) -> Why {
        format!("operand {i} has extent {d} where the samples lie ({} for each sample)", p.beside()).into()
    }

    fn repeat(&mut self, i: usize, axis: usize, p: &Place) -> Result<(), Why> {
        if !p.outer.is_one() {
            return Err(format!("operand {i} would have to be repeated inside an axis").into());
        }
        self.change(i, Change::Repeat { axis });
        Ok(())
    }

    /// Are the parts of a constant for all samples equal? Of a computed value this is taken for granted.
    fn equal_along(&self, i: usize, axis: usize) -> bool {
        let Some(t) = self.operands[i].and_then(|v| self.a.g.constant(v)) else { return true };
        let Ok(values) = t.to_f64() else { return true };
        let inner: i64 = t.dims()[axis + 1..].iter().product();
        let n = t.dims()[axis];
        values.chunks((inner * n).max(1) as usize).all(|block| {
            let first = &block[..inner as usize];
            block.chunks(inner.max(1) as usize).all(|part| part == first)
        })
    }

    // ---- the samples along an axis that the operator keeps apart ----------------------------------------------------

    fn axes(&self) -> Option<Axes> {
        let operand_type = |i: usize| {
            let dtype = self.a.g.value(self.operands[i]?).ty.dtype.unwrap_or(DType::F32);
            Some(TensorType::new(dtype, self.shape(i).ok()?))
        };
        let types: Vec<Option<TensorType>> = (0..self.operands.len()).map(operand_type).collect();
        let array = |i: usize| self.integers(i)?.clone();
        let present = |i: usize| self.operands.get(i).is_some_and(Option::is_some);
        let cx = Infer { op: self.op, types: &types, array: &array, present: &present };
        let opset = self.a.g.opsets.get("").copied().unwrap_or(18);
        axes(&cx, opset, self.result_shape().ok().as_deref())
    }

    /// The samples lie along one free axis of all operands that carry some: where they are, or where they can be brought.
    fn by_axes(&mut self) -> Result<Found, Why> {
        let axes = self.axes().ok_or("no rule says whether it keeps the samples of a batch apart")?;
        let placed = self.placed();
        let mut candidates: Vec<(Label, Place)> = Vec::new();
        for i in &placed {
            let p = self.need(*i)?;
            candidates.extend(axes.operand(*i).get(p.axis).map(|label| (*label, p)));
        }
        let present = candidates.len();
        for label in axes.labels() {
            let extent = |i: &usize| self.shape(*i).ok()?.get(axes.in_operand(*i, label)?).cloned();
            let extents: Vec<Dim> = placed.iter().filter_map(extent).collect();
            candidates.extend(extents.into_iter().chain([Dim::from(1)]).map(|d| (label, Place::whole(0, d))));
        }
        match placed.as_slice() {
            [one] => {
                let (p, shape) = (self.need(*one)?, self.shape(*one)?);
                candidates[present..].sort_by_key(|(label, q)| {
                    let axis = axes.in_operand(*one, *label).unwrap_or(usize::MAX);
                    let stays = axis < shape.len() && p.stays(&q.at(axis), &bring::shape_beside(&shape, &p));
                    (!stays, !q.is_pure(), axis)
                });
            }
            _ => candidates[present..]
                .sort_by_key(|(label, q)| (!q.is_pure(), axes.in_result(0, *label).unwrap_or(usize::MAX))),
        }
        candidates.retain(|(label, _)| axes.along(*label) == Along::Free && self.is_in_results(&axes, *label));
        // An operand that differs along an axis can be repeated for every sample only as a whole.
        for clashes in [false, true] {
            for (label, p) in &candidates {
                if !clashes && !p.outer.is_one() && self.differs(&axes, *label) {
                    continue;
                }
                let (edits, moved) = (self.edits.len(), self.moved.clone());
                if placed.iter().all(|i| self.bring_along(&axes, *i, *label, p)) {
                    return self.meet_along(&axes, *label, p);
                }
                self.edits.truncate(edits);
                self.moved = moved;
            }
        }
        Err(self.refusal(&axes, &placed))
    }

    /// Do all results that are needed have the axis?
    fn is_in_results(&self, axes: &Axes, label: Label) -> bool {
        let mut results = self.a.g.results(self.id).enumerate();
        results.all(|(slot, v)| axes.in_result(slot, label).is_some() || !self.a.g.is_needed(v))
    }

    /// Is there an operand without samples that is not the same all along an axis?
    fn differs(&self, axes: &Axes, label: Label) -> bool {
        (0..self.operands.len()).filter(|i| self.place(*i).is_none()).any(|i| {
            let extent = || self.shape(i).ok()?.get(axes.in_operand(i, label)?).cloned();
            extent().is_some_and(|d| !axes.broadcasts(i) || !d.is_one())
        })
    }

    /// Brings the samples of an operand to an axis, which it may get where it broadcasts.
    fn bring_along(&mut self, axes: &Axes, i: usize, label: Label, p: &Place) -> bool {
        match (axes.in_operand(i, label), axes.in_result(0, label)) {
            (Some(axis), _) => self.bring(i, &p.at(axis), 0),
            (None, Some(to)) if axes.broadcasts(i) => {
                let missing = axes.result(0).len().saturating_sub(axes.operand(i).len());
                to < missing && self.bring(i, &p.at(0), missing - to)
            }
            _ => false,
        }
    }

    /// The operands without samples get theirs. The results have them along the same axis.
    fn meet_along(&mut self, axes: &Axes, label: Label, p: &Place) -> Result<Found, Why> {
        for i in 0..self.operands.len() {
            if let (None, Some(axis)) = (self.place(i), axes.in_operand(i, label)) {
                self.meet(i, axis, p, axes.broadcasts(i))?;
            }
        }
        let places = |slot: usize| axes.in_result(slot, label).map(|axis| p.at(axis));
        Ok(Found::Places((0..self.a.g.node(self.id).results().len()).map(places).collect()))
    }

    /// Why no axis fits.
    fn refusal(&self, axes: &Axes, placed: &[usize]) -> Why {
        let is_free = |i: &&usize| {
            let label = self.place(**i).and_then(|p| axes.operand(**i).get(p.axis));
            label.is_some_and(|l| axes.along(*l) == Along::Free)
        };
        let Some(i) = placed.iter().find(|i| !is_free(i)) else {
            return match placed {
                [i, j, ..] => format!("operands {i} and {j} have the samples in different places").into(),
                _ => "a result that is read counts over all samples".into(),
            };
        };
        match Class::of(self.op) {
            Class::Reduce => "it reduces over the samples too".into(),
            Class::Concat => "it joins along the samples, or they lie in different places".into(),
            Class::Layout => "it removes the axis of the samples".into(),
            Class::Rows | Class::Scan => "it computes over the samples".into(),
            Class::Mixing(Mixing::Recurrent) if *i == 0 => "it runs along the samples".into(),
            Class::Mixing(Mixing::MatMul) => format!("it contracts the samples of operand {i}").into(),
            Class::Norm if *i == 0 => "it normalises over the samples".into(),
            Class::Select if *i == 0 => "it selects, pads or computes along the samples".into(),
            _ if *i > 0 => format!("its operand {i}, a parameter of the operator, depends on the samples").into(),
            _ => {
                format!("the samples lie along axis {}, over which it computes", self.place(*i).map_or(0, |p| p.axis)).into()
            }
        }
    }
}
