//! Losses, appended as plain operators.

use super::class_axis::class_axis;
use super::master::is_half;
use crate::ir::words;
use crate::ir::{Attrs, DType, Dim, Graph, Kind, NodeId, Op, TensorType, ValueId, ValueType, is_absurd};
use crate::onnx::read_value_info;
use crate::ops::build::{BuildError, Builder, Built};
use crate::ops::formula::formula;
use crate::ops::{Along, Class, Picked, axes_of, pick, weighted_mean};
use crate::refusal::Hint;
use std::collections::{HashSet, VecDeque};

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
        /// Binary cross-entropy on logits.
        Bce = "bce",
        /// A scalar output of the model, which computes its loss itself.
        Own = "own",
    }
}

impl LossKind {
    /// Are its targets class indices (int64), not floats?
    pub fn takes_labels(self) -> bool {
        matches!(self, LossKind::CrossEntropy | LossKind::NextToken)
    }
}

/// A loss and its options.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LossOptions {
    /// Which loss.
    pub kind: LossKind,
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
}

impl LossOptions {
    /// The mean of a loss over everything.
    pub fn of(kind: LossKind) -> LossOptions {
        LossOptions {
            kind,
            sum: false,
            smoothing: 0.0,
            ignore_index: None,
            huber_delta: 1.0,
            labels: None,
            class_axis: None,
        }
    }
}

/// A loss that was built.
pub struct Loss {
    /// The scalar.
    pub value: ValueId,
    /// The target input.
    pub target: ValueId,
    /// Axis of the classes in the output, where targets are labels.
    pub class_axis: Option<usize>,
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

/// How logits become the probabilities that the source hands out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Squash {
    /// `Softmax` or `LogSoftmax`, over this axis.
    Softmax(usize),
    /// `Sigmoid`.
    Sigmoid,
}

/// The softmax or sigmoid an output comes out of, perhaps through a change of type or shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Squashed {
    /// Which function. The axis of a softmax is counted in the output.
    pub squash: Squash,
    /// The logits before it.
    pub logits: ValueId,
    /// Nodes after it that change the shape, the last first.
    shapes: Vec<NodeId>,
}

/// The softmax or sigmoid an output comes out of, and the logits before it.
pub fn squashed(g: &Graph, output: ValueId) -> Option<Squashed> {
    let (mut v, mut shapes) = (output, Vec::new());
    loop {
        let op = g.op(v.node).filter(|op| op.domain.is_empty())?;
        match op.name.as_str() {
            "Identity" => {}
            "Cast" if g.is_float(v) => {}
            _ if Class::of(op) == Class::Layout => shapes.push(v.node),
            _ => break,
        }
        v = g.operand(v.node, 0).filter(|from| g.is_float(*from))?;
    }
    let op = g.op(v.node)?;
    let logits = g.operand(v.node, 0)?;
    if op.is("Sigmoid") {
        return Some(Squashed { squash: Squash::Sigmoid, logits, shapes });
    }
    if !op.is("Softmax") && !op.is("LogSoftmax") {
        return None;
    }
    let (axes, ty) = (axes_of(g, v.node)?, g.tensor_type(v)?);
    // Before opset 13 all axes from one on are normalised together.
    let mut over = (0..ty.rank()).filter(|a| axes.along(axes.result(0)[*a]) == Along::Whole);
    let axis = over.next()?;
    if over.any(|a| !ty.shape[a].is_one()) {
        return None;
    }
    let axis = shapes.iter().rev().try_fold(axis, |axis, node| axes_of(g, *node)?.forward(0, axis))?;
    Some(Squashed { squash: Squash::Softmax(axis), logits, shapes })
}

/// The value a loss reads for a model output: the logits before a trailing softmax or sigmoid that the loss itself contains, in the
/// output's shape.
fn logits_of(g: &mut Graph, output: ValueId, kind: LossKind, class_axis: Option<usize>) -> Result<ValueId, LossError> {
    let Some(found) = squashed(g, output) else { return Ok(output) };
    let why = match found.squash {
        Squash::Softmax(axis) if Some(axis) == class_axis => return Ok(reshaped(g, &found)),
        Squash::Sigmoid if kind == LossKind::Bce => return Ok(reshaped(g, &found)),
        Squash::Softmax(_) if kind == LossKind::Bce => {
            "a softmax, whose loss is cross-entropy; bce reads independent logits"
        }
        Squash::Sigmoid if kind.takes_labels() => {
            "a sigmoid, whose loss is bce; cross-entropy reads logits of exclusive classes"
        }
        _ => return Ok(output),
    };
    Err(LossError::Unfit(format!("output `{}` comes out of {why}", g.name(output))))
}

