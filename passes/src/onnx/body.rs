//! A graph as the body of a loop.

use super::emit::{Declarations, EmitError, name_nodes, node, tensor_message};
use crate::ir::{Attr, Graph, Kind};
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, GraphProto, TensorProto};

/// The attribute `body`. The graph's first `captured` inputs stand for values of the graph around it, whose names they have.
///
/// # Errors
/// When an operator is abstract or an attribute cannot be written.
pub(crate) fn body(g: &Graph, captured: usize) -> Result<Attr, EmitError> {
    let mut message = GraphProto { name: "body".into(), ..Default::default() };
    for id in g.topological_order() {
        match &g.node(id).kind {
            Kind::Input(_) => {}
            Kind::Initializer { tensor, .. } => {
                let name = g.name(g.result(id, 0)).to_string();
                let tensor =
                    tensor_message(tensor).ok_or_else(|| EmitError::Attribute { site: g.site(id), name: name.clone() })?;
                message.initializer.push(TensorProto { name, ..tensor });
            }
            Kind::Op(_) => message.node.push(node(g, id)?),
        }
    }
    name_nodes(g, &mut message.node);
    let declarations = Declarations::of(g);
    message.input = g.required_inputs().skip(captured).map(|v| declarations.declare(v)).collect();
    message.output = g.outputs().iter().map(|o| declarations.declare(o.value)).collect();
    let kind = AttributeType::GRAPH.into();
    Ok(Attr::Opaque(Box::new(AttributeProto {
        name: "body".into(),
        type_: kind,
        g: Some(message).into(),
        ..Default::default()
    })))
}
