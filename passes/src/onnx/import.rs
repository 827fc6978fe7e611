//! ONNX message to IR. Nothing is dropped: each node keeps its source message, the model and graph keep their shells.

use super::attributes;
use super::external::external_files;
use super::inline::InlineError;
use super::scan::{Scanned, scan};
use super::{name_of, schema, short_domain, subgraphs};
use crate::ir::{
    ANCRE, Attr, Attrs, DType, Dim, Graph, Home, NodeId, NodeSite, Op, SharedBytes, Tensor, TensorError, ValueType,
    external_path, is_absurd,
};
use indexmap::IndexMap;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_shape_proto::dimension;
use onnx_protobuf::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto, type_proto,
};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

/// Oldest operator set read. A graph of an operator set before 7 is converted to 7 before any pass sees it
/// (`legalize::from_old`).
pub const OLDEST_OPSET: i64 = 1;
/// Newest operator set read.
pub const NEWEST_OPSET: i64 = schema::NEWEST;
/// Newest IR version read. It is like version 13 but for 6-bit floats; a tensor of these is refused.
pub const NEWEST_IR: i64 = schema::NEWEST_IR;
/// Nesting of subgraphs above which a file is taken for damaged (and recursion could exhaust the stack).
const DEEPEST: usize = 64;

/// Why a model cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ImportError {
    #[error("is not a readable ONNX model: {0}")]
    Damaged(String),
    #[error("the graph has no nodes; there is nothing in it to work on")]
    Empty,
    #[error("the file holds no graph; expected an ONNX model (is it a tensor file, or a model in another format?)")]
    NoGraph,
    #[error(
        "IR version {0} is not supported (3 to {NEWEST_IR} are); re-export the model or convert it with onnx.version_converter"
    )]
    Ir(i64),
    #[error(
        "operator set ai.onnx {0} is not supported ({OLDEST_OPSET} to {NEWEST_OPSET} are); re-export the model or convert it with onnx.version_converter"
    )]
    Opset(i64),
    #[error(
        "the model imports no operator set for the standard domain, so its operators have no defined meaning; re-export it"
    )]
    NoOpset,
    #[error("{0} reads `{1}`, which no node, input or initializer produces; the file is damaged or was cut badly")]
    Dangling(NodeSite, String),
    #[error("graph output `{0}` is produced by nothing; the file is damaged or was cut badly")]
    DanglingOutput(String),
    #[error("`{name}` is defined twice, the second time by {by}; value names must be unique in a graph")]
    Duplicate { name: String, by: String },
    #[error("{0} {1}; the file is damaged or was cut badly")]
    Node(NodeSite, String),
    #[error("{0} is on a cycle; an ONNX graph must be acyclic")]
    Cycle(NodeSite),
    #[error("an initializer has no name; the file is damaged")]
    Nameless,
    #[error(
        "{0} is of the domain `{ANCRE}`, whose operators are this tool's own and stand in no file; give the operator another domain"
    )]
    Reserved(NodeSite),
    #[error("is not a readable ONNX model: {0}")]
    Inline(#[from] InlineError),
    #[error("initializer: {0}")]
    Tensor(#[from] TensorError),
    #[error("{site}: {error}")]
    Attribute { site: NodeSite, error: TensorError },
    #[error("subgraphs are nested more than {DEEPEST} deep at {0}; the file is damaged")]
    Nesting(NodeSite),
    #[error("graph input `{0}` is declared with an absurd size, {1}; the file is damaged")]
    InputSize(String, ValueType),
    #[error("{0} {1}")]
    Schema(NodeSite, String),
    #[error("the graph has no outputs, so nothing it computes can be had; re-export the model, or declare its outputs")]
    NoOutputs,
    #[error("graph input `{0}` has no type; an ONNX model declares the types of its inputs")]
    InputType(String),
}

/// Reads a model file's bytes into the IR. Initializers stay where they are in them.
///
/// `root` is the model's directory, from which external data paths start; no external byte is read here.
///
/// # Errors
/// When the bytes are no ONNX model, or one that is not valid or of a version this tool does not know.
pub fn read(bytes: &SharedBytes, root: Option<&Path>) -> Result<Graph, ImportError> {
    read_prepared(bytes, root.map(Home::from), |_| Ok(()))
}

/// As [`read`], of a model whose external data lies there, with a change to the message before it becomes a graph. The message has
/// no initializers.
///
/// # Errors
/// As [`read`], and when the change fails.
pub fn read_prepared(
    bytes: &SharedBytes,
    home: Option<Home>,
    prepare: impl FnOnce(&mut ModelProto) -> Result<(), InlineError>,
) -> Result<Graph, ImportError> {
    let Scanned { mut model, initializers } = scan(bytes)?;
    prepare(&mut model)?;
    let home = home.map(Arc::new);
    let initializers = initializers.into_iter().map(|(head, raw)| {
        let name = head.name.clone();
        let tensor = match raw {
            Some(range) => Tensor::from_slice(head, bytes.slice(range)),
            None => Tensor::from_proto(head, home.clone()),
        };
        Ok((name, tensor?))
    });
    assemble(model, initializers.collect::<Result<_, TensorError>>()?, home.clone())
}

/// Reads a parsed model into the IR, taking its tensors over without copying them. Otherwise as [`read`].
///
/// # Errors
/// As [`read`].
pub fn import(mut model: ModelProto, root: Option<&Path>) -> Result<Graph, ImportError> {
    let home = root.map(|dir| Arc::new(Home::from(dir)));
    let messages = model.graph.as_mut().map(|g| std::mem::take(&mut g.initializer)).unwrap_or_default();
    let initializers = messages.into_iter().map(|t| Ok((t.name.clone(), Tensor::from_proto(t, home.clone())?)));
    let initializers = initializers.collect::<Result<_, TensorError>>()?;
    assemble(model, initializers, home)
}

fn assemble(mut model: ModelProto, tensors: Vec<(String, Tensor)>, home: Option<Arc<Home>>) -> Result<Graph, ImportError> {
    let mut source: GraphProto = model.graph.take().ok_or(ImportError::NoGraph)?;
    if !(3..=NEWEST_IR).contains(&model.ir_version) {
        return Err(ImportError::Ir(model.ir_version));
    }
    let opsets: IndexMap<String, i64> =
        model.opset_import.iter().map(|o| (short_domain(&o.domain).to_string(), o.version)).collect();
    let version = *opsets.get("").ok_or(ImportError::NoOpset)?;
    if !(OLDEST_OPSET..=NEWEST_OPSET).contains(&version) {
        return Err(ImportError::Opset(version));
    }
    if source.node.is_empty() {
        return Err(ImportError::Empty);
    }
    if source.output.is_empty() {
        return Err(ImportError::NoOutputs);
    }
    let mut g = Graph::default();
    g.opsets = opsets;
    g.home = home;
    g.metadata = model.metadata_props.iter().map(|p| (p.key.clone(), p.value.clone())).collect();
    add_sources(&mut g, &mut source, tensors, model.ir_version)?;
    add_nodes(&mut g, std::mem::take(&mut source.node))?;
    if let Some(fault) = g.nodes().find_map(|id| misstated(&g, id, &model)) {
        return Err(fault);
    }
    for info in std::mem::take(&mut source.output) {
        let v = g.find(&info.name).ok_or_else(|| ImportError::DanglingOutput(info.name.clone()))?;
        if g.value(v).ty == ValueType::default()
            && let Some(ty) = read_value_info(&info)
        {
            g.set_type(v, ValueType { dtype: ty.dtype, shape: None });
        }
        g.add_output(v, Some(Arc::new(info)));
    }
    if let Some(node) = g.node_on_cycle() {
        return Err(ImportError::Cycle(g.site(node)));
    }
    g.shell = Arc::new(model);
    g.graph_shell = Arc::new(source);
    for (location, name) in external_files(&g) {
        external_path(g.home.as_deref(), &location).map_err(|e| TensorError { name, what: e.to_string() })?;
    }
    Ok(g)
}

/// Adds the graph inputs and initializers. The declarations of initializers that are listed as inputs stay in `source`.
fn add_sources(
    g: &mut Graph,
    source: &mut GraphProto,
    tensors: Vec<(String, Tensor)>,
    ir_version: i64,
) -> Result<(), ImportError> {
    let mut initializers = IndexMap::new();
    let sparse = std::mem::take(&mut source.sparse_initializer).into_iter().map(|t| {
        let name = t.values.name.clone();
        Tensor::from_sparse(t).map(|t| (name, t))
    });
    for t in tensors.into_iter().map(Ok).chain(sparse) {
        let (name, tensor) = t?;
        if name.is_empty() {
            return Err(ImportError::Nameless);
        }
        if initializers.insert(name.clone(), tensor).is_some() {
            return Err(ImportError::Duplicate { name, by: "an initializer".into() });
        }
    }
    for info in std::mem::take(&mut source.input) {
        let name = info.name.clone();
        unique(g, &name, "a graph input")?;
        if let Some(tensor) = initializers.shift_remove(&name) {
            let v = g.add_initializer(&name, tensor, true);
            // Before IR 4 every initializer had to be listed as an input; it could not be overridden for that.
            if ir_version < 4 {
                g.set_listed_constant(v);
            }
            source.input.push(info);
            continue;
        }
        if info.type_.value.is_none() {
            return Err(ImportError::InputType(name));
        }
        // A sequence has no tensor type. The graph keeps it as a value without a type, into which no analysis sees.
        let ty = read_value_info(&info).unwrap_or_default();
        if ty.shape.as_deref().is_some_and(is_absurd) {
            return Err(ImportError::InputSize(name, ty));
        }
        g.add_input(&name, ty, Some(Arc::new(info)));
    }
    for (name, tensor) in initializers {
        unique(g, &name, "an initializer")?;
        g.add_initializer(&name, tensor, false);
    }
    Ok(())
}

/// Adds the operators, then links them: a node may stand before the nodes that it reads.
fn add_nodes(g: &mut Graph, nodes: Vec<NodeProto>) -> Result<(), ImportError> {
    let mut inner = HashSet::new();
    let mut linked: Vec<(NodeId, Vec<String>, Vec<String>)> = Vec::with_capacity(nodes.len());
    for node in nodes {
        let site = NodeSite { name: name_of(&node), op: node.op_type.clone() };
        if node.domain == ANCRE {
            return Err(ImportError::Reserved(site));
        }
        for name in node.output.iter().filter(|n| !n.is_empty()) {
            unique(g, name, &site.to_string())?;
        }
        if let Some(name) = twice(&node.output, HashSet::new()) {
            return Err(ImportError::Duplicate { name, by: site.to_string() });
        }
        if let Some(fault) = attributes::fault(&node) {
            return Err(ImportError::Schema(site, fault));
        }
        let free = read_from_outside(&node, &mut inner).ok_or_else(|| ImportError::Nesting(site.clone()))?;
        if let Some(name) = subgraphs(&node).find_map(defined_twice) {
            return Err(ImportError::Duplicate { name, by: format!("a subgraph of {site}") });
        }
        let (name, inputs, outputs) = (node.name.clone(), node.input.clone(), node.output.clone());
        let op = operator(node, g.home.clone()).map_err(|error| ImportError::Attribute { site, error })?;
        let id = g.add_op(&name, op, &vec![None; inputs.len()]);
        // Every node has a result: that of one which states none is nameless.
        for name in outputs.iter().map(String::as_str).chain(outputs.is_empty().then_some("")) {
            g.push_result(id, name, ValueType::default());
        }
        linked.push((id, inputs, free));
    }
    // Names inside subgraphs are reserved after the source's own values have their names.
    inner.iter().for_each(|name| g.reserve(name));
    for (id, inputs, free) in linked {
        for (i, name) in inputs.iter().enumerate().filter(|(_, n)| !n.is_empty()) {
            let v = g.find(name).ok_or_else(|| ImportError::Dangling(g.site(id), name.clone()))?;
            g.set_operand(id, i, Some(v));
        }
        for name in free {
            // ONNX lets a subgraph read only values of the graphs around it, and around this one there is none.
            let v = g.find(&name).ok_or_else(|| ImportError::Dangling(g.site(id), name.clone()))?;
            g.add_capture(id, v);
        }
    }
    Ok(())
}

/// The first of some names that stands there twice, or is among those that are `taken`.
fn twice<'n>(names: impl IntoIterator<Item = &'n String>, mut taken: HashSet<&'n String>) -> Option<String> {
    names.into_iter().filter(|n| !n.is_empty()).find(|n| !taken.insert(n)).cloned()
}