/// The logits, with the changes of shape that the source applies after the squash.
fn reshaped(g: &mut Graph, found: &Squashed) -> ValueId {
    let mut v = found.logits;
    for node in found.shapes.iter().rev() {
        let Some(op) = g.op(*node).cloned() else { continue };
        let mut operands = g.operands(*node).to_vec();
        operands[0] = Some(v);
        let ty = g.value(g.result(*node, 0)).ty.clone();
        let dtype = g.value(v).ty.dtype;
        let new = g.add_op("", Op { source: None, ..op }, &operands);
        v = g.push_result(new, "loss/logits", ValueType { dtype, ..ty });
        g.node_mut(new).name = g.name(v).to_string();
    }
    v
}

/// Appends a loss on a model output; adds the target input. A trailing softmax or sigmoid is taken into the loss.
///
/// # Errors
/// When the output's type does not fit the loss.
pub fn append_loss(g: &mut Graph, output: ValueId, o: &LossOptions) -> Result<Loss, LossError> {
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
    if o.kind == LossKind::Own {
        return own_loss(g, output, o);
    }
    let said = g.outputs().iter().find(|v| v.value == output).and_then(|v| read_value_info(v.info.as_deref()?)?.shape);
    if o.kind.takes_labels()
        && let Some(said) = said.filter(|said| said.len() != ty.rank())
    {
        let why =
            format!("the file declares {} axes and its nodes give {ty}; a loss over classes must know them", said.len());
        return Err(LossError::Unfit(format!("output `{name}`: {why}")));
    }
    let axis = if o.kind.takes_labels() { Some(class_axis(g, output, o)?) } else { None };
    if let Some(axis) = axis.filter(|axis| ty.shape[*axis].known() == Some(1)) {
        let why = format!("has one class, on axis {axis}: its probability is always 1, and there is nothing to learn");
        return Err(LossError::Unfit(format!(
            "output `{name}` {ty} {why}; --loss bce is for one yes or no, --loss mse for one number"
        )));
    }
    let output = logits_of(g, output, o.kind, axis)?;
    let target_type = target_type(&name, &ty, o.kind, axis)?;
    let wanted = o.labels.clone().unwrap_or_else(|| if o.kind.takes_labels() { "labels" } else { "target" }.to_string());
    // A value of the model keeps its name.
    let target_name = if g.is_free(&wanted) { wanted } else { format!("ancre.{wanted}") };
    let target = g.add_input(&target_name, target_type.into(), None);
    let mut b = Builder::new(g, "loss");
    let value = match o.kind {
        LossKind::CrossEntropy => cross_entropy(&mut b, output, target, axis.unwrap_or(1), o)?,
        LossKind::NextToken => next_token(&mut b, output, target, o)?,
        _ => {
            let each = element_loss(&mut b, output, target, o)?;
            b.reduce_all(if o.sum { "ReduceSum" } else { "ReduceMean" }, each)?
        }
    };
    let value = b.cast(value, DType::F32)?;
    let free = if b.graph.is_free("loss") { "loss" } else { "ancre.loss" };
    b.graph.rename(value, free);
    Ok(Loss { value, target, class_axis: axis })
}

