//! Mutations of a model at the level of its messages: what a bug in an exporter, a rewrite or an edit by hand would do.

use crate::common::Random;
use ancre_passes::ir::Graph;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{GraphProto, ModelProto, NodeProto, TensorProto};

/// What kinds there are.
pub const KINDS: [&str; 13] = [
    "swap operands",
    "change attribute",
    "perturb weight",
    "drop node",
    "redirect edge",
    "change epsilon",
    "swap router states",
    "remove activation",
    "transpose weight",
    "wrong axis",
    "slice off by one",
    "change padding",
    "scale constant",
];

/// One mutation of this kind, with what was done; `None` where the model has no place for it.
pub fn mutate(base: &ModelProto, types: &Graph, kind: &str, r: &mut Random) -> Option<(ModelProto, String)> {
    let mut m = base.clone();
    let g = m.graph.as_mut()?;
    let what = match kind {
        "swap operands" => swap_operands(g, r),
        "change attribute" => change_attribute(g, r),
        "perturb weight" => perturb_weight(g, r),
        "drop node" => drop_node(g, types, r, |_| true),
        "redirect edge" => redirect_edge(g, types, r),
        "change epsilon" => change_epsilon(g, r),
        "swap router states" => swap_router_states(g, r),
        "remove activation" => drop_node(g, types, r, is_activation),
        "transpose weight" => transpose_weight(g, r),
        "wrong axis" => wrong_axis(g, r),
        "slice off by one" => slice_off_by_one(g, r),
        "change padding" => change_padding(g, r),
        "scale constant" => scale_constant(g, r),
        _ => None,
    }?;
    Some((m, format!("{kind}: {what}")))
}

fn pick<T: Copy>(all: &[T], r: &mut Random) -> Option<T> {
    if all.is_empty() { None } else { Some(all[r.below(all.len())]) }
}

fn nodes(g: &GraphProto, which: impl Fn(&NodeProto) -> bool) -> Vec<usize> {
    (0..g.node.len()).filter(|i| which(&g.node[*i])).collect()
}

fn named(n: &NodeProto) -> String {
    format!("{} `{}`", n.op_type, if n.name.is_empty() { &n.output[0] } else { &n.name })
}

fn swap_operands(g: &mut GraphProto, r: &mut Random) -> Option<String> {
    let ordered = ["Sub", "Div", "Pow", "MatMul", "Concat", "Where", "Greater", "Less", "Mod", "Gemm"];
    let i = pick(&nodes(g, |n| ordered.contains(&n.op_type.as_str()) && n.input.len() >= 2 && n.input[0] != n.input[1]), r)?;
    let n = &mut g.node[i];
    let first = if n.op_type == "Where" { 1 } else { 0 };
    n.input.swap(first, first + 1);
    Some(named(n))
}

fn change_attribute(g: &mut GraphProto, r: &mut Random) -> Option<String> {
    // What a name or a type says is no number to change.
    let plain =
        |name: &str| !["to", "dtype", "stash_type", "epsilon", "training_mode", "momentum", "storage_order"].contains(&name);
    let mut places = Vec::new();
    for (i, n) in g.node.iter().enumerate() {
        for (j, a) in n.attribute.iter().enumerate() {
            use AttributeType::{FLOAT, INT, INTS};
            if plain(&a.name) && matches!(a.type_.enum_value(), Ok(FLOAT | INT | INTS)) {
                places.push((i, j));
            }
        }
    }
    let (i, j) = pick(&places, r)?;
    let n = &mut g.node[i];
    let text = named(n);
    let a = &mut n.attribute[j];
    match a.type_.enum_value() {
        Ok(AttributeType::FLOAT) => a.f = if a.f == 0.0 { 0.1 } else { a.f * 1.1 },
        Ok(AttributeType::INT) => {
            a.i = if ["transA", "transB", "keepdims", "ceil_mode"].contains(&a.name.as_str()) { 1 - a.i } else { a.i + 1 }
        }
        _ if a.name == "perm" && a.ints.len() > 1 => {
            let (x, y) = (r.below(a.ints.len()), r.below(a.ints.len()));
            if x == y {
                return None;
            }
            a.ints.swap(x, y);
        }
        _ => {
            let k = r.below(a.ints.len().max(1));
            *a.ints.get_mut(k)? += 1;
        }
    }
    Some(format!("{} of {text}", a.name))
}

/// The places of float32 initializers with `raw_data`.
fn float_weights(g: &GraphProto, which: impl Fn(&TensorProto) -> bool) -> Vec<usize> {
    let usable = |t: &TensorProto| t.data_type == 1 && !t.raw_data.is_empty() && which(t);
    (0..g.initializer.len()).filter(|i| usable(&g.initializer[*i])).collect()
}

