//! Changes of a model's file that leave the function alone.

use crate::common::Random;
use onnx_protobuf::tensor_proto::DataLocation;
use onnx_protobuf::{
    AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto, attribute_proto::AttributeType,
};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// What kinds there are.
pub const KINDS: [&str; 9] = [
    "renamed values",
    "reordered nodes",
    "serialised again",
    "identities inserted",
    "constants as nodes",
    "constants folded",
    "typed fields",
    "external data",
    "metadata",
];

/// The changed model; data files go to `dir`.
pub fn change(base: &ModelProto, kind: &str, dir: &Path, r: &mut Random) -> ModelProto {
    let mut m = base.clone();
    let Some(g) = m.graph.as_mut() else { return m };
    match kind {
        "renamed values" => rename(g),
        "reordered nodes" => reorder(g, r),
        "identities inserted" => insert_identities(g, r),
        "constants as nodes" => constants_as_nodes(g),
        "constants folded" => fold_constants(g),
        "typed fields" => typed_fields(g),
        "external data" => external_data(g, dir),
        "metadata" => {
            let entry = StringStringEntryProto { key: "author".into(), value: "somebody".into(), ..Default::default() };
            g.node.iter_mut().for_each(|n| n.doc_string = "a comment".into());
            g.value_info.clear();
            m.metadata_props.push(entry);
            m.producer_version = "7.7".into();
            m.model_version += 1;
        }
        _ => {}
    }
    m
}

fn rename(g: &mut GraphProto) {
    let kept: HashSet<String> = g.input.iter().chain(&g.output).map(|v| v.name.clone()).collect();
    let mut names: HashMap<String, String> = HashMap::new();
    let results: Vec<String> =
        g.node.iter().flat_map(|n| n.output.clone()).chain(g.initializer.iter().map(|t| t.name.clone())).collect();
    for old in results {
        if !old.is_empty() && !kept.contains(&old) {
            let new = format!("v{}", names.len());
            names.entry(old).or_insert(new);
        }
    }
    let new = |v: &mut String| {
        if let Some(n) = names.get(v) {
            *v = n.clone();
        }
    };
    for (i, n) in g.node.iter_mut().enumerate() {
        n.input.iter_mut().chain(&mut n.output).for_each(&new);
        n.name = format!("n{i}");
    }
    g.initializer.iter_mut().for_each(|t| new(&mut t.name));
    g.value_info.clear();
}

/// Another order in which every node comes after what it reads.
fn reorder(g: &mut GraphProto, r: &mut Random) {
    let produced: HashSet<String> = g.node.iter().flat_map(|n| n.output.clone()).collect();
    let mut there: HashSet<String> = HashSet::new();
    let mut waiting = std::mem::take(&mut g.node);
    while !waiting.is_empty() {
        let ready: Vec<usize> = (0..waiting.len())
            .filter(|i| waiting[*i].input.iter().all(|v| !produced.contains(v) || there.contains(v)))
            .collect();
        let n = waiting.remove(ready[r.below(ready.len())]);
        there.extend(n.output.iter().cloned());
        g.node.push(n);
    }
}

fn insert_identities(g: &mut GraphProto, r: &mut Random) {
    for k in 0..4 {
        let places: Vec<(usize, usize)> = (0..g.node.len())
            .flat_map(|i| (0..g.node[i].input.len()).map(move |j| (i, j)))
            .filter(|(i, j)| !g.node[*i].input[*j].is_empty() && g.node[*i].op_type != "Resize")
            .collect();
        let (i, j) = places[r.below(places.len())];
        let (old, new) = (g.node[i].input[j].clone(), format!("passed_on_{k}"));
        g.node[i].input[j] = new.clone();
        let n = NodeProto { op_type: "Identity".into(), input: vec![old], output: vec![new], ..Default::default() };
        g.node.insert(i, n);
    }
}

fn constants_as_nodes(g: &mut GraphProto) {
    let inputs: HashSet<&String> = g.input.iter().map(|i| &i.name).collect();
    let (kept, moved): (Vec<_>, Vec<_>) = g.initializer.drain(..).partition(|t| inputs.contains(&t.name));
    g.initializer = kept;
    for mut t in moved {
        let mut value = AttributeProto { name: "value".into(), type_: AttributeType::TENSOR.into(), ..Default::default() };
        let output = vec![std::mem::take(&mut t.name)];
        value.t = Some(t).into();
        g.node.insert(0, NodeProto { op_type: "Constant".into(), output, attribute: vec![value], ..Default::default() });
    }
}

/// `Constant` nodes become initializers, and each transposition of a matrix is done at once.
fn fold_constants(g: &mut GraphProto) {
    let constants: Vec<NodeProto> =
        g.node.iter().filter(|n| n.op_type == "Constant" && n.attribute[0].t.is_some()).cloned().collect();
    g.node.retain(|n| !(n.op_type == "Constant" && n.attribute[0].t.is_some()));
    for n in constants {
        let mut t = n.attribute[0].t.clone().unwrap();
        t.name = n.output[0].clone();
        g.initializer.push(t);
    }
    let mut folded = Vec::new();
    for n in g.node.iter_mut().filter(|n| n.op_type == "Gemm") {
        let Some(a) = n.attribute.iter_mut().find(|a| a.name == "transB" && a.i == 1) else { continue };
        let Some(t) = g.initializer.iter().find(|t| t.name == n.input[1] && t.data_type == 1 && !t.raw_data.is_empty())
        else {
            continue;
        };
        let (rows, columns) = (t.dims[0] as usize, t.dims[1] as usize);
        let mut u =
            TensorProto { dims: vec![t.dims[1], t.dims[0]], name: format!("{}.T{}", t.name, folded.len()), ..t.clone() };
        for x in 0..rows {
            for y in 0..columns {
                let (from, to) = (4 * (x * columns + y), 4 * (y * rows + x));
                u.raw_data[to..to + 4].copy_from_slice(&t.raw_data[from..from + 4]);
            }
        }
        a.i = 0;
        n.input[1] = u.name.clone();
        folded.push(u);
    }
    g.initializer.extend(folded);
}

fn typed_fields(g: &mut GraphProto) {
    for t in &mut g.initializer {
        let raw = std::mem::take(&mut t.raw_data);
        match t.data_type {
            1 => t.float_data = raw.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect(),
            7 => t.int64_data = raw.chunks_exact(8).map(|c| i64::from_le_bytes(c.try_into().unwrap())).collect(),
            _ => t.raw_data = raw,
        }
    }
}

fn external_data(g: &mut GraphProto, dir: &Path) {
    let mut data: Vec<u8> = Vec::new();
    for t in g.initializer.iter_mut().filter(|t| t.raw_data.len() >= 64) {
        let raw = std::mem::take(&mut t.raw_data);
        data.resize(data.len().next_multiple_of(64), 0);
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value, ..Default::default() };
        t.external_data = vec![
            entry("location", "weights.bin".into()),
            entry("offset", data.len().to_string()),
            entry("length", raw.len().to_string()),
        ];
        t.data_location = DataLocation::EXTERNAL.into();
        data.extend(raw);
    }
    std::fs::write(dir.join("weights.bin"), data).unwrap();
}
