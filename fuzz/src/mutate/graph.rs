//! Damage to nodes and edges: operands, results, operators, order; parts of another model; subgraphs and functions.

use crate::{below, pick};
use ancre_passes::ops::rules;
use ancre_passes::random::Random;
use onnx_protobuf::{AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, ValueInfoProto};
use protobuf::EnumOrUnknown;
use std::collections::HashMap;

/// Operators without a rule, or that are none.
const OTHERS: [&str; 10] = [
    "NoSuchOperator",
    "Einsum",
    "NonZero",
    "Loop",
    "If",
    "Scan",
    "SequenceInsert",
    "Optional",
    "RandomNormal",
    "StringNormalizer",
];

/// The name of some value of the graph.
fn some_value(g: &GraphProto, r: &mut Random) -> String {
    let (nodes, inputs, constants) = (g.node.len(), g.input.len(), g.initializer.len());
    let at = below(r, nodes + inputs + constants);
    let name = match at {
        _ if at < nodes => g.node[at].output.first(),
        _ if at < nodes + inputs => g.input.get(at - nodes).map(|i| &i.name),
        _ => g.initializer.get(at - nodes - inputs).map(|t| &t.name),
    };
    name.cloned().unwrap_or_default()
}

/// Makes one change.
pub(super) fn change(g: &mut GraphProto, r: &mut Random) -> &'static str {
    let n = g.node.len();
    if n == 0 {
        return "no nodes";
    }
    let at = below(r, n);
    match below(r, 24) {
        0..=8 => operands(g, at, r),
        9..=11 => operator(&mut g.node[at], r),
        12 => results(&mut g.node[at], r),
        13 => {
            bypass(g, at);
            "a node less, its operand in its place"
        }
        14 => {
            g.node.remove(at);
            "a node less"
        }
        15 => {
            let to = below(r, n);
            g.node.swap(at, to);
            "nodes in another order"
        }
        16 | 17 => twin(g, at, r),
        18 => nest(g, at, r),
        19 => ends(g, r),
        20 => {
            g.node[at].name = g.node[below(r, n)].name.clone();
            "nodes of one name"
        }
        21 => {
            g.node[at].domain = pick(r, &["", "ai.onnx", "com.microsoft", "ancre", "local"]).to_string();
            "another domain"
        }
        22 => {
            g.value_info.clear();
            "no declarations"
        }
        _ => {
            let name = some_value(g, r);
            let other = some_value(g, r);
            g.node.iter_mut().flat_map(|n| &mut n.input).filter(|i| **i == name).for_each(|i| i.clone_from(&other));
            "all readers of a value read another"
        }
    }
}

fn operands(g: &mut GraphProto, at: usize, r: &mut Random) -> &'static str {
    let value = some_value(g, r);
    let earlier = g.node[below(r, at + 1)].output.first().cloned().unwrap_or_default();
    let node = &mut g.node[at];
    let operand = below(r, node.input.len());
    let some = operand < node.input.len();
    match below(r, 9) {
        0 | 1 if some => node.input[operand] = value,
        2 | 3 if some => node.input[operand] = earlier,
        4 if some => node.input.swap(0, operand),
        5 if some => {
            node.input.remove(operand);
            return "an operand less";
        }
        6 if some => {
            node.input[operand].clear();
            return "an operand left out";
        }
        7 => {
            node.input.push(value);
            return "an operand more";
        }
        _ => {
            let twice = node.input.first().cloned().unwrap_or_default();
            node.input.push(twice);
            return "an operand twice";
        }
    }
    "another operand"
}

fn operator(node: &mut NodeProto, r: &mut Random) -> &'static str {
    if below(r, 8) == 0 {
        node.op_type = pick(r, &OTHERS).to_string();
        return "an operator without a rule";
    }
    let rule = pick(r, rules());
    node.op_type = rule.name().to_string();
    node.domain = rule.domain().to_string();
    "another operator"
}

fn results(node: &mut NodeProto, r: &mut Random) -> &'static str {
    match below(r, 4) {
        0 => drop(node.output.pop()),
        1 => node.output.insert(0, String::new()),
        2 => node.output.push(node.output.first().cloned().unwrap_or_default()),
        _ => node.output.push(format!("one.more.{}", below(r, 1000))),
    }
    "other results"
}

