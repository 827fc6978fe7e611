//! Assembles the training graph: parameters become state, batch normalisation trains, then loss, gradients, optimiser,
//! lowering, outputs and metadata. The contract is the table of inputs and outputs in the README's "training graph".

use crate::analysis::head::{find_head, head_initializers};
use crate::analysis::roles::{Role, initializer_roles};
use crate::ir::{Attrs, Graph, Kind, Op, ValueId};
use crate::ops::GradError;
use crate::ops::build::BuildError;
use crate::pipeline;
use crate::transform::in_place::mark_in_place;
use crate::transform::loss::{LossError, LossOptions, append_loss};
use crate::transform::optimizer::{
    OptimizerKind, OptimizerOptions, StateKind, StateRecord, StateTensor, Trained, append_optimizer, declare_moments,
};
use crate::transform::rebatch::{self, Batch, Current};
use crate::transform::route::Router;
use crate::transform::{differentiate, dropout, eliminate, legalize, lower_routes, master, separate, tie, train_batch_norm};
use crate::verify;
use indexmap::IndexMap;
use serde_json::json;
use std::collections::{HashMap, HashSet};

/// Which initializers train.
#[derive(Clone, Debug, Default)]
pub struct TrainableChoice {
    /// Exactly these (and the router's own); `None`: by role.
    pub exactly: Option<Vec<String>>,
    /// Also these (globs), whatever their role.
    pub also: Vec<String>,
    /// Not these (globs).
    pub frozen: Vec<String>,
    /// By role, only what the last linear map before the output and what follows it read.
    pub head_only: bool,
}

/// How to build a training graph.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct TrainingOptions {
    pub loss: LossOptions,
    pub optimizer: OptimizerOptions,
    pub output: Option<String>,
    pub trainable: TrainableChoice,
    /// Operator set of the graph; `None`: 18, or the smallest later one that can express the source.
    pub opset: Option<i64>,
    /// Seed of the dropout masks.
    pub seed: u64,
    /// Another batch than the graph's number; the caller has seen that the source can be rebuilt for it.
    pub batch: Option<Batch>,
    pub grad_outputs: bool,
    /// Keep batch normalisation as in evaluation.
    pub frozen_bn: bool,
}

impl TrainingOptions {
    /// A loss on the only output that fits it and an optimiser over everything that trains by its role.
    pub fn of(loss: LossOptions, optimizer: OptimizerOptions) -> TrainingOptions {
        TrainingOptions {
            loss,
            optimizer,
            output: None,
            trainable: TrainableChoice::default(),
            opset: None,
            seed: 0,
            batch: None,
            grad_outputs: false,
            frozen_bn: false,
        }
    }
}

/// Why there is no training graph.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum TrainingError {
    #[error("{0}")]
    Unfit(String),
    #[error(transparent)]
    Gradient(#[from] GradError),
    #[error("building the training graph failed: {0}")]
    Build(#[from] BuildError),
    #[error("the training graph is not well formed, a fault of this tool: {}", .0.iter().take(5).cloned().collect::<Vec<_>>().join("; "))]
    Invalid(Vec<String>),
}

impl From<LossError> for TrainingError {
    fn from(e: LossError) -> TrainingError {
        match e {
            LossError::Unfit(what) => TrainingError::Unfit(what),
            LossError::Build(e) => TrainingError::Build(e),
        }
    }
}

/// A training graph and what is worth reporting about it.
pub struct Training {
    /// The graph, legal and ready to be emitted.
    pub graph: Graph,
    /// State, in output order.
    pub states: Vec<StateRecord>,
    /// Trained tensors.
    pub trainable: Vec<String>,
    /// Float initializers that do not train, with the reason.
    pub frozen: Vec<(String, String)>,
    /// Name of the target input.
    pub target: String,
    /// Names of the source's dropouts, which are active.
    pub dropouts: Vec<String>,
    /// Number of half-precision tensors that have a float32 master copy.
    pub masters: usize,
}

/// Does a name match a pattern with `*` and `?`?
pub fn glob(pattern: &str, name: &str) -> bool {
    let (p, n): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut i, mut j, mut star) = (0, 0, None);
    while j < n.len() {
        if i < p.len() && (p[i] == '?' || (p[i] == n[j] && p[i] != '*')) {
            i += 1;
            j += 1;
        } else if i < p.len() && p[i] == '*' {
            star = Some((i, j));
            i += 1;
        } else if let Some((si, sj)) = star {
            i = si + 1;
            j = sj + 1;
            star = Some((si, sj + 1));
        } else {
            return false;
        }
    }
    p[i..].iter().all(|c| *c == '*')
}