/// A name that a node of a subgraph defines though something in that subgraph defines it already. The subgraph is not nested too deep.
fn defined_twice(g: &GraphProto) -> Option<String> {
    let given = g.input.iter().map(|i| &i.name).chain(g.initializer.iter().map(|t| &t.name)).collect();
    let outputs = g.node.iter().flat_map(|n| &n.output);
    twice(outputs, given).or_else(|| g.node.iter().flat_map(subgraphs).find_map(defined_twice))
}

/// What is wrong with a node's attributes and its number of operands and results, by its operator's schema. Engines refuse such a file as they
/// load it.
fn misstated(g: &Graph, id: NodeId, model: &ModelProto) -> Option<ImportError> {
    let op = g.op(id)?;
    let is_local = |f: &FunctionProto| f.name == op.name && short_domain(&f.domain) == op.domain;
    if model.functions.iter().any(is_local) {
        return None;
    }
    let opset = *g.opsets.get(&op.domain)?;
    let schema = schema::at_or_first(&op.domain, &op.name, opset)?;
    let operands = g.operands(id).iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    let results = g.results(id).filter(|v| !g.name(*v).is_empty()).last().map_or(0, |v| v.slot as usize + 1);
    if let Some(what) = schema.miscounted(operands, |i| g.operand(id, i).is_some(), results) {
        return Some(ImportError::Node(g.site(id), what));
    }
    let what = schema.misattributed(op).filter(|_| op.domain.is_empty())?;
    Some(ImportError::Schema(g.site(id), format!("{what}; re-export the model")))
}

