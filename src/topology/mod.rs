//! `topology`: which states the blocks of a routed network read, as numbers and as pictures.
//!
//! [`weights`](mod@weights) has the numbers, `attended` those that depend on data, `blocks` names what they stand between, `course` reads a run's log. `draw` and `chart`
//! turn these into a `scene` of shapes, which becomes an SVG file, a PNG file or a part of the page.

mod attended;
mod blocks;
pub(crate) mod chart;
mod course;
mod draw;
pub(crate) mod page;
#[cfg(feature = "png")]
mod png;
pub(crate) mod scene;
pub mod weights;

pub use blocks::{Blocks, Network};
pub use weights::Weights;

use crate::cli::TopologyArgs;
use crate::engine::memory::bytes;
use crate::error::Failure;
use crate::io::arrays::read_safetensors;
use crate::io::files::Outputs;
use crate::io::lines::{Lines, put};
use crate::rewrite;
use ancre_passes::contract::{CHECKPOINT_KEY, LossRecord, Record, RouterRecord};
use ancre_passes::ir::{Form, Normalize, Rule, Scope, Sources};
use course::Course;
use scene::Scene;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A routed network and its weights, at the end of a run or without one.
pub struct Topology {
    network: Network,
    weights: Vec<Weights>,
    course: Course,
    /// Samples over which the weights are means, where they depend on the input.
    samples: Option<usize>,
    /// Where it comes from.
    path: PathBuf,
    /// What was written: its kind, place and size.
    outputs: Vec<(&'static str, PathBuf, u64)>,
}

/// What the pictures need of a checkpoint's header.
#[derive(Deserialize)]
struct Checkpoint {
    step: Option<u64>,
    network: Option<Network>,
}

/// Width of a picture that holds several.
const WIDTH: f64 = 1180.0;

const WANTED: &str = "give the forward graph that ancre-rewrite wrote (STEM.ancre.onnx), the directory of a training run, or a checkpoint of one";

/// Runs `topology`. Fails when the source cannot be read or holds no router, or an output cannot be written.
pub fn topology(a: &TopologyArgs) -> Result<Topology, Failure> {
    let mut found = Topology::read(a)?;
    let mut wanted: Vec<(&'static str, PathBuf)> = Vec::new();
    for (kind, path) in [("html", &a.html), ("svg", &a.svg), ("png", &a.png)] {
        wanted.extend(path.clone().map(|p| (kind, p)));
    }
    if wanted.is_empty() && !a.json {
        wanted.push(("html", default_page(&a.source)));
    }
    let mut files = Outputs::sparing(&[&a.source]);
    for (kind, path) in wanted {
        let content = match kind {
            "html" => page::html(&found).into_bytes(),
            "svg" => found.picture().svg(&found.title()).into_bytes(),
            _ => painted(&found.picture()).map_err(|e| Failure::input(e).at(&path))?,
        };
        files.add_bytes(&content, &path)?;
        found.outputs.push((kind, path, content.len() as u64));
    }
    files.commit()?;
    Ok(found)
}

#[cfg(feature = "png")]
fn painted(scene: &Scene) -> Result<Vec<u8>, String> {
    png::png(scene)
}

#[cfg(not(feature = "png"))]
fn painted(_: &Scene) -> Result<Vec<u8>, String> {
    Err("cannot be painted: this build of ancre-rewrite lacks the feature `png`; use --svg or --html".into())
}

fn default_page(source: &Path) -> PathBuf {
    if source.is_dir() {
        return source.join("topology.html");
    }
    let stem = source.file_stem().and_then(|s| s.to_str()).unwrap_or("model");
    source.with_file_name(format!("{}.topology.html", stem.trim_end_matches(".ancre")))
}

impl Topology {
    fn read(a: &TopologyArgs) -> Result<Topology, Failure> {
        let path = a.source.as_path();
        let suffix = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        let is_model = !path.is_dir() && suffix != "safetensors";
        if !is_model && !a.input.is_empty() {
            let help = "--input shows a model's attention; `freeze MODEL.ancre.onnx --state RUN/best.safetensors --keep-router` makes one of a run";
            return Err(Failure::input("is no model that could be run on --input").at(path).help(help));
        }
        match (path.is_dir(), suffix.as_str()) {
            (true, _) => {
                let last = path.join("last.safetensors");
                if !last.is_file() {
                    return Err(Failure::input("holds no last.safetensors: it is no directory of a training run")
                        .at(path)
                        .help(WANTED));
                }
                let mut found = Topology::of_checkpoint(&last)?;
                let log = path.join("log.jsonl");
                if log.is_file() {
                    let step = found.course.step;
                    found.course = Course { step, ..Course::read(&log)? };
                }
                Ok(Topology { path: path.to_path_buf(), ..found })
            }
            (false, "safetensors") => Topology::of_checkpoint(path),
            (false, _) => Topology::of_model(path, &a.input),
        }
    }

    fn of_model(path: &Path, inputs: &[String]) -> Result<Topology, Failure> {
        let (g, _) = rewrite::load(path)?;
        let fail = |e: String| Failure::input(e).at(path);
        if LossRecord::is_in(&g) {
            let help = "give the forward graph beside it, STEM.ancre.onnx, or the run's directory";
            return Err(Failure::input("is a training graph, whose router is trained outside of it").at(path).help(help));
        }
        let name = path.file_name().map_or_else(|| path.display().to_string(), |n| n.to_string_lossy().into_owned());
        let network = Network::of(&g, name).map_err(fail)?;
        let router = RouterRecord::read(&g).map_err(|e| fail(e.to_string()))?;
        let attends = router.as_ref().filter(|r| r.parametrization == Rule::Attention);
        let found = match attends {
            Some(router) => Some(attended::weights(&g, path, router, inputs)?),
            None if !inputs.is_empty() && router.is_some() => {
                return Err(fail("its weights do not depend on the input".into()).help("leave --input out"));
            }
            None => weights::of_graph(&g).map_err(fail)?.map(|(_, weights)| (weights, 0)),
        };
        match (network, found) {
            (Some(network), Some((weights, n))) => {
                let samples = attends.map(|_| n);
                Ok(Topology {
                    network,
                    weights,
                    samples,
                    course: Course::default(),
                    path: path.to_path_buf(),
                    outputs: Vec::new(),
                })
            }
            _ => Err(Failure::input("is not routed, or its router was baked in").at(path).help(format!(
                "{WANTED}; `ancre-rewrite inspect MODEL --svg FILE` draws the chains of a model that is not routed"
            ))),
        }
    }

    fn of_checkpoint(path: &Path) -> Result<Topology, Failure> {
        let (arrays, header) = read_safetensors(path)?;
        let fail = |e: String| Failure::input(e).at(path);
        let said = header.get(CHECKPOINT_KEY).map_or("{}", String::as_str);
        let said: Checkpoint =
            serde_json::from_str(said).map_err(|e| fail(format!("its `{CHECKPOINT_KEY}` cannot be read: {e}")))?;
        let none = || fail("says nothing of a router: it is no checkpoint of a routed network".into()).help(WANTED);
        let network = said.network.ok_or_else(none)?;
        let read = |name: &str| Some(arrays.iter().find(|a| a.name == name)?.tensor()?.to_f32());
        let weights = weights::weights(&network.router, &read).map_err(fail)?;
        let course = Course { step: said.step, ..Course::default() };
        Ok(Topology { network, weights, samples: None, course, path: path.to_path_buf(), outputs: Vec::new() })
    }

    fn title(&self) -> String {
        match self.course.step {
            Some(step) => format!("{} after {step} {}", self.network.model, if step == 1 { "step" } else { "steps" }),
            None => self.network.model.clone(),
        }
    }

    /// What the router does, in words.
    fn options(&self) -> String {
        let r = &self.network.router;
        let chains = if self.weights.len() == 1 { "one chain".into() } else { format!("{} chains", self.weights.len()) };
        let takes = match r.form {
            Form::Reassign => "In place of its original skip each block takes",
            Form::Augment => "Beside its original skip each block takes",
            Form::Input => "In place of the state before it each block reads",
        };
        let block = match r.granularity.as_str() {
            "add" => "A block is what adds once to the state".into(),
            "block" => "A block is the unit that the network repeats".into(),
            n => format!("A block is what adds {n} times to the state"),
        };
        let states = match r.scope {
            Scope::Stage => "the earlier states of its chain",
            Scope::Network => "the earlier states of the network",
        };
        let weights = match r.parametrization {
            Rule::Gated => "The weights begin at the original skips, and training opens the others by a gate for each block",
            Rule::Softmax => "The weights are positive and sum to one for each block",
            Rule::Free => "The weights are free numbers",
            Rule::Constant => "The weights are equal and do not train",
            Rule::Attention => "The weights depend on the states",
        };
        let over = self.samples.map_or(String::new(), |n| {
            format!("; shown are their means over {n} {}", if n == 1 { "sample" } else { "samples" })
        });
        let shared = match (r.parametrization, r.normalize) {
            (Rule::Gated | Rule::Softmax, Normalize::Outgoing) => "; a softmax shares each state out among its readers",
            _ => "",
        };
        let learned = match r.sources {
            Sources::States => "",
            Sources::Deltas if weights::of_deltas(r) => "; they are weights of what each block added, not of the states",
            Sources::Deltas => "; they were learned for what each block added, and are shown for the states",
        };
        format!(
            "The network has {chains} of blocks. {takes} a weighted sum of {states}. {block}. {weights}{over}{shared}{learned}."
        )
    }

    /// A chain's heading.
    fn heading(&self, i: usize) -> String {
        let (w, of) = (&self.weights[i], self.weights.len());
        let stage = if of > 1 { format!(", stage {} of {of}", i + 1) } else { String::new() };
        let known = self.network.chains.get(i).filter(|c| !c.state.starts_with('?'));
        let state = known.map_or(String::new(), |c| format!(", state {}", c.state));
        format!("Chain {}{stage}: K = {} {}{state}", w.id, w.rows.len(), if w.rows.len() == 1 { "block" } else { "blocks" })
    }

    /// The pictures of a chain: arcs, weights, and how they moved if a log tells.
    fn pictures(&self, i: usize) -> Vec<Scene> {
        let none = Blocks { state: String::new(), kinds: Vec::new(), operators: Vec::new() };
        let (blocks, w) = (self.network.chains.get(i).unwrap_or(&none), &self.weights[i]);
        let arcs = draw::arcs(blocks, w, self.network.router.form);
        let (mut numbers, moved) = (draw::heatmap(blocks, w), draw::movement(w, &self.course));
        match moved {
            Some(moved) if numbers.width + moved.width < WIDTH => {
                numbers.below(moved);
                vec![arcs, numbers]
            }
            moved => [arcs, numbers].into_iter().chain(moved).collect(),
        }
    }

    /// Everything as one picture.
    fn picture(&self) -> Scene {
        let mut scene = Scene::default();
        let chains: Vec<Vec<Scene>> = (0..self.weights.len()).map(|i| self.pictures(i)).collect();
        let curves = draw::curves(&self.course);
        let width = chains.iter().flatten().chain(&curves).map(|s| s.width).fold(WIDTH, f64::max);
        scene.below(draw::heading(&self.title(), &[self.options(), draw::LEGEND.into()], 18.0, width));
        for (i, pictures) in chains.into_iter().enumerate() {
            scene.below(draw::heading(&self.heading(i), &[], 15.0, width));
            scene.flow(pictures, width);
        }
        if !curves.is_empty() {
            scene.below(draw::heading("The run", &[], 15.0, width));
            scene.flow(curves, width);
        }
        scene
    }

    /// The report as JSON.
    pub fn json(&self) -> Value {
        let chains = self.weights.iter().enumerate().map(|(i, w)| {
            let mut chain = w.json();
            if let Some(blocks) = self.network.chains.get(i) {
                chain["state"] = json!(blocks.state);
                chain["blocks"] = json!(blocks.kinds);
            }
            chain
        });
        let course = self.course.weights.iter().map(|(step, rows)| {
            let chains = rows.iter().map(|(id, rows)| json!({"id": id, "weights": rows}));
            json!({"step": step, "chains": chains.collect::<Vec<_>>()})
        });
        let r = &self.network.router;
        json!({
            "source": self.path.to_string_lossy(), "model": self.network.model, "step": self.course.step, "samples": self.samples,
            "router": {"form": r.form, "granularity": r.granularity, "scope": r.scope, "parametrization": r.parametrization,
                       "normalize": r.normalize, "init": r.init, "tau": r.tau},
            "chains": chains.collect::<Vec<_>>(), "course": course.collect::<Vec<_>>(), "log": self.course.lines,
            "outputs": self.outputs.iter().map(|(kind, path, bytes)| json!({"kind": kind, "path": path.to_string_lossy(), "bytes": bytes}))
                .collect::<Vec<_>>(),
        })
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let mut out = Lines::new(10);
        put!(out, "network", "{}", self.title());
        if let Some(n) = self.samples {
            put!(out, "weights", "means over {n} {}", if n == 1 { "sample" } else { "samples" });
        }
        out.text.push('\n');
        self.weights.iter().for_each(|w| out.text.push_str(&(w.text() + "\n")));
        for (kind, path, size) in &self.outputs {
            put!(out, if *kind == "html" { "page" } else { "picture" }, "{}  ({})", path.display(), bytes(*size));
        }
        out.text
    }
}
