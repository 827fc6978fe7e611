//! `verify`: what it must catch, what it must not mind, and how it is used.

#[cfg(unix)]
mod action;
mod command;
mod harmless;
mod mutate;

use crate::common::{Random, models, runtime};
use ancre_passes::ir::Graph;
use ancre_rewrite::engine::ort::{OrtEngine, OrtSession};
use ancre_rewrite::engine::random_inputs::{self, Sizes};
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::tensor::NpTensor;
use ancre_rewrite::verify::{ProofMode, Subject, Tolerance, VerifyOptions, compare_all, compare_subjects};
use ancre_rewrite::{cli::Cli, rewrite};
use clap::Parser;
use onnx_protobuf::{Message, ModelProto};
use std::collections::BTreeMap;
use std::path::Path;

/// A model and its rewrite, which at the start computes the same.
struct Base {
    name: String,
    source: Subject,
    rewrite: ModelProto,
    /// The rewrite's graph, for types.
    types: Graph,
    /// Inputs that `verify` does not use, with the source's outputs in ONNX Runtime.
    judged: Vec<(Tensors, Tensors)>,
}

fn ort(bytes: &[u8]) -> Result<OrtSession, String> {
    runtime();
    let engine = OrtEngine { threads: Some(1), ..OrtEngine::default() };
    engine.open(bytes, None).map_err(|e| e.to_string())
}

/// Inputs from another generator than `verify`'s: other seeds, scales, extents; a uniform distribution too.
fn independent(g: &Graph, sizes: &Sizes, seed: u64) -> Tensors {
    let mut r = Random(0xabcd_0000 + seed);
    let mut all = random_inputs::random_inputs(g, sizes, 9000 + seed).unwrap();
    for (_, t) in all.iter_mut().filter(|(name, t)| t.dtype().is_float() && !name.contains("mask")) {
        let draw = |r: &mut Random| match seed % 4 {
            0 => r.normal(),
            1 => 2.0 * r.unit() - 1.0,
            2 => 4.0 * r.normal(),
            _ => 0.2 * r.normal() + 0.5,
        };
        let values: Vec<f64> = (0..t.len()).map(|_| draw(&mut r)).collect();
        *t = NpTensor::from_f64s(t.dtype(), t.shape(), &values).unwrap_or_else(|| t.clone());
    }
    all
}

/// Bases in turn: as the default preset writes them, and with routes that weigh one state by one and the others by zero.
fn base(path: &Path, variant: usize, dir: &Path) -> Option<Base> {
    let name = path.file_stem()?.to_str()?.to_string();
    let out = dir.join(format!("{name}.{variant}.onnx"));
    let mut arguments = vec!["ancre-rewrite", path.to_str()?, "--no-train", "--verify", "none", "-o", out.to_str()?];
    match variant {
        0 => {}
        1 => arguments.extend(["--parametrization", "free", "--init", "identity"]),
        _ => arguments.extend(["--parametrization", "softmax", "--init", "identity"]),
    }
    rewrite::rewrite(&Cli::parse_from(arguments).rewrite).unwrap_or_else(|e| panic!("{name}: {e}"));
    let source = Subject::read(path).unwrap();
    let bytes = std::fs::read(&out).unwrap();
    let types = Subject::of_bytes(bytes.clone(), &out).unwrap().graph;
    let rewrite = ModelProto::parse_from_bytes(&bytes).unwrap();
    let mut session = ort(source.bytes().unwrap()).unwrap();
    let sizes = random_inputs::sizes(&source.graph, &Sizes::new());
    let runs = sizes.iter().find(|s| session.run(&independent(&source.graph, s, 0)).is_ok())?.clone();
    let judged = (0..8)
        .map(|seed| {
            let inputs = independent(&source.graph, &runs, seed);
            let outputs = session.run(&inputs).unwrap();
            (inputs, outputs)
        })
        .collect();
    Some(Base { name, source, rewrite, types, judged })
}

