//! Older forms of operators, rewritten as opset 18 has them.

use super::needs::subgraphs;
use super::{set, stem, take, unfit};
use crate::ir::{Attr, Attrs, DType, Graph, NodeId, Op, Tensor};
use crate::onnx::schema::{self, meaning::Use};
use crate::onnx::{op_of, subgraph};
use crate::ops::build::{BuildError, Builder, reshape_target};
use onnx_protobuf::{AttributeProto, GraphProto};

pub(super) type Done = Result<(), BuildError>;

/// Rewrites every operator of an older operator set in the form that `to` has.
pub(super) fn upgrade(g: &mut Graph, from: i64, to: i64) -> Done {
    let mut b = Builder::new(g, "");
    for id in b.graph.topological_order() {
        super::infer(b.graph, id);
        let Some(op) = b.graph.op(id).filter(|op| op.domain.is_empty()) else { continue };
        let at = stem(b.graph, id);
        let old = |a: &Attr| matches!(a, Attr::Opaque(a) if check_subgraphs(&at, a, from, to).is_err());
        let name = op.name.clone();
        let old: Vec<String> = op.attrs.0.iter().filter(|(_, a)| old(a)).map(|(name, _)| name.clone()).collect();
        old.iter().try_for_each(|attribute| body(b.graph, id, attribute, from, to))?;
        if Use::of(b.graph, id).is_some_and(|node| !node.same_meaning(from, to)) {
            b.prefix = stem(b.graph, id);
            if let Some(what) = b.graph.op(id).and_then(|op| schema::misfit(op, types_of(b.graph, id))) {
                return Err(unfit(&name, &b.prefix, &what));
            }
            if schema::at("", &name, to).is_none() {
                return Err(unfit(&name, &b.prefix, &format!("it is no operator of opset {to}")));
            }
            node(&mut b, id, &name, from, to)?;
            let rebuilt = b.graph.op(id).is_some_and(|op| op.source.is_none());
            if let Some(what) = Use::of(b.graph, id).filter(|_| rebuilt).and_then(|node| node.unfit(to)) {
                return Err(unfit(&name, &b.prefix, &what));
            }
        }
    }
    Ok(())
}

/// Element types of a node's operands.
fn types_of(g: &Graph, id: NodeId) -> impl Iterator<Item = Option<DType>> {
    g.operands(id).iter().map(|v| v.and_then(|v| g.value(v).ty.dtype))
}

/// Rewrites the operators of a node's subgraph.
fn body(g: &mut Graph, id: NodeId, attribute: &str, from: i64, to: i64) -> Done {
    let Some(Attr::Opaque(a)) = g.op(id).and_then(|op| op.attrs.get(attribute)).cloned() else { return Ok(()) };
    let captured: Vec<String> = g.captures(id).map(|v| g.name(v).to_string()).collect();
    let at = g.site(id);
    let new = |g: &mut Graph, sub: &GraphProto| {
        let change = |inner: &mut Graph| {
            inner.opsets.insert(String::new(), to);
            upgrade(inner, from, to)?;
            super::needs::respell(inner, from, to);
            Ok(())
        };
        subgraph::change(g, sub, &captured, from, change, |e| unfit(&at.op, &at.name, &e))
    };
    let mut a = a.clone();
    if let Some(sub) = a.g.as_ref() {
        a.g = Some(new(g, sub)?).into();
    }
    a.graphs = a.graphs.iter().map(|sub| new(g, sub)).collect::<Result<_, _>>()?;
    set(g, id, attribute, Attr::Opaque(a));
    Ok(())
}

/// Refuses nodes of a subgraph that mean something else in `to`.
pub(super) fn check_subgraphs(at: &str, a: &AttributeProto, from: i64, to: i64) -> Done {
    for n in subgraphs(a).flat_map(|g| &g.node) {
        let op = op_of(n);
        let node = Use::untyped(&op, n.input.len(), n.output.len());
        let kept = |name: &String| schema::at("", &op.name, to).is_none_or(|s| s.attribute(name).is_some());
        if op.domain.is_empty() && !(node.same_meaning(from, to) && op.attrs.0.keys().all(kept)) {
            let why = format!("it stands in a subgraph in the form of opset {from}; convert the model to opset {to} first");
            return Err(unfit(&n.op_type, at, &why));
        }
        n.attribute.iter().try_for_each(|a| check_subgraphs(at, a, from, to))?;
    }
    Ok(())
}

