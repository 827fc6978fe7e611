//! Are the gradients of a training graph the derivatives of its loss, and are its updates what its optimiser says?
//!
//! Gradients come from the file as it is, in one engine: from its `.grad` outputs, or else from what a first step does to the
//! moments. Losses come from the file's forward part, in the other engine and, where that engine can, in float64. For every
//! trained tensor g·d must be (L(w + h·d) − L(w − h·d)) / 2h along the gradient itself and along random directions. The point
//! is not the start of training, at which gates are zero and much of the gradient is too, but a random one beside it.

#[cfg(test)]
#[cfg(feature = "tract")]
mod double_tests;
#[cfg(test)]
#[cfg(feature = "tract")]
mod engine_tests;
mod formula;
mod losses;
pub(super) mod report;
mod updates;

use super::numeric::engines;
use super::{Subject, VerifyOptions, undefined};
use crate::engine::EngineChoice;
use crate::engine::random_inputs::{self, Sizes};
use crate::engine::{Engine, Session, Tensors};
use crate::error::Failure;
use crate::io::files;
use crate::io::tensor::NpTensor;
use ancre_passes::contract::{
    self, OptimizerRecord, Quantised, Record, RouterRecord, StateKind, StateRecord, States, Unreadable,
};
use ancre_passes::random::Random;
use formula::Optimizer;
use losses::Losses;
use serde::Serialize;
use std::collections::HashMap;
use std::time::Instant;
pub(super) use updates::UpdateCheck;

/// One trained tensor's gradient against finite differences.
#[derive(Clone, Debug, Serialize)]
pub(super) struct TensorCheck {
    pub name: String,
    /// `parameter`, `logits` or `gate`.
    pub kind: StateKind,
    pub norm: f64,
    /// g·d of the direction that fits worst.
    pub directional: f64,
    pub finite_difference: f64,
    /// Their difference, relative to a typical derivative in a random direction.
    pub error: f64,
    pub passed: bool,
}

/// What the check of one engine's gradients showed.
#[derive(Clone, Debug)]
pub(super) struct GradientReport {
    pub gradients: &'static str,
    pub losses: &'static str,
    /// `float64`, or `float32` where that engine cannot.
    pub precision: &'static str,
    /// Where the gradients were read: `.grad outputs` or the first step's moments.
    pub source: String,
    /// Largest error allowed.
    pub tolerance: f64,
    pub tensors: Vec<TensorCheck>,
    /// Every state that an optimiser's step changes.
    pub updates: Vec<UpdateCheck>,
    /// Directions for each tensor.
    pub directions: usize,
    pub sizes: Sizes,
    pub seconds: f64,
    pub notes: Vec<String>,
}

impl GradientReport {
    pub(super) fn passed(&self) -> bool {
        self.tensors.iter().all(|t| t.passed) && self.updates.iter().all(|u| u.passed)
    }
}

/// A training graph with what it says about itself.
pub(super) struct Training<'s> {
    subject: &'s Subject,
    states: Vec<StateRecord>,
    optimizer: Option<Optimizer>,
    /// What the required inputs but `lr` are fed.
    inputs: Tensors,
    /// The random point: every trained tensor.
    point: Tensors,
    /// Values of the other states that have no default in the graph.
    rest: Tensors,
    /// How far an element of a trained tensor may move, by tensor.
    scales: HashMap<String, f64>,
    sizes: Sizes,
    seed: u64,
}

impl Training<'_> {
    fn trained(&self) -> impl Iterator<Item = &StateRecord> {
        self.states.iter().filter(|s| s.trainable)
    }

    /// The learning rate's input, if there is one.
    fn lr(&self) -> Option<String> {
        let g = &self.subject.graph;
        let stated = self.optimizer.as_ref().and_then(|o| o.lr.clone());
        let names = stated.into_iter().chain(["lr".to_string(), "ancre.lr".to_string()]);
        names.into_iter().find(|n| g.find(n).is_some_and(|v| g.required_inputs().any(|i| i == v)))
    }

    fn feeds(&self, lr: f64) -> Tensors {
        let mut feeds = self.inputs.clone();
        feeds.extend(self.point.iter().chain(&self.rest).map(|(n, t)| (n.clone(), t.clone())));
        if let Some(name) = self.lr() {
            feeds.extend(NpTensor::f32s(&[], &[lr as f32]).map(|t| (name, t)));
        }
        feeds
    }
}

