//! What a pullback works with: the node's operands and results, the results' cotangents, and a builder.

use super::OpRule;
use super::broadcast::unbroadcast;
use crate::ir::{Attrs, Graph, NodeId, NodeSite, Op, TensorType, ValueId};
use crate::ops::build::{BuildError, Builder};
use indexmap::IndexMap;

/// Why there is no derivative.
#[derive(Debug, Clone, thiserror::Error)]
pub enum GradError {
    /// An operator on a differentiable path has no pullback, or not for this use of it.
    #[error("{site} has no derivative here: {reason}; it lies on the path {path}")]
    NoPullback {
        /// The node.
        site: NodeSite,
        /// Why.
        reason: String,
        /// From a trainable tensor to the loss.
        path: String,
    },
    /// A pullback built a node that makes no sense; the source's types are not what the operator's rule expects.
    #[error("the gradient of {site} could not be built: {error}")]
    Build {
        /// The node.
        site: NodeSite,
        /// What went wrong.
        #[source]
        error: BuildError,
    },
    /// A cotangent does not have its primal's type: a fault of the pullback.
    #[error("the gradient of {site} gives operand {operand} a cotangent of type {got}, its value has {want}")]
    Type {
        /// The node.
        site: NodeSite,
        /// Operand number.
        operand: usize,
        /// Cotangent's type.
        got: String,
        /// Primal's type.
        want: String,
    },
}

/// One term of a value's cotangent.
#[derive(Clone)]
pub enum Contribution {
    /// A cotangent of the value's own type.
    Value(ValueId),
    /// What a rule will build together with its other terms ([`OpRule::gather`]).
    Deferred(&'static dyn OpRule, Deferred),
}

/// A node's part in the cotangent of one of its operands, not built yet.
#[derive(Clone, Copy, Debug)]
pub struct Deferred {
    /// The node.
    pub node: NodeId,
    /// Which operand the value is.
    pub operand: usize,
    /// Cotangent of the node's first result.
    pub ct: ValueId,
}

/// Cotangents gathered so far.
pub type Cotangents = IndexMap<ValueId, Vec<Contribution>>;

/// The view of one node that its pullback gets.
pub struct Pullback<'a, 'g> {
    /// Builds the gradient's nodes.
    pub b: &'a mut Builder<'g>,
    pub(crate) node: NodeId,
    pub(crate) rule: &'static dyn OpRule,
    pub(crate) result_cts: Vec<Option<ValueId>>,
    pub(crate) wanted: &'a dyn Fn(ValueId) -> bool,
    pub(crate) cotangents: &'a mut Cotangents,
}

impl From<BuildError> for GradError {
    fn from(error: BuildError) -> GradError {
        // The driver replaces the site by the node it was working on.
        GradError::Build { site: NodeSite { name: error.prefix.clone(), op: error.op.clone() }, error }
    }
}

impl Pullback<'_, '_> {
    /// The graph.
    pub fn graph(&self) -> &Graph {
        self.b.graph
    }

    /// The node whose pullback this is.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// The node's operator.
    pub fn op(&self) -> Op {
        self.b.graph.op(self.node).cloned().unwrap_or_else(|| Op::new("", Attrs::new()))
    }

    /// The node's attributes.
    pub fn attrs(&self) -> Attrs {
        self.b.graph.op(self.node).map(|o| o.attrs.clone()).unwrap_or_default()
    }

    /// Number of operands.
    pub fn operand_count(&self) -> usize {
        self.b.graph.node(self.node).operand_count()
    }

    /// Operand `i`, if present.
    pub fn try_operand(&self, i: usize) -> Option<ValueId> {
        self.b.graph.operand(self.node, i)
    }

    /// Operand `i`.
    ///
    /// # Errors
    /// When it is missing.
    pub fn operand(&self, i: usize) -> Result<ValueId, GradError> {
        self.try_operand(i).ok_or_else(|| self.unsupported(&format!("operand {i} is missing")))
    }

