//! Losses, appended as plain operators: one, or a weighted sum of several on one or more outputs.
//!
//! | a loss reads | its target |
//! |---|---|
//! | labels of classes (cross-entropy, next-token, focal, dice) | `labels`, int64, the output's shape without the classes |
//! | sequences of labels (ctc) | `labels`, int64 [N, S], with `input_lengths` and `target_lengths` |
//! | numbers (mse, l1, huber, smooth-l1, bce, kl, binary-focal, binary-dice) | `target`, float, the output's shape |
//! | a teacher (distill…), or nothing (own) | none |
//!
//! Losses on one output that read the same kind of target share it. Where there are several targets, each is called after its output:
//! `OUTPUT.labels`, `OUTPUT.target`.

mod classes;
mod ctc;
mod elements;
mod reduce;
mod squash;
pub mod teacher;

use super::class_axis::class_axis;
use super::master::is_half;
use crate::ir::words;
use crate::ir::{Attrs, DType, Dim, Graph, Kind, Op, Tensor, TensorType, ValueId, is_absurd};
use crate::onnx::read_value_info;
use crate::ops::build::{BuildError, Builder};
use crate::refusal::Hint;
use reduce::Counting;
use squash::logits_of;
pub use squash::{Squash, Squashed, squashed};
use std::collections::{HashSet, VecDeque};
use teacher::Teacher;

words! {
    /// Which loss.
    LossKind {
        /// Softmax cross-entropy with int64 class labels.
        CrossEntropy = "cross-entropy",
        /// Softmax cross-entropy of each position's logits with the next position's token.
        NextToken = "next-token",
        /// Mean squared error.
        Mse = "mse",
        /// Mean absolute error.
        L1 = "l1",
        /// Huber: quadratic below `delta`, linear above.
        Huber = "huber",
        /// Huber divided by `delta`, as PyTorch's `smooth_l1_loss`.
        SmoothL1 = "smooth-l1",
        /// Binary cross-entropy on logits.
        Bce = "bce",
        /// Kullback-Leibler divergence of the softmax from a distribution.
        Kl = "kl",
        /// Focal: the cross-entropy, times (1 − p)^γ of the label's probability.
        Focal = "focal",
        /// Focal on independent logits.
        BinaryFocal = "binary-focal",
        /// Soft Dice over classes, of the softmax and labels.
        Dice = "dice",
        /// Soft Dice of the sigmoid and targets of 0 to 1.
        BinaryDice = "binary-dice",
        /// Connectionist temporal classification: sequences of labels without their places.
        Ctc = "ctc",
        /// Kullback-Leibler divergence of the softmax from a teacher's.
        Distill = "distill",
        /// The same of independent logits.
        DistillBce = "distill-bce",
        /// Mean squared difference from a teacher's output.
        DistillMse = "distill-mse",
        /// A scalar output of the model, which computes its loss itself.
        Own = "own",
    }
}

impl LossKind {
    /// Are its targets class indices (int64), not floats?
    pub fn takes_labels(self) -> bool {
        self.weights_classes() || self == LossKind::Ctc
    }

    /// Has each position a label, whose class may have a weight?
    pub fn weights_classes(self) -> bool {
        matches!(self, LossKind::CrossEntropy | LossKind::NextToken | LossKind::Focal | LossKind::Dice)
    }

    /// Does it read a softmax over classes?
    pub fn has_classes(self) -> bool {
        self.takes_labels() || matches!(self, LossKind::Kl | LossKind::Distill)
    }

    /// Does it read independent logits, whose probabilities are their sigmoids?
    pub fn is_binary(self) -> bool {
        matches!(self, LossKind::Bce | LossKind::BinaryFocal | LossKind::BinaryDice | LossKind::DistillBce)
    }

    /// Does it compare with a teacher?
    pub fn has_teacher(self) -> bool {
        matches!(self, LossKind::Distill | LossKind::DistillBce | LossKind::DistillMse)
    }

    /// Does it read a target that is fed?
    pub fn has_target(self) -> bool {
        !self.has_teacher() && self != LossKind::Own
    }
}

/// Weights of classes.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ClassWeights {
    /// All are one.
    #[default]
    Even,
    /// These, one a class.
    Given(Vec<f64>),
    /// An input of the graph, `class_weights`: what is fed follows the training data.
    Fed,
}

