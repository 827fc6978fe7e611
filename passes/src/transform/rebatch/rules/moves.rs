//! Operators that move elements: transposes, concatenations, slices, gathers.

use super::super::Refusal;
use super::super::edit::Edit;
use super::super::edit::Entry;
use super::super::integers::Integers;
use super::super::place::Place;
use super::Found;
use super::Rule;
use crate::ir::Dim;

impl Rule<'_, '_> {
    pub(super) fn transpose(&mut self) -> Found {
        let (p, rank) = (self.need(0)?, self.rank(0)?);
        let perm = self.listed("perm", usize::MAX)?.unwrap_or_else(|| (0..rank as i64).rev().collect());
        let axis = perm.iter().position(|a| *a == p.axis as i64).ok_or("its permutation does not fit its operand")?;
        self.all(p.at(axis))
    }

    pub(super) fn squeeze(&mut self, inserts: bool) -> Found {
        self.only(&[0])?;
        let (mut p, rank) = (self.need(0)?, self.rank(0)? as i64);
        let Some(axes) = self.listed("axes", 1)? else {
            let shape = self.shape(0)?;
            if shape[p.axis].is_one() {
                return Err("it removes the axis of the samples, as every axis of extent 1".into());
            }
            p.axis -= shape[..p.axis].iter().filter(|d| d.is_one()).count();
            return self.all(p);
        };
        let rank = if inserts { rank + axes.len() as i64 } else { rank };
        let axes: Vec<usize> = axes.iter().map(|a| (if *a < 0 { a + rank } else { *a }) as usize).collect();
        if inserts {
            p.axis =
                (0..rank as usize).filter(|a| !axes.contains(a)).nth(p.axis).ok_or("its axes do not fit its operand")?;
        } else if axes.contains(&p.axis) {
            return Err("it removes the axis of the samples".into());
        } else {
            p.axis -= axes.iter().filter(|a| **a < p.axis).count();
        }
        self.all(p)
    }

    pub(super) fn flatten(&mut self) -> Found {
        let (p, shape) = (self.need(0)?, self.shape(0)?);
        let (axis, rank) = (self.int("axis", 1), shape.len() as i64);
        let split = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok().filter(|s| *s <= shape.len());
        let split = split.ok_or("its axis is out of range")?;
        let product = |d: &[Dim]| d.iter().fold(Dim::from(1), |p, d| &p * d);
        let (to, first, end) = if p.axis < split { (0, 0, split) } else { (1, split, shape.len()) };
        let outer = &product(&shape[first..p.axis]) * &p.outer;
        let inner = &p.inner * &product(&shape[p.axis + 1..end]);
        self.all(Place { axis: to, outer, inner })
    }

    pub(super) fn concat(&mut self) -> Found {
        let axis = self.axis_attr(0)?;
        let all: Vec<usize> = (0..self.operands.len()).collect();
        let mut found: Option<Place> = None;
        for &i in &all {
            let Some(p) = self.place(i) else { continue };
            if found.as_ref().is_some_and(|q| q != p) {
                return Err("its operands have the samples in different places".into());
            }
            found = Some(p.clone());
        }
        let p = found.ok_or("no operand carries samples")?;
        if p.axis == axis {
            return Err("it joins along the samples".into());
        }
        for i in all {
            if self.place(i).is_none() {
                self.meet(i, p.axis, &p, false)?;
            }
        }
        self.all(p)
    }

    pub(super) fn slice(&mut self) -> Found {
        self.only(&[0])?;
        let (p, rank) = (self.need(0)?, self.rank(0)? as i64);
        let count = |list: &Option<Vec<i64>>| list.as_ref().map_or(0, Vec::len);
        let axes = match self.listed("axes", 3)? {
            Some(axes) => axes,
            None => (0..count(&self.listed("starts", 1)?).max(count(&self.listed("ends", 2)?)) as i64).collect(),
        };
        let Some(at) = axes.iter().position(|a| (if *a < 0 { a + rank } else { *a }) == p.axis as i64) else {
            return self.all(p);
        };
        let (starts, ends, steps) = (self.listed("starts", 1)?, self.listed("ends", 2)?, self.listed("steps", 4)?);
        let one = |list: &Option<Vec<i64>>, default: i64| list.as_ref().and_then(|l| l.get(at).copied()).unwrap_or(default);
        let extent = p.extent(&Dim::from(self.a.before)).known().ok_or("it slices the samples")?;
        let (start, end) = (one(&starts, 0), one(&ends, 0));
        if start != 0 || one(&steps, 1) != 1 || end < extent {
            return Err("it takes some of the samples".into());
        }
        if end < i64::from(i32::MAX) {
            if self.operands.len() < 3 {
                return Err("it slices the samples, in the form before opset 10".into());
            }
            let ends = ends.unwrap_or_default();
            let entries = ends.iter().enumerate().map(|(i, e)| Entry::Is(if i == at { i64::MAX } else { *e })).collect();
            self.edits.push(Edit::Vector { operand: 2, entries });
        }
        self.all(p)
    }

    pub(super) fn pad(&mut self) -> Found {
        self.only(&[0])?;
        let (p, rank) = (self.need(0)?, self.rank(0)?);
        if let Ok(Some(pads)) = self.listed("pads", 1) {
            let at = match self.listed("axes", 3)? {
                Some(axes) => axes.iter().position(|a| (if *a < 0 { a + rank as i64 } else { *a }) == p.axis as i64),
                None => Some(p.axis),
            };
            let half = pads.len() / 2;
            if at.is_some_and(|i| pads.get(i) != Some(&0) || pads.get(i + half) != Some(&0)) {
                return Err("it pads the samples".into());
            }
        }
        self.all(p)
    }