/// The output a loss reads: the named one, or the only float one.
///
/// # Errors
/// When the choice is not clear; the message lists the outputs.
pub fn loss_output(g: &Graph, wanted: Option<&str>) -> Result<ValueId, String> {
    let listed = || {
        let all: Vec<String> =
            g.outputs().iter().map(|o| format!("`{}` {}", g.name(o.value), g.value(o.value).ty)).collect();
        all.join(", ")
    };
    if let Some(name) = wanted {
        return match g.outputs().iter().find(|o| g.name(o.value) == name) {
            Some(o) => Ok(o.value),
            None => Err(format!("the model has no output `{name}`; it has {}", listed())),
        };
    }
    let floats: Vec<ValueId> = g.outputs().iter().map(|o| o.value).filter(|v| g.is_float(*v)).collect();
    match floats.as_slice() {
        [one] => Ok(*one),
        [] => Err(format!("the model has no float output to train on; it has {}", listed())),
        _ => Err(format!("the model has several float outputs; choose one with --output NAME: {}", listed())),
    }
}

/// Builds the training graph of a routed (not yet lowered) graph, which it consumes.
///
/// # Errors
/// When the loss does not fit, an operator has no derivative, or nothing would train.
pub fn build_training_graph(mut g: Graph, routers: &[Router], o: &TrainingOptions) -> Result<Training, TrainingError> {
    let output = loss_output(&g, o.output.as_deref()).map_err(TrainingError::Unfit)?;
    let output_name = g.name(output).to_string();
    let outputs: Vec<ValueId> = g.outputs().iter().map(|o| o.value).collect();
    // First of all: the names it gives depend on the source's nodes, and `freeze` finds them again on the forward graph.
    let mut aliases: HashMap<String, String> = separate::separate_parameters(&mut g, separate::is_own).into_iter().collect();
    after(&g, "separate-parameters")?;
    if let Some(to) = o.batch {
        rebatch(&mut g, to)?;
    }
    aliases.extend(tie::tie_parameters(&mut g)?.into_iter().map(|t| (t.name, t.transposed)));
    after(&g, "tie-parameters")?;
    // By the values' names: those of separated parameters are not their nodes'.
    let own: HashSet<String> = g
        .nodes()
        .map(|n| g.result(n, 0))
        .filter(|v| g.contains(*v) && g.initializer(*v).is_some())
        .map(|v| g.name(v).to_string())
        .collect();
    legalize::decompose_contrib(&mut g);
    legalize::to_opset(&mut g, o.opset.unwrap_or(legalize::TARGET).max(legalize::LOWEST))?;
    after(&g, "legalize")?;
    // Before folding, which adds constants of its own.
    let (mut trained, mut frozen) = choose_trainable(&g, output, &o.trainable, &own, &aliases)?;
    let mut halves: Vec<ValueId> = trained.iter().map(|(v, _)| *v).collect();
    if !(o.frozen_bn || o.trainable.head_only) {
        halves.extend(master::stored_statistics(&g));
    }
    let masters = master::master_copies(&mut g, &halves)?;
    after(&g, "master-copies")?;
    crate::transform::fold::fold_constants(&mut g);
    after(&g, "fold-constants")?;
    for r in routers {
        if g.name(r.logits).ends_with("logits") {
            trained.push((r.logits, StateKind::Logits));
        }
        if let Some(gate) = r.gate {
            trained.push((gate, StateKind::Gate));
        }
    }
    if trained.is_empty() {
        return Err(TrainingError::Unfit(
            "nothing would train: the model has no parameter by role; name some with --trainable".into(),
        ));
    }
    for (v, _) in &trained {
        g.set_overridable(*v, true);
    }
    let dropouts = dropout::activate_dropout(&mut g, o.seed)?;
    after(&g, "activate-dropout")?;
    let frozen_bn = o.frozen_bn || o.trainable.head_only;
    let statistics = if frozen_bn { Vec::new() } else { train_batch_norm::train_batch_norm(&mut g)? };
    after(&g, "train-batch-norm")?;
    let loss = append_loss(&mut g, output, &o.loss)?;
    after(&g, "append-loss")?;
    let wrt: Vec<ValueId> = trained.iter().map(|(v, _)| *v).collect();
    let gradients = differentiate(&mut g, loss.value, &wrt)?;
    after(&g, "differentiate")?;
    let mut with_gradient = Vec::new();
    for (v, kind) in trained {
        match gradients.get(&v) {
            Some(ct) => with_gradient.push(Trained { value: v, gradient: *ct, kind }),
            None => {
                frozen.push((g.name(v).to_string(), "the loss does not depend on it".into()));
                g.set_overridable(v, false);
            }
        }
    }
    if with_gradient.is_empty() {
        return Err(TrainingError::Unfit("nothing would train: the loss depends on none of the trainable tensors".into()));
    }
    let update = append_optimizer(&mut g, loss.value, &with_gradient, &o.optimizer)?;
    after(&g, "append-optimizer")?;
    let mut states = update.states;
    states.extend(statistics);
    // Outputs are declared before lowering, which replaces nodes and so invalidates the values held here.
    let trainable = with_gradient.iter().map(|t| g.name(t.value).to_string()).collect();
    let target = g.name(loss.target).to_string();
    let mut states = publish(&mut g, &outputs, loss.value, update.grad_norm, &states, &with_gradient, o);
    lower_routes::lower_routes(&mut g)?;
    after(&g, "lower-routes")?;
    train_batch_norm::lower(&mut g)?;
    after(&g, "lower-batch-norm")?;
    eliminate::eliminate_dead(&mut g, |_, _| false);
    verify::verify(&g, verify::Stage::Legal).map_err(TrainingError::Invalid)?;
    mark_in_place(&g, &mut states);
    describe(&mut g, &states, o, &output_name, &target);
    Ok(Training { graph: g, states, trainable, frozen, target, dropouts, masters })
}

