//! Sequences of tensors: all parts of one have the samples at one place.

use super::{Found, Visit};
use crate::refusal::Why;

impl Visit<'_, '_> {
    pub(super) fn split_to_sequence(&self) -> Result<Found, Why> {
        let p = self.need(0)?;
        let axis = self.axis(0)?;
        if axis == p.axis {
            return Err("it splits the samples".into());
        }
        // Without a list of sizes a part may lack the axis.
        let lacks = self.operands.get(1).copied().flatten().is_none() && self.op.int("keepdims") == 0;
        Ok(Found::Sequence(p.at(p.axis - (lacks && axis < p.axis) as usize)))
    }

    pub(super) fn sequence_construct(&self) -> Result<Found, Why> {
        let p = self.need(0)?;
        match (1..self.operands.len()).find(|i| self.place(*i) != Some(&p)) {
            Some(i) => Err(format!("operands 0 and {i} have the samples in different places, or only one has any").into()),
            None => Ok(Found::Sequence(p)),
        }
    }

    pub(super) fn sequence_at(&self) -> Result<Found, Why> {
        self.everywhere(self.need(0)?)
    }
}
