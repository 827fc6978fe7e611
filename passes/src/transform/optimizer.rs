//! Optimisers, appended as plain operators: one step from gradients to the next state. Meaning and defaults are PyTorch's.

use super::dropout;
use super::glob;
use super::in_place::Waits;
use super::loss_scale::LossScale;
use super::update::{Pack, Scalars, packs};
use crate::contract::StateKind;
use crate::ir::words;
use crate::ir::{DType, Dim, Graph, TensorType, ValueId};
use crate::ops::build::{BuildError, Builder, Built};
use crate::target::Target;

words! {
    /// Which optimiser.
    OptimizerKind {
        /// Adam with decoupled weight decay.
        AdamW = "adamw",
        /// Adam; weight decay is added to the gradient.
        Adam = "adam",
        /// Stochastic gradient descent with momentum.
        Sgd = "sgd",
        /// No update: loss, outputs and gradients only.
        None = "none",
    }
}

/// An optimiser and its numbers.
#[derive(Clone, Debug)]
#[non_exhaustive]
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
    /// Tensors with a rate and a decay of their own; the first that matches counts.
    pub groups: Vec<ParameterGroup>,
}

/// Tensors with a rate and a decay of their own.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterGroup {
    /// A pattern of their names.
    pub pattern: String,
    /// Learning rate, relative to what it would be.
    pub lr_scale: f64,
    /// Weight decay; `None`: what it would be.
    pub decay: Option<f64>,
}

impl OptimizerKind {
    /// Is it one of Adam's?
    pub(crate) fn is_adam(self) -> bool {
        matches!(self, OptimizerKind::Adam | OptimizerKind::AdamW)
    }
}

impl OptimizerOptions {
    /// An optimiser with PyTorch's defaults.
    pub fn of(kind: OptimizerKind) -> OptimizerOptions {
        OptimizerOptions {
            kind,
            momentum: 0.0,
            nesterov: false,
            weight_decay: None,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            clip_norm: None,
            accumulate: 1,
            router_lr_scale: 1.0,
            groups: Vec::new(),
        }
    }

    /// The group of a tensor.
    pub fn group_of(&self, name: &str) -> Option<usize> {
        self.groups.iter().position(|g| glob(&g.pattern, name))
    }

    /// Weight decay of the weights.
    pub(crate) fn decay(&self) -> f64 {
        self.weight_decay.unwrap_or(if self.kind == OptimizerKind::AdamW { 0.01 } else { 0.0 })
    }
}

/// One state tensor of a training graph.
#[derive(Clone, Debug)]
pub struct StateTensor {
    /// The state as the graph reads it. Its type has the full shape, though the default in the file may be a broadcastable zero.
    pub value: ValueId,
    /// Its next value, if the step changes it.
    pub next: Option<ValueId>,
    /// What it is.
    pub kind: StateKind,
}

/// A tensor with its gradient.
pub struct Trained {
    /// The parameter.
    pub value: ValueId,
    /// Its gradient.
    pub gradient: ValueId,
    /// Parameter, logits or gate.
    pub kind: StateKind,
}

/// What the optimiser added.
pub struct Update {
    /// Global norm of all gradients before clipping.
    pub grad_norm: ValueId,
    /// All state it keeps, trained tensors included.
    pub states: Vec<StateTensor>,
}

