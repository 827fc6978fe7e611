//! IR to ONNX file. Initializers are written straight from where they live; the model message never holds a second copy.

use super::external::{relocate, relocate_tensor};
use super::import::read_value_info;
use super::{name_of, short_domain, take_name};
use crate::ir::{ANCRE, Attr, DType, Dim, Graph, Kind, NodeId, NodeSite, Parts, Tensor, ValueId, ValueType};
use crate::refusal::Hint;
use indexmap::IndexMap;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use protobuf::CodedOutputStream;
use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::io::Write;

/// Why a graph cannot be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum EmitError {
    #[error("{0} is an abstract operator that no pass has lowered")]
    NotLowered(NodeSite),
    #[error("attribute `{name}` of {site} cannot be written")]
    Attribute { site: NodeSite, name: String },
    #[error(
        "the model would be {0} bytes, over the 2 GiB that one ONNX message may have; it can be written, with its weights in an external data file, but not be verified"
    )]
    TooLarge(u64),
    #[error("writing failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("encoding failed: {0}")]
    Encode(#[from] protobuf::Error),
}

impl EmitError {
    /// What the user may do about it.
    pub fn hint(&self) -> Option<Hint> {
        matches!(self, EmitError::TooLarge(_)).then_some(Hint::SkipVerification)
    }
}

/// Where a model's large tensors go.
#[derive(Clone, Debug, Default)]
pub struct Placement {
    /// External data files under another name: old location, new location.
    pub moved: IndexMap<String, String>,
    /// An external data file of this name takes the tensors that would be in the model.
    pub data: Option<String>,
}

/// Size that a model file may have: readers count its bytes in 32 bits with a sign.
pub const MOST_BYTES: u64 = (1 << 31) - (1 << 16);

/// Tensors below this stay in the model when it gets an external data file.
const SMALLEST_EXTERNAL: usize = 1024;

/// A model ready to be written: everything but the initializers' bytes is encoded.
pub struct Emission<'g> {
    source: &'g Graph,
    /// The model's fields outside the graph, encoded.
    model: Vec<u8>,
    /// The graph's fields outside the initializers, encoded.
    graph: Vec<u8>,
    initializers: Vec<Piece<'g>>,
    graph_len: u64,
    /// Content of the external data file, by offset.
    data: Vec<(u64, &'g [u8])>,
    /// Number of operator nodes.
    pub nodes: usize,
}

/// One initializer: header and payload of its message, or the message itself.
enum Piece<'g> {
    Verbatim(&'g TensorProto, u64),
    Split { head: Vec<u8>, bytes: &'g [u8] },
    Owned(Vec<u8>),
}

impl Piece<'_> {
    fn len(&self) -> u64 {
        match self {
            Piece::Verbatim(_, n) => *n,
            Piece::Split { head, bytes } => head.len() as u64 + tag_len(bytes.len() as u64),
            Piece::Owned(message) => message.len() as u64,
        }
    }
}

const fn varint_len(v: u64) -> u64 {
    let bits = 64 - (v | 1).leading_zeros() as u64;
    bits.div_ceil(7)
}

/// Length of a length-delimited field with a one-byte tag.
const fn tag_len(payload: u64) -> u64 {
    1 + varint_len(payload) + payload
}

const GRAPH_FIELD: u32 = 7;
const INITIALIZER_FIELD: u32 = 5;
const RAW_DATA_FIELD: u32 = 9;
const LENGTH_DELIMITED: u32 = 2;

