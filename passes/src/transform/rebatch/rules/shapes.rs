//! Operators one of whose operands is a shape, which may name the number of samples.

use super::super::Refusal;
use super::super::edit::Edit;
use super::super::edit::Entry;
use super::super::place;
use super::super::place::Place;
use super::Found;
use super::Outcome;
use super::Rule;
use crate::analysis::types::is_unnamed;
use crate::ir::Dim;

impl Rule<'_, '_> {
    /// Operators one of whose operands is a shape, which may be computed from the batch.
    pub(super) fn by_shape(&mut self, name: &str) -> Result<Option<Outcome>, Refusal> {
        Ok(Some(match name {
            "Reshape" => self.reshape()?,
            "Expand" => self.expand()?,
            "Tile" => self.tile()?,
            "ConstantOfShape" => {
                let p = self.named_by(0, |_| true)?;
                self.all(p)?
            }
            "Resize" | "Upsample" => self.resize()?,
            _ => return Ok(None),
        }))
    }

    /// The place of samples in a result whose shape operand `operand` names: the one entry that depends on the batch.
    pub(super) fn named_by(&self, operand: usize, fits: impl Fn(usize) -> bool) -> Result<Place, Refusal> {
        let values = self.extents(operand).ok_or("its shape is computed in an unknown way")?;
        let symbol = self.a.batch.symbols().next().unwrap_or_default().to_string();
        let mut at = values.iter().enumerate().filter(|(_, d)| d.symbols().any(|s| s == symbol));
        let ((axis, d), None) = (at.next().ok_or("its shape does not depend on the batch")?, at.next()) else {
            return Err("its shape names the batch twice".into());
        };
        let inner = d.div_exact(&self.a.batch).filter(|_| fits(axis)).ok_or("its shape depends on the batch oddly")?;
        Ok(Place { axis, outer: Dim::from(1), inner })
    }

    pub(super) fn reshape(&mut self) -> Found {
        let Some(mut p) = self.place(0).cloned() else {
            return Err("it gives the batch's extent to values that are the same for every sample".into());
        };
        let (from, to) = (self.shape(0)?, self.result_shape()?);
        if from.iter().chain(&to).any(is_unnamed) {
            return Err("the shape it gives is not known".into());
        }
        let mut found = place::reshaped(&from, &p, &to, self.a.before);
        // In front of everything else they fit any shape.
        let front = from.first().map(|d| Place::whole(0, d.clone())).filter(|_| found.is_empty());
        if let Some(front) = front
            && self.bring(0, &front, 0)
        {
            p = front;
            found = place::reshaped(&from, &p, &to, self.a.before);
        }
        self.answers = found.len();
        let q = found.get(self.answer).cloned().ok_or_else(|| {
            let dims = |s: &[Dim]| s.iter().map(Dim::to_string).collect::<Vec<_>>().join(",");
            format!("it tears the samples apart: [{}] to [{}]", dims(&from), dims(&to))
        })?;
        let mut new_from = from;
        new_from[p.axis] = p.extent(&self.a.batch);
        self.retarget(1, &to, &q, &new_from)?;
        self.all(q)
    }

