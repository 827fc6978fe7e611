//! From command-line arguments to the passes' options.

use crate::cli::{
    self, EngineArg, FormArg, LossArg, NormalizeArg, OptimizerArg, Parametrization, Preset, Reduction, RewriteArgs,
    TargetArg, VerifyArg,
};
use crate::engine::random_inputs::Sizes;
use crate::error::{Failure, sentence};
use crate::io::files;
use crate::verify::{ProofMode, Tolerance, VerifyOptions};
use ancre_passes::ir::Graph;
use ancre_passes::pipeline::training::{TrainableChoice, TrainingOptions};
use ancre_passes::pipeline::{Debugging, passes};
use ancre_passes::target::{self, Target};
use ancre_passes::transform::auto_loss;
use ancre_passes::transform::loss::{LossKind, LossOptions};
use ancre_passes::transform::optimizer::{OptimizerKind, OptimizerOptions};
use ancre_passes::transform::route::{ChainChoice, Form, Granularity, Init, Normalize, RouteOptions, Rule, Scope};
use std::path::Path;

/// The router's options: preset first, then what was given.
///
/// # Errors
/// Values that cannot be read, or a file of logits that cannot.
pub fn route_options(a: &RewriteArgs) -> Result<RouteOptions, Failure> {
    let paper = a.preset == Some(Preset::Paper);
    let form = match a.form {
        Some(FormArg::Reassign) => Form::Reassign,
        Some(FormArg::Augment) => Form::Augment,
        None if paper => Form::Augment,
        None => Form::Reassign,
    };
    let granularity = match a.granularity.as_deref() {
        Some("add") => Granularity::Add,
        Some("block") => Granularity::Block,
        Some(n) => Granularity::Adds(
            n.parse().map_err(|_| Failure::input(format!("--granularity `{n}` is not add, block or a number of adds")))?,
        ),
        // A preset sets all four options; without one the form decides.
        None => match a.preset {
            Some(Preset::Paper) => Granularity::Block,
            None if form == Form::Augment => Granularity::Block,
            _ => Granularity::Add,
        },
    };
    let rule = match a.parametrization {
        Some(Parametrization::Softmax) => Rule::Softmax,
        Some(Parametrization::Gated) => Rule::Gated,
        Some(Parametrization::Free) => Rule::Free,
        Some(Parametrization::Constant) => Rule::Constant,
        None => match a.preset {
            Some(Preset::Paper) => Rule::Softmax,
            None if form == Form::Augment => Rule::Softmax,
            _ => Rule::Gated,
        },
    };
    let normalize = match a.normalize {
        Some(NormalizeArg::Outgoing) => Normalize::Outgoing,
        _ => Normalize::Incoming,
    };
    let scope = match a.scope {
        Some(cli::Scope::Network) => Scope::Network,
        _ => Scope::Stage,
    };
    let init = match a.init.as_deref() {
        None if rule == Rule::Free => Init::Identity,
        None | Some("uniform") => Init::Uniform,
        Some("identity") => Init::Identity,
        Some("near-identity") => Init::NearIdentity(1e-3),
        Some(text) => {
            if let Some(e) = text.strip_prefix("near-identity=") {
                Init::NearIdentity(e.parse().map_err(|_| Failure::input(format!("--init near-identity={e}: not a number")))?)
            } else if let Some(path) = text.strip_prefix("file:") {
                Init::Given(files::read_arrays(Path::new(path))?)
            } else {
                return Err(Failure::input(format!(
                    "--init `{text}` is not uniform, identity, near-identity[=EPS] or file:PATH"
                )));
            }
        }
    };
    Ok(RouteOptions {
        form,
        granularity,
        scope,
        rule,
        normalize,
        init,
        tau: a.tau.unwrap_or(0.01),
        chains: chain_choice(a)?,
    })
}

fn chain_choice(a: &RewriteArgs) -> Result<ChainChoice, Failure> {
    match a.chains.as_deref() {
        None | Some("all") => Ok(ChainChoice::All),
        Some("none") => Ok(ChainChoice::None),
        Some(ids) => {
            let ids: Result<Vec<usize>, _> = ids.split(',').map(|s| s.trim().parse::<usize>()).collect();
            let help = "ids as `inspect` lists them, such as --chains 0,2";
            Ok(ChainChoice::Ids(ids.map_err(|_| {
                Failure::input(format!(
                    "--chains `{}` is not all, none or a list of ids",
                    a.chains.as_deref().unwrap_or_default()
                ))
                .help(help)
            })?))
        }
    }
}

