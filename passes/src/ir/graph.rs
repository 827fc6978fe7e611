//! The graph: operators and sources as nodes, uses as edges.
//!
//! The edges are the only record of who reads what: an edge from producer to consumer says which result (`slot`) is read as
//! which `operand`. Every value has one producer (graph inputs and initializers are nodes too) and one unique name, the name
//! it will have in the emitted file.

use super::attr::Attrs;
use super::tensor::Tensor;
use super::types::{TensorType, ValueType};
use indexmap::IndexMap;
use onnx_protobuf::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use petgraph::Direction;
use petgraph::stable_graph::{EdgeIndex, NodeIndex, StableDiGraph};
use petgraph::visit::EdgeRef;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// A node of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(NodeIndex<u32>);

impl NodeId {
    /// A dense number, for tables indexed by node; below [`Graph::node_bound`].
    pub fn index(self) -> usize {
        self.0.index()
    }
}

/// One result of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId {
    /// The producer.
    pub node: NodeId,
    /// Which of its results.
    pub slot: u32,
}

/// An edge: result `slot` of the producer is operand `operand` of the consumer.
#[derive(Clone, Copy, Debug)]
struct Use {
    slot: u32,
    operand: u32,
}

/// A value: one result of a node.
#[derive(Clone, Debug)]
pub struct Value {
    /// Unique name; empty only for a result nobody may read.
    pub name: String,
    /// What is known of its type.
    pub ty: ValueType,
}

/// An operator application.
#[derive(Clone, Debug)]
pub struct Op {
    /// Operator set domain; empty for `ai.onnx`, `ancre` for our abstract operators.
    pub domain: String,
    /// Operator name.
    pub name: String,
    /// Attributes.
    pub attrs: Attrs,
    /// The node as the source wrote it; emission starts from it so that nothing unknown to us is lost.
    pub source: Option<Arc<NodeProto>>,
    /// Set when `attrs` no longer equals the source's attributes.
    pub attrs_changed: bool,
}

impl Op {
    /// An operator of the standard domain.
    pub fn new(name: &str, attrs: Attrs) -> Op {
        Op { domain: String::new(), name: name.to_string(), attrs, source: None, attrs_changed: false }
    }

    /// An operator of another domain.
    pub fn in_domain(domain: &str, name: &str, attrs: Attrs) -> Op {
        Op { domain: domain.to_string(), ..Op::new(name, attrs) }
    }

    /// Is it this operator of the standard domain?
    pub fn is(&self, name: &str) -> bool {
        self.domain.is_empty() && self.name == name
    }

    /// Is it this abstract operator (`ancre.NAME`)?
    pub fn is_ancre(&self, name: &str) -> bool {
        self.domain == ANCRE && self.name == name
    }

    /// `Conv`, `com.microsoft.FusedMatMul`, `ancre.Route`, …
    pub fn full_name(&self) -> String {
        if self.domain.is_empty() { self.name.clone() } else { format!("{}.{}", self.domain, self.name) }
    }
}

/// Domain of the abstract operators that lowering must replace.
pub const ANCRE: &str = "ancre";

/// What a node is.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A graph input that the user must feed.
    Input(Option<Arc<ValueInfoProto>>),
    /// A constant of the file; `overridable` makes it a graph input with a default too.
    Initializer {
        /// The constant.
        tensor: Tensor,
        /// Declared as an optional graph input, so that a caller may feed another value.
        overridable: bool,
    },
    /// An operator.
    Op(Op),
}

/// A node: a name, what it is, its results. Its operands are edges of the graph.
#[derive(Clone, Debug)]
pub struct Node {
    /// Node name; not necessarily unique in a source file.
    pub name: String,
    /// Operator or source.
    pub kind: Kind,
    results: SmallVec<[Value; 1]>,
    operands: u32,
    /// Values that subgraphs of this node capture by name, after its operands.
    captures: u32,
    position: u64,
}

impl Node {
    /// The operator, if it is one.
    pub fn op(&self) -> Option<&Op> {
        match &self.kind {
            Kind::Op(op) => Some(op),
            _ => None,
        }
    }

    /// Its results.
    pub fn results(&self) -> &[Value] {
        &self.results
    }

    /// Number of operands, missing optional ones included, captures excluded.
    pub fn operand_count(&self) -> usize {
        self.operands as usize
    }

    /// Number of values captured by its subgraphs.
    pub fn capture_count(&self) -> usize {
        self.captures as usize
    }
}

/// A graph output.
#[derive(Clone, Debug)]
pub struct Output {
    /// The value.
    pub value: ValueId,
    /// Declaration as the source wrote it.
    pub info: Option<Arc<ValueInfoProto>>,
}

