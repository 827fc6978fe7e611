//! `freeze`: trained state back into the forward graph, router baked in.

use crate::cli::FreezeArgs;
use crate::engine::memory::bytes;
use crate::error::Failure;
use crate::io::files::Outputs;
use crate::io::lines::{Lines, put};
use crate::rewrite;
use crate::topology::Weights;
use crate::topology::weights::{self, json_of};
use crate::verify::report::engine_name;
use crate::verify::{Comparison, Subject, Tolerance, VerifyOptions, numeric};
use ancre_passes::contract::{AdaptersRecord, Fresh, LossRecord, Record, RouterRecord, States, Ties};
use ancre_passes::ir::Graph;
use ancre_passes::onnx;
use ancre_passes::pipeline;
use ancre_passes::transform::adapters::{Merged, merge_adapters};
use ancre_passes::transform::{bake, eliminate};
use serde_json::json;
use std::path::{Path, PathBuf};

mod adapter;
mod restore;

use adapter::AdapterFiles;
pub use restore::Restored;

/// Inputs on which the drift of pruning is measured.
const TRIALS: usize = 2;
/// Bounds that are tried where none is asked for, the highest first.
const BOUNDS: [f64; 7] = [1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8];

/// What `freeze` did.
pub struct Frozen {
    pub(crate) path: PathBuf,
    pub(crate) bytes: u64,
    pub(crate) nodes: usize,
    /// What was restored from the state, if there was one.
    pub(crate) restored: Option<Restored>,
    /// What baking kept and dropped, if the router was baked.
    pub(crate) baked: Option<bake::Baked>,
    /// The router's weights, if there is one.
    pub(crate) topology: Option<Vec<Weights>>,
    /// What became of adapters, if there are any.
    pub(crate) merged: Option<Merged>,
    /// Files of adapters beside the model.
    pub(crate) written: Vec<PathBuf>,
    /// How far pruning moved the outputs, if anything was pruned.
    pub(crate) drift: Option<Drift>,
}

