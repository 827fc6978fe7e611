//! Damaged files: reading one is an error or a graph, never a crash.

use crate::common::Random;
use crate::common::nets::{Plan, network};
use crate::common::{data, emit};
use ancre_passes::analysis::residual::find_residuals;
use ancre_passes::ir::{SharedBytes, verify};
use ancre_rewrite::{engine, files};
use onnx_protobuf::{Message, ModelProto};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

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

fn survives(base: &[u8], cases: usize, seed: u64, deep: bool) {
    let mut accepted = 0;
    for case in 0..cases {
        let mut random = Random(seed.wrapping_mul(1 << 32) + case as u64);
        let bytes = damage(base, &mut random);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let Ok(mut g) = files::parse_model(&SharedBytes::new(bytes), Path::new("damaged.onnx")) else { return false };
            if deep {
                engine::find_types(&mut g);
                let _ = verify::verify(&g, verify::Stage::Open);
                let _ = find_residuals(&g);
            }
            true
        }));
        match outcome {
            Ok(ok) => accepted += ok as usize,
            Err(_) => panic!("reading case {case} of seed {seed} crashes"),
        }
    }
    assert!(accepted > 0 && accepted < cases, "{accepted} of {cases} were accepted: the damage tests nothing");
}

#[test]
fn a_damaged_network_is_an_error_or_a_graph() {
    let plan = Plan { width: 3, normed: true, ..Plan::of(3) };
    survives(&structure_of(&emit(&network(&plan, 1))), 1500, 1, true);
}

#[test]
fn a_damaged_export_is_an_error_or_a_graph() {
    for (seed, name) in [(2, "llama/cascaded_alt.onnx"), (3, "resnet/cascaded.onnx")] {
        let bytes = std::fs::read(data("golden").join(name)).unwrap();
        let small = structure_of(&bytes);
        survives(&small, 1500, seed, false);
        survives(&small, 60, seed + 10, true);
    }
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