    /// Result `i` of the primal.
    pub fn result(&self, i: u32) -> ValueId {
        self.b.graph.result(self.node, i)
    }

    /// Type of operand `i`.
    pub fn ty(&self, i: usize) -> Result<TensorType, GradError> {
        Ok(self.b.ty(self.operand(i)?)?)
    }

    /// Elements of operand `i`, which must be an integer constant.
    pub fn ints(&self, i: usize) -> Result<Vec<i64>, GradError> {
        let v = self.operand(i)?;
        super::constant_ints(self.b.graph, v)
            .ok_or_else(|| self.unsupported(&format!("operand {i} (`{}`) is computed in the graph", self.b.graph.name(v))))
    }

    /// Cotangent of result `i`, if the loss depends on it.
    pub fn try_ct(&self, i: usize) -> Option<ValueId> {
        self.result_cts.get(i).copied().flatten()
    }

    /// Cotangent of result `i`.
    ///
    /// # Errors
    /// When the loss does not depend on that result (only another one of the node's).
    pub fn ct(&self, i: usize) -> Result<ValueId, GradError> {
        self.try_ct(i).ok_or_else(|| self.unsupported(&format!("the loss reads another result than {i}")))
    }

    /// Is operand `i`'s cotangent needed?
    pub fn wants(&self, i: usize) -> bool {
        self.try_operand(i).is_some_and(|v| (self.wanted)(v))
    }

    /// Adds to operand `i`'s cotangent; its type must be the operand's.
    pub fn accumulate(&mut self, i: usize, ct: ValueId) -> Result<(), GradError> {
        let v = self.operand(i)?;
        if !(self.wanted)(v) {
            return Ok(());
        }
        let (got, want) = (self.b.ty(ct)?, self.b.ty(v)?);
        if !got.may_be(&want) {
            let site = self.b.graph.site(self.node);
            return Err(GradError::Type { site, operand: i, got: got.to_string(), want: want.to_string() });
        }
        self.contribute(v, Contribution::Value(ct));
        Ok(())
    }

    /// Adds to operand `i`'s cotangent a value of the broadcast shape, summed down to the operand's.
    pub fn accumulate_broadcast(&mut self, i: usize, ct: ValueId) -> Result<(), GradError> {
        if !self.wants(i) {
            return Ok(());
        }
        let v = self.operand(i)?;
        let ct = unbroadcast(self.b, ct, v)?;
        self.accumulate(i, ct)
    }

    /// Leaves operand `i`'s cotangent, of which `ct` is this node's part, to the rule's [`OpRule::gather`].
    pub fn defer(&mut self, i: usize, ct: ValueId) {
        if let Some(v) = self.try_operand(i) {
            self.contribute(v, Contribution::Deferred(self.rule, Deferred { node: self.node, operand: i, ct }));
        }
    }

    fn contribute(&mut self, v: ValueId, c: Contribution) {
        if (self.wanted)(v) {
            self.cotangents.entry(v).or_default().push(c);
        }
    }

    /// Result `slot` of the primal, which becomes one of its results where the source did not ask for it (optional results
    /// that the gradient reads). All before it must be there.
    pub fn extra_result(&mut self, slot: u32, what: &str, ty: TensorType) -> ValueId {
        let v = self.result(slot);
        let name = format!("{}.{what}", self.b.graph.name(self.result(0)));
        match self.b.graph.node(self.node).results().get(slot as usize).map(|r| r.name.is_empty()) {
            None => {
                self.b.graph.push_result(self.node, &name, ty.into());
            }
            Some(nameless) => {
                if nameless {
                    self.b.graph.rename(v, &name);
                }
                self.b.graph.set_type(v, ty.into());
            }
        }
        v
    }

    /// The error for a use of the operator that has no derivative.
    pub fn unsupported(&self, reason: &str) -> GradError {
        GradError::NoPullback { site: self.b.graph.site(self.node), reason: reason.to_string(), path: String::new() }
    }
}