impl<'g> Emission<'g> {
    /// The graph it is of.
    pub fn graph(&self) -> &'g Graph {
        self.source
    }

    /// The same model with its data elsewhere.
    ///
    /// # Errors
    /// As [`emit`].
    pub fn placed(&self, placement: &Placement) -> Result<Emission<'g>, EmitError> {
        emit_placed(self.source, placement)
    }

    /// Writes the external data file.
    ///
    /// # Errors
    /// When the writer fails.
    pub fn write_data(&self, out: &mut dyn Write) -> Result<(), EmitError> {
        let mut at = 0;
        for (offset, bytes) in &self.data {
            std::io::copy(&mut std::io::Read::take(std::io::repeat(0), offset - at), out)?;
            out.write_all(bytes)?;
            at = offset + bytes.len() as u64;
        }
        Ok(())
    }

    /// Size of the file in bytes.
    pub fn byte_len(&self) -> u64 {
        self.model.len() as u64 + tag_len(self.graph_len)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it would pass 2 GiB or the writer fails.
    pub fn write_to(&self, out: &mut dyn Write) -> Result<(), EmitError> {
        if self.byte_len() > MOST_BYTES {
            return Err(EmitError::TooLarge(self.byte_len()));
        }
        let mut w = CodedOutputStream::new(out);
        w.write_raw_bytes(&self.model)?;
        w.write_raw_varint32(GRAPH_FIELD << 3 | LENGTH_DELIMITED)?;
        w.write_raw_varint64(self.graph_len)?;
        w.write_raw_bytes(&self.graph)?;
        for piece in &self.initializers {
            w.write_raw_varint32(INITIALIZER_FIELD << 3 | LENGTH_DELIMITED)?;
            w.write_raw_varint64(piece.len())?;
            match piece {
                Piece::Verbatim(p, _) => p.write_to_with_cached_sizes(&mut w)?,
                Piece::Owned(message) => w.write_raw_bytes(message)?,
                Piece::Split { head, bytes } => {
                    w.write_raw_bytes(head)?;
                    w.write_raw_varint32(RAW_DATA_FIELD << 3 | LENGTH_DELIMITED)?;
                    w.write_raw_varint64(bytes.len() as u64)?;
                    w.write_raw_bytes(bytes)?;
                }
            }
        }
        w.flush()?;
        Ok(())
    }

    /// The file as bytes.
    ///
    /// # Errors
    /// As [`Emission::write_to`].
    pub fn to_bytes(&self) -> Result<Vec<u8>, EmitError> {
        let mut bytes = Vec::with_capacity(self.byte_len() as usize);
        self.write_to(&mut bytes)?;
        Ok(bytes)
    }
}

/// Prepares a graph for writing.
///
/// # Errors
/// When an abstract operator is left or the graph has a cycle.
pub fn emit(g: &Graph) -> Result<Emission<'_>, EmitError> {
    emit_placed(g, &Placement::default())
}

fn emit_placed<'g>(g: &'g Graph, placement: &Placement) -> Result<Emission<'g>, EmitError> {
    let mut model: ModelProto = (*g.shell).clone();
    model.opset_import = operator_sets(g);
    model.metadata_props = g
        .metadata
        .iter()
        .map(|(k, v)| StringStringEntryProto { key: k.clone(), value: v.clone(), ..Default::default() })
        .collect();
    let mut graph: GraphProto = (*g.graph_shell).clone();
    graph.value_info.retain(|i| g.find(&i.name).is_some());
    let declarations = Declarations::of(g);
    let listed_constants = model.ir_version < 4;
    let listed = std::mem::take(&mut graph.input);
    let mut initializers = Vec::new();
    let mut data = Data { file: placement.data.as_deref(), next: 0, content: Vec::new() };
    for id in g.topological_order() {
        match &g.node(id).kind {
            Kind::Input(_) => {}
            Kind::Initializer { tensor, .. } => {
                let name = g.name(g.result(id, 0));
                if let Parts::Sparse(p) = tensor.parts() {
                    graph.sparse_initializer.push(sparse(p, name));
                } else {
                    initializers.push(data.take(initializer(tensor, name, placement)?)?);
                }
                if listed_constants && !g.inputs().contains(&id) {
                    graph.input.push(declarations.declare(g.result(id, 0)));
                }
            }
            Kind::Op(_) => graph.node.push(node(g, id)?),
        }
    }
    graph.value_info.extend(router_values(&declarations, &graph));
    name_nodes(g, &mut graph.node);
    if !placement.moved.is_empty() {
        relocate(&mut graph.node, &placement.moved);
        model.functions.iter_mut().for_each(|f| relocate(&mut f.node, &placement.moved));
    }
    let nodes = graph.node.len();
    let inputs = g.inputs().iter().map(|id| {
        let v = g.result(*id, 0);
        match &g.node(*id).kind {
            Kind::Input(Some(info)) if info.name == g.name(v) => (**info).clone(),
            Kind::Initializer { .. } => {
                let as_listed = listed.iter().find(|info| info.name == g.name(v) && still_holds(info, g, v));
                as_listed.cloned().unwrap_or_else(|| declarations.declare(v))
            }
            _ => declarations.declare(v),
        }
    });
    graph.input = inputs.chain(std::mem::take(&mut graph.input)).collect();
    graph.output = g
        .outputs()
        .iter()
        .map(|o| match &o.info {
            Some(info) => ValueInfoProto { name: g.name(o.value).to_string(), ..(**info).clone() },
            None => declarations.declare(o.value),
        })
        .collect();
    let model = model.write_to_bytes()?;
    let graph = graph.write_to_bytes()?;
    let graph_len = graph.len() as u64 + initializers.iter().map(|p| tag_len(p.len())).sum::<u64>();
    Ok(Emission { source: g, model, graph, initializers, graph_len, data: data.content, nodes })
}

