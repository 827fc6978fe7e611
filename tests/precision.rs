//! Less memory: what the backward pass computes again; narrow products and the loss scale.

use crate::common::{advance, first_state, floats, model, open_file, random_data, text, tool_ok};
use ancre_passes::ir::DType;
use ancre_rewrite::engine::Tensors;
use ancre_rewrite::engine::ort::OrtSession;
use ancre_rewrite::io::tensor::NpTensor;
use std::path::Path;

/// A model's training graph, opened, with its random data and first state.
struct Prepared {
    session: OrtSession,
    feeds: Tensors,
    state: Tensors,
    report: serde_json::Value,
}

fn prepared(name: &str, dir: &Path, flags: &[&str]) -> Prepared {
    std::fs::create_dir_all(dir).unwrap();
    let out = text(dir) + "/";
    let source = text(&model(name));
    let report = tool_ok(&[&[source.as_str(), "-o", &out, "--verify", "none", "--json"], flags].concat()).json();
    let path = dir.join(format!("{name}.ancre.train.onnx"));
    Prepared { session: open_file(&path).bare(), feeds: random_data(&path), state: first_state(&path), report }
}

/// The outputs of the second step of a model's training graph.
fn second_step(name: &str, dir: &Path, flags: &[&str]) -> (Tensors, serde_json::Value) {
    let mut p = prepared(name, dir, flags);
    advance(&mut p.session, p.feeds.clone(), &mut p.state);
    (advance(&mut p.session, p.feeds, &mut p.state), p.report)
}

/// Losses, norms and every next state are the same to the bit: batch normalisations, router and all.
#[test]
fn what_is_computed_again_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for (name, flags) in [
        ("resnet_cifar", &[][..]),
        ("resnet_cifar", &["--chains", "none", "--recompute", "3"]),
        ("llama", &[]),
        ("deep_mlp", &["--loss", "mse", "--preset", "paper"]),
    ] {
        let plain: Vec<&str> = flags.iter().copied().filter(|f| !["--recompute", "3"].contains(f)).collect();
        let again =
            if flags.contains(&"--recompute") { flags.to_vec() } else { [flags, &["--recompute", "blocks"]].concat() };
        let (want, _) = second_step(name, &dir.path().join("plain"), &plain);
        let (got, report) = second_step(name, &dir.path().join("again"), &again);
        assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>());
        for (output, value) in &want {
            assert_eq!(got[output].bytes(), value.bytes(), "{name} {flags:?}: `{output}`");
        }
        let said = &report["training"]["recompute"];
        assert!(said["blocks"].as_u64().unwrap() > 1 && said["nodes"].as_u64().unwrap() > 10, "{said}");
        let coefficient = |key: &str| -> f64 {
            let first = said[key].to_string();
            first.trim_matches('"').split('*').next().unwrap().parse().unwrap_or_default()
        };
        assert!(coefficient("kept_bytes") < coefficient("kept_bytes_before"), "{said}");
    }
}

/// Gradients of float32 master parameters, within the narrow type's rounding. bfloat16 has 8 bits, float16 has 11.
#[test]
fn narrow_products_have_the_gradients_of_float32_but_for_rounding() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["resnet_cifar", "gpt2"] {
        let gradients = |precision: &str| {
            let flags = ["--optimizer", "none", "--grad-outputs", "--precision", precision];
            let mut p = prepared(name, &dir.path().join(precision), &flags);
            advance(&mut p.session, p.feeds, &mut p.state)
        };
        let want = gradients("fp32");
        for (precision, least, most) in [("fp16", 0.0, 4e-3), ("bf16", 1e-4, 3e-2)] {
            let got = gradients(precision);
            let (mut apart, mut whole, mut count) = (0.0, 0.0, 0);
            for (output, value) in want.iter().filter(|(output, _)| output.ends_with(".grad")) {
                assert_eq!(got[output].dtype(), DType::F32);
                let (a, b) = (value.to_f64(), got[output].to_f64());
                apart += a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
                whole += a.iter().map(|a| a * a).sum::<f64>();
                count += 1;
            }
            let error = (apart / whole).sqrt();
            assert!(count > 20 && error >= least && error < most, "{name} {precision}: {error:.2e} over {count}");
        }
    }
}

/// A step without finite gradients changes no parameter and no moment, halves the scale, and is no update for Adam's correction; after
/// 2000 good ones the scale doubles.
#[test]
fn a_step_that_overflows_is_skipped_and_the_scale_moves() {
    let dir = tempfile::tempdir().unwrap();
    let flags = ["--precision", "fp16", "--clip-norm", "1"];
    let Prepared { mut session, feeds, state: start, .. } = prepared("resnet_cifar", dir.path(), &flags);
    let scalar = |v: f64| floats(DType::F32, &[], &[v]);
    let count = |v: i64| NpTensor::i64s(&[], &[v]).unwrap();
    let number = |state: &Tensors, name: &str| state[name].to_f64()[0];

    let mut state = start.clone();
    assert_eq!(number(&state, "ancre.loss_scale"), 65536.0);
    state.insert("ancre.loss_scale".into(), scalar(1e38));
    let out = advance(&mut session, feeds.clone(), &mut state);
    assert!(!out["grad_norm"].to_f64()[0].is_finite() && out["loss"].to_f64()[0].is_finite());
    assert!((number(&state, "ancre.loss_scale") / 5e37 - 1.0).abs() < 1e-6);
    for (name, want) in [("ancre.good_steps", 0.0), ("ancre.skipped_steps", 1.0), ("ancre.step", 1.0)] {
        assert_eq!(number(&state, name), want, "{name}");
    }
    let keeps = |name: &str| !name.starts_with("ancre.") && !name.contains("running") && !name.contains("bn");
    for (name, value) in start.iter().filter(|(name, _)| keeps(name)) {
        let (a, b) = (value.to_f64(), state[name].to_f64());
        assert!(b.iter().enumerate().all(|(i, b)| *b == a[i % a.len()]), "`{name}` has moved");
    }

    // The first update that counts is the first of a fresh run.
    let mut late = start.clone();
    late.insert("ancre.step".into(), count(1));
    late.insert("ancre.skipped_steps".into(), count(1));
    let mut fresh = start.clone();
    for state in [&mut late, &mut fresh] {
        state.insert("ancre.loss_scale".into(), scalar(1024.0));
        state.insert("ancre.good_steps".into(), count(1999));
        advance(&mut session, feeds.clone(), state);
        assert_eq!((number(state, "ancre.loss_scale"), number(state, "ancre.good_steps")), (2048.0, 0.0));
    }
    for (name, value) in fresh.iter().filter(|(name, _)| !name.starts_with("ancre.s")) {
        assert_eq!(late[name].bytes(), value.bytes(), "`{name}`");
    }
    assert_ne!(fresh["fc.weight"].bytes(), start["fc.weight"].bytes());
}