/// How far pruning moved the outputs.
pub struct Drift {
    /// Weights nearer to zero than this were left out.
    pub(crate) below: f64,
    /// The engine that ran both graphs and the worst difference; or why no engine could.
    pub(crate) measured: Result<(&'static str, Comparison), String>,
}

impl Frozen {
    /// The report.
    pub fn json(&self) -> serde_json::Value {
        let state = self.restored.as_ref();
        let drift = self.drift.as_ref().map(|d| match &d.measured {
            Ok((engine, c)) => json!({"below": d.below, "engine": engine, "max_abs": c.max_abs, "max_rel": c.max_rel,
                                      "trials": TRIALS, "tolerance": Tolerance::default().atol, "within": c.equivalent}),
            Err(why) => json!({"below": d.below, "engine": null, "reason": why}),
        });
        json!({"output": {"path": self.path.to_string_lossy(), "bytes": self.bytes, "nodes": self.nodes},
               "restored": state.map_or(0, |s| s.tensors), "adapters": self.merged.as_ref().map(|m| json!({"merged": m.merged, "beside": m.beside})), "adapter_files": self.written.iter().map(|p| p.to_string_lossy()).collect::<Vec<_>>(), "unused": state.map(|s| &s.unused), "kept": state.map(|s| &s.kept),
               "router": self.baked.as_ref().map(|b| json!({"kept": b.kept, "dropped": b.dropped, "worst_dropped": b.worst_drop})),
               "topology": self.topology.as_deref().map(json_of), "drift": drift})
    }
}

/// Runs `freeze`. Fails when the model was not routed by this tool, or the state does not fit it.
pub fn freeze(a: &FreezeArgs) -> Result<Frozen, Failure> {
    freeze_with(a, &[])
}

/// The same, with more metadata in the file: keys and texts.
pub(crate) fn freeze_with(a: &FreezeArgs, metadata: &[(&str, String)]) -> Result<Frozen, Failure> {
    if let Some(eps) = a.prune.filter(|eps| !(*eps >= 0.0 && *eps < 1.0)) {
        return Err(Failure::input(format!("--prune {eps} is out of range [0, 1)")));
    }
    let (mut g, _) = rewrite::load(&a.model)?;
    if LossRecord::is_in(&g) || States::is_in(&g) {
        let what =
            if LossRecord::is_in(&g) { "is a training graph" } else { "is an inference graph, which state is fed to" };
        return Err(Failure::input(what)
            .help("give the forward graph that ancre-rewrite wrote beside it, STEM.ancre.onnx")
            .at(&a.model));
    }
    let (routed, adapted) = (RouterRecord::is_in(&g), AdaptersRecord::is_in(&g));
    if !routed && !adapted && a.state.is_none() {
        return Err(Failure::input("holds no router and no adapters, and no --state is given: there is nothing to freeze")
            .help("give the forward graph that ancre-rewrite wrote, STEM.ancre.onnx")
            .at(&a.model));
    }
    let source = g.clone();
    let restored = a.state.as_deref().map(|path| restore::restore(&mut g, path)).transpose()?;
    let files = a.adapter.as_deref().map(|file| AdapterFiles::take(&mut g, file, &a.model)).transpose()?;
    let merged = (adapted && !a.keep_adapters && files.is_none()).then(|| merge_adapters(&mut g)).transpose();
    let merged = merged.map_err(|e| Failure::input(e.to_string()).at(&a.model))?;
    // Baking the router forgets what the tool wrote. Adapters that are still there stay known.
    let adapters = AdaptersRecord::read(&g).ok().flatten();
    let topology = weights::of_graph(&g).ok().flatten().map(|(_, weights)| weights);
    let (mut baked, mut drift) = (None, None);
    if routed && !a.keep_router {
        let unbaked = g.clone();
        let mut all = bake_into(&mut g, 0.0, &a.model)?;
        let small: Vec<f64> = topology.iter().flatten().flat_map(Weights::all).map(|(.., w)| f64::from(w.abs())).collect();
        let bounds = bounds_of(&small, a.prune);
        let mut pruned = Vec::new();
        for eps in bounds {
            let mut g = unbaked.clone();
            let baked = bake_into(&mut g, eps, &a.model)?;
            pruned.push((eps, baked, g));
        }
        let graphs: Vec<&Graph> = pruned.iter().map(|(_, _, g)| g).collect();
        match measure(&graphs, &g, &a.model) {
            Ok(found) => {
                let mut found = pruned.into_iter().zip(found);
                if let Some(((below, baked, graph), seen)) = found.find(|(_, (_, c))| a.prune.is_some() || c.equivalent) {
                    (g, all, drift) = (graph, baked, Some(Drift { below, measured: Ok(seen) }));
                }
            }
            // What was asked for is done, measured or not.
            Err(why) => match (a.prune, pruned.pop()) {
                (Some(below), Some((_, baked, graph))) => {
                    (g, all, drift) = (graph, baked, Some(Drift { below, measured: Err(why) }));
                }
                _ => drift = Some(Drift { below: 0.0, measured: Err(why) }),
            },
        }
        baked = Some(all);
    }
    if !a.keep_router {
        g.metadata.shift_remove(Ties::KEY);
        g.metadata.shift_remove(Fresh::KEY);
    }
    if let Some(adapters) = adapters {
        adapters.write(&mut g);
    }
    g.metadata.extend(metadata.iter().map(|(key, text)| (key.to_string(), text.clone())));
    let path = a.out.clone().or_else(|| files.as_ref().map(AdapterFiles::base)).unwrap_or_else(|| {
        let stem = a.model.file_stem().and_then(|s| s.to_str()).unwrap_or("model");
        a.model.with_file_name(format!("{}.frozen.onnx", stem.trim_end_matches(".ancre")))
    });
    pipeline::ready(&g, &source, "bake-router").map_err(|e| Failure::from(e).at(&a.model))?;
    let emission = onnx::emit(&g).map_err(|e| Failure::input(e.to_string()).at(&path))?;
    let spared: Vec<&Path> = [Some(a.model.as_path()), a.state.as_deref()].into_iter().flatten().collect();
    let mut outputs = Outputs::sparing(&spared);
    let bytes = outputs.add_model(&emission, &path)?;
    let nodes = emission.nodes;
    let written = files.map(|files| files.add(&mut outputs)).transpose()?.unwrap_or_default();
    outputs.commit()?;
    Ok(Frozen { path, bytes, nodes, restored, baked, topology, merged, written, drift })
}

fn bake_into(g: &mut Graph, prune: f64, model: &Path) -> Result<bake::Baked, Failure> {
    let baked = bake::bake_router(g, prune).map_err(|e| Failure::input(e.to_string()).at(model))?;
    eliminate::eliminate_dead(g, |_, _| false);
    Ok(baked)
}

/// The bounds to try on these magnitudes of weights, the highest first, each of which leaves out more than the next.
fn bounds_of(weights: &[f64], asked: Option<f64>) -> Vec<f64> {
    let left_out = |eps: f64| weights.iter().filter(|w| **w > 0.0 && **w < eps).count();
    let mut bounds = asked.map_or(BOUNDS.to_vec(), |eps| vec![eps]);
    bounds.retain(|eps| left_out(*eps) > 0);
    // Of bounds that leave out the same, the lowest says most.
    bounds.reverse();
    bounds.dedup_by_key(|eps| left_out(*eps));
    bounds.reverse();
    bounds
}

/// Runs pruned graphs and the whole one on the same inputs, in tract or, where tract cannot, in ONNX Runtime.
fn measure(pruned: &[&Graph], whole: &Graph, model: &Path) -> Result<Vec<(&'static str, Comparison)>, String> {
    if pruned.is_empty() {
        return Ok(Vec::new());
    }
    let subject = |g: &Graph| Subject::of_graph(g.clone(), model);
    let how = VerifyOptions { trials: TRIALS, ..VerifyOptions::default() };
    let pruned: Vec<Subject> = pruned.iter().map(|g| subject(g)).collect();
    let found = numeric::compare_models(&subject(whole), &pruned.iter().collect::<Vec<_>>(), &how).map_err(|e| e.what)?;
    Ok(found.into_iter().map(|f| (engine_name(&f), f.report.verdict)).collect())
}

/// The report of `freeze` for people.
pub fn text(f: &Frozen) -> String {
    let mut out = Lines::new(10);
    if let Some(s) = &f.restored {
        put!(out, "state", "{} tensors written back; {} entries belong to training only", s.tensors, s.unused.len());
        if let Some(first) = s.kept.first() {
            put!(out, "", "{} parameters are not in it and stay as they were (`{first}`, …)", s.kept.len());
        }
    }
    out.text.push_str(&router_text(f));
    if let Some(m) = &f.merged {
        put!(out, "adapters", "{} merged into their weights", m.merged);
        if let Some(first) = m.beside.first() {
            let n = m.beside.len();
            put!(
                out,
                "",
                "{n} stay beside weights of integers, of which their sum is none (`{first}`{})",
                if n > 1 { ", …" } else { "" }
            );
        }
    }
    for path in &f.written {
        put!(out, "adapter", "{}", path.display());
    }
    put!(
        out,
        if f.written.is_empty() { "frozen" } else { "base" },
        "{}  ({}, {} nodes)",
        f.path.display(),
        bytes(f.bytes),
        f.nodes
    );
    out.text
}

/// What became of the router.
pub(crate) fn router_text(f: &Frozen) -> String {
    let mut out = Lines::new(10);
    if let Some(b) = &f.baked {
        let (kept, dropped, worst) = (b.kept, b.dropped, b.worst_drop);
        put!(out, "router", "baked in: {kept} edges kept, {dropped} dropped (at most {worst:.1e} of a row's weight)");
    }
    match f.drift.as_ref().map(|d| (d.below, &d.measured)) {
        Some((below, Ok((engine, c)))) => {
            let (abs, part, bound) = (c.max_abs, c.max_rel, Tolerance::default().atol);
            let word = if c.equivalent { "within" } else { "beyond" };
            let moved = format!(
                "{abs:.1e}, {part:.1e} of their largest ({engine}): {word} {bound:.0e} plus {bound:.0e} of the largest"
            );
            put!(out, "pruned", "edges below {below:.0e}; the outputs move by up to {moved}");
        }
        Some((0.0, Err(why))) => put!(out, "pruned", "no edges: what that moves cannot be measured: {why}"),
        Some((below, Err(why))) => {
            put!(out, "pruned", "edges below {below:.0e}; what that moves cannot be measured: {why}");
        }
        None => {}
    }
    out.text
}
