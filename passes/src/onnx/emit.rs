//! IR to ONNX file. Initializers are written straight from where they live; the model message never holds a second copy.

use crate::ir::{ANCRE, Attr, DType, Dim, Graph, Kind, NodeId, NodeSite, Tensor, TensorType, ValueId, ValueType};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, GraphProto, Message, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};
use protobuf::CodedOutputStream;
use std::collections::HashSet;
use std::io::Write;

/// Why a graph cannot be written.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum EmitError {
    #[error("{0} is an abstract operator that no pass has lowered")]
    NotLowered(NodeSite),
    #[error("{0} is on a cycle")]
    Cycle(NodeSite),
    #[error("attribute `{name}` of {site} cannot be written")]
    Attribute { site: NodeSite, name: String },
    #[error(
        "the model would be {0} bytes, over the 2 GiB that one ONNX file may have; keep its weights in an external data file"
    )]
    TooLarge(u64),
    #[error("writing failed: {0}")]
    Io(#[from] std::io::Error),
    #[error("encoding failed: {0}")]
    Encode(#[from] protobuf::Error),
}

/// A model ready to be written: everything but the initializers' bytes is encoded.
pub struct Emission<'g> {
    /// The model's fields outside the graph, encoded.
    model: Vec<u8>,
    /// The graph's fields outside the initializers, encoded.
    graph: Vec<u8>,
    initializers: Vec<Piece<'g>>,
    graph_len: u64,
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

impl Emission<'_> {
    /// Size of the file in bytes.
    pub fn byte_len(&self) -> u64 {
        self.model.len() as u64 + tag_len(self.graph_len)
    }

    /// Writes the file.
    ///
    /// # Errors
    /// When it would pass 2 GiB or the writer fails.
    pub fn write_to(&self, out: &mut dyn Write) -> Result<(), EmitError> {
        if self.byte_len() >= 1 << 31 {
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
    let mut model: ModelProto = (*g.shell).clone();
    model.opset_import = g
        .opsets
        .iter()
        .filter(|(d, _)| *d != ANCRE)
        .map(|(d, v)| OperatorSetIdProto { domain: d.clone(), version: *v, ..Default::default() })
        .collect();
    model.metadata_props = g
        .metadata
        .iter()
        .map(|(k, v)| StringStringEntryProto { key: k.clone(), value: v.clone(), ..Default::default() })
        .collect();
    let mut graph: GraphProto = (*g.graph_shell).clone();
    graph.value_info.retain(|i| g.find(&i.name).is_some());
    let listed_constants = model.ir_version < 4;
    let mut initializers = Vec::new();
    for id in g.topological_order().map_err(EmitError::Cycle)? {
        match &g.node(id).kind {
            Kind::Input(_) => {}
            Kind::Initializer { tensor, .. } => {
                initializers.push(initializer(tensor, g.name(g.result(id, 0)))?);
                if listed_constants && !g.inputs().contains(&id) {
                    graph.input.push(declare(g, g.result(id, 0)));
                }
            }
            Kind::Op(_) => graph.node.push(node(g, id)?),
        }
    }
    graph.value_info.extend(router_values(g, &graph));
    name_nodes(g, &mut graph.node);
    let nodes = graph.node.len();
    let inputs = g.inputs().iter().map(|id| {
        let v = g.result(*id, 0);
        match &g.node(*id).kind {
            Kind::Input(Some(info)) if info.name == g.name(v) => (**info).clone(),
            _ => declare(g, v),
        }
    });
    graph.input = inputs.chain(std::mem::take(&mut graph.input)).collect();
    graph.output = g
        .outputs()
        .iter()
        .map(|o| match &o.info {
            Some(info) => ValueInfoProto { name: g.name(o.value).to_string(), ..(**info).clone() },
            None => declare(g, o.value),
        })
        .collect();
    let model = model.write_to_bytes()?;
    let graph = graph.write_to_bytes()?;
    let graph_len = graph.len() as u64 + initializers.iter().map(|p| tag_len(p.len())).sum::<u64>();
    Ok(Emission { model, graph, initializers, graph_len, nodes })
}

/// Declarations of the router's values, so that viewers show their shapes: the source's own values are declared as the source
/// declares them.
fn router_values(g: &Graph, graph: &GraphProto) -> Vec<ValueInfoProto> {
    let outputs: HashSet<ValueId> = g.outputs().iter().map(|o| o.value).collect();
    let declared: HashSet<&str> = graph.value_info.iter().map(|i| i.name.as_str()).collect();
    let values = graph.node.iter().flat_map(|n| &n.output).filter(|name| name.starts_with("ancre/"));
    let values = values.filter(|name| !declared.contains(name.as_str())).filter_map(|name| g.find(name));
    values.filter(|v| !outputs.contains(v) && g.tensor_type(*v).is_some()).map(|v| declare(g, v)).collect()
}

/// Gives nodes of ours names that no other node has: ONNX Runtime refuses a file with two nodes of one name. Source nodes
/// keep theirs.
fn name_nodes(g: &Graph, nodes: &mut [NodeProto]) {
    let of_source = |n: &NodeProto| {
        n.output.iter().find_map(|o| g.find(o)).is_some_and(|v| g.op(v.node).is_some_and(|op| op.source.is_some()))
    };
    let mut taken: HashSet<String> = nodes.iter().filter(|n| of_source(n)).map(|n| n.name.clone()).collect();
    for n in nodes {
        if of_source(n) {
            continue;
        }
        let stem = if n.name.is_empty() { n.output.first().cloned().unwrap_or_default() } else { n.name.clone() };
        let mut name = stem.clone();
        let mut i = 1;
        while !taken.insert(name.clone()) {
            name = format!("{stem}_{i}");
            i += 1;
        }
        n.name = name;
    }
}

fn initializer<'g>(tensor: &'g Tensor, name: &str) -> Result<Piece<'g>, EmitError> {
    if let Some(p) = tensor.proto() {
        if p.name == name {
            let size = p.compute_size();
            return Ok(Piece::Verbatim(p, size));
        }
        if p.raw_data.is_empty() {
            let renamed = TensorProto { name: name.to_string(), ..(**p).clone() };
            // Its data is in typed fields or external: an empty `raw_data` beside them would contradict it.
            return Ok(Piece::Owned(renamed.write_to_bytes()?));
        }
        let head =
            TensorProto { name: name.to_string(), dims: p.dims.clone(), data_type: p.data_type, ..Default::default() };
        return Ok(Piece::Split { head: head.write_to_bytes()?, bytes: &p.raw_data });
    }
    let head = TensorProto {
        name: name.to_string(),
        dims: tensor.dims().to_vec(),
        data_type: tensor.dtype().onnx(),
        ..Default::default()
    };
    Ok(Piece::Split { head: head.write_to_bytes()?, bytes: tensor.raw().map(|b| b.as_slice()).unwrap_or_default() })
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
    let mut p = AttributeProto { name: name.to_string(), ..Default::default() };
    let kind = match a {
        Attr::Int(v) => {
            p.i = *v;
            AttributeType::INT
        }
        Attr::Float(v) => {
            p.f = *v;
            AttributeType::FLOAT
        }
        Attr::Str(v) => {
            p.s = v.clone().into_bytes();
            AttributeType::STRING
        }
        Attr::Ints(v) => {
            p.ints = v.clone();
            AttributeType::INTS
        }
        Attr::Floats(v) => {
            p.floats = v.clone();
            AttributeType::FLOATS
        }
        Attr::Tensor(t) => {
            p.t = protobuf::MessageField::some(tensor_message(t)?);
            AttributeType::TENSOR
        }
        Attr::Opaque(source) => return Some((**source).clone()),
    };
    p.type_ = kind.into();
    Some(p)
}

fn tensor_message(t: &Tensor) -> Option<TensorProto> {
    if let Some(p) = t.proto() {
        return Some((**p).clone());
    }
    Some(TensorProto {
        dims: t.dims().to_vec(),
        data_type: t.dtype().onnx(),
        raw_data: t.raw()?.to_vec(),
        ..Default::default()
    })
}

/// Declares a value with what is known of its type.
fn declare(g: &Graph, v: ValueId) -> ValueInfoProto {
    ValueInfoProto { name: g.name(v).to_string(), type_: Some(type_message(&g.value(v).ty)).into(), ..Default::default() }
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

/// A type as ONNX text, for messages.
impl TensorType {
    /// `float[batch,3]` and the like.
    pub fn onnx_text(&self) -> String {
        let dims: Vec<String> = self.shape.iter().map(Dim::to_string).collect();
        format!("{}[{}]", self.dtype.onnx_name(), dims.join(","))
    }
}