fn node(b: &mut Builder, id: NodeId, name: &str, from: i64, to: i64) -> Done {
    match name {
        "Squeeze" | "Unsqueeze" => ints_to_operand(b, id, "axes", 1),
        "Split" => split(b, id, to),
        "Slice" => {
            for (at, attr) in ["starts", "ends", "axes"].into_iter().enumerate() {
                ints_to_operand(b, id, attr, at + 1);
            }
        }
        "Softmax" | "LogSoftmax" | "Hardmax" => return softmax(b, id, name),
        "Clip" => {
            float_to_operand(b, id, "min", 1);
            float_to_operand(b, id, "max", 2);
        }
        "Pad" => {
            ints_to_operand(b, id, "pads", 1);
            float_to_operand(b, id, "value", 2);
        }
        "TopK" => {
            if let Some(Attr::Int(k)) = take(b.graph, id, "k") {
                let k = b.ints(&[k]);
                b.graph.set_operand(id, 1, Some(k));
            }
        }
        "Dropout" => float_to_operand(b, id, "ratio", 1),
        "BatchNormalization" => return batch_normalization(b, id),
        "Upsample" | "Resize" => resize(b, id, name, from, to),
        "Scatter" => {
            let attrs = attrs(b.graph, id);
            let operands = b.graph.operands(id).to_vec();
            b.graph.replace_op(id, Op::new("ScatterElements", attrs), &operands);
        }
        // `RoiAlign` halved its boxes before the attribute existed.
        "RoiAlign" => set(b.graph, id, "coordinate_transformation_mode", "output_half_pixel"),
        reduce if reduce.starts_with("Reduce") => ints_to_operand(b, id, "axes", 1),
        _ => return Err(unfit(name, &b.prefix, &format!("its form of opset {from} is not supported"))),
    }
    Ok(())
}

fn attrs(g: &Graph, id: NodeId) -> Attrs {
    g.op(id).map(|op| op.attrs.clone()).unwrap_or_default()
}

/// Makes an operand of an attribute that lists integers. An empty list says nothing, unless the operator has to have one.
pub(super) fn ints_to_operand(b: &mut Builder, id: NodeId, attr: &str, at: usize) {
    let name = b.graph.op(id).map(|op| op.name.clone()).unwrap_or_default();
    let optional = || schema::versions("", &name).last().and_then(|s| s.operand(at)).is_none_or(|f| f.optional);
    if let Some(Attr::Ints(values)) = take(b.graph, id, attr)
        && !(values.is_empty() && optional())
    {
        let v = b.ints(&values);
        b.graph.set_operand(id, at, Some(v));
    }
}

/// A float attribute becomes a scalar operand of the first operand's type. A default stays unwritten.
fn float_to_operand(b: &mut Builder, id: NodeId, attr: &str, at: usize) {
    if let Some(Attr::Float(value)) = take(b.graph, id, attr)
        && !(attr == "value" && value == 0.0)
    {
        let dtype = b.graph.operand(id, 0).and_then(|v| b.graph.value(v).ty.dtype).unwrap_or(DType::F32);
        let v = b.scalar(dtype, value as f64);
        b.graph.set_operand(id, at, Some(v));
    }
}

fn split(b: &mut Builder, id: NodeId, to: i64) {
    ints_to_operand(b, id, "split", 1);
    if to >= 18 && b.graph.operand(id, 1).is_none() {
        let parts = b.graph.node(id).results().len() as i64;
        set(b.graph, id, "num_outputs", parts);
    }
}

