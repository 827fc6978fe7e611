//! Reading: nodes and values, who reads what, constants.

use super::{Graph, Kind, Node, NodeId, NodeSite, Op, Operands, Output, Value, ValueId};
use crate::ir::tensor::Tensor;
use crate::ir::types::{TensorType, ValueType};
use petgraph::Direction;
use petgraph::visit::EdgeRef;
use smallvec::SmallVec;

impl Graph {
    /// The node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.g[id.0]
    }

    /// The node, to change its name or kind.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        &mut self.g[id.0]
    }

    /// The operator of a node; `None` for inputs and initializers.
    pub fn op(&self, id: NodeId) -> Option<&Op> {
        self.g[id.0].op()
    }

    /// Is the node this operator of the standard domain?
    pub fn is_op(&self, id: NodeId, name: &str) -> bool {
        self.op(id).is_some_and(|o| o.is(name))
    }

    /// Is there such a value?
    pub fn contains(&self, v: ValueId) -> bool {
        self.g.node_weight(v.node.0).is_some_and(|n| (v.slot as usize) < n.results.len())
    }

    /// The value.
    pub fn value(&self, v: ValueId) -> &Value {
        &self.g[v.node.0].results[v.slot as usize]
    }

    /// The value's name.
    pub fn name(&self, v: ValueId) -> &str {
        &self.value(v).name
    }

    /// The value's type, if both element type and shape are known.
    pub fn tensor_type(&self, v: ValueId) -> Option<TensorType> {
        self.value(v).ty.tensor()
    }

    /// Does the value have a float type, so that a derivative can exist?
    pub fn is_float(&self, v: ValueId) -> bool {
        self.value(v).ty.dtype.is_some_and(|t| t.is_float())
    }

    /// Replaces what is known of the value's type.
    pub fn set_type(&mut self, v: ValueId, ty: ValueType) {
        self.g[v.node.0].results[v.slot as usize].ty = ty;
    }

    /// The value of that name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// All nodes, in no meaningful order but always the same one.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.g.node_indices().map(NodeId)
    }

    /// Number of nodes, inputs and initializers included.
    pub fn node_count(&self) -> usize {
        self.g.node_count()
    }

    /// Number of operator nodes.
    pub fn op_count(&self) -> usize {
        self.g.node_weights().filter(|n| n.op().is_some()).count()
    }

    /// One more than the largest [`NodeId::index`].
    pub fn node_bound(&self) -> usize {
        self.g.node_indices().next_back().map_or(0, |i| i.index() + 1)
    }

    /// Graph inputs (required and overridable), in declaration order.
    pub fn inputs(&self) -> &[NodeId] {
        &self.inputs
    }

    /// The inputs a caller must feed.
    pub fn required_inputs(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.inputs.iter().filter(|n| matches!(self.node(**n).kind, Kind::Input(_))).map(|n| self.result(*n, 0))
    }

    /// Graph outputs.
    pub fn outputs(&self) -> &[Output] {
        &self.outputs
    }

    /// Is the value a graph output?
    pub fn is_output(&self, v: ValueId) -> bool {
        self.output_values.contains_key(&v)
    }

    /// Result `slot` of a node.
    pub fn result(&self, node: NodeId, slot: u32) -> ValueId {
        ValueId { node, slot }
    }

    /// All results of a node.
    pub fn results(&self, node: NodeId) -> impl Iterator<Item = ValueId> + use<> {
        (0..self.g[node.0].results.len() as u32).map(move |slot| ValueId { node, slot })
    }

    /// Operands in order; captures of subgraphs are not among them.
    pub fn operands(&self, node: NodeId) -> Operands {
        let n = &self.g[node.0];
        let mut all: Operands = SmallVec::from_elem(None, n.operands as usize);
        for e in self.g.edges_directed(node.0, Direction::Incoming) {
            if let Some(slot) = all.get_mut(e.weight().operand as usize) {
                *slot = Some(ValueId { node: NodeId(e.source()), slot: e.weight().slot });
            }
        }
        all
    }

    /// Operand `i`, if present.
    pub fn operand(&self, node: NodeId, i: usize) -> Option<ValueId> {
        self.g
            .edges_directed(node.0, Direction::Incoming)
            .find(|e| e.weight().operand as usize == i)
            .map(|e| ValueId { node: NodeId(e.source()), slot: e.weight().slot })
    }

    /// Every value a node reads, captured ones included, in operand order.
    pub fn reads(&self, node: NodeId) -> SmallVec<[ValueId; 4]> {
        let mut all: SmallVec<[(u32, ValueId); 4]> = self
            .g
            .edges_directed(node.0, Direction::Incoming)
            .map(|e| (e.weight().operand, ValueId { node: NodeId(e.source()), slot: e.weight().slot }))
            .collect();
        all.sort_unstable_by_key(|(operand, _)| *operand);
        all.into_iter().map(|(_, v)| v).collect()
    }

    /// The values captured by a node's subgraphs.
    pub fn captures(&self, node: NodeId) -> SmallVec<[ValueId; 4]> {
        let first = self.g[node.0].operands;
        let mut all: SmallVec<[(u32, ValueId); 4]> = self
            .g
            .edges_directed(node.0, Direction::Incoming)
            .filter(|e| e.weight().operand >= first)
            .map(|e| (e.weight().operand, ValueId { node: NodeId(e.source()), slot: e.weight().slot }))
            .collect();
        all.sort_unstable_by_key(|(operand, _)| *operand);
        all.into_iter().map(|(_, v)| v).collect()
    }

    /// Who reads a value, as (consumer, operand), by the consumer's place in the file. Captures have operands past the end.
    pub fn uses(&self, v: ValueId) -> SmallVec<[(NodeId, usize); 4]> {
        let mut all: SmallVec<[(NodeId, usize); 4]> = self
            .g
            .edges_directed(v.node.0, Direction::Outgoing)
            .filter(|e| e.weight().slot == v.slot)
            .map(|e| (NodeId(e.target()), e.weight().operand as usize))
            .collect();
        all.sort_unstable_by_key(|(n, operand)| (self.g[n.0].position, *operand));
        all
    }

    /// The only reader of a value, if there is exactly one.
    pub fn single_use(&self, v: ValueId) -> Option<(NodeId, usize)> {
        match self.uses(v).as_slice() {
            [one] => Some(*one),
            _ => None,
        }
    }

    /// The constant behind a value: an initializer that cannot be overridden, or a `Constant` node's tensor.
    pub fn constant(&self, v: ValueId) -> Option<&Tensor> {
        match &self.g[v.node.0].kind {
            Kind::Initializer { tensor, overridable: false } => Some(tensor),
            Kind::Op(op) if op.is("Constant") => op.attrs.tensor("value"),
            _ => None,
        }
    }

    /// The initializer behind a value, overridable or not.
    pub fn initializer(&self, v: ValueId) -> Option<&Tensor> {
        match &self.g[v.node.0].kind {
            Kind::Initializer { tensor, .. } => Some(tensor),
            _ => None,
        }
    }

    /// Node, operator and name for messages.
    pub fn site(&self, id: NodeId) -> NodeSite {
        let n = self.node(id);
        let op = match &n.kind {
            Kind::Input(_) => "graph input".to_string(),
            Kind::Initializer { .. } => "initializer".to_string(),
            Kind::Op(op) => op.full_name(),
        };
        let name =
            if n.name.is_empty() { n.results.first().map(|v| v.name.clone()).unwrap_or_default() } else { n.name.clone() };
        NodeSite { name, op }
    }
}
