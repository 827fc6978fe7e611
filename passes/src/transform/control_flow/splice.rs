//! Puts a subgraph's nodes into the graph around it.

use crate::ir::{Attrs, Graph, NodeId, Op, Tensor, ValueId, ValueType};
use crate::onnx::{captured_names, operator, subgraphs_mut};
use crate::refusal::Why;
use onnx_protobuf::{GraphProto, NodeProto, TensorProto};
use std::collections::HashMap;

/// What a subgraph became.
pub(super) struct Spliced {
    /// Its nodes, producers first.
    pub nodes: Vec<NodeId>,
    /// Names of the values that its outputs are.
    pub outputs: Vec<String>,
}

/// Names in a subgraph, with the names that the values have outside. A name that is not listed is the same.
pub(super) type Names = HashMap<String, String>;

/// Puts the nodes at `at`'s place in the file. `actual` is what the formal inputs stand for.
///
/// # Errors
/// When a tensor in it cannot be read, or a name in it is defined nowhere.
pub(super) fn splice(g: &mut Graph, body: &GraphProto, actual: &[ValueId], at: NodeId) -> Result<Spliced, Why> {
    let mut names: Names = body.input.iter().map(|i| i.name.clone()).zip(actual.iter().map(|v| g.name(*v).into())).collect();
    g.insert_at(Some(at));
    let sparse = body.sparse_initializer.iter().map(|t| (&t.values.name, Tensor::from_sparse(t.clone())));
    let home = g.home.clone();
    let dense = |t: &TensorProto| Tensor::from_proto(t.clone(), home.clone());
    for (name, tensor) in body.initializer.iter().map(|t| (&t.name, dense(t))).chain(sparse) {
        let v = g.add_initializer(
            name,
            tensor.map_err(|e| Why::Form(format!("holds a constant that cannot be read: {e}")))?,
            false,
        );
        names.insert(name.clone(), g.name(v).to_string());
    }
    let nodes = body.node.iter().map(|n| node(g, n, &mut names)).collect::<Result<Vec<_>, _>>()?;
    g.insert_at(None);
    let outputs = body.output.iter().map(|o| outer(&names, &o.name).to_string()).collect();
    Ok(Spliced { nodes, outputs })
}

fn outer<'a>(names: &'a Names, name: &'a str) -> &'a str {
    names.get(name).map_or(name, String::as_str)
}

fn node(g: &mut Graph, n: &NodeProto, names: &mut Names) -> Result<NodeId, Why> {
    let mut n = n.clone();
    rename_captures(&mut n, names);
    let find =
        |g: &Graph, name: &str| g.find(name).ok_or_else(|| Why::Form(format!("reads `{name}`, which nothing produces")));
    let read = |name: &String| if name.is_empty() { Ok(None) } else { find(g, outer(names, name)).map(Some) };
    let operands = n.input.iter().map(read).collect::<Result<Vec<_>, Why>>()?;
    let captures = captured_names(&n).ok_or_else(|| Why::Form("holds subgraphs that are nested too deep".into()))?;
    let captures = captures.iter().map(|name| find(g, name)).collect::<Result<Vec<_>, Why>>()?;
    let outputs = n.output.clone();
    let op = operator(n, g.home.clone()).map_err(|e| Why::Form(format!("holds a constant that cannot be read: {e}")))?;
    let id = g.add_op("", op, &operands);
    for name in &outputs {
        let v = g.push_result(id, name, ValueType::default());
        names.insert(name.clone(), g.name(v).to_string());
    }
    captures.into_iter().for_each(|v| g.add_capture(id, v));
    // Two nodes of one name are refused by ONNX Runtime, and a body may be put here many times.
    g.node_mut(id).name = g.site(id).name;
    Ok(id)
}

/// Gives what a node's subgraphs read from outside its names there.
pub(super) fn rename_captures(n: &mut NodeProto, names: &Names) {
    for graph in subgraphs_mut(n) {
        let mut names = names.clone();
        let own = graph.input.iter().map(|i| &i.name).chain(graph.initializer.iter().map(|t| &t.name));
        for name in own.chain(graph.node.iter().flat_map(|n| &n.output)) {
            names.remove(name);
        }
        for n in &mut graph.node {
            n.input.iter_mut().for_each(|name| *name = outer(&names, name).to_string());
            rename_captures(n, &names);
        }
        graph.output.iter_mut().for_each(|o| o.name = outer(&names, &o.name).to_string());
    }
}

/// A copy of a value.
pub(super) fn copy(g: &mut Graph, v: ValueId, at: NodeId) -> ValueId {
    let (ty, name) = (g.value(v).ty.clone(), format!("{}/copy", g.name(v)));
    g.insert_at(Some(at));
    let node = g.add_op(&name, Op::new("Identity", Attrs::new()), &[Some(v)]);
    g.insert_at(None);
    g.push_result(node, &name, ty)
}