/// Checks a training graph; with both engines, the gradients of either. Fails when the file is no training graph, or an
/// engine cannot run it.
pub(super) fn check(subject: &Subject, o: &VerifyOptions) -> Result<Vec<GradientReport>, Failure> {
    let which: &[(EngineChoice, EngineChoice)] = match o.engine.unwrap_or(EngineChoice::Ort) {
        EngineChoice::Ort => &[(EngineChoice::Ort, EngineChoice::Tract)],
        EngineChoice::Tract => &[(EngineChoice::Tract, EngineChoice::Ort)],
        EngineChoice::Both => &[(EngineChoice::Ort, EngineChoice::Tract), (EngineChoice::Tract, EngineChoice::Ort)],
    };
    if let Some(refusal) = straight_through(subject) {
        return Err(refusal);
    }
    let mut reports = Vec::new();
    for (of_gradients, of_losses) in which {
        let one = |e| engines(e).map(|mut all| all.remove(0)).map_err(no_independent);
        reports.push(check_with(subject, one(*of_gradients)?.as_ref(), one(*of_losses)?.as_ref(), o)?);
    }
    Ok(reports)
}

fn no_independent(e: Failure) -> Failure {
    Failure { what: format!("gradients and losses are computed in two engines: {}", e.what), ..e }
}

/// Why the gradients of a graph are no derivatives; `None` if they are.
fn straight_through(subject: &Subject) -> Option<Failure> {
    let what = "trains quantised values: its gradients go straight through rounding, and are no derivatives of the loss that finite differences could show";
    Quantised::is_in(&subject.graph).then(|| Failure::input(what).at(&subject.path))
}

fn check_with(
    subject: &Subject,
    gradients: &dyn Engine,
    losses: &dyn Engine,
    o: &VerifyOptions,
) -> Result<GradientReport, Failure> {
    let clock = Instant::now();
    let mut training = read(subject, o)?;
    let mut session = subject.load(gradients)?;
    find_sizes(&mut training, session.as_mut(), gradients, o)?;
    let AtPoint { gradients: of_point, loss, source } = gradients_at_point(&training, session.as_mut(), gradients)?;
    if loss.is_nan() {
        return Err(undefined_loss(&training, gradients, o));
    }
    let (mut losses, said) = (Losses::new(&training, losses)?, losses.name());
    // Two engines that compute another loss can tell nothing about each other's gradients.
    if let Some(other) = losses.contradicts(loss) {
        losses = Losses::new(&training, gradients)?;
        losses.notes.push(format!(
            "the forward values differ: the loss is {loss:.6e} by {}, {other:.6e} by {said}; the losses are therefore by {} too. Where the gradients agree with them, {said} is off in the forward pass",
            gradients.name(),
            gradients.name()
        ));
    }
    let mut report = GradientReport {
        gradients: gradients.name(),
        losses: losses.engine,
        precision: losses.precision,
        source,
        tolerance: losses.tolerance,
        tensors: Vec::new(),
        updates: Vec::new(),
        directions: o.trials.max(1),
        sizes: training.sizes.clone(),
        seconds: 0.0,
        notes: std::mem::take(&mut losses.notes),
    };
    report.tensors = check_tensors(&training, &of_point, &mut losses, report.directions)?;
    match &training.optimizer {
        Some(opt) if opt.kind != "none" => {
            if losses.depends_on(&training) {
                report.notes.push(
                    "the loss depends on the step (dropout): gradients and updates are those of the first step".into(),
                );
            }
            report.updates = updates::check(&training, opt, &of_point, session.as_mut(), losses.depends_on(&training))
                .map_err(|e| cannot(subject, gradients, &e))?;
        }
        Some(_) => report.notes.push("the graph updates nothing (optimizer none)".into()),
        None => report.notes.push("no `ancre.optimizer` in the metadata: updates were not checked".into()),
    }
    report.seconds = clock.elapsed().as_secs_f64();
    Ok(report)
}

