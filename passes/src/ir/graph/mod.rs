//! The graph: operators and sources as nodes, uses as edges.
//!
//! A node lists the values it reads in the order of its operands. The edges, from producer to consumer, list the readers of a value:
//! an edge says which result (`slot`) is read as which `operand`. Only [`Graph::link`] and [`Graph::unlink`] change these two, and
//! the verifier checks that they agree. Every value has one producer (graph inputs and initializers are nodes too) and one
//! unique name, the name it will have in the emitted file.
//!
//! `&Graph` has petgraph's visit traits (`visit.rs`): its algorithms run on the graph, and on its reverse by `Reversed(&graph)`.

mod build;
mod change;
mod id;
mod read;
mod visit;

use super::attr::Attrs;
use super::external::Home;
use super::router::{RouterId, RouterSpec};
use super::tensor::Tensor;
use super::types::ValueType;
use indexmap::IndexMap;
use onnx_protobuf::{GraphProto, ModelProto, NodeProto, ValueInfoProto};
use petgraph::stable_graph::StableDiGraph;
use smallvec::SmallVec;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

pub use id::{NodeId, ValueId};

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

/// A node: a name, what it is, what it reads, its results.
#[derive(Clone, Debug)]
pub struct Node {
    /// Node name; not necessarily unique in a source file.
    pub name: String,
    /// Operator or source.
    pub kind: Kind,
    results: SmallVec<[Value; 1]>,
    /// Its operands, then the values that its subgraphs capture by name.
    reads: SmallVec<[Option<ValueId>; 4]>,
    operands: u32,
    position: u64,
    born: id::Born,
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

    /// What it reads: its operands in order, `None` for a missing optional one, then what its subgraphs capture.
    pub fn reads(&self) -> &[Option<ValueId>] {
        &self.reads
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
    /// The routers that `ancre.*` operators name.
    pub routers: IndexMap<RouterId, RouterSpec>,
    /// Where the source's external data lies.
    pub home: Option<Arc<Home>>,
    /// What is assumed for the extent of a symbolic batch where costs are estimated: that of the export, or of a run.
    pub assumed_batch: Option<i64>,
    next_position: u64,
    /// Position of the nodes that are added, if it is not the last.
    insertion: Option<u64>,
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
            routers: IndexMap::new(),
            home: None,
            assumed_batch: None,
            next_position: 0,
            insertion: None,
            next_fresh: HashMap::new(),
        }
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