fn unique(g: &Graph, name: &str, by: &str) -> Result<(), ImportError> {
    if g.find(name).is_some() {
        return Err(ImportError::Duplicate { name: name.to_string(), by: by.to_string() });
    }
    Ok(())
}

/// The operator of a node's message. External data of its constants lies at `home`.
pub(crate) fn operator(node: NodeProto, home: Option<Arc<Home>>) -> Result<Op, TensorError> {
    let op = Op::in_domain(short_domain(&node.domain), &node.op_type, read_attrs(&node, home.as_ref())?);
    Ok(Op { source: Some(Arc::new(node)), ..op })
}

/// Names that a node's subgraphs read from outside, in order; `None` where they are nested too deep.
pub(crate) fn captured_names(node: &NodeProto) -> Option<Vec<String>> {
    read_from_outside(node, &mut HashSet::new())
}

fn read_from_outside(node: &NodeProto, inside: &mut HashSet<String>) -> Option<Vec<String>> {
    let mut free = Vec::new();
    subgraphs(node).try_for_each(|graph| free_names(graph, 1, &mut free, inside))?;
    Some(free)
}

/// Collects the names that a subgraph reads from outside, in order, and the names of its own values. `None` when it is nested more
/// than [`DEEPEST`] deep.
pub(crate) fn free_names(
    graph: &GraphProto,
    depth: usize,
    free: &mut Vec<String>,
    inside: &mut HashSet<String>,
) -> Option<()> {
    if depth > DEEPEST {
        return None;
    }
    let mut own: HashSet<&str> = graph.input.iter().map(|i| i.name.as_str()).collect();
    own.extend(graph.initializer.iter().map(|t| t.name.as_str()));
    own.extend(graph.sparse_initializer.iter().map(|t| t.values.name.as_str()));
    own.extend(graph.node.iter().flat_map(|n| &n.output).map(String::as_str));
    inside.extend(own.iter().map(|name| name.to_string()));
    let mut inner = Vec::new();
    for node in &graph.node {
        inner.extend(node.input.iter().filter(|n| !n.is_empty()).cloned());
        for sub in subgraphs(node) {
            free_names(sub, depth + 1, &mut inner, inside)?;
        }
    }
    inner.extend(graph.output.iter().map(|o| o.name.clone()));
    for name in inner {
        if !own.contains(name.as_str()) && !free.contains(&name) {
            free.push(name);
        }
    }
    Some(())
}

