//! The files of a training graph: the graph, its evaluation graph, its state.

use crate::engine::Tensors;
use crate::error::{Failure, sentence};
use crate::io::arrays::stored;
use crate::io::tensor::NpTensor;
use crate::rewrite::batch::{self, BatchFacts, dim_json};
use crate::rewrite::config::{RewriteConfig, TrainingRequest};
use ancre_passes::analysis::quantised::find_quantised;
use ancre_passes::analysis::stored::stored_weights;
use ancre_passes::contract::{AdaptersRecord, LossRecord, Record, StateFrom, States};
use ancre_passes::ir::{Graph, Rule};
use ancre_passes::pipeline::split::Halves;
use ancre_passes::pipeline::training::Training;
use ancre_passes::pipeline::{Debugging, PassError, PassManager};
use ancre_passes::placement;
use ancre_passes::transform::initial_state::{FirstValue, init_graph, require_state};
use ancre_passes::transform::loss::LossKind;
use ancre_passes::transform::narrow::Precision;
use ancre_passes::transform::rebatch::{self, Batch, Current};
use ancre_passes::transform::route::Init;
use serde_json::{Value, json};
use std::collections::HashMap;

/// The training graph, what goes with it, and what is reported about it.
pub struct TrainingFiles {
    /// The training graph.
    pub training: Training,
    /// The same in two, where that is what is written.
    pub(crate) halves: Option<Halves>,
    /// Forward and loss only.
    pub(crate) evaluation: Option<Graph>,
    /// The model with its state as inputs.
    pub(crate) inference: Option<Graph>,
    pub(crate) first: FirstState,
    /// Was the loss chosen by evidence in the model?
    pub(crate) auto: bool,
    pub(crate) optimizer: &'static str,
    /// Batch extent of the inputs, a number or a symbol.
    pub(crate) batch: Value,
    /// How the training graph came to another batch than the forward graph's, if it did.
    pub(crate) rebuilt: Option<BatchFacts>,
    /// Nodes without a CUDA kernel.
    pub(crate) fallbacks: Vec<placement::Fallback>,
}

impl TrainingFiles {
    /// The losses, in order.
    pub(crate) fn losses(&self) -> Vec<LossRecord> {
        self.training.cx.record().map(|first| first.all()).unwrap_or_default()
    }
}

/// Where the first state lies.
pub enum FirstState {
    /// In the graphs, as defaults.
    Inline,
    /// In a graph that gives it.
    Init(Box<Graph>),
    /// In a .safetensors file.
    Separate(Vec<u8>),
}

