//! Is `w.next` what the optimiser's formula says?

use super::formula::{Before, Optimizer};
use super::{Gradients, Training};
use crate::engine::Session;
use crate::io::tensor::NpTensor;
use crate::verify::compare::relative;
use ancre_passes::contract::StateKind;
use ancre_passes::ir::DType;
use ancre_passes::random::Random;
use serde::Serialize;
use std::collections::HashMap;

/// One state's next value against the formula.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct UpdateCheck {
    pub name: String,
    /// The step at which it fits worst, counted from 0.
    pub step: u64,
    pub max_abs: f64,
    pub allowed: f64,
    pub passed: bool,
}

/// Runs steps from random moments and compares every state that the formula gives; `first_only` where the gradients are
/// those of step 0 alone. Fails when the engine cannot run a step.
pub(super) fn check(
    t: &Training,
    o: &Optimizer,
    gradients: &Gradients,
    session: &mut dyn Session,
    first_only: bool,
) -> Result<Vec<UpdateCheck>, String> {
    let n = o.micro_batches();
    // The first step, one far into training, and with accumulation one between updates.
    let mut steps = vec![n - 1, 10 * n + n - 1];
    if n > 1 {
        steps.push(10 * n);
    }
    if first_only {
        steps = vec![0];
    }
    let mut checks: HashMap<String, UpdateCheck> = HashMap::new();
    for step in steps {
        for check in check_step(t, o, gradients, session, step)? {
            match checks.get(&check.name) {
                Some(old) if old.max_abs / old.allowed >= check.max_abs / check.allowed => {}
                _ => {
                    checks.insert(check.name.clone(), check);
                }
            }
        }
    }
    Ok(t.states.iter().filter_map(|s| checks.remove(&s.name)).collect())
}

fn check_step(
    t: &Training,
    o: &Optimizer,
    gradients: &Gradients,
    session: &mut dyn Session,
    step: u64,
) -> Result<Vec<UpdateCheck>, String> {
    let lr = 0.01f32;
    let mut feeds = t.feeds(lr as f64);
    let mut state: HashMap<String, Vec<f64>> = HashMap::new();
    for s in &t.states {
        match s.kind {
            StateKind::Parameter | StateKind::Logits | StateKind::Gate => {
                state.insert(s.name.clone(), t.point[&s.input].to_f64());
            }
            StateKind::Moment | StateKind::Accumulator if step > 0 => {
                let shape: Vec<usize> = s.shape.iter().map(|d| *d as usize).collect();
                let drawn = moment(t, &s.name, shape.iter().product());
                let tensor = t.subject.graph.find(&s.input).and_then(|v| t.subject.graph.value(v).ty.dtype);
                let tensor =
                    NpTensor::from_f64s(tensor.unwrap_or(DType::F32), &shape, &drawn).ok_or("a moment has no size")?;
                state.insert(s.name.clone(), tensor.to_f64());
                feeds.insert(s.input.clone(), tensor);
            }
            StateKind::Counter => {
                feeds.extend(NpTensor::i64s(&[], &[step as i64]).map(|c| (s.input.clone(), c)));
            }
            _ => {}
        }
    }
    let out = session.run(&feeds).map_err(|e| e.to_string())?;
    let is_router = |name: &str| t.states.iter().any(|s| s.name == name && s.kind.is_router());
    let want = o.step(&Before { gradients, state: &state, router: &is_router, lr: lr as f64, step });
    let mut checks = Vec::new();
    for s in &t.states {
        let Some((want, got)) = want.get(&s.name).zip(s.output.as_ref().and_then(|n| out.get(n))) else { continue };
        let (got_type, got) = (got.dtype(), got.to_f64());
        let largest = want.iter().map(|v| v.abs()).fold(0.0, f64::max);
        let apart = |(a, b): (&f64, &f64)| if (a - b).is_nan() { f64::INFINITY } else { (a - b).abs() };
        let max_abs =
            if got.len() == want.len() { got.iter().zip(want).map(apart).fold(0.0, f64::max) } else { f64::INFINITY };
        // A few roundings of the largest element; the moments' roots amplify those of the gradient.
        let allowed = relative(2e-6, got_type, 1.0) * largest + 1e-9;
        checks.push(UpdateCheck { name: s.name.clone(), step, max_abs, allowed, passed: max_abs <= allowed });
    }
    Ok(checks)
}

/// A moment as training may leave it: of the gradient's size, and positive where it is a mean of squares.
fn moment(t: &Training, name: &str, count: usize) -> Vec<f64> {
    let mut random = Random::new(t.seed.wrapping_add(77), name);
    let draw = |_| if name.ends_with("_sq") { 1e-2 * (0.1 + random.normal().abs()) } else { 1e-2 * random.normal() };
    (0..count).map(draw).collect()
}
