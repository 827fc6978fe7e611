//! What the gradient check says: to people, as JSON, and which lines GitHub and JUnit show.

use super::{GradientReport, TensorCheck, UpdateCheck};
use crate::io::lines::{Lines, put};
use crate::verify::VerifyOptions;
use serde_json::{Value, json};
use std::path::Path;

pub(crate) fn json(path: &Path, reports: &[GradientReport], o: &VerifyOptions) -> Value {
    let one = |r: &GradientReport| {
        json!({
            "engine": {"gradients": r.gradients, "losses": r.losses}, "precision": r.precision, "gradients_from": r.source,
            "tolerance": r.tolerance, "directions": r.directions, "tensors": r.tensors, "updates": r.updates,
            "dims": r.sizes.iter().collect::<std::collections::BTreeMap<_, _>>(), "notes": r.notes, "seconds": r.seconds,
        })
    };
    json!({
        "model": path.to_string_lossy(), "equivalent": reports.iter().all(GradientReport::passed), "method": "gradient", "seed": o.seed,
        "trials": o.trials, "checks": reports.iter().map(one).collect::<Vec<_>>(),
    })
}

/// One failure in one line.
fn tensor_line(t: &TensorCheck) -> String {
    format!(
        "`{}` ({}): the gradient says {:.6e} along the direction that fits worst, finite differences say {:.6e}; relative error {:.1e}",
        t.name,
        t.kind.name(),
        t.directional,
        t.finite_difference,
        t.error
    )
}

fn update_line(u: &UpdateCheck) -> String {
    format!(
        "`{}.next` is off the optimiser's formula by {:.2e} at step {}, {:.1e} is allowed",
        u.name, u.max_abs, u.step, u.allowed
    )
}

/// Every failure, as (name, message).
pub(crate) fn failures(reports: &[GradientReport]) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for r in reports {
        all.extend(r.tensors.iter().filter(|t| !t.passed).map(|t| (format!("gradient {}", t.name), tensor_line(t))));
        all.extend(r.updates.iter().filter(|u| !u.passed).map(|u| (format!("update {}", u.name), update_line(u))));
    }
    all
}

pub(crate) fn text(path: &Path, reports: &[GradientReport], verbose: bool) -> String {
    let out = &mut Lines::new(11);
    let passed = reports.iter().all(GradientReport::passed);
    let head = if passed { "gradients agree   " } else { "gradients DISAGREE   " };
    put!(out, head, "{}", path.display());
    for r in reports {
        one(out, r, verbose);
    }
    std::mem::take(&mut out.text)
}

fn one(out: &mut Lines, r: &GradientReport, verbose: bool) {
    let sizes: Vec<String> = r.sizes.iter().map(|(n, v)| format!("{n}={v}")).collect();
    let sizes = if sizes.is_empty() { String::new() } else { format!(", {}", sizes.join(", ")) };
    put!(
        out,
        "gradients",
        "by {} from {}; losses by {} in {}{sizes}; {} directions a tensor",
        r.gradients,
        r.source,
        r.losses,
        r.precision,
        r.directions
    );
    let worst = r.tensors.iter().max_by(|a, b| a.error.total_cmp(&b.error));
    if let Some(w) = worst {
        let passed = r.tensors.iter().filter(|t| t.passed).count();
        put!(
            out,
            "tensors",
            "{passed} of {} agree; worst relative error {:.1e} (`{}`), {:.0e} is allowed",
            r.tensors.len(),
            w.error,
            w.name,
            r.tolerance
        );
    }
    if let Some(w) = r.updates.iter().max_by(|a, b| (a.max_abs / a.allowed).total_cmp(&(b.max_abs / b.allowed))) {
        let passed = r.updates.iter().filter(|u| u.passed).count();
        put!(
            out,
            "updates",
            "{passed} of {} are the optimiser's; worst {:.1e} (`{}`), {:.1e} is allowed there",
            r.updates.len(),
            w.max_abs,
            w.name,
            w.allowed
        );
    }
    for t in r.tensors.iter().filter(|t| !t.passed) {
        put!(out, "wrong", "{}", tensor_line(t));
    }
    for u in r.updates.iter().filter(|u| !u.passed) {
        put!(out, "wrong", "{}", update_line(u));
    }
    if verbose {
        for t in &r.tensors {
            put!(
                out,
                "",
                "{:<9} norm {:.2e}  g·d {:>13.6e}  difference {:>13.6e}  error {:.1e}  {}",
                t.kind.name(),
                t.norm,
                t.directional,
                t.finite_difference,
                t.error,
                t.name
            );
        }
    }
    for note in &r.notes {
        put!(out, "note", "{note}");
    }
    put!(out, "time", "{:.2} s", r.seconds);
}