/// Appends the update of all trained tensors, whose gradients follow the loss.
///
/// # Errors
/// When a node cannot be built; a fault of this tool.
pub fn append_optimizer(
    g: &mut Graph,
    loss: ValueId,
    trained: &[Trained],
    o: &OptimizerOptions,
    scale: Option<&LossScale>,
    target: &'static Target,
) -> Result<Update, BuildError> {
    let mut b = Builder::on(g, "optimizer", target);
    let mut packs = packs(&mut b, trained, o)?;
    // Where all updates wait for the norm, all squares would stay until then.
    let waits_for_norm = o.clip_norm.is_some() || scale.is_some();
    let squares = squares(&mut b, &mut packs, o.kind.is_adam() && !waits_for_norm)?;
    let grad_norm = norm(&mut b, &squares)?;
    if o.kind == OptimizerKind::None {
        let kept = |t: &Trained| StateTensor { value: t.value, next: None, kind: t.kind };
        let mut states: Vec<StateTensor> = trained.iter().map(kept).collect();
        if let Some(step) = dropout::counter(b.graph) {
            // Dropout masks follow the counter.
            states.push(counter(&mut b, step)?.0);
        }
        if let Some(scale) = scale {
            scale.judge(&mut b, grad_norm, None, &mut states)?;
        }
        return Ok(Update { grad_norm, states });
    }
    let mut states = Vec::new();
    let lr_name = if b.graph.is_free("lr") { "lr" } else { "ancre.lr" };
    let lr = b.graph.add_input(lr_name, TensorType::fixed(DType::F32, &[]).into(), None);
    let step = dropout::step(b.graph);
    let (state, next) = counter(&mut b, step)?;
    states.push(state);
    let skipped = scale.map(|s| s.skipped);
    let mut s = scalars(&mut b, lr, next, skipped, o, DType::F32)?;
    let double = packs.iter().any(|p| is_double(&b, p));
    let mut in_double = if double { Some(scalars(&mut b, lr, next, skipped, o, DType::F64)?) } else { None };

    if let Some(boundary) = s.boundary {
        for pack in &mut packs {
            pack.accumulate(&mut b, o.accumulate, boundary, &mut states)?;
        }
    }
    b.prefix = "optimizer".into();
    let norm = match s.boundary.filter(|_| waits_for_norm) {
        Some(_) => {
            let squares = self::squares(&mut b, &mut packs, false)?;
            norm(&mut b, &squares)?
        }
        None => grad_norm,
    };
    if let Some(scale) = scale {
        let counts = scale.judge(&mut b, norm, s.boundary, &mut states)?;
        s.boundary = Some(counts);
        in_double.iter_mut().for_each(|s| s.boundary = Some(counts));
        b.prefix = "optimizer".into();
    }
    if let Some(limit) = o.clip_norm {
        // PyTorch: limit / (norm + 1e-6), at most 1.
        let safe = b.shift(norm, 1e-6)?;
        let ratio = b.from_number_div(limit, safe)?;
        let one = b.scalar(DType::F32, 1.0);
        let factor = b.op("Min", &[ratio, one])?;
        for pack in &mut packs {
            let dtype = b.ty(pack.gradient)?.dtype;
            let factor = b.cast(factor, dtype)?;
            pack.gradient = b.mul(pack.gradient, factor)?;
        }
    }
    // ONNX Runtime goes from outputs to what they need, the last output's node first. The gradients that come last are therefore
    // used first in the file. Otherwise the update that needs the whole backward pass would have all of it computed, and kept,
    // before the first weight's gradient.
    let gradients: Vec<(ValueId, Vec<ValueId>)> = packs.iter().map(|p| (p.gradient, p.gradients())).collect();
    let waits = Waits::of(b.graph, loss, &gradients);
    let mut kept: Vec<Vec<StateTensor>> = packs.iter().map(|_| Vec::new()).collect();
    for i in waits.latest_first() {
        // The gradient's square comes with its update, or every gradient would wait until the norm is computed. The update also waits
        // for a gradient behind all nodes that read the weight, so that a loop may overwrite the weight. Under clipping and under a loss
        // scale all updates wait for each other anyway.
        let mut first = Vec::new();
        if !waits_for_norm {
            first.push(squares[i]);
            let behind = packs[i].large().map(|w| waits.behind_readers(b.graph, w)).unwrap_or_default();
            first.extend(behind.into_iter().filter(|j| *j != i).map(|j| squares[j]));
        }
        let s = in_double.as_ref().filter(|_| is_double(&b, &packs[i])).unwrap_or(&s);
        packs[i].update(&mut b, s, &first, o, &mut kept[i])?;
    }
    states.extend(kept.into_iter().flatten());
    Ok(Update { grad_norm, states })
}

/// The counter of micro-batches and its next value.
fn counter(b: &mut Builder, step: ValueId) -> Result<(StateTensor, ValueId), BuildError> {
    let one = b.int(1);
    let next = b.add(step, one)?;
    Ok((StateTensor { value: step, next: Some(next), kind: StateKind::Counter }, next))
}

fn is_double(b: &Builder, pack: &Pack) -> bool {
    b.graph.value(pack.gradient).ty.dtype == Some(DType::F64)
}

/// Σ g² of every pack's gradient; with `keep` its update has g² too.
fn squares(b: &mut Builder, packs: &mut [Pack], keep: bool) -> Result<Vec<ValueId>, BuildError> {
    let sum = |p: &mut Pack| {
        let square = p.square(b, keep)?;
        sum(b, square)
    };
    packs.iter_mut().map(sum).collect()
}

