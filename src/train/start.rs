//! What the first step starts from: the state, and the classes' weights.

use super::checkpoint;
use super::data::Dataset;
use super::graph::{Term, TrainingGraph};
use crate::cli::CourseOptions;
use crate::engine::Tensors;
use crate::engine::ort::stepper::DeviceState;
use crate::error::Failure;
use crate::io::files;
use crate::io::tensor::NpTensor;
use ancre_passes::contract::{ClassWeights, StateKind};
use ancre_passes::ir::DType;

/// Weights of the classes by the training data, for losses that ask for them: N / (C n) of a class with n of N labels among C classes.
/// Returns notices.
pub(super) fn balance(t: &mut TrainingGraph, set: &dyn Dataset) -> Result<Vec<String>, Failure> {
    /// Samples whose labels are read at a time.
    const CHUNK: usize = 1024;
    let mut notices = Vec::new();
    let fed = |term: &Term| match &term.record.class_weights {
        Some(ClassWeights::Fed(name)) => Some((name.clone(), term.record.target.clone()?, term.record.ignore_index)),
        _ => None,
    };
    let wanted: Vec<_> = t.losses.iter().filter_map(fed).collect();
    for (name, target, ignored) in wanted {
        if t.constants.contains_key(&name) {
            continue;
        }
        let classes = t.graph.find(&name).and_then(|v| t.graph.tensor_type(v)?.shape.first()?.known());
        let classes = classes.and_then(|n| usize::try_from(n).ok());
        let classes = classes.ok_or_else(|| Failure::input(format!("the number of classes of `{name}` is open")))?;
        let mut counts = vec![0u64; classes];
        let rows: Vec<usize> = (0..set.len()).collect();
        for rows in rows.chunks(CHUNK) {
            let labels = set.values(&target, rows)?.map(|t| t.to_i64()).unwrap_or_default();
            for label in labels.into_iter().filter(|l| Some(*l) != ignored) {
                if let Some(n) = usize::try_from(label).ok().and_then(|l| counts.get_mut(l)) {
                    *n += 1;
                }
            }
        }
        let all: u64 = counts.iter().sum();
        let there = counts.iter().filter(|n| **n > 0).count();
        if there < classes {
            notices.push(format!("{} of {classes} classes have no label in the data; their weight is 1", classes - there));
        }
        let weight = |n: &u64| if *n > 0 { all as f64 / (classes as f64 * *n as f64) } else { 1.0 };
        let weights: Vec<f64> = counts.iter().map(weight).collect();
        let (least, most) = weights.iter().fold((f64::INFINITY, 0.0), |(a, b): (f64, f64), w| (a.min(*w), b.max(*w)));
        notices.push(format!("`{name}` balances {all} labels of {classes} classes: {least:.3} to {most:.3}"));
        t.constants.extend(NpTensor::from_f64s(DType::F32, &[classes], &weights).map(|w| (name, w)));
    }
    Ok(notices)
}

/// Puts tensors into the state. With `whole`, no tensor of the state may be missing.
pub(super) fn put(state: &mut DeviceState, t: &TrainingGraph, tensors: &Tensors, whole: bool) -> Result<(), Failure> {
    for s in &t.states {
        let shape: Vec<usize> = s.shape.iter().map(|d| *d as usize).collect();
        match tensors.get(&s.input) {
            Some(given) if given.shape() == shape => {}
            // A moment before the first step is one broadcastable zero.
            Some(given) if matches!(s.kind, StateKind::Moment | StateKind::Accumulator) && given.len() == 1 => {}
            Some(given) => {
                let what = format!("`{}` has shape {:?}, the training graph's has {shape:?}", s.input, given.shape());
                return Err(Failure::input(what));
            }
            None if whole && s.output.is_some() => {
                return Err(Failure::input(format!("lacks the state tensor `{}` of the training graph", s.input)));
            }
            None => {}
        }
    }
    state.set(tensors).map_err(|e| Failure::input(e.to_string()))
}

/// Sets the state of the first step: `--state`, and for graphs without defaults the file beside them.
pub(super) fn start_state(a: &CourseOptions, t: &TrainingGraph, state: &mut DeviceState) -> Result<(), Failure> {
    let missing = t.without_default();
    let mut have = Tensors::new();
    if !missing.is_empty()
        && let Some((path, first)) = files::first_state(&t.path, &t.graph)?
    {
        put(state, t, &first, false).map_err(|e| e.at(&path))?;
        have = first;
    }
    if let Some(path) = &a.state {
        let given = checkpoint::read(path)?.0;
        let known = |n: &str| t.states.iter().any(|s| s.input == n);
        if !given.keys().any(|n| known(n)) {
            let what = "holds no tensor of the training graph's state; names must be those of its state inputs";
            return Err(Failure::input(what).at(path));
        }
        put(state, t, &given, false).map_err(|e| e.at(path))?;
        have.extend(given);
    }
    match missing.iter().find(|s| !have.contains_key(&s.input)) {
        None => Ok(()),
        Some(s) => Err(Failure::input(format!(
            "asks for its state tensor `{}`, and no file beside it has it",
            s.input
        ))
        .at(&t.path)
        .help("keep STEM.ancre.init.onnx (--state separate: STEM.ancre.state.safetensors) beside the training graph, or name a file of tensors with --state")),
    }
}