/// A loss and its options.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LossOptions {
    /// Which loss.
    pub kind: LossKind,
    /// The output it reads; the training graph's own choice when absent.
    pub output: Option<String>,
    /// Its factor in a sum of several.
    pub weight: f64,
    /// Sum instead of mean.
    pub sum: bool,
    /// Label smoothing ε of the cross-entropies.
    pub smoothing: f64,
    /// The label of positions that do not count.
    pub ignore_index: Option<i64>,
    /// Huber's threshold.
    pub huber_delta: f64,
    /// Name of the target input; `labels` or `target` when absent.
    pub labels: Option<String>,
    /// Axis of the classes, counted from the end where negative; by evidence when absent.
    pub class_axis: Option<i64>,
    /// Weights of the classes, where targets are labels.
    pub class_weights: ClassWeights,
    /// The focal losses' γ.
    pub gamma: f64,
    /// What Dice adds above and below.
    pub dice_smooth: f64,
    /// Name of an input that weights positions.
    pub mask: Option<String>,
    /// Temperature of a distillation.
    pub temperature: f64,
    /// The class of CTC that stands for no label.
    pub blank: i64,
}

impl LossOptions {
    /// The mean of a loss over everything.
    pub fn of(kind: LossKind) -> LossOptions {
        LossOptions {
            kind,
            output: None,
            weight: 1.0,
            sum: false,
            smoothing: 0.0,
            ignore_index: None,
            huber_delta: 1.0,
            labels: None,
            class_axis: None,
            class_weights: ClassWeights::Even,
            gamma: 2.0,
            dice_smooth: 1.0,
            mask: None,
            temperature: 1.0,
            blank: 0,
        }
    }
}

/// A loss that was built.
#[derive(Clone, Debug)]
pub struct Loss {
    /// The scalar, before its weight.
    pub value: ValueId,
    /// The same in the type that it is computed in: float64 for an output in that type.
    exact: ValueId,
    /// What it is, as far as the output decides.
    pub kind: LossKind,
    /// The output that it reads.
    pub output: ValueId,
    /// The target input, if it reads one.
    pub target: Option<ValueId>,
    /// Axis of the classes in the output, where it has classes.
    pub class_axis: Option<usize>,
    /// The input that weights positions.
    pub mask: Option<ValueId>,
    /// The input of the classes' weights.
    pub class_weights: Option<ValueId>,
    /// The inputs of CTC's numbers of frames and of labels.
    pub lengths: Option<[ValueId; 2]>,
}

/// The losses of a graph.
#[derive(Clone, Debug)]
pub struct Losses {
    /// Their weighted sum, the scalar `loss`.
    pub value: ValueId,
    /// Each by itself.
    pub terms: Vec<Loss>,
    /// Values through which no gradient goes.
    pub constant: Vec<ValueId>,
}

/// The reason a loss does not fit an output, or cannot be chosen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum LossError {
    #[error("{0}")]
    Unfit(String),
    #[error("{0}")]
    WhichOutput(String),
    #[error("{0}")]
    WhichLoss(String),
    #[error("{0}")]
    WhichAxis(String),
    #[error("{0}")]
    OpenExtent(String),
    #[error(transparent)]
    Build(#[from] BuildError),
}

impl LossError {
    /// What a person may do.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            LossError::WhichOutput(_) => Some(Hint::ChooseOutput),
            LossError::WhichLoss(_) => Some(Hint::ChooseLoss),
            LossError::WhichAxis(_) => Some(Hint::ChooseClassAxis),
            LossError::OpenExtent(_) => Some(Hint::FixInput),
            _ => None,
        }
    }
}