/// Operands in order; `None` for a missing optional one.
pub type Operands = SmallVec<[Option<ValueId>; 4]>;

/// A model's graph.
#[derive(Clone, Debug)]
pub struct Graph {
    g: StableDiGraph<Node, Use, u32>,
    names: HashMap<String, ValueId>,
    /// Names inside subgraphs, which no value of ours may shadow.
    reserved: HashSet<String>,
    inputs: Vec<NodeId>,
    outputs: Vec<Output>,
    /// How often each value is a graph output.
    output_values: HashMap<ValueId, u32>,
    /// Imported operator set versions, by domain.
    pub opsets: IndexMap<String, i64>,
    /// Everything of the source model that is not its main graph's nodes, values and initializers.
    pub shell: Arc<ModelProto>,
    /// The source graph without nodes, inputs, outputs and initializers; its `value_info` is kept here. Among `input` are
    /// the declarations of initializers that are listed as inputs too.
    pub graph_shell: Arc<GraphProto>,
    /// Metadata to emit: the source's, then ours.
    pub metadata: IndexMap<String, String>,
    /// Directory of the source, where its external data paths start.
    pub root: Option<Arc<Path>>,
    next_position: u64,
    next_fresh: HashMap<String, u32>,
}

impl Default for Graph {
    fn default() -> Graph {
        Graph {
            g: StableDiGraph::default(),
            names: HashMap::new(),
            reserved: HashSet::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            output_values: HashMap::new(),
            opsets: IndexMap::from([(String::new(), 18)]),
            shell: Arc::new(ModelProto { ir_version: 8, ..Default::default() }),
            graph_shell: Arc::new(GraphProto { name: "main".into(), ..Default::default() }),
            metadata: IndexMap::new(),
            root: None,
            next_position: 0,
            next_fresh: HashMap::new(),
        }
    }
}

impl Graph {
    // ---- building -------------------------------------------------------------------------------------------------

    /// Adds a required graph input.
    pub fn add_input(&mut self, name: &str, ty: ValueType, info: Option<Arc<ValueInfoProto>>) -> ValueId {
        let id = self.push(name.to_string(), Kind::Input(info), 0);
        self.inputs.push(id);
        self.push_result(id, name, ty)
    }

    /// Adds a constant. An overridable one is a graph input with a default as well.
    pub fn add_initializer(&mut self, name: &str, tensor: Tensor, overridable: bool) -> ValueId {
        let ty = TensorType::fixed(tensor.dtype(), tensor.dims()).into();
        let id = self.push(name.to_string(), Kind::Initializer { tensor, overridable }, 0);
        if overridable {
            self.inputs.push(id);
        }
        self.push_result(id, name, ty)
    }

    /// Adds an operator; its results are added with [`Graph::push_result`].
    pub fn add_op(&mut self, name: &str, op: Op, operands: &[Option<ValueId>]) -> NodeId {
        let id = self.push(name.to_string(), Kind::Op(op), operands.len() as u32);
        for (i, v) in operands.iter().enumerate() {
            if let Some(v) = v {
                self.link(*v, id, i as u32);
            }
        }
        id
    }

    fn push(&mut self, name: String, kind: Kind, operands: u32) -> NodeId {
        self.next_position += 1;
        let node = Node { name, kind, results: SmallVec::new(), operands, captures: 0, position: self.next_position };
        NodeId(self.g.add_node(node))
    }

    /// Appends a result. A name that is taken is made unique; an empty one is for a result nobody may read.
    pub fn push_result(&mut self, node: NodeId, name: &str, ty: ValueType) -> ValueId {
        let value = ValueId { node, slot: self.g[node.0].results.len() as u32 };
        let name = if name.is_empty() || self.is_free(name) { name.to_string() } else { self.fresh_name(name) };
        if !name.is_empty() {
            self.names.insert(name.clone(), value);
        }
        self.g[node.0].results.push(Value { name, ty });
        value
    }

