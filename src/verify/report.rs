//! What `verify` says: to people, as JSON, and to GitHub.

use super::compare::{Comparison, OutputComparison};
use super::divergence::Divergence;
use super::junit::UNPROVED;
use super::numeric::NumericReport;
use super::{Subject, Verdict, VerifyOptions};
use crate::io::lines::{Lines, put};
use serde_json::{Value, json};

/// Name of the engine or engines that ran the models.
pub(crate) fn engine_name(ran: &NumericReport) -> &'static str {
    match ran.costs.as_slice() {
        [one] => one.engine,
        _ => "both",
    }
}

pub(crate) fn json(a: &Subject, b: &Subject, v: &Verdict, o: &VerifyOptions, seconds: f64) -> Value {
    let outputs: Vec<Value> = v.numeric.iter().flat_map(|n| &n.report.outputs).map(output_json).collect();
    let ran = v.numeric.as_ref();
    json!({
        "a": a.path.to_string_lossy(), "b": b.path.to_string_lossy(),
        "equivalent": v.equivalent,
        "method": if v.proved() || v.numeric.is_none() && v.proof.is_some() { "proof" } else { "numeric" },
        "interface": v.interface,
        "proof": proof_json(v),
        "outputs": outputs,
        "first_divergence": v.divergence.as_ref().map(|d| json!(d)).or_else(|| parting_json(v)),
        "trials": ran.map_or(0, |n| n.report.trials),
        "engine": ran.map(engine_name),
        "seed": o.seed,
        "tolerance": {"atol": o.tolerance.atol, "rtol": o.tolerance.rtol},
        "failing": ran.and_then(|n| n.failing.as_ref()).map(|f| json!({"engine": f.engine, "input": f.trial.label(), "what": f.what})),
        "undefined": ran.map(|n| n.undefined.iter().map(|(name, _)| name).collect::<Vec<_>>()),
        "tables": ran.map(|n| json!(n.coverage)),
        "engines_apart": ran.and_then(|n| n.engines_apart.as_ref()).map(|c| json!({"max_abs": c.max_abs, "max_rel": c.max_rel})),
        "notes": ran.map_or(&[][..], |n| n.notes.as_slice()),
        "cost": ran.map_or(Value::Null, cost_json),
        "seconds": seconds,
    })
}

fn proof_json(v: &Verdict) -> Value {
    match &v.proof {
        None => json!({"attempted": false, "proved": false, "reason": "none was looked for", "assumptions": []}),
        Some(p) => {
            let rewrites: serde_json::Map<String, Value> =
                p.rewrites.iter().map(|(n, c)| (n.to_string(), json!(c))).collect();
            json!({"attempted": true, "proved": p.proved, "reason": p.reason, "assumptions": p.assumptions, "rewrites": rewrites,
                   "seconds": v.proof_seconds})
        }
    }
}

/// The first divergence where only a proof was looked for: where the proof parts, without a number.
fn parting_json(v: &Verdict) -> Option<Value> {
    let p = v.proof.as_ref().filter(|_| v.numeric.is_none())?.parting.as_ref()?;
    Some(
        json!({"value": p.value_a, "value_b": p.value_b, "node_a": p.node_a, "node_b": p.node_b, "max_abs": null, "why": p.why}),
    )
}

fn cost_json(n: &NumericReport) -> Value {
    n.costs.iter().map(|c| json!({"engine": c.engine, "seconds_a": c.a, "seconds_b": c.b})).collect()
}

fn output_json(c: &OutputComparison) -> Value {
    json!(OutputComparison { mismatch: why_infinite(c), ..c.clone() })
}

/// Why a difference is infinite.
pub(super) fn why_infinite(c: &OutputComparison) -> Option<String> {
    let not_finite = || "NaN or an infinity in one where the other has another number".to_string();
    c.mismatch.clone().or_else(|| (!c.verdict.max_abs.is_finite()).then(not_finite))
}