/// The failure of a check at a point where the loss is no number.
fn undefined_loss(t: &Training, engine: &dyn Engine, o: &VerifyOptions) -> Failure {
    let from = undefined::origin(engine, t.subject, &t.feeds(0.0), &["loss", "ancre.loss"], o).ok().flatten();
    let from = from.map_or(String::new(), |from| format!(": {from}"));
    Failure::check(format!(
        "the loss is NaN on the inputs that were made up, so that there are no differences to compare{from}"
    ))
    .help("--input NAME=FILE.npy feeds inputs of the kind that the model takes")
    .at(&t.subject.path)
}

fn cannot(s: &Subject, e: &dyn Engine, why: &str) -> Failure {
    let other =
        if e.name() == "tract" { "--engine ort computes the gradients in ONNX Runtime" } else { "--dim NAME=N, or --input" };
    Failure::check(format!("{} cannot run it: {why}", e.name())).help(other).at(&s.path)
}

/// Reads what the file says about itself and draws the point.
fn read<'s>(subject: &'s Subject, o: &VerifyOptions) -> Result<Training<'s>, Failure> {
    let g = &subject.graph;
    let unfit = |what: String| Failure::input(what).at(&subject.path);
    let unread = |e: Unreadable| unfit(e.to_string());
    let States(states) = States::read(g).map_err(unread)?.ok_or_else(|| {
        unfit("has no `ancre.state` in its metadata, so it is no training graph of this tool".into())
            .help("ancre-rewrite MODEL writes STEM.ancre.train.onnx")
    })?;
    let optimizer = contract::read_as(g, OptimizerRecord::KEY).map_err(unread)?;
    if !states.iter().any(|s| s.trainable) {
        return Err(unfit("trains nothing: no state is trainable".into()));
    }
    let tau = RouterRecord::read(g).ok().flatten().map(|r| r.tau as f64);
    let (mut point, mut rest, mut scales) = (Tensors::new(), Tensors::new(), HashMap::new());
    let required = |s: &StateRecord| g.find(&s.input).is_some_and(|v| g.initializer(v).is_none());
    let stored = if states.iter().any(required) { files::first_state(&subject.path, g)? } else { None };
    let stored = stored.map(|(_, tensors)| tensors).unwrap_or_default();
    for s in &states {
        let v = g.find(&s.input).ok_or_else(|| unfit(format!("has no input `{}`, which its metadata lists", s.input)))?;
        let default = match (stored.get(&s.input), g.initializer(v)) {
            (Some(t), _) => t.clone(),
            (None, Some(constant)) => NpTensor::from_constant(constant).map_err(unfit)?,
            (None, None) => {
                return Err(unfit(format!("state `{}` has no value in the file", s.input)).help(
                    "--input NAME=FILE.npy, or keep STEM.init.onnx (--state separate: STEM.state.safetensors) beside it",
                ));
            }
        };
        if s.trainable {
            let scale = scale_of(s, &default, tau.unwrap_or(1.0));
            point.insert(s.input.clone(), beside(&default, scale, o.seed, &s.name));
            scales.insert(s.name.clone(), scale);
        } else if g.initializer(v).is_none() {
            rest.insert(s.input.clone(), default);
        }
    }
    let (inputs, sizes) = (Tensors::new(), Sizes::new());
    Ok(Training { subject, states, optimizer, inputs, point, rest, scales, sizes, seed: o.seed })
}