    /// Records that a subgraph of `node` reads `value` by its name.
    pub fn add_capture(&mut self, node: NodeId, value: ValueId) {
        let n = &mut self.g[node.0];
        let operand = n.operands + n.captures;
        n.captures += 1;
        self.link(value, node, operand);
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

    /// Is the name still to be had?
    pub fn is_free(&self, name: &str) -> bool {
        !self.names.contains_key(name) && !self.reserved.contains(name)
    }

    /// Keeps a name (of a value inside a subgraph) from being given to a value.
    pub fn reserve(&mut self, name: &str) {
        self.reserved.insert(name.to_string());
    }

    // ---- reading --------------------------------------------------------------------------------------------------

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

    // ---- changing -------------------------------------------------------------------------------------------------

    fn link(&mut self, from: ValueId, to: NodeId, operand: u32) {
        self.g.add_edge(from.node.0, to.0, Use { slot: from.slot, operand });
    }

    fn edge(&self, node: NodeId, operand: usize) -> Option<EdgeIndex<u32>> {
        self.g.edges_directed(node.0, Direction::Incoming).find(|e| e.weight().operand as usize == operand).map(|e| e.id())
    }

    /// Makes a node read `value` as operand `operand` (an existing or the next one).
    pub fn set_operand(&mut self, node: NodeId, operand: usize, value: Option<ValueId>) {
        if let Some(e) = self.edge(node, operand) {
            self.g.remove_edge(e);
        }
        let n = &mut self.g[node.0];
        debug_assert!(n.captures == 0 || operand < n.operands as usize, "operands come before captures");
        n.operands = n.operands.max(operand as u32 + 1);
        if let Some(v) = value {
            self.link(v, node, operand as u32);
        }
    }

    /// Replaces a node's operator and operands, keeping its results.
    pub fn replace_op(&mut self, node: NodeId, op: Op, operands: &[Option<ValueId>]) {
        let old: Vec<_> = self.g.edges_directed(node.0, Direction::Incoming).map(|e| e.id()).collect();
        for e in old {
            self.g.remove_edge(e);
        }
        let n = &mut self.g[node.0];
        n.kind = Kind::Op(op);
        n.operands = operands.len() as u32;
        n.captures = 0;
        for (i, v) in operands.iter().enumerate() {
            if let Some(v) = v {
                self.link(*v, node, i as u32);
            }
        }
    }

    /// Makes those readers of `old` for which `which` holds read `new`. Captures and graph outputs are left alone.
    pub fn replace_uses(&mut self, old: ValueId, new: ValueId, which: impl Fn(NodeId) -> bool) {
        // Latest first: an edge is unlinked from its producer's list, in which the newest stands first.
        for (node, operand) in self.uses(old).into_iter().rev() {
            if operand < self.node(node).operand_count() && which(node) {
                self.set_operand(node, operand, Some(new));
            }
        }
    }

    /// Makes every reader of `old` read `new`, graph outputs included; `new` takes over the name of an output.
    pub fn redirect(&mut self, old: ValueId, new: ValueId) {
        self.replace_uses(old, new, |_| true);
        if self.is_output(old) {
            self.swap_names(old, new);
            self.redirect_output(old, new);
        }
    }

    /// Makes `new` the graph output that `old` was. Names stay: see [`Graph::swap_names`].
    pub fn redirect_output(&mut self, old: ValueId, new: ValueId) {
        let Some(count) = self.output_values.remove(&old) else { return };
        *self.output_values.entry(new).or_default() += count;
        for o in self.outputs.iter_mut().filter(|o| o.value == old) {
            o.value = new;
        }
    }

    /// Exchanges the names of two values.
    pub fn swap_names(&mut self, a: ValueId, b: ValueId) {
        let (na, nb) = (self.name(a).to_string(), self.name(b).to_string());
        self.g[a.node.0].results[a.slot as usize].name = nb.clone();
        self.g[b.node.0].results[b.slot as usize].name = na.clone();
        self.names.insert(na, b);
        self.names.insert(nb, a);
    }

    /// Gives a value a name, or the nearest free one; returns the name it got.
    pub fn rename(&mut self, v: ValueId, name: &str) -> String {
        if self.name(v) == name {
            return name.to_string();
        }
        let name = self.fresh_name(name);
        let old = std::mem::replace(&mut self.g[v.node.0].results[v.slot as usize].name, name.clone());
        self.names.remove(&old);
        self.names.insert(name.clone(), v);
        name
    }

    /// Turns an initializer's default and overridability.
    pub fn set_initializer(&mut self, v: ValueId, tensor: Tensor, overridable: bool) {
        let ty = ValueType::from(TensorType::fixed(tensor.dtype(), tensor.dims()));
        let n = &mut self.g[v.node.0];
        n.kind = Kind::Initializer { tensor, overridable };
        n.results[v.slot as usize].ty = ty;
        let listed = self.inputs.contains(&v.node);
        if overridable && !listed {
            self.inputs.push(v.node);
        } else if !overridable && listed {
            self.inputs.retain(|n| *n != v.node);
        }
    }

    /// Makes an initializer overridable (a graph input with a default) or constant.
    pub fn set_overridable(&mut self, v: ValueId, overridable: bool) {
        if let Some(tensor) = self.initializer(v).cloned() {
            let ty = self.value(v).ty.clone();
            self.set_initializer(v, tensor, overridable);
            self.set_type(v, ty);
        }
    }

    /// Makes an overridable initializer an input that must be fed, of the given type; returns the default it had.
    pub fn require_input(&mut self, v: ValueId, ty: ValueType) -> Option<Tensor> {
        let tensor = self.initializer(v).cloned()?;
        self.set_overridable(v, true);
        self.g[v.node.0].kind = Kind::Input(None);
        self.set_type(v, ty);
        Some(tensor)
    }

    /// Removes a node that nobody reads. Of many readers of one value, the latest is removed at the least cost.
    pub fn remove(&mut self, id: NodeId) {
        debug_assert!(self.g.edges_directed(id.0, Direction::Outgoing).next().is_none(), "a node in use is not removed");
        if let Some(node) = self.g.remove_node(id.0) {
            for v in &node.results {
                self.names.remove(&v.name);
            }
            if node.op().is_none() {
                self.inputs.retain(|n| *n != id);
            }
        }
    }

    /// Drops a node's results from `keep` on, which nobody reads.
    pub fn drop_results(&mut self, node: NodeId, keep: usize) {
        while self.g[node.0].results.len() > keep {
            let slot = self.g[node.0].results.len() as u32 - 1;
            debug_assert!(self.uses(ValueId { node, slot }).is_empty(), "a result in use is not dropped");
            if let Some(v) = self.g[node.0].results.pop() {
                self.names.remove(&v.name);
            }
        }
    }

    /// Lists a constant among the graph inputs without letting anyone override it (files before IR 4).
    pub fn set_listed_constant(&mut self, v: ValueId) {
        if let Kind::Initializer { overridable, .. } = &mut self.g[v.node.0].kind {
            *overridable = false;
        }
    }

    /// Forgets what the source declares of these values: their types have changed, and are declared anew when the graph is emitted.
    pub fn forget_declarations(&mut self, values: &HashSet<ValueId>) {
        let names: HashSet<String> = values.iter().map(|v| self.name(*v).to_string()).collect();
        Arc::make_mut(&mut self.graph_shell).value_info.retain(|i| !names.contains(&i.name));
        for o in self.outputs.iter_mut().filter(|o| values.contains(&o.value)) {
            o.info = None;
        }
        for v in values {
            if let Kind::Input(info) = &mut self.g[v.node.0].kind {
                *info = None;
            }
        }
    }

    /// Drops all graph outputs, so that new ones can be declared.
    pub fn clear_outputs(&mut self) {
        self.outputs.clear();
        self.output_values.clear();
    }

    /// Moves a node in the file order to just after another.
    pub fn place_after(&mut self, node: NodeId, anchor: NodeId) {
        self.g[node.0].position = self.g[anchor.0].position;
    }

    /// All nodes, producers before consumers, otherwise in file order; a node that was added later stands right before its
    /// first reader.
    ///
    /// # Errors
    /// The name of a node on a cycle.
    pub fn topological_order(&self) -> Result<Vec<NodeId>, NodeSite> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            White,
            Open,
            Done,
        }
        let mut marks = vec![Mark::White; self.node_bound()];
        let mut by_position: Vec<NodeId> = self.nodes().collect();
        by_position.sort_unstable_by_key(|n| (self.g[n.0].position, n.index()));
        let mut order = Vec::with_capacity(by_position.len());
        // Explicit stack: source graphs may be tens of thousands of nodes deep.
        let mut stack: Vec<(NodeId, SmallVec<[ValueId; 4]>, usize)> = Vec::new();
        for root in by_position {
            if marks[root.index()] != Mark::White {
                continue;
            }
            marks[root.index()] = Mark::Open;
            stack.push((root, self.reads(root), 0));
            while let Some((node, reads, next)) = stack.last_mut() {
                if let Some(v) = reads.get(*next) {
                    *next += 1;
                    let producer = v.node;
                    match marks[producer.index()] {
                        Mark::Done => {}
                        Mark::Open => return Err(self.site(producer)),
                        Mark::White => {
                            marks[producer.index()] = Mark::Open;
                            let its = self.reads(producer);
                            stack.push((producer, its, 0));
                        }
                    }
                } else {
                    marks[node.index()] = Mark::Done;
                    order.push(*node);
                    stack.pop();
                }
            }
        }
        Ok(order)
    }
}

/// A node, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeSite {
    /// Name of the node, or of its first result where it has none.
    pub name: String,
    /// Operator.
    pub op: String,
}

impl std::fmt::Display for NodeSite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "node `{}` ({})", self.name, self.op)
    }
}
