//! Files exported in training mode, and the masks of the training graph's dropouts.

use crate::common::{Random, data, emit, first_state, floats, open, open_file, text, tool_ok};
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Op, Tensor, TensorType, ValueId};
use ancre_passes::transform::dropout::{STEP, activate_dropout, evaluation_mode};
use ancre_passes::transform::eliminate::eliminate_dead;
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::files::read_model;
use ancre_rewrite::io::tensor::NpTensor;
use std::path::PathBuf;

const RATIO: f64 = 0.3;

fn dropout(g: &mut Graph, name: &str, x: ValueId, ratio: f64) -> ValueId {
    let ratio = g.add_initializer(&format!("{name}.ratio"), Tensor::f32s(&[], &[ratio as f32]), false);
    let node = g.add_op(name, Op::new("Dropout", Attrs::new()), &[Some(x), Some(ratio)]);
    let ty = g.value(x).ty.clone();
    let y = g.push_result(node, name, ty);
    g.add_output(y, None);
    y
}

/// Two dropouts of one input of ones.
fn masks(seed: u64) -> Vec<u8> {
    let mut g = Graph::default();
    let shape = [Dim::symbol("n"), Dim::symbol("t"), Dim::from(32)];
    let x = g.add_input("x", TensorType::new(DType::F32, shape).into(), None);
    dropout(&mut g, "a", x, RATIO);
    dropout(&mut g, "b", x, RATIO);
    assert_eq!(activate_dropout(&mut g, seed).unwrap(), ["a", "b"]);
    eliminate_dead(&mut g, |_, _| false);
    emit(&g)
}

fn ones(shape: &[usize]) -> NpTensor {
    floats(DType::F32, shape, &vec![1.0; shape.iter().product()])
}

fn at_step(step: i64, x: NpTensor) -> Tensors {
    Tensors::from([("x".into(), x), (STEP.into(), NpTensor::i64s(&[], &[step]).unwrap())])
}

/// 1 where kept, 0 where dropped; kept ones are scaled so that the expectation stays.
fn kept(t: &NpTensor) -> Vec<f64> {
    let scale = 1.0 / (1.0 - RATIO);
    let one = |v: f64| if v == 0.0 { 0.0 } else { (v - scale).abs().lt(&1e-6).then_some(1.0).unwrap() };
    t.to_f64().into_iter().map(one).collect()
}

/// Correlation of two masks of independent bits, in standard deviations.
fn sigmas(a: &[f64], b: &[f64]) -> f64 {
    let p = 1.0 - RATIO;
    let sum: f64 = a.iter().zip(b).map(|(a, b)| (a - p) * (b - p)).sum();
    sum / (p * (1.0 - p) * (a.len().min(b.len()) as f64).sqrt())
}

#[test]
fn masks_are_random_and_repeat() {
    let model = masks(0);
    let mut session = open(&model).unwrap();
    let (n, t, d) = (16, 64, 32);
    let mut worst: f64 = 0.0;
    let mut checks = 0;
    let mut check = |what: &str, s: f64| {
        checks += 1;
        worst = worst.max(s.abs());
        assert!(s.abs() < 5.0, "{what}: {s:.1} standard deviations");
    };
    let mut before: Option<Vec<f64>> = None;
    for step in [0, 1, 2, 3, 100, 1 << 40] {
        let out = session.run(&at_step(step, ones(&[n, t, d]))).unwrap();
        let (a, b) = (kept(&out["a"]), kept(&out["b"]));
        let p = 1.0 - RATIO;
        let share = |m: &[f64]| (m.iter().sum::<f64>() - p * m.len() as f64) / (p * (1.0 - p) * m.len() as f64).sqrt();
        check("share kept", share(&a));
        check("two nodes", sigmas(&a, &b));
        for lag in [1, 2, 3, 7, d - 1, d, d + 1, 2 * d, t * d] {
            check("neighbours", sigmas(&a[lag..], &a));
        }
        // Rows and columns by themselves, and the corners of rectangles, whose sums of row and column agree.
        for row in a.chunks(d).step_by(97) {
            check("a row", share(row));
        }
        for column in 0..d {
            check("a column", share(&a.iter().skip(column).step_by(d).copied().collect::<Vec<_>>()));
        }
        let corners: Vec<f64> = (0..a.len() - d - 1)
            .map(|i| [i, i + 1, i + d, i + d + 1].iter().map(|k| (a[*k] - p) / (p * (1.0 - p)).sqrt()).product())
            .collect();
        check("rectangles", corners.iter().sum::<f64>() / (corners.len() as f64).sqrt());
        if let Some(before) = &before {
            check("two steps", sigmas(&a, before));
        }
        before = Some(a);
    }
    assert!(checks > 200 && worst > 0.5);
    // The same in another session, another under another seed.
    let (mut again, mut other) = (open(&model).unwrap(), open(&masks(1)).unwrap());
    let feeds = at_step(7, ones(&[n, t, d]));
    let first = session.run(&feeds).unwrap();
    assert_eq!(first["a"].bytes(), again.run(&feeds).unwrap()["a"].bytes());
    assert!(sigmas(&kept(&first["a"]), &kept(&other.run(&feeds).unwrap()["a"])).abs() < 5.0);
}