fn element(t: &mut TensorProto, k: usize, change: impl Fn(f32) -> f32) {
    let at = &mut t.raw_data[4 * k..4 * k + 4];
    let v = f32::from_le_bytes(at.try_into().unwrap());
    at.copy_from_slice(&change(v).to_le_bytes());
}

fn perturb_weight(g: &mut GraphProto, r: &mut Random) -> Option<String> {
    let i = pick(&float_weights(g, |_| true), r)?;
    let t = &mut g.initializer[i];
    let k = r.below(t.raw_data.len() / 4);
    element(t, k, |v| v * 1.001);
    Some(format!("`{}` element {k}", t.name))
}

fn scale_constant(g: &mut GraphProto, r: &mut Random) -> Option<String> {
    let i = pick(&float_weights(g, |t| t.raw_data.len() == 4), r)?;
    let t = &mut g.initializer[i];
    element(t, 0, |v| if v == 0.0 { 0.01 } else { v * 1.01 });
    Some(format!("`{}`", t.name))
}

fn transpose_weight(g: &mut GraphProto, r: &mut Random) -> Option<String> {
    let square = |t: &TensorProto| t.dims.len() >= 2 && t.dims[0] == t.dims[1] && t.dims[0] > 1;
    let i = pick(&float_weights(g, square), r)?;
    let t = &mut g.initializer[i];
    let n = t.dims[0] as usize;
    let row = t.raw_data.len() / n / n;
    let old = t.raw_data.clone();
    for x in 0..n {
        for y in 0..n {
            let (to, from) = ((x * n + y) * row, (y * n + x) * row);
            t.raw_data[to..to + row].copy_from_slice(&old[from..from + row]);
        }
    }
    (t.raw_data != old).then(|| format!("`{}`", t.name))
}

fn is_activation(n: &NodeProto) -> bool {
    ["Relu", "Gelu", "Erf", "Sigmoid", "Tanh", "Clip", "Softmax", "HardSwish", "HardSigmoid", "LeakyRelu", "Silu", "Elu"]
        .contains(&n.op_type.as_str())
}

fn shape(types: &Graph, name: &str) -> Option<String> {
    types.find(name).map(|v| types.value(v).ty.to_string()).filter(|t| !t.contains('?') && !t.contains('…'))
}

/// Everybody who reads `old` reads `new`; a graph output keeps its name.
fn bypass(g: &mut GraphProto, i: usize, new: &str) {
    let n = g.node.remove(i);
    let old = n.output[0].clone();
    if g.output.iter().any(|o| o.name == old) {
        let identity =
            NodeProto { op_type: "Identity".into(), input: vec![new.into()], output: vec![old], ..Default::default() };
        g.node.insert(i, identity);
        return;
    }
    for input in g.node.iter_mut().flat_map(|n| &mut n.input).filter(|v| **v == old) {
        *input = new.to_string();
    }
}

fn drop_node(g: &mut GraphProto, types: &Graph, r: &mut Random, which: impl Fn(&NodeProto) -> bool) -> Option<String> {
    let fits = |n: &NodeProto, k: usize| {
        n.output.len() == 1 && n.op_type != "Identity" && !n.input[k].is_empty() && shape(types, &n.input[k]).is_some() && {
            shape(types, &n.input[k]) == shape(types, &n.output[0])
        }
    };
    let mut places = Vec::new();
    for i in nodes(g, &which) {
        places.extend((0..g.node[i].input.len()).filter(|k| fits(&g.node[i], *k)).map(|k| (i, k)));
    }
    let (i, k) = pick(&places, r)?;
    let (text, by) = (named(&g.node[i]), g.node[i].input[k].clone());
    bypass(g, i, &by);
    Some(format!("{text}, `{by}` in its place"))
}

fn redirect_edge(g: &mut GraphProto, types: &Graph, r: &mut Random) -> Option<String> {
    // Values in the order in which they are there, so that no cycle appears.
    let mut there: Vec<String> = g.input.iter().map(|i| i.name.clone()).collect();
    let mut places: Vec<(usize, usize, String)> = Vec::new();
    for (i, n) in g.node.iter().enumerate() {
        for (k, old) in n.input.iter().enumerate() {
            let Some(ty) = shape(types, old) else { continue };
            let others: Vec<&String> = there.iter().filter(|v| *v != old && shape(types, v).as_ref() == Some(&ty)).collect();
            if !others.is_empty() && !g.initializer.iter().any(|t| t.name == *old) {
                places.push((i, k, others[r.below(others.len())].clone()));
            }
        }
        there.extend(n.output.iter().filter(|o| !o.is_empty()).cloned());
    }
    if places.is_empty() {
        return None;
    }
    let (i, k, new) = places.swap_remove(r.below(places.len()));
    let text = format!("operand {k} of {} from `{}` to `{new}`", named(&g.node[i]), g.node[i].input[k]);
    g.node[i].input[k] = new;
    Some(text)
}

