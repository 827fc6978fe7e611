//! Every model of `models/`: what prepares it for differentiation keeps its function, it is routed and proved, and its training
//! graph makes a step in ONNX Runtime.

use crate::common::{emit, first_state, floats, max_abs, models, open, open_file, text, tool, tool_ok};
use ancre_passes::ir::{DType, Graph};
use ancre_passes::refusal::Applied;
use ancre_passes::transform::{eliminate, fold, legalize, separate};
use ancre_passes::verify;
use ancre_rewrite::engine::random_inputs;
use ancre_rewrite::engine::{self, Session, Tensors};
use ancre_rewrite::io::files::read_model;
use std::path::{Path, PathBuf};

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

fn load(path: &Path) -> Graph {
    let (mut g, _) = read_model(path).unwrap();
    engine::find_types(&mut g);
    g
}

/// Inputs that the model runs with, and its outputs.
fn feed(g: &Graph, model: &[u8]) -> Result<(Tensors, Tensors), String> {
    let mut session = open(model)?;
    let mut first = None;
    for sizes in random_inputs::sizes(g, &random_inputs::Sizes::new()) {
        let inputs = random_inputs::random_inputs(g, &sizes, 0)?;
        match session.run(&inputs) {
            Ok(out) => return Ok((inputs, out)),
            Err(e) => first = first.or(Some(e.to_string())),
        }
    }
    Err(first.unwrap_or_default())
}

fn compare(before: &Tensors, after: &Tensors, tolerance: f64) -> Result<(), String> {
    for (name, want) in before {
        let got = after.get(name).ok_or_else(|| format!("the output `{name}` is gone"))?;
        if got.shape() != want.shape() || got.dtype() != want.dtype() {
            return Err(format!("`{name}` became {}{:?}", got.dtype(), got.shape()));
        }
        let (got, want) = (got.to_f64(), want.to_f64());
        let largest = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
        let error = max_abs(&got, &want) / largest;
        if error.is_nan() || error > tolerance {
            return Err(format!("`{name}` is off by {error:.2e}"));
        }
    }
    Ok(())
}

fn check_preparation(path: &Path) -> Result<(), String> {
    let mut g = load(path);
    let bytes = std::fs::read(path).unwrap();
    let (inputs, before) = feed(&g, &bytes).map_err(|e| format!("the source does not run: {e}"))?;
    let run = |g: &Graph| -> Result<Tensors, String> {
        let mut g = g.clone();
        eliminate::eliminate_dead(&mut g, |_, _| false);
        verify::verify(&g, verify::Stage::Open).map_err(|e| e.join("; "))?;
        open(&emit(&g))?.run(&inputs).map_err(|e| e.to_string())
    };
    let step = |what: &str, e: String| format!("{what}: {e}");
    separate::separate_parameters(&mut g);
    compare(&before, &run(&g).map_err(|e| step("separate-parameters", e))?, 0.0)
        .or_else(|_| compare(&before, &run(&g)?, 1e-6))
        .map_err(|e| step("separate-parameters", e))?;
    legalize::decompose_contrib(&mut g, &mut Applied::default());
    legalize::to_opset(&mut g, legalize::TARGET, &mut Applied::default()).map_err(|e| step("legalize", e.to_string()))?;
    let legal = run(&g).map_err(|e| step("legalize", e))?;
    compare(&before, &legal, 2e-5).map_err(|e| step("legalize", e))?;
    fold::fold_constants(&mut g);
    let folded = run(&g).map_err(|e| step("fold-constants", e))?;
    // The same numbers, but for what ONNX Runtime now fuses differently.
    compare(&legal, &folded, 1e-5).map_err(|e| step("fold-constants", e))
}

#[test]
fn preparing_keeps_the_function() {
    let check = |p: &PathBuf| check_preparation(p).err().map(|e| format!("{}: {e}", name(p)));
    let off: Vec<String> = models().iter().filter_map(check).collect();
    assert!(off.is_empty(), "{}", off.join("\n"));
}

