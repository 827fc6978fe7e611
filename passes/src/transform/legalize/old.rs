//! Operator sets 1 to 6, as of Caffe2 and CNTK: every operator in the form that opset 7 has.
//!
//! ```text
//! Add, Mul, Pow, Less, …   broadcast, axis = k   → the second operand gets trailing axes
//! Reshape, Pad, Upsample   shape, paddings, height_scale and width_scale → an operand, pads, scales
//! Cast, Concat, Selu, …    a type's name, an axis, constants that had other defaults → written out
//! ```
//!
//! Attributes that say nothing about inference (`consumed_inputs`, `is_test`) are removed.

use super::upgrade::{Done, check_subgraphs, ints_to_operand};
use super::{infer, set, stem, take, unfit};
use crate::analysis::types::declared;
use crate::ir::{Attr, Attrs, DType, Graph, NodeId, Op};
use crate::onnx::schema::{at, meaning::Use};
use crate::ops::build::{BuildError, Builder};

/// The oldest operator set that the rest of the passes reads.
const OLDEST: i64 = 7;

/// Brings a graph of an operator set before 7 to 7; others stay as they are.
///
/// # Errors
/// When an operator has no such form, or the ranks that its form needs are unknown.
pub fn from_old(g: &mut Graph) -> Result<(), BuildError> {
    let from = g.opsets.get("").copied().unwrap_or(OLDEST);
    if from >= OLDEST {
        return Ok(());
    }
    g.opsets.insert(String::new(), OLDEST);
    let said = declared(g);
    let mut b = Builder::new(g, "");
    for id in b.graph.topological_order() {
        if let Some(name) = b.graph.op(id).filter(|op| op.domain.is_empty()).map(|op| op.name.clone()) {
            b.prefix = stem(b.graph, id);
            // It says which operands the operator may overwrite.
            take(b.graph, id, "consumed_inputs");
            node(&mut b, id, &name, from)?;
            check(b.graph, id, from)?;
        }
        infer(b.graph, id);
        if b.graph.op(id).is_none() {
            continue;
        }
        for v in b.graph.results(id) {
            if b.graph.value(v).ty.shape.is_none()
                && let Some(ty) = said.get(b.graph.name(v))
            {
                b.graph.set_type(v, ty.clone());
            }
        }
    }
    Ok(())
}

/// Refuses a node that is still not as the oldest operator set has it.
fn check(g: &Graph, id: NodeId, from: i64) -> Done {
    let Some(node) = Use::of(g, id) else { return Ok(()) };
    for a in node.op.attrs.0.values() {
        if let Attr::Opaque(a) = a {
            check_subgraphs(&stem(g, id), a, from, OLDEST)?;
        }
    }
    let wrong = at("", &node.op.name, from).and_then(|_| node.unfit(OLDEST));
    wrong.map_or(Ok(()), |what| Err(refused(g, id, from, &what)))
}

fn refused(g: &Graph, id: NodeId, from: i64, what: &str) -> BuildError {
    let name = g.op(id).map_or("", |op| op.name.as_str());
    unfit(name, &stem(g, id), &format!("it cannot be brought from opset {from} to {OLDEST}: {what}"))
}

