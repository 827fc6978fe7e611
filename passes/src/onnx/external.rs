//! The external data files a model refers to.

use super::subgraphs_mut;
use crate::ir::{Attr, Graph, Kind, external_place};
use indexmap::IndexMap;
use onnx_protobuf::{AttributeProto, NodeProto, TensorProto};
use std::path::PathBuf;

/// Locations of external data as the model writes them, each with the name of a tensor that is there.
pub fn external_files(g: &Graph) -> IndexMap<String, String> {
    let mut found = IndexMap::new();
    let mut add = |p: &TensorProto| {
        if let Some(place) = external_place(p) {
            found.entry(place.location).or_insert_with(|| p.name.clone());
        }
    };
    for id in g.nodes() {
        match &g.node(id).kind {
            Kind::Initializer { tensor, .. } => tensor.message().into_iter().for_each(&mut add),
            Kind::Op(op) => match &op.source {
                Some(source) => visit_node(source, &mut add),
                None => op.attrs.0.values().for_each(|a| match a {
                    Attr::Tensor(t) => t.message().into_iter().for_each(&mut add),
                    Attr::Opaque(a) => visit_attribute(a, &mut add),
                    _ => {}
                }),
            },
            Kind::Input(_) => {}
        }
    }
    for f in &g.shell.functions {
        f.node.iter().for_each(|n| visit_node(n, &mut add));
    }
    found
}

/// The directory of external data that links lead to from the model's own directory, and the files' names there by location. Engines
/// that are given a model's bytes do not follow such links.
pub fn linked_files(g: &Graph) -> Option<(PathBuf, IndexMap<String, String>)> {
    let home = g.home.as_ref()?;
    let (dir, blobs) = (home.dir.canonicalize().ok()?, home.blobs.as_ref()?);
    let real = |location: String| {
        let real = dir
            .join(&location)
            .canonicalize()
            .ok()
            .filter(|real| !real.starts_with(&dir) && real.parent() == Some(blobs))?;
        Some((location, real.file_name()?.to_str()?.to_string()))
    };
    let named: IndexMap<String, String> = external_files(g).into_keys().map(real).collect::<Option<_>>()?;
    (!named.is_empty()).then(|| (blobs.clone(), named))
}

/// Every tensor message in a node's attributes, those of subgraphs included.
fn visit_node(node: &NodeProto, f: &mut impl FnMut(&TensorProto)) {
    node.attribute.iter().for_each(|a| visit_attribute(a, f));
}

fn visit_attribute(a: &AttributeProto, f: &mut impl FnMut(&TensorProto)) {
    a.t.iter().chain(&a.tensors).for_each(&mut *f);
    for sub in a.g.iter().chain(&a.graphs) {
        sub.initializer.iter().for_each(&mut *f);
        sub.node.iter().for_each(|n| visit_node(n, f));
    }
}

/// Gives external data its new locations, in every attribute of these nodes.
pub(super) fn relocate(nodes: &mut [NodeProto], moved: &IndexMap<String, String>) {
    for n in nodes {
        for a in &mut n.attribute {
            a.t.0.iter_mut().map(|t| &mut **t).chain(&mut a.tensors).for_each(|t| relocate_tensor(t, moved));
        }
        for graph in subgraphs_mut(n) {
            graph.initializer.iter_mut().for_each(|t| relocate_tensor(t, moved));
            relocate(&mut graph.node, moved);
        }
    }
}

/// Gives one tensor's external data its new location.
pub(super) fn relocate_tensor(t: &mut TensorProto, moved: &IndexMap<String, String>) {
    if external_place(t).is_none() {
        return;
    }
    for entry in t.external_data.iter_mut().filter(|e| e.key == "location") {
        if let Some(new) = moved.get(&entry.value) {
            entry.value.clone_from(new);
        }
    }
}
