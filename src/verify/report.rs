//! What `verify` says: to people, as JSON, and to GitHub.

use super::compare::{Comparison, OutputComparison};
use super::divergence::Divergence;
use super::numeric::NumericReport;
use super::{Subject, Verdict, VerifyOptions};
use crate::cli::VerifyArgs;
use crate::error::Failure;
use serde::Serializer;
use serde_json::{Value, json};
use std::fmt::Write;

/// A number in JSON, which has no infinity: null.
pub(super) fn number<S: Serializer>(v: &f64, s: S) -> Result<S::Ok, S::Error> {
    if v.is_finite() { s.serialize_f64(*v) } else { s.serialize_none() }
}

/// Name of the engine or engines that ran the models.
pub fn engine_name(ran: &NumericReport) -> &'static str {
    match ran.costs.as_slice() {
        [one] => one.engine,
        _ => "both",
    }
}

/// The JSON document.
pub fn json(a: &Subject, b: &Subject, v: &Verdict, o: &VerifyOptions, seconds: f64) -> Value {
    let outputs: Vec<Value> = v.numeric.iter().flat_map(|n| &n.report.outputs).map(output_json).collect();
    let ran = v.numeric.as_ref();
    json!({
        "a": a.path, "b": b.path,
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

/// Where only a proof was looked for, its parting is the first divergence, without a number.
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
    let finite = |v: f64| if v.is_finite() { json!(v) } else { Value::Null };
    let mut out = json!({
        "name": c.name, "equivalent": c.verdict.equivalent, "max_abs": finite(c.verdict.max_abs), "max_rel": finite(c.verdict.max_rel),
        "max_ulp": c.max_ulp, "cosine": c.cosine,
    });
    if let (Some(why), Some(out)) = (why_infinite(c), out.as_object_mut()) {
        out.insert("mismatch".into(), json!(why));
    }
    out
}

/// Why a difference is no number.
pub(super) fn why_infinite(c: &OutputComparison) -> Option<String> {
    let not_finite = || "NaN or an infinity in one where the other has another number".to_string();
    c.mismatch.clone().or_else(|| (!c.verdict.max_abs.is_finite()).then(not_finite))
}

/// The report for people.
pub fn text(a: &Subject, b: &Subject, v: &Verdict, o: &VerifyOptions, verbose: bool) -> String {
    let mut s = String::new();
    let out = &mut s;
    let head = if v.equivalent { "equivalent" } else { "NOT equivalent" };
    let _ = writeln!(out, "{head}   {}   {}", a.path.display(), b.path.display());
    interface_text(out, v);
    proof_text(out, v, verbose);
    if let Some(n) = &v.numeric {
        outputs_text(out, n, o);
        if let Some(f) = &n.failing {
            let _ = writeln!(out, "shown by   {} on input: {}", f.engine, f.trial.label());
        }
    }
    if let Some(d) = &v.divergence {
        let _ = writeln!(out, "first at   {}", divergence_line(d));
        if let Some(bit) = d.first_bit.as_ref().filter(|bit| **bit != d.value) {
            let _ = writeln!(out, "           within the tolerance they differ from `{bit}` on");
        }
    }
    if let Some(n) = &v.numeric {
        numeric_text(out, n, o, verbose);
    }
    s
}

fn interface_text(out: &mut String, v: &Verdict) {
    let (breaking, notes): (Vec<_>, Vec<_>) = v.interface.iter().partition(|d| d.breaking);
    if v.interface.is_empty() {
        let _ = writeln!(out, "interface  the same");
    }
    for d in breaking {
        let _ = writeln!(out, "interface  {}: {} in A, {} in B", d.what, d.a, d.b);
    }
    for d in notes {
        let _ = writeln!(out, "interface  {}: {} in A, {} in B (breaks no caller)", d.what, d.a, d.b);
    }
    if v.numeric.is_none() && v.proof.is_none() {
        let _ = writeln!(out, "outputs    not compared: the models cannot be fed the same inputs");
    }
}

fn proof_text(out: &mut String, v: &Verdict, verbose: bool) {
    let Some(p) = &v.proof else { return };
    if !p.proved {
        let _ = writeln!(out, "proof      none found: {}", p.reason);
        if let Some(q) = &p.parting {
            let _ = writeln!(
                out,
                "           parts at `{}` ({}) of A, `{}` ({}) of B",
                q.value_a, q.node_a, q.value_b, q.node_b
            );
        }
        return;
    }
    let _ = writeln!(out, "proof      found in {:.2} s: {}", v.proof_seconds, p.reason);
    for a in &p.assumptions {
        let _ = writeln!(out, "           provided that {a}");
    }
    if verbose {
        let rewrites: Vec<String> = p.rewrites.iter().map(|(name, n)| format!("{name} ({n})")).collect();
        let _ = writeln!(out, "           by {}", rewrites.join(", "));
    }
}

fn outputs_text(out: &mut String, n: &NumericReport, o: &VerifyOptions) {
    let width = n.report.outputs.iter().map(|c| c.name.chars().count()).max().unwrap_or(0).clamp(6, 40);
    let _ = writeln!(
        out,
        "outputs    {:<width$}  {:>9}  {:>9}  {:>9}  {:>10}",
        "name", "max abs", "max rel", "max ulp", "cosine"
    );
    for c in &n.report.outputs {
        let ulp =
            c.max_ulp.map_or("-".to_string(), |u| if u < 1_000_000 { u.to_string() } else { format!("{:.1e}", u as f64) });
        let cosine = c.cosine.map_or("-".to_string(), |c| format!("{c:.7}"));
        let (abs, rel) = (c.verdict.max_abs, c.verdict.max_rel);
        let _ = write!(out, "           {:<width$}  {abs:>9.2e}  {rel:>9.2e}  {ulp:>9}  {cosine:>10}", c.name);
        let _ = match (c.verdict.equivalent, why_infinite(c)) {
            (true, _) => writeln!(out),
            (false, Some(why)) => writeln!(out, "  differs: {why}"),
            (false, None) => writeln!(out, "  differs"),
        };
    }
    let _ = writeln!(
        out,
        "           allowed: {:.1e} + {:.1e} of an output's largest magnitude; integers and booleans exactly",
        o.tolerance.atol, o.tolerance.rtol
    );
}

/// The first divergence in one line.
pub fn divergence_line(d: &Divergence) -> String {
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

fn numeric_text(out: &mut String, n: &NumericReport, o: &VerifyOptions, verbose: bool) {
    for c in &n.coverage {
        let differing =
            if c.differing > 0 { format!(", of them {} that differ, first", c.differing) } else { String::new() };
        let _ = writeln!(out, "tables     `{}` read {} of {} rows{differing}", c.input, c.read, c.rows);
    }
    if let Some(apart) = &n.engines_apart {
        let Comparison { max_abs, max_rel, .. } = apart;
        let _ = writeln!(out, "engines    tract and ort lie {max_abs:.1e} apart on A ({max_rel:.1e} of the largest)");
    }
    if verbose {
        for (label, c) in &n.trials {
            let _ = writeln!(
                out,
                "trial      {label}: max abs {:.2e}{}",
                c.max_abs,
                if c.equivalent { "" } else { "  differs" }
            );
        }
    }
    for note in &n.notes {
        let _ = writeln!(out, "note       {note}");
    }
    let costs: Vec<String> =
        n.costs.iter().map(|c| format!("{} {:.2} s (A {:.2}, B {:.2})", c.engine, c.a + c.b, c.a, c.b)).collect();
    let _ = writeln!(out, "checked    {} inputs, seed {}; {}", n.report.trials, o.seed, costs.join(", "));
}

// ---- GitHub -------------------------------------------------------------------------------------------------------------

/// What a workflow command must not hold literally.
fn escaped(text: &str) -> String {
    text.replace('%', "%25").replace('\r', "%0D").replace('\n', "%0A")
}

fn on_github() -> bool {
    std::env::var_os("GITHUB_ACTIONS").is_some_and(|v| v == "true")
}

/// An annotation, on stderr since stdout may be a JSON document; the runner reads both.
fn annotation(file: &std::path::Path, title: &str, message: &str) -> String {
    let property = |text: &str| escaped(text).replace(':', "%3A").replace(',', "%2C");
    format!("::error file={},title={}::{}", property(&file.display().to_string()), property(title), escaped(message))
}

/// The lines that make GitHub show a failed comparison beside the file.
pub fn annotations(a: &Subject, b: &Subject, v: &Verdict) -> Vec<String> {
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
        let why = match &v.proof {
            Some(p) if v.numeric.is_none() => format!("no proof that it equals {against}: {}", p.reason),
            _ => format!("is not equivalent to {against}"),
        };
        lines.push(annotation(&b.path, "not equivalent", &why));
    }
    lines
}

/// Prints the annotations where GitHub reads them.
pub fn annotate(a: &Subject, b: &Subject, v: &Verdict) {
    if on_github() {
        annotations(a, b, v).iter().for_each(|line| eprintln!("{line}"));
    }
}

/// The same for messages about one file.
pub fn annotate_lines<'m>(file: &std::path::Path, title: &str, messages: impl Iterator<Item = &'m str>) {
    if on_github() {
        messages.for_each(|m| eprintln!("{}", annotation(file, title, m)));
    }
}

/// The same for a check that could not be made.
pub fn annotate_failure(args: &VerifyArgs, failure: &Failure) {
    if let Some(path) = args.b.as_ref().or(args.gradient.as_ref()).filter(|_| on_github()) {
        eprintln!("{}", annotation(path, "verify", &failure.to_string()));
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
