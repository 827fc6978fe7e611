//! Damaged files: working on one is an error or gives a graph, never a crash, an endless loop or half an output.
//!
//! Bytes are damaged blindly (cut, flipped, inserted, copied over one another), which mostly tests the reader; and messages are
//! damaged by their structure (`mutant`), which gives models that can be read and are wrong further in.

mod mutant;

use crate::common::Random;
use crate::common::nets::{Plan, network};
use crate::common::{data, emit, listing, model, text, tool};
use ancre_passes::analysis::residual::find_residuals;
use ancre_passes::ir::{Graph, SharedBytes};
use ancre_passes::transform::route::route_skips;
use ancre_passes::verify;
use ancre_passes::{onnx, pipeline};
use ancre_rewrite::engine;
use ancre_rewrite::io::files;
use ancre_rewrite::rewrite::config::RewriteConfig;
use clap::Parser;
use onnx_protobuf::{Message, ModelProto};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

/// How long one damaged model may take, on the slowest machine, before it counts as an endless loop.
const LONGEST: Duration = Duration::from_secs(120);

/// A model without the bytes of its larger weights, so that damage hits its structure.
fn structure_of(bytes: &[u8]) -> Vec<u8> {
    let mut m = ModelProto::parse_from_bytes(bytes).unwrap();
    for t in &mut m.graph.as_mut().unwrap().initializer {
        if t.raw_data.len() > 64 {
            t.raw_data.clear();
            t.data_location = protobuf::EnumOrUnknown::new(onnx_protobuf::tensor_proto::DataLocation::EXTERNAL);
            let entry = |key: &str, value: &str| onnx_protobuf::StringStringEntryProto {
                key: key.into(),
                value: value.into(),
                ..Default::default()
            };
            t.external_data.push(entry("location", "weights.bin"));
        }
    }
    m.write_to_bytes().unwrap()
}

fn damage(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut out = bytes.to_vec();
    match random.below(6) {
        0 => out.truncate(random.below(out.len())),
        1 => {
            let (a, b) = (random.below(out.len()), random.below(out.len()));
            out.drain(a.min(b)..a.max(b).min(a.min(b) + 40));
        }
        2 => {
            let at = random.below(out.len());
            let extra: Vec<u8> = (0..1 + random.below(12)).map(|_| random.bits() as u8).collect();
            out.splice(at..at, extra);
        }
        3 => {
            // One part over another.
            let (from, to, n) = (random.below(out.len()), random.below(out.len()), 1 + random.below(30));
            let part = out[from..(from + n).min(out.len())].to_vec();
            let end = (to + part.len()).min(out.len());
            out[to..end].copy_from_slice(&part[..end - to]);
        }
        _ => {
            for _ in 0..1 + random.below(6) {
                let at = random.below(out.len());
                out[at] ^= 1 << random.below(8);
            }
        }
    }
    out
}

/// How far a damaged model is taken.
#[derive(Clone, Copy, PartialEq)]
enum Depth {
    /// Reading.
    Read,
    /// Types, residual analysis, the router, its lowering, and emission of what comes out.
    Rewrite,
    /// The training graph too.
    Train,
}

/// What the main job does to a model, short of running it. True: a graph came out.
fn work_on(bytes: Vec<u8>, depth: Depth) -> Result<(), String> {
    let mut g = files::parse_model(&SharedBytes::new(bytes), Path::new("damaged.onnx")).map_err(|e| e.to_string())?;
    if depth == Depth::Read {
        return Ok(());
    }
    engine::find_types(&mut g);
    let _ = verify::verify(&g, verify::Stage::Open);
    let chains = find_residuals(&g).chains;
    let arguments = ancre_rewrite::cli::Cli::parse_from(["ancre-rewrite", "damaged.onnx", "--loss", "mse"]).rewrite;
    let config = RewriteConfig::try_from(&arguments).map_err(|e| e.to_string())?;
    route_skips(&mut g, &chains, &config.route).map_err(|e| e.to_string())?;
    if depth == Depth::Train {
        let built = ancre_rewrite::rewrite::training_files::build(
            &config,
            g.clone(),
            &|_| None,
            &mut pipeline::PassManager::default(),
            &mut Vec::new(),
        );
        if let Ok(Ok(files)) = built {
            write(&files.training.graph)?;
        }
    }
    pipeline::lower_forward(&mut g).map_err(|e| e.to_string())?;
    write(&g)
}

/// Emission, and what it gave is a model again.
fn write(g: &Graph) -> Result<(), String> {
    let bytes = onnx::emit(g).and_then(|e| e.to_bytes()).map_err(|e| e.to_string())?;
    files::parse_model(&SharedBytes::new(bytes), Path::new("emitted.onnx")).map(|_| ()).map_err(|e| {
        panic!("what was emitted cannot be read: {e}");
    })
}

/// Works on a damaged model; a panic, or an answer that does not come, fails the test and leaves the file.
fn survives_one(bytes: Vec<u8>, depth: Depth, what: &str) -> bool {
    let kept = bytes.clone();
    let (report, answer) = mpsc::channel();
    std::thread::spawn(move || {
        let outcome = catch_unwind(AssertUnwindSafe(|| work_on(bytes, depth).is_ok()));
        let _ = report.send(outcome.ok());
    });
    let fail = |how: &str| -> ! {
        let at = std::env::temp_dir().join("ancre-damaged.onnx");
        std::fs::write(&at, &kept).unwrap();
        panic!("{what} {how}; see {}", at.display());
    };
    match answer.recv_timeout(LONGEST) {
        Ok(Some(accepted)) => accepted,
        Ok(None) => fail("crashes"),
        Err(_) => fail("does not end"),
    }
}

