//! Recurrences train at any length. Fourier transforms and sums of blocks written as plain operators compute what ONNX Runtime's own
//! kernels do.

use crate::common::{Opened, Random, advance, emit, floats, max_abs, norm, open, open_file, text, tool_ok};
use ancre_passes::analysis::types::resolve_types;
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Op, Tensor, TensorType, ValueType};
use ancre_passes::refusal::Applied;
use ancre_passes::transform::{eliminate, legalize};
use ancre_rewrite::engine::{Session, Tensors};

/// A graph of one node `y = op(x, operands…)`, all its results outputs.
fn graph(opset: i64, op: Op, x: &[i64], operands: Vec<Option<Tensor>>, results: &[&[i64]]) -> Graph {
    let mut g = Graph::default();
    g.opsets.insert(String::new(), opset);
    let x = g.add_input("x", TensorType::fixed(DType::F32, x).into(), None);
    let mut all = vec![Some(x)];
    for (i, t) in operands.into_iter().enumerate() {
        all.push(t.map(|t| g.add_initializer(&format!("w{i}"), t, false)));
    }
    let node = g.add_op("n", op, &all);
    for (i, dims) in results.iter().enumerate() {
        let v = g.push_result(node, &format!("y{i}"), ValueType::from(TensorType::fixed(DType::F32, dims)));
        g.add_output(v, None);
    }
    g
}

/// ONNX Runtime's own transform was off by 2.8e-6 against float64 where that was measured (one case), the products by 2e-7.
const TRANSFORM: f64 = 1e-5;

/// Runs the graph before and after legalisation; the operator must be gone.
fn check(what: &str, mut g: Graph, x: &[usize], tolerance: f64) {
    let mut random = Random(3);
    let feeds = Tensors::from([("x".to_string(), floats(DType::F32, x, &random.normals(x.iter().product())))]);
    let want = open(&emit(&g)).unwrap().run(&feeds).unwrap();
    let name = g.nodes().find_map(|n| g.op(n)).unwrap().name.clone();
    resolve_types(&mut g, None);
    legalize::to_opset(&mut g, legalize::TARGET, &mut Applied::default()).unwrap();
    eliminate::eliminate_dead(&mut g, |_, _| false);
    assert!(g.nodes().all(|n| g.op(n).is_none_or(|op| op.name != name)), "{what}: the operator is still there");
    let got = open(&emit(&g)).unwrap().run(&feeds).unwrap();
    for (name, want) in &want {
        assert_eq!(got[name].shape(), want.shape(), "{what}: `{name}`");
        let error = max_abs(&got[name].to_f64(), &want.to_f64());
        assert!(error < tolerance, "{what}: `{name}` is off by {error:.1e}");
    }
}

/// A recurrence over sequences of two by three numbers, with random weights and both ways; `steps` of it, or any number.
fn recurrence(name: &str, steps: Option<i64>) -> Graph {
    let (batch, width, hidden, gates) = (2, 3, 4, if name == "LSTM" { 4 } else { 3 });
    let mut random = Random(5);
    let mut g = Graph::default();
    g.opsets.insert(String::new(), 17);
    let steps = steps.map_or_else(|| Dim::symbol("steps"), Dim::from);
    let of = |dims: &[i64]| TensorType::new(DType::F32, dims.iter().map(|d| Dim::from(*d)).collect::<Vec<_>>());
    let mut ty = of(&[0, batch, width]);
    ty.shape[0] = steps.clone();
    let mut operands = vec![Some(g.add_input("x", ty.into(), None))];
    for (i, dims) in
        [vec![2, gates * hidden, width], vec![2, gates * hidden, hidden], vec![2, 2 * gates * hidden]].iter().enumerate()
    {
        let values: Vec<f32> =
            random.normals(dims.iter().product::<i64>() as usize).iter().map(|v| 0.4 * *v as f32).collect();
        operands.push(Some(g.add_initializer(&format!("w{i}"), Tensor::f32s(dims, &values), false)));
    }
    let attrs = Attrs::new().with("hidden_size", hidden).with("direction", "bidirectional");
    let node = g.add_op("n", Op::new(name, attrs), &operands);
    let mut ty = of(&[0, 2, batch, hidden]);
    ty.shape[0] = steps;
    let y = g.push_result(node, "y", ty.into());
    g.add_output(y, None);
    g
}

/// The training graph that the tool makes of a graph.
fn training_graph(g: &Graph, flags: &[&str]) -> Opened {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("net.onnx");
    std::fs::write(&file, emit(g)).unwrap();
    let (file, out) = (text(&file), text(dir.path()) + "/");
    tool_ok(&[&[file.as_str(), "-o", &out, "--loss", "mse"], flags].concat());
    open_file(&dir.path().join("net.ancre.train.onnx"))
}

