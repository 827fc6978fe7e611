//! Operators that move elements: transposes, concatenations, slices, gathers.

use super::super::edit::Edit;
use super::super::edit::Entry;
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
        let rank = self.rank(0)? as i64;
        let Some(axes) = self.listed("axes", 1)? else {
            let shape = self.shape(0)?;
            let why = "it removes the axis of the samples, as every axis of extent 1";
            let mut p = self.settle(0, why, |_, p| Ok(!shape[p.axis].is_one()))?;
            p.axis -= shape[..p.axis].iter().filter(|d| d.is_one()).count();
            return self.all(p);
        };
        let rank = if inserts { rank + axes.len() as i64 } else { rank };
        let axes: Vec<usize> = axes.iter().map(|a| (if *a < 0 { a + rank } else { *a }) as usize).collect();
        if inserts {
            let p = self.need(0)?;
            let axis = (0..rank as usize).filter(|a| !axes.contains(a)).nth(p.axis);
            return self.all(p.at(axis.ok_or("its axes do not fit its operand")?));
        }
        let mut p = self.settle(0, "it removes the axis of the samples", |_, p| Ok(!axes.contains(&p.axis)))?;
        p.axis -= axes.iter().filter(|a| **a < p.axis).count();
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
        let rank = self.result_shape()?.len();
        let p = self
            .agree(&all, rank, false, |q| q.axis != axis)
            .ok_or("it joins along the samples, or they lie in different places")?;
        self.meet_others(&all, p)
    }

    pub(super) fn slice(&mut self) -> Found {
        self.only(&[0])?;
        let rank = self.rank(0)? as i64;
        let count = |list: &Option<Vec<i64>>| list.as_ref().map_or(0, Vec::len);
        let axes = match self.listed("axes", 3)? {
            Some(axes) => axes,
            None => (0..count(&self.listed("starts", 1)?).max(count(&self.listed("ends", 2)?)) as i64).collect(),
        };
        let place_of = |axis: usize| axes.iter().position(|a| (if *a < 0 { a + rank } else { *a }) == axis as i64);
        let (starts, ends, steps) = (self.listed("starts", 1)?, self.listed("ends", 2)?, self.listed("steps", 4)?);
        let one = |list: &Option<Vec<i64>>, default: i64, at: usize| {
            list.as_ref().and_then(|l| l.get(at).copied()).unwrap_or(default)
        };
        // Is all of an axis taken?
        let all = |r: &Self, p: &Place| {
            let Some(at) = place_of(p.axis) else { return Ok(true) };
            let extent = p.extent(&Dim::from(r.a.before)).known().ok_or("it slices the samples")?;
            Ok(one(&starts, 0, at) == 0 && one(&steps, 1, at) == 1 && one(&ends, 0, at) >= extent)
        };
        let p = self.settle(0, "it takes some of the samples", all)?;
        let Some(at) = place_of(p.axis) else { return self.all(p) };
        if one(&ends, 0, at) < i64::from(i32::MAX) {
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
        let rank = self.rank(0)?;
        let Ok(Some(pads)) = self.listed("pads", 1) else {
            return self.keeps_axis("", |_, _| Ok(true));
        };
        let (axes, half) = (self.listed("axes", 3)?, pads.len() / 2);
        self.keeps_axis("it pads the samples", |_, p| {
            let at = match &axes {
                Some(axes) => axes.iter().position(|a| (if *a < 0 { a + rank as i64 } else { *a }) == p.axis as i64),
                None => Some(p.axis),
            };
            Ok(at.is_none_or(|i| pads.get(i) == Some(&0) && pads.get(i + half) == Some(&0)))
        })
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
        let p = self.settle(0, "the samples do not lie along axis 0", |_, p| Ok(p.axis == 0 && p.outer.is_one()))?;
        for i in self.placed() {
            if !self.bring(i, &p, 0) {
                return Err("its operands have the samples in different places".into());
            }
        }
        let tables = if ids == 3 && self.operands.get(3).copied().flatten().is_none() { vec![1, 2] } else { vec![ids] };
        for i in tables {
            if self.operands.get(i).copied().flatten().is_some() && self.place(i).is_none() && self.rank(i)? >= 2 {
                self.meet(i, 0, &p, false)?;
            }
        }
        self.all(p)
    }

    /// Along an axis, an operand since opset 20, of a value whose last axis holds the parts of a complex number.
    pub(super) fn fourier(&mut self) -> Found {
        let rank = self.rank(0)? as i64;
        let axis = match self.listed("axis", if self.opset() >= 20 { 2 } else { usize::MAX })? {
            Some(axis) => axis.first().copied(),
            None => Some(self.int("axis", if self.opset() >= 20 { -2 } else { 1 })),
        };
        let axis = axis.map(|a| if a < 0 { a + rank } else { a }).ok_or("its axis is unknown")?;
        self.keeps_axis("it transforms along the samples", |_, p| Ok(p.axis as i64 != axis && p.axis as i64 + 1 != rank))
    }
}