pub(crate) fn text(a: &Subject, b: &Subject, v: &Verdict, o: &VerifyOptions, verbose: bool) -> String {
    let out = &mut Lines::new(11);
    let head = match v.equivalent {
        true => "equivalent   ",
        false if v.is_unproved() => "NOT proved   ",
        false => "NOT equivalent   ",
    };
    put!(out, head, "{}   {}", a.path.display(), b.path.display());
    interface_text(out, v);
    proof_text(out, v, verbose);
    if let Some(n) = &v.numeric {
        outputs_text(out, n, o);
        if let Some(f) = &n.failing {
            put!(out, "shown by", "{} on input: {}", f.engine, f.trial.label());
        }
    }
    if let Some(d) = &v.divergence {
        put!(out, "first at", "{}", divergence_line(d));
        if let Some(bit) = d.first_bit.as_ref().filter(|bit| **bit != d.value) {
            put!(out, "", "within the tolerance they differ from `{bit}` on");
        }
    }
    if let Some(n) = &v.numeric {
        numeric_text(out, n, o, verbose);
    }
    std::mem::take(&mut out.text)
}

fn interface_text(out: &mut Lines, v: &Verdict) {
    if v.interface.is_empty() {
        put!(out, "interface", "the same");
    }
    for breaking in [true, false] {
        for d in v.interface.iter().filter(|d| d.breaking == breaking) {
            let harmless = if breaking { "" } else { " (breaks no caller)" };
            put!(out, "interface", "{}: {} in A, {} in B{harmless}", d.what, d.a, d.b);
        }
    }
    if v.numeric.is_none() && v.proof.is_none() {
        put!(out, "outputs", "not compared: the models cannot be fed the same inputs");
    }
}

fn proof_text(out: &mut Lines, v: &Verdict, verbose: bool) {
    let Some(p) = &v.proof else { return };
    if !p.proved {
        put!(out, "proof", "none found: {}", p.reason);
        if let Some(q) = &p.parting {
            put!(out, "", "parts at `{}` ({}) of A, `{}` ({}) of B", q.value_a, q.node_a, q.value_b, q.node_b);
        }
        return;
    }
    put!(out, "proof", "found in {:.2} s: {}", v.proof_seconds, p.reason);
    for a in &p.assumptions {
        put!(out, "", "provided that {a}");
    }
    if verbose {
        let rewrites: Vec<String> = p.rewrites.iter().map(|(name, n)| format!("{name} ({n})")).collect();
        put!(out, "", "by {}", rewrites.join(", "));
    }
}

fn outputs_text(out: &mut Lines, n: &NumericReport, o: &VerifyOptions) {
    let width = n.report.outputs.iter().map(|c| c.name.chars().count()).max().unwrap_or(0).clamp(6, 40);
    put!(out, "outputs", "{:<width$}  {:>9}  {:>9}  {:>9}  {:>10}", "name", "max abs", "max rel", "max ulp", "cosine");
    for c in &n.report.outputs {
        let ulp =
            c.max_ulp.map_or("-".to_string(), |u| if u < 1_000_000 { u.to_string() } else { format!("{:.1e}", u as f64) });
        let cosine = c.cosine.map_or("-".to_string(), |c| format!("{c:.7}"));
        let (abs, rel) = (c.verdict.max_abs, c.verdict.max_rel);
        let differs = match (c.verdict.equivalent, why_infinite(c)) {
            (true, _) => String::new(),
            (false, Some(why)) => format!("  differs: {why}"),
            (false, None) => "  differs".into(),
        };
        put!(out, "", "{:<width$}  {abs:>9.2e}  {rel:>9.2e}  {ulp:>9}  {cosine:>10}{differs}", c.name);
    }
    put!(
        out,
        "",
        "allowed: {:.1e} + {:.1e} of an output's largest magnitude; integers and booleans exactly",
        o.tolerance.atol,
        o.tolerance.rtol
    );
}

/// The first divergence in one line.
pub(crate) fn divergence_line(d: &Divergence) -> String {
    let other = if d.value_b == d.value { String::new() } else { format!(" (B: `{}`)", d.value_b) };
    let by = match &d.mismatch {
        Some(why) => why.clone(),
        None => format!("differ by {:.2e}, {:.2e} of the largest", d.max_abs, d.max_rel),
    };
    let nodes = if (&d.node_a, &d.op_a) == (&d.node_b, &d.op_b) {
        format!("node `{}` ({})", d.node_a, d.op_a)
    } else {
        format!("node `{}` ({}) of A and `{}` ({}) of B", d.node_a, d.op_a, d.node_b, d.op_b)
    };
    format!("value `{}`{other}, {nodes}: {by}", d.value)
}