#[test]
fn a_recurrence_of_any_length_has_the_gradients_of_that_length() {
    let mut random = Random(9);
    for name in ["LSTM", "GRU"] {
        let mut free = training_graph(&recurrence(name, None), &["--optimizer", "none", "--verify", "none"]);
        for steps in [1, 7] {
            let mut fixed =
                training_graph(&recurrence(name, Some(steps as i64)), &["--optimizer", "none", "--verify", "none"]);
            let x = floats(DType::F32, &[steps, 2, 3], &random.normals(steps * 6));
            let target = floats(DType::F32, &[steps, 2, 2, 4], &random.normals(steps * 16));
            let feeds = Tensors::from([("x".to_string(), x), ("target".to_string(), target)]);
            let (got, want) = (free.run(&feeds).unwrap(), fixed.run(&feeds).unwrap());
            for v in ["loss", "w0.grad", "w1.grad", "w2.grad"] {
                let error = max_abs(&got[v].to_f64(), &want[v].to_f64());
                assert!(error < 1e-6, "{name}, {steps} steps: `{v}` is off by {error:.1e}");
            }
            assert!(steps == 1 || norm(&got["w1.grad"].to_f64()) > 1e-3, "{name}: R has a gradient");
        }
    }
}

#[test]
fn a_recurrence_of_any_length_trains() {
    for name in ["LSTM", "GRU"] {
        let mut session = training_graph(&recurrence(name, None), &["--optimizer", "adam"]);
        let (mut random, mut state, mut losses) = (Random(9), Tensors::new(), Vec::new());
        let x = random.normals(6 * 6);
        // The result is to be a mean of what was read so far, which takes a memory.
        let target: Vec<f64> = (0..6 * 16).map(|i| (0..=i / 16).map(|t| x[t * 6 + i / 8 % 2]).sum::<f64>() / 8.0).collect();
        for _ in 0..60 {
            let feeds = Tensors::from([
                ("x".to_string(), floats(DType::F32, &[6, 2, 3], &x)),
                ("target".to_string(), floats(DType::F32, &[6, 2, 2, 4], &target)),
                ("lr".to_string(), floats(DType::F32, &[], &[0.03])),
            ]);
            losses.push(advance(&mut session, feeds, &mut state)["loss"].to_f64()[0]);
        }
        assert!(losses[59] < 0.5 * losses[0], "{name}: {losses:?}");
    }
}

#[test]
fn fourier_transforms_become_products() {
    for (parts, inverse, onesided) in [(1, 0, 0), (1, 0, 1), (2, 0, 0), (2, 1, 0)] {
        for axis in [1, 2] {
            let attrs = Attrs::new().with("axis", axis).with("inverse", inverse).with("onesided", onesided);
            let mut result = [2, 6, 5, 2];
            if onesided == 1 {
                result[axis as usize] = result[axis as usize] / 2 + 1;
            }
            let g = graph(17, Op::new("DFT", attrs), &[2, 6, 5, parts], Vec::new(), &[&result]);
            let what = format!("DFT axis {axis}, {parts} parts, {inverse} {onesided}");
            check(&what, g, &[2, 6, 5, parts as usize], TRANSFORM);
        }
    }
    let axis = Some(Tensor::i64s(&[], &[-3]));
    let g = graph(20, Op::new("DFT", Attrs::new()), &[2, 6, 5, 1], vec![None, axis], &[&[2, 6, 5, 2]]);
    check("DFT of opset 20", g, &[2, 6, 5, 1], TRANSFORM);
}

#[test]
fn sums_of_blocks() {
    let ints = |v: &[i64]| Some(Tensor::i64s(&[v.len() as i64], v));
    let row = |v: &[i64]| Attrs::new().with("strides", v.to_vec());
    for (attrs, image, block, places) in [
        (Attrs::new(), vec![5, 4], vec![2, 3], 8),
        (row(&[2, 2]).with("pads", vec![1, 1, 1, 1]), vec![6, 8], vec![3, 3], 12),
        (row(&[3, 1]).with("dilations", vec![2, 1]).with("pads", vec![0, 1, 1, 0]), vec![9, 4], vec![2, 2], 12),
        (row(&[2]), vec![8], vec![3], 3),
    ] {
        let width = 2 * block.iter().product::<i64>();
        let shape: Vec<i64> = [2, 2].into_iter().chain(image.iter().copied()).collect();
        let what = format!("{image:?} of {block:?}");
        let g = graph(18, Op::new("Col2Im", attrs), &[2, width, places], vec![ints(&image), ints(&block)], &[&shape]);
        check(&what, g, &[2, width as usize, places as usize], 1e-6);
    }
}
