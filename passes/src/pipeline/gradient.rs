//! Gradient graphs: a model with the gradients of its outputs beside them.

use super::{Choice, Cx, GRAD, PREPARE_GRADIENT, PassError, PassManager};
use crate::ir::{Graph, Kind, TensorType, ValueId};
use crate::ops::build::{BuildError, Builder};
use crate::pipeline::training::TrainingOptions;
use crate::target::{self, Target};

/// What the cotangent of an output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seed {
    /// Ones: the gradient of the sum of its elements.
    Ones,
    /// An input of the graph, `<output>.ct`, of the output's type: a vector-Jacobian product.
    Input,
}

/// Of what, and with respect to what.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct GradientOptions {
    /// Outputs, each with its cotangent. Several are added up.
    pub of: Vec<(String, Seed)>,
    /// Inputs and initializers.
    pub wrt: Vec<String>,
    /// Operator set; `None`: 18, or the smallest later one that can express the source.
    pub opset: Option<i64>,
    /// The machine whose costs choose among formulations.
    pub target: &'static Target,
}

impl GradientOptions {
    /// The gradient of some outputs with respect to some inputs or initializers.
    pub fn new(of: Vec<(String, Seed)>, wrt: Vec<String>) -> GradientOptions {
        GradientOptions { of, wrt, opset: None, target: &target::CPU }
    }
}

impl PassManager<'_> {
    /// Builds the gradient graph of a model, which it consumes: the model's own inputs and outputs, a cotangent as an input where that
    /// is asked for, and an output `<name>.grad` of the type of `<name>` for each of `wrt`. A gradient on which no output depends is zero.
    ///
    /// # Errors
    /// When a name is none of the model's, or an operator on the way has no derivative.
    pub fn gradient_graph(&mut self, mut g: Graph, o: &GradientOptions) -> Result<Graph, PassError> {
        let mut training = TrainingOptions { opset: o.opset, frozen_bn: true, ..TrainingOptions::default() };
        training.target = o.target;
        let mut cx = Cx { training, choice: Choice::Named(o.wrt.clone()), cotangents: o.of.clone(), ..Cx::default() };
        let optional = |g: &Graph, v: ValueId| matches!(g.node(v.node).kind, Kind::Initializer { overridable: true, .. });
        let listed: Vec<&String> = o.wrt.iter().filter(|n| g.find(n).is_some_and(|v| optional(&g, v))).collect();
        self.run(PREPARE_GRADIENT, &mut g, &mut cx)?;
        self.run_to_emit(GRAD, &mut g, &mut cx)?;
        for v in listed.into_iter().filter_map(|n| g.find(n)).collect::<Vec<_>>() {
            g.set_overridable(v, true);
        }
        Ok(g)
    }
}

/// Adds Σ ⟨output, cotangent⟩, the scalar whose gradient is the vector-Jacobian product.
pub(super) fn append_cotangents(g: &mut Graph, of: &[(String, Seed)]) -> Result<Option<ValueId>, PassError> {
    let mut terms = Vec::new();
    for (name, seed) in of {
        let y = super::context::value(g, name)?;
        let Some(ty) = g.tensor_type(y).filter(|t| t.dtype.is_float()) else {
            return Err(PassError::unfit(format!("`{name}` is {}, and gradients are of float tensors", g.value(y).ty)));
        };
        terms.push(term(g, y, &ty, name, *seed)?);
    }
    let mut b = Builder::new(g, "grad/of");
    Ok(if terms.is_empty() { None } else { Some(b.sum(&terms)?) })
}

fn term(g: &mut Graph, y: ValueId, ty: &TensorType, name: &str, seed: Seed) -> Result<ValueId, BuildError> {
    let ct = match seed {
        Seed::Ones => None,
        Seed::Input => Some(g.add_input(&format!("{name}.ct"), ty.clone().into(), None)),
    };
    let mut b = Builder::new(g, "grad/of");
    let y = match ct {
        Some(ct) => b.mul(y, ct)?,
        None => y,
    };
    let sum = if ty.rank() == 0 { y } else { b.reduce_all("ReduceSum", y)? };
    b.cast(sum, crate::ir::DType::F32)
}
