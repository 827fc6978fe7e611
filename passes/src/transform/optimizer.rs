//! Optimisers, appended as plain operators: one step from gradients to the next state. Semantics and defaults are PyTorch's.

use super::dropout;
use crate::ir::build::{BuildError, Builder, Built};
use crate::ir::{DType, Dim, Graph, Tensor, TensorType, ValueId};
use serde::{Deserialize, Serialize};

/// Which optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptimizerKind {
    /// Adam with decoupled weight decay.
    AdamW,
    /// Adam; weight decay is added to the gradient.
    Adam,
    /// Stochastic gradient descent with momentum.
    Sgd,
    /// No update: loss, outputs and gradients only.
    None,
}

impl OptimizerKind {
    /// The command line's name.
    pub fn name(self) -> &'static str {
        match self {
            OptimizerKind::AdamW => "adamw",
            OptimizerKind::Adam => "adam",
            OptimizerKind::Sgd => "sgd",
            OptimizerKind::None => "none",
        }
    }
}

/// An optimiser and its numbers.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct OptimizerOptions {
    pub kind: OptimizerKind,
    pub momentum: f64,
    pub nesterov: bool,
    /// `None`: PyTorch's default (0.01 for AdamW, 0 otherwise).
    pub weight_decay: Option<f64>,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    /// Largest global gradient norm.
    pub clip_norm: Option<f64>,
    /// Micro-batches per update.
    pub accumulate: u32,
    /// Learning rate of logits and gates, relative to the weights'.
    pub router_lr_scale: f64,
}

/// What a state tensor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum StateKind {
    Parameter,
    Logits,
    Gate,
    Moment,
    Statistic,
    Accumulator,
    Counter,
}

/// One state tensor of a training graph: `input` is fed, `output` comes back as its next value.
#[derive(Clone, Debug)]
pub struct StateTensor {
    /// The state as the graph reads it.
    pub value: ValueId,
    /// Its next value, if the step changes it.
    pub next: Option<ValueId>,
    /// What it is.
    pub kind: StateKind,
    /// Is it trained?
    pub trainable: bool,
    /// Its full shape (the default in the file may be a broadcastable zero).
    pub shape: Vec<i64>,
}

/// A tensor with its gradient.
pub struct Trained {
    /// The parameter.
    pub value: ValueId,
    /// Its gradient.
    pub gradient: ValueId,
    /// Parameter, logits or gate: the latter two are the router's group.
    pub kind: StateKind,
}

/// What the optimiser added.
pub struct Update {
    /// Global norm of all gradients before clipping.
    pub grad_norm: ValueId,
    /// Learning rate input.
    pub lr: Option<ValueId>,
    /// All state it keeps, trained tensors included.
    pub states: Vec<StateTensor>,
}

/// Scalars that all updates share.
struct Scalars {
    lr: ValueId,
    router_lr: ValueId,
    /// lr / (1 − β1^t), and the router's.
    step: Option<(ValueId, ValueId)>,
    /// 1 / sqrt(1 − β2^t).
    inverse_root: Option<ValueId>,
    /// 1 − lr·λ of the weights.
    keep: Option<ValueId>,
    /// Is this micro-batch the last of its update?
    boundary: Option<ValueId>,
}

/// Appends the update of all trained tensors.
///
/// # Errors
/// When a node cannot be built; a fault of this tool.
pub fn append_optimizer(g: &mut Graph, trained: &[Trained], o: &OptimizerOptions) -> Result<Update, BuildError> {
    let mut b = Builder::new(g, "optimizer");
    let grad_norm = global_norm(&mut b, trained)?;
    if o.kind == OptimizerKind::None {
        let mut states: Vec<StateTensor> = trained
            .iter()
            .map(|t| StateTensor { value: t.value, next: None, kind: t.kind, trainable: true, shape: dims(&b, t.value) })
            .collect();
        if let Some(step) = b.graph.find(dropout::STEP) {
            // Dropout masks follow the counter.
            states.push(counter(&mut b, step)?.0);
        }
        return Ok(Update { grad_norm, lr: None, states });
    }
    let mut states = Vec::new();
    let lr_name = if b.graph.is_free("lr") { "lr" } else { "ancre.lr" };
    let lr = b.graph.add_input(lr_name, TensorType::fixed(DType::F32, &[]).into(), None);
    let step = dropout::step(b.graph);
    let (state, next) = counter(&mut b, step)?;
    states.push(state);
    let s = scalars(&mut b, lr, next, o)?;

    let mut gradients: Vec<ValueId> = Vec::new();
    for t in trained {
        let mut gradient = t.gradient;
        if s.boundary.is_some() {
            // The sum over micro-batches; its mean is what the update sees.
            let (total, state) =
                moment(&mut b, t.value, "accumulator", StateKind::Accumulator, |b, sum| b.add(sum, gradient))?;
            states.push(state);
            gradient = b.scale(total, 1.0 / o.accumulate as f64)?;
        }
        gradients.push(gradient);
    }
    if let Some(limit) = o.clip_norm {
        let norm = if s.boundary.is_some() {
            let squares = gradients.iter().map(|g| b.reduce_all("ReduceSumSquare", *g)).collect::<Result<Vec<_>, _>>()?;
            let sum = b.sum(&squares)?;
            b.sqrt(sum)?
        } else {
            grad_norm
        };
        // PyTorch: limit / (norm + 1e-6), at most 1.
        let safe = b.shift(norm, 1e-6)?;
        let ratio = b.from_number_div(limit, safe)?;
        let one = b.scalar(DType::F32, 1.0);
        let factor = b.op("Min", &[ratio, one])?;
        for g in &mut gradients {
            *g = b.mul(*g, factor)?;
        }
    }
    for (t, gradient) in trained.iter().zip(gradients) {
        update(&mut b, t, gradient, &s, o, &mut states)?;
    }
    if let Some(boundary) = s.boundary {
        hold_between_updates(&mut b, &mut states, boundary)?;
    }
    Ok(Update { grad_norm, lr: Some(lr), states })
}

