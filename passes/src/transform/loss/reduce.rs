//! From what each position says to a scalar.

use crate::ir::{DType, ValueId};
use crate::ops::build::{BuildError, Builder, Built};
use crate::ops::weighted_mean;

/// What counts, and how much.
#[derive(Clone, Copy)]
pub(super) struct Counting {
    /// Sum instead of mean.
    pub(super) sum: bool,
    /// Weights of positions, of as many axes as positions have or fewer.
    pub(super) mask: Option<ValueId>,
    /// Weights of classes, [C].
    pub(super) classes: Option<ValueId>,
    /// The mean where nothing counts.
    pub(super) of_none: f64,
}

impl Counting {
    /// Sum or mean of `each`, where `counted` says how much each of its elements counts; a mean is over `over`, or `counted` where
    /// that is absent.
    pub(super) fn reduce(&self, b: &mut Builder, each: ValueId, counted: Option<ValueId>, over: Option<ValueId>) -> Built {
        let total = match counted {
            None => each,
            Some(counted) => b.mul(each, counted)?,
        };
        match over.or(counted) {
            _ if self.sum => b.reduce_all("ReduceSum", total),
            None => b.reduce_all("ReduceMean", total),
            Some(over) => {
                let sum = b.reduce_all("ReduceSum", total)?;
                weighted_mean(b, sum, over, self.of_none)
            }
        }
    }

    /// The weights of positions in the shape and type of `like`, which has the positions' axes and perhaps those of features.
    pub(super) fn weights(
        &self,
        b: &mut Builder,
        like: ValueId,
        feature: Option<usize>,
    ) -> Result<Option<ValueId>, BuildError> {
        let dtype = b.ty(like)?.dtype;
        self.spread(b, like, dtype, feature)
    }

    /// The same in an element type.
    pub(super) fn spread(
        &self,
        b: &mut Builder,
        like: ValueId,
        dtype: DType,
        feature: Option<usize>,
    ) -> Result<Option<ValueId>, BuildError> {
        let Some(mask) = self.mask else { return Ok(None) };
        let mask = b.cast(mask, dtype)?;
        let (rank, of) = (b.ty(mask)?.rank(), b.ty(like)?.rank());
        // [N, T] weights [N, T, D] along D, [N, H, W] weights [N, C, H, W] along C.
        let mut missing: Vec<i64> = feature.filter(|_| rank < of).into_iter().map(|a| a as i64).collect();
        missing.extend((rank + missing.len()..of).map(|a| a as i64));
        let mask = b.unsqueeze(mask, &missing)?;
        b.expand_like(mask, like).map(Some)
    }

    /// The weights of positions, which `like` has the shape of, end to end: `[P]`.
    pub(super) fn flat(&self, b: &mut Builder, like: ValueId, dtype: DType) -> Result<Option<ValueId>, BuildError> {
        let Some(mask) = self.spread(b, like, dtype, None)? else { return Ok(None) };
        let all = b.ty(like)?.elements();
        b.reshape(mask, &[-1], &[all]).map(Some)
    }
}

/// a ⊙ b of what is there.
pub(super) fn product(b: &mut Builder, one: Option<ValueId>, other: Option<ValueId>) -> Result<Option<ValueId>, BuildError> {
    match (one, other) {
        (Some(one), Some(other)) => b.mul(one, other).map(Some),
        (one, other) => Ok(one.or(other)),
    }
}