/// The source's operator sets at the graph's versions, then those that were added.
fn operator_sets(g: &Graph) -> Vec<OperatorSetIdProto> {
    let now = |o: &OperatorSetIdProto| {
        let version = *g.opsets.get(short_domain(&o.domain))?;
        Some(OperatorSetIdProto { version, ..o.clone() })
    };
    let kept: Vec<OperatorSetIdProto> = g.shell.opset_import.iter().filter_map(now).collect();
    let is_kept = |domain: &String| kept.iter().any(|o| short_domain(&o.domain) == domain);
    let added = g.opsets.iter().filter(|(domain, _)| *domain != ANCRE && !is_kept(domain));
    let added = added.map(|(d, v)| OperatorSetIdProto { domain: d.clone(), version: *v, ..Default::default() }).collect();
    [kept, added].concat()
}

/// Does a declaration of the source say what is known of the value?
fn still_holds(info: &ValueInfoProto, g: &Graph, v: ValueId) -> bool {
    let known = &g.value(v).ty;
    read_value_info(info).is_none_or(|said| said.dtype == known.dtype && said.shape.is_none_or(|s| Some(s) == known.shape))
}

/// Declarations of the router's values, so that viewers show their shapes. The source's own values keep the source's
/// declarations.
fn router_values(declarations: &Declarations, graph: &GraphProto) -> Vec<ValueInfoProto> {
    let g = declarations.g;
    let outputs: HashSet<ValueId> = g.outputs().iter().map(|o| o.value).collect();
    let declared: HashSet<&str> = graph.value_info.iter().map(|i| i.name.as_str()).collect();
    let values = graph.node.iter().flat_map(|n| &n.output).filter(|name| name.starts_with("ancre/"));
    let values = values.filter(|name| !declared.contains(name.as_str())).filter_map(|name| g.find(name));
    values.filter(|v| !outputs.contains(v) && g.tensor_type(*v).is_some()).map(|v| declarations.declare(v)).collect()
}

/// Gives the nodes that passes added names that no other node has: ONNX Runtime refuses a file with two nodes of one name. Nodes of
/// the source keep theirs.
pub(super) fn name_nodes(g: &Graph, nodes: &mut [NodeProto]) {
    let of_source = |n: &NodeProto| {
        n.output.iter().find_map(|o| g.find(o)).is_some_and(|v| g.op(v.node).is_some_and(|op| op.source.is_some()))
    };
    let mut taken: HashSet<String> = nodes.iter().filter(|n| of_source(n)).map(|n| n.name.clone()).collect();
    for n in nodes {
        if of_source(n) {
            continue;
        }
        n.name = take_name(&name_of(n), &mut taken);
    }
}

/// The external data file of an emission in the making.
struct Data<'p, 'g> {
    file: Option<&'p str>,
    next: u64,
    content: Vec<(u64, &'g [u8])>,
}

impl<'g> Data<'_, 'g> {
    /// Moves a large piece's bytes into the file, if there is one.
    fn take(&mut self, piece: Piece<'g>) -> Result<Piece<'g>, EmitError> {
        let Some(file) = self.file else { return Ok(piece) };
        let (mut message, bytes) = match piece {
            Piece::Split { head, bytes } if bytes.len() >= SMALLEST_EXTERNAL => (head, bytes),
            other => return Ok(other),
        };
        // Runtimes map large tensors, and a mapping starts at a page.
        let alignment = if bytes.len() >= 1 << 20 { 4096 } else { 64 };
        let offset = self.next.next_multiple_of(alignment);
        self.next = offset + bytes.len() as u64;
        self.content.push((offset, bytes));
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value, ..Default::default() };
        let place = TensorProto {
            data_location: DataLocation::EXTERNAL.into(),
            external_data: vec![
                entry("location", file.to_string()),
                entry("offset", offset.to_string()),
                entry("length", bytes.len().to_string()),
            ],
            ..Default::default()
        };
        // Fields of one message may come in any order and in parts.
        message.extend(place.write_to_bytes()?);
        Ok(Piece::Owned(message))
    }
}