fn survives(base: &[u8], cases: usize, seed: u64, depth: Depth) {
    let mut accepted = 0;
    for case in 0..cases {
        let mut random = Random(seed.wrapping_mul(1 << 32) + case as u64);
        accepted += survives_one(damage(base, &mut random), depth, &format!("case {case} of seed {seed}")) as usize;
    }
    assert!(accepted > 0 && accepted < cases, "{accepted} of {cases} were accepted: the damage tests nothing");
}

/// Structural damage: one to three changes to the message.
fn survives_mutants(base: &[u8], cases: usize, seed: u64, depth: Depth) {
    let model = ModelProto::parse_from_bytes(base).unwrap();
    let mut accepted = 0;
    for case in 0..cases {
        let mut random = Random(seed.wrapping_mul(1 << 32) + case as u64);
        let mut damaged = model.clone();
        let done: Vec<&str> = (0..1 + random.below(3)).map(|_| mutant::change(&mut damaged, &mut random)).collect();
        let what = format!("mutant {case} of seed {seed} ({})", done.join(", "));
        accepted += survives_one(damaged.write_to_bytes().unwrap(), depth, &what) as usize;
    }
    assert!(accepted > 0 && accepted < cases, "{accepted} of {cases} were accepted: the damage tests nothing");
}

#[test]
fn a_damaged_network_is_an_error_or_a_graph() {
    let plan = Plan { width: 3, normed: true, ..Plan::of(3) };
    survives(&structure_of(&emit(&network(&plan, 1))), 1500, 1, Depth::Read);
    survives(&structure_of(&emit(&network(&plan, 1))), 300, 5, Depth::Train);
}

#[test]
fn a_damaged_export_is_an_error_or_a_graph() {
    for (seed, name) in [(2, "llama/cascaded_alt.onnx"), (3, "resnet/cascaded.onnx")] {
        let bytes = std::fs::read(data("golden").join(name)).unwrap();
        let small = structure_of(&bytes);
        survives(&small, 1500, seed, Depth::Read);
        survives(&small, 40, seed + 10, Depth::Rewrite);
    }
}

#[test]
fn a_wrong_network_is_an_error_or_a_graph() {
    for (seed, plan) in [
        (20, Plan { width: 3, normed: true, ..Plan::of(3) }),
        (21, Plan { chains: vec![2, 5], sequence: true, post: true, ..Plan::of(2) }),
    ] {
        survives_mutants(&emit(&network(&plan, 1)), 300, seed, Depth::Train);
    }
}

#[test]
fn a_wrong_export_is_an_error_or_a_graph() {
    let models =
        ["resnet_cifar_folded", "gpt2", "swin", "resnet_cifar_qdq", "bert_ort", "keras_resnetv2_nhwc", "llama_past"];
    for (i, name) in models.into_iter().enumerate() {
        survives_mutants(&std::fs::read(model(name)).unwrap(), 16, 30 + i as u64, Depth::Rewrite);
    }
}

/// The tool on damaged files: its exit status and what it leaves.
#[test]
fn nothing_is_left_of_a_damaged_model() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("net.onnx");
    let plan = Plan { width: 3, normed: true, ..Plan::of(3) };
    let base = emit(&network(&plan, 1));
    let message = ModelProto::parse_from_bytes(&base).unwrap();
    let (mut refused, mut taken) = (0, 0);
    for case in 0..48u64 {
        let mut random = Random(4000 + case);
        let bytes = if case % 2 == 0 {
            damage(&structure_of(&base), &mut random)
        } else {
            let mut damaged = message.clone();
            mutant::change(&mut damaged, &mut random);
            damaged.write_to_bytes().unwrap()
        };
        std::fs::write(&model, &bytes).unwrap();
        let ran = tool(&[text(&model), "--loss".into(), "mse".into()]);
        assert_eq!(std::fs::read(&model).unwrap(), bytes, "case {case}: the input was changed");
        let outputs: Vec<PathBuf> =
            ["net.ancre.onnx", "net.ancre.train.onnx", "net.ancre.init.onnx"].map(|n| dir.path().join(n)).into();
        if ran.status == 0 {
            taken += 1;
            for path in &outputs {
                let whole = files::read_model(path);
                assert!(whole.is_ok(), "case {case}: {} is not whole", path.display());
                std::fs::remove_file(path).unwrap();
            }
        } else {
            refused += 1;
            assert!(ran.status == 1 || ran.status == 2, "case {case}: status {}", ran.status);
            assert!(ran.err.contains("net.onnx") && ran.out.is_empty(), "case {case}: {}{}", ran.out, ran.err);
        }
        assert_eq!(listing(dir.path()), ["net.onnx"], "case {case}");
    }
    assert!(refused > 10 && taken > 3, "{refused} refused, {taken} taken");
}

#[test]
fn an_axis_far_below_zero_is_no_endless_loop() {
    let plan = Plan { width: 3, normed: true, ..Plan::of(3) };
    let mut m = ModelProto::parse_from_bytes(&emit(&network(&plan, 1))).unwrap();
    for node in m.graph.as_mut().unwrap().node.iter_mut().filter(|n| n.op_type == "LayerNormalization").skip(1) {
        node.attribute[0].i = -5;
    }
    let mut g = files::parse_model(&SharedBytes::new(m.write_to_bytes().unwrap()), Path::new("axis.onnx")).unwrap();
    engine::find_types(&mut g);
    find_residuals(&g);
}