fn change_epsilon(g: &mut GraphProto, r: &mut Random) -> Option<String> {
    let has = |n: &NodeProto| n.attribute.iter().any(|a| a.name == "epsilon");
    let with = nodes(g, has);
    if let Some(i) = pick(&with, r) {
        let n = &mut g.node[i];
        let text = named(n);
        let a = n.attribute.iter_mut().find(|a| a.name == "epsilon")?;
        a.f *= 10.0;
        return Some(text);
    }
    // Normalisations in parts: an Add of a small scalar.
    let small = |t: &TensorProto| {
        t.raw_data.len() == 4 && (1e-13..1e-2).contains(&f32::from_le_bytes(t.raw_data[..4].try_into().unwrap()))
    };
    let i = pick(&float_weights(g, small), r)?;
    element(&mut g.initializer[i], 0, |v| v * 10.0);
    Some(format!("`{}`", g.initializer[i].name))
}

fn swap_router_states(g: &mut GraphProto, r: &mut Random) -> Option<String> {
    let routed = |n: &NodeProto| n.output.iter().any(|o| o.starts_with("ancre/")) && n.input.len() >= 2;
    let i = pick(&nodes(g, |n| routed(n) && n.op_type != "Add" && n.op_type != "Mul"), r)?;
    let n = &mut g.node[i];
    let (x, y) = (r.below(n.input.len()), r.below(n.input.len()));
    if n.input[x] == n.input[y] {
        return None;
    }
    n.input.swap(x, y);
    Some(format!("{} and {} of {}", n.input[x].clone(), n.input[y].clone(), named(n)))
}

fn wrong_axis(g: &mut GraphProto, r: &mut Random) -> Option<String> {
    let i = pick(&nodes(g, |n| n.attribute.iter().any(|a| a.name == "axis" || a.name == "axes" || a.name == "perm")), r)?;
    let n = &mut g.node[i];
    let text = named(n);
    let a = n.attribute.iter_mut().find(|a| a.name == "axis" || a.name == "axes" || a.name == "perm")?;
    match a.name.as_str() {
        "axis" => {
            a.i += if a.i == 0 { 1 } else { -1 };
        }
        "axes" => *a.ints.first_mut()? -= 1,
        _ => {
            let k = r.below(a.ints.len().saturating_sub(1).max(1));
            if a.ints.len() < 2 {
                return None;
            }
            a.ints.swap(k, k + 1);
        }
    }
    Some(text)
}

/// Start, end or index constants, one more or one less.
fn slice_off_by_one(g: &mut GraphProto, r: &mut Random) -> Option<String> {
    let mut places = Vec::new();
    for n in g.node.iter().filter(|n| n.op_type == "Slice" || n.op_type == "Gather" || n.op_type == "Pad") {
        places.extend(n.input.iter().skip(1).take(2).map(|v| (v.clone(), named(n))));
    }
    let int = |t: &TensorProto, name: &str| t.name == name && t.data_type == 7 && t.raw_data.len() >= 8;
    places.retain(|(v, _)| g.initializer.iter().any(|t| int(t, v)));
    if places.is_empty() {
        return None;
    }
    let (name, text) = places.swap_remove(r.below(places.len()));
    let by: i64 = if r.below(2) == 0 { 1 } else { -1 };
    let old = g.initializer.iter().position(|t| int(t, &name))?;
    let mut t = g.initializer[old].clone();
    let k = r.below(t.raw_data.len() / 8);
    let at = &mut t.raw_data[8 * k..8 * k + 8];
    let v = i64::from_le_bytes(at.try_into().unwrap());
    at.copy_from_slice(&v.checked_add(by)?.to_le_bytes());
    g.initializer[old] = t;
    Some(format!("{text}, {v} by {by}"))
}

fn change_padding(g: &mut GraphProto, r: &mut Random) -> Option<String> {
    let i = pick(&nodes(g, |n| n.attribute.iter().any(|a| a.name == "pads" && a.ints.len() == 4)), r)?;
    let n = &mut g.node[i];
    let text = named(n);
    let pads = &mut n.attribute.iter_mut().find(|a| a.name == "pads")?.ints;
    // The extent stays, so that the model still runs: one column more here, one less there.
    let k = r.below(2);
    if pads[k] > 0 {
        (pads[k], pads[k + 2]) = (pads[k] - 1, pads[k + 2] + 1);
    } else {
        (pads[k], pads[k + 2]) = (pads[k] + 1, (pads[k + 2] - 1).max(0));
    }
    Some(text)
}
