//! What the main job is to do. Arguments are resolved here once: presets and defaults are filled in, files of options are read,
//! combinations are checked. Below, nothing that has a default is optional, and nothing knows of the command line.

use crate::cli::{GroupArg, LossChoice, RecomputeChoice, RewriteArgs, VerifyArg};
use crate::engine::random_inputs::{self, Sizes};
use crate::error::Failure;
use crate::io::files;
use crate::rewrite::batch::BatchRequest;
use crate::rewrite::losses::LossRequest;
use crate::verify::{ProofMode, Tolerance, VerifyOptions};
use ancre_passes::contract::{StateFrom, StepForm};
use ancre_passes::ir::{Form, Graph, Rule, Sparsity};
use ancre_passes::pipeline::training::{Qat, TrainingOptions};
use ancre_passes::pipeline::{Debugging, passes};
use ancre_passes::target::{self, Target};
use ancre_passes::transform::adapters::AdapterOptions;
use ancre_passes::transform::loss::{LossKind, LossOptions};
use ancre_passes::transform::optimizer::{OptimizerKind, OptimizerOptions, ParameterGroup};
use ancre_passes::transform::rebatch::Batch;
use ancre_passes::transform::recompute::Recompute;
use ancre_passes::transform::route::{ChainChoice, Granularity, Init, Preset, RouteOptions};
use std::path::{Path, PathBuf};

/// The main job, resolved.
pub struct RewriteConfig {
    pub(crate) model: PathBuf,
    /// Output directory or forward graph's file, as it was given.
    pub(crate) out: Option<String>,
    pub(crate) start: Start,
    pub(crate) batch: BatchRequest,
    /// The router.
    pub route: RouteOptions,
    /// The adapters, if any.
    pub(crate) adapters: Option<AdapterOptions>,
    /// Operator set of the graphs, if one was asked for.
    pub(crate) opset: Option<i64>,
    /// The training graph; `None`: the forward graph only.
    pub(crate) training: Option<TrainingRequest>,
    /// The machine whose costs choose among formulations.
    pub(crate) target: &'static Target,
    pub(crate) dims: Sizes,
    /// What is printed of the passes, and where they stop.
    pub(crate) debugging: Debugging,
    /// How the rewrite is verified; `None`: not at all.
    pub(crate) verify: Option<VerifyOptions>,
    /// Files of inputs to compare on, as `--input` gives them.
    pub(crate) inputs: Vec<String>,
    /// Must the file written be equivalent to its source?
    pub(crate) require_equivalent: bool,
    pub(crate) require: bool,
    pub(crate) dry_run: bool,
    /// Notices about options that have no effect beside the others.
    pub(crate) idle: Vec<String>,
}

/// Changes to the source before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    /// Classes of a fresh head.
    pub(crate) classes: Option<u32>,
    pub(crate) reinit: Option<u64>,
    /// Is training from scratch meant?
    pub(crate) from_scratch: bool,
    /// Is a training graph wanted?
    pub(crate) trains: bool,
    /// Do a weight and its stored transpose train each by itself?
    pub(crate) untied: bool,
}

/// What was asked for of the training graph.
#[derive(Clone, Debug)]
pub struct TrainingRequest {
    losses: LossRequest,
    /// Is it an error if there can be no training graph? It is when any option of the training graph was given.
    pub(crate) required: bool,
    /// Where the state starts from.
    pub(crate) state: StateFrom,
    pub(crate) evaluation: bool,
    /// Is a graph of the model with its state as inputs wanted?
    pub(crate) inference: bool,
    options: TrainingOptions,
}

impl TrainingRequest {
    /// The passes' options, with the losses that were asked for or that the model gives evidence of; `instead` is a loss in place of
    /// evidence. The error says why there is none.
    pub fn options(&self, g: &Graph, instead: Option<LossKind>) -> Result<TrainingOptions, String> {
        let mut o = self.options.clone();
        self.losses.choose(g, &mut o, instead)?;
        Ok(o)
    }

    /// Says which states stand between the blocks whose inside is computed again.
    pub(crate) fn divide_by(&mut self, chains: Vec<Vec<String>>) {
        if let Some(again) = &mut self.options.recompute {
            again.chains = chains;
        }
    }

    /// Is quantisation-aware training asked for?
    pub fn is_quantisation_aware(&self) -> bool {
        self.options.qat != Qat::Off
    }

    /// Is the loss chosen by evidence in the model?
    pub fn is_auto(&self) -> bool {
        self.losses.is_auto()
    }