/// The output a loss reads: the named one, or the only float one.
///
/// # Errors
/// When the choice is not clear; the message lists the outputs.
pub fn loss_output(g: &Graph, wanted: Option<&str>) -> Result<ValueId, LossError> {
    let all = g.outputs().iter().map(|o| format!("`{}` {}", g.name(o.value), g.value(o.value).ty));
    let listed = all.collect::<Vec<_>>().join(", ");
    if let Some(name) = wanted {
        let found = g.outputs().iter().find(|o| g.name(o.value) == name);
        return found
            .map(|o| o.value)
            .ok_or_else(|| LossError::Unfit(format!("the model has no output `{name}`; it has {listed}")));
    }
    let floats: Vec<ValueId> = g.outputs().iter().map(|o| o.value).filter(|v| g.is_float(*v)).collect();
    match floats.as_slice() {
        [one] => Ok(*one),
        [] => {
            // Where floats end, a cut leaves a float output.
            let cut = |o: &crate::ir::Output| {
                g.reads(o.value.node).find(|v| g.is_float(*v) && g.op(v.node).is_some()).map(|v| (o.value.node, v))
            };
            let cut = g.outputs().iter().find_map(cut).filter(|(id, _)| g.op(*id).is_some());
            let cut = cut
                .map(|(id, v)| format!("; {} has no derivative: cut the model before it, at `{}`", g.site(id), g.name(v)));
            Err(LossError::Unfit(format!(
                "the model has no float output to train on; it has {listed}{}",
                cut.unwrap_or_default()
            )))
        }
        _ => Err(LossError::WhichOutput(format!("the model has several float outputs: {listed}"))),
    }
}

/// What a loss reads of an output, before anything is built.
struct Plan {
    output: ValueId,
    kind: LossKind,
    axis: Option<usize>,
    target: Option<TensorType>,
    /// Type of what weights positions.
    positions: TensorType,
    /// CTC: does time come before the samples?
    time_first: bool,
}

/// Appends a loss on a model output; adds the target input. A trailing softmax or sigmoid is taken into the loss.
///
/// # Errors
/// When the output's type does not fit the loss.
pub fn append_loss(g: &mut Graph, output: ValueId, o: &LossOptions) -> Result<Losses, LossError> {
    append_losses(g, &[(output, o)], None)
}