fn initializer<'g>(tensor: &'g Tensor, name: &str, placement: &Placement) -> Result<Piece<'g>, EmitError> {
    let split = |head: TensorProto, bytes| Ok(Piece::Split { head: head.write_to_bytes()?, bytes });
    match tensor.parts() {
        Parts::Message(p) if p.raw_data.len() >= SMALLEST_EXTERNAL => split(head_of(p, name), &p.raw_data),
        Parts::Message(p) if p.name == name && (placement.moved.is_empty() || tensor.external().is_none()) => {
            Ok(Piece::Verbatim(p, p.compute_size()))
        }
        Parts::Message(p) => {
            let mut copy = TensorProto { name: name.to_string(), ..p.clone() };
            relocate_tensor(&mut copy, &placement.moved);
            Ok(Piece::Owned(copy.write_to_bytes()?))
        }
        Parts::Split(head, bytes) => split(head_of(head, name), bytes),
        Parts::Elements(bytes) => split(tensor_head(tensor, name), bytes),
        // `emit_placed` writes it among the graph's sparse initializers.
        Parts::Sparse(_) => Ok(Piece::Owned(Vec::new())),
    }
}

/// A message without its elements, which are in `raw_data`.
fn head_of(p: &TensorProto, name: &str) -> TensorProto {
    TensorProto {
        name: name.to_string(),
        dims: p.dims.clone(),
        data_type: p.data_type,
        segment: p.segment.clone(),
        doc_string: p.doc_string.clone(),
        metadata_props: p.metadata_props.clone(),
        special_fields: p.special_fields.clone(),
        ..Default::default()
    }
}

fn tensor_head(tensor: &Tensor, name: &str) -> TensorProto {
    TensorProto {
        name: name.to_string(),
        dims: tensor.dims().to_vec(),
        data_type: tensor.dtype().onnx(),
        ..Default::default()
    }
}

fn sparse(p: &SparseTensorProto, name: &str) -> SparseTensorProto {
    let mut p = p.clone();
    if let Some(values) = p.values.as_mut() {
        values.name = name.to_string();
    }
    p
}

/// The message of one operator node. Empty for graph inputs and initializers.
///
/// # Errors
/// When the operator is abstract or an attribute cannot be written.
pub fn node(g: &Graph, id: NodeId) -> Result<NodeProto, EmitError> {
    let n = g.node(id);
    let Some(op) = n.op() else { return Ok(NodeProto::new()) };
    if op.domain == ANCRE {
        return Err(EmitError::NotLowered(g.site(id)));
    }
    let mut p = match &op.source {
        Some(source) => (**source).clone(),
        None => NodeProto { op_type: op.name.clone(), domain: op.domain.clone(), ..Default::default() },
    };
    p.name.clone_from(&n.name);
    p.input = g.operands(id).iter().map(|v| v.map(|v| g.name(v).to_string()).unwrap_or_default()).collect();
    p.output = n.results().iter().map(|v| v.name.clone()).collect();
    if p.output.iter().all(String::is_empty) {
        p.output.clear();
    }
    if op.source.is_none() || op.attrs_changed {
        p.attribute = op
            .attrs
            .0
            .iter()
            .map(|(name, a)| attribute(name, a).ok_or_else(|| EmitError::Attribute { site: g.site(id), name: name.clone() }))
            .collect::<Result<_, _>>()?;
    }
    Ok(p)
}