    pub(super) fn gather(&mut self) -> Found {
        let axis = self.axis_attr(0)?;
        let width = self.rank(1)?;
        match (self.place(0).cloned(), self.place(1).cloned()) {
            (None, Some(q)) => self.all(q.at(axis + q.axis)),
            (Some(p), None) if p.axis < axis => self.all(p),
            (Some(p), None) if p.axis > axis => self.all(p.at(p.axis + width - 1)),
            (Some(p), None) => {
                let q = self.own_indices(&p, None)?;
                self.all(q.at(axis + q.axis))
            }
            _ => Err("its indices depend on the samples and so does what they index".into()),
        }
    }

    /// Indices into the one sample there was, the same for every sample: each gets its own. Returns where the indices then carry samples.
    /// `coordinate`: which element of the last axis of the indices names the sample, and how many there are.
    pub(super) fn own_indices(&mut self, p: &Place, coordinate: Option<(usize, usize)>) -> Result<Place, Refusal> {
        let shape = self.shape(1)?;
        let inner = p.inner.known().filter(|_| p.outer.is_one()).ok_or("it indexes the samples inside an axis")?;
        if self.a.before != 1 {
            return Err("it indexes the samples".into());
        }
        let picked = |k: usize| coordinate.is_none_or(|(c, m)| k % m == c);
        let values = self.integers(1).and_then(Integers::numbers);
        let from_front = values.is_some_and(|v| v.iter().enumerate().all(|(k, i)| !picked(k) || (0..inner).contains(i)));
        let axes = if coordinate.is_some() { shape.len() - 1 } else { shape.len() };
        let free: Vec<usize> = (0..axes).filter(|i| shape[*i].is_one()).collect();
        self.answers = free.len();
        let axis = *free.get(self.answer).ok_or("it takes one sample")?;
        self.edits.push(Edit::OwnIndices { operand: 1, axis, coordinate, step: inner, from_front });
        Ok(Place::pure(axis))
    }

    pub(super) fn elements_along(&mut self, name: &str) -> Found {
        let axis = self.axis_attr(0)?;
        let all: Vec<usize> = if name == "GatherElements" { vec![0, 1] } else { vec![0, 1, 2] };
        let mut found: Option<Place> = None;
        for &i in &all {
            let Some(p) = self.place(i) else { continue };
            if p.axis == axis || found.as_ref().is_some_and(|q| q != p) {
                return Err("it indexes along the samples, or its operands have them in different places".into());
            }
            found = Some(p.clone());
        }
        let p = found.ok_or("no operand carries samples")?;
        for i in all {
            if self.place(i).is_none() {
                self.meet(i, p.axis, &p, false)?;
            }
        }
        self.all(p)
    }

    pub(super) fn gather_nd(&mut self) -> Found {
        let shared = self.int("batch_dims", 0) as usize;
        let indices = self.shape(1)?;
        let (last, m) =
            (indices.len() - 1, indices.last().and_then(Dim::known).ok_or("its indices' length is unknown")? as usize);
        match (self.place(0).cloned(), self.place(1).cloned()) {
            (None, Some(q)) if q.axis >= shared && q.axis < last => self.all(q),
            (p, q) if p.as_ref().or(q.as_ref()).is_some_and(|p| p.axis < shared) => {
                let first = p.clone().or(q.clone()).ok_or("no operand carries samples")?;
                if p.is_some() && q.is_some() && p != q {
                    return Err("its operands have the samples in different places".into());
                }
                for i in [0, 1] {
                    if self.place(i).is_none() {
                        self.meet(i, first.axis, &first, false)?;
                    }
                }
                self.all(first)
            }
            (Some(p), None) if p.axis >= shared + m => self.all(p.at(last + p.axis - shared - m)),
            (Some(p), None) => {
                let q = self.own_indices(&p, Some((p.axis - shared, m)))?;
                self.all(q)
            }
            _ => Err("its indices depend on the samples and so does what they index".into()),
        }
    }

    pub(super) fn one_hot(&mut self) -> Found {
        self.only(&[0])?;
        let (p, rank) = (self.need(0)?, self.rank(0)? as i64 + 1);
        let axis = self.int("axis", -1);
        let axis = (if axis < 0 { axis + rank } else { axis }) as usize;
        self.all(p.at(p.axis + (p.axis >= axis) as usize))
    }

    pub(super) fn rotary(&mut self) -> Found {
        // Position ids: operand 3 of the standard operator, 1 of ONNX Runtime's.
        let ids = if self.a.g.op(self.id).is_some_and(|op| op.domain.is_empty()) { 3 } else { 1 };
        self.only(&[0, 1, 2, 3])?;
        let p = self.need(0)?;
        if p != Place::pure(0) {
            return Err("the samples do not lie along axis 0".into());
        }
        let tables = if ids == 3 && self.operands.get(3).copied().flatten().is_none() { vec![1, 2] } else { vec![ids] };
        for i in tables {
            if self.operands.get(i).copied().flatten().is_some() && self.place(i).is_none() && self.rank(i)? >= 2 {
                self.meet(i, 0, &p, false)?;
            }
        }
        self.all(p)
    }
}
