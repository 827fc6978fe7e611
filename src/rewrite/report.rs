//! What the main job says: to people, and as JSON.

use crate::engine::memory::bytes;
use crate::io::lines::{Lines, put};
use crate::rewrite::Rewritten;
use crate::rewrite::batch::BatchFacts;
use crate::rewrite::opening;
use crate::rewrite::verification::{self, Verification};
use ancre_passes::analysis::report as structure;
use ancre_passes::contract::LossRecord;
use ancre_passes::ir::{Dim, Form, Graph, RouterSpec, Scope, Sources, Sparsity};
use ancre_passes::placement::Fallback;
use ancre_passes::transform::recompute::Recomputed;
use ancre_passes::transform::route::RouteOptions;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// The JSON report of the main job.
pub fn json(o: &Rewritten) -> Value {
    let inspected = structure::inspect_json(&o.source, &o.structure, &o.model.display().to_string());
    let coefficients: usize = o.routers.values().map(RouterSpec::coefficients).sum();
    let gates = gates_of(o);
    let routers: Vec<Value> = o
        .routers
        .iter()
        .map(|(id, r)| json!({"id": id.0, "K": r.blocks(), "S": r.sources.len(), "adds_per_block": r.adds_per_block, "note": o.notes.get(id)}))
        .collect();
    let outputs: Vec<Value> = o
        .outputs
        .iter()
        .map(|(kind, path, bytes, nodes)| {
            json!({"kind": kind, "path": path.to_string_lossy(), "bytes": bytes, "nodes": nodes, "opened_by": opening::engine_of(o, kind)})
        })
        .collect();
    let training = match &o.training {
        Ok(t) => {
            let losses = t.losses();
            let first = losses.first();
            let names: Vec<&str> = losses.iter().map(|l| l.kind.as_str()).collect();
            json!({"loss": names.join(" + "), "losses": losses, "optimizer": t.optimizer, "batch": t.batch, "precision": t.training.cx.training.precision, "recompute": t.training.cx.recomputed.as_ref().map(recomputed_json), "target": first.and_then(|l| l.target.clone()), "class_axis": first.and_then(|l| l.class_axis), "batch_change": t.rebuilt.as_ref().or(o.rebuilt.as_ref()).map(BatchFacts::json), "dropout": t.training.cx.dropouts.len(), "trainable": t.training.cx.trainable, "tied": o.ties,
                   "quantised": (!t.training.cx.quantised.is_empty()).then_some(&t.training.cx.quantised),
                   "frozen": t.training.cx.frozen.iter().map(|(n, _)| n).collect::<Vec<_>>()})
        }
        Err(why) => json!({"reason": why}),
    };
    let listed =
        |all: &[Fallback]| all.iter().map(|f| json!({"node": f.node, "op": f.op, "why": f.why})).collect::<Vec<_>>();
    let forward = listed(&o.forward_fallbacks);
    let (graph, fallbacks) = match &o.training {
        Ok(t) => ("train", listed(&t.fallbacks)),
        Err(_) => ("forward", forward.clone()),
    };
    let placement = json!({"target": "cuda", "graph": graph, "fallbacks": fallbacks, "forward": forward});
    let seconds: Map<String, Value> = o.seconds.iter().map(|(phase, s)| (phase.to_string(), json!(s))).collect();
    json!({
        "model": o.model.to_string_lossy(), "opset": o.source.opsets.get(""), "nodes": o.source.op_count(), "parameters": o.parameters,
        "residual_adds": inspected["residual_adds"], "identity": inspected["identity"], "projection": inspected["projection"],
        "chains": inspected["chains"],
        "router": {
            "form": o.route.form, "granularity": o.route.granularity.to_string(), "scope": o.route.scope, "parametrization": o.route.rule,
            "init": o.route.init.to_string(), "tau": number(o.route.tau), "normalize": o.route.normalize,
            "sources": o.route.sources, "dilation": o.route.sparsity.dilation, "period": o.route.sparsity.period,
            "summaries": o.route.sparsity.summaries, "coefficients": coefficients, "gates": gates,
            "chains": routers,
        },
        "adapters": o.adapted.as_ref().map(|a| a.json(o.parameters)),
        "outputs": outputs,
        "verify": o.verified.as_ref().map(Verification::json),
        "placement": placement,
        "training": training,
        "notices": o.notices,
        "seconds": seconds,
        "passes": o.passes.iter().map(|p| json!({"name": p.pass, "changed": p.changed, "refused": p.refused})).collect::<Vec<_>>(),
    })
}