/// Appends losses on model outputs and their weighted sum; adds the target inputs. A trailing softmax or sigmoid is taken into the
/// loss. A loss of several of which nothing counts (all labels ignored) is zero in the sum.
///
/// # Errors
/// When an output's type does not fit its loss, or a distillation has no teacher.
pub fn append_losses(
    g: &mut Graph,
    wanted: &[(ValueId, &LossOptions)],
    teacher: Option<&Teacher>,
) -> Result<Losses, LossError> {
    let plans = wanted.iter().map(|(output, o)| plan(g, *output, o)).collect::<Result<Vec<_>, _>>()?;
    let several = plans.len() > 1;
    let mut targets: Vec<Input> = Vec::new();
    let mut masks: Vec<Input> = Vec::new();
    for (p, (_, o)) in plans.iter().zip(wanted) {
        if let Some(ty) = &p.target {
            let name = o.labels.clone().unwrap_or_else(|| if p.kind.takes_labels() { "labels" } else { "target" }.into());
            Input::want(&mut targets, p.output, ty, name, o.labels.is_some());
        }
        if let Some(name) = &o.mask {
            Input::want(&mut masks, p.output, &p.positions, name.clone(), false);
        }
    }
    let mut teachers = match teacher {
        Some(teacher) => teacher::append(g, teacher, &plans.iter().map(|p| p.output).collect::<Vec<_>>())?,
        None => teacher::Appended::default(),
    };
    let mut class_weights: Option<ValueId> = None;
    let mut balanced: Option<ValueId> = None;
    let mut constant = std::mem::take(&mut teachers.constant);
    let mut terms = Vec::new();
    for (p, (_, o)) in plans.iter().zip(wanted) {
        if p.kind == LossKind::Own {
            terms.push(own_loss(g, p.output, o, several)?);
            continue;
        }
        let logits = logits_of(g, p.output, p.kind, p.axis)?;
        let target = p.target.as_ref().map(|ty| Input::add(&mut targets, g, p.output, ty));
        let mask = o.mask.as_ref().map(|name| Input::mask(&mut masks, g, p, target, name)).transpose()?;
        let against = match p.kind.has_teacher() {
            false => target,
            true => {
                let of = teachers.outputs.get(&p.output).copied().ok_or_else(|| no_teacher(g, p))?;
                let logits = logits_of(g, of, p.kind, p.axis)?;
                // The operand of a softmax or sigmoid that is taken away lies before the teacher's own stop.
                let ty = g.value(logits).ty.clone();
                let stop = g.add_op("loss/teacher", Op::new("Identity", Attrs::new()), &[Some(logits)]);
                let stopped = g.push_result(stop, "loss/teacher", ty);
                constant.push(stopped);
                Some(stopped)
            }
        };
        if o.class_weights == ClassWeights::Fed && p.kind.weights_classes() && balanced.is_some_and(|of| of != p.output) {
            let name = g.name(p.output);
            return Err(LossError::Unfit(format!(
                "output `{name}`: weights that balance classes are counted for one output only; give each loss its own numbers"
            )));
        }
        if o.class_weights == ClassWeights::Fed && p.kind.weights_classes() && class_weights.is_none() {
            let classes = p.axis.and_then(|axis| g.tensor_type(p.output)?.shape.get(axis).cloned());
            let ty = TensorType::new(DType::F32, classes.into_iter().collect::<Vec<_>>());
            let name = if g.is_free("class_weights") { "class_weights" } else { "ancre.class_weights" };
            class_weights = Some(g.add_input(name, ty.into(), None));
            balanced = Some(p.output);
        }
        let mut lengths = None;
        let (name, kind) = (g.name(p.output).to_string(), p.kind.name());
        let mut b = Builder::new(g, &if several { format!("loss/{name}/{kind}") } else { "loss".into() });
        let counting = Counting {
            sum: o.sum,
            mask,
            classes: weights_of_classes(&mut b, p, o, class_weights)?,
            of_none: if several { 0.0 } else { f64::NAN },
        };
        let value = match (p.kind, against) {
            (LossKind::Ctc, Some(labels)) => {
                let [frames, counts] =
                    ["input_lengths", "target_lengths"].map(|name| add_lengths(b.graph, p, name, several));
                lengths = Some([frames, counts]);
                let logits = if p.time_first { b.transpose(logits, &[1, 0, 2])? } else { logits };
                ctc::ctc(&mut b, logits, &ctc::Sequences { labels, frames, counts }, o, &counting, &mut constant)?
            }
            (kind, Some(labels)) if kind.takes_labels() => {
                classes::of_labels(&mut b, logits, labels, p.axis.unwrap_or(1), kind, o, &counting)?
            }
            (LossKind::Kl | LossKind::Distill, Some(other)) => {
                let shown = if p.kind == LossKind::Kl { None } else { Some(o.temperature) };
                classes::divergence(&mut b, logits, other, p.axis.unwrap_or(1), shown, &counting)?
            }
            (_, Some(other)) => elements::of_numbers(&mut b, logits, other, p.kind, o, &counting)?,
            (_, None) => return Err(no_teacher(b.graph, p)),
        };
        let exact = value;
        let value = b.cast(exact, DType::F32)?;
        let fed = class_weights.filter(|_| o.class_weights == ClassWeights::Fed && p.kind.weights_classes());
        if several || o.weight != 1.0 {
            let wanted = format!("{name}.{kind}");
            let free = if b.graph.is_free(&wanted) { wanted } else { format!("ancre.{wanted}") };
            b.graph.rename(value, &free);
        }
        terms.push(Loss {
            value,
            exact,
            kind: p.kind,
            output: p.output,
            target,
            class_axis: p.axis,
            mask,
            class_weights: fed,
            lengths,
        });
    }
    let value = weighted_sum(g, &terms, wanted)?;
    Ok(Losses { value, terms, constant })
}

fn no_teacher(g: &Graph, p: &Plan) -> LossError {
    let name = g.name(p.output);
    LossError::Unfit(format!("output `{name}`: the loss {} needs a teacher, and there is none", p.kind.name()))
}

/// The scalar `loss`: a single term of weight one is it itself.
fn weighted_sum(g: &mut Graph, terms: &[Loss], wanted: &[(ValueId, &LossOptions)]) -> Result<ValueId, LossError> {
    let free = if g.is_free("loss") { "loss" } else { "ancre.loss" };
    let mut b = Builder::new(g, "loss");
    let mut parts = Vec::new();
    let double = terms.len() > 1 && terms.iter().any(|t| b.graph.value(t.exact).ty.dtype == Some(DType::F64));
    for (t, (_, o)) in terms.iter().zip(wanted).filter(|(_, (_, o))| o.weight != 0.0) {
        let part = if double { b.cast(t.exact, DType::F64)? } else { t.value };
        parts.push(b.scale(part, o.weight)?);
    }
    if parts.is_empty() {
        return Err(LossError::Unfit("every loss has the weight 0, so that there is nothing to train for".into()));
    }
    let mut value = b.sum(&parts)?;
    value = b.cast(value, DType::F32)?;
    if (terms.len() > 1 && terms.iter().any(|t| t.value == value)) || terms.iter().any(|t| t.output == value) {
        // What it is a copy of keeps its own name.
        value = b.op("Identity", &[value])?;
    }
    if b.graph.name(value) != "loss" || terms.len() > 1 {
        b.graph.rename(value, free);
    }
    Ok(value)
}