/// Rebuilds the graph for another batch. After parameters have got their names, which depend on the source's nodes.
pub(super) fn rebatch(g: &mut Graph, to: Batch) -> Result<(), TrainingError> {
    if let Current::Fixed(before) = rebatch::current(g).map_err(TrainingError::Unfit)? {
        let plan = rebatch::plan(g, before).map_err(TrainingError::Unfit)?;
        plan.apply(g, to)?;
        after(g, "rebatch")?;
    }
    Ok(())
}

/// The verifier after a pass, in debug builds and tests.
pub(super) fn after(g: &Graph, pass: &str) -> Result<(), TrainingError> {
    pipeline::check(g, pass).map_err(|e| TrainingError::Invalid(vec![e]))
}

type Chosen = (Vec<(ValueId, StateKind)>, Vec<(String, String)>);

/// `own`: the source's initializers; those that legalisation added are constants of formulas. `aliases`: parameters with another
/// name they have in the source, that of the tensor the exporter had merged them into or of their transpose; patterns match either.
fn choose_trainable(
    g: &Graph,
    output: ValueId,
    choice: &TrainableChoice,
    own: &HashSet<String>,
    aliases: &HashMap<String, String>,
) -> Result<Chosen, TrainingError> {
    let mut trained = Vec::new();
    let mut frozen = Vec::new();
    let both = |name: &str| [Some(name.to_string()), aliases.get(name).cloned()].into_iter().flatten().collect::<Vec<_>>();
    let matches = |patterns: &[String], name: &str| both(name).iter().any(|n| patterns.iter().any(|p| glob(p, n)));
    let known = |n: &String| g.find(n).and_then(|v| g.initializer(v)).is_some() || aliases.values().any(|other| other == n);
    if let Some(missing) = choice.exactly.iter().flatten().find(|n| !known(n)) {
        return Err(TrainingError::Unfit(format!(
            "--trainable-from names `{missing}`, which is no initializer of the model"
        )));
    }
    let head = match (choice.head_only, find_head(g, output)) {
        (false, _) => None,
        (true, Some(head)) => Some(head_initializers(g, &head)),
        (true, None) => {
            let why =
                format!("--freeze-backbone: no linear map (Gemm, MatMul, Conv) lies before output `{}`", g.name(output));
            return Err(TrainingError::Unfit(why));
        }
    };
    for (v, role) in initializer_roles(g) {
        let name = g.name(v);
        if name.starts_with("ancre.") || !own.contains(name) {
            continue;
        }
        let by_role = match &choice.exactly {
            Some(names) => both(name).iter().any(|n| names.contains(n)),
            None => (role.trains() && head.as_ref().is_none_or(|h| h.contains(&v))) || matches(&choice.also, name),
        };
        if by_role && !matches(&choice.frozen, name) {
            trained.push((v, StateKind::Parameter));
        } else if role != Role::Statistic {
            let why = if head.as_ref().is_some_and(|h| role.trains() && !h.contains(&v)) {
                "backbone".to_string()
            } else if role.trains() {
                "frozen by option".to_string()
            } else {
                role.name().to_string()
            };
            frozen.push((name.to_string(), why));
        }
    }
    for pattern in choice.also.iter().chain(&choice.frozen) {
        let one = std::slice::from_ref(pattern);
        if !g.nodes().any(|n| matches!(g.node(n).kind, Kind::Initializer { .. }) && matches(one, g.name(g.result(n, 0)))) {
            return Err(TrainingError::Unfit(format!("no initializer matches the pattern `{pattern}`")));
        }
    }
    Ok((trained, frozen))
}