/// A float32 option as the decimal number it was written as.
fn number(v: f32) -> Value {
    v.to_string().parse::<f64>().map_or(Value::Null, |d| json!(d))
}

/// The report of the main job for people.
pub fn text(o: &Rewritten, verbose: bool) -> String {
    let out = &mut Lines { width: 10, text: structure::inspect_text(&o.source, &o.structure) + "\n" };
    router_text(out, o);
    if let Some(adapted) = &o.adapted {
        put!(out, "adapters", "{}", adapted.text(o.parameters));
    }
    if let Some(v) = &o.verified {
        verified_text(out, o, v, verbose);
    }
    if let Some(b) = &o.rebuilt {
        batch_text(out, b, "");
    }
    training_text(out, o, verbose);
    placement_text(out, o);
    for notice in &o.notices {
        put!(out, "note", "{notice}");
    }
    for (kind, path, size, nodes) in &o.outputs {
        let name = match *kind {
            "train" => "training",
            "grad" => "gradients",
            kind => kind,
        };
        let nodes = if *nodes > 0 { format!(", {nodes} nodes{}", opening::words(o, kind)) } else { String::new() };
        put!(out, name, "{}  ({}{nodes})", path.display(), bytes(*size));
    }
    if verbose {
        let all: Vec<String> = o.seconds.iter().map(|(phase, s)| format!("{phase} {:.0} ms", s * 1e3)).collect();
        put!(out, "time", "{}", all.join(", "));
        let slow = o.passes.iter().filter(|p| p.seconds >= 1e-3);
        let slow: Vec<String> = slow.map(|p| format!("{} {:.0} ms", p.pass, p.seconds * 1e3)).collect();
        put!(out, "passes", "{}", slow.join(", "));
    }
    next_text(out, o);
    std::mem::take(&mut out.text)
}

/// In the skips' place, routers over chains of no more blocks than this moved validation losses by little or nothing in docs/evidence.md.
pub(super) const FEW: usize = 4;

fn router_text(out: &mut Lines, o: &Rewritten) {
    if o.routers.is_empty() {
        put!(out, "router", "none: no chain of two or more blocks was chosen, the graph is unchanged");
        return;
    }
    let coefficients: usize = o.routers.values().map(RouterSpec::coefficients).sum();
    let gates = gates_of(o);
    let gates = if gates > 0 { format!(" + {gates} gates") } else { String::new() };
    let chains: Vec<String> = o
        .routers
        .iter()
        .map(|(id, r)| match r.sources.len() {
            0 => format!("{id} (K = {})", r.blocks()),
            s => format!("{id} (K = {}, and {s} earlier states)", r.blocks()),
        })
        .collect();
    let r = &o.route;
    let reads = if r.scope == Scope::Network { "in the whole network" } else { "of its chain" };
    let what = match r.form {
        Form::Reassign => format!("the skip into each block becomes a weighted sum of the earlier states {reads}"),
        Form::Input => {
            format!("each block reads a weighted sum of the earlier states {reads} in the place of the state before it")
        }
        Form::Augment => format!("each block also reads a weighted sum of the earlier states {reads}"),
    };
    put!(out, "router", "{what}: {coefficients} coefficients{gates} to learn");
    if coefficients <= 3 && gates_of(o) <= 1 {
        put!(out, "", "that is next to nothing: with --scope network blocks read across stages as well");
    } else if r.form == Form::Reassign && o.routers.values().all(|r| r.blocks() <= FEW) {
        put!(
            out,
            "",
            "chains of at most {FEW} blocks had little to learn where that was measured; `compare` tells if yours differs"
        );
    }
    put!(out, "", "chains {}", chains.join(", "));
    put!(
        out,
        "",
        "--form {} --granularity {} --scope {} --parametrization {} --normalize {} --init {} --tau {}{}",
        r.form.name(),
        r.granularity,
        r.scope.name(),
        r.rule.name(),
        r.normalize.name(),
        r.init,
        r.tau,
        further(r)
    );
}

