//! Undamaged models to start from, small ones.

use crate::below;
use crate::case::Case;
use crate::course;
use ancre_passes::analysis::types::is_resolved;
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Kind, NodeId, Op, Tensor, TensorType, ValueId, ValueType};
use ancre_passes::onnx;
use ancre_passes::ops::build::Builder;
use ancre_passes::ops::{Sample, SampleOperand, rules};
use ancre_passes::random::Random;
use ancre_passes::text::parse;
use onnx_protobuf::tensor_shape_proto::{Dimension, dimension};
use onnx_protobuf::{
    GraphProto, Message, ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};
use protobuf::EnumOrUnknown;
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// A model that is damaged again and again.
#[derive(Clone)]
pub struct Seed {
    /// File and options.
    pub case: Case,
    /// The file's message, where it is one.
    pub model: Option<ModelProto>,
}

impl Seed {
    /// Of a case.
    pub fn of(case: Case) -> Seed {
        let model = ModelProto::parse_from_bytes(&case.bytes).ok();
        Seed { case, model }
    }
}

/// Parts of one model that become seeds.
const WINDOWS: usize = 8;
/// Constants of more bytes lie outside the file, which is then small: their elements matter to no pass.
const LARGEST_CONSTANT: usize = 256;
/// Largest seed.
const LARGEST: usize = 24 << 10;

/// All seeds that stand in a checkout at `root`, in one order.
pub fn of_checkout(root: &Path) -> Vec<Seed> {
    let mut files: Vec<Vec<u8>> = Vec::new();
    for path in files_of(&root.join("models"), "onnx") {
        files.extend(windows(&path));
    }
    for path in files_of(&root.join("passes/tests/text"), "onnxtxt") {
        files.extend(golden(&path));
    }
    files.extend(rules().iter().flat_map(|r| r.samples()).filter_map(|s| emitted(&sample(&s)?)));
    files.retain(|f| f.len() <= LARGEST);
    let mut seeds: Vec<Seed> = files.into_iter().map(|bytes| Seed::of(Case { bytes, options: 0 })).collect();
    // What the tool writes is given to it, too.
    let ours: Vec<Seed> = seeds.iter().step_by(9).flat_map(|s| course::run(&s.case).emitted).map(of_bytes).collect();
    seeds.extend(ours.into_iter().filter(|s| s.case.bytes.len() <= LARGEST));
    seeds
}

fn of_bytes(bytes: Vec<u8>) -> Seed {
    Seed::of(Case { bytes, options: 0 })
}

/// The cases of a directory, by name.
pub fn of_directory(directory: &Path) -> Vec<(PathBuf, Case)> {
    files_of(directory, "onnx").into_iter().filter_map(|p| Case::read(&p).ok().map(|c| (p, c))).collect()
}

fn files_of(directory: &Path, suffix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|e| e.path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == suffix));
    files.sort();
    files
}

fn emitted(g: &Graph) -> Option<Vec<u8>> {
    onnx::emit(g).and_then(|e| e.to_bytes()).ok()
}

/// The input of a golden case.
fn golden(path: &Path) -> Option<Vec<u8>> {
    let text = std::fs::read_to_string(path).ok()?;
    let input = text.split("// EXPECT").next()?;
    let lines: Vec<&str> = input.lines().filter(|l| !l.starts_with("//")).collect();
    emitted(&parse(&lines.join("\n")).ok()?)
}

/// An operator's sample as a residual network of two blocks where its result has the operand's type, else of one.
fn sample(s: &Sample) -> Option<Graph> {
    let mut g = Graph::default();
    g.opsets.insert(String::new(), s.opset);
    if !["", "ancre"].contains(&s.op.domain.as_str()) {
        g.opsets.insert(s.op.domain.clone(), 1);
    }
    let mut operands = Vec::new();
    for (i, operand) in s.operands.iter().enumerate() {
        let name = format!("x{i}");
        operands.push(match operand {
            SampleOperand::Missing => None,
            SampleOperand::Ints { dims, values } => Some(g.add_initializer(&name, Tensor::i64s(dims, values), false)),
            SampleOperand::Ints32 { dims, values } => {
                let bytes = values.iter().flat_map(|v| (*v as i32).to_le_bytes()).collect();
                Some(g.add_initializer(&name, Tensor::from_bytes(DType::I32, dims, bytes), false))
            }
            SampleOperand::Bytes { dims, values } => {
                Some(g.add_initializer(&name, Tensor::from_bytes(DType::U8, dims, values.clone()), false))
            }
            SampleOperand::Bools { dims, values } => Some(g.add_initializer(&name, Tensor::bools(dims, values), false)),
            SampleOperand::FloatConstant { dims, values } => {
                Some(g.add_initializer(&name, Tensor::f32s(dims, values), false))
            }
            SampleOperand::Values { dims, .. } | SampleOperand::Floats { dims, .. } => Some(float(&mut g, i, &name, dims)),
        });
    }
    let mut h = operands.iter().flatten().copied().find(|v| g.is_float(*v));
    for block in 0..2 {
        let state = h;
        if block == 1 {
            let first = operands.iter().position(|o| o.is_some_and(|v| g.is_float(v)))?;
            operands[first] = state;
        }
        let mut b = Builder::new(&mut g, &format!("block{block}"));
        let made = b.node(s.op.clone(), &operands).ok()?;
        let y = *made.first()?;
        match state.filter(|v| b.graph.tensor_type(*v).is_some() && b.graph.tensor_type(*v) == b.graph.tensor_type(y)) {
            Some(state) => h = Some(b.add(state, y).ok()?),
            None => {
                made.iter().take(s.results).for_each(|v| b.graph.add_output(*v, None));
                return Some(g);
            }
        }
    }
    g.add_output(h?, None);
    Some(g)
}

