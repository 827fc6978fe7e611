//! What a pullback works with: the node's operands and results, the results' cotangents, and a builder.

use super::broadcast::{broadcast, unbroadcast};
use super::{Class, Infer, OpRule, TypeError, about};
use crate::ir::{Attrs, Graph, NodeId, NodeSite, Op, TensorType, ValueId};
use crate::ops::build::{BuildError, Builder, Built};
use crate::refusal::Hint;
use indexmap::IndexMap;

/// Why there is no derivative.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum GradError {
    /// An operator between a trainable tensor and the loss has no derivative, or none for this use of it.
    #[error("{site} has no derivative here: {reason}; it lies on the path {path}")]
    NoPullback {
        /// The node.
        site: NodeSite,
        /// Why.
        reason: String,
        /// From a trainable tensor to the loss.
        path: String,
        /// What a person may do.
        hint: Option<Hint>,
    },
    /// A pullback built an invalid node: the source's types are not those that the operator's rule expects.
    #[error("the gradient of {site} could not be built: {error}")]
    Build {
        /// The node.
        site: NodeSite,
        /// What went wrong.
        #[source]
        error: BuildError,
    },
    /// A cotangent and its primal differ in type: a fault of the pullback.
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
    Value(Cotangent),
    /// A term that a rule builds later, together with other terms ([`OpRule::gather`]).
    Deferred(&'static dyn OpRule, Deferred),
}

/// A cotangent, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub struct Cotangent {
    /// The value.
    pub value: ValueId,
    /// Where it is zero because the forward pass chose another value there.
    pub guard: Option<Guard>,
    /// May it be infinite? Then a product with a mask of zeros does not clear it.
    pub steep: bool,
}

impl Cotangent {
    /// A cotangent of which nothing is known.
    pub fn of(value: ValueId) -> Cotangent {
        Cotangent { value, guard: None, steep: false }
    }
}

/// A choice of the forward pass: a cotangent is zero where the condition holds, or where it does not. There the slopes of what was
/// guarded may be infinite or no number, and 0 · ∞ is no number.
#[derive(Clone, Copy, Debug)]
pub struct Guard {
    /// Booleans.
    pub condition: ValueId,
    /// Where the cotangent is zero.
    pub zero_where: bool,
}

/// A node's term of one operand's cotangent, to be built later.
#[derive(Clone, Copy, Debug)]
pub struct Deferred {
    /// The node.
    pub node: NodeId,
    /// The operand's number.
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
    pub(crate) result_cts: Vec<Option<Cotangent>>,
    pub(crate) wanted: &'a dyn Fn(ValueId) -> bool,
    pub(crate) cotangents: &'a mut Cotangents,
}

