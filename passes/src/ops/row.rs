//! A rule as a constant, which is how most of them are written.

use super::*;

/// The answers to [`OpRule`].
pub(super) struct Row {
    pub(super) domain: &'static str,
    pub(super) name: &'static str,
    pub(super) infer: fn(&Infer) -> Types,
    pub(super) derivative: Derivative,
    /// Used if the derivative is a pullback.
    pub(super) pullback: fn(&mut Pullback) -> Result<(), GradError>,
    pub(super) has_pole: fn(&Graph, NodeId, usize) -> bool,
    /// Used if the derivative is a decomposition.
    pub(super) decompose: fn(&mut Builder, &Source) -> Decomposed,
    /// Used for an abstract operator.
    pub(super) lower: Lower,
    /// Without domain and name.
    pub(super) samples: fn() -> Vec<Sample>,
}

type Lower = fn(&mut Builder, NodeId) -> Result<Vec<ValueId>, BuildError>;

/// The fields that most standard operators leave out.
pub(super) const ROW: Row = Row {
    domain: "",
    name: "",
    infer: like_first,
    derivative: Derivative::Pullback,
    pullback: |p| Err(p.unsupported("this operator has no pullback")),
    has_pole: |_, _, _| false,
    decompose: |_, _| Err(unfit("has no plain form")),
    lower: |b, _| Err(b.error("lowering", TypeError("this operator is not abstract".into()))),
    samples: Vec::new,
};

impl OpRule for Row {
    fn name(&self) -> &'static str {
        self.name
    }
    fn domain(&self) -> &'static str {
        self.domain
    }
    fn infer(&self, cx: &Infer) -> Types {
        (self.infer)(cx)
    }
    fn derivative(&self) -> Derivative {
        self.derivative
    }
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        (self.pullback)(p)
    }
    fn has_pole(&self, g: &Graph, node: NodeId, operand: usize) -> bool {
        (self.has_pole)(g, node, operand)
    }
    fn decompose(&self, b: &mut Builder, source: &Source) -> Decomposed {
        (self.decompose)(b, source)
    }
    fn lower(&self, b: &mut Builder, node: NodeId) -> Result<Vec<ValueId>, BuildError> {
        (self.lower)(b, node)
    }
    fn samples(&self) -> Vec<Sample> {
        (self.samples)().into_iter().map(|s| s.of(self)).collect()
    }
}