/// A node's operator, read from its message alone. An attribute that cannot be read stays as the message has it.
pub fn op_of(node: &NodeProto) -> Op {
    let read = |a: &AttributeProto| read_attr(a, None).unwrap_or_else(|_| Attr::Opaque(Box::new(a.clone())));
    let attrs = Attrs(node.attribute.iter().map(|a| (a.name.clone(), read(a))).collect());
    Op::in_domain(short_domain(&node.domain), &node.op_type, attrs)
}

fn read_attrs(node: &NodeProto, home: Option<&Arc<Home>>) -> Result<Attrs, TensorError> {
    let read = |a: &AttributeProto| Ok((a.name.clone(), read_attr(a, home)?));
    let mut attrs = Attrs(node.attribute.iter().map(read).collect::<Result<_, TensorError>>()?);
    // `Constant` may give its value in six attributes; the IR reads one.
    if node.op_type == "Constant" && node.domain.is_empty() && attrs.get("value").is_none() {
        let tensor = match attrs.0.values().next() {
            Some(Attr::Int(v)) => Some(Tensor::i64s(&[], &[*v])),
            Some(Attr::Ints(v)) => Some(Tensor::i64s(&[v.len() as i64], v)),
            Some(Attr::Float(v)) => Some(Tensor::f32s(&[], &[*v])),
            Some(Attr::Floats(v)) => Some(Tensor::f32s(&[v.len() as i64], v)),
            _ => None,
        };
        if let Some(t) = tensor {
            attrs.0.insert("value".into(), Attr::Tensor(t));
        }
    }
    Ok(attrs)
}