/// How far an element may move so that the loss changes, but not out of all proportion.
fn scale_of(s: &StateRecord, default: &NpTensor, tau: f64) -> f64 {
    let values = default.to_f64();
    let rms = (values.iter().map(|v| v * v).sum::<f64>() / values.len().max(1) as f64).sqrt();
    match s.kind {
        StateKind::Logits => 0.5 * tau,
        StateKind::Gate => 0.3,
        _ => 0.05 * rms.max(0.2),
    }
}

fn beside(t: &NpTensor, scale: f64, seed: u64, name: &str) -> NpTensor {
    let mut random = Random::new(seed, name);
    let values: Vec<f64> = t.to_f64().into_iter().map(|v| v + scale * random.normal()).collect();
    NpTensor::from_f64s(t.dtype(), t.shape(), &values).unwrap_or_else(|| t.clone())
}

/// Chooses sizes and inputs with which the graph runs.
fn find_sizes(t: &mut Training, session: &mut dyn Session, engine: &dyn Engine, o: &VerifyOptions) -> Result<(), Failure> {
    let g = &t.subject.graph;
    let mut why = None;
    let is_state: Vec<String> = t.states.iter().map(|s| s.input.clone()).collect();
    let lr = t.lr();
    for sizes in random_inputs::sizes(g, &o.dims) {
        let mut inputs = Tensors::new();
        for v in g.required_inputs() {
            let name = g.name(v);
            if is_state.iter().any(|s| s == name) || lr.as_deref() == Some(name) {
                continue;
            }
            let made = match o.given.get(name) {
                Some(t) => t.clone(),
                None => {
                    random_inputs::random_input(g, v, &sizes, o.seed).map_err(|e| Failure::input(e).at(&t.subject.path))?
                }
            };
            inputs.insert(name.to_string(), made);
        }
        t.inputs = inputs;
        if let Some(limit) = o.max_memory {
            let needed = super::memory::estimate(g, &sizes);
            if needed > limit {
                return Err(super::memory::exceeded("running it needs about", needed, limit).at(&t.subject.path));
            }
        }
        match session.run(&t.feeds(0.0)) {
            Ok(_) => {
                t.sizes = sizes;
                return Ok(());
            }
            Err(e) => why = why.or(Some(e.to_string())),
        }
    }
    Err(cannot(t.subject, engine, &why.unwrap_or_default()))
}

type Gradients = HashMap<String, Vec<f64>>;

/// What one engine says at the point.
struct AtPoint {
    /// The gradient of every trained tensor.
    gradients: Gradients,
    loss: f64,
    /// Where the gradients were read.
    source: String,
}

/// The loss and the gradient of every trained tensor at the point.
fn gradients_at_point(t: &Training, session: &mut dyn Session, engine: &dyn Engine) -> Result<AtPoint, Failure> {
    // Plain SGD shows its gradient only in how far a tensor moves, which must be far more than rounding.
    let lr = if t.optimizer.as_ref().is_some_and(|o| o.kind == "sgd") { 1024.0 } else { 1e-3 };
    let out = session.run(&t.feeds(lr)).map_err(|e| cannot(t.subject, engine, &e.to_string()))?;
    let loss = ["ancre.loss", "loss"].iter().find_map(|n| out.get(*n)?.to_f64().first().copied()).unwrap_or(f64::NAN);
    let direct =
        |s: &StateRecord| [format!("{}.grad", s.name), format!("ancre.{}.grad", s.name)].iter().find_map(|n| out.get(n));
    if t.trained().all(|s| direct(s).is_some()) {
        let all = t.trained().filter_map(|s| Some((s.name.clone(), direct(s)?.to_f64()))).collect();
        return Ok(AtPoint { gradients: all, loss, source: "the .grad outputs".into() });
    }
    let missing = |what: &str| {
        Failure::input(format!("gives no gradients: it has no .grad outputs, and {what}"))
            .help("emit it with --grad-outputs")
            .at(&t.subject.path)
    };
    let o = t.optimizer.as_ref().ok_or_else(|| missing("no `ancre.optimizer` in its metadata"))?;
    let norm = ["grad_norm", "ancre.grad_norm"].iter().find_map(|n| out.get(*n)?.to_f64().first().copied()).unwrap_or(0.0);
    let output: HashMap<&str, &str> =
        t.states.iter().filter_map(|s| Some((s.name.as_str(), s.output.as_deref()?))).collect();
    let next = |name: &str| out.get(*output.get(name)?).map(NpTensor::to_f64);
    let mut all = Gradients::new();
    for s in t.trained() {
        let w = t.point[&s.input].to_f64();
        let g = o.gradient_from_step(&s.name, s.kind.is_router(), &w, &next, norm, lr);
        all.insert(s.name.clone(), g.ok_or_else(|| missing(&format!("the optimiser `{}` shows none", o.kind)))?);
    }
    let from = match o.moments() {
        _ if o.micro_batches() > 1 => "the first micro-batch's accumulators".to_string(),
        [] => "how far the first step moves".to_string(),
        [first, ..] => format!("the first step's `{first}`"),
    };
    Ok(AtPoint { gradients: all, loss, source: from })
}