/// Checks the output of a loss and tells its target. Nothing is built.
fn plan(g: &Graph, output: ValueId, o: &LossOptions) -> Result<Plan, LossError> {
    let name = g.name(output).to_string();
    let ty = g.tensor_type(output).ok_or_else(|| {
        LossError::Unfit(format!("output `{name}`: a loss needs a float tensor of known rank; {}", g.untyped(output)))
    })?;
    if !ty.dtype.is_float() {
        return Err(LossError::WhichOutput(format!("output `{name}` has type {ty}; a loss needs a float output")));
    }
    if is_absurd(&ty.shape) {
        return Err(LossError::Unfit(format!("output `{name}` has an absurd size, {ty}")));
    }
    let kind = fitting(g, output, &ty, o);
    let whole = Plan { output, kind, axis: None, target: None, positions: ty.clone(), time_first: false };
    if kind == LossKind::Own {
        if ty.rank() > 0 {
            return Err(LossError::Unfit(format!("output `{name}` is {ty}; a loss of the model's own is a scalar")));
        }
        return match &o.mask {
            Some(mask) => Err(LossError::Unfit(format!(
                "output `{name}` is a loss of the model's own, whose positions no mask `{mask}` can reach"
            ))),
            None => Ok(whole),
        };
    }
    let said = g.outputs().iter().find(|v| v.value == output).and_then(|v| read_value_info(v.info.as_deref()?)?.shape);
    if kind.has_classes()
        && let Some(said) = said.filter(|said| said.len() != ty.rank())
    {
        let why =
            format!("the file declares {} axes and its nodes give {ty}; a loss over classes must know them", said.len());
        return Err(LossError::Unfit(format!("output `{name}`: {why}")));
    }
    let axis =
        if kind.has_classes() && kind != LossKind::Ctc { Some(class_axis(g, output, kind, o.class_axis)?) } else { None };
    if let Some(axis) = axis.filter(|axis| ty.shape[*axis].known() == Some(1)) {
        let why = format!("has one class, on axis {axis}: its probability is always 1, and there is nothing to learn");
        let instead = match kind.has_teacher() {
            true => "--loss distill-mse compares numbers",
            false => "--loss bce is for one yes or no, --loss mse for one number",
        };
        return Err(LossError::Unfit(format!("output `{name}` {ty} {why}; {instead}")));
    }
    if kind == LossKind::Ctc {
        return sequences(g, &ty, whole, o.blank);
    }
    if kind == LossKind::NextToken && ty.rank() != 3 {
        let needs = format!("next-token needs token logits [N, T, V], it has type {ty}");
        return Err(LossError::Unfit(format!("output `{name}`: {needs}")));
    }
    let wide = if is_half(ty.dtype) { DType::F32 } else { ty.dtype };
    let without = |axis: usize| {
        let mut shape = ty.shape.clone();
        shape.remove(axis);
        shape
    };
    let target = match axis {
        Some(axis) if kind.takes_labels() => TensorType::new(DType::I64, without(axis)),
        _ => TensorType::new(wide, ty.shape.clone()),
    };
    // The features of numbers are no positions of their own: the last axis of three, the channels of images.
    let positions = match (axis, ty.rank()) {
        (Some(axis), _) => without(axis),
        (None, 0..=2) => ty.shape.clone(),
        (None, 3) => without(2),
        (None, _) => without(1),
    };
    let target = kind.has_target().then_some(target);
    Ok(Plan { axis, target, positions: TensorType::new(DType::F32, positions), ..whole })
}

