//! What every engine must do, for the engines' tests.

use super::*;
use crate::io::tensor::NpTensor;
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Op, Tensor, TensorType, ValueId, ValueType};

fn input(g: &mut Graph) -> ValueId {
    g.add_input("x", TensorType::new(DType::F32, [Dim::symbol("batch"), Dim::from(2)]).into(), None)
}

fn finish(mut g: Graph, name: &str, op: Op, operands: &[ValueId], ty: TensorType) -> Vec<u8> {
    let operands: Vec<Option<ValueId>> = operands.iter().copied().map(Some).collect();
    g.opsets.insert("custom".into(), 1);
    let node = g.add_op(name, op, &operands);
    let y = g.push_result(node, "y", ValueType::from(ty));
    g.add_output(y, None);
    ancre_passes::onnx::emit(&g).unwrap().to_bytes().unwrap()
}

fn floats() -> TensorType {
    TensorType::new(DType::F32, [Dim::symbol("batch"), Dim::from(2)])
}

/// `y = x + w` with `w` of shape [1,2] overridable, by default (10, 20).
pub(super) fn sum() -> Vec<u8> {
    let mut g = Graph::default();
    let x = input(&mut g);
    let w = g.add_initializer("w", Tensor::f32s(&[1, 2], &[10.0, 20.0]), true);
    finish(g, "sum", Op::new("Add", Attrs::new()), &[x, w], floats())
}

/// `y = x · w` whose inner extents do not agree once `x` has three columns.
pub(super) fn mismatched() -> Vec<u8> {
    let mut g = Graph::default();
    let ty = TensorType::new(DType::F32, [Dim::symbol("batch"), Dim::symbol("columns")]);
    let x = g.add_input("x", ty.into(), None);
    let w = g.add_initializer("w", Tensor::f32s(&[2, 2], &[1.0; 4]), false);
    finish(g, "product", Op::new("MatMul", Attrs::new()), &[x, w], floats())
}

fn x(values: &[f32]) -> (String, NpTensor) {
    ("x".to_string(), NpTensor::f32s(&[values.len() / 2, 2], values).unwrap())
}

pub(super) fn overridable(engine: &dyn Engine) {
    let mut session = engine.load(&sum(), None).unwrap();
    let mut inputs = Tensors::from([x(&[1.0, 2.0])]);
    assert_eq!(session.run(&inputs).unwrap()["y"].to_f32(), [11.0, 22.0]);
    inputs.insert("w".into(), NpTensor::f32s(&[1, 2], &[0.5, 0.25]).unwrap());
    assert_eq!(session.run(&inputs).unwrap()["y"].to_f32(), [1.5, 2.25]);
    inputs.shift_remove("w");
    assert_eq!(session.run(&inputs).unwrap()["y"].to_f32(), [11.0, 22.0]);
}

pub(super) fn batches(engine: &dyn Engine) {
    let mut session = engine.load(&sum(), None).unwrap();
    for batch in [1, 3, 1] {
        let y = session.run(&Tensors::from([x(&vec![0.0; 2 * batch])])).unwrap();
        assert_eq!(y["y"].shape(), [batch, 2]);
    }
}

/// An output that is an input, whose memory an engine may hand on.
pub(super) fn handed_on(engine: &dyn Engine) {
    let mut g = Graph::default();
    let v = input(&mut g);
    let twice = g.add_op("twice", Op::new("Add", Attrs::new()), &[Some(v), Some(v)]);
    let y = g.push_result(twice, "y", ValueType::from(floats()));
    g.add_output(y, None);
    g.add_output(v, None);
    let model = ancre_passes::onnx::emit(&g).unwrap().to_bytes().unwrap();
    let mut session = engine.load(&model, None).unwrap();
    for i in 0..20 {
        let fed = vec![i as f32; 1000];
        let out = session.run(&Tensors::from([x(&fed)])).unwrap();
        assert_eq!(out["x"].to_f32(), fed, "run {i}");
    }
}

pub(super) fn wrong_inputs(engine: &dyn Engine) {
    let mut session = engine.load(&sum(), None).unwrap();
    let e = session.run(&Tensors::new()).unwrap_err().to_string();
    assert!(e.contains("input `x`") && e.contains("not fed"), "{e}");
    let strange = ("strange".to_string(), NpTensor::f32s(&[1], &[0.0]).unwrap());
    let e = session.run(&Tensors::from([x(&[0.0, 0.0]), strange])).unwrap_err().to_string();
    assert!(e.contains("input `strange`") && e.contains("no such input"), "{e}");
    let doubles = NpTensor::from_f64s(DType::F64, &[1, 2], &[0.0, 0.0]).unwrap();
    assert!(session.run(&Tensors::from([("x".to_string(), doubles)])).is_err());
}