#[test]
fn a_ratio_may_be_fed() {
    let mut g = Graph::default();
    let x = g.add_input("x", TensorType::new(DType::F32, [Dim::from(1000)]).into(), None);
    let ratio = g.add_input("ratio", TensorType::fixed(DType::F32, &[]).into(), None);
    let node = g.add_op("d", Op::new("Dropout", Attrs::new()), &[Some(x), Some(ratio)]);
    let y = g.push_result(node, "y", TensorType::fixed(DType::F32, &[1000]).into());
    let mask = g.push_result(node, "mask", TensorType::fixed(DType::Bool, &[1000]).into());
    g.add_output(y, None);
    g.add_output(mask, None);
    activate_dropout(&mut g, 0).unwrap();
    eliminate_dead(&mut g, |_, _| false);
    let mut session = open(&emit(&g)).unwrap();
    for ratio in [0.0, 0.1, 0.9, 1.0] {
        let mut feeds = at_step(0, ones(&[1000]));
        feeds.insert("ratio".into(), floats(DType::F32, &[], &[ratio]));
        let out = session.run(&feeds).unwrap();
        let kept: f64 = out["mask"].to_f64().iter().sum();
        assert!((kept / 1000.0 - (1.0 - ratio)).abs() < 0.06, "{ratio}: {kept}");
        let sum: f64 = out["y"].to_f64().iter().sum();
        assert!(if ratio == 1.0 { sum == 0.0 } else { (sum * (1.0 - ratio) - kept).abs() < 1e-2 }, "{ratio}: {sum}");
    }
}

fn file(name: &str) -> PathBuf {
    data("training_mode").join(format!("{name}.onnx"))
}

/// The forward graph is the network in evaluation mode; the training graph's loss is a function of step and weights.
#[test]
fn a_file_in_training_mode_trains_with_its_dropout() {
    for (name, shape, dropouts) in
        [("transformer", vec![4, 6, 8], 10), ("convnet", vec![4, 3, 8, 8], 3), ("transformer_dynamo", vec![4, 6, 8], 10)]
    {
        let dir = tempfile::tempdir().unwrap();
        let (m, o) = (text(&file(name)), text(dir.path()));
        let a = [&m, "-o", &o, "--loss", "cross-entropy", "--optimizer", "none", "--grad-outputs", "--eval-graph", "--json"];
        let r = tool_ok(&a).json();
        assert_eq!(
            (&r["training"]["dropout"], &r["verify"]["emitted"]["equivalent"]),
            (&dropouts.into(), &true.into()),
            "{name}"
        );
        assert_eq!(r["training"]["batch"], "batch", "{name}");
        let path = |kind: &str| dir.path().join(format!("{name}.ancre.{kind}onnx"));
        let (forward, _) = read_model(&path("")).unwrap();
        assert!(evaluation_mode(&mut forward.clone()) == 0, "{name}: the forward graph is in evaluation mode");
        let mut random = Random(11);
        let x = floats(DType::F32, &shape, &random.normals(shape.iter().product()));
        let labels = NpTensor::i64s(&[4], &[0, 1, 2, 3]).unwrap();
        let feeds = |step: i64| {
            let mut feeds = at_step(step, x.clone());
            feeds.insert("labels".into(), labels.clone());
            feeds
        };
        let mut train = open_file(&path("train."));
        let loss = |out: &Tensors| out["loss"].to_f64()[0];
        let (first, second) = (train.run(&feeds(0)).unwrap(), train.run(&feeds(1)).unwrap());
        assert_eq!(loss(&first), loss(&train.run(&feeds(0)).unwrap()), "{name}");
        assert_ne!(loss(&first), loss(&second), "{name}");
        assert_eq!(first["ancre.step.next"].to_i64(), [1], "{name}");
        // Without masks.
        let mut evaluation = open_file(&path("eval."));
        let mut plain = feeds(0);
        plain.shift_remove(STEP);
        let still = loss(&evaluation.run(&plain).unwrap());
        assert_eq!(still, loss(&evaluation.run(&plain).unwrap()), "{name}");
        // The gradient is the derivative under the step's own masks. (The convolutions' units are too many for a difference in
        // float32 to miss their kinks.)
        if name == "convnet" {
            continue;
        }
        let first_values = first_state(&path("train."));
        let mut checked = 0;
        for (grad, t) in first.iter().filter(|(n, _)| n.ends_with(".grad")) {
            let weight = grad.trim_end_matches(".grad");
            let start = &first_values[weight];
            if start.len() <= 60 {
                continue;
            }
            let (values, along) = (start.to_f64(), random.normals(start.len()));
            let mut at = |h: f64| {
                let moved: Vec<f64> = values.iter().zip(&along).map(|(v, d)| v + h * d).collect();
                let mut feeds = feeds(0);
                feeds.insert(weight.to_string(), floats(DType::F32, start.shape(), &moved));
                loss(&train.run(&feeds).unwrap())
            };
            let ours: f64 = t.to_f64().iter().zip(&along).map(|(g, d)| g * d).sum();
            // A large step crosses kinks of some units, a small one drowns in rounding: one of them must agree.
            let numeric: Vec<f64> = [1e-3, 1e-4, 3e-5, 1e-5].iter().map(|h| (at(*h) - at(-h)) / (2.0 * h)).collect();
            let near = numeric.iter().any(|n| (n - ours).abs() < 2e-2 * (0.1 + ours.abs()));
            assert!(near, "{name}: {weight}: {numeric:?} against {ours}");
            checked += 1;
        }
        assert!(checked >= 5, "{name}: {checked}");
    }
}