/// Options that few routers have.
fn further(r: &RouteOptions) -> String {
    let mut out = if r.sources == Sources::Deltas { " --sources deltas".to_string() } else { String::new() };
    let Sparsity { dilation, period, summaries } = r.sparsity;
    let sparsity = [("dilation", dilation), ("period", period), ("summaries", summaries)];
    for (name, n) in sparsity.into_iter().filter(|(_, n)| *n > 1) {
        out.push_str(&format!(" --{name} {n}"));
    }
    out
}

fn gates_of(o: &Rewritten) -> usize {
    o.routers.values().map(RouterSpec::gates).sum()
}

fn verified_text(out: &mut Lines, o: &Rewritten, v: &Verification, verbose: bool) {
    let has_one_hot = o.route.form != Form::Augment && o.routers.values().all(RouterSpec::has_one_hot);
    let what = if has_one_hot { "router at one-hot equals the source" } else { "without its routes equals the source" };
    put!(out, "verified", "{what}: {}", verification::words(v, &v.one_hot));
    if let Some(rows) = &v.rows {
        let (engine, abs) = (v.engine.unwrap_or_default(), rows.max_abs);
        put!(out, "", "routes equal the sums recomputed from the states: max |difference| {abs:.1e} ({engine})");
    }
    match &v.emitted {
        None => {}
        Some(f) if f.verdict.equivalent => {
            put!(out, "", "the file written equals the source: {}", verification::words(v, f));
        }
        Some(f) => {
            let (abs, part) = (f.verdict.max_abs, f.verdict.max_rel * 100.0);
            put!(
                out,
                "",
                "the file written differs from the source by up to {abs:.1e} ({part:.0}% of the largest value), as its router starts elsewhere"
            );
        }
    }
    for assumption in v.one_hot.assumptions.iter().filter(|_| verbose) {
        put!(out, "", "provided that {assumption}");
    }
}

fn training_text(out: &mut Lines, o: &Rewritten, verbose: bool) {
    let Ok(t) = &o.training else { return };
    let auto = if t.auto { " (by the model's form)" } else { "" };
    let s = if t.training.cx.trainable.len() == 1 { "" } else { "s" };
    put!(
        out,
        "trains",
        "{} tensor{s} with {}, loss {}; {} float tensors stay fixed",
        t.training.cx.trainable.len(),
        t.optimizer,
        loss_text(&t.losses(), auto),
        t.training.cx.frozen.len()
    );
    for group in t.training.cx.groups() {
        let decay = group.weight_decay.map_or(String::new(), |d| format!(", decay {d}"));
        put!(out, "", "{} of them by `{}`: lr * {}{decay}", group.tensors.len(), group.pattern, group.lr_scale);
    }
    let quantised = &t.training.cx.quantised;
    if !quantised.is_empty() {
        let scales = match quantised.scales.len() {
            0 => "scales stay as they are".to_string(),
            n => format!("{n} scales train"),
        };
        put!(
            out,
            "quantised",
            "{} tensors that are stored as integers train as float32, {} values are rounded as they are computed; {scales}",
            quantised.weights.len(),
            quantised.values
        );
    }
    let (copies, transposes): (Vec<_>, Vec<_>) =
        o.ties.iter().filter(|tie| t.training.cx.trainable.contains(&tie.name)).partition(|tie| tie.copy);
    if let [tie, ..] = copies[..] {
        let n = copies.len();
        put!(
            out,
            "",
            "{n} tensors (`{}`, …) are copies of weights that several calls share, such as `{}` (--untied: parameters of their own)",
            tie.transposed,
            tie.name
        );
    }
    for tie in transposes {
        put!(out, "", "`{}` and its transpose `{}` are one parameter (--untied: two)", tie.name, tie.transposed);
    }
    if let Some(b) = &t.rebuilt {
        batch_text(out, b, " in the training graph");
    }
    if let Some(r) = t.training.cx.recomputed.as_ref().filter(|r| r.blocks > 0) {
        recomputed_text(out, r);
    }
    if verbose {
        for (name, why) in &t.training.cx.frozen {
            put!(out, "", "fixed: {name} ({why})");
        }
    }
    if !t.training.cx.dropouts.is_empty() {
        put!(out, "", "{} dropouts are active, their masks a function of the step", t.training.cx.dropouts.len());
    }
}