/// The counter of micro-batches and its next value.
fn counter(b: &mut Builder, step: ValueId) -> Result<(StateTensor, ValueId), BuildError> {
    let one = b.int(1);
    let next = b.add(step, one)?;
    Ok((StateTensor { value: step, next: Some(next), kind: StateKind::Counter, trainable: false, shape: vec![] }, next))
}

fn dims(b: &Builder, v: ValueId) -> Vec<i64> {
    b.graph.tensor_type(v).and_then(|t| t.known_dims()).unwrap_or_default()
}

fn global_norm(b: &mut Builder, trained: &[Trained]) -> Built {
    let squares: Vec<ValueId> =
        trained.iter().map(|t| b.reduce_all("ReduceSumSquare", t.gradient)).collect::<Result<_, _>>()?;
    let sum = if squares.is_empty() { b.scalar(DType::F32, 0.0) } else { b.sum(&squares)? };
    b.sqrt(sum)
}

fn scalars(b: &mut Builder, lr: ValueId, next_step: ValueId, o: &OptimizerOptions) -> Result<Scalars, BuildError> {
    let decay = decay(o);
    let router_lr = b.scale(lr, o.router_lr_scale)?;
    let boundary = if o.accumulate > 1 {
        let n = b.int(o.accumulate as i64);
        let rest = b.op("Mod", &[next_step, n])?;
        let zero = b.int(0);
        Some(b.op("Equal", &[rest, zero])?)
    } else {
        None
    };
    let keep = if o.kind == OptimizerKind::AdamW && decay != 0.0 {
        let shrink = b.scale(lr, decay)?;
        Some(b.from_number_sub(1.0, shrink)?)
    } else {
        None
    };
    let (mut step, mut inverse_root) = (None, None);
    if matches!(o.kind, OptimizerKind::Adam | OptimizerKind::AdamW) {
        // In double: 1 − 0.999^t loses five digits in float.
        let t = if o.accumulate > 1 {
            let n = b.int(o.accumulate as i64);
            b.div(next_step, n)?
        } else {
            next_step
        };
        let mut t = b.cast(t, DType::F64)?;
        if o.accumulate > 1 {
            // Before the first boundary t would be 0 and the correction 0/0; the result is not used then.
            let one = b.scalar(DType::F64, 1.0);
            t = b.op("Max", &[t, one])?;
        }
        let correction = |b: &mut Builder, beta: f64| -> Built {
            let base = b.scalar(DType::F64, beta);
            let power = b.op("Pow", &[base, t])?;
            b.from_number_sub(1.0, power)
        };
        let (c1, c2) = (correction(b, o.beta1)?, correction(b, o.beta2)?);
        let root = b.sqrt(c2)?;
        let inverse = b.from_number_div(1.0, root)?;
        inverse_root = Some(b.cast(inverse, DType::F32)?);
        let lr64 = b.cast(lr, DType::F64)?;
        let size = b.div(lr64, c1)?;
        let size = b.cast(size, DType::F32)?;
        step = Some((size, b.scale(size, o.router_lr_scale)?));
    }
    Ok(Scalars { lr, router_lr, step, inverse_root, keep, boundary })
}

fn decay(o: &OptimizerOptions) -> f64 {
    o.weight_decay.unwrap_or(if o.kind == OptimizerKind::AdamW { 0.01 } else { 0.0 })
}

