//! Operators one of whose operands is a shape, which may name the number of samples; and `Flatten` and `Slice`.

use super::super::edit::{Change, Entry};
use super::super::place::{self, Place};
use super::{Found, Visit};
use crate::analysis::types::is_unnamed;
use crate::ir::Dim;
use crate::refusal::Why;

impl Visit<'_, '_> {
    /// The place of samples in a result whose shape operand `operand` names: the one entry that depends on the batch.
    pub(super) fn named_by(&self, operand: usize, fits: impl Fn(usize) -> bool) -> Result<Place, Why> {
        let values = self.extents(operand).ok_or("its shape is computed in an unknown way")?;
        let symbol = self.a.batch.symbols().next().unwrap_or_default().to_string();
        let mut at = values.iter().enumerate().filter(|(_, d)| d.symbols().any(|s| s == symbol));
        let ((axis, d), None) = (at.next().ok_or("its shape does not depend on the batch")?, at.next()) else {
            return Err("its shape names the batch twice".into());
        };
        let inner = d.div_exact(&self.a.batch).filter(|_| fits(axis)).ok_or("its shape depends on the batch oddly")?;
        Ok(Place { axis, outer: Dim::from(1), inner })
    }

    pub(super) fn reshape(&mut self) -> Result<Found, Why> {
        let Some(mut p) = self.place(0).cloned() else {
            return Err("it gives the batch's extent to values that are the same for every sample".into());
        };
        let (from, to) = (self.shape(0)?, self.result_shape()?);
        if from.iter().chain(&to).any(is_unnamed) {
            return Err("the shape it gives is not known".into());
        }
        let mut found = place::reshaped(&from, &p, &to, self.a.before);
        // Samples in front of everything else fit any shape.
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
        self.retarget(&to, &q, &new_from)?;
        self.everywhere(q)
    }

    /// Rewrites the target of a `Reshape` where it does not give the samples their place.
    fn retarget(&mut self, to: &[Dim], q: &Place, from: &[Dim]) -> Result<(), Why> {
        let copies = self.op.int("allowzero") == 0;
        let want = |k: usize| if k == q.axis { q.extent(&self.a.batch) } else { to[k].clone() };
        let entries = self.extents(1);
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
        // The samples' entry is −1 where every other extent is a number or copied.
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
        self.change(1, Change::Vector(out));
        Ok(())
    }

    pub(super) fn expand(&mut self) -> Result<Found, Why> {
        let to = self.result_shape()?;
        let missing = to.len() - self.rank(0)?.min(to.len());
        let Some(p) = self.place(0).cloned() else {
            let own = self.shape(0)?;
            return self.everywhere(self.named_by(1, |axis| axis < missing || own[axis - missing].is_one())?);
        };
        let width = self.shape(1)?.first().and_then(Dim::known).ok_or("the length of its target is unknown")? as usize;
        let q = p.at(p.axis + missing);
        // The target's entry there has to be 1, or the new extent.
        if let Some(k) = (q.axis + width).checked_sub(to.len()) {
            let right = match self.extents(1) {
                Some(e) => e[k].is_one() || e[k] == q.extent(&self.a.batch),
                None => self.a.before == 1 && q.is_pure(),
            };
            if !right {
                self.set_entry(1, width, k, Entry::Is(1));
            }
        }
        self.everywhere(q)
    }

    pub(super) fn tile(&mut self) -> Result<Found, Why> {
        let Some(p) = self.place(0).cloned() else {
            let own = self.shape(0)?;
            return self.everywhere(self.named_by(1, |axis| own.get(axis).is_some_and(Dim::is_one))?);
        };
        let repeats = self.extents(1).ok_or("its repeats are computed in the graph")?;
        // The axis is repeated as a whole.
        let times = repeats.get(p.axis).cloned().ok_or("its repeats do not fit its operand")?;
        self.everywhere(Place { outer: &times * &p.outer, ..p })
    }

    /// Where all sizes are given, that of the samples' axis follows the batch.
    pub(super) fn resize(&mut self) -> Result<Found, Why> {
        let found = self.by_axes()?;
        let (p, to) = (self.need(0)?, self.result_shape()?);
        let all_sizes = self.operands.get(3).is_some_and(Option::is_some) && self.op.attrs.ints("axes").is_none();
        let size = self.extents(3).and_then(|e| e.get(p.axis).cloned());
        if all_sizes && size != Some(p.extent(&self.a.batch)) {
            let n = to[p.axis].known().ok_or("its sizes are computed in the graph")?;
            self.set_entry(3, to.len(), p.axis, Entry::Batch(n / self.a.before));
        }
        Ok(found)
    }

    pub(super) fn flatten(&mut self) -> Result<Found, Why> {
        let (p, shape, split) = (self.need(0)?, self.shape(0)?, self.axis(1)?);
        let (before, after) = shape.split_at_checked(split).ok_or("its axis is out of range")?;
        let product = |d: &[Dim]| d.iter().fold(Dim::from(1), |p, d| &p * d);
        let (axis, joined, at) = if p.axis < split { (0, before, p.axis) } else { (1, after, p.axis - split) };
        let outer = &product(&joined[..at]) * &p.outer;
        let inner = &p.inner * &product(&joined[at + 1..]);
        self.everywhere(Place { axis, outer, inner })
    }

    /// All of the samples' axis is taken. Where its end is a number, it becomes the largest there is.
    pub(super) fn slice(&mut self) -> Result<Found, Why> {
        let found = self.by_axes()?;
        let (p, rank) = (self.need(0)?, self.rank(0)? as i64);
        let (ends, axes) = (self.listed("ends", 2)?.unwrap_or_default(), self.listed("axes", 3)?);
        let place_of = |axes: Vec<i64>| axes.iter().position(|a| (if *a < 0 { a + rank } else { *a }) == p.axis as i64);
        let at = axes.map_or(Some(p.axis).filter(|a| *a < ends.len()), place_of);
        let Some(at) = at.filter(|at| ends[*at] < i64::from(i32::MAX)) else { return Ok(found) };
        if self.operands.len() < 3 {
            return Err("it slices the samples, in the form before opset 10".into());
        }
        self.set_entry(2, ends.len(), at, Entry::Is(i64::MAX));
        Ok(found)
    }
}