    /// The output that the first loss reads, if one was named.
    pub fn output(&self, g: &Graph) -> Option<String> {
        self.losses.output(g)
    }

    /// Reads the teacher, if there is one beside the model. `source` is the model as it was before anything changed it.
    pub(crate) fn read_teacher(&mut self, source: &Graph) -> Result<(), Failure> {
        self.losses.read_teacher(source)
    }
}

impl TryFrom<&RewriteArgs> for RewriteConfig {
    type Error = Failure;

    fn try_from(a: &RewriteArgs) -> Result<RewriteConfig, Failure> {
        let model = a.model.clone();
        let model = model.ok_or_else(|| Failure::input("no model given").help("ancre-rewrite MODEL.onnx, or --help"))?;
        let batch = batch(a.batch.as_deref())?;
        check_numbers(a)?;
        check_combinations(a)?;
        let dims = random_inputs::dims(&a.dim)?;
        Ok(RewriteConfig {
            model,
            out: a.out.clone(),
            start: Start {
                classes: a.classes,
                reinit: a.reinit,
                from_scratch: a.reinit.is_some() || matches!(a.preset, Some(Preset::Deep | Preset::Paper)),
                trains: !a.no_train && a.training.losses.train(),
                untied: a.training.untied,
            },
            batch,
            route: route(a)?,
            adapters: adapters(a)?,
            opset: a.opset,
            training: if a.no_train || !a.training.losses.train() { None } else { Some(training(a)?) },
            target: a.target.unwrap_or(&target::CPU),
            debugging: debugging(a)?,
            verify: verification(a, &dims),
            inputs: a.input.clone(),
            dims,
            require_equivalent: a.require_equivalent,
            require: a.require,
            dry_run: a.dry_run,
            idle: without_effect(a),
        })
    }
}

/// The router's options: preset first, then what was given.
fn route(a: &RewriteArgs) -> Result<RouteOptions, Failure> {
    // Without a preset the form decides.
    let of_form = if a.form == Some(Form::Augment) { Preset::Paper } else { Preset::Finetune };
    let base = RouteOptions::preset(a.preset.unwrap_or(of_form));
    let rule = a.parametrization.unwrap_or(base.rule);
    let granularity = match a.granularity.as_deref() {
        None => base.granularity,
        Some("add") => Granularity::Add,
        Some("block") => Granularity::Block,
        Some(n) => Granularity::Adds(
            n.parse().map_err(|_| Failure::input(format!("--granularity `{n}` is not add, block or a number of adds")))?,
        ),
    };
    let mut options = base;
    options.form = a.form.unwrap_or(options.form);
    options.granularity = granularity;
    options.scope = a.scope.unwrap_or(options.scope);
    options.rule = rule;
    options.normalize = a.normalize.unwrap_or(options.normalize);
    options.init = init(a.init.as_deref(), rule)?;
    options.sources = a.sources.unwrap_or(options.sources);
    let every = |given: Option<u32>, otherwise| given.map_or(otherwise, |n| n as usize);
    let Sparsity { dilation, period, summaries } = options.sparsity;
    options.sparsity = Sparsity {
        dilation: every(a.dilation, dilation),
        period: every(a.period, period),
        summaries: every(a.summaries, summaries),
    };
    options.tau = a.tau.unwrap_or(options.tau);
    options.chains = chains(a.chains.as_deref())?;
    Ok(options)
}

/// The adapters that were asked for.
fn adapters(a: &RewriteArgs) -> Result<Option<AdapterOptions>, Failure> {
    let Some(rank) = a.lora else { return Ok(None) };
    let mut options = AdapterOptions::of(i64::from(rank));
    options.alpha = a.lora_alpha.unwrap_or(options.alpha);
    let alpha = options.alpha as f32;
    if alpha == 0.0 || !alpha.is_finite() {
        let what = "a finite number other than 0 was expected, as float32";
        return Err(Failure::input(format!("--lora-alpha {}: {what}", options.alpha)));
    }
    options.on = a.lora_on.clone();
    options.seed = a.seed.unwrap_or(0);
    Ok(Some(options))
}

fn init(text: Option<&str>, rule: Rule) -> Result<Init, Failure> {
    let Some(text) = text else { return Ok(if rule == Rule::Free { Init::Identity } else { Init::Uniform }) };
    let (name, value) = text.split_once(['=', ':']).unwrap_or((text, ""));
    match (name, value) {
        ("uniform", "") => Ok(Init::Uniform),
        ("identity", "") => Ok(Init::Identity),
        ("near-identity", "") => Ok(Init::NearIdentity(1e-3)),
        ("near-identity", e) => match e.parse() {
            Ok(e) => Ok(Init::NearIdentity(e)),
            Err(_) => Err(Failure::input(format!("--init near-identity={e}: not a number"))),
        },
        ("file", path) => Ok(Init::Given(files::read_arrays(Path::new(path))?)),
        _ => Err(Failure::input(format!("--init `{text}` is not uniform, identity, near-identity[=EPS] or file:PATH"))),
    }
}

