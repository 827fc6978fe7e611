//! Damage to attributes, constants and declared types.

use super::number::{extreme, float, near};
use crate::{below, pick};
use ancre_passes::random::Random;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    AttributeProto, GraphProto, SparseTensorProto, StringStringEntryProto, TensorProto, ValueInfoProto, type_proto,
};
use protobuf::EnumOrUnknown;

/// Names that attributes go by, of which some mean something wherever they are put.
const NAMES: [&str; 22] = [
    "axis",
    "axes",
    "perm",
    "kernel_shape",
    "strides",
    "pads",
    "dilations",
    "group",
    "auto_pad",
    "epsilon",
    "keepdims",
    "to",
    "value",
    "alpha",
    "mode",
    "num_outputs",
    "split",
    "transA",
    "allowzero",
    "ceil_mode",
    "num_heads",
    "direction",
];

/// Words that attributes hold.
const WORDS: [&str; 12] = [
    "",
    "SAME_UPPER",
    "VALID",
    "tanh",
    "none",
    "linear",
    "cubic",
    "reflect",
    "reverse",
    "bidirectional",
    "half_pixel",
    "sum",
];

/// Makes one change.
pub(super) fn change(g: &mut GraphProto, r: &mut Random) -> &'static str {
    match below(r, 10) {
        0..=3 => attribute(g, r),
        4..=6 => {
            let n = g.initializer.len();
            let at = below(r, n);
            match g.initializer.get_mut(at) {
                Some(_) if below(r, 12) == 0 => sparse(g, at),
                Some(t) => tensor(t, r),
                None => "no constant",
            }
        }
        _ => {
            let count = g.input.len() + g.output.len() + g.value_info.len();
            let at = below(r, count);
            let mut all = g.input.iter_mut().chain(&mut g.output).chain(&mut g.value_info);
            match all.nth(at) {
                Some(info) => declaration(info, r),
                None => "no declaration",
            }
        }
    }
}

fn attribute(g: &mut GraphProto, r: &mut Random) -> &'static str {
    let n = g.node.len();
    let Some(node) = g.node.get_mut(below(r, n)) else { return "no node" };
    let count = node.attribute.len();
    if count == 0 || below(r, 6) == 0 {
        let mut a = AttributeProto { name: pick(r, &NAMES).to_string(), ..Default::default() };
        retype(&mut a, r);
        node.attribute.push(a);
        return "attribute added";
    }
    let at = below(r, count);
    match below(r, 6) {
        0 => {
            node.attribute.remove(at);
            "attribute removed"
        }
        1 => {
            retype(&mut node.attribute[at], r);
            "attribute of another type"
        }
        2 if below(r, 3) == 0 => {
            node.attribute[at].name = pick(r, &NAMES).to_string();
            "attribute of another name"
        }
        3 if below(r, 3) == 0 => {
            let copy = node.attribute[at].clone();
            node.attribute.push(copy);
            "attribute twice"
        }
        _ => {
            content(&mut node.attribute[at], r);
            "attribute of another value"
        }
    }
}

fn retype(a: &mut AttributeProto, r: &mut Random) {
    a.type_ = EnumOrUnknown::from_i32(*pick(r, &[1, 2, 2, 3, 4, 6, 7, 7, 8, 0, 5, 11, 13]));
    a.i = extreme(r);
    a.f = float(r);
    a.s = pick(r, &WORDS).as_bytes().to_vec();
    a.ints = (0..below(r, 5)).map(|_| extreme(r)).collect();
    a.floats = (0..below(r, 3)).map(|_| float(r)).collect();
}

fn content(a: &mut AttributeProto, r: &mut Random) {
    a.f = float(r);
    a.i = near(a.i, r);
    if let Some(t) = a.t.as_mut() {
        tensor(t, r);
    }
    if !a.s.is_empty() {
        a.s = if below(r, 8) == 0 { vec![0xff, 0xfe] } else { pick(r, &WORDS).as_bytes().to_vec() };
    }
    let at = below(r, a.ints.len());
    match below(r, 6) {
        0 => a.ints.clear(),
        1 => a.ints.push(extreme(r)),
        2 => a.ints.truncate(at),
        3 => a.ints.reverse(),
        _ => {
            if let Some(v) = a.ints.get_mut(at) {
                *v = near(*v, r);
            }
        }
    }
    let at = below(r, a.floats.len());
    if let Some(v) = a.floats.get_mut(at) {
        *v = float(r);
    }
}