/// What ONNX Runtime says about a changed model on inputs that `verify` does not use; an error where it cannot run it.
fn differs(base: &Base, bytes: &[u8]) -> Result<bool, String> {
    let mut session = ort(bytes)?;
    for (inputs, want) in &base.judged {
        let got = session.run(inputs).map_err(|e| e.to_string())?;
        if compare_all(&got, want, Tolerance::default()).iter().any(|c| !c.verdict.equivalent) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[derive(Default)]
struct Tally {
    caught: usize,
    /// Rejected because the engine cannot run it although ONNX Runtime can.
    not_run: usize,
    missed: Vec<String>,
    /// Accepted by a proof alone although numbers tell otherwise.
    proved_wrongly: usize,
    /// Harmless and proved so.
    proved: usize,
    /// Accepted, and ONNX Runtime sees no difference either.
    without_effect: usize,
    /// Rejected on an input of `verify`'s on which ONNX Runtime agrees, though it saw no difference on its own.
    finer: usize,
    /// Changed, and rejected by what tract sees alone (roundings of quantised values, constants that a fusion overlooks).
    in_tract: usize,
    /// A harmless change rejected.
    false_alarms: Vec<String>,
}

/// Does ONNX Runtime too see a difference on the input by which `verify` rejected?
fn confirmed(base: &Base, bytes: &[u8], inputs: &Tensors) -> bool {
    let (Ok(mut a), Ok(mut b)) = (ort(base.source.bytes().unwrap()), ort(bytes)) else { return true };
    let (Ok(want), Ok(got)) = (a.run(inputs), b.run(inputs)) else { return true };
    compare_all(&got, &want, Tolerance::default()).iter().any(|c| !c.verdict.equivalent)
}

/// `is_mutant`: the model is another one, whether or not that shows; `is_changed`: ONNX Runtime sees that it does.
fn judge(base: &Base, what: &str, bytes: Vec<u8>, path: &Path, (is_mutant, is_changed): (bool, bool), tally: &mut Tally) {
    let label = format!("{}: {what}", base.name);
    let compared =
        |b: &Subject, proof: ProofMode| compare_subjects(&base.source, b, &VerifyOptions { proof, ..Default::default() });
    let verdict = Subject::of_bytes(bytes.clone(), path).and_then(|b| {
        let proved = compared(&b, ProofMode::Only)?.proved();
        tally.proved_wrongly += (proved && is_changed) as usize;
        tally.proved += (proved && !is_changed) as usize;
        // Numbers alone must tell, too.
        compared(&b, ProofMode::Never)
    });
    match verdict {
        Err(_) if is_mutant => tally.not_run += 1,
        Err(e) => tally.false_alarms.push(format!("{label}: {e}")),
        Ok(v) if !v.equivalent && is_changed => tally.caught += 1,
        Ok(v) if v.equivalent && is_changed => tally.missed.push(label),
        Ok(v) if v.equivalent => tally.without_effect += 1,
        Ok(v) => match v.numeric.as_ref().and_then(|n| n.failing.as_ref()) {
            Some(f) if is_mutant && confirmed(base, &bytes, &f.trial.inputs) => tally.finer += 1,
            Some(f) if is_mutant && f.engine == "tract" => tally.in_tract += 1,
            _ => tally.false_alarms.push(label),
        },
    }
}

/// Mutations for each model; a handful in CI, `ANCRE_MUTANTS` for more.
fn per_model() -> usize {
    std::env::var("ANCRE_MUTANTS").ok().and_then(|v| v.parse().ok()).unwrap_or(9)
}

#[test]
fn mutations_are_caught_and_harmless_changes_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut by_kind: BTreeMap<String, Tally> = BTreeMap::new();
    let mut harmless = Tally::default();
    let (mut invalid, mut changed) = (0, 0);
    for (i, path) in models().iter().enumerate() {
        let Some(base) = base(path, i % 3, dir.path()) else { continue };
        let mut r = Random(i as u64);
        let mut made = 0;
        for attempt in 0..8 * per_model() {
            if made == per_model() {
                break;
            }
            // Kinds in turn, starting elsewhere for each model.
            let kind = mutate::KINDS[(3 * i + attempt) % mutate::KINDS.len()];
            let Some((m, what)) = mutate::mutate(&base.rewrite, &base.types, kind, &mut r) else { continue };
            let bytes = m.write_to_bytes().unwrap();
            let Ok(is_changed) = differs(&base, &bytes) else {
                invalid += 1;
                continue;
            };
            made += 1;
            changed += is_changed as usize;
            judge(&base, &what, bytes, path, (true, is_changed), by_kind.entry(kind.to_string()).or_default());
        }
        for k in 0..3 {
            let kind = harmless::KINDS[(3 * i + k) % harmless::KINDS.len()];
            let m = harmless::change(&base.rewrite, kind, dir.path(), &mut r);
            judge(&base, kind, m.write_to_bytes().unwrap(), &dir.path().join("m.onnx"), (false, false), &mut harmless);
        }
    }
    println!(
        "{:<20} caught  not run  missed  no effect  finer  in tract  false alarms  proved wrongly  proved rightly",
        "mutation"
    );
    let row = |name: &str, t: &Tally| {
        println!(
            "{name:<20} {:>6}  {:>7}  {:>6}  {:>9}  {:>5}  {:>8}  {:>12}  {:>14}  {:>14}",
            t.caught,
            t.not_run,
            t.missed.len(),
            t.without_effect,
            t.finer,
            t.in_tract,
            t.false_alarms.len(),
            t.proved_wrongly,
            t.proved
        );
    };
    by_kind.iter().for_each(|(name, t)| row(name, t));
    row("harmless", &harmless);
    println!("{changed} mutations change an output by more than the tolerance; {invalid} more do not load and do not count");
    let missed: Vec<&String> = by_kind.values().flat_map(|t| &t.missed).collect();
    let alarms: Vec<&String> = by_kind.values().chain([&harmless]).flat_map(|t| &t.false_alarms).collect();
    assert!(missed.is_empty(), "missed: {missed:#?}");
    assert!(alarms.is_empty(), "false alarms: {alarms:#?}");
    let made: usize = by_kind.values().map(|t| t.caught + t.not_run + t.without_effect + t.finer + t.in_tract).sum();
    assert!(made >= 22 * per_model(), "only {made} mutations");
    let wrong: usize = by_kind.values().map(|t| t.proved_wrongly).sum();
    assert_eq!(wrong, 0, "proofs of what is not so");
}
