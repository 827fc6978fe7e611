//! `Flatten`, which joins axes, and `Slice`, whose end may be the old number of samples.

use super::super::edit::Edit;
use super::super::edit::Entry;
use super::super::place::Place;
use super::Found;
use super::Rule;
use crate::ir::Dim;

impl Rule<'_, '_> {
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

    /// Of the samples' axis all is taken, whose end may be a number: it becomes the end of whatever there is.
    pub(super) fn slice(&mut self) -> Found {
        let found = self.by_axes()?;
        let (p, rank) = (self.need(0)?, self.rank(0)? as i64);
        let (ends, axes) = (self.listed("ends", 2)?.unwrap_or_default(), self.listed("axes", 3)?);
        let place_of = |axes: Vec<i64>| axes.iter().position(|a| (if *a < 0 { a + rank } else { *a }) == p.axis as i64);
        let at = axes.map_or(Some(p.axis).filter(|a| *a < ends.len()), place_of);
        let Some(at) = at.filter(|at| ends[*at] < i64::from(i32::MAX)) else { return Ok(found) };
        if self.operands.len() < 3 {
            return Err("it slices the samples, in the form before opset 10".into());
        }
        let entries = ends.iter().enumerate().map(|(i, e)| Entry::Is(if i == at { i64::MAX } else { *e })).collect();
        self.edits.push(Edit::Vector { operand: 2, entries });
        Ok(found)
    }
}