/// Declares the outputs in the contract's order and gives every state its names.
fn publish(
    g: &mut Graph,
    model_outputs: &[ValueId],
    loss: ValueId,
    norm: ValueId,
    states: &[StateTensor],
    trained: &[Trained],
    o: &TrainingOptions,
) -> Vec<StateRecord> {
    let infos: IndexMap<ValueId, _> = g.outputs().iter().map(|o| (o.value, o.info.clone())).collect();
    g.clear_outputs();
    g.add_output(loss, None);
    for v in model_outputs {
        if *v != loss {
            // A float output's declared shape may have the batch's old extent; what we know is better.
            let info = infos.get(v).cloned().flatten();
            g.add_output(*v, info);
        }
    }
    let norm = publish_as(g, norm, "grad_norm");
    g.metadata.insert("ancre.names".into(), json!({"loss": g.name(loss), "grad_norm": norm}).to_string());
    let mut records = Vec::new();
    for s in states {
        let name = g.name(s.value).to_string();
        let output = s.next.map(|next| publish_as(g, next, &format!("{name}.next")));
        records.push(StateRecord {
            name: name.clone(),
            input: name,
            output,
            kind: s.kind,
            trainable: s.trainable,
            shape: s.shape.clone(),
            in_place: false,
        });
    }
    if o.grad_outputs || o.optimizer.kind == OptimizerKind::None {
        for t in trained {
            let name = format!("{}.grad", g.name(t.value));
            publish_as(g, t.gradient, &name);
        }
    }
    declare_moments(g, states);
    records
}

/// Declares a value a graph output under a name; goes through `Identity` where the value already has a name that counts.
fn publish_as(g: &mut Graph, v: ValueId, name: &str) -> String {
    let name = if g.is_free(name) { name.to_string() } else { format!("ancre.{name}") };
    let ours = match &g.node(v.node).kind {
        Kind::Op(op) => op.source.is_none() && !g.is_output(v),
        _ => false,
    };
    let published = if ours {
        v
    } else {
        let ty = g.value(v).ty.clone();
        let node = g.add_op(&name, Op::new("Identity", Attrs::new()), &[Some(v)]);
        g.push_result(node, &format!("{name}.copy"), ty)
    };
    let got = g.rename(published, &name);
    g.add_output(published, None);
    got
}

/// `output`: the model output that the loss reads.
pub(super) fn describe_loss(g: &mut Graph, o: &TrainingOptions, output: &str, target: &str) {
    let record = json!({"kind": o.loss.kind.name(), "reduction": if o.loss.sum { "sum" } else { "mean" }, "target": target,
                        "output": output, "label_smoothing": o.loss.smoothing, "ignore_index": o.loss.ignore_index,
                        "huber_delta": o.loss.huber_delta});
    g.metadata.insert("ancre.loss".into(), record.to_string());
}

/// The learning rate's input: `lr`, unless the model has a value of that name.
fn lr_name(g: &Graph) -> &'static str {
    if g.find("ancre.lr").is_some() { "ancre.lr" } else { "lr" }
}

fn describe(g: &mut Graph, states: &[StateRecord], o: &TrainingOptions, output: &str, target: &str) {
    g.metadata.insert("ancre.state".into(), serde_json::to_string(states).unwrap_or_default());
    describe_loss(g, o, output, target);
    let opt = &o.optimizer;
    let adam = matches!(opt.kind, OptimizerKind::Adam | OptimizerKind::AdamW);
    let mut record = json!({"kind": opt.kind.name()});
    if let Some(r) = record.as_object_mut() {
        if adam {
            r.insert("betas".into(), json!([opt.beta1, opt.beta2]));
            r.insert("eps".into(), json!(opt.eps));
        }
        if opt.kind == OptimizerKind::Sgd {
            r.insert("momentum".into(), json!(opt.momentum));
            r.insert("nesterov".into(), json!(opt.nesterov));
        }
        if opt.kind != OptimizerKind::None {
            r.insert("lr".into(), json!(lr_name(g)));
            r.insert("weight_decay".into(), json!(opt.decay()));
            r.insert("clip_norm".into(), json!(opt.clip_norm));
            r.insert("accumulate".into(), json!(opt.accumulate));
            r.insert("router_lr_scale".into(), json!(opt.router_lr_scale));
        }
    }
    g.metadata.insert("ancre.optimizer".into(), record.to_string());
}