/// The loss, or why none can be chosen.
///
/// # Errors
/// `Err(reason)` when `auto` finds no evidence.
pub fn loss_options(a: &RewriteArgs, g: &Graph, output: Option<&str>) -> Result<LossOptions, String> {
    let kind = match a.loss.unwrap_or(LossArg::Auto) {
        LossArg::CrossEntropy => LossKind::CrossEntropy,
        LossArg::NextToken => LossKind::NextToken,
        LossArg::Mse => LossKind::Mse,
        LossArg::L1 => LossKind::L1,
        LossArg::Huber => LossKind::Huber,
        LossArg::Bce => LossKind::Bce,
        LossArg::Auto | LossArg::None => auto_loss::choose(g, output).map_err(|e| sentence(&e, e.hint()))?,
    };
    Ok(LossOptions {
        kind,
        sum: a.reduction == Some(Reduction::Sum),
        smoothing: a.label_smoothing.unwrap_or(0.0),
        // PyTorch's default.
        ignore_index: Some(a.ignore_index.unwrap_or(-100)),
        huber_delta: a.huber_delta.unwrap_or(1.0),
        labels: a.labels.clone(),
    })
}

/// Checks numbers that make no sense before any work is done.
///
/// # Errors
/// The first such number.
pub fn check_numbers(a: &RewriteArgs) -> Result<(), Failure> {
    type Condition = fn(f64) -> bool;
    let below_one: (Condition, _) = (|v| (0.0..1.0).contains(&v), "at least 0 and below 1");
    let not_negative: (Condition, _) = (|v| v >= 0.0 && v.is_finite(), "a number of 0 or more");
    let positive: (Condition, _) = (|v| v > 0.0 && v.is_finite(), "a number above 0");
    // The graph holds it in single precision, and divides by it.
    let divisor: (Condition, _) = (|v| v >= f32::MIN_POSITIVE.into() && v.is_finite(), "a number above 0");
    for (name, value, (holds, what)) in [
        ("tau", a.tau.map(f64::from), divisor),
        ("label-smoothing", a.label_smoothing, below_one),
        ("momentum", a.momentum, below_one),
        ("beta1", a.beta1, below_one),
        ("beta2", a.beta2, below_one),
        ("weight-decay", a.weight_decay, not_negative),
        ("eps", a.eps, not_negative),
        ("huber-delta", a.huber_delta, positive),
        ("clip-norm", a.clip_norm, positive),
        ("router-lr-scale", a.router_lr_scale, not_negative),
        ("atol", a.atol, not_negative),
        ("rtol", a.rtol, not_negative),
    ] {
        if let Some(v) = value.filter(|v| !holds(*v)) {
            return Err(Failure::input(format!("--{name} {v}: {what} was expected")));
        }
    }
    if a.accumulate == Some(0) {
        return Err(Failure::input("--accumulate 0: at least one micro-batch makes an update"));
    }
    if a.trials == Some(0) {
        return Err(Failure::input("--trials 0 compares nothing").help("--verify none leaves verification out"));
    }
    for (name, value) in [("labels", &a.labels), ("output", &a.output)] {
        if value.as_deref() == Some("") {
            return Err(Failure::input(format!("--{name} needs a name")));
        }
    }
    Ok(())
}

/// Refuses options that contradict each other.
///
/// # Errors
/// The first such pair.
pub fn check_combinations(a: &RewriteArgs) -> Result<(), Failure> {
    let sgd = a.optimizer == Some(OptimizerArg::Sgd);
    if !sgd && (a.momentum.is_some() || a.nesterov) {
        return Err(Failure::input("--momentum and --nesterov belong to --optimizer sgd"));
    }
    if a.nesterov && a.momentum.unwrap_or(0.0) == 0.0 {
        return Err(Failure::input("--nesterov needs --momentum"));
    }
    if a.require_equivalent && a.verify == Some(VerifyArg::None) {
        return Err(Failure::input("--require-equivalent asks for what --verify none leaves out"));
    }
    Ok(())
}