/// Finite differences of the loss along directions of each tensor.
fn check_tensors(
    t: &Training,
    gradients: &Gradients,
    losses: &mut Losses,
    directions: usize,
) -> Result<Vec<TensorCheck>, Failure> {
    let squares = |g: &[f64]| g.iter().map(|v| v * v).sum::<f64>();
    let count: usize = gradients.values().map(Vec::len).sum();
    let typical = (gradients.values().map(|g| squares(g)).sum::<f64>() / count.max(1) as f64).sqrt();
    let mut checks = Vec::new();
    for s in t.trained() {
        let g = &gradients[&s.name];
        let norm = squares(g).sqrt();
        let n = g.len() as f64;
        let mut worst: Option<TensorCheck> = None;
        for i in 0..directions {
            let d = direction(i, g, t.seed, &s.name);
            let along: f64 = g.iter().zip(&d).map(|(g, d)| g * d).sum();
            // The usual size of g·d for a random d. A gradient that vanishes next to the others need not be exact.
            let usual = (norm / n.sqrt()).max(0.01 * typical) * squares(&d).sqrt();
            let (mut difference, mut error) = (f64::NAN, f64::INFINITY);
            for h in losses.steps(t.scales[&s.name]) {
                let of_step = losses.difference(t, s, &d, h)?;
                let miss = (along - of_step).abs() - losses.noise(h);
                let miss = if miss < 0.0 { 0.0 } else { miss };
                // Along the gradient itself g·d is far larger than along random directions.
                let of_step_error = if usual > 0.0 { miss / usual.max(along.abs()) } else { miss };
                if error == f64::INFINITY || of_step_error < error {
                    (difference, error) = (of_step, of_step_error);
                }
                if error <= losses.tolerance {
                    break;
                }
            }
            let passed = error <= losses.tolerance;
            if worst.as_ref().is_none_or(|w| error.is_nan() || error > w.error) {
                worst = Some(TensorCheck {
                    name: s.name.clone(),
                    kind: s.kind,
                    norm,
                    directional: along,
                    finite_difference: difference,
                    error,
                    passed,
                });
            }
        }
        checks.extend(worst);
    }
    Ok(checks)
}

/// A direction whose elements are about one in size: the first is random, the second the gradient's own, the others random.
fn direction(i: usize, g: &[f64], seed: u64, name: &str) -> Vec<f64> {
    let size = (g.iter().map(|v| v * v).sum::<f64>() / g.len().max(1) as f64).sqrt();
    if i == 1 && size > 0.0 && size.is_finite() {
        return g.iter().map(|v| v / size).collect();
    }
    let mut random = Random::new(seed.wrapping_add(1 + i as u64), name);
    g.iter().map(|_| random.normal()).collect()
}
