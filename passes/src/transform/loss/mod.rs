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

mod choice;
mod classes;
mod ctc;
mod elements;
mod inputs;
mod plan;
mod reduce;
mod squash;
pub mod teacher;

use crate::ir::{Attrs, DType, Graph, Kind, Op, Tensor, TensorType, ValueId};
use crate::ops::build::{BuildError, Builder};
use crate::refusal::Hint;
pub use choice::{ClassWeights, LossKind, LossOptions};
use inputs::{Input, add_lengths};
use plan::{Plan, plan};
use reduce::Counting;
use squash::logits_of;
pub use squash::{Squash, Squashed, squashed};
use std::collections::{HashMap, HashSet, VecDeque};
use teacher::Teacher;

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
/// When an output's type does not fit its loss, a distillation has no teacher, or an output has the same loss twice.
pub fn append_losses(
    g: &mut Graph,
    wanted: &[(ValueId, &LossOptions)],
    teacher: Option<&Teacher>,
) -> Result<Losses, LossError> {
    let plans = wanted.iter().map(|(output, o)| plan(g, *output, o)).collect::<Result<Vec<_>, _>>()?;
    for (i, p) in plans.iter().enumerate() {
        if plans[..i].iter().any(|q| (q.output, q.kind) == (p.output, p.kind)) {
            return Err(LossError::Unfit(format!(
                "the loss {} of output `{}` is asked for twice; once, with a weight, does the same",
                p.kind.name(),
                g.name(p.output)
            )));
        }
    }
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
    let teachers = match teacher {
        Some(teacher) => teacher::append(g, teacher, &plans.iter().map(|p| p.output).collect::<Vec<_>>())?,
        None => HashMap::new(),
    };
    // Weights that follow the data, and the output whose classes they are of.
    let mut balanced: Option<(ValueId, ValueId)> = None;
    let mut constant = Vec::new();
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
                let of = teachers.get(&p.output).copied().ok_or_else(|| no_teacher(g, p))?;
                let logits = logits_of(g, of, p.kind, p.axis)?;
                Some(if matches!(teacher, Some(Teacher::Output(_))) { stopped(g, logits, &mut constant) } else { logits })
            }
        };
        let mut fed = None;
        if o.class_weights == ClassWeights::Fed && p.kind.weights_classes() {
            let (weights, of) = *balanced.get_or_insert_with(|| (add_class_weights(g, p), p.output));
            if of != p.output {
                return Err(LossError::Unfit(format!(
                    "output `{}`: weights that balance classes are counted for one output only; give each loss its own numbers",
                    g.name(p.output)
                )));
            }
            fed = Some(weights);
        }
        let mut lengths = None;
        let (name, kind) = (g.name(p.output).to_string(), p.kind.name());
        let mut b = Builder::new(g, &if several { format!("loss/{name}/{kind}") } else { "loss".into() });
        let counting = Counting {
            sum: o.sum,
            mask,
            classes: weights_of_classes(&mut b, p, o, fed)?,
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

/// A value through which no gradient goes. It is the logits of a teacher, since they may lie before its output.
fn stopped(g: &mut Graph, v: ValueId, constant: &mut Vec<ValueId>) -> ValueId {
    let ty = g.value(v).ty.clone();
    let node = g.add_op("teacher", Op::new("Identity", Attrs::new()), &[Some(v)]);
    let stopped = g.push_result(node, "teacher", ty);
    constant.push(stopped);
    stopped
}

/// The input of weights that follow the data, [C].
fn add_class_weights(g: &mut Graph, p: &Plan) -> ValueId {
    let classes = p.axis.and_then(|axis| g.tensor_type(p.output)?.shape.get(axis).cloned());
    let name = if g.is_free("class_weights") { "class_weights" } else { "ancre.class_weights" };
    g.add_input(name, TensorType::new(DType::F32, classes.into_iter().collect::<Vec<_>>()).into(), None)
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