/// Damages a tensor: its type, its shape, its elements, or the place of them.
pub(super) fn tensor(t: &mut TensorProto, r: &mut Random) -> &'static str {
    let axis = below(r, t.dims.len());
    match below(r, 14) {
        0 => t.dims.reverse(),
        1 => {
            if let Some(d) = t.dims.get_mut(axis) {
                *d = near(*d, r);
            }
        }
        2 => t.data_type = below(r, 28) as i32,
        3 => t.raw_data.truncate(below(r, t.raw_data.len() + 1)),
        4 => return external(t, r),
        5 => t.dims.push(*pick(r, &[1, 1, 0, 2, -1])),
        6 => {
            t.dims.clear();
        }
        7 => {
            // No element is left.
            t.dims = vec![0];
            t.raw_data.clear();
            t.float_data.clear();
            t.int64_data.clear();
        }
        8 if t.dims.len() > axis => {
            // Fewer rows, and the elements of as many.
            let rows = t.dims[0].max(1) as usize;
            t.raw_data.truncate(t.raw_data.len() / rows * (rows - 1));
            t.dims[0] -= 1;
        }
        _ => {
            elements(t, r);
            return "constant of other elements";
        }
    }
    "constant of another form"
}

fn elements(t: &mut TensorProto, r: &mut Random) {
    let width = match t.data_type {
        7 | 11 | 13 => 8,
        1 | 6 | 12 => 4,
        4 | 5 | 10 | 16 => 2,
        _ => 1,
    };
    let count = t.raw_data.len() / width;
    if count > 0 {
        let at = width * below(r, count);
        let bytes = &mut t.raw_data[at..at + width];
        match (t.data_type, width) {
            (1, _) => bytes.copy_from_slice(&float(r).to_le_bytes()),
            _ => bytes.copy_from_slice(&extreme(r).to_le_bytes()[..width]),
        }
    }
    let at = below(r, t.int64_data.len());
    if let Some(v) = t.int64_data.get_mut(at) {
        *v = near(*v, r);
    }
    let at = below(r, t.float_data.len());
    if let Some(v) = t.float_data.get_mut(at) {
        *v = float(r);
    }
}

fn external(t: &mut TensorProto, r: &mut Random) -> &'static str {
    let entry = |key: &str, value: String| StringStringEntryProto { key: key.into(), value, ..Default::default() };
    t.data_location = EnumOrUnknown::from_i32(*pick(r, &[1, 1, 1, 0, 7]));
    if below(r, 4) > 0 {
        t.raw_data.clear();
        t.float_data.clear();
        t.int64_data.clear();
    }
    let place = pick(r, &["weights.bin", "", "..", "../x", "/dev/zero", "a/../../b", "."]).to_string();
    t.external_data = vec![entry("location", place)];
    if below(r, 2) == 0 {
        t.external_data.push(entry("offset", extreme(r).to_string()));
        t.external_data.push(entry("length", extreme(r).to_string()));
    }
    "constant outside the file"
}

/// Makes a constant a sparse one with one element.
fn sparse(g: &mut GraphProto, at: usize) -> &'static str {
    let t = g.initializer.remove(at);
    let values = TensorProto {
        name: t.name,
        dims: vec![1],
        data_type: t.data_type,
        raw_data: t.raw_data.into_iter().take(4).collect(),
        ..Default::default()
    };
    let indices = TensorProto { dims: vec![1], data_type: 7, int64_data: vec![t.dims.len() as i64], ..Default::default() };
    let dims = t.dims;
    let (values, indices) = (Some(values).into(), Some(indices).into());
    g.sparse_initializer.push(SparseTensorProto { values, indices, dims, ..Default::default() });
    "sparse constant"
}

fn declaration(info: &mut ValueInfoProto, r: &mut Random) -> &'static str {
    let Some(type_proto::Value::TensorType(t)) = info.type_.as_mut().and_then(|t| t.value.as_mut()) else {
        return "no tensor type";
    };
    match below(r, 8) {
        0 => t.elem_type = below(r, 28) as i32 - 1,
        1 => t.shape = None.into(),
        2 if below(r, 4) == 0 => {
            info.type_ = None.into();
            return "declaration without a type";
        }
        n => {
            let Some(shape) = t.shape.as_mut() else { return "no shape" };
            let at = below(r, shape.dim.len());
            match n {
                3 => shape.dim.push(extent(r)),
                4 if at < shape.dim.len() => drop(shape.dim.remove(at)),
                5 => shape.dim.reverse(),
                _ => {
                    if let Some(d) = shape.dim.get_mut(at) {
                        *d = extent(r);
                    }
                }
            }
        }
    }
    "declaration of another type"
}

fn extent(r: &mut Random) -> Dimension {
    const SYMBOLS: [&str; 12] = [
        "",
        "n",
        "batch",
        "batch * -3",
        "((((",
        "a/0",
        "9999999999999999999999",
        "n*n*n*n",
        "2*n + 1",
        "?x_0",
        "n - n",
        "seq",
    ];
    let value = match below(r, 3) {
        0 => dimension::Value::DimParam(pick(r, &SYMBOLS).to_string()),
        1 => dimension::Value::DimValue(1 + below(r, 9) as i64),
        _ => dimension::Value::DimValue(extreme(r)),
    };
    Dimension { value: Some(value), ..Default::default() }
}