/// Before opset 13 `Softmax` saw its operand as a matrix: the axes before `axis` were the rows, the others the columns.
fn softmax(b: &mut Builder, id: NodeId, name: &str) -> Done {
    let Some(x) = b.graph.operand(id, 0) else { return Ok(()) };
    let axis = b.graph.op(id).map_or(1, |op| op.int_at("axis", 12));
    if axis == -1 {
        set(b.graph, id, "axis", -1);
        return Ok(());
    }
    let ty = b.ty(x)?;
    let rank = ty.rank();
    let axis = ty.axis(axis).ok_or_else(|| unfit(name, &b.prefix, &format!("its axis {axis} is out of range for {ty}")))?;
    if ty.shape.iter().skip(axis + 1).all(|d| d.is_one()) {
        // One axis is the whole row.
        set(b.graph, id, "axis", if axis + 1 == rank { -1 } else { axis as i64 });
        return Ok(());
    }
    let rows = b.op_with("Flatten", Attrs::new().with("axis", axis as i64), &[x])?;
    let flat = b.ty(rows)?;
    // `Hardmax` has no rule, so the builder cannot infer its type.
    let stem = format!("{}/{name}", b.prefix);
    let node = b.graph.add_op(&stem, Op::new(name, Attrs::new().with("axis", -1)), &[Some(rows)]);
    let y = b.graph.push_result(node, &stem, flat.into());
    let target = match reshape_target(&ty.shape) {
        Some(dims) => b.ints(&dims),
        None => b.op("Shape", &[x])?,
    };
    b.graph.replace_op(id, Op::new("Reshape", Attrs::new()), &[Some(y), Some(target)]);
    Ok(())
}

/// The results after the first were batch statistics, which only the old training form gives. Under `spatial = 0` each element of
/// a sample had its own statistics. Exporters wrote it beside parameters of one number a channel, which say what was meant.
fn batch_normalization(b: &mut Builder, id: NodeId) -> Done {
    if b.graph.results(id).skip(1).any(|v| b.graph.is_needed(v)) {
        let why = "its batch statistics are read, which the form of opset 14 does not give in inference";
        return Err(unfit("BatchNormalization", &b.prefix, why));
    }
    b.graph.drop_results(id, 1);
    if !matches!(take(b.graph, id, "spatial"), Some(Attr::Int(0))) {
        return Ok(());
    }
    let [Some(x), Some(scale), Some(bias), Some(mean), Some(var)] = b.graph.operands(id)[..] else { return Ok(()) };
    if b.ty(scale)?.rank() == 1 && b.ty(x)?.rank() > 2 {
        return Ok(());
    }
    let epsilon = b.graph.op(id).map_or(1e-5, |op| op.float("epsilon"));
    let centred = b.sub(x, mean)?;
    let shifted = b.shift(var, epsilon as f64)?;
    let deviation = b.sqrt(shifted)?;
    let unit = b.div(centred, deviation)?;
    let scaled = b.mul(unit, scale)?;
    b.graph.replace_op(id, Op::new("Add", Attrs::new()), &[Some(scaled), Some(bias)]);
    Ok(())
}

/// `Upsample` and the first `Resize` take the nearest element to the left, without half pixels.
fn resize(b: &mut Builder, id: NodeId, name: &str, from: i64, to: i64) {
    let mut attrs = attrs(b.graph, id);
    if name == "Resize" && from >= 11 {
        // `half_pixel` has taken the place of this mode. It rounds half up unless it is told to.
        if attrs.str("coordinate_transformation_mode") == Some("tf_half_pixel_for_nn") {
            set(b.graph, id, "coordinate_transformation_mode", "half_pixel");
            set(b.graph, id, "nearest_mode", "round_prefer_ceil");
        }
        return;
    }
    let Some(x) = b.graph.operand(id, 0) else { return };
    let scales = match attrs.0.shift_remove("scales") {
        Some(Attr::Floats(s)) => {
            let scales = Tensor::f32s(&[s.len() as i64], &s);
            Some(b.constant(&format!("{}/scales", b.prefix), scales))
        }
        _ => b.graph.operand(id, 1),
    };
    // ONNX Runtime's first `Resize` took the element to the right where it shrank.
    let shrinks = scales
        .and_then(|v| b.graph.constant(v))
        .and_then(|t| t.to_f64().ok())
        .is_some_and(|s| s.iter().any(|s| *s < 1.0) && s.iter().all(|s| *s <= 1.0));
    attrs.0.insert("coordinate_transformation_mode".into(), "asymmetric".into());
    if attrs.str("mode").is_none_or(|mode| mode == "nearest") {
        attrs.0.insert("nearest_mode".into(), if shrinks { "ceil" } else { "floor" }.into());
    }
    // Until opset 13 the region was no optional operand.
    let region = (to < 13).then(|| b.constant(&format!("{}/roi", b.prefix), Tensor::f32s(&[0], &[])));
    b.graph.replace_op(id, Op::new("Resize", attrs), &[Some(x), region, scales]);
}