fn numeric_text(out: &mut Lines, n: &NumericReport, o: &VerifyOptions, verbose: bool) {
    for c in &n.coverage {
        let differing =
            if c.differing > 0 { format!(", of them {} that differ, first", c.differing) } else { String::new() };
        put!(out, "tables", "`{}` read {} of {} rows{differing}", c.input, c.read, c.rows);
    }
    if let Some(apart) = &n.engines_apart {
        let Comparison { max_abs, max_rel, .. } = apart;
        put!(out, "engines", "tract and ort lie {max_abs:.1e} apart on A ({max_rel:.1e} of the largest)");
    }
    if verbose {
        for (label, c) in &n.trials {
            put!(out, "trial", "{label}: max abs {:.2e}{}", c.max_abs, if c.equivalent { "" } else { "  differs" });
        }
    }
    for note in &n.notes {
        put!(out, "note", "{note}");
    }
    for (name, from) in &n.undefined {
        put!(out, "note", "output `{name}` of A is NaN on some inputs, of which equality says little{from}");
    }
    let costs: Vec<String> =
        n.costs.iter().map(|c| format!("{} {:.2} s (A {:.2}, B {:.2})", c.engine, c.a + c.b, c.a, c.b)).collect();
    put!(out, "checked", "{} inputs, seed {}; {}", n.report.trials, o.seed, costs.join(", "));
}

// ---- GitHub -------------------------------------------------------------------------------------------------------------

/// Text with the characters escaped that a workflow command must not hold.
fn escaped(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

/// An annotation. It goes to stderr, since stdout may be a JSON document; GitHub's runner reads both.
pub(crate) fn annotation(file: &std::path::Path, title: &str, message: &str) -> String {
    let property = |text: &str| escaped(text).replace(':', "%3A").replace(',', "%2C");
    format!("::error file={},title={}::{}", property(&file.display().to_string()), property(title), escaped(message))
}

/// An annotation of no file.
pub(crate) fn complaint(message: &str) -> String {
    format!("::error::{}", escaped(message))
}

/// The lines that make GitHub show a failed comparison beside the file.
pub(crate) fn annotations(a: &Subject, b: &Subject, v: &Verdict) -> Vec<String> {
    let against = a.path.display().to_string();
    let mut lines = Vec::new();
    for d in v.interface.iter().filter(|d| d.breaking) {
        lines.push(annotation(&b.path, "interface differs", &format!("{}: {} in {against}, {} here", d.what, d.a, d.b)));
    }
    for c in v.numeric.iter().flat_map(|n| &n.report.outputs).filter(|c| !c.verdict.equivalent) {
        let by = why_infinite(c)
            .unwrap_or_else(|| format!("{:.3e} ({:.1e} of the largest)", c.verdict.max_abs, c.verdict.max_rel));
        let at = v.divergence.as_ref().map_or(String::new(), |d| format!("; first at {}", divergence_line(d)));
        lines.push(annotation(&b.path, "not equivalent", &format!("output `{}` differs from {against}: {by}{at}", c.name)));
    }
    if lines.is_empty() && !v.equivalent {
        lines.push(match &v.proof {
            Some(p) if v.is_unproved() => {
                annotation(&b.path, UNPROVED, &format!("no proof that it equals {against}: {}", p.reason))
            }
            _ => annotation(&b.path, "not equivalent", &format!("is not equivalent to {against}")),
        });
    }
    lines
}

/// Prints annotations where GitHub reads them.
pub(crate) fn annotate(lines: impl IntoIterator<Item = String>) {
    if std::env::var_os("GITHUB_ACTIONS").is_some_and(|v| v == "true") {
        lines.into_iter().for_each(|line| eprintln!("{line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn annotations_are_one_line_each() {
        let line = annotation(Path::new("models/a,b.onnx"), "verify: no", "100% off\nsecond");
        assert_eq!(line, "::error file=models/a%2Cb.onnx,title=verify%3A no::100%25 off%0Asecond");
    }
}