/// The first float operand is computed from an input and a parameter; the others are parameters.
fn float(g: &mut Graph, i: usize, name: &str, dims: &[i64]) -> ValueId {
    let mut random = Random::new(i as u64, "sample");
    let values: Vec<f32> = (0..dims.iter().product::<i64>()).map(|_| (0.1 + random.unit()) as f32).collect();
    let v = g.add_initializer(name, Tensor::f32s(dims, &values), false);
    if i > 0 {
        return v;
    }
    let mut shape: Vec<Dim> = dims.iter().map(|d| Dim::from(*d)).collect();
    if let Some(first) = shape.first_mut() {
        *first = if dims.len() > 2 { Dim::symbol("batch") } else { first.clone() };
    }
    let input = g.add_input("x", TensorType::new(DType::F32, shape).into(), None);
    let mut b = Builder::new(g, "stem");
    let fits = b.node(Op::new("Mul", Attrs::new()), &[Some(input), Some(v)]).ok().and_then(|made| made.first().copied());
    fits.unwrap_or(input)
}

/// Runs of nodes of a model, as models.
fn windows(path: &Path) -> Vec<Vec<u8>> {
    let Ok(g) = std::fs::read(path).map_err(|e| e.to_string()).and_then(course::read) else { return Vec::new() };
    let order: Vec<NodeId> = g.topological_order().into_iter().filter(|n| g.op(*n).is_some()).collect();
    let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let mut random = Random::new(0, name);
    let window = |i: usize| {
        let length = [6, 12, 24, 40, 60][below(&mut random, 5)].min(order.len());
        let last = order.len() - length;
        let from = match i {
            0 => 0,
            1 => last,
            _ => below(&mut random, last + 1),
        };
        window(&g, &order[from..from + length])
    };
    (0..WINDOWS).map(window).filter_map(|m| m?.write_to_bytes().ok()).collect()
}

/// Some nodes of a graph as a model: what they read from others is its input, what others read of them is its output.
fn window(g: &Graph, nodes: &[NodeId]) -> Option<ModelProto> {
    let inside: HashSet<NodeId> = nodes.iter().copied().collect();
    let mut graph = GraphProto { name: "window".into(), ..Default::default() };
    let mut seen = HashSet::new();
    for &id in nodes {
        graph.node.push(onnx::node_message(g, id).ok()?);
        for v in g.reads(id).filter(|v| !inside.contains(&v.node)) {
            if !seen.insert(v) {
                continue;
            }
            match &g.node(v.node).kind {
                Kind::Initializer { tensor, .. } => graph.initializer.push(constant(g.name(v), tensor)?),
                _ => graph.input.push(declared(g, v)?),
            }
        }
        let read_outside = |v: &ValueId| g.is_output(*v) || g.uses(*v).any(|(n, _)| !inside.contains(&n));
        graph.output.extend(g.results(id).filter(read_outside).filter_map(|v| declared(g, v)));
    }
    let sets = g.opsets.iter().filter(|(domain, _)| *domain != "ancre");
    Some(ModelProto {
        ir_version: 8,
        opset_import: sets
            .map(|(d, v)| OperatorSetIdProto { domain: d.clone(), version: *v, ..Default::default() })
            .collect(),
        graph: Some(graph).into(),
        ..Default::default()
    })
}

fn constant(name: &str, tensor: &Tensor) -> Option<TensorProto> {
    let mut t = TensorProto {
        name: name.into(),
        dims: tensor.dims().to_vec(),
        data_type: tensor.dtype().onnx(),
        ..Default::default()
    };
    if tensor.byte_len() <= LARGEST_CONSTANT || !tensor.dtype().is_float() {
        t.raw_data = tensor.bytes().ok()?.into_owned();
    } else {
        t.data_location = EnumOrUnknown::from_i32(1);
        let value = format!("{name}.bin");
        t.external_data = vec![StringStringEntryProto { key: "location".into(), value, ..Default::default() }];
    }
    Some(t)
}

/// The declaration of a value whose type is known.
fn declared(g: &Graph, v: ValueId) -> Option<ValueInfoProto> {
    let ty: &ValueType = &g.value(v).ty;
    if !is_resolved(ty) {
        return None;
    }
    let dim = |d: &Dim| {
        let value = match d.known() {
            Some(n) => dimension::Value::DimValue(n),
            None => dimension::Value::DimParam(d.to_string()),
        };
        Dimension { value: Some(value), ..Default::default() }
    };
    let dim = ty.shape.iter().flatten().map(dim).collect();
    let shape = Some(TensorShapeProto { dim, ..Default::default() }).into();
    let tensor = type_proto::Tensor { elem_type: ty.dtype?.onnx(), shape, ..Default::default() };
    let value = Some(type_proto::Value::TensorType(tensor));
    let type_ = Some(TypeProto { value, ..Default::default() }).into();
    Some(ValueInfoProto { name: g.name(v).into(), type_, ..Default::default() })
}
