//! The files of a training graph: the graph, its evaluation graph, its state.

use crate::engine::Tensors;
use crate::error::{Failure, sentence};
use crate::io::arrays::stored;
use crate::io::tensor::NpTensor;
use crate::rewrite::batch::{self, BatchFacts, dim_json};
use crate::rewrite::config::{RewriteConfig, TrainingRequest};
use ancre_passes::analysis::quantised::find_quantised;
use ancre_passes::contract::StateRecord;
use ancre_passes::ir::{DType, Graph, Rule, TensorType};
use ancre_passes::pipeline::training::Training;
use ancre_passes::pipeline::{Debugging, PassError, PassManager};
use ancre_passes::placement;
use ancre_passes::transform::loss::LossKind;
use ancre_passes::transform::rebatch::{self, Batch, Current};
use ancre_passes::transform::route::Init;
use serde_json::{Value, json};

/// The training graph, what goes with it, and what is reported about it.
pub struct TrainingFiles {
    /// The training graph.
    pub training: Training,
    /// Forward and loss only.
    pub(crate) evaluation: Option<Graph>,
    /// The state as a .safetensors file, when the graphs hold no defaults for it.
    pub(crate) state: Option<Vec<u8>>,
    pub(crate) loss: &'static str,
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
    let quantised = find_quantised(&routed);
    let routes = !routed.routers.is_empty();
    let attempt = || -> Result<Result<TrainingFiles, String>, Failure> {
        if let Some(node) = quantised {
            let site = routed.site(node);
            return Ok(Err(format!(
                "the model is quantised ({site}); it can be inspected and routed, not trained: train the float model and quantise the result"
            )));
        }
        let mut o = match asked.choose_loss(&routed) {
            Ok(loss) => asked.options(loss),
            Err(why) => return Ok(Err(other_obstacle(&routed, asked).unwrap_or(why))),
        };
        let rebuilt = any_batch(notices);
        o.batch = rebuilt.as_ref().map(|_| Batch::Dynamic);
        let for_evaluation = asked.evaluation.then(|| routed.clone());
        let reason = |e: PassError| match e {
            PassError::Stopped(_) => Err(Failure::from(e)),
            e => Ok(sentence(&e, e.hint())),
        };
        let mut training = match manager.training_graph(routed, &o) {
            Ok(t) => t,
            Err(e) => return reason(e).map(Err),
        };
        let mut evaluation = None;
        if let Some(g) = for_evaluation {
            match manager.evaluation_graph(g, &training.cx.states, &o) {
                Ok(g) => evaluation = Some(g),
                Err(e) => return reason(e).map(|why| Err(format!("no evaluation graph: {why}"))),
            }
        }
        if training.cx.widened > 0 {
            notices.push(format!(
                "{} operators of the training graph have no bfloat16 kernel and compute in float32, between casts",
                training.cx.widened
            ));
        }
        let state = if asked.separate_state {
            let state = separate_state(&mut training.graph, &training.cx.states).map_err(Failure::input)?;
            if let Some(g) = &mut evaluation {
                separate_state(g, &training.cx.states).map_err(Failure::input)?;
            }
            Some(state)
        } else {
            None
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
        let (loss, auto, optimizer) = (o.loss.kind.name(), asked.loss.is_none(), o.optimizer.kind.name());
        Ok(Ok(TrainingFiles { training, evaluation, state, loss, auto, optimizer, batch, rebuilt, fallbacks }))
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
    if asked.loss.is_some() {
        return None;
    }
    let debugging = Debugging { stop_after: Some("differentiate".into()), ..Debugging::default() };
    match PassManager::new(debugging, &|_| ()).training_graph(routed.clone(), &asked.options(LossKind::Mse)) {
        // Another loss may fit where this one does not.
        Ok(_) | Err(PassError::Stopped(_) | PassError::Loss(_)) => None,
        Err(e) => Some(sentence(&e, e.hint())),
    }
}

/// Takes the state's defaults out of a graph, whose state inputs must then be fed. Returns them as a .safetensors file, in which
/// moments are zeros in full.
fn separate_state(g: &mut Graph, states: &[StateRecord]) -> Result<Vec<u8>, String> {
    let mut tensors = Tensors::new();
    for s in states {
        let Some(v) = g.find(&s.input).filter(|v| g.initializer(*v).is_some()) else { continue };
        let dtype = g.value(v).ty.dtype.unwrap_or(DType::F32);
        let Some(tensor) = g.require_input(v, TensorType::fixed(dtype, &s.shape).into()) else { continue };
        let shape: Vec<usize> = s.shape.iter().map(|d| *d as usize).collect();
        // In the graph a moment is one broadcastable zero.
        let whole = tensor.len() == shape.iter().product::<usize>();
        let state = if whole { Some(NpTensor::from_constant(&tensor)?) } else { NpTensor::zeros(dtype, &shape) };
        tensors.extend(state.map(|t| (s.input.clone(), t)));
    }
    let stored = stored(&tensors).map_err(|e| format!("--state separate: {e}"))?;
    safetensors::serialize(stored, None).map_err(|e| e.to_string())
}
