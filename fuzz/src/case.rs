//! A case: a file, and how it is to be rewritten.

use ancre_passes::ir::Rule;
use ancre_passes::onnx::NEWEST_OPSET;
use ancre_passes::pipeline::training::TrainingOptions;
use ancre_passes::random::Random;
use ancre_passes::target::{CPU, CPU_BLOCKS, CUDA, WASM};
use ancre_passes::transform::loss::{ClassWeights, LossKind, LossOptions};
use ancre_passes::transform::optimizer::{OptimizerKind, OptimizerOptions};
use ancre_passes::transform::route::{Form, Granularity, Init, Normalize, RouteOptions, Scope, Sources};
use std::io;
use std::path::Path;

/// A model file and the number that its options are drawn from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    /// The file.
    pub bytes: Vec<u8>,
    /// 0: the tool's defaults with the mean squared error; else each option is drawn.
    pub options: u32,
}

impl Case {
    /// Reads a case. Options stand in the file's name, before its suffix: `what.7.onnx`.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(path: &Path) -> io::Result<Case> {
        let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
        let options = stem.rsplit_once('.').and_then(|(_, n)| n.parse().ok()).unwrap_or(0);
        Ok(Case { bytes: std::fs::read(path)?, options })
    }

    /// The name of its file.
    pub fn file_name(&self, what: &str) -> String {
        format!("{what}.{}.onnx", self.options)
    }

    /// Its options.
    pub fn plan(&self) -> Plan {
        Plan::of(self.options)
    }
}

/// How a case is rewritten.
pub struct Plan {
    /// The router.
    pub route: RouteOptions,
    /// The training graph.
    pub training: TrainingOptions,
    /// Operator set of the forward graph, if it is to be another.
    pub opset: Option<i64>,
    /// Print the reports of `inspect`.
    pub reports: bool,
}

fn one_in(r: &mut Random, n: u64) -> bool {
    r.below(n) == 0
}

impl Plan {
    fn of(options: u32) -> Plan {
        let (mut route, mut training) = (RouteOptions::default(), TrainingOptions::default());
        if options == 0 {
            return Plan { route, training, opset: None, reports: true };
        }
        let r = &mut Random::new(options.into(), "options");
        let opset = 7 + r.below(NEWEST_OPSET as u64 - 6) as i64;
        route.form = [Form::Reassign, Form::Augment, Form::Input][r.below(3) as usize];
        route.granularity = [Granularity::Add, Granularity::Block, Granularity::Adds(2)][r.below(3) as usize];
        if one_in(r, 3) {
            route.scope = Scope::Network;
        }
        // Options that mean nothing together are refused, which is a result too.
        route.rule = [Rule::Gated, Rule::Softmax, Rule::Free, Rule::Constant, Rule::Attention][r.below(5) as usize];
        if one_in(r, 4) {
            route.sources = Sources::Deltas;
        }
        if one_in(r, 2) {
            let mut every = || 1 + r.below(3) as usize;
            route.sparsity.summaries = every();
            if route.rule == Rule::Free {
                (route.sparsity.dilation, route.sparsity.period) = (every(), every());
            }
        }
        if one_in(r, 4) {
            route.normalize = Normalize::Outgoing;
        }
        route.init = [Init::Uniform, Init::Identity, Init::NearIdentity(0.1)][r.below(3) as usize].clone();
        use LossKind::*;
        training.loss = LossOptions::of(
            [Mse, CrossEntropy, NextToken, L1, Huber, Bce, SmoothL1, Kl, Focal, BinaryFocal, Dice, Ctc]
                [r.below(12) as usize],
        );
        training.loss.sum = one_in(r, 4);
        if one_in(r, 4) {
            training.loss.mask = Some("mask".into());
            training.loss.class_weights = ClassWeights::Fed;
        }
        if one_in(r, 4) {
            training.more = vec![LossOptions::of([Mse, CrossEntropy, Dice][r.below(3) as usize])];
        }
        use OptimizerKind::{Adam, AdamW, Sgd};
        training.optimizer = OptimizerOptions::of([Sgd, Adam, AdamW, OptimizerKind::None][r.below(4) as usize]);
        if one_in(r, 4) {
            training.optimizer.clip_norm = Some(1.0);
            training.optimizer.accumulate = 2;
        }
        training.trainable.head_only = one_in(r, 8);
        training.grad_outputs = one_in(r, 4);
        training.target = [&CPU, &CPU_BLOCKS, &CUDA, &WASM][r.below(4) as usize];
        Plan { route, training, opset: one_in(r, 4).then_some(opset), reports: one_in(r, 4) }
    }
}