/// Routes the model and makes one step with its training graph.
fn check_step(path: &Path) -> Result<(), String> {
    let dir = tempfile::tempdir().unwrap();
    let run = |more: &[&str]| {
        let mut a = vec![text(path), "-o".into(), text(dir.path()), "--json".into(), "--verify".into(), "ort".into()];
        a.extend(more.iter().map(|s| s.to_string()));
        let ran = tool(&a);
        if ran.status == 0 { Ok(ran.json()) } else { Err(ran.err) }
    };
    let mut report = run(&[])?;
    if report["verify"]["one_hot"]["equivalent"] != true || report["verify"]["emitted"]["equivalent"] != true {
        return Err(format!("not proved: {}", report["verify"]));
    }
    let quantised = name(path).contains("qdq");
    if report["training"]["loss"].is_null() {
        // No evidence for a loss: one of the float outputs is made to follow a target.
        let g = load(path);
        let output = g.outputs().iter().map(|o| o.value).find(|v| g.is_float(*v)).map(|v| g.name(v).to_string());
        report = match run(&["--loss", "mse", "--output", &output.unwrap_or_default()]) {
            Err(why) if quantised && why.contains("uantis") => return Ok(()),
            other => other?,
        };
    }
    let train = dir.path().join(name(path).replace(".onnx", ".ancre.train.onnx"));
    let g = load(&train);
    let (mut session, state) = (open_file(&train), first_state(&train));
    let mut first = None;
    for sizes in random_inputs::sizes(&g, &random_inputs::Sizes::new()) {
        let mut inputs = random_inputs::random_inputs(&g, &sizes, 0)?;
        inputs.retain(|name, _| !state.contains_key(name));
        inputs.insert("lr".into(), floats(DType::F32, &[], &[1e-3]));
        match session.run(&inputs) {
            Err(e) => first = first.or(Some(e.to_string())),
            Ok(out) => {
                let scalar = |n: &str| out[n].to_f64()[0];
                let (loss, norm) = (scalar("loss"), scalar("grad_norm"));
                if !loss.is_finite() || !norm.is_finite() || norm <= 0.0 {
                    return Err(format!("loss {loss}, gradient norm {norm}"));
                }
                for (name, t) in &out {
                    if name.ends_with(".next") && !t.to_f64().iter().all(|v| v.is_finite()) {
                        return Err(format!("`{name}` is not finite"));
                    }
                }
                return Ok(());
            }
        }
    }
    Err(format!("the training graph ({}) does not run: {}", report["training"]["loss"], first.unwrap_or_default()))
}

#[test]
fn every_model_is_routed_and_makes_a_step() {
    let check = |p: &PathBuf| check_step(p).err().map(|e| format!("{}: {e}", name(p)));
    let off: Vec<String> = models().iter().filter_map(check).collect();
    assert!(off.is_empty(), "{}", off.join("\n"));
}

#[test]
fn every_model_is_inspected_and_drawn() {
    let dir = tempfile::tempdir().unwrap();
    for path in models() {
        let dot = dir.path().join("chains.dot");
        let report = tool_ok(&["inspect", &text(&path), "--json", "--dot", &text(&dot)]).json();
        let total = |key: &str| report[key].as_u64().unwrap();
        assert_eq!(total("residual_adds"), total("identity") + total("projection"), "{}", name(&path));
        assert!(std::fs::metadata(&dot).unwrap().len() > 0, "{}", name(&path));
        let mut states = std::collections::HashSet::new();
        for chain in report["chains"].as_array().unwrap() {
            let (k, adds) = (chain["blocks"].as_u64().unwrap() as usize, chain["adds"].as_array().unwrap());
            assert_eq!((adds.len(), chain["states"].as_array().unwrap().len()), (k, k + 1), "{}", name(&path));
            for add in adds {
                assert!(states.insert(add.as_str().unwrap().to_string()), "{}: {add} is in two chains", name(&path));
            }
        }
    }
}
