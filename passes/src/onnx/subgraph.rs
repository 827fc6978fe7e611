//! A node's subgraph as a graph of its own, in which what it captures is an input, and back.

use super::emit::{Declarations, emit};
use super::import::import;
use crate::ir::Graph;
use onnx_protobuf::{GraphProto, Message, ModelProto, OperatorSetIdProto};

/// Changes a subgraph of `g`, whose operators are those of `opset`. `captured` are the outside names it may read.
///
/// # Errors
/// When it is no valid graph, or as the change.
pub(crate) fn change<E>(
    g: &mut Graph,
    sub: &GraphProto,
    captured: &[String],
    opset: i64,
    change: impl FnOnce(&mut Graph) -> Result<(), E>,
    unfit: impl Fn(String) -> E,
) -> Result<GraphProto, E> {
    let mut graph = sub.clone();
    let declarations = Declarations::of(g);
    graph.input.extend(captured.iter().filter_map(|name| g.find(name)).map(|v| declarations.declare(v)));
    let set = |(domain, version): (&String, &i64)| OperatorSetIdProto {
        domain: domain.clone(),
        version: if domain.is_empty() { opset } else { *version },
        ..Default::default()
    };
    let opset_import = g.opsets.iter().map(set).collect();
    let model = ModelProto { ir_version: 10, opset_import, graph: Some(graph).into(), ..Default::default() };
    let dir = g.home.as_ref().map(|h| h.dir.as_path());
    let mut inner = import(model, dir).map_err(|e| unfit(e.to_string()))?;
    // No name means two things, inside and outside.
    let outside = g.nodes().flat_map(|n| g.results(n).collect::<Vec<_>>());
    outside.for_each(|v| inner.reserve(g.name(v)));
    change(&mut inner)?;
    let bytes = emit(&inner).and_then(|e| e.to_bytes()).map_err(|e| unfit(e.to_string()))?;
    let model = ModelProto::parse_from_bytes(&bytes).map_err(|e| unfit(e.to_string()))?;
    inner.nodes().flat_map(|n| inner.results(n).collect::<Vec<_>>()).for_each(|v| g.reserve(inner.name(v)));
    let mut graph = model.graph.unwrap_or_default();
    graph.input.retain(|i| !captured.contains(&i.name));
    Ok(graph)
}
