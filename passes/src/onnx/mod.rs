//! ONNX messages to IR and back: the only place that reads or writes node, graph and model messages.
//! [`schema`] has what the standard says of each operator.

mod attributes;
mod body;
mod emit;
mod external;
mod import;
pub mod inline;
mod scan;
pub mod schema;
pub(crate) mod subgraph;
#[cfg(test)]
mod tests;

use onnx_protobuf::{AttributeProto, GraphProto, NodeProto};
use std::collections::HashSet;

pub(crate) use body::body;
pub(crate) use import::{captured_names, free_names, operator};

pub use emit::{Emission, EmitError, MOST_BYTES, Placement, emit, node as node_message};
pub use external::{external_files, linked_files};
pub use import::{ImportError, NEWEST_IR, NEWEST_OPSET, OLDEST_OPSET, import, op_of, read, read_prepared, read_value_info};

/// A domain as the IR names it: the standard one is empty.
pub(crate) fn short_domain(written: &str) -> &str {
    if written == "ai.onnx" { "" } else { written }
}

/// The subgraphs in a node's attributes.
pub(crate) fn subgraphs(node: &NodeProto) -> impl Iterator<Item = &GraphProto> {
    node.attribute.iter().filter(|a| holds_graphs(a)).flat_map(|a| a.g.iter().chain(&a.graphs))
}

/// An attribute that states another type may carry a graph that says nothing.
fn holds_graphs(a: &AttributeProto) -> bool {
    use onnx_protobuf::attribute_proto::AttributeType::{GRAPH, GRAPHS, UNDEFINED};
    matches!(a.type_.enum_value_or_default(), GRAPH | GRAPHS | UNDEFINED)
}

pub(crate) fn subgraphs_mut(node: &mut NodeProto) -> impl Iterator<Item = &mut GraphProto> {
    node.attribute
        .iter_mut()
        .filter(|a| holds_graphs(a))
        .flat_map(|a| a.g.0.iter_mut().map(|g| &mut **g).chain(&mut a.graphs))
}

/// A node's name, or that of its first result where it has none.
fn name_of(node: &NodeProto) -> String {
    if node.name.is_empty() { node.output.first().cloned().unwrap_or_default() } else { node.name.clone() }
}

/// Takes the first free name of `stem`, `stem_1`, `stem_2`, …
fn take_name(stem: &str, taken: &mut HashSet<String>) -> String {
    let mut name = stem.to_string();
    let mut i = 1;
    while !taken.insert(name.clone()) {
        name = format!("{stem}_{i}");
        i += 1;
    }
    name
}
