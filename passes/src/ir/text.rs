//! A textual form of graphs, for tests and for people: a subset of ONNX's own text syntax, abstract operators as `ancre.Op`.

use super::{Attr, Graph, Kind};
use std::fmt::Write;

/// The operator nodes of a graph, one a line: `results = Op <attributes> (operands)`.
pub fn body(g: &Graph) -> String {
    let mut out = String::new();
    for id in g.topological_order().unwrap_or_else(|_| g.nodes().collect()) {
        let Kind::Op(op) = &g.node(id).kind else { continue };
        let results: Vec<&str> = g.node(id).results().iter().map(|v| v.name.as_str()).collect();
        let operands: Vec<&str> = g.operands(id).iter().map(|v| v.map_or("", |v| g.name(v))).collect();
        let attrs: Vec<String> = op.attrs.0.iter().map(|(n, a)| format!("{n} = {}", attr(a))).collect();
        let attrs = if attrs.is_empty() { String::new() } else { format!(" <{}>", attrs.join(", ")) };
        let _ = writeln!(out, "{} = {}{attrs} ({})", results.join(", "), op.full_name(), operands.join(", "));
    }
    out
}

fn attr(a: &Attr) -> String {
    match a {
        Attr::Int(v) => v.to_string(),
        Attr::Float(v) => format!("{v:?}"),
        Attr::Str(v) => format!("{v:?}"),
        Attr::Ints(v) => format!("{v:?}"),
        Attr::Floats(v) => format!("{v:?}"),
        Attr::Tensor(t) => format!("{}{:?}", t.dtype().onnx_name(), t.dims()),
        Attr::Opaque(_) => "…".into(),
    }
}