fn chains(text: Option<&str>) -> Result<ChainChoice, Failure> {
    match text {
        None | Some("all") => Ok(ChainChoice::All),
        Some("none") => Ok(ChainChoice::None),
        Some(text) => {
            let ids: Result<Vec<usize>, _> = text.split(',').map(|s| s.trim().parse::<usize>()).collect();
            ids.map(ChainChoice::Ids).map_err(|_| {
                Failure::input(format!("--chains `{text}` is not all, none or a list of ids"))
                    .help("ids as `inspect` lists them, such as --chains 0,2")
            })
        }
    }
}

fn batch(text: Option<&str>) -> Result<BatchRequest, Failure> {
    Ok(match text {
        None => BatchRequest::Default,
        Some("keep") => BatchRequest::Keep,
        Some("dynamic") => BatchRequest::Both(Batch::Dynamic),
        Some(n) => match n.parse::<i64>() {
            Ok(n) if n > 0 => BatchRequest::Both(Batch::Fixed(n)),
            _ => return Err(Failure::input(format!("--batch `{n}` is not keep, dynamic or a positive number"))),
        },
    })
}

fn training(a: &RewriteArgs) -> Result<TrainingRequest, Failure> {
    let exactly = match &a.training.trainable_from {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| Failure::input(format!("cannot be read: {e}")).at(path))?;
            Some(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_string).collect())
        }
    };
    let mut optimizer = OptimizerOptions::of(a.training.optimizer.unwrap_or(OptimizerKind::AdamW));
    optimizer.momentum = a.training.momentum.unwrap_or(optimizer.momentum);
    optimizer.nesterov = a.training.nesterov;
    optimizer.weight_decay = a.training.weight_decay;
    optimizer.beta1 = a.training.beta1.unwrap_or(optimizer.beta1);
    optimizer.beta2 = a.training.beta2.unwrap_or(optimizer.beta2);
    optimizer.eps = a.training.eps.unwrap_or(optimizer.eps);
    optimizer.clip_norm = a.training.clip_norm;
    optimizer.accumulate = a.training.accumulate.unwrap_or(optimizer.accumulate);
    optimizer.router_lr_scale = a.training.router_lr_scale.unwrap_or(optimizer.router_lr_scale);
    optimizer.groups = groups(&a.training.group);
    // The losses are filled in when the model is known.
    let mut options = TrainingOptions::of(LossOptions::of(LossKind::CrossEntropy), optimizer);
    options.trainable.exactly = exactly;
    options.trainable.also = a.training.trainable.clone();
    options.trainable.frozen = a.training.frozen.clone();
    options.trainable.head_only = a.training.freeze_backbone;
    options.trainable.adapters_only = a.lora.is_some();
    options.fixed = fixed(&a.training.fix)?;
    options.opset = a.opset;
    options.seed = a.seed.unwrap_or(0);
    options.grad_outputs = a.training.grad_outputs;
    options.step = a.training.step.unwrap_or(StepForm::Whole);
    options.frozen_bn = a.training.frozen_bn;
    options.bn_momentum = a.training.bn_momentum;
    options.precision = a.training.precision.unwrap_or(options.precision);
    options.recompute = match a.training.recompute {
        Some(RecomputeChoice::Blocks(adds)) => Some(Recompute::every(adds)),
        Some(RecomputeChoice::Off) | None => None,
    };
    options.qat = match (a.training.qat, a.training.qat_scales) {
        (_, true) => Qat::Scales,
        (true, false) => Qat::Weights,
        (false, false) => Qat::Off,
    };
    options.target = a.target.unwrap_or(&target::CPU);
    Ok(TrainingRequest {
        losses: LossRequest::new(&a.training.losses)?,
        required: a.training.are_given() || a.lora.is_some(),
        state: a.training.state.unwrap_or(StateFrom::Init),
        evaluation: a.training.eval_graph,
        inference: a.training.infer_graph,
        options,
    })
}

fn groups(given: &[GroupArg]) -> Vec<ParameterGroup> {
    let group = |g: &GroupArg| ParameterGroup { pattern: g.pattern.clone(), lr_scale: g.lr.unwrap_or(1.0), decay: g.decay };
    given.iter().map(group).collect()
}