fn attribute(name: &str, a: &Attr) -> Option<AttributeProto> {
    let empty = AttributeProto { name: name.to_string(), ..Default::default() };
    let (kind, p) = match a {
        Attr::Int(v) => (AttributeType::INT, AttributeProto { i: *v, ..empty }),
        Attr::Float(v) => (AttributeType::FLOAT, AttributeProto { f: *v, ..empty }),
        Attr::Str(v) => (AttributeType::STRING, AttributeProto { s: v.clone().into_bytes(), ..empty }),
        Attr::Ints(v) => (AttributeType::INTS, AttributeProto { ints: v.clone(), ..empty }),
        Attr::Floats(v) => (AttributeType::FLOATS, AttributeProto { floats: v.clone(), ..empty }),
        Attr::Tensor(t) => (AttributeType::TENSOR, AttributeProto { t: Some(tensor_message(t)?).into(), ..empty }),
        Attr::Opaque(source) => return Some((**source).clone()),
    };
    Some(AttributeProto { type_: kind.into(), ..p })
}

pub(super) fn tensor_message(t: &Tensor) -> Option<TensorProto> {
    Some(match t.parts() {
        Parts::Message(p) => p.clone(),
        Parts::Split(head, bytes) => TensorProto { raw_data: bytes.to_vec(), ..head.clone() },
        Parts::Elements(bytes) => TensorProto { raw_data: bytes.to_vec(), ..tensor_head(t, "") },
        Parts::Sparse(_) => TensorProto { raw_data: t.bytes().ok()?.to_vec(), ..tensor_head(t, "") },
    })
}

/// Declares the values of a graph.
pub(super) struct Declarations<'g> {
    g: &'g Graph,
    /// Names for the symbols that shape rules made up, once one is asked for.
    lasting: OnceCell<HashMap<String, Dim>>,
}

impl<'g> Declarations<'g> {
    pub(super) fn of(g: &'g Graph) -> Declarations<'g> {
        Declarations { g, lasting: OnceCell::new() }
    }

    /// Declares a value with what is known of its type.
    pub(super) fn declare(&self, v: ValueId) -> ValueInfoProto {
        let mut ty = self.g.value(v).ty.clone();
        ty.shape.iter_mut().flatten().filter(|d| d.is_unnamed()).for_each(|d| *d = self.with_lasting_names(d));
        ValueInfoProto { name: self.g.name(v).to_string(), type_: Some(type_message(&ty)).into(), ..Default::default() }
    }

    /// The extent with the symbols that shape rules made up named after the first value that has them as an axis. A rule's own name
    /// for an extent is another one in each run.
    fn with_lasting_names(&self, d: &Dim) -> Dim {
        let (lasting, unknown) = (self.lasting.get_or_init(|| lasting_names(self.g)), Dim::symbol("?"));
        let made_up = d.symbols().filter(|s| s.starts_with('?'));
        made_up.fold(d.clone(), |named, symbol| named.substitute(symbol, lasting.get(symbol).unwrap_or(&unknown)))
    }
}

fn lasting_names(g: &Graph) -> HashMap<String, Dim> {
    let mut names = HashMap::new();
    for v in g.topological_order().into_iter().flat_map(|n| g.results(n)) {
        for (axis, d) in g.value(v).ty.shape.iter().flatten().enumerate().filter(|(_, d)| d.is_unnamed()) {
            let Some(symbol) = d.symbols().next().filter(|s| *d == Dim::symbol(s)) else { continue };
            names.entry(symbol.to_string()).or_insert_with(|| {
                let name = g.name(v).replace(|c: char| !c.is_alphanumeric() && !"_.:".contains(c), "_");
                Dim::symbol(&format!("?{name}_{axis}"))
            });
        }
    }
    names
}

fn type_message(ty: &ValueType) -> TypeProto {
    let mut tensor = type_proto::Tensor { elem_type: ty.dtype.map(DType::onnx).unwrap_or(0), ..Default::default() };
    if let Some(shape) = &ty.shape {
        tensor.shape =
            Some(TensorShapeProto { dim: shape.iter().map(dimension_message).collect(), ..Default::default() }).into();
    }
    TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() }
}

fn dimension_message(d: &Dim) -> Dimension {
    let value = match d.known() {
        Some(v) => dimension::Value::DimValue(v),
        None => dimension::Value::DimParam(d.to_string()),
    };
    Dimension { value: Some(value), ..Default::default() }
}