pub(super) fn unknown_operator(engine: &dyn Engine) {
    let mut g = Graph::default();
    let x = input(&mut g);
    let model = finish(g, "odd one", Op::in_domain("custom", "Strange", Attrs::new()), &[x], floats());
    match engine.load(&model, None).map(|_| ()).unwrap_err() {
        EngineError::Unsupported { operator, node, .. } => {
            assert!(operator.contains("Strange") && node.contains("odd"), "{operator} {node}");
        }
        other => panic!("{other:?}"),
    }
}

pub(super) fn shapes(engine: &dyn Engine) {
    let mut g = Graph::default();
    let v = input(&mut g);
    let model = finish(g, "", Op::new("Shape", Attrs::new()), &[v], TensorType::fixed(DType::I64, &[2]));
    let y = engine.load(&model, None).unwrap().run(&Tensors::from([x(&[0.0; 6])])).unwrap();
    assert_eq!((y["y"].dtype(), y["y"].to_i64()), (DType::I64, vec![3, 2]));
}

/// Nodes that have one name, which is also an input's.
pub(super) fn one_name(engine: &dyn Engine) {
    let mut g = Graph::default();
    let v = input(&mut g);
    let twice = g.add_op("x", Op::new("Add", Attrs::new()), &[Some(v), Some(v)]);
    let twice = g.push_result(twice, "twice", ValueType::from(floats()));
    let model = finish(g, "x", Op::new("Add", Attrs::new()), &[twice, v], floats());
    let y = engine.load(&model, None).unwrap().run(&Tensors::from([x(&[1.0, 2.0])])).unwrap();
    assert_eq!(y["y"].to_f32(), [3.0, 6.0]);
}

/// Sums over a shape, as decoders count positions, along an axis given as a tensor of one element.
pub(super) fn running_sums_of_shapes(engine: &dyn Engine) {
    let mut g = Graph::default();
    let v = input(&mut g);
    let shape = g.add_op("", Op::new("Shape", Attrs::new()), &[Some(v)]);
    let extents = g.push_result(shape, "extents", ValueType::from(TensorType::fixed(DType::I64, &[2])));
    let axis = g.add_initializer("axis", Tensor::i64s(&[1], &[-1]), false);
    let op = Op::new("CumSum", Attrs::new().with("reverse", 1));
    let model = finish(g, "sum", op, &[extents, axis], TensorType::fixed(DType::I64, &[2]));
    let y = engine.load(&model, None).unwrap().run(&Tensors::from([x(&[0.0; 6])])).unwrap();
    assert_eq!((y["y"].dtype(), y["y"].to_i64()), (DType::I64, vec![5, 2]));
}

/// A slice to the largest integer that there is, which went through a cast.
pub(super) fn slice_to_the_end(engine: &dyn Engine) {
    let mut g = Graph::default();
    let v = input(&mut g);
    let mut ints = |name: &str, v: i64| g.add_initializer(name, Tensor::i64s(&[1], &[v]), false);
    let (start, axis, end) = (ints("start", 1), ints("axis", 1), ints("largest", i64::MAX));
    let cast = g.add_op("", Op::new("Cast", Attrs::new().with("to", 7)), &[Some(end)]);
    let end = g.push_result(cast, "end", ValueType::from(TensorType::fixed(DType::I64, &[1])));
    let op = Op::new("Slice", Attrs::new());
    let model = finish(g, "slice", op, &[v, start, end, axis], TensorType::fixed(DType::F32, &[3, 1]));
    let y = engine.load(&model, None).unwrap().run(&Tensors::from([x(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])])).unwrap();
    assert_eq!(y["y"].to_f64(), [2.0, 4.0, 6.0]);
}

pub(super) fn external(engine: &dyn Engine) {
    use onnx_protobuf::{StringStringEntryProto, TensorProto, tensor_proto::DataLocation};
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("w.bin"), [3f32, 4.0].map(f32::to_le_bytes).concat()).unwrap();
    let entry =
        |key: &str, value: &str| StringStringEntryProto { key: key.into(), value: value.into(), ..Default::default() };
    let mut w = TensorProto { name: "w".into(), dims: vec![1, 2], data_type: 1, ..Default::default() };
    w.data_location = DataLocation::EXTERNAL.into();
    w.external_data = vec![entry("location", "w.bin"), entry("offset", "0"), entry("length", "8")];
    let mut g = Graph::default();
    let v = input(&mut g);
    let w = g.add_initializer("w", Tensor::from_proto(w, None).unwrap(), false);
    let model = finish(g, "sum", Op::new("Add", Attrs::new()), &[v, w], floats());
    let mut session = engine.load(&model, Some(ExternalData { root: dir.path(), bytes: 8 })).unwrap();
    assert_eq!(session.run(&Tensors::from([x(&[1.0, 1.0])])).unwrap()["y"].to_f32(), [4.0, 5.0]);
}