fn fixed(given: &[String]) -> Result<Vec<(String, i64)>, Failure> {
    let pair = |text: &String| {
        let pair = text.rsplit_once('=').and_then(|(name, n)| Some((name.to_string(), n.parse().ok()?)));
        pair.ok_or_else(|| Failure::input(format!("--fix `{text}` is not NAME=N")))
    };
    given.iter().map(pair).collect()
}

/// How the rewrite is verified; `None`: not at all.
fn verification(a: &RewriteArgs, dims: &Sizes) -> Option<VerifyOptions> {
    let engine = match a.verify {
        None => None,
        Some(how) => Some(how.engine()?),
    };
    Some(VerifyOptions {
        // An engine that was asked for runs even where a proof is found.
        proof: if engine.is_some() { ProofMode::Beside } else { ProofMode::First },
        engine,
        trials: a.trials.unwrap_or(2),
        seed: a.seed.unwrap_or(0),
        tolerance: Tolerance { atol: a.atol.unwrap_or(1e-5), rtol: a.rtol.unwrap_or(1e-5), precision: None },
        dims: dims.clone(),
        ..VerifyOptions::default()
    })
}

/// What is printed of the passes, and where they stop. Errors: a name that no pass has.
fn debugging(a: &RewriteArgs) -> Result<Debugging, Failure> {
    let debugging =
        Debugging { print_after: a.print_after.clone(), stop_after: a.stop_after.clone(), max_changes: a.max_changes };
    match debugging.unknown_pass() {
        None => Ok(debugging),
        Some(name) => {
            let known: Vec<&str> = passes().iter().map(|p| p.name).collect();
            Err(Failure::input(format!("there is no pass `{name}`; the passes are {}", known.join(", "))))
        }
    }
}

/// Refuses numbers that make no sense, before any work is done. The error names the first such number.
fn check_numbers(a: &RewriteArgs) -> Result<(), Failure> {
    type Condition = fn(f64) -> bool;
    let below_one: (Condition, _) = (|v| (0.0..1.0).contains(&v), "at least 0 and below 1");
    let not_negative: (Condition, _) = (|v| v >= 0.0 && v.is_finite(), "a number of 0 or more");
    let positive: (Condition, _) = (|v| v > 0.0 && v.is_finite(), "a number above 0");
    // The graph holds tau in single precision and divides by it.
    let divisor: (Condition, _) = (|v| v >= f32::MIN_POSITIVE.into() && v.is_finite(), "a number above 0");
    for (name, value, (holds, what)) in [
        ("tau", a.tau.map(f64::from), divisor),
        ("label-smoothing", a.training.losses.label_smoothing, below_one),
        ("momentum", a.training.momentum, below_one),
        ("beta1", a.training.beta1, below_one),
        ("beta2", a.training.beta2, below_one),
        ("weight-decay", a.training.weight_decay, not_negative),
        ("eps", a.training.eps, not_negative),
        ("huber-delta", a.training.losses.huber_delta, positive),
        ("focal-gamma", a.training.losses.focal_gamma, not_negative),
        ("dice-smooth", a.training.losses.dice_smooth, not_negative),
        ("clip-norm", a.training.clip_norm, positive),
        ("router-lr-scale", a.training.router_lr_scale, not_negative),
        ("atol", a.atol, not_negative),
        ("rtol", a.rtol, not_negative),
    ] {
        if let Some(v) = value.filter(|v| !holds(*v)) {
            return Err(Failure::input(format!("--{name} {v}: {what} was expected")));
        }
    }
    if a.training.accumulate == Some(0) {
        return Err(Failure::input("--accumulate 0: at least one micro-batch makes an update"));
    }
    if a.trials == Some(0) {
        return Err(Failure::input("--trials 0 compares nothing").help("--verify none leaves verification out"));
    }
    if a.training.losses.output.as_deref() == Some("") {
        return Err(Failure::input("--output needs a name"));
    }
    Ok(())
}

