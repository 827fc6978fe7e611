//! Building: nodes, results, names, outputs.

use super::id::Born;
use super::{Graph, Kind, Node, NodeId, Op, Output, Value, ValueId};
use crate::ir::tensor::Tensor;
use crate::ir::types::{TensorType, ValueType};
use onnx_protobuf::ValueInfoProto;
use smallvec::SmallVec;
use std::sync::Arc;

impl Graph {
    /// Adds a required graph input.
    pub fn add_input(&mut self, name: &str, ty: ValueType, info: Option<Arc<ValueInfoProto>>) -> ValueId {
        let id = self.push(name.to_string(), Kind::Input(info));
        self.inputs.push(id);
        self.push_result(id, name, ty)
    }

    /// Adds a constant. An overridable one is a graph input with a default as well.
    pub fn add_initializer(&mut self, name: &str, tensor: Tensor, overridable: bool) -> ValueId {
        let ty = TensorType::fixed(tensor.dtype(), tensor.dims()).into();
        let id = self.push(name.to_string(), Kind::Initializer { tensor, overridable });
        if overridable {
            self.inputs.push(id);
        }
        self.push_result(id, name, ty)
    }

    /// Nodes that are added from now on stand at this node's place in the file; at its end, for `None`.
    pub fn insert_at(&mut self, node: Option<NodeId>) {
        self.insertion = node.map(|n| self.node(n).position);
    }

    /// Adds an operator; its results are added with [`Graph::push_result`].
    pub fn add_op(&mut self, name: &str, op: Op, operands: &[Option<ValueId>]) -> NodeId {
        let id = self.push(name.to_string(), Kind::Op(op));
        self.link_all(id, operands);
        id
    }

    fn push(&mut self, name: String, kind: Kind) -> NodeId {
        self.next_position += 1;
        let (position, born) = (self.insertion.unwrap_or(self.next_position), Born::nth(self.next_position));
        let node = Node { name, kind, results: SmallVec::new(), reads: SmallVec::new(), operands: 0, position, born };
        let index = self.g.add_node(node);
        self.id(index)
    }

    /// Appends a result. A name that is taken is made unique; an empty one is for a result nobody may read.
    pub fn push_result(&mut self, node: NodeId, name: &str, ty: ValueType) -> ValueId {
        let value = ValueId { node, slot: self.node(node).results.len() as u32 };
        let name = if name.is_empty() || self.is_free(name) { name.to_string() } else { self.fresh_name(name) };
        if !name.is_empty() {
            self.names.insert(name.clone(), value);
        }
        self.node_mut(node).results.push(Value { name, ty });
        value
    }

    /// Records that a subgraph of `node` reads `value` by its name.
    pub fn add_capture(&mut self, node: NodeId, value: ValueId) {
        let place = self.node(node).reads.len();
        self.link(value, node, place);
    }

    /// Declares a value a graph output.
    pub fn add_output(&mut self, value: ValueId, info: Option<Arc<ValueInfoProto>>) {
        self.outputs.push(Output { value, info });
        *self.output_values.entry(value).or_default() += 1;
    }

    /// A name no value has: `stem`, or `stem_1`, `stem_2`, …
    pub fn fresh_name(&mut self, stem: &str) -> String {
        if !stem.is_empty() && self.is_free(stem) {
            return stem.to_string();
        }
        loop {
            let n = self.next_fresh.entry(stem.to_string()).or_insert(0);
            *n += 1;
            let name = format!("{stem}_{n}");
            if self.is_free(&name) {
                return name;
            }
        }
    }

    /// Is the name free?
    pub fn is_free(&self, name: &str) -> bool {
        !self.names.contains_key(name) && !self.reserved.contains(name)
    }

    /// Lets a name be given again that was [kept](Graph::reserve).
    pub fn release(&mut self, name: &str) {
        self.reserved.remove(name);
    }

    /// Keeps a name (of a value inside a subgraph) from being given to a value.
    pub fn reserve(&mut self, name: &str) {
        self.reserved.insert(name.to_string());
    }
}