impl From<BuildError> for GradError {
    fn from(error: BuildError) -> GradError {
        // `differentiate` replaces the site by the node whose pullback it called.
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

    /// What a shape rule reads of the node. If the read fails, its error is the reason for no derivative.
    pub(super) fn told<T>(&self, read: impl FnOnce(&Infer) -> Result<T, TypeError>) -> Result<T, GradError> {
        about(&self.op(), self.graph().operands(self.node), self.b.graph, read).map_err(|e| self.unsupported(&e.to_string()))
    }

    /// Cotangent of result `i`, if the loss depends on it.
    pub fn try_ct(&self, i: usize) -> Option<ValueId> {
        self.result_cts.get(i).copied().flatten().map(|ct| ct.value)
    }

    /// Cotangent of result `i`.
    ///
    /// # Errors
    /// When the loss depends only on other results of the node.
    pub fn ct(&self, i: usize) -> Result<ValueId, GradError> {
        self.try_ct(i).ok_or_else(|| self.unsupported(&format!("the loss does not read its result {i}")))
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
        let guard = self.guard(v);
        let value = self.guarded(ct)?;
        let elementwise = Class::of(&self.op()).is_elementwise();
        let steep = elementwise && self.b.steep || self.rule.has_pole(self.b.graph, self.node, i);
        self.contribute(v, Contribution::Value(Cotangent { value, guard: guard.filter(|_| elementwise), steep }));
        Ok(())
    }

    /// Adds what `build` makes to operand `i`'s cotangent, if that is wanted; its type must be the operand's.
    pub fn give(&mut self, i: usize, build: impl FnOnce(&mut Builder) -> Built) -> Result<(), GradError> {
        if !self.wants(i) {
            return Ok(());
        }
        let ct = build(self.b)?;
        self.accumulate(i, ct)
    }

    /// As [`Pullback::give`], for a value of the broadcast shape, which is summed down to the operand's.
    pub fn give_broadcast(&mut self, i: usize, build: impl FnOnce(&mut Builder) -> Built) -> Result<(), GradError> {
        if !self.wants(i) {
            return Ok(());
        }
        let (ct, v) = (build(self.b)?, self.operand(i)?);
        let ct = self.guarded(ct)?;
        let ct = unbroadcast(self.b, ct, v)?;
        self.accumulate(i, ct)
    }

    /// Adds to operand `i`'s cotangent a value of the broadcast shape, summed down to the operand's.
    pub fn accumulate_broadcast(&mut self, i: usize, ct: ValueId) -> Result<(), GradError> {
        self.give_broadcast(i, |_| Ok(ct))
    }

    /// Adds to the cotangents of two operands the result's where a condition chose the one or the other, summed down to their shapes.
    pub fn accumulate_chosen(
        &mut self,
        condition: ValueId,
        where_it_holds: usize,
        elsewhere: usize,
    ) -> Result<(), GradError> {
        let ct = self.ct(0)?;
        let mut first = None;
        for (i, holds) in [(where_it_holds, true), (elsewhere, false)] {
            if !self.wants(i) {
                continue;
            }
            let kept = match first {
                // What the one operand does not get is the other's.
                Some(first) if !self.b.steep => self.b.sub(ct, first)?,
                _ => self.b.keep(ct, condition, holds)?,
            };
            first = Some(kept);
            let v = self.operand(i)?;
            let value = unbroadcast(self.b, kept, v)?;
            let guard = (value == kept).then_some(Guard { condition, zero_where: !holds });
            self.contribute(v, Contribution::Value(Cotangent { value, guard, steep: self.b.steep }));
        }
        Ok(())
    }

    /// The guard of the first result's cotangent, if it also holds for a value: the condition does not spread it, and the operator keeps
    /// elements apart. One that does not has a cotangent where its result has none, unless the result is no number there.
    fn guard(&self, v: ValueId) -> Option<Guard> {
        let guard = self.result_cts.first().copied().flatten()?.guard?;
        let g = &*self.b.graph;
        let of_nan = g.is_op(guard.condition.node, "IsNaN")
            && g.operand(guard.condition.node, 0) == Some(self.result(0))
            && guard.zero_where;
        if !of_nan && !Class::of(&self.op()).is_elementwise() {
            return None;
        }
        let (condition, shape) = (self.b.ty(guard.condition).ok()?.shape, self.b.ty(v).ok()?.shape);
        broadcast(&condition, &shape).is_ok_and(|both| both == shape).then_some(guard)
    }

    /// A term of an operand's cotangent, cleared where the result's is zero by choice.
    pub(crate) fn guarded(&mut self, ct: ValueId) -> Built {
        let Some(guard) = self.guard(ct).filter(|_| !self.is_finite_multiple(ct)) else { return Ok(ct) };
        let dtype = self.b.ty(ct)?.dtype;
        let zero = self.b.scalar(dtype, 0.0);
        let (yes, no) = if guard.zero_where { (zero, ct) } else { (ct, zero) };
        self.b.select(guard.condition, yes, no)
    }

    /// Is a term the result's cotangent times constants, or cleared already?
    fn is_finite_multiple(&self, ct: ValueId) -> bool {
        let g = &*self.b.graph;
        let mut v = ct;
        while Some(v) != self.try_ct(0) {
            let (Some(op), Some(first)) = (g.op(v.node), g.operand(v.node, 0)) else { return false };
            let constant = |i: usize| g.operand(v.node, i).is_some_and(|o| g.constant(o).is_some());
            v = match op.name.as_str() {
                "Where" => return self.guard(v).is_some_and(|guard| guard.condition == first),
                "Neg" | "Cast" | "Expand" => first,
                "Mul" | "Div" if constant(1) => first,
                "Mul" if constant(0) => match g.operand(v.node, 1) {
                    Some(second) => second,
                    None => return false,
                },
                _ => return false,
            };
        }
        true
    }

    /// Leaves this node's term of operand `i`'s cotangent to the rule's [`OpRule::gather`].
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

    /// Optional result `slot` of the primal, which is added where the source left it out. All results before it must exist.
    pub fn extra_result(&mut self, slot: u32, what: &str, ty: TensorType) -> ValueId {
        let v = self.result(slot);
        let first = self.b.graph.name(self.result(0)).to_string();
        let stem = if first.is_empty() { self.b.graph.site(self.node).name } else { first };
        let name = format!("{stem}.{what}");
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
        GradError::NoPullback {
            site: self.b.graph.site(self.node),
            reason: reason.to_string(),
            path: String::new(),
            hint: None,
        }
    }
}
