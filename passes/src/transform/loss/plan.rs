//! What a loss reads of an output: the form of the loss that fits, its classes and its target.

use super::squash::squashed;
use super::{LossError, LossKind, LossOptions, Squash};
use crate::ir::{DType, Dim, Graph, TensorType, ValueId, is_absurd};
use crate::onnx::read_value_info;
use crate::transform::class_axis::class_axis;
use crate::transform::master::is_half;

/// What a loss reads of an output, before anything is built.
pub(super) struct Plan {
    pub(super) output: ValueId,
    pub(super) kind: LossKind,
    pub(super) axis: Option<usize>,
    pub(super) target: Option<TensorType>,
    /// Type of what weights positions.
    pub(super) positions: TensorType,
    /// CTC: does time come before the samples?
    pub(super) time_first: bool,
}

/// Checks the output of a loss and tells its target. Nothing is built.
pub(super) fn plan(g: &Graph, output: ValueId, o: &LossOptions) -> Result<Plan, LossError> {
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