/// The plan of a CTC loss: logits [N, T, C], or [T, N, C] where the inputs' first axis is the output's second.
fn sequences(g: &Graph, ty: &TensorType, whole: Plan, blank: i64) -> Result<Plan, LossError> {
    let name = g.name(whole.output);
    if ty.rank() != 3 {
        return Err(LossError::Unfit(format!("output `{name}`: ctc needs logits [N, T, C], it has type {ty}")));
    }
    if ty.shape[2].known().is_some_and(|classes| !(0..classes).contains(&blank)) {
        return Err(LossError::Unfit(format!("output `{name}` {ty}: ctc's blank, {blank}, is none of its classes")));
    }
    let first = g.required_inputs().find_map(|v| g.tensor_type(v)?.shape.first().cloned());
    let time_first = first.is_some_and(|n| n == ty.shape[1] && n != ty.shape[0]);
    let (samples, frames) = if time_first { (1, 0) } else { (0, 1) };
    if ty.shape[frames].known().is_none() {
        return Err(LossError::OpenExtent(format!(
            "output `{name}` {ty}: ctc is written out over the frames, whose number {} is open",
            ty.shape[frames]
        )));
    }
    let samples = ty.shape[samples].clone();
    let target = TensorType::new(DType::I64, vec![samples.clone(), Dim::symbol("target_length")]);
    let positions = TensorType::new(DType::F32, vec![samples]);
    Ok(Plan { axis: Some(2), target: Some(target), positions, time_first, ..whole })
}

/// An input of CTC's lengths, [N].
fn add_lengths(g: &mut Graph, p: &Plan, name: &str, several: bool) -> ValueId {
    let wanted = if several { format!("{}.{name}", g.name(p.output)) } else { name.to_string() };
    let name = if g.is_free(&wanted) { wanted } else { format!("ancre.{wanted}") };
    g.add_input(&name, TensorType::new(DType::I64, p.positions.shape.clone()).into(), None)
}

/// The form of a loss that fits the output: focal, Dice and distillation on independent logits where a sigmoid or a single channel tells
/// that they are.
fn fitting(g: &Graph, output: ValueId, ty: &TensorType, o: &LossOptions) -> LossKind {
    let binary = match o.kind {
        LossKind::Focal => LossKind::BinaryFocal,
        LossKind::Dice => LossKind::BinaryDice,
        LossKind::Distill => LossKind::DistillBce,
        kind => return kind,
    };
    let sigmoid = squashed(g, output).is_some_and(|s| s.squash == Squash::Sigmoid);
    let axis = o.class_axis.and_then(|a| ty.axis(a)).or((ty.rank() > 1).then_some(1));
    let single = o.kind != LossKind::Distill && axis.is_some_and(|a| ty.shape[a].is_one());
    if sigmoid || single { binary } else { o.kind }
}

/// An input that losses share.
struct Input {
    output: ValueId,
    ty: TensorType,
    name: String,
    /// Is the name the user's?
    named: bool,
    value: Option<ValueId>,
}

impl Input {
    fn want(all: &mut Vec<Input>, output: ValueId, ty: &TensorType, name: String, named: bool) {
        if !all.iter().any(|i| i.output == output && i.ty == *ty) {
            all.push(Input { output, ty: ty.clone(), name, named, value: None });
        }
    }

    /// Its value; it becomes an input of the graph the first time. A value of the model keeps its name.
    fn add(all: &mut [Input], g: &mut Graph, output: ValueId, ty: &TensorType) -> ValueId {
        let several = all.len() > 1;
        let made = all.iter().position(|i| i.output == output && i.ty == *ty);
        let Some(input) = made.map(|i| &mut all[i]) else { return output };
        if let Some(v) = input.value {
            return v;
        }
        let wanted = if several && !input.named { format!("{}.{}", g.name(output), input.name) } else { input.name.clone() };
        let name = if g.is_free(&wanted) { wanted } else { format!("ancre.{wanted}") };
        *input.value.insert(g.add_input(&name, ty.clone().into(), None))
    }

    /// What weights the positions of a loss: an input of the model that has the name, or a new one.
    fn mask(all: &mut [Input], g: &mut Graph, p: &Plan, target: Option<ValueId>, name: &str) -> Result<ValueId, LossError> {
        if p.target.is_some() && g.find(name).is_some_and(|v| Some(v) == target) {
            return Err(LossError::Unfit(format!(
                "output `{}`: `{name}` is its target; a mask needs another name",
                g.name(p.output)
            )));
        }
        let own = g.required_inputs().find(|v| g.name(*v) == name && !all.iter().any(|i| i.value == Some(*v)));
        let Some(own) = own else { return Ok(Input::add(all, g, p.output, &p.positions)) };
        let rank = g.tensor_type(own).map(|ty| ty.rank());
        if rank.is_none_or(|rank| rank > p.positions.rank()) {
            return Err(LossError::Unfit(format!(
                "input `{name}` {} cannot weight the positions {} of output `{}`",
                g.value(own).ty,
                p.positions,
                g.name(p.output)
            )));
        }
        Ok(own)
    }
}

