//! Reading: nodes and values, who reads what, constants.

use super::{Graph, Kind, Node, NodeId, NodeSite, Op, Output, Value, ValueId};
use crate::ir::tensor::Tensor;
use crate::ir::types::{TensorType, ValueType};
use petgraph::Direction;
use petgraph::visit::EdgeRef;
use smallvec::SmallVec;

impl Graph {
    /// The node.
    pub fn node(&self, id: NodeId) -> &Node {
        let node = &self.g[id.index];
        id.check(node.born);
        node
    }

    /// The node, to change its name or kind.
    pub fn node_mut(&mut self, id: NodeId) -> &mut Node {
        let node = &mut self.g[id.index];
        id.check(node.born);
        node
    }

    /// The operator of a node; `None` for inputs and initializers.
    pub fn op(&self, id: NodeId) -> Option<&Op> {
        self.node(id).op()
    }

    /// Is the node this operator of the standard domain?
    pub fn is_op(&self, id: NodeId, name: &str) -> bool {
        self.op(id).is_some_and(|o| o.is(name))
    }

    /// Is there such a value?
    pub fn contains(&self, v: ValueId) -> bool {
        self.g.node_weight(v.node.index).is_some_and(|n| v.node.is(n.born) && (v.slot as usize) < n.results.len())
    }

    /// The value.
    pub fn value(&self, v: ValueId) -> &Value {
        &self.node(v.node).results[v.slot as usize]
    }

    /// The value's name.
    pub fn name(&self, v: ValueId) -> &str {
        &self.value(v).name
    }

    /// The value's type, if both element type and shape are known.
    pub fn tensor_type(&self, v: ValueId) -> Option<TensorType> {
        self.value(v).ty.tensor()
    }

    /// What is known of a value's type, and the node that lost the rest: the first before the value, or its own, that has a result
    /// of unknown type although it reads none. For values whose type is not known; the text's subject is the value.
    pub fn untyped(&self, v: ValueId) -> String {
        let mut node = v.node;
        while let Some(open) = self.reads(node).find(|r| self.tensor_type(*r).is_none()) {
            node = open.node;
        }
        let (name, ty) = (self.name(v), &self.value(v).ty);
        match self.node(node).kind {
            Kind::Input(_) => {
                let input = self.name(self.result(node, 0));
                format!(
                    "the type of `{name}` is not known in full ({ty}), since the file does not declare that of its input `{input}`"
                )
            }
            _ => format!(
                "the type of `{name}` is not known in full ({ty}): what {} gives cannot be told from its operands; a declaration of its result in the file (`value_info`) is believed",
                self.site(node)
            ),
        }
    }

    /// Does the value have a float type, so that a derivative can exist?
    pub fn is_float(&self, v: ValueId) -> bool {
        self.value(v).ty.dtype.is_some_and(|t| t.is_float())
    }

    /// Replaces what is known of the value's type.
    pub fn set_type(&mut self, v: ValueId, ty: ValueType) {
        self.node_mut(v.node).results[v.slot as usize].ty = ty;
    }

    /// The value of that name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// All nodes, in no meaningful order but always the same one.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.g.node_indices().map(|i| self.id(i))
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
        (0..self.node(node).results.len() as u32).map(move |slot| ValueId { node, slot })
    }

    /// Operands in order, `None` for a missing optional one; captures of subgraphs are not among them.
    pub fn operands(&self, node: NodeId) -> &[Option<ValueId>] {
        let node = self.node(node);
        &node.reads[..node.operand_count()]
    }

    /// Operand `i`, if present.
    pub fn operand(&self, node: NodeId, i: usize) -> Option<ValueId> {
        *self.operands(node).get(i)?
    }

    /// Every value a node reads, captured ones included, in operand order.
    pub fn reads(&self, node: NodeId) -> impl Iterator<Item = ValueId> + '_ {
        self.node(node).reads.iter().flatten().copied()
    }

    /// The values captured by a node's subgraphs.
    pub fn captures(&self, node: NodeId) -> impl Iterator<Item = ValueId> + '_ {
        let node = self.node(node);
        node.reads[node.operand_count()..].iter().flatten().copied()
    }

    /// Who reads a value, as (consumer, operand), in no meaningful order but always the same one. Captures have operands past the end.
    pub fn uses(&self, v: ValueId) -> impl Iterator<Item = (NodeId, usize)> + '_ {
        let edges = self.g.edges_directed(v.node.index, Direction::Outgoing).filter(move |e| e.weight().slot == v.slot);
        edges.map(|e| (self.id(e.target()), e.weight().operand as usize))
    }

    /// Does any node read the value?
    pub fn is_read(&self, v: ValueId) -> bool {
        self.uses(v).next().is_some()
    }

    /// Does a node read the value, or is it a graph output?
    pub fn is_needed(&self, v: ValueId) -> bool {
        self.is_read(v) || self.is_output(v)
    }

    /// Does a subgraph read the value?
    pub fn is_captured(&self, v: ValueId) -> bool {
        self.uses(v).any(|(n, operand)| operand >= self.node(n).operand_count())
    }

    /// Who reads a value, by the consumer's place in the file.
    pub fn uses_in_order(&self, v: ValueId) -> SmallVec<[(NodeId, usize); 4]> {
        let mut all: SmallVec<[(NodeId, usize); 4]> = self.uses(v).collect();
        all.sort_unstable_by_key(|(n, operand)| (self.node(*n).position, *operand));
        all
    }

    /// Are the edges into a node those of its list of operands?
    pub(crate) fn edges_agree(&self, node: NodeId) -> bool {
        let edges = self.g.edges_directed(node.index, Direction::Incoming);
        let mut by_edges: SmallVec<[_; 4]> =
            edges.map(|e| (e.weight().operand as usize, self.id(e.source()), e.weight().slot)).collect();
        by_edges.sort_unstable();
        let listed = self.node(node).reads.iter().enumerate().filter_map(|(i, v)| v.map(|v| (i, v.node, v.slot)));
        by_edges.into_iter().eq(listed)
    }

    /// The only reader of a value, if there is exactly one.
    pub fn single_use(&self, v: ValueId) -> Option<(NodeId, usize)> {
        let mut uses = self.uses(v);
        uses.next().filter(|_| uses.next().is_none())
    }

    /// The constant behind a value: an initializer that cannot be overridden, or a `Constant` node's tensor.
    pub fn constant(&self, v: ValueId) -> Option<&Tensor> {
        match &self.node(v.node).kind {
            Kind::Initializer { tensor, overridable: false } => Some(tensor),
            Kind::Op(op) if op.is("Constant") => op.attrs.tensor("value"),
            _ => None,
        }
    }

    /// The initializer behind a value, overridable or not.
    pub fn initializer(&self, v: ValueId) -> Option<&Tensor> {
        match &self.node(v.node).kind {
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
        let first = n.results.first().map_or("", |v| &v.name);
        NodeSite { name: if n.name.is_empty() { first } else { &n.name }.to_string(), op }
    }
}