/// One loss with its target, or several with the outputs that they read.
fn loss_text(losses: &[LossRecord], auto: &str) -> String {
    let axis = |l: &LossRecord| l.class_axis.map_or(String::new(), |axis| format!(", classes on axis {axis}"));
    let on = |l: &LossRecord| l.target.as_ref().map_or(String::new(), |target| format!(" on `{target}`"));
    if let [one] = losses {
        return format!("{}{auto}{}{}", one.kind, on(one), axis(one));
    }
    let each = losses.iter().map(|l| {
        let weight = l.weight.filter(|w| *w != 1.0).map_or(String::new(), |w| format!("{w} * "));
        format!("{weight}{} of `{}`{}", l.kind, l.output.as_deref().unwrap_or_default(), on(l))
    });
    each.collect::<Vec<_>>().join(" + ")
}

/// Sizes are numbers, or polynomials of the symbolic extents as text; null where an extent has no name.
fn recomputed_json(r: &Recomputed) -> Value {
    let size = |d: &Dim| match d.known() {
        Some(n) => json!(n),
        None if d.symbols().any(|s| s.starts_with('?')) => Value::Null,
        None => json!(d.to_string()),
    };
    json!({"blocks": r.blocks, "nodes": r.nodes, "kept_bytes_before": size(&r.kept_before), "kept_bytes": size(&r.kept_after),
           "forward_flops": size(&r.forward_flops), "flops": size(&r.flops)})
}

fn recomputed_text(out: &mut Lines, r: &Recomputed) {
    let symbols: BTreeSet<&str> = [&r.kept_before, &r.kept_after].into_iter().flat_map(|d| d.symbols()).collect();
    // Linear in the only symbol or not: one sample, one token.
    let at = |d: &Dim| d.eval(&|_| Some(1)).unwrap_or_default().max(0) as u64;
    let each = if symbols.is_empty() {
        String::new()
    } else if symbols.iter().any(|s| s.starts_with('?')) {
        " where every open extent is 1".to_string()
    } else {
        format!(" where {} is 1", symbols.into_iter().collect::<Vec<_>>().join(" and "))
    };
    let share = 100.0 * at(&r.flops) as f64 / at(&r.forward_flops).max(1) as f64;
    put!(
        out,
        "memory",
        "the backward pass computes {} blocks again: {} of activations are kept instead of {}{each}; {share:.0}% of the forward pass' arithmetic is done twice",
        r.blocks,
        bytes(at(&r.kept_after)),
        bytes(at(&r.kept_before))
    );
}

fn batch_text(out: &mut Lines, b: &BatchFacts, whose: &str) {
    let how = match &b.compared {
        Some((engine, samples, c)) => {
            format!(": each of {samples} samples as by itself, max |difference| {:.1e} ({engine})", c.max_abs)
        }
        None => " (by analysis, no engine compared)".into(),
    };
    put!(out, "batch", "{} in the source, {}{whose}{how}", b.before, b.batch);
}

fn placement_text(out: &mut Lines, o: &Rewritten) {
    let graphs =
        [("training", o.training.as_ref().map_or(&[][..], |t| &t.fallbacks)), ("forward", &o.forward_fallbacks[..])];
    if graphs.iter().all(|(_, fallbacks)| fallbacks.is_empty()) {
        put!(out, "CUDA", "every node has a kernel in the stock provider (by its registry; not run)");
    }
    for (graph, fallbacks) in graphs.iter().filter(|(_, f)| !f.is_empty()) {
        put!(out, "CUDA", "{} nodes of the {graph} graph would run on the CPU:", fallbacks.len());
        for f in fallbacks.iter().take(5) {
            put!(out, "", "{} ({}): {}", f.node, f.op, f.why);
        }
    }
}

/// Does an input take tokens, [batch, sequence], of a length that a caller chooses?
fn reads_open_sequences(g: &Graph) -> bool {
    let mut types = g.required_inputs().filter_map(|v| g.tensor_type(v));
    types.any(|t| !t.dtype.is_float() && t.rank() == 2 && t.shape[1].known().is_none())
}

fn next_text(out: &mut Lines, o: &Rewritten) {
    let path = |kind: &str| o.outputs.iter().find(|(k, ..)| *k == kind).map(|(_, p, ..)| p.display().to_string());
    if let (Ok(t), Some(train)) = (&o.training, path("train").or_else(|| path("grad")))
        && t.optimizer != "none"
    {
        out.text.push('\n');
        let window = if reads_open_sequences(&o.source) { " --window N" } else { "" };
        put!(out, "next", "ancre-rewrite train {train} --data DATA{window} --epochs N --export deployed.onnx");
    }
}