fn node(b: &mut Builder, id: NodeId, name: &str, from: i64) -> Done {
    match name {
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "And" | "Or" | "Xor" | "Equal" | "Greater" | "Less" => {
            let broadcast = take(b.graph, id, "broadcast");
            let axis = take(b.graph, id, "axis");
            if let (Some(Attr::Int(1)), Some(Attr::Int(axis))) = (broadcast, axis) {
                return align(b, id, axis, from);
            }
        }
        // The slopes are one for each channel.
        "PRelu" => {
            let slope = b.graph.operand(id, 1).and_then(|v| b.graph.tensor_type(v));
            if slope.is_some_and(|t| t.rank() == 1 && !t.shape[0].is_one()) {
                return align(b, id, 1, from);
            }
        }
        "Gemm" => drop(take(b.graph, id, "broadcast")),
        "Dropout" => drop(take(b.graph, id, "is_test")),
        "LSTM" | "GRU" | "RNN" => drop(take(b.graph, id, "output_sequence")),
        "BatchNormalization" => {
            take(b.graph, id, "is_test");
            if !b.graph.results(id).skip(1).any(|v| b.graph.is_needed(v)) {
                b.graph.drop_results(id, 1);
            }
        }
        "Reshape" if from < 5 => ints_to_operand(b, id, "shape", 1),
        "Concat" if from < 4 => write(b.graph, id, "axis", 1),
        "Split" if from < 2 => {
            write(b.graph, id, "axis", 0);
            if let Some(parts) = b.graph.operand(id, 1) {
                let parts = constant(b, parts).ok_or_else(|| refused(b.graph, id, from, "its parts are computed"))?;
                write(b.graph, id, "split", parts);
                b.graph.set_operand(id, 1, None);
            }
        }
        "Tile" if from < 6 => return tile(b, id, from),
        "Pad" if from < 2 => {
            if let Some(pads) = take(b.graph, id, "paddings") {
                write(b.graph, id, "pads", pads);
            }
        }
        "Selu" if from < 6 => {
            write(b.graph, id, "alpha", 1.6732_f32);
            write(b.graph, id, "gamma", 1.0507_f32);
        }
        "LpPool" | "GlobalLpPool" if from < 2 => {
            if let Some(Attr::Float(p)) = take(b.graph, id, "p") {
                write(b.graph, id, "p", p as i64);
            }
        }
        "Cast" if from < 6 => {
            if let Some(Attr::Str(to)) = take(b.graph, id, "to") {
                let to = DType::from_onnx_name(&to.to_ascii_lowercase());
                let to = to.ok_or_else(|| refused(b.graph, id, from, "`to` names no element type"))?;
                write(b.graph, id, "to", i64::from(to.onnx()));
            }
        }
        "Upsample" => {
            let scale = |a: Option<Attr>| if let Some(Attr::Float(s)) = a { s } else { 1.0 };
            let height = scale(take(b.graph, id, "height_scale"));
            let width = scale(take(b.graph, id, "width_scale"));
            write(b.graph, id, "scales", vec![1.0, 1.0, height, width]);
            if b.graph.op(id).is_some_and(|op| op.attrs.str("mode") == Some("bilinear")) {
                set(b.graph, id, "mode", "linear");
            }
        }
        _ => {}
    }
    Ok(())
}

/// Gives the second operand trailing axes of extent 1, so that its first one meets axis `axis` of the first operand.
fn align(b: &mut Builder, id: NodeId, axis: i64, from: i64) -> Done {
    let rank = |b: &Builder, i: usize| b.graph.operand(id, i).and_then(|v| b.graph.value(v).ty.shape.as_ref()).map(Vec::len);
    let (Some(whole), Some(part), Some(y)) = (rank(b, 0), rank(b, 1), b.graph.operand(id, 1)) else {
        return Err(refused(b.graph, id, from, "the ranks of its operands are unknown"));
    };
    let axis = if axis < 0 { axis + whole as i64 } else { axis };
    let until = whole as i64 - axis;
    if until < part as i64 {
        return Err(refused(b.graph, id, from, "its second operand does not fit at `axis`"));
    }
    if until > part as i64 {
        let axes: Vec<i64> = (part as i64..until).collect();
        let aligned = b.op_with("Unsqueeze", Attrs::new().with("axes", axes), &[y])?;
        b.graph.set_operand(id, 1, Some(aligned));
    }
    Ok(())
}

/// `Tile` repeated along one axis.
fn tile(b: &mut Builder, id: NodeId, from: i64) -> Done {
    let number =
        |b: &Builder, i: usize| b.graph.operand(id, i).and_then(|v| constant(b, v)).and_then(|v| v.first().copied());
    let Some(x) = b.graph.operand(id, 0) else { return Ok(()) };
    let rank = b.graph.value(x).ty.shape.as_ref().map(Vec::len);
    let (Some(rank), Some(tiles), Some(axis)) = (rank, number(b, 1), number(b, 2)) else {
        return Err(refused(b.graph, id, from, "its rank, its number of tiles or its axis is unknown"));
    };
    let repeats: Vec<i64> = (0..rank as i64).map(|i| if i == axis { tiles } else { 1 }).collect();
    let repeats = b.ints(&repeats);
    b.graph.replace_op(id, Op::new("Tile", Attrs::new()), &[Some(x), Some(repeats)]);
    Ok(())
}

/// The elements of a constant as integers: old files count in floats.
fn constant(b: &Builder, v: crate::ir::ValueId) -> Option<Vec<i64>> {
    let t = b.graph.constant(v)?;
    t.to_i64().ok().or_else(|| Some(t.to_f64().ok()?.into_iter().map(|x| x as i64).collect()))
}

/// Writes an attribute out where it is left out.
fn write(g: &mut Graph, id: NodeId, name: &str, value: impl Into<Attr>) {
    if g.op(id).is_some_and(|op| op.attrs.get(name).is_none()) {
        set(g, id, name, value);
    }
}