/// The vector of the classes' weights, if there is one.
fn weights_of_classes(
    b: &mut Builder,
    p: &Plan,
    o: &LossOptions,
    fed: Option<ValueId>,
) -> Result<Option<ValueId>, LossError> {
    let Some(axis) = p.axis.filter(|_| p.kind.weights_classes()) else { return Ok(None) };
    let ty = b.ty(p.output)?;
    let wide = if ty.dtype == DType::F64 { DType::F64 } else { DType::F32 };
    match &o.class_weights {
        ClassWeights::Even => Ok(None),
        ClassWeights::Fed => fed.map(|v| b.cast(v, wide)).transpose().map_err(LossError::from),
        ClassWeights::Given(weights) => {
            let classes = &ty.shape[axis];
            if classes.known().is_some_and(|n| n != weights.len() as i64) {
                return Err(LossError::Unfit(format!(
                    "output `{}` has {classes} classes, and there are {} class weights",
                    b.graph.name(p.output),
                    weights.len()
                )));
            }
            Ok(Some(b.constant("loss/class_weights", Tensor::floats(wide, &[weights.len() as i64], weights))))
        }
    }
}

/// The loss that is the model's own output. Its target is the input that `--labels` names, else the one nearest to the loss.
fn own_loss(g: &mut Graph, output: ValueId, o: &LossOptions, several: bool) -> Result<Loss, LossError> {
    let name = g.name(output).to_string();
    let target = match &o.labels {
        Some(wanted) => g.required_inputs().find(|v| g.name(*v) == wanted.as_str()),
        None => nearest_input(g, output),
    };
    let what = || {
        format!(
            "output `{name}` is computed from no input{}",
            o.labels.iter().map(|l| format!(" `{l}`")).collect::<String>()
        )
    };
    let target = target.ok_or_else(|| LossError::Unfit(what()))?;
    let mut b = Builder::new(g, "loss");
    let mut value = b.cast(output, DType::F32)?;
    if !several && (name != "loss" || value != output) {
        // The output stays what it is; the training graph's loss has a name of its own.
        value = if value == output { b.op("Identity", &[output])? } else { value };
    }
    Ok(Loss {
        value,
        exact: value,
        kind: LossKind::Own,
        output,
        target: Some(target),
        class_axis: None,
        mask: None,
        class_weights: None,
        lengths: None,
    })
}

