//! Which node an engine dies of: the first one with which the model, cut off behind it, is as deadly as the whole.

use onnx_protobuf::{GraphProto, Message, ModelProto, NodeProto, ValueInfoProto};
use std::collections::HashSet;
use std::time::{Duration, Instant};

/// The largest model that is searched, in bytes.
pub(super) const LARGEST: usize = 64 << 20;
/// How long is searched.
pub(super) const LONGEST: Duration = Duration::from_secs(10);

/// The node of a model that an engine dies of, in words; `dies` tries a part of the model, and gives `None` where it cannot tell, as of a
/// part that an engine refuses. `None` where there is no such node, or it is not found in time.
pub(super) fn find(model: &[u8], mut dies: impl FnMut(&[u8]) -> Option<bool>) -> Option<String> {
    let model = ModelProto::parse_from_bytes(model).ok()?;
    let nodes = &model.graph.as_ref()?.node;
    let clock = Instant::now();
    let mut fatal = |k: usize| {
        if clock.elapsed() > LONGEST { None } else { dies(&prefix(&model, k).write_to_bytes().ok()?) }
    };
    // Of `alive` nodes it does not die, of `dead` it does.
    let (mut alive, mut dead) = (0, nodes.len());
    // A model without nodes may be refused.
    if dead == 0 || fatal(alive) == Some(true) || !fatal(dead)? {
        return None;
    }
    while dead - alive > 1 {
        let half = alive + (dead - alive) / 2;
        *(if fatal(half)? { &mut dead } else { &mut alive }) = half;
    }
    Some(words(&nodes[dead - 1]))
}

fn words(n: &NodeProto) -> String {
    let name = if n.name.is_empty() { n.output.first() } else { Some(&n.name) };
    format!("node `{}` ({})", name.map_or("", String::as_str), n.op_type)
}

/// The first `k` nodes of a model. Its outputs are the values that none of them reads.
fn prefix(model: &ModelProto, k: usize) -> ModelProto {
    let Some(whole) = model.graph.as_ref() else { return ModelProto::default() };
    let node = whole.node[..k].to_vec();
    let read: HashSet<&String> = node.iter().flat_map(names).collect();
    let declared = |name: &String| whole.value_info.iter().chain(&whole.output).find(|i| i.name == *name).cloned();
    let unread = node.iter().flat_map(|n| &n.output).filter(|name| !name.is_empty() && !read.contains(name));
    let output =
        unread.map(|name| declared(name).unwrap_or_else(|| ValueInfoProto { name: name.clone(), ..Default::default() }));
    // Up to IR version 3 an initializer is an input as well, and one without it would have to be fed.
    let kept = |name: &String| read.contains(name) || whole.input.iter().any(|i| i.name == *name);
    let graph = GraphProto {
        output: output.collect(),
        initializer: whole.initializer.iter().filter(|t| kept(&t.name)).cloned().collect(),
        sparse_initializer: whole.sparse_initializer.clone(),
        input: whole.input.clone(),
        name: whole.name.clone(),
        node: node.clone(),
        ..Default::default()
    };
    ModelProto {
        ir_version: model.ir_version,
        opset_import: model.opset_import.clone(),
        functions: model.functions.clone(),
        graph: Some(graph).into(),
        ..Default::default()
    }
}

/// The names of values that a node or its subgraphs read.
fn names(n: &NodeProto) -> Vec<&String> {
    let inner = n
        .attribute
        .iter()
        .flat_map(|a| a.g.iter().chain(&a.graphs))
        .flat_map(|g| g.node.iter().flat_map(names).chain(g.output.iter().map(|o| &o.name)));
    n.input.iter().chain(inner).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use onnx_protobuf::TensorProto;

    #[test]
    fn the_first_node_that_is_deadly_is_found() {
        let node = |i: usize| NodeProto {
            op_type: "Relu".into(),
            input: vec![format!("v{i}")],
            output: vec![format!("v{}", i + 1)],
            ..Default::default()
        };
        let late = TensorProto { name: "v0".into(), ..Default::default() };
        let input = vec![ValueInfoProto { name: "late".into(), ..Default::default() }];
        let initializer = vec![late.clone(), TensorProto { name: "late".into(), ..late }];
        let graph = GraphProto { node: (0..9).map(node).collect(), input, initializer, ..Default::default() };
        let model = ModelProto { graph: Some(graph).into(), ..Default::default() }.write_to_bytes().unwrap();
        let outputs = |part: &[u8]| {
            let g = ModelProto::parse_from_bytes(part).unwrap().graph.unwrap();
            let names: Vec<String> = g.initializer.into_iter().map(|t| t.name).collect();
            assert_eq!(
                names,
                if g.node.is_empty() { vec!["late"] } else { vec!["v0", "late"] },
                "an input keeps its default"
            );
            (g.node.len(), g.output.iter().map(|o| o.name.clone()).collect::<Vec<_>>())
        };
        for fatal in 1..=9 {
            let found = find(&model, |part| {
                let (nodes, outputs) = outputs(part);
                assert_eq!(outputs, if nodes == 0 { vec![] } else { vec![format!("v{nodes}")] });
                Some(nodes >= fatal)
            });
            assert_eq!(found.unwrap(), format!("node `v{fatal}` (Relu)"));
        }
        assert_eq!(find(&model, |_| Some(true)), None, "it dies of no node");
        assert_eq!(find(&model, |_| Some(false)), None, "it does not die again");
        assert_eq!(find(&model, |_| None), None);
        let refused = |part: &[u8]| Some(outputs(part).0).filter(|n| [0, 9].contains(n)).map(|n| n == 9);
        assert_eq!(find(&model, refused), None, "an engine refuses what lies between");
        let empty_is_refused = |part: &[u8]| Some(outputs(part).0).filter(|n| *n > 0).map(|n| n >= 2);
        assert_eq!(find(&model, empty_is_refused).unwrap(), "node `v2` (Relu)");
    }
}
