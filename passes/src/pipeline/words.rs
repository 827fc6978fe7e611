//! Passes and their options by word, for golden texts and for `examples/opt.rs`.

use super::gradient::Seed;
use super::training::Qat;
use super::{Choice, Cx, PIPELINES, PassError, PassManager, passes};
use crate::contract::{StateKind, StateRecord};
use crate::ir::Graph;
use crate::target::Target;
use crate::transform::adapters::AdapterOptions;
use crate::transform::loss::{LossKind, LossOptions};
use crate::transform::narrow::Precision;
use crate::transform::optimizer::{OptimizerKind, OptimizerOptions};
use crate::transform::rebatch::Batch;
use crate::transform::recompute::Recompute;
use crate::transform::route::{ChainChoice, Form, Granularity, Init, Normalize, Rule, Scope, Sources};

/// Why words do not name a run of a pass.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum WordError {
    #[error("there is no pass or pipeline `{0}`")]
    Pass(String),
    #[error("there is no option `{0}`")]
    Option(String),
    #[error(transparent)]
    Run(#[from] PassError),
}

/// Runs one pass, or a whole pipeline, named by the first word; the others are its options.
///
/// # Errors
/// When there is no such pass or option, or the pass fails.
pub fn run_words(words: &str, g: &mut Graph, cx: &mut Cx, manager: &mut PassManager) -> Result<(), WordError> {
    let mut words = words.split_whitespace();
    let name = words.next().unwrap_or_default();
    words.try_for_each(|w| cx.set(g, w).ok_or_else(|| WordError::Option(w.into())))?;
    let pipeline = PIPELINES.iter().find(|(n, _)| *n == name).map(|(_, passes)| *passes);
    let single = || passes().into_iter().find(|p| p.name == name).map(std::slice::from_ref);
    let passes = pipeline.or_else(single).ok_or_else(|| WordError::Pass(name.into()))?;
    Ok(manager.run(passes, g, cx)?)
}

impl Cx {
    /// Sets an option. Those of the router are names alone, others are `name=value`. `None`: there is no such option.
    fn set(&mut self, g: &Graph, word: &str) -> Option<()> {
        let (route, training) = (&mut self.route, &mut self.training);
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let names = || value.split(',').map(str::to_string).collect::<Vec<_>>();
        match key {
            "augment" => route.form = Form::Augment,
            "input" => route.form = Form::Input,
            "block" => route.granularity = Granularity::Block,
            "network" => route.scope = Scope::Network,
            "softmax" => route.rule = Rule::Softmax,
            "free" => route.rule = Rule::Free,
            "constant" => route.rule = Rule::Constant,
            "attention" => route.rule = Rule::Attention,
            "deltas" => route.sources = Sources::Deltas,
            "dilation" => route.sparsity.dilation = value.parse().ok()?,
            "period" => route.sparsity.period = value.parse().ok()?,
            "summaries" => route.sparsity.summaries = value.parse().ok()?,
            "outgoing" => route.normalize = Normalize::Outgoing,
            "identity" => route.init = Init::Identity,
            "tau" => route.tau = value.parse().ok()?,
            "chains" => route.chains = ChainChoice::Ids(names().iter().map(|n| n.parse().ok()).collect::<Option<_>>()?),
            "rank" => self.adapters = Some(AdapterOptions::of(value.parse().ok()?)),
            "alpha" => self.adapters.as_mut()?.alpha = value.parse().ok()?,
            "on" => self.adapters.as_mut()?.on = names(),
            "adapters-only" => training.trainable.adapters_only = true,
            "loss" => training.loss = LossOptions::of(LossKind::of_name(value)?),
            "output" => training.output = Some(value.into()),
            "optimizer" => {
                use OptimizerKind::*;
                training.optimizer = OptimizerOptions::of([AdamW, Adam, Sgd, None].into_iter().find(|k| k.name() == value)?);
            }
            "trainable" => training.trainable.also = names(),
            "frozen" => training.trainable.frozen = names(),
            "head-only" => training.trainable.head_only = true,
            "qat" => training.qat = if value == "scales" { Qat::Scales } else { Qat::Weights },
            "frozen-bn" => training.frozen_bn = true,
            "batch" if value == "dynamic" => training.batch = Some(Batch::Dynamic),
            "batch" => training.batch = Some(Batch::Fixed(value.parse().ok()?)),
            "fix" => {
                let pair = |p: &str| p.split_once(':').and_then(|(name, n)| Some((name.to_string(), n.parse().ok()?)));
                training.fixed = value.split(',').map(pair).collect::<Option<_>>()?;
            }
            "opset" => {
                training.opset = Some(value.parse().ok()?);
                self.opset = training.opset;
            }
            "target" => training.target = Target::of_name(value)?,
            "precision" => training.precision = Precision::of_name(value)?,
            "recompute" => {
                let mut o = Recompute::every(value.split(',').next()?.parse().ok()?);
                o.chains = vec![names().split_off(1)];
                training.recompute = Some(o);
            }
            "seed" => training.seed = value.parse().ok()?,
            "of" => self.of = Some(value.into()),
            "ct" => self.cotangents = names().into_iter().map(|name| (name, Seed::Input)).collect(),
            "sum" => self.cotangents = names().into_iter().map(|name| (name, Seed::Ones)).collect(),
            "wrt" => self.choice = Choice::Named(names()),
            // Values that a training graph would hold as state. An evaluation graph does not ask for their kinds.
            "state" => {
                let shape = |name: &str| g.tensor_type(g.find(name)?)?.known_dims();
                let record = |name: &String| Some(StateRecord::new(name, StateKind::Parameter, shape(name)?));
                self.choice = Choice::State(names().iter().map(record).collect::<Option<_>>()?);
            }
            _ => return Option::None,
        }
        Some(())
    }
}