/// The sum of all elements in float32, of a large tensor row by row: one running sum over millions of elements loses the last of them.
/// ONNX Runtime's `ReduceSumSquare` along rows takes longer than a product and `ReduceSum`.
fn sum(b: &mut Builder, values: ValueId) -> Built {
    const LARGE: i64 = 1 << 14;
    let n: i64 = b.ty(values)?.known_dims().map_or(0, |dims| dims.iter().product());
    let width = n.isqrt();
    let width = (1..=width).rev().find(|k| n % k == 0).filter(|k| n > LARGE && *k >= 16);
    let Some(width) = width else {
        let sum = b.reduce_all("ReduceSum", values)?;
        return b.cast(sum, DType::F32);
    };
    let rows = b.reshape(values, &[-1, width], &[Dim::from(n / width), Dim::from(width)])?;
    let each = b.reduce("ReduceSum", rows, &[1], false)?;
    let sum = b.reduce_all("ReduceSum", each)?;
    b.cast(sum, DType::F32)
}

fn norm(b: &mut Builder, squares: &[ValueId]) -> Built {
    let sum = if squares.is_empty() { b.scalar(DType::F32, 0.0) } else { b.sum(squares)? };
    b.sqrt(sum)
}

/// What updates in an element type share.
fn scalars(
    b: &mut Builder,
    lr: ValueId,
    next_step: ValueId,
    skipped: Option<ValueId>,
    o: &OptimizerOptions,
    dtype: DType,
) -> Result<Scalars, BuildError> {
    let decay = o.decay();
    let lr = b.cast(lr, dtype)?;
    let (mut size, mut router_size) = (lr, b.scale(lr, o.router_lr_scale)?);
    let (mut boundary, mut keep, mut inverse_root) = (None, None, None);
    if o.accumulate > 1 {
        let n = b.int(o.accumulate as i64);
        let rest = b.op("Mod", &[next_step, n])?;
        let zero = b.int(0);
        boundary = Some(b.op("Equal", &[rest, zero])?);
    }
    if o.kind == OptimizerKind::AdamW && decay != 0.0 {
        let shrink = b.scale(lr, decay)?;
        keep = Some(b.from_number_sub(1.0, shrink)?);
    }
    if o.kind.is_adam() {
        // 1 − 0.999^t would lose five digits in float32; 2 T / (1 + T) with T = tanh(−t ln β / 2) is the same and loses none.
        let wide = if b.target.float64 { DType::F64 } else { DType::F32 };
        let t = if o.accumulate > 1 {
            let n = b.int(o.accumulate as i64);
            b.div(next_step, n)?
        } else {
            next_step
        };
        // A skipped update does not count.
        let t = match skipped {
            Some(skipped) => b.sub(t, skipped)?,
            None => t,
        };
        let mut t = b.cast(t, wide)?;
        if o.accumulate > 1 {
            // Before the first boundary t would be 0 and the correction 0/0; the result is not used then.
            let one = b.scalar(wide, 1.0);
            t = b.op("Max", &[t, one])?;
        }
        let correction = |b: &mut Builder, beta: f64| -> Built {
            if wide == DType::F32 {
                let exponent = b.scale(t, -beta.ln() / 2.0)?;
                let tanh = b.op("Tanh", &[exponent])?;
                let (twice, divisor) = (b.scale(tanh, 2.0)?, b.shift(tanh, 1.0)?);
                return b.div(twice, divisor);
            }
            let base = b.scalar(DType::F64, beta);
            let power = b.op("Pow", &[base, t])?;
            b.from_number_sub(1.0, power)
        };
        let (c1, c2) = (correction(b, o.beta1)?, correction(b, o.beta2)?);
        let root = b.sqrt(c2)?;
        let inverse = b.from_number_div(1.0, root)?;
        inverse_root = Some(b.cast(inverse, dtype)?);
        let wide_lr = b.cast(lr, wide)?;
        size = b.div(wide_lr, c1)?;
        size = b.cast(size, dtype)?;
        router_size = b.scale(size, o.router_lr_scale)?;
    }
    Ok(Scalars { lr, size, router_size, inverse_root, keep, boundary })
}

/// Gives moments and accumulators symbolic dimensions in their declaration.
pub fn declare_moments(g: &mut Graph, states: &[StateTensor]) {
    for s in states.iter().filter(|s| matches!(s.kind, StateKind::Moment | StateKind::Accumulator)) {
        let (name, mut ty) = (g.name(s.value).to_string(), g.value(s.value).ty.clone());
        let dims = ty.shape.iter_mut().flatten().enumerate();
        dims.for_each(|(i, d)| *d = Dim::symbol(&format!("{name}.d{i}")));
        g.set_type(s.value, ty);
    }
}
