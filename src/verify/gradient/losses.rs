//! The loss as a function of the trained tensors, in an engine of its own.

use super::Training;
use crate::engine::{Engine, ExternalData, Session, Tensors};
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use crate::verify::compare::{precision, relative};
use ancre_passes::contract::{StateKind, StateRecord};
use ancre_passes::ir::{DType, Graph};
use ancre_passes::onnx;
use ancre_passes::transform::eliminate;
use ancre_passes::transform::to_double::{loss_graph, spell_out, to_double};
use std::collections::HashSet;

/// Roundings of a 16-bit type that a gradient may be off by. The router's gradient is a sum of products with differences of
/// states, which lie close together.
const UNITS: f64 = 32.0;

pub(super) struct Losses {
    session: Box<dyn Session>,
    pub(super) engine: &'static str,
    /// `float64` or `float32`.
    pub(super) precision: &'static str,
    /// Largest relative error of a directional derivative.
    pub(super) tolerance: f64,
    /// Step, as a part of a tensor's scale.
    step: f64,
    loss: String,
    /// The loss at the point.
    value: f64,
    /// Inputs the loss depends on.
    read: HashSet<String>,
    pub(super) notes: Vec<String>,
}

impl Losses {
    /// Loads the loss in float64, or as it is where the engine cannot do that.
    pub(super) fn new(t: &Training, engine: &dyn Engine) -> Result<Losses, Failure> {
        let path = &t.subject.path;
        let (mut narrow, loss) = loss_graph(&t.subject.graph).map_err(|e| Failure::input(e.to_string()).at(path))?;
        let mut wide = narrow.clone();
        let attempt = |g: &mut Graph, is_wide| {
            spell_out(g);
            eliminate::eliminate_dead(g, |_, _| false);
            eliminate::eliminate_inputs(g, |_| true);
            Losses::load(t, g, &loss, engine, is_wide)
        };
        let why = match to_double(&mut wide).map_err(|e| e.to_string()).and_then(|()| attempt(&mut wide, true)) {
            Ok(losses) => return Ok(losses),
            Err(why) => why,
        };
        let mut losses = attempt(&mut narrow, false).map_err(|e| {
            Failure::check(format!(
                "{} cannot run the loss, and gradients are checked by a second engine: {e}",
                engine.name()
            ))
            .at(path)
        })?;
        losses.notes.push(format!("losses in float32, as {} cannot run them in float64: {why}", engine.name()));
        Ok(losses)
    }

    fn load(t: &Training, g: &Graph, loss: &str, engine: &dyn Engine, wide: bool) -> Result<Losses, String> {
        let bytes = onnx::emit(g).and_then(|e| e.to_bytes()).map_err(|e| e.to_string())?;
        let session = engine.load(&bytes, ExternalData::of(g, &t.subject.path)).map_err(|e| e.to_string())?;
        let coarsest = precision(&t.subject.graph).unwrap_or(DType::F32);
        let read = g.inputs().iter().map(|n| g.name(g.result(*n, 0)).to_string()).collect();
        let mut losses = Losses {
            session,
            engine: engine.name(),
            precision: if wide { "float64" } else { "float32" },
            // In float32 a step must be large enough that the loss changes by more than its rounding.
            tolerance: relative(if wide { 1e-3 } else { 5e-2 }, coarsest, UNITS),
            step: if wide { 2e-6 } else { 0.1 },
            loss: loss.to_string(),
            value: 0.0,
            read,
            notes: Vec::new(),
        };
        let at_point = losses.at(&t.feeds(0.0))?;
        losses.value = at_point;
        if wide && at_point != 0.0 && at_point == at_point as f32 as f64 {
            return Err("its result is rounded to float32 all the same".into());
        }
        if at_point.is_finite() { Ok(losses) } else { Err(format!("the loss is {at_point}")) }
    }

    fn at(&mut self, feeds: &Tensors) -> Result<f64, String> {
        let mut fed = Tensors::new();
        for (name, t) in feeds.iter().filter(|(n, _)| self.read.contains(*n)) {
            let t = match self.precision {
                "float64" if t.dtype().is_float() => {
                    NpTensor::from_f64s(DType::F64, t.shape(), &t.to_f64()).ok_or("a tensor cannot be widened")?
                }
                _ => t.clone(),
            };
            fed.insert(name.clone(), t);
        }
        let out = self.session.run(&fed).map_err(|e| e.to_string())?;
        out.get(&self.loss).and_then(|t| t.to_f64().first().copied()).ok_or_else(|| "the loss did not come back".to_string())
    }

    /// The loss at the point, where it is another than an engine says by more than the tolerance.
    pub(super) fn contradicts(&self, said: f64) -> Option<f64> {
        let agrees = said.is_nan() || (said - self.value).abs() <= self.tolerance * said.abs().max(self.value.abs());
        (!agrees).then_some(self.value)
    }

    /// Does the loss depend on the number of the step, as dropout's masks do?
    pub(super) fn depends_on(&self, t: &Training) -> bool {
        t.states.iter().any(|s| s.kind == StateKind::Counter && self.read.contains(&s.input))
    }

    /// Steps of the central difference along a tensor of a scale, the largest first. A smaller one is for where the loss has a kink
    /// within the larger one, such as a `Relu`'s operand that changes its sign.
    pub(super) fn steps(&self, scale: f64) -> [f64; 3] {
        let factor = if self.precision == "float64" { 16.0 } else { 2.0 };
        [1.0, factor, factor * factor].map(|f| self.step * scale / f)
    }

    /// How far the rounding of the loss alone may move a difference of step `h`.
    pub(super) fn noise(&self, h: f64) -> f64 {
        let unit = if self.precision == "float64" { f64::EPSILON } else { f32::EPSILON as f64 };
        4.0 * unit * self.value.abs() / h
    }

    /// The central difference of the loss along a direction of one tensor, of step `h`.
    pub(super) fn difference(&mut self, t: &Training, s: &StateRecord, direction: &[f64], h: f64) -> Result<f64, Failure> {
        let base = &t.point[&s.input];
        let values = base.to_f64();
        let dtype = if self.precision == "float64" { DType::F64 } else { base.dtype() };
        let mut losses = [0.0; 2];
        for (loss, sign) in losses.iter_mut().zip([1.0, -1.0]) {
            let moved: Vec<f64> = values.iter().zip(direction).map(|(w, d)| w + sign * h * d).collect();
            let mut feeds = t.feeds(0.0);
            feeds.extend(NpTensor::from_f64s(dtype, base.shape(), &moved).map(|m| (s.input.clone(), m)));
            *loss = self
                .at(&feeds)
                .map_err(|e| Failure::check(format!("{} cannot run the loss: {e}", self.engine)).at(&t.subject.path))?;
        }
        Ok((losses[0] - losses[1]) / (2.0 * h))
    }
}
