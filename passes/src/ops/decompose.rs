//! What decompositions share: the node that is written as other operators, and its refusals.

use super::*;

/// The values that replace a node's results, or why the node stays. A result that nobody reads may be any value.
pub type Decomposed = Result<Vec<ValueId>, Why>;

/// The node that is decomposed.
pub struct Source {
    /// Its operator.
    pub op: Op,
    /// Its operands; `None` where one is left out.
    pub operands: Vec<Option<ValueId>>,
    /// The version of its operator set, which decides what the node means.
    pub opset: i64,
    live: Vec<bool>,
}

impl Source {
    /// A node of a graph, with the meaning that it has in `opset`.
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

    /// Is result `i` read?
    pub fn reads(&self, i: usize) -> bool {
        self.live.get(i).copied().unwrap_or(false)
    }

    /// Refuses if a result from `i` on is read; `what` names these results.
    ///
    /// # Errors
    /// When one is read.
    pub fn first_results_only(&self, i: usize, what: &'static str) -> Result<(), Why> {
        refuse_if((i..self.live.len()).any(|i| self.live[i]), Why::Feature(what))
    }
}

impl From<BuildError> for Why {
    fn from(e: BuildError) -> Why {
        Why::Unbuildable(e.to_string())
    }
}

/// Refuses if `condition` holds.
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
    b.graph.tensor_type(v).ok_or_else(|| Why::UnknownType(b.graph.untyped(v)))
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
