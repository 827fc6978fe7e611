//! What is spelled out in double precision, against tract.

use crate::engine::{Tensors, tract};
use crate::io::tensor::NpTensor;
use ancre_passes::ir::{Attrs, DType, Graph, Op, TensorType};
use ancre_passes::onnx;
use ancre_passes::transform::to_double::{spell_out, to_double};

fn apply(op: &str, attrs: Attrs, x: &[f64]) -> Vec<f64> {
    let mut g = Graph::default();
    let v = g.add_input("x", TensorType::fixed(DType::F32, &[x.len() as i64]).into(), None);
    let n = g.add_op("", Op::new(op, attrs), &[Some(v)]);
    let y = g.push_result(n, "y", TensorType::fixed(DType::F32, &[x.len() as i64]).into());
    g.add_output(y, None);
    to_double(&mut g).unwrap();
    spell_out(&mut g);
    let model = onnx::emit(&g).unwrap().to_bytes().unwrap();
    let x = NpTensor::from_f64s(DType::F64, &[x.len()], x).unwrap();
    let out = tract().load(&model, None).unwrap().run(&Tensors::from([("x".to_string(), x)])).unwrap();
    assert_eq!(out["y"].dtype(), DType::F64);
    out["y"].to_f64()
}

#[test]
fn means_of_squares_are_in_double_precision() {
    let x = [1.0 + 1e-10, 2.0, 0.5];
    let mut g = Graph::default();
    let ty = TensorType::fixed(DType::F32, &[3]);
    let v = g.add_input("x", ty.clone().into(), None);
    let square = g.add_op("", Op::new("Mul", Attrs::new()), &[Some(v), Some(v)]);
    let square = g.push_result(square, "square", ty.into());
    let n = g.add_op("", Op::new("ReduceMean", Attrs::new().with("keepdims", 0)), &[Some(square)]);
    let y = g.push_result(n, "y", TensorType::fixed(DType::F32, &[]).into());
    g.add_output(y, None);
    to_double(&mut g).unwrap();
    spell_out(&mut g);
    let model = onnx::emit(&g).unwrap().to_bytes().unwrap();
    let fed = NpTensor::from_f64s(DType::F64, &[3], &x).unwrap();
    let out = tract().load(&model, None).unwrap().run(&Tensors::from([("x".to_string(), fed)])).unwrap();
    let want = x.iter().map(|v| v * v).sum::<f64>() / 3.0;
    assert!((out["y"].to_f64()[0] - want).abs() < 1e-15, "{} {want}", out["y"].to_f64()[0]);
}

#[test]
fn formulas_are_the_functions() {
    let x = [-3.0, -0.7, 0.0, 0.3, 2.0];
    let close = |got: Vec<f64>, want: [f64; 5], tolerance: f64| {
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < tolerance, "{got:?} {want:?}");
        }
    };
    close(apply("Sigmoid", Attrs::new(), &x), x.map(|v| 1.0 / (1.0 + (-v).exp())), 1e-14);
    // Values of erf from a table.
    let erf = [-0.9999779095030014, -0.6778011938374185, 0.0, 0.3286267594591274, 0.9953222650189527];
    close(apply("Erf", Attrs::new(), &x), erf, 1.5e-7);
    close(apply("HardSwish", Attrs::new(), &x), x.map(|v| v * (v / 6.0 + 0.5).clamp(0.0, 1.0)), 1e-14);
    close(apply("LeakyRelu", Attrs::new().with("alpha", 0.25f32), &x), x.map(|v| v.max(0.25 * v)), 1e-14);
}