    /// Rewrites the target of a `Reshape` where it does not give the samples their place.
    pub(super) fn retarget(&mut self, operand: usize, to: &[Dim], q: &Place, from: &[Dim]) -> Result<(), Refusal> {
        let copies = self.int("allowzero", 0) == 0;
        let want = |k: usize| if k == q.axis { q.extent(&self.a.batch) } else { to[k].clone() };
        let entries = self.extents(operand);
        if entries.as_ref().is_some_and(|e| e.len() != to.len()) {
            return Err("its target does not fit its result".into());
        }
        let minus = Dim::from(-1);
        if let Some(entries) = &entries {
            let zero = |e: &Dim| copies && e.known() == Some(0);
            let right =
                |k: usize, e: &Dim| *e == want(k) || *e == minus || (zero(e) && from.get(k).is_some_and(|d| *d == want(k)));
            if entries.iter().enumerate().all(|(k, e)| right(k, e)) {
                return Ok(());
            }
        }
        // −1 for the samples where every other extent is a number or copied.
        let copied = |k: usize| copies && from.get(k).is_some_and(|d| *d == to[k]);
        let mut rest = (0..to.len()).filter(|k| *k != q.axis);
        let literal = rest.all(|k| to[k].known().is_some_and(|n| n != 0) || copied(k));
        let mut out = Vec::with_capacity(to.len());
        for k in 0..to.len() {
            let entry = entries.as_ref().map(|e| e[k].clone());
            out.push(match (k == q.axis, to[k].known()) {
                (true, _) if literal => Entry::Rest(to[k].known().unwrap_or(0) / self.a.before),
                (true, Some(n)) => Entry::Batch(n / self.a.before),
                (true, None) if entry.as_ref().is_none_or(|e| *e == minus || e.known() == Some(0)) => {
                    return Err("its target leaves the samples' extent open".into());
                }
                (true, None) => Entry::OldTimes(k),
                (false, Some(n)) => Entry::Is(n),
                (false, None) if copied(k) => Entry::Is(0),
                (false, None) => Entry::Old(k),
            });
        }
        self.edits.push(Edit::Vector { operand, entries: out });
        Ok(())
    }

    pub(super) fn expand(&mut self) -> Found {
        let to = self.result_shape()?;
        let Some(p) = self.place(0).cloned() else {
            let (own, rank) = (self.shape(0)?, to.len());
            let missing = rank - own.len().min(rank);
            let p = self.named_by(1, |axis| axis < missing || own[axis - missing].is_one())?;
            return self.all(p);
        };
        let width = self.shape(1)?.first().and_then(Dim::known).ok_or("the length of its target is unknown")? as usize;
        let q = p.at(p.axis + to.len() - self.rank(0)?.min(to.len()));
        // The target's entry there has to be 1, or the new extent.
        if let Some(k) = (q.axis + width).checked_sub(to.len()) {
            let entries = self.extents(1);
            let right = entries
                .as_ref()
                .map_or(self.a.before == 1 && q.is_pure(), |e| e[k].is_one() || e[k] == q.extent(&self.a.batch));
            if !right {
                let known = |i: usize| entries.as_ref().and_then(|e| e[i].known());
                let entry = |i: usize| if i == k { Entry::Is(1) } else { known(i).map_or(Entry::Old(i), Entry::Is) };
                self.edits.push(Edit::Vector { operand: 1, entries: (0..width).map(entry).collect() });
            }
        }
        self.all(q)
    }

    pub(super) fn tile(&mut self) -> Found {
        let Some(p) = self.place(0).cloned() else {
            let own = self.shape(0)?;
            let p = self.named_by(1, |axis| own.get(axis).is_some_and(Dim::is_one))?;
            return self.all(p);
        };
        let repeats = self.extents(1).ok_or("its repeats are computed in the graph")?;
        // The axis is repeated as a whole.
        let times = repeats.get(p.axis).cloned().ok_or("its repeats do not fit its operand")?;
        self.all(Place { outer: &times * &p.outer, ..p })
    }

    pub(super) fn resize(&mut self) -> Found {
        self.only(&[0])?;
        let rank = self.rank(0)?;
        let (from, to) = (self.shape(0)?, self.result_shape()?);
        let p = self.settle(0, "it resizes over the samples", |_, p| Ok(to.get(p.axis) == from.get(p.axis)))?;
        // All axes' sizes are given: the samples' must follow.
        if self.operands.get(3).copied().flatten().is_some()
            && self.a.g.op(self.id).is_none_or(|o| o.attrs.ints("axes").is_none())
        {
            let entries = self.extents(3);
            let right = entries.as_ref().is_some_and(|e| e.get(p.axis) == Some(&p.extent(&self.a.batch)));
            if !right {
                let n = to[p.axis].known().ok_or("its sizes are computed in the graph")?;
                let known = |i: usize| entries.as_ref().and_then(|e| e.get(i)?.known());
                let entry = |i: usize| {
                    if i == p.axis { Entry::Batch(n / self.a.before) } else { known(i).map_or(Entry::Old(i), Entry::Is) }
                };
                let entries = (0..rank).map(entry).collect();
                self.edits.push(Edit::Vector { operand: 3, entries });
            }
        }
        self.all(p)
    }
}
