//! The loss scale of float16: small gradients would become zero in float16, so the loss is multiplied by a number before it is
//! differentiated, and the float32 gradients are divided by it. A step whose gradients are not finite changes no parameter and no moment
//! and halves the scale; after a number of good steps in a row it doubles. Scale, count and the number of skipped updates are state.

use super::optimizer::StateTensor;
use crate::contract::StateKind;
use crate::ir::{DType, Graph, Tensor, ValueId};
use crate::ops::build::{BuildError, Builder, Built};

/// The first scale.
const FIRST: f64 = 65536.0;

/// Good updates after which the scale doubles.
const PATIENCE: i64 = 2000;

/// The scale and its counters, as the graph reads them.
#[derive(Clone, Copy, Debug)]
pub struct LossScale {
    scale: ValueId,
    good: ValueId,
    /// Number of updates that were skipped before this step.
    pub(super) skipped: ValueId,
}

impl LossScale {
    /// Adds the state.
    pub fn add(g: &mut Graph) -> LossScale {
        let count = |g: &mut Graph, name: &str| g.add_initializer(name, Tensor::i64s(&[], &[0]), true);
        LossScale {
            scale: g.add_initializer("ancre.loss_scale", Tensor::floats(DType::F32, &[], &[FIRST]), true),
            good: count(g, "ancre.good_steps"),
            skipped: count(g, "ancre.skipped_steps"),
        }
    }

    /// The loss times the scale.
    ///
    /// # Errors
    /// When the loss has no type.
    pub fn scaled(&self, g: &mut Graph, loss: ValueId) -> Built {
        let mut b = Builder::new(g, "ancre/loss_scale");
        let dtype = b.ty(loss)?.dtype;
        let scale = b.cast(self.scale, dtype)?;
        b.mul(loss, scale)
    }

    /// A gradient of the scaled loss divided by the scale.
    ///
    /// # Errors
    /// When the gradient has no type.
    pub fn unscaled(&self, g: &mut Graph, gradients: &mut [ValueId]) -> Result<(), BuildError> {
        let mut b = Builder::new(g, "ancre/loss_scale");
        // Exact: the scale is a power of two.
        let inverse = b.from_number_div(1.0, self.scale)?;
        for v in gradients {
            let dtype = b.ty(*v)?.dtype;
            let inverse = b.cast(inverse, dtype)?;
            *v = b.mul(*v, inverse)?;
        }
        Ok(())
    }

    /// Adds the next scale and counters; gives whether the update counts. `boundary`: is this micro-batch the last of its update?
    pub(super) fn judge(
        &self,
        b: &mut Builder,
        norm: ValueId,
        boundary: Option<ValueId>,
        states: &mut Vec<StateTensor>,
    ) -> Built {
        b.prefix = "ancre/loss_scale".into();
        let largest = b.scalar(DType::F32, f32::MAX.into());
        // No comparison with no number holds.
        let finite = b.op("LessOrEqual", &[norm, largest])?;
        let (zero, one, patience) = (b.int(0), b.int(1), b.int(PATIENCE));
        let more = b.add(self.good, one)?;
        let is_due = b.op("Equal", &[more, patience])?;
        let start_again = b.select(is_due, zero, more)?;
        let good = b.select(finite, start_again, zero)?;
        let (double, half) = (b.scale(self.scale, 2.0)?, b.scale(self.scale, 0.5)?);
        let kept = b.select(is_due, double, self.scale)?;
        let scale = b.select(finite, kept, half)?;
        let again = b.add(self.skipped, one)?;
        let skipped = b.select(finite, self.skipped, again)?;
        for (value, next) in [(self.scale, scale), (self.good, good), (self.skipped, skipped)] {
            let next = match boundary {
                Some(boundary) => b.select(boundary, next, value)?,
                None => next,
            };
            states.push(StateTensor { value, next: Some(next), kind: StateKind::LossScale });
        }
        match boundary {
            Some(boundary) => b.op("And", &[boundary, finite]),
            None => Ok(finite),
        }
    }
}