/// Removes a node whose readers read its first operand.
fn bypass(g: &mut GraphProto, at: usize) {
    let gone = g.node.remove(at);
    let (Some(from), Some(to)) = (gone.output.first(), gone.input.first()) else { return };
    g.node.iter_mut().flat_map(|n| &mut n.input).filter(|i| *i == from).for_each(|i| i.clone_from(to));
}

/// Puts a copy of a node behind it, which its readers read instead: the node twice over, or beside it.
fn twin(g: &mut GraphProto, at: usize, r: &mut Random) -> &'static str {
    let mut copy = g.node[at].clone();
    let suffix = format!(".{}", below(r, 1000));
    copy.name += &suffix;
    let first = copy.output.first().cloned().unwrap_or_default();
    copy.output.iter_mut().filter(|o| !o.is_empty()).for_each(|o| *o += &suffix);
    let made = copy.output.first().cloned().unwrap_or_default();
    let in_series = below(r, 2) == 0;
    if in_series && let Some(operand) = copy.input.first_mut() {
        operand.clone_from(&first);
    }
    let mut readers = g.node.iter_mut().skip(at + 1).flat_map(|n| &mut n.input).filter(|i| **i == first);
    match in_series {
        true => readers.for_each(|i| i.clone_from(&made)),
        false => drop(readers.next().map(|i| i.clone_from(&made))),
    }
    g.node.insert(at + 1, copy);
    "a node twice"
}

/// Puts a node into both branches of an `If`, or into itself many times over.
fn nest(g: &mut GraphProto, at: usize, r: &mut Random) -> &'static str {
    let depth = if below(r, 40) == 0 { 70 } else { 1 + below(r, 2) };
    let condition = some_value(g, r);
    for _ in 0..depth {
        let inner = g.node[at].clone();
        let results: Vec<ValueInfoProto> =
            inner.output.iter().map(|name| ValueInfoProto { name: name.clone(), ..Default::default() }).collect();
        let renamed = |suffix: &str| {
            let mut node = inner.clone();
            let mut output = results.clone();
            node.output.iter_mut().filter(|o| !o.is_empty()).for_each(|o| *o += suffix);
            output.iter_mut().for_each(|o| o.name += suffix);
            GraphProto { node: vec![node], output, name: suffix.into(), ..Default::default() }
        };
        let branch = |name: &str| AttributeProto {
            name: name.into(),
            type_: EnumOrUnknown::from_i32(5),
            g: Some(renamed(name)).into(),
            ..Default::default()
        };
        g.node[at] = NodeProto {
            name: format!("{}.if", inner.name),
            op_type: "If".into(),
            input: vec![condition.clone()],
            attribute: vec![branch("then_branch"), branch("else_branch")],
            output: inner.output,
            ..Default::default()
        };
        if depth > 2 {
            // One branch is enough: two would double at each level.
            g.node[at].attribute.pop();
        }
    }
    "a node in a subgraph"
}

/// Other inputs or outputs.
fn ends(g: &mut GraphProto, r: &mut Random) -> &'static str {
    let name = some_value(g, r);
    match below(r, 5) {
        0 => drop(g.output.pop()),
        1 => {
            let type_ = g.output.first().map(|o| o.type_.clone()).unwrap_or_default();
            g.output.push(ValueInfoProto { name, type_, ..Default::default() });
        }
        2 => {
            if let Some(o) = g.output.first_mut() {
                o.name = name;
            }
        }
        3 => g.output.extend(g.output.first().cloned()),
        _ => {
            // An initializer that can be overridden, or an input that nobody feeds.
            let type_ = g.input.first().map(|o| o.type_.clone()).unwrap_or_default();
            g.input.push(ValueInfoProto { name, type_, ..Default::default() });
        }
    }
    "other inputs or outputs"
}