fn read_attr(a: &AttributeProto, home: Option<&Arc<Home>>) -> Result<Attr, TensorError> {
    let opaque = || Attr::Opaque(Box::new(a.clone()));
    Ok(match a.type_.enum_value() {
        Ok(AttributeType::INT) => Attr::Int(a.i),
        Ok(AttributeType::FLOAT) => Attr::Float(a.f),
        Ok(AttributeType::INTS) => Attr::Ints(a.ints.clone()),
        Ok(AttributeType::FLOATS) => Attr::Floats(a.floats.clone()),
        Ok(AttributeType::STRING) => match String::from_utf8(a.s.clone()) {
            Ok(s) => Attr::Str(s),
            Err(_) => opaque(),
        },
        Ok(AttributeType::TENSOR) => match a.t.as_ref() {
            Some(t) if DType::from_onnx(t.data_type).is_some() => {
                Attr::Tensor(Tensor::from_proto(t.clone(), home.cloned())?)
            }
            _ => opaque(),
        },
        _ => opaque(),
    })
}

/// The tensor type of a declaration; `None` when it declares no tensor.
pub fn read_value_info(info: &ValueInfoProto) -> Option<ValueType> {
    let TypeProto { value: Some(type_proto::Value::TensorType(t)), .. } = info.type_.as_ref()? else { return None };
    let dtype = DType::from_onnx(t.elem_type);
    let shape = t.shape.as_ref().map(|s| {
        s.dim
            .iter()
            .enumerate()
            .map(|(i, d)| match &d.value {
                Some(dimension::Value::DimValue(v)) if *v >= 0 => Dim::from(*v),
                Some(dimension::Value::DimParam(p)) if !p.is_empty() => Dim::parse(p),
                _ => Dim::symbol(&format!("{}_dim_{i}", info.name)),
            })
            .collect()
    });
    Some(ValueType { dtype, shape })
}