/// Says of every option that was given and has no effect beside the others what it belongs to, so that nobody takes it for heard.
pub fn without_effect(a: &RewriteArgs) -> Vec<String> {
    let loss = a.loss.unwrap_or(LossArg::Auto);
    let classes = matches!(loss, LossArg::Auto | LossArg::CrossEntropy | LossArg::NextToken);
    let optimizer = a.optimizer.unwrap_or(OptimizerArg::Adamw);
    let adam = matches!(optimizer, OptimizerArg::Adamw | OptimizerArg::Adam);
    let updates = optimizer != OptimizerArg::None;
    let softmax = a.parametrization.is_none_or(|p| matches!(p, Parametrization::Softmax | Parametrization::Gated));
    let trains = !a.no_train && loss != LossArg::None;
    let verifies = a.verify != Some(VerifyArg::None);
    [
        ("--tau", a.tau.is_some() && !softmax, "--parametrization softmax or gated"),
        ("--ignore-index", a.ignore_index.is_some() && !classes, "--loss cross-entropy or next-token"),
        ("--label-smoothing", a.label_smoothing.is_some() && !classes, "--loss cross-entropy or next-token"),
        ("--huber-delta", a.huber_delta.is_some() && loss != LossArg::Huber, "--loss huber"),
        ("--beta1", a.beta1.is_some() && !adam, "--optimizer adamw or adam"),
        ("--beta2", a.beta2.is_some() && !adam, "--optimizer adamw or adam"),
        ("--eps", a.eps.is_some() && !adam, "--optimizer adamw or adam"),
        ("--weight-decay", a.weight_decay.is_some() && !updates, "an optimizer"),
        ("--clip-norm", a.clip_norm.is_some() && !updates, "an optimizer"),
        ("--accumulate", a.accumulate.is_some() && !updates, "an optimizer"),
        ("--router-lr-scale", a.router_lr_scale.is_some() && !updates, "an optimizer"),
        ("what was said of the training graph", a.asks_for_training() && !trains, "a run that writes one"),
        ("--trials", a.trials.is_some() && !verifies, "a --verify other than none"),
    ]
    .into_iter()
    .filter(|(_, idle, _)| *idle)
    .map(|(option, _, belongs)| format!("{option} has no effect: it belongs to {belongs}"))
    .collect()
}

/// How the rewrite is verified; `None`: not at all.
pub fn verify_options(a: &RewriteArgs, dims: Sizes) -> Option<VerifyOptions> {
    let engine = match a.verify {
        None => None,
        Some(VerifyArg::Tract) => Some(EngineArg::Tract),
        Some(VerifyArg::Ort) => Some(EngineArg::Ort),
        Some(VerifyArg::Both) => Some(EngineArg::Both),
        Some(VerifyArg::None) => return None,
    };
    Some(VerifyOptions {
        // An engine that was asked for runs, whatever is proved.
        proof: if engine.is_some() { ProofMode::Beside } else { ProofMode::First },
        engine,
        trials: a.trials.unwrap_or(2),
        seed: a.seed.unwrap_or(0),
        tolerance: Tolerance { atol: a.atol.unwrap_or(1e-5), rtol: a.rtol.unwrap_or(1e-5), precision: None },
        dims,
        ..VerifyOptions::default()
    })
}

/// The machine whose costs choose among formulations.
pub fn target(a: &RewriteArgs) -> &'static Target {
    match a.target {
        None | Some(TargetArg::Cpu) => &target::CPU,
        Some(TargetArg::Cuda) => &target::CUDA,
        Some(TargetArg::Wasm) => &target::WASM,
    }
}

/// The training graph's options.
///
/// # Errors
/// When the list of trainable tensors cannot be read.
pub fn training_options(a: &RewriteArgs, loss: LossOptions) -> Result<TrainingOptions, Failure> {
    let exactly = match &a.trainable_from {
        None => None,
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|e| Failure::input(format!("cannot be read: {e}")).at(path))?;
            Some(text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_string).collect())
        }
    };
    let plain = OptimizerOptions::of(match a.optimizer.unwrap_or(OptimizerArg::Adamw) {
        OptimizerArg::Adamw => OptimizerKind::AdamW,
        OptimizerArg::Adam => OptimizerKind::Adam,
        OptimizerArg::Sgd => OptimizerKind::Sgd,
        OptimizerArg::None => OptimizerKind::None,
    });
    let optimizer = OptimizerOptions {
        kind: plain.kind,
        momentum: a.momentum.unwrap_or(plain.momentum),
        nesterov: a.nesterov,
        weight_decay: a.weight_decay,
        beta1: a.beta1.unwrap_or(plain.beta1),
        beta2: a.beta2.unwrap_or(plain.beta2),
        eps: a.eps.unwrap_or(plain.eps),
        clip_norm: a.clip_norm,
        accumulate: a.accumulate.unwrap_or(plain.accumulate),
        router_lr_scale: a.router_lr_scale.unwrap_or(plain.router_lr_scale),
    };
    Ok(TrainingOptions {
        target: target(a),
        loss,
        optimizer,
        output: a.output.clone(),
        trainable: TrainableChoice {
            exactly,
            also: a.trainable.clone(),
            frozen: a.frozen.clone(),
            head_only: a.freeze_backbone,
        },
        opset: a.opset,
        seed: a.seed.unwrap_or(0),
        batch: None,
        grad_outputs: a.grad_outputs,
        frozen_bn: a.frozen_bn,
    })
}

/// What is shown of the passes, and where they stop.
///
/// # Errors
/// A name that no pass has.
pub fn debugging(a: &RewriteArgs) -> Result<Debugging, Failure> {
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