/// The loss that is the model's own output. Its target is the input that `--labels` names, else the one nearest to the loss.
fn own_loss(g: &mut Graph, output: ValueId, o: &LossOptions) -> Result<Loss, LossError> {
    let (name, ty) = (g.name(output).to_string(), g.value(output).ty.clone());
    if ty.tensor().is_none_or(|ty| ty.rank() > 0) {
        return Err(LossError::Unfit(format!("output `{name}` is {ty}; a loss of the model's own is a scalar")));
    }
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
    if name != "loss" || value != output {
        // The output stays what it is; the training graph's loss has a name of its own.
        value = if value == output { b.op("Identity", &[output])? } else { value };
        let free = if b.graph.is_free("loss") { "loss" } else { "ancre.loss" };
        b.graph.rename(value, free);
    }
    Ok(Loss { value, target, class_axis: None })
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

fn target_type(output: &str, ty: &TensorType, kind: LossKind, axis: Option<usize>) -> Result<TensorType, LossError> {
    let Some(axis) = axis else {
        let dtype = if is_half(ty.dtype) { DType::F32 } else { ty.dtype };
        return Ok(TensorType::new(dtype, ty.shape.clone()));
    };
    if kind == LossKind::NextToken && ty.rank() != 3 {
        let needs = format!("next-token needs token logits [N, T, V], it has type {ty}");
        return Err(LossError::Unfit(format!("output `{output}`: {needs}")));
    }
    let mut shape = ty.shape.clone();
    shape.remove(axis);
    Ok(TensorType::new(DType::I64, shape))
}

fn next_token(b: &mut Builder, logits: ValueId, labels: ValueId, o: &LossOptions) -> Built {
    let ty = b.ty(logits)?;
    let shorter = &ty.shape[1] - &Dim::from(1);
    let x = b.slices(logits, &[1], &[0], &[-1])?;
    b.graph.set_type(x, TensorType::new(ty.dtype, vec![ty.shape[0].clone(), shorter.clone(), ty.shape[2].clone()]).into());
    let y = b.slices(labels, &[1], &[1], &[i64::MAX])?;
    b.graph.set_type(y, TensorType::new(DType::I64, vec![ty.shape[0].clone(), shorter]).into());
    cross_entropy(b, x, y, 2, o)
}

/// −log softmax(logits)[label], over all positions; `axis` holds the classes.
fn cross_entropy(b: &mut Builder, logits: ValueId, labels: ValueId, axis: usize, o: &LossOptions) -> Built {
    let rank = b.ty(logits)?.rank();
    let perm: Vec<i64> = (0..rank).filter(|a| *a != axis).chain([axis]).map(|a| a as i64).collect();
    let mut x = b.transpose(logits, &perm)?;
    let ty = b.ty(x)?;
    let classes = ty.shape[ty.rank() - 1].clone();
    let positions = ty.shape[..ty.rank() - 1].iter().fold(Dim::from(1), |p, d| &p * d);
    if ty.rank() > 2 {
        let to = [positions.clone(), classes.clone()];
        x = match classes.known() {
            Some(count) => b.reshape(x, &[-1, count], &to)?,
            None => {
                let shape = b.op("Shape", &[x])?;
                let classes_dim = b.slices(shape, &[0], &[-1], &[i64::MAX])?;
                let minus = b.ints(&[-1]);
                let target = b.concat(&[minus, classes_dim], 0)?;
                b.reshape_dynamic(x, target, &to)?
            }
        };
    }
    let wide = if ty.dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let x = b.cast(x, wide)?;
    let labels = b.reshape(labels, &[-1], std::slice::from_ref(&positions))?;
    let log_p = b.op_with("LogSoftmax", Attrs::new().with("axis", 1), &[x])?;
    let Picked { log_p: mut each, counted, .. } = pick(b, log_p, labels, o.ignore_index)?;
    if o.smoothing > 0.0 {
        let mean = b.reduce("ReduceMean", log_p, &[1], false)?;
        let (hard, soft) = (b.scale(each, 1.0 - o.smoothing)?, b.scale(mean, o.smoothing)?);
        each = b.add(hard, soft)?;
    }
    let total = match counted {
        None => b.reduce_all(if o.sum { "ReduceSum" } else { "ReduceMean" }, each)?,
        Some(counted) => {
            let each = b.mul(each, counted)?;
            let sum = b.reduce_all("ReduceSum", each)?;
            if o.sum { sum } else { weighted_mean(b, sum, counted)? }
        }
    };
    b.neg(total)
}

fn element_loss(b: &mut Builder, y: ValueId, t: ValueId, o: &LossOptions) -> Built {
    let dtype = b.ty(t)?.dtype;
    let y = b.cast(y, dtype)?;
    let d = b.sub(y, t)?;
    match o.kind {
        LossKind::L1 => b.op("Abs", &[d]),
        LossKind::Huber => {
            // ½ min(|d|, δ)² + δ (|d| − min(|d|, δ))
            let dtype = b.ty(d)?.dtype;
            let delta = b.scalar(dtype, o.huber_delta);
            let size = b.op("Abs", &[d])?;
            let below = b.op("Min", &[size, delta])?;
            let square = b.mul(below, below)?;
            let square = b.scale(square, 0.5)?;
            let above = b.sub(size, below)?;
            let above = b.mul(above, delta)?;
            b.add(square, above)
        }
        LossKind::Bce => {
            // max(y, 0) − y t + log(1 + e^{−|y|}) is stable for both signs.
            formula(b, [y, t], |[y, t]| {
                let (floor, yt) = (y.op("Relu"), y * t);
                let log = ((-y.op("Abs")).op("Exp") + 1.0).op("Log");
                floor - yt + log
            })
        }
        _ => b.mul(d, d),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::Tensor;

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