/// The training graph, or the reason why there is none; the reason is an error only if a training graph was asked for. Fails
/// when training was asked for and there can be no training graph.
pub fn build(
    config: &RewriteConfig,
    mut routed: Graph,
    any_batch: &dyn Fn(&mut Vec<String>) -> Option<BatchFacts>,
    manager: &mut PassManager,
    notices: &mut Vec<String>,
) -> Result<Result<TrainingFiles, String>, Failure> {
    let Some(asked) = &config.training else { return Ok(Err("not asked for".into())) };
    notices.extend(batch::fix_defaults(&mut routed, "the training graph"));
    notices.extend(batch::fix_baked(&mut routed, "the training graph"));
    let quantised = find_quantised(&routed);
    let routes = !routed.routers.is_empty();
    let attempt = || -> Result<Result<TrainingFiles, String>, Failure> {
        match quantised {
            // Adapters leave a quantised base as it is.
            Some(_) if AdaptersRecord::is_in(&routed) => {}
            Some(node) if !asked.is_quantisation_aware() => {
                let site = routed.site(node);
                return Ok(Err(format!(
                    "the model is quantised ({site}): --qat trains it as it is, with gradients straight through rounding; or train the float model and quantise the result"
                )));
            }
            None if asked.is_quantisation_aware() && stored_weights(&routed).is_empty() => {
                return Ok(Err("--qat trains a model that is quantised, and this one is not; quantise it first, with ranges from some of its data (onnxruntime.quantization.quantize_static with quant_format=QuantFormat.QDQ in Python)".into()));
            }
            _ => {}
        }
        let mut o = match asked.options(&routed, None) {
            Ok(o) => o,
            Err(why) => return Ok(Err(other_obstacle(&routed, asked).unwrap_or(why))),
        };
        let rebuilt = any_batch(notices);
        o.batch = rebuilt.as_ref().map(|_| Batch::Dynamic);
        let for_evaluation = asked.evaluation.then(|| routed.clone());
        let for_inference = asked.inference.then(|| routed.clone());
        let reason = |e: PassError| match e {
            PassError::Stopped(_) => Err(Failure::from(e)),
            e => Ok(sentence(&e, e.hint())),
        };
        let mut training = match manager.training_graph(routed, &o) {
            Ok(t) => t,
            Err(e) => return reason(e).map(Err),
        };
        let mut halves = manager.halves(&training).map_err(|e| Failure::from(e).at(&config.model))?;
        let mut evaluation = None;
        if let Some(g) = for_evaluation {
            match manager.evaluation_graph(g, &training.cx.states, &o) {
                Ok(g) => evaluation = Some(g),
                Err(e) => return reason(e).map(|why| Err(format!("no evaluation graph: {why}"))),
            }
        }
        let mut inference = None;
        if let Some(g) = for_inference {
            match manager.inference_graph(g, &training.cx.states, &o) {
                Ok(g) => inference = Some(g),
                Err(e) => return reason(e).map(|why| Err(format!("no inference graph: {why}"))),
            }
        }
        if training.cx.widened > 0 {
            notices.push(format!(
                "{} operators of the training graph have no bfloat16 kernel and compute in float32, between casts",
                training.cx.widened
            ));
        }
        if let Some(n) = &training.cx.narrowed {
            let dtype = o.precision.name();
            notices.push(match n.left.first() {
                Some(first) => format!(
                    "--precision {dtype}: {} products are narrow; {} convolutions ({first}, for one) stay float32, as they take bfloat16 from --opset 22 on, at which other operators lose their CUDA kernels; --precision fp16 has no such gap",
                    n.products,
                    n.left.len()
                ),
                None => format!("--precision {dtype}: {} products and convolutions are narrow", n.products),
            });
            if o.precision == Precision::Brain && config.target.name != "cuda" {
                notices.push("the CPU has no bfloat16 products: here they compute in float32 on operands and results rounded to bfloat16; --target cuda writes them as they are".into());
            }
        }
        if training.cx.recomputed.as_ref().is_some_and(|r| r.blocks == 0) {
            notices.push(
                "--recompute has no effect: there is no residual block whose inside the backward pass reads".to_string(),
            );
        }
        let first = match asked.state {
            StateFrom::Inline => FirstState::Inline,
            from => {
                let others = evaluation.iter_mut().chain(&mut inference).chain(halves.iter_mut().flat_map(Halves::graphs));
                let first = require_state(&mut training.graph, others, &training.cx.states, from);
                first_state(from, &training.graph, &first).map_err(Failure::input)?
            }
        };
        if training.cx.masters > 0 {
            notices.push(format!(
                "the model is of half precision: it computes in its own type, and {} tensors train as float32 master copies",
                training.cx.masters
            ));
        }
        if training.cx.still > 0 && o.bn_momentum.is_none() {
            notices.push(format!(
                "{} batch normalisations have momentum 1, with which running statistics never move, as an exporter of 2019 wrote it; they train with 0.9 (--bn-momentum X: another)",
                training.cx.still
            ));
        }
        let fallbacks = placement::cuda_fallbacks(&training.graph);
        let batch = rebatch::current(&training.graph).map_or(Value::Null, |c| match c {
            Current::Fixed(n) => json!(n),
            Current::Dynamic(d) => dim_json(&d),
        });
        let (auto, optimizer) = (asked.is_auto(), o.optimizer.kind.name());
        Ok(Ok(TrainingFiles { training, halves, evaluation, inference, first, auto, optimizer, batch, rebuilt, fallbacks }))
    };
    let built = attempt()?;
    if let Err(why) = &built {
        if asked.required {
            return Err(Failure::input(format!("no training graph: {why}")).at(&config.model));
        }
        notices.push(format!("no training graph: {why}"));
    }
    if let Ok(TrainingFiles { training, .. }) = &built
        && routes
        && config.route.init == Init::Identity
        && config.route.rule == Rule::Softmax
        && training.cx.trainable.iter().any(|n| n.ends_with(".logits"))
        && !training.cx.trainable.iter().any(|n| n.ends_with(".gate"))
    {
        notices.push(
            "at --init identity the softmax's gradient is exactly zero: the topology cannot learn; use --init near-identity or --parametrization gated"
                .into(),
        );
    }
    Ok(built)
}

/// What would still be in the way if the user chose a loss.
fn other_obstacle(routed: &Graph, asked: &TrainingRequest) -> Option<String> {
    if !asked.is_auto() {
        return None;
    }
    let instead = asked.options(routed, Some(LossKind::Mse)).ok()?;
    let debugging = Debugging { stop_after: Some("differentiate".into()), ..Debugging::default() };
    match PassManager::new(debugging, &|_| ()).training_graph(routed.clone(), &instead) {
        // Another loss may fit where this one does not.
        Ok(_) | Err(PassError::Stopped(_) | PassError::Loss(_)) => None,
        Err(e) => Some(sentence(&e, e.hint())),
    }
}

/// What gives a training graph the state that it asks for.
fn first_state(from: StateFrom, training: &Graph, first: &[FirstValue]) -> Result<FirstState, String> {
    if from == StateFrom::Init {
        return Ok(FirstState::Init(Box::new(init_graph(training, first).map_err(|e| e.to_string())?)));
    }
    let tensors: Result<Tensors, String> = first.iter().map(|f| Ok((f.name.clone(), NpTensor::first(f)?))).collect();
    let tensors = tensors?;
    let stored = stored(&tensors).map_err(|e| format!("--state separate: {e}"))?;
    // JavaScript sessions show no metadata of models.
    let about = training.metadata.get(States::KEY).map(|text| HashMap::from([(States::KEY.to_string(), text.clone())]));
    safetensors::serialize(stored, about).map(FirstState::Separate).map_err(|e| e.to_string())
}