/// Takes some nodes of another model over, with their constants; their other operands are values of this one, and one of this
/// one's operands is their last result.
pub(super) fn splice(g: &mut GraphProto, donor: &GraphProto, r: &mut Random) -> &'static str {
    if donor.node.is_empty() || g.node.is_empty() || g.node.len() > 200 {
        return "no nodes";
    }
    let from = below(r, donor.node.len());
    let part = &donor.node[from..(from + 1 + below(r, 8)).min(donor.node.len())];
    let suffix = format!(".s{}", below(r, 1000));
    let mut names: HashMap<&str, String> = HashMap::new();
    let at = below(r, g.node.len() + 1);
    let state = at.checked_sub(1).and_then(|i| g.node[i].output.first().cloned());
    let host = state.or_else(|| g.input.first().map(|i| i.name.clone())).unwrap_or_default();
    let mut made = Vec::new();
    for node in part {
        let mut node = node.clone();
        node.name += &suffix;
        for i in node.input.iter_mut().filter(|i| !i.is_empty()) {
            if let Some(new) = names.get(i.as_str()) {
                i.clone_from(new);
            } else if let Some(t) = donor.initializer.iter().find(|t| t.name == *i) {
                let mut t = t.clone();
                t.name += &suffix;
                i.clone_from(&t.name);
                names.insert(donor_name(donor, &t.name, &suffix), t.name.clone());
                g.initializer.push(t);
            } else {
                *i = if below(r, 2) == 0 { host.clone() } else { some_value(g, r) };
            }
        }
        for o in node.output.iter_mut().filter(|o| !o.is_empty()) {
            *o += &suffix;
        }
        made.push(node);
        for (o, new) in part[made.len() - 1].output.iter().zip(&made[made.len() - 1].output) {
            names.insert(o, new.clone());
        }
    }
    let last = made.last().and_then(|n| n.output.first()).cloned().unwrap_or_default();
    let rest = g.node.len() - at;
    if rest > 0 {
        let reader = &mut g.node[at + below(r, rest.min(6))];
        let operand = below(r, reader.input.len());
        if let Some(i) = reader.input.get_mut(operand) {
            *i = last;
        }
    }
    g.node.splice(at..at, made);
    "a part of another model"
}

/// The donor's own spelling of a constant's name, which outlives the loop that renames it.
fn donor_name<'d>(donor: &'d GraphProto, renamed: &str, suffix: &str) -> &'d str {
    let old = renamed.strip_suffix(suffix).unwrap_or(renamed);
    donor.initializer.iter().find(|t| t.name == old).map_or("", |t| t.name.as_str())
}

/// Makes a local function of a node, which is called in its place.
pub(super) fn outline(m: &mut ModelProto, r: &mut Random) -> &'static str {
    let sets = m.opset_import.clone();
    let Some(g) = m.graph.as_mut() else { return "no graph" };
    let n = g.node.len();
    let Some(node) = g.node.get_mut(below(r, n)) else { return "no nodes" };
    let name = format!("Local{}", m.functions.len());
    let inner = node.clone();
    node.op_type.clone_from(&name);
    node.domain = "local".into();
    node.attribute.clear();
    m.functions.push(FunctionProto {
        name,
        domain: "local".into(),
        input: inner.input.iter().filter(|i| !i.is_empty()).cloned().collect(),
        output: inner.output.clone(),
        opset_import: sets,
        node: vec![inner],
        ..Default::default()
    });
    if !m.opset_import.iter().any(|o| o.domain == "local") {
        m.opset_import.push(onnx_protobuf::OperatorSetIdProto { domain: "local".into(), version: 1, ..Default::default() });
    }
    "a node in a function"
}

/// Damages a function: it calls itself, lacks results, or takes attributes by reference.
pub(super) fn break_function(m: &mut ModelProto, r: &mut Random) -> &'static str {
    let n = m.functions.len();
    let Some(f) = m.functions.get_mut(below(r, n)) else { return "no functions" };
    let count = f.node.len();
    let Some(node) = f.node.get_mut(below(r, count)) else { return "an empty function" };
    match below(r, 5) {
        0 => {
            node.op_type.clone_from(&f.name);
            node.domain.clone_from(&f.domain);
        }
        1 => f.output.push("nowhere".into()),
        2 => drop(f.input.pop()),
        3 => {
            if let Some(a) = node.attribute.first_mut() {
                a.ref_attr_name = "outer".into();
                f.attribute.push("outer".into());
            }
        }
        _ => {
            let copy = node.clone();
            f.node.push(copy);
        }
    }
    "a damaged function"
}
