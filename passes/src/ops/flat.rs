//! Operators of which there is no more to say than their types: their derivative is zero wherever it exists.

use super::*;

/// One of them.
pub(super) struct Flat {
    pub(super) name: &'static str,
    pub(super) since: i64,
    pub(super) infer: fn(&Infer) -> Types,
    /// Attributes and operands of the applications by which the types are tested.
    pub(super) applied: fn() -> Vec<(Attrs, Vec<SampleOperand>)>,
}

impl OpRule for Flat {
    fn name(&self) -> &'static str {
        self.name
    }
    fn since(&self) -> i64 {
        self.since
    }
    fn infer(&self, cx: &Infer) -> Types {
        (self.infer)(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::Zero
    }
    fn samples(&self) -> Vec<Sample> {
        (self.applied)().into_iter().map(|(attrs, operands)| Sample::of(self.name, attrs, operands).shape_only()).collect()
    }
}
