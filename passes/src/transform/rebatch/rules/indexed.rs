//! Gathers and scatters: indices into what belongs to one sample, and indices that name the sample itself.

use super::super::edit::{Change, OwnIndices};
use super::super::place::Place;
use super::bring::Effort;
use super::{Found, Visit};
use crate::ir::Dim;
use crate::refusal::Why;

impl Visit<'_, '_> {
    pub(super) fn gather(&mut self) -> Result<Found, Why> {
        let axis = self.axis(0)?;
        if self.place(0).is_some() && self.place(1).is_some() {
            // Each sample's indices point into its own part of the axis.
            let what = self.shape(0)?.get(axis).cloned().ok_or("its axis is out of range")?;
            let p = Place::whole(axis, what);
            if !self.bring(0, &p, 0) {
                return Err("its indices depend on the samples and so does what they index".into());
            }
            let q = self.own_indices(&p, None)?;
            return self.everywhere(q.at(axis + q.axis));
        }
        if let Some(p) = self.place(0).cloned().filter(|p| p.axis == axis) {
            let (edits, answers) = (self.edits.len(), self.answers);
            match self.own_indices(&p, None) {
                Ok(q) => return self.everywhere(q.at(axis + q.axis)),
                Err(why) => {
                    self.edits.truncate(edits);
                    self.answers = answers;
                    if self.settle(0, "", |_, p| Ok(p.axis != axis)).is_err() {
                        let q = self.repeat_indices().ok_or(why).and_then(|()| self.own_indices(&p, None))?;
                        return self.everywhere(q.at(axis + q.axis));
                    }
                }
            }
        }
        self.by_axes()
    }

    /// Gives each sample indices of its own into its part of an axis. Where the indices are the same for every sample, one of their axes
    /// of extent 1 will count samples. Returns where the indices then carry samples.
    /// `coordinate`: which element of the last axis of the indices names the part, and how many elements there are.
    fn own_indices(&mut self, p: &Place, coordinate: Option<(usize, usize)>) -> Result<Place, Why> {
        let shape = self.shape(1)?;
        let step = p.inner.known().filter(|_| p.outer.is_one()).ok_or("it indexes the samples inside an axis")?;
        if self.a.before != 1 {
            return Err("it indexes the samples".into());
        }
        let picked = |k: usize| coordinate.is_none_or(|(c, m)| k % m == c);
        let values = self.numbers(1);
        let from_front = values.is_some_and(|v| v.iter().enumerate().all(|(k, i)| !picked(k) || (0..step).contains(i)));
        let axes = if coordinate.is_some() { shape.len() - 1 } else { shape.len() };
        let place = match self.place(1).cloned() {
            Some(_) => self.settle(1, "its indices carry the samples inside an axis", |_, q| {
                Ok(q.axis < axes && q.outer.is_one() && q.inner.known().is_some())
            })?,
            None => {
                let free: Vec<usize> = (0..axes).filter(|i| shape[*i].is_one()).collect();
                self.answers = free.len();
                Place::pure(*free.get(self.answer).ok_or("it takes one sample")?)
            }
        };
        let inner = place.inner.known().ok_or("its indices carry the samples inside an axis")?;
        self.change(1, Change::OwnIndices(OwnIndices { axis: place.axis, inner, coordinate, step, from_front }));
        Ok(place)
    }

    /// As [`Visit::own_indices`] for coordinates, which are repeated where none of their axes before `last` is free.
    fn own_coordinates(&mut self, p: &Place, last: usize, coordinate: (usize, usize)) -> Result<Place, Why> {
        match self.own_indices(p, Some(coordinate)) {
            Err(why) if last > 0 => {
                self.repeat_indices().ok_or(why)?;
                self.own_indices(p, Some(coordinate))
            }
            found => found,
        }
    }

    /// Repeats indices that are the same for every sample, along their first axis.
    fn repeat_indices(&mut self) -> Option<()> {
        let extent = self.shape(1).ok()?.first().filter(|d| d.known().is_some())?.clone();
        if self.effort == Effort::Asis || self.place(1).is_some() {
            return None;
        }
        self.change(1, Change::Repeat { axis: 0 });
        self.moved.insert(1, (Place::whole(0, extent), 0));
        Some(())
    }

    pub(super) fn gather_nd(&mut self) -> Result<Found, Why> {
        let shared = self.op.int("batch_dims") as usize;
        let (last, m) = self.coordinates()?;
        let apart = |p: &Place, alone: bool| p.axis < shared || (alone && p.axis >= shared + m);
        match (self.place(0), self.place(1)) {
            (Some(p), q) if !apart(p, q.is_none()) => {
                let why = "its indices depend on the samples and so does what they index";
                let p = self.settle(0, why, |_, p| Ok((shared..shared + m).contains(&p.axis)))?;
                let q = self.own_coordinates(&p, last, (p.axis - shared, m))?;
                self.everywhere(q)
            }
            _ => self.by_axes(),
        }
    }

    /// The last axis of the indices, and its extent.
    fn coordinates(&self) -> Result<(usize, usize), Why> {
        let indices = self.shape(1)?;
        let m = indices.last().and_then(Dim::known).ok_or("its indices' length is unknown")?;
        Ok((indices.len() - 1, m as usize))
    }

    /// The operands are a value that is written to, coordinates of slices of it, and the slices.
    pub(super) fn scatter_nd(&mut self) -> Result<Found, Why> {
        let (last, m) = self.coordinates()?;
        let rank = self.rank(0)?;
        // Where the samples of the slices would lie in the value they are written to.
        let written = self.place(2).and_then(|u| u.axis.checked_sub(last).map(|slice| u.at(m + slice)));
        let present = self.place(0).cloned().or(written);
        let shape = self.shape(0)?;
        let wholes = (0..rank).rev().map(|axis| Place::whole(axis, shape[axis].clone()));
        let candidates: Vec<Place> = present.into_iter().chain(wholes).collect();
        let mut first = None;
        for p in candidates {
            let (edits, moved) = (self.edits.len(), self.moved.clone());
            self.answers = 1;
            match self.scatter_at(&p, last, m) {
                Ok(()) => return self.everywhere(p),
                Err(why) => drop(first.get_or_insert(why)),
            }
            self.edits.truncate(edits);
            self.moved = moved;
        }
        Err(first.unwrap_or_else(|| "no operand carries samples".into()))
    }

    /// A scatter into a value with its samples at `p`: inside the slices, or among what the indices name.
    fn scatter_at(&mut self, p: &Place, last: usize, m: usize) -> Result<(), Why> {
        let slices = if p.axis >= m {
            if self.place(1).is_some() {
                return Err("its indices depend on the samples".into());
            }
            p.at(last + p.axis - m)
        } else {
            self.own_coordinates(p, last, (p.axis, m))?
        };
        for (i, q) in [(0, p), (2, &slices)] {
            if self.place(i).is_none() {
                self.meet(i, q.axis, q, false)?;
            } else if !self.bring(i, q, 0) {
                return Err("its operands have the samples in different places".into());
            }
        }
        Ok(())
    }
}
