//! What a decomposition works with: the node that is written as other operators, and a builder for those.

use super::build::BuildError;
use super::*;
use crate::ir::NodeId;
use crate::refusal::Why;

/// The values that take the place of a node's results, or why it stays. Of results that nobody reads any value will do.
pub type Decomposed = Result<Vec<ValueId>, Why>;

/// The node that a decomposition is about.
pub struct Source {
    /// Its operator.
    pub op: Op,
    /// Its operands; `None` where one is left out.
    pub operands: Vec<Option<ValueId>>,
    /// The version of its operator set: what its form means.
    pub opset: i64,
    live: Vec<bool>,
}

impl Source {
    /// A node, read as it is meant in `opset`.
    pub fn of(g: &Graph, id: NodeId, opset: i64) -> Source {
        let op = g.op(id).cloned().unwrap_or_else(|| Op::new("", Attrs::new()));
        let live = g.results(id).map(|v| g.is_needed(v)).collect();
        Source { op, operands: g.operands(id).to_vec(), opset, live }
    }

    /// Operand `i`, if present.
    pub fn get(&self, i: usize) -> Option<ValueId> {
        self.operands.get(i).copied().flatten()
    }

    /// Operand `i`, which the operator requires.
    ///
    /// # Errors
    /// When it is missing.
    pub fn need(&self, i: usize) -> Result<ValueId, Why> {
        self.get(i).ok_or(Why::Missing(i))
    }

    /// Does somebody read result `i`?
    pub fn reads(&self, i: usize) -> bool {
        self.live.get(i).copied().unwrap_or(false)
    }

    /// Refuses where a result from `i` on is read; `what` they are.
    ///
    /// # Errors
    /// When one is.
    pub fn first_results_only(&self, i: usize, what: &'static str) -> Result<(), Why> {
        refuse_if((i..self.live.len()).any(|i| self.live[i]), Why::Feature(what))
    }
}

impl From<BuildError> for Why {
    fn from(e: BuildError) -> Why {
        Why::Unbuildable(e.to_string())
    }
}

/// Refuses where `condition` holds.
pub(super) fn refuse_if(condition: bool, why: Why) -> Result<(), Why> {
    if condition { Err(why) } else { Ok(()) }
}

/// A form that is not supported, in words that follow "it".
pub(super) fn unfit(what: impl Into<String>) -> Why {
    Why::Form(what.into())
}

/// The one result of a decomposition.
pub(super) fn one(v: Built) -> Decomposed {
    Ok(vec![v?])
}

/// The type of a value.
pub(super) fn type_of(b: &Builder, v: ValueId) -> Result<TensorType, Why> {
    b.graph.tensor_type(v).ok_or_else(|| {
        let value = b.graph.value(v);
        Why::UnknownType { value: value.name.clone(), known: value.ty.clone() }
    })
}

/// An extent of a value that has to be a number.
pub(super) fn extent(b: &Builder, v: ValueId, axis: usize) -> Result<i64, Why> {
    let ty = type_of(b, v)?;
    let dim = ty.shape.get(axis).ok_or_else(|| unfit(format!("takes no operand of type {ty}")))?;
    let dynamic = || Why::DynamicExtent { value: b.graph.name(v).to_string(), extent: dim.to_string() };
    dim.known().ok_or_else(dynamic)
}

/// Elements of an integer operand that has to be a constant.
pub(super) fn constant(b: &Builder, v: ValueId) -> Result<Vec<i64>, Why> {
    let computed = || Why::Computed(b.graph.name(v).to_string());
    b.graph.constant(v).and_then(|t| t.to_i64().ok()).ok_or_else(computed)
}

/// An operator that is said by its types and its decomposition alone.
pub(super) struct Composite {
    pub(super) domain: &'static str,
    pub(super) name: &'static str,
    pub(super) infer: fn(&Infer) -> Types,
    /// As what it is written, in words.
    pub(super) form: &'static str,
    pub(super) decompose: fn(&mut Builder, &Source) -> Decomposed,
    pub(super) samples: fn() -> Vec<Sample>,
}

/// The operator set of ONNX Runtime's own operators, which its optimiser leaves in the models it saves.
pub(crate) const MICROSOFT: &str = "com.microsoft";

impl OpRule for Composite {
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
        Derivative::Decompose(self.form)
    }
    fn decompose(&self, b: &mut Builder, source: &Source) -> Decomposed {
        (self.decompose)(b, source)
    }
    fn samples(&self) -> Vec<Sample> {
        let mut samples = (self.samples)();
        for s in &mut samples {
            s.op.name = self.name.to_string();
            s.op.domain = self.domain.to_string();
        }
        samples
    }
}