/// Refuses options that contradict each other. The error names the first such pair.
fn check_combinations(a: &RewriteArgs) -> Result<(), Failure> {
    let sgd = a.training.optimizer == Some(OptimizerKind::Sgd);
    if !sgd && (a.training.momentum.is_some() || a.training.nesterov) {
        return Err(Failure::input("--momentum and --nesterov belong to --optimizer sgd"));
    }
    if a.training.nesterov && a.training.momentum.unwrap_or(0.0) == 0.0 {
        return Err(Failure::input("--nesterov needs --momentum"));
    }
    if !a.training.losses.train() && (a.training.losses.loss.len() > 1 || a.training.losses.distill.is_some()) {
        return Err(Failure::input("--loss none asks for no training graph, and there are other losses"));
    }
    if a.lora.is_some() && (a.training.qat || a.training.qat_scales) {
        return Err(Failure::input("--lora leaves the weights as they are stored, --qat trains them").help("one of the two"));
    }
    if a.training.step == Some(StepForm::Split) && a.training.optimizer == Some(OptimizerKind::None) {
        return Err(Failure::input(
            "--step split needs an optimizer: with --optimizer none there is no update to split off",
        ));
    }
    if a.require_equivalent && a.verify == Some(VerifyArg::None) {
        return Err(Failure::input("--require-equivalent asks for what --verify none leaves out"));
    }
    Ok(())
}

/// Lists the options that were given and have no effect beside the others, each with what it belongs to.
fn without_effect(a: &RewriteArgs) -> Vec<String> {
    let losses = &a.training.losses;
    let classes = losses.may_be(LossKind::weights_classes);
    let axes = losses.may_be(LossKind::has_classes) || losses.distill.is_some();
    let smooth = losses.may_be(|k| matches!(k, LossKind::CrossEntropy | LossKind::NextToken));
    let asked = |kinds: &[LossKind]| losses.loss.iter().any(|l| kinds.iter().any(|k| l.choice == LossChoice::Kind(*k)));
    use LossKind::{BinaryDice, BinaryFocal, Dice, Focal, Huber, SmoothL1};
    let optimizer = a.training.optimizer.unwrap_or(OptimizerKind::AdamW);
    let adam = matches!(optimizer, OptimizerKind::AdamW | OptimizerKind::Adam);
    let updates = optimizer != OptimizerKind::None;
    let softmax = a.parametrization.is_none_or(|p| matches!(p, Rule::Softmax | Rule::Gated));
    let trains = !a.no_train && losses.train();
    let verifies = a.verify != Some(VerifyArg::None);
    [
        ("--tau", a.tau.is_some() && !softmax, "--parametrization softmax or gated"),
        ("--ignore-index", losses.ignore_index.is_some() && !classes, "--loss cross-entropy or next-token"),
        ("--class-weights", losses.class_weights.is_some() && !classes, "--loss cross-entropy, next-token, focal or dice"),
        ("--class-axis", losses.class_axis.is_some() && !axes, "--loss cross-entropy or next-token"),
        ("--ctc-blank", losses.ctc_blank.is_some() && !asked(&[LossKind::Ctc]), "--loss ctc"),
        ("--focal-gamma", losses.focal_gamma.is_some() && !asked(&[Focal, BinaryFocal]), "--loss focal"),
        ("--dice-smooth", losses.dice_smooth.is_some() && !asked(&[Dice, BinaryDice]), "--loss dice"),
        ("--bn-momentum", a.training.bn_momentum.is_some() && a.training.frozen_bn, "batch normalisation that trains"),
        ("--label-smoothing", losses.label_smoothing.is_some() && !smooth, "--loss cross-entropy or next-token"),
        ("--huber-delta", losses.huber_delta.is_some() && !asked(&[Huber, SmoothL1]), "--loss huber"),
        ("--beta1", a.training.beta1.is_some() && !adam, "--optimizer adamw or adam"),
        ("--beta2", a.training.beta2.is_some() && !adam, "--optimizer adamw or adam"),
        ("--eps", a.training.eps.is_some() && !adam, "--optimizer adamw or adam"),
        ("--weight-decay", a.training.weight_decay.is_some() && !updates, "an optimizer"),
        ("--clip-norm", a.training.clip_norm.is_some() && !updates, "an optimizer"),
        ("--accumulate", a.training.accumulate.is_some() && !updates, "an optimizer"),
        ("--group", !a.training.group.is_empty() && !updates, "an optimizer"),
        ("--router-lr-scale", a.training.router_lr_scale.is_some() && !updates, "an optimizer"),
        ("what was said of the training graph", a.training.are_given() && !trains, "a run that writes one"),
        ("--trials", a.trials.is_some() && !verifies, "a --verify other than none"),
        ("--input", !a.input.is_empty() && !verifies, "a --verify other than none"),
    ]
    .into_iter()
    .filter(|(_, idle, _)| *idle)
    .map(|(option, _, belongs)| format!("{option} has no effect: it belongs to {belongs}"))
    .collect()
}