/// The input that a value is computed from in the fewest steps.
fn nearest_input(g: &Graph, v: ValueId) -> Option<ValueId> {
    let (mut queue, mut seen) = (VecDeque::from([v]), HashSet::from([v.node]));
    while let Some(v) = queue.pop_front() {
        if matches!(g.node(v.node).kind, Kind::Input(_)) {
            return Some(v);
        }
        queue.extend(g.reads(v.node).filter(|v| seen.insert(v.node)));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(last: &str) -> (Graph, ValueId) {
        let mut g = Graph::default();
        let ty = TensorType::fixed(DType::F32, &[2, 3]);
        let x = g.add_input("x", ty.clone().into(), None);
        let w = g.add_initializer("w", Tensor::f32s(&[3, 3], &[1.0; 9]), false);
        let n = g.add_op("", Op::new("MatMul", Attrs::new()), &[Some(x), Some(w)]);
        let h = g.push_result(n, "logits", ty.clone().into());
        let n = g.add_op("", Op::new(last, Attrs::new()), &[Some(h)]);
        let y = g.push_result(n, "y", ty.into());
        g.add_output(y, None);
        (g, y)
    }

    #[test]
    fn the_loss_reads_what_comes_before_a_softmax_or_sigmoid() {
        for (last, kind, reads) in [
            ("Softmax", LossKind::CrossEntropy, "logits"),
            ("LogSoftmax", LossKind::CrossEntropy, "logits"),
            ("Sigmoid", LossKind::Bce, "logits"),
            ("Softmax", LossKind::Mse, "y"),
            ("Tanh", LossKind::CrossEntropy, "y"),
        ] {
            let (mut g, y) = network(last);
            let found = logits_of(&mut g, y, kind, kind.takes_labels().then_some(1)).unwrap();
            assert_eq!(g.name(found), reads, "{last} {kind:?}");
        }
    }

    /// The file declares one axis of what is a sigmoid of a matrix, and ONNX Runtime believes it.
    #[test]
    fn speechmos_output_of_another_declared_rank_gets_no_cross_entropy() {
        use onnx_protobuf::{TensorShapeProto, TypeProto, ValueInfoProto, type_proto};
        let (mut g, y) = network("Tanh");
        let shape = TensorShapeProto { dim: vec![Default::default()], ..Default::default() };
        let tensor = type_proto::Tensor { elem_type: 1, shape: Some(shape).into(), ..Default::default() };
        let ty = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() };
        let info = ValueInfoProto { name: "declared".into(), type_: Some(ty).into(), ..Default::default() };
        let n = g.add_op("", Op::new("Identity", Attrs::new()), &[Some(y)]);
        let declared = g.push_result(n, "declared", TensorType::fixed(DType::F32, &[2, 3]).into());
        g.add_output(declared, Some(std::sync::Arc::new(info)));
        let e = append_loss(&mut g, declared, &LossOptions::of(LossKind::CrossEntropy)).err().unwrap().to_string();
        assert!(e.contains("declares 1 axes"), "{e}");
        assert!(append_loss(&mut g, declared, &LossOptions::of(LossKind::Mse)).is_ok());
        assert!(append_loss(&mut g, y, &LossOptions::of(LossKind::CrossEntropy)).is_ok());
    }

    #[test]
    fn cross_entropy_over_one_class_is_refused() {
        let mut g = crate::text::parse("net (float[n, 1] x) => (float[n, 1] y) { y = Tanh (x) }").unwrap();
        let y = g.outputs()[0].value;
        let e = append_loss(&mut g, y, &LossOptions::of(LossKind::CrossEntropy)).err().unwrap().to_string();
        assert!(e.contains("has one class, on axis 1") && e.contains("--loss bce"), "{e}");
        assert!(append_loss(&mut g, y, &LossOptions::of(LossKind::Bce)).is_ok());
    }

    /// The softmax of the teacher's output is taken away, and what it read is the teacher's still.
    #[test]
    fn a_teacher_behind_a_softmax_gets_no_gradient() {
        let source = "net (float[2, 3] x) => (float[2, 3] y, float[2, 3] aux) <float[3, 3] v = {1, 2, 3, 4, 5, 6, 7, 8, 9}, float[3, 3] w = {1, 0, 2, 0, 1, 0, 3, 0, 1}>
            { a = MatMul (x, v) y = Softmax (a) b = MatMul (x, w) aux = Softmax (b) }";
        let mut g = crate::text::parse(source).unwrap();
        let (y, [v, w]) = (g.outputs()[0].value, ["v", "w"].map(|n| g.find(n).unwrap()));
        let teacher = Teacher::Output("aux".into());
        let o = LossOptions { temperature: 2.0, ..LossOptions::of(LossKind::Distill) };
        let losses = append_losses(&mut g, &[(y, &o)], Some(&teacher)).unwrap();
        let wrt = [v, w];
        let target = &crate::target::CPU;
        let all = super::super::differentiate::differentiate_past(&mut g, target, losses.value, &wrt, &losses.constant);
        let all = all.unwrap();
        assert!(all.contains_key(&v) && !all.contains_key(&w));
    }

    #[test]
    fn float64_logits_have_a_loss_that_ignores_labels() {
        let source = "net (double[2, 3] x) => (double[2, 3] y) { y = Tanh (x) }";
        let mut g = crate::text::parse(source).unwrap();
        let y = g.outputs()[0].value;
        let o = LossOptions { ignore_index: Some(-100), ..LossOptions::of(LossKind::CrossEntropy) };
        append_loss(&mut g, y, &o).unwrap();
        crate::verify::verify(&g, crate::verify::Stage::Open).unwrap();
    }

    #[test]
    fn a_loss_that_does_not_belong_to_the_squash_is_refused() {
        for (last, kind) in [("Softmax", LossKind::Bce), ("Sigmoid", LossKind::CrossEntropy)] {
            let (mut g, y) = network(last);
            assert!(logits_of(&mut g, y, kind, kind.takes_labels().then_some(1)).is_err(), "{last} {kind:?}");
        }
    }
}