/// A state tensor of the parameter's shape that starts at zero. The default in the file is a single broadcastable zero; the
/// declared dimensions are symbolic so that the full tensor may be fed later.
fn moment(
    b: &mut Builder,
    of: ValueId,
    what: &str,
    kind: StateKind,
    next: impl FnOnce(&mut Builder, ValueId) -> Built,
) -> Result<(ValueId, StateTensor), BuildError> {
    let ty = b.ty(of)?;
    let name = format!("{}.{what}", b.graph.name(of));
    let ones = vec![1i64; ty.rank()];
    let v = b.graph.add_initializer(&name, Tensor::floats(ty.dtype, &ones, &[0.0]), true);
    // While the step is built the moment has the parameter's type; `declare_moments` then makes its dimensions symbolic.
    b.graph.set_type(v, ty.into());
    let next = next(b, v)?;
    let shape = dims(b, of);
    Ok((next, StateTensor { value: v, next: Some(next), kind, trainable: false, shape }))
}

/// Gives moments and accumulators symbolic dimensions in their declaration.
pub fn declare_moments(g: &mut Graph, states: &[StateTensor]) {
    for s in states {
        if matches!(s.kind, StateKind::Moment | StateKind::Accumulator) {
            let name = g.name(s.value).to_string();
            let shape: Vec<Dim> = (0..s.shape.len()).map(|i| Dim::symbol(&format!("{name}.d{i}"))).collect();
            let dtype = g.value(s.value).ty.dtype;
            g.set_type(s.value, crate::ir::ValueType { dtype, shape: Some(shape) });
        }
    }
}

fn update(
    b: &mut Builder,
    t: &Trained,
    gradient: ValueId,
    s: &Scalars,
    o: &OptimizerOptions,
    states: &mut Vec<StateTensor>,
) -> Result<(), BuildError> {
    b.prefix = format!("optimizer/{}", b.graph.name(t.value));
    let router = matches!(t.kind, StateKind::Logits | StateKind::Gate);
    let lr = if router { s.router_lr } else { s.lr };
    let lambda = if router { 0.0 } else { decay(o) };
    let w = t.value;
    let mut g = gradient;
    if lambda != 0.0 && o.kind != OptimizerKind::AdamW {
        let pull = b.scale(w, lambda)?;
        g = b.add(g, pull)?;
    }
    let next = if let (Some((step, router_step)), Some(inverse_root)) = (s.step, s.inverse_root) {
        let (m, m_state) = moment(b, w, "exp_avg", StateKind::Moment, |b, m| blend(b, m, g, o.beta1))?;
        let square = b.mul(g, g)?;
        let (v, v_state) = moment(b, w, "exp_avg_sq", StateKind::Moment, |b, v| blend(b, v, square, o.beta2))?;
        states.extend([m_state, v_state]);
        let root = b.sqrt(v)?;
        let root = b.mul(root, inverse_root)?;
        let below = b.shift(root, o.eps)?;
        let direction = b.div(m, below)?;
        let change = b.mul(direction, if router { router_step } else { step })?;
        let kept = match s.keep.filter(|_| lambda != 0.0) {
            Some(keep) => b.mul(w, keep)?,
            None => w,
        };
        b.sub(kept, change)?
    } else {
        let mut direction = g;
        if o.momentum != 0.0 {
            let (v, state) = moment(b, w, "momentum_buffer", StateKind::Moment, |b, v| {
                let kept = b.scale(v, o.momentum)?;
                b.add(kept, g)
            })?;
            states.push(state);
            direction = v;
            if o.nesterov {
                let ahead = b.scale(v, o.momentum)?;
                direction = b.add(g, ahead)?;
            }
        }
        let change = b.mul(direction, lr)?;
        b.sub(w, change)?
    };
    states.push(StateTensor { value: w, next: Some(next), kind: t.kind, trainable: true, shape: dims(b, w) });
    Ok(())
}

/// β·old + (1 − β)·new.
fn blend(b: &mut Builder, old: ValueId, new: ValueId, beta: f64) -> Built {
    let kept = b.scale(old, beta)?;
    let added = b.scale(new, 1.0 - beta)?;
    b.add(kept, added)
}

/// Between updates everything but the accumulators and the counter stays; at an update the accumulators start again.
fn hold_between_updates(b: &mut Builder, states: &mut [StateTensor], boundary: ValueId) -> Result<(), BuildError> {
    for s in states {
        let Some(next) = s.next else { continue };
        s.next = Some(match s.kind {
            StateKind::Counter | StateKind::Statistic => next,
            StateKind::Accumulator => {
                let dtype = b.ty(next)?.dtype;
                let zero = b.scalar(dtype, 0.0);
                b.select(boundary, zero, next)?
            }
            _ => b.select(boundary, next, s.value)?,
        });
    }
    Ok(())
}
