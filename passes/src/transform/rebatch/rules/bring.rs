//! Samples brought to another axis, where an operator cannot take them where they are: by one `Reshape` where memory stays as it is,
//! else by a `Transpose` between two. In the source, whose batch is 1, nothing moves, so a sample's value stays what it was.

use super::super::edit::Change;
use super::super::place::Place;
use super::Visit;
use crate::analysis::types::is_unnamed;
use crate::ir::{Dim, ValueId, ValueType};
use crate::ops::eval::{Array, Element, Facts, Poly};
use crate::refusal::Why;
use std::borrow::Cow;

/// How far a rule may go to bring operands together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Effort {
    /// Operands are taken as they are.
    #[default]
    Asis,
    /// Samples are moved where memory stays as it is.
    Reshapes,
    /// Samples are moved in memory.
    Transposes,
}

impl Effort {
    /// The next further effort.
    pub(in super::super) fn more(self) -> Option<Effort> {
        match self {
            Effort::Asis => Some(Effort::Reshapes),
            Effort::Reshapes => Some(Effort::Transposes),
            Effort::Transposes => None,
        }
    }
}

impl Visit<'_, '_> {
    /// Moves the samples of an operand, after `lead` axes of extent 1 are put in front of it. Returns whether that may be done.
    pub(super) fn bring(&mut self, i: usize, to: &Place, lead: usize) -> bool {
        let (Some(from), Ok(own)) = (self.place(i).cloned(), self.shape(i)) else { return false };
        if from == *to && lead == 0 {
            return true;
        }
        let mut shape = vec![Dim::from(1); lead];
        shape.extend(own);
        let fits = to.outer.is_one() && shape.get(to.axis).is_some_and(|d| *d == to.inner && !is_unnamed(d));
        let stays = from.at(from.axis + lead).stays(to, &shape);
        if !fits || self.a.before != 1 || self.effort < if stays { Effort::Reshapes } else { Effort::Transposes } {
            return false;
        }
        let before = self.moved.get(&i).map_or(0, |m| m.1);
        self.change(i, Change::Move { from, to: to.clone(), lead });
        self.moved.insert(i, (to.clone(), before + lead));
        true
    }

    /// The place of an operand's samples, moved to where `holds` if it does not hold where they are.
    pub(super) fn settle(
        &mut self,
        i: usize,
        why: &str,
        holds: impl Fn(&Self, &Place) -> Result<bool, Why>,
    ) -> Result<Place, Why> {
        let p = self.need(i)?;
        if holds(self, &p)? {
            return Ok(p);
        }
        let shape = self.shape(i)?;
        let mut places: Vec<Place> = shape.iter().enumerate().map(|(axis, d)| Place::whole(axis, d.clone())).collect();
        places.sort_by_key(|q| (!p.stays(q, &shape_beside(&shape, &p)), !q.is_pure(), q.axis));
        for q in places {
            if holds(self, &q)? && self.bring(i, &q, 0) {
                return Ok(q);
            }
        }
        Err(why.into())
    }

    /// Takes integers that depend on the batch for what they were in the source. Returns whether there were any.
    pub(super) fn take_as_was(&mut self) -> bool {
        let symbol = self.a.batch.symbols().next().unwrap_or_default().to_string();
        let before = Dim::from(self.a.before);
        let mut any = false;
        for i in 0..self.operands.len() {
            if !self.depends(i) {
                continue;
            }
            let Some(Some(known)) = self.integers(i) else { return false };
            let was = known.extents().map(|v| v.iter().map(|d| d.substitute(&symbol, &before)).collect::<Vec<_>>());
            let numbers: Option<Vec<i64>> = was.and_then(|v| v.iter().map(Dim::known).collect());
            let Some(values) = numbers else { return false };
            let elements = values.iter().copied().map(Element::Int).collect();
            let was = Array { elements, ..known.clone() };
            self.change(i, Change::Was { dims: was.dims.clone(), values });
            self.was.insert(i, Some(was));
            any = true;
        }
        any
    }
}

/// The shape of a value without its samples, from its shape in the source.
pub(super) fn shape_beside(shape: &[Dim], p: &Place) -> Vec<Dim> {
    let mut own = shape.to_vec();
    if let Some(d) = own.get_mut(p.axis) {
        *d = p.beside();
    }
    own
}

impl Facts<Poly> for Visit<'_, '_> {
    fn array(&self, v: ValueId) -> Option<Cow<'_, Array<Poly>>> {
        let own = self.operands.iter().position(|o| *o == Some(v)).and_then(|i| self.was.get(&i));
        own.or_else(|| self.a.integers.get(&v))?.as_ref().map(Cow::Borrowed)
    }

    fn ty(&self, v: ValueId) -> ValueType {
        self.a.ty(v)
    }
}
