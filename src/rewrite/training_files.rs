//! The files of a training graph: the graph, its evaluation graph, its state.

use crate::error::{Failure, sentence};
use crate::rewrite::batch::{BatchFacts, dim_json};
use crate::rewrite::config::RewriteConfig;
use ancre_passes::contract::StateRecord;
use ancre_passes::ir::{DType, Graph, Rule, TensorType};
use ancre_passes::pipeline::training::Training;
use ancre_passes::pipeline::{PassError, PassManager};
use ancre_passes::placement;
use ancre_passes::transform::rebatch::{self, Batch, Current};
use ancre_passes::transform::route::Init;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// What is reported about a training graph.
pub struct TrainingFacts {
    /// Loss by name.
    pub loss: &'static str,
    /// Was it chosen by evidence?
    pub auto: bool,
    /// Optimiser by name.
    pub optimizer: &'static str,
    /// Target input.
    pub target: String,
    /// Batch extent of the inputs, a number or a symbol.
    pub batch: Value,
    /// How the training graph came to another batch than the forward graph's, if it did.
    pub rebuilt: Option<BatchFacts>,
    /// Dropouts of the source, all active.
    pub dropouts: usize,
    /// Trained tensors.
    pub trainable: Vec<String>,
    /// Tensors that do not train, with the reason.
    pub frozen: Vec<(String, String)>,
    /// Nodes without a CUDA kernel: (node, operator, why).
    pub fallbacks: Vec<placement::Fallback>,
}

/// The training graph and what goes with it.
pub struct TrainingFiles {
    /// The training graph.
    pub training: Training,
    /// Forward and loss only.
    pub evaluation: Option<Graph>,
    /// The state as a .safetensors file, when the graphs hold no defaults for it.
    pub state: Option<Vec<u8>>,
    /// What is reported.
    pub facts: TrainingFacts,
}

/// The training graph, or the reason why there is none; the reason is an error only if a training graph was asked for.
///
/// # Errors
/// When training was asked for and there can be no training graph.
pub fn build(
    config: &RewriteConfig,
    routed: Graph,
    any_batch: &dyn Fn(&mut Vec<String>) -> Option<BatchFacts>,
    manager: &mut PassManager,
    notices: &mut Vec<String>,
) -> Result<Result<TrainingFiles, String>, Failure> {
    let Some(asked) = &config.training else { return Ok(Err("not asked for".into())) };
    let quantised = routed
        .nodes()
        .find(|n| routed.op(*n).is_some_and(|op| op.name.contains("QuantizeLinear") || op.name.starts_with("QLinear")));
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
            Err(why) => return Ok(Err(why)),
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
        let fallbacks = placement::cuda_fallbacks(&training.graph);
        let facts = TrainingFacts {
            loss: o.loss.kind.name(),
            auto: asked.loss.is_none(),
            optimizer: o.optimizer.kind.name(),
            target: training.cx.target.clone(),
            batch: rebatch::current(&training.graph).map_or(Value::Null, |c| match c {
                Current::Fixed(n) => json!(n),
                Current::Dynamic(d) => dim_json(&d),
            }),
            rebuilt,
            dropouts: training.cx.dropouts.len(),
            trainable: training.cx.trainable.clone(),
            frozen: training.cx.frozen.clone(),
            fallbacks,
        };
        Ok(Ok(TrainingFiles { training, evaluation, state, facts }))
    };
    let built = attempt()?;
    if let Err(why) = &built {
        if asked.required {
            return Err(Failure::input(format!("no training graph: {why}")).at(&config.model));
        }
        notices.push(format!("no training graph: {why}"));
    }
    if let Ok(TrainingFiles { facts, .. }) = &built
        && routes
        && config.route.init == Init::Identity
        && config.route.rule == Rule::Softmax
        && facts.trainable.iter().any(|n| n.ends_with(".logits"))
        && !facts.trainable.iter().any(|n| n.ends_with(".gate"))
    {
        notices.push(
            "at --init identity the softmax's gradient is exactly zero: the topology cannot learn; use --init near-identity or --parametrization gated"
                .into(),
        );
    }
    Ok(built)
}

/// Takes the state's defaults out of a graph, whose state inputs must then be fed; returns them as a .safetensors file, zero moments
/// in full.
fn separate_state(g: &mut Graph, states: &[StateRecord]) -> Result<Vec<u8>, String> {
    let mut tensors: Vec<(&str, Dtype, Vec<usize>, Vec<u8>)> = Vec::new();
    for s in states {
        let Some(v) = g.find(&s.input).filter(|v| g.initializer(*v).is_some()) else { continue };
        let dtype = g.value(v).ty.dtype.unwrap_or(DType::F32);
        let Some(tensor) = g.require_input(v, TensorType::fixed(dtype, &s.shape).into()) else { continue };
        let shape: Vec<usize> = s.shape.iter().map(|d| *d as usize).collect();
        let count: usize = shape.iter().product();
        let mut bytes = tensor.bytes().map_err(|e| format!("state `{}`: {e}", s.name))?.into_owned();
        if tensor.len() != count {
            // A broadcastable zero.
            bytes = vec![0; count * dtype.size().unwrap_or(4)];
        }
        let kind = match dtype {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::F16 => Dtype::F16,
            DType::BF16 => Dtype::BF16,
            DType::I64 => Dtype::I64,
            other => {
                return Err(format!("state `{}` has element type {other}, which --state separate cannot store", s.name));
            }
        };
        tensors.push((&s.input, kind, shape, bytes));
    }
    let views: Result<Vec<_>, _> = tensors
        .iter()
        .map(|(name, kind, shape, bytes)| Ok((*name, TensorView::new(*kind, shape.clone(), bytes)?)))
        .collect();
    let views = views.map_err(|e: safetensors::SafeTensorError| e.to_string())?;
    safetensors::serialize(views, None).map_err(|e| e.to_string())
}
