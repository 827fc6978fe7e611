//! Bodies of control flow as keys: equal up to the names of the values in them.

use onnx_protobuf::{AttributeProto, GraphProto, Message, NodeProto};
use std::collections::HashMap;

/// An attribute as bytes. In the graphs it holds, values are numbered in the order in which they are met, and values from outside
/// by their place among `captured`. `None` when a value from outside is not among these.
pub(super) fn canonical(a: &AttributeProto, captured: &[&str]) -> Option<Vec<u8>> {
    let mut a = a.clone();
    a.doc_string.clear();
    let mut names = Names { captured, ..Names::default() };
    if let Some(g) = a.g.as_mut() {
        names.graph(g);
    }
    for g in &mut a.graphs {
        names.graph(g);
    }
    if names.lost { None } else { a.write_to_bytes().ok() }
}

/// An attribute whose names cannot be told apart, as the file has it, behind the names of the values that it reads.
pub(super) fn as_written(a: &AttributeProto, captured: &[&str]) -> Option<Vec<u8>> {
    // No message begins so.
    let mut bytes = vec![0xff];
    bytes.extend(captured.join("\0").bytes().chain([0]));
    bytes.extend(a.write_to_bytes().ok()?);
    Some(bytes)
}

/// The graphs in an attribute.
pub(super) fn of(a: &AttributeProto) -> impl Iterator<Item = &GraphProto> {
    a.g.iter().chain(&a.graphs)
}

/// Does `which` hold for the operator of a node, or for one in its subgraphs?
pub(super) fn holds(n: &NodeProto, which: &dyn Fn(&str) -> bool) -> bool {
    which(&n.op_type) || n.attribute.iter().flat_map(of).flat_map(|g| &g.node).any(|n| holds(n, which))
}

/// Numbers of names, innermost graph last. The values behind names from outside are operands of the term, in the order of
/// `captured`.
#[derive(Default)]
struct Names<'a> {
    captured: &'a [&'a str],
    scopes: Vec<HashMap<String, String>>,
    next: usize,
    /// Was a name met that is neither defined nor captured, or one that is defined twice?
    lost: bool,
}

impl Names<'_> {
    fn define(&mut self, name: &mut String) {
        if name.is_empty() {
            return;
        }
        self.next += 1;
        let new = format!("v{}", self.next);
        if let Some(scope) = self.scopes.last_mut() {
            self.lost |= scope.insert(std::mem::replace(name, new.clone()), new).is_some();
        }
    }

    fn read(&mut self, name: &mut String) {
        if name.is_empty() {
            return;
        }
        let inside = self.scopes.iter().rev().find_map(|s| s.get(name));
        match (inside, self.captured.iter().position(|c| c == name)) {
            (Some(new), _) => *name = new.clone(),
            (None, Some(i)) => *name = format!("outer{i}"),
            (None, None) => self.lost = true,
        }
    }

    fn graph(&mut self, g: &mut GraphProto) {
        self.scopes.push(HashMap::new());
        g.name.clear();
        g.doc_string.clear();
        g.value_info.clear();
        for i in &mut g.input {
            self.define(&mut i.name);
            i.doc_string.clear();
        }
        for t in &mut g.initializer {
            self.define(&mut t.name);
            t.doc_string.clear();
        }
        for t in &mut g.sparse_initializer {
            if let Some(v) = t.values.as_mut() {
                self.define(&mut v.name);
            }
        }
        // A node may stand before the nodes that it reads.
        g.node.iter_mut().flat_map(|n| &mut n.output).for_each(|name| self.define(name));
        for n in &mut g.node {
            n.name.clear();
            n.doc_string.clear();
            n.metadata_props.clear();
            n.input.iter_mut().for_each(|name| self.read(name));
            n.attribute.sort_by(|a, b| a.name.cmp(&b.name));
            for a in &mut n.attribute {
                a.doc_string.clear();
                if let Some(g) = a.g.as_mut() {
                    self.graph(g);
                }
                a.graphs.iter_mut().for_each(|g| self.graph(g));
            }
        }
        for o in &mut g.output {
            self.read(&mut o.name);
            o.doc_string.clear();
        }
        self.scopes.pop();
    }
}
