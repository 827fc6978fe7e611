//! The main job: route a model's skips, build its training graph, prove the rewrite, write the files.

mod adapters;
mod batch;
pub mod config;
mod losses;
mod opening;
pub mod report;
mod start;
pub mod training_files;
mod verification;

use crate::cli::RewriteArgs;
use crate::engine;
use crate::engine::random_inputs;
use crate::error::{Failure, sentence};
use crate::io::files::{self, Outputs};
use crate::rewrite::adapters::Adapted;
use crate::rewrite::batch::{BatchFacts, BatchRequest};
use crate::rewrite::config::RewriteConfig;
pub(crate) use crate::rewrite::opening::{Opening, opened_by};
use crate::rewrite::training_files::{FirstState, TrainingFiles};
use crate::rewrite::verification::Verification;
use crate::verify::{Subject, read_inputs};
use ancre_passes::analysis::residual::{Chain, ResidualStructure, branch_nodes, find_residuals};
use ancre_passes::analysis::roles::initializer_roles;
use ancre_passes::contract::{AdaptersRecord, Fresh, LossRecord, Record, Tie, Ties};
use ancre_passes::ir::{Graph, NodeId, RouterId, RouterSpec, Rule, SharedBytes};
use ancre_passes::onnx;
use ancre_passes::pipeline::{Cx, FORWARD, PassError, PassManager, PassRun, ROUTE};
use ancre_passes::placement::{self, Fallback};
use ancre_passes::transform::route::unnormalised_growth;
use ancre_passes::transform::route::{ChainChoice, LeftAlone, RouteOptions, Routed};
use ancre_passes::transform::{control_flow, dropout, legalize, lift, route, tie};
use indexmap::IndexMap;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Everything the main job found and did.
pub struct Rewritten {
    pub(crate) model: PathBuf,
    /// The source graph, with types.
    pub(crate) source: Graph,
    pub(crate) structure: ResidualStructure,
    /// Number of trained elements by role.
    pub(crate) parameters: u64,
    pub(crate) routers: IndexMap<RouterId, RouterSpec>,
    pub(crate) notes: IndexMap<RouterId, String>,
    pub(crate) route: RouteOptions,
    /// Files written, or that would be (dry run): kind, path, bytes, nodes.
    pub(crate) outputs: Vec<(&'static str, PathBuf, u64, usize)>,
    /// The engine that opened a graph, by its kind.
    pub(crate) opened: Vec<(&'static str, &'static str)>,
    pub(crate) verified: Option<Verification>,
    /// The training graph's files, or why there is none.
    pub(crate) training: Result<TrainingFiles, String>,
    /// The adapters, if there are any.
    pub(crate) adapted: Option<Adapted>,
    /// Parameters that the file holds twice, transposed, and that train as one.
    pub(crate) ties: Vec<Tie>,
    /// Nodes of the forward graph without a CUDA kernel.
    pub(crate) forward_fallbacks: Vec<Fallback>,
    /// How both graphs came to another batch than the model's, if they did.
    pub(crate) rebuilt: Option<BatchFacts>,
    pub(crate) passes: Vec<PassRun>,
    pub(crate) seconds: Vec<(&'static str, f64)>,
    pub(crate) notices: Vec<String>,
}

struct Clock(Instant, Vec<(&'static str, f64)>);

impl Clock {
    fn lap(&mut self, phase: &'static str) {
        let now = Instant::now();
        let seconds = now.duration_since(self.0).as_secs_f64();
        self.0 = now;
        match self.1.iter_mut().find(|(p, _)| *p == phase) {
            Some((_, s)) => *s += seconds,
            None => self.1.push((phase, seconds)),
        }
    }
}

/// Reads a model and finds the types of its values.
pub fn load(path: &Path) -> Result<(Graph, SharedBytes), Failure> {
    let (mut g, bytes) = files::read_model(path)?;
    engine::find_types(&mut g);
    Ok((g, bytes))
}

/// As [`load`], seeing inside local functions: their calls are inlined, if there are any. Weights in bodies of control
/// flow are the graph's own.
pub fn load_inlined(path: &Path) -> Result<(Graph, SharedBytes, bool), Failure> {
    let (g, bytes) = files::read_model(path)?;
    let (mut g, is_inlined) = files::inlined(g, &bytes, path)?;
    control_flow::lift_weights(&mut g);
    engine::find_types(&mut g);
    Ok((g, bytes, is_inlined))
}

/// The file of a kind of graph, if `out` is what was asked for: `STEM.KIND.onnx` in a directory.
pub(crate) fn output_path(model: &Path, out: Option<&str>, kind: &str) -> PathBuf {
    let stem = model.file_stem().and_then(|s| s.to_str()).unwrap_or("model");
    let named = |dir: &Path| dir.join(format!("{stem}.{kind}.onnx"));
    match out {
        None => named(model.parent().unwrap_or(Path::new(""))),
        Some(text) if text.ends_with('/') || Path::new(text).is_dir() => named(Path::new(text)),
        Some(text) => PathBuf::from(text),
    }
}

/// The file of another kind beside the forward graph's: `.train`, `.eval`, `.infer`, `.init` or `.state` before its suffix, or before `suffix`.
fn beside(forward: &Path, kind: &str, suffix: Option<&str>) -> PathBuf {
    let stem = forward.file_stem().and_then(|s| s.to_str()).unwrap_or("model");
    match suffix.or(forward.extension().and_then(|e| e.to_str())) {
        Some(suffix) => forward.with_file_name(format!("{stem}.{kind}.{suffix}")),
        None => forward.with_file_name(format!("{stem}.{kind}")),
    }
}

/// Runs the main job. Errors have status 2 for bad input or usage, 1 when a check says no. Nothing is written then.
pub fn rewrite(a: &RewriteArgs) -> Result<Rewritten, Failure> {
    let mut config = RewriteConfig::try_from(a)?;
    let model = config.model.as_path();
    let mut clock = Clock(Instant::now(), Vec::new());
    let opens = config.verify.is_some() && config.training.is_some();
    let mut opening = opens.then(Opening::start);
    let mut notices = config.idle.clone();
    // A network that is not rewritten keeps its local functions.
    let stays = config.route.chains == ChainChoice::None && config.training.is_none() && config.adapters.is_none();
    let (mut source, bytes, inlined) = if stays { load(model).map(|(g, b)| (g, b, false))? } else { load_inlined(model)? };
    if LossRecord::is_in(&source) {
        return Err(Failure::input("is a training or evaluation graph that ancre-rewrite wrote")
            .help("`ancre-rewrite train` trains a training graph; this command takes the original model")
            .at(model));
    }
    if inlined && config.verify.is_some() {
        notices.push("local functions were inlined; verification compares with the source after that".into());
    }
    random_inputs::check_dims(&source, &config.dims).map_err(|e| e.at(model))?;
    if !stays {
        lift::lift_constants(&mut source);
    }
    if let Some(how) = &mut config.verify {
        how.given = read_inputs(&config.inputs, &source)?;
    }
    let quietened = dropout::evaluation_mode(&mut source);
    if quietened > 0 {
        notices.push(format!(
            "the file was exported in training mode: {quietened} dropout and batch normalisation nodes are in evaluation mode in the forward graph, which is compared with the source in that mode"
        ));
    }
    if let Some(training) = &mut config.training {
        training.read_teacher(&source)?;
    }
    let read = config.training.as_ref().and_then(|t| t.output(&source)).or_else(|| a.training.losses.output.clone());
    let changed = start::change(&config.start, read.as_deref(), model, &mut source, &mut notices)?;
    let changed = changed || quietened > 0 || inlined;
    clock.lap("parse");
    let rebuilt = match config.batch {
        BatchRequest::Both(to) => batch::rebuild_source(to, model, &mut source, config.verify.as_ref(), &mut notices)?,
        _ => None,
    };
    let changed = changed || rebuilt.is_some();
    clock.lap("batch");
    let structure = find_residuals(&source);
    if let Some(training) = &mut config.training {
        let names = |c: &Chain| c.states.iter().map(|v| source.name(*v).to_string()).collect();
        training.divide_by(structure.chains.iter().map(names).collect());
    }
    clock.lap("analyse");

    let dead: HashSet<NodeId> = source.nodes().filter(|n| source.results(*n).all(|v| !source.is_needed(v))).collect();
    let show = |text: &str| eprint!("{text}");
    let mut manager = PassManager::new(config.debugging.clone(), &show);
    manager.starts_from(&source);
    let mut routed = source.clone();
    let mut cx = Cx { route: config.route.clone(), chains: Some(structure.chains.clone()), ..Cx::default() };
    cx.adapters = config.adapters.clone();
    if let Some(adapters) = &mut cx.adapters {
        cx.branches = Some(branch_nodes(&source, &structure));
        // A fresh head trains by itself.
        adapters.except = Fresh::read(&source).ok().flatten().map(|f| f.tensors).unwrap_or_default();
    }
    manager.run(ROUTE, &mut routed, &mut cx).map_err(|e| Failure::from(e).at(model))?;
    let Routed { notes, left_alone } = cx.routed;
    let adapted = AdaptersRecord::read(&routed).ok().flatten().map(|record| Adapted::of(&routed, record, &cx.refused));
    notices.extend(adapted.iter().filter_map(Adapted::notice));
    if config.require && routed.routers.is_empty() {
        return Err(Failure::check("there is nothing to rewrite: no residual chain of two or more blocks").at(model));
    }
    let left = |l: LeftAlone| format!("chain {} gets no router: {}", l.chain, sentence(&l.why, l.hint));
    notices.extend(left_alone.into_iter().map(left));
    notices.extend(notes.iter().map(|(chain, note)| format!("chain {chain}: {note}")));
    let is_deep = routed.routers.values().any(|r| r.rule == Rule::Gated && r.blocks() > report::FEW);
    if config.start.reinit.is_some() && is_deep {
        notices.push("from fresh weights --preset deep did better than this router in residual MLPs and ResNets; `compare` tells if yours differs".into());
    }
    notices.extend(unnormalised_growth(&routed).map(|times| {
        let times = if times < 1e4 { format!("{times:.0}") } else { format!("{times:.0e}") };
        format!("routes beside the skips make the last state {times} times as large at first, and nothing normalises it before the outputs, so that training may fail: --preset deep keeps its size, and so would a norm before the head")
    }));
    route::describe(&mut routed, &structure.chains);
    let ties = record_ties(&config, &source, &mut routed, &mut notices);
    let mut forward = routed.clone();
    let mut cx = Cx { keep: dead, opset: config.opset, ..Cx::default() };
    cx.training.target = config.target;
    manager.run_to_emit(FORWARD, &mut forward, &mut cx).map_err(|e| match (e, config.opset) {
        (PassError::Convert(e), Some(n)) => Failure::input(format!("--opset {n}: {e}")).at(model),
        (e, _) => Failure::from(e).at(model),
    })?;
    if config.opset.is_some_and(|n| n < legalize::TARGET) && config.training.is_some() {
        notices.push(format!("the training graph is of opset {}, the lowest it can be in", legalize::TARGET));
    }
    clock.lap("rewrite");

    let any_batch = |notices: &mut Vec<String>| match config.batch {
        BatchRequest::Default => batch::for_training(model, &source, config.verify.as_ref()).unwrap_or_else(|why| {
            notices.push(format!("the training graph keeps the source's batch: {why}"));
            None
        }),
        _ => None,
    };
    let training = training_files::build(&config, routed.clone(), &any_batch, &mut manager, &mut notices)?;
    clock.lap("differentiate");

    let path = output_path(model, config.out.as_deref(), "ancre");
    let mut outputs = Outputs::sparing(&[model]);
    let mut written = Vec::new();
    let mut graphs = vec![("forward", path.clone(), &forward)];
    if let Ok(built) = &training {
        match &built.halves {
            None => graphs.push(("train", beside(&path, "train", None), &built.training.graph)),
            Some(halves) => {
                graphs.push(("grad", beside(&path, "grad", None), &halves.gradients));
                graphs.push(("update", beside(&path, "update", None), &halves.update));
            }
        }
        graphs.extend(built.evaluation.as_ref().map(|g| ("eval", beside(&path, "eval", None), g)));
        graphs.extend(built.inference.as_ref().map(|g| ("infer", beside(&path, "infer", None), g)));
        if let FirstState::Init(g) = &built.first {
            graphs.push(("init", beside(&path, "init", None), g));
        }
    }
    for (kind, path, g) in graphs {
        let emission = onnx::emit(g).map_err(|e| Failure::input(e.to_string()).hint(e.hint()).at(&path))?;
        let bytes = if config.dry_run { emission.byte_len() } else { outputs.add_model(&emission, &path)? };
        if let Some(opening) = opening.as_mut().filter(|_| kind != "forward") {
            opening.add(kind, g, &path, (!config.dry_run).then_some(&outputs))?;
        }
        written.push((kind, path, bytes, emission.nodes));
    }
    if let Ok(TrainingFiles { first: FirstState::Separate(state), .. }) = &training {
        let path = beside(&path, "state", Some("safetensors"));
        if !config.dry_run {
            outputs.add_bytes(state, &path)?;
        }
        written.push(("state", path, state.len() as u64, 0));
    }
    clock.lap("emit");

    let mut opened = Vec::new();
    let verified = match &config.verify {
        None => None,
        Some(how) => {
            files::check_external(&source, model).map_err(|e| e.help("--verify none does without the data"))?;
            let subject = match source.shell.functions.is_empty() {
                true if changed => Subject::of_graph(source.clone(), model),
                true => Subject::of_graph(source.clone(), model).run_as(bytes),
                false => {
                    let (graph, bytes) = if changed { emitted(&source, model)? } else { (source.clone(), bytes) };
                    Subject::of_file(graph, bytes, model)?
                }
            };
            let (graph, bytes) = if config.dry_run { emitted(&forward, model)? } else { outputs.read_back(&path)? };
            let place = if config.dry_run { model } else { &path };
            let file = Subject::of_file(graph, bytes, place)?;
            let verified = verification::verify(&subject, file, !routed.routers.is_empty(), &config.route, how)?;
            clock.lap("verify");
            if let Some(opening) = opening {
                opened = opening.finish(&subject, &mut notices)?;
            }
            clock.lap("open");
            Some(verified)
        }
    };
    clock.lap("verify");
    if let Some(v) = &verified {
        notices.extend(v.notices.iter().cloned());
        if config.require_equivalent {
            require_equivalent(v).map_err(|e| e.at(model))?;
        }
    }
    let data = |path: &Path| !written.iter().any(|(_, p, ..)| p == path);
    let data: Vec<_> =
        outputs.files().filter(|(path, _)| data(path)).map(|(path, n)| ("data", path.to_path_buf(), n, 0)).collect();
    written.extend(data);
    if !config.dry_run {
        outputs.commit()?;
    }
    clock.lap("emit");
    let parameters = count_parameters(&source, &ties);
    let forward_fallbacks = placement::cuda_fallbacks(&forward);
    let passes = manager.runs;
    Ok(Rewritten {
        model: model.to_path_buf(),
        source,
        structure,
        parameters,
        routers: routed.routers,
        notes,
        route: config.route.clone(),
        outputs: written,
        opened,
        verified,
        training,
        adapted,
        ties,
        forward_fallbacks,
        rebuilt,
        passes,
        seconds: clock.1,
        notices,
    })
}

/// A graph as it would be read back from a file.
fn emitted(g: &Graph, model: &Path) -> Result<(Graph, SharedBytes), Failure> {
    let bytes = onnx::emit(g).and_then(|e| e.to_bytes()).map_err(|e| Failure::input(e.to_string()).at(model))?;
    let bytes = SharedBytes::new(bytes);
    Ok((files::parse_model(&bytes, model)?, bytes))
}

/// `--require-equivalent`: the file written must be shown to equal the source.
fn require_equivalent(v: &Verification) -> Result<(), Failure> {
    let why = match &v.emitted {
        Some(f) if f.verdict.equivalent => return Ok(()),
        Some(f) => format!("is not equivalent to the source: outputs differ by up to {:.3e}", f.verdict.max_abs),
        None => "is not known to be equivalent to the source".into(),
    };
    Err(Failure::check(format!("the rewritten model {why}; nothing was written")))
}

/// Finds the parameters that are tied and records them where both graphs and `freeze` see them. With `--untied` the record is
/// empty.
fn record_ties(config: &RewriteConfig, source: &Graph, routed: &mut Graph, notices: &mut Vec<String>) -> Vec<Tie> {
    let mut ties = tie::find_ties(source);
    routed.metadata.shift_remove(Ties::KEY);
    let found = !ties.is_empty();
    if config.start.untied {
        if !found {
            let what = "--untied has no effect: no trained tensor is another one's transpose (a single tensor that two nodes read stays one)";
            notices.push(what.into());
        }
        ties.clear();
    }
    if found && config.training.is_some() {
        Ties(ties.clone()).write(routed);
    }
    ties
}

fn count_parameters(g: &Graph, ties: &[Tie]) -> u64 {
    initializer_roles(g)
        .into_iter()
        .filter(|(v, r)| r.trains() && !ties.iter().any(|t| t.transposed == g.name(*v)))
        .filter_map(|(v, _)| g.initializer(v).map(|t| t.len() as u64))
        .sum()
}
