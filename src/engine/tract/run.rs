//! Running models in tract.

use super::{NAME, framework, from_datum, is_known, quietly, to_datum, to_tract};
use crate::engine::{Engine, EngineError, ExternalData, Session, Tensors};
use crate::io::tensor::{NpTensor, with_type};
use ancre_passes::ir::DType;
use std::collections::HashSet;
use std::sync::Arc;
use tract_onnx::model::Onnx;
use tract_onnx::pb::{GraphProto, ModelProto, StringStringEntryProto, TensorProto};
use tract_onnx::prelude::{
    DatumType, Framework, InferenceFact, InferenceModelExt, IntoRunnable, Tensor, TractError, TypedRunnableModel,
};
use tract_onnx::tract_hir::internal::{IntoTValue, TVec, f16};

/// Most prepared models that are kept for input shapes seen before.
const MOST_PLANS: usize = 2;

/// The embedded engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct TractEngine;

impl Engine for TractEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn load(&self, model: &[u8], data: Option<ExternalData>) -> Result<Box<dyn Session>, EngineError> {
        Ok(Box::new(TractEngine::session(model, data)?))
    }

    /// Types are found with symbolic extents.
    fn open(&self, model: &[u8], data: Option<ExternalData>) -> Result<(), EngineError> {
        let session = TractEngine::session(model, data)?;
        let typed = || session.framework.parse(&session.proto, Some(&session.root))?.model.into_typed().map(drop);
        quietly(typed)?.map_err(load_error)
    }
}

impl TractEngine {
    fn session(model: &[u8], data: Option<ExternalData>) -> Result<TractSession, EngineError> {
        let framework = framework();
        let mut proto =
            framework.proto_model_for_read(&mut &*model).map_err(|e| EngineError::Load { engine: NAME, why: chain(&e) })?;
        if let Some(graph) = &mut proto.graph {
            check_operators(&framework, graph)?;
            tell_apart(graph);
            graph.initializer.iter_mut().for_each(state_length);
        }
        let root = data.map(|d| d.root.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(TractSession { framework, proto, root, plans: Vec::new() })
    }
}

/// Fails for the first operator that tract does not have, in subgraphs too.
fn check_operators(framework: &Onnx, graph: &GraphProto) -> Result<(), EngineError> {
    for node in &graph.node {
        if !is_known(framework, &node.domain, &node.op_type) {
            let site = if node.name.is_empty() { node.output.first() } else { Some(&node.name) };
            return Err(EngineError::Unsupported {
                engine: NAME,
                operator: [&node.domain, node.op_type.as_str()].join(".").trim_start_matches('.').to_string(),
                node: site.cloned().unwrap_or_default(),
                why: "it has no such operator".into(),
            });
        }
        for sub in node.attribute.iter().flat_map(|a| a.g.as_ref().into_iter().chain(&a.graphs)) {
            check_operators(framework, sub)?;
        }
    }
    Ok(())
}

/// Gives every node a name that no other node, input or initializer has. ONNX keeps these names apart and tract does not; tract
/// names a node without a name after its first result.
fn tell_apart(graph: &mut GraphProto) {
    let values = graph.input.iter().map(|i| &i.name).chain(graph.initializer.iter().map(|t| &t.name));
    let mut taken: HashSet<String> = values.cloned().collect();
    for (i, node) in graph.node.iter_mut().enumerate() {
        if node.name.is_empty() {
            node.name = node.output.first().cloned().unwrap_or_default();
        }
        if taken.contains(&node.name) {
            node.name += &format!(" ({i})");
        }
        taken.insert(node.name.clone());
        for sub in node.attribute.iter_mut().flat_map(|a| a.g.as_mut().into_iter().chain(&mut a.graphs)) {
            tell_apart(sub);
        }
    }
}

/// Says how many bytes of an external file are a tensor's, where its message leaves that out: tract would take all to the file's end.
fn state_length(t: &mut TensorProto) {
    let stated = t.external_data.iter().any(|e| e.key == "length" && e.value.parse::<u64>().is_ok_and(|n| n > 0));
    let size = DType::from_onnx(t.data_type).and_then(DType::size);
    if t.external_data.is_empty() || stated {
        return;
    }
    if let Some(size) = size {
        let length = t.dims.iter().fold(size as i64, |n, d| n.saturating_mul(*d)).to_string();
        t.external_data.retain(|e| e.key != "length");
        t.external_data.push(StringStringEntryProto { key: "length".into(), value: length });
    }
}

/// The inputs that a model was prepared for, with their types.
type Signature = Vec<(String, DType, Vec<usize>)>;

struct Prepared {
    signature: Signature,
    model: Arc<TypedRunnableModel>,
    /// Names of the model's inputs, in tract's order.
    inputs: Vec<String>,
}

struct TractSession {
    framework: Onnx,
    proto: ModelProto,
    root: String,
    plans: Vec<Prepared>,
}

impl Session for TractSession {
    fn run(&mut self, inputs: &Tensors) -> Result<Tensors, EngineError> {
        let signature: Signature = inputs.iter().map(|(name, t)| (name.clone(), t.dtype(), t.shape().to_vec())).collect();
        let known = self.plans.iter().position(|p| p.signature == signature);
        let plan = match known {
            Some(i) => &self.plans[i],
            None => {
                let plan = self.plan(signature)?;
                // Each prepared model holds a copy of the weights.
                self.plans.truncate(MOST_PLANS - 1);
                self.plans.push(plan);
                &self.plans[self.plans.len() - 1]
            }
        };
        let fed = plan
            .inputs
            .iter()
            .map(|name| {
                let t = inputs.get(name).ok_or_else(|| missing(name))?;
                to_tract(t.dtype(), t.shape(), t.bytes())
                    .map(IntoTValue::into_tvalue)
                    .map_err(|e| EngineError::Input { name: name.clone(), why: chain(&e) })
            })
            .collect::<Result<TVec<_>, _>>()?;
        let results = quietly(|| plan.model.run(fed))?
            .map_err(|e| blame(&e).unwrap_or_else(|| EngineError::Run { engine: NAME, why: chain(&e) }))?;
        let names = self.proto.graph.iter().flat_map(|g| &g.output).map(|o| o.name.clone());
        names
            .zip(results)
            .map(|(name, value)| {
                let t = from_tract(&value)
                    .map_err(|e| EngineError::Run { engine: NAME, why: format!("output `{name}`: {}", chain(&e)) })?;
                Ok((name, t))
            })
            .collect()
    }
}

fn missing(name: &str) -> EngineError {
    EngineError::Input { name: name.into(), why: "the model needs it and it was not fed".into() }
}

impl TractSession {
    /// Optimises the model for inputs of these types.
    fn plan(&mut self, signature: Signature) -> Result<Prepared, EngineError> {
        let Some(graph) = self.proto.graph.as_mut() else {
            return Err(EngineError::Load { engine: NAME, why: "it holds no graph".into() });
        };
        if let Some((name, ..)) = signature.iter().find(|(name, ..)| !graph.input.iter().any(|i| i.name == *name)) {
            return Err(EngineError::Input { name: name.clone(), why: "the model has no such input".into() });
        }
        // An overridden initializer must be an input only. Otherwise tract takes the default.
        let is_fed = |name: &str| signature.iter().any(|(n, ..)| n == name);
        let (aside, kept) = std::mem::take(&mut graph.initializer).into_iter().partition(|t| is_fed(&t.name));
        graph.initializer = kept;
        let plan = quietly(|| self.optimise(&signature));
        if let Some(graph) = self.proto.graph.as_mut() {
            graph.initializer.extend::<Vec<_>>(aside);
        }
        let (model, inputs) = plan??;
        Ok(Prepared { signature, model, inputs })
    }

    fn optimise(&self, signature: &Signature) -> Result<(Arc<TypedRunnableModel>, Vec<String>), EngineError> {
        let fail = load_error;
        let mut model = self.framework.parse(&self.proto, Some(&self.root)).map_err(fail)?.model;
        let sources = model.input_outlets().map_err(fail)?.to_vec();
        let inputs: Vec<String> = sources.iter().map(|o| model.node(o.node).name.clone()).collect();
        for (i, name) in inputs.iter().enumerate() {
            let (_, dtype, shape) = signature.iter().find(|(n, ..)| n == name).ok_or_else(|| missing(name))?;
            let datum = to_datum(*dtype)
                .ok_or_else(|| EngineError::Input { name: name.clone(), why: format!("tract has no type {dtype}") })?;
            let declared = model.input_fact(i).map_err(fail)?;
            if let Some(d) = tract_onnx::tract_hir::infer::Factoid::concretize(&declared.datum_type)
                && from_datum(d) != Some(*dtype)
            {
                let declared = from_datum(d).map_or_else(|| format!("{d:?}"), |d| d.to_string());
                let why = format!("it was fed {dtype} where the model declares {declared}");
                return Err(EngineError::Input { name: name.clone(), why });
            }
            model.set_input_fact(i, InferenceFact::dt_shape(datum, shape)).map_err(fail)?;
        }
        // tract's simplification ("declutter") takes a time that grows with the cube of a router's rows, and saves none where a model runs a few
        // times. Kernels are chosen without it.
        let mut typed = model.into_typed().map_err(fail)?;
        typed.optimize().map_err(fail)?;
        let plan = typed.into_runnable().map_err(fail)?;
        Ok((plan, inputs))
    }
}

fn load_error(e: TractError) -> EngineError {
    blame(&e).unwrap_or_else(|| EngineError::Load { engine: NAME, why: chain(&e) })
}

/// The whole chain of causes in one line.
fn chain(e: &TractError) -> String {
    format!("{e:#}")
}

/// The error with the node and the operator that it names, if it does. tract writes `node #12 "name" Operator`.
fn blame(e: &TractError) -> Option<EngineError> {
    e.chain().find_map(|cause| {
        let text = cause.to_string();
        let (_, rest) = text.split_once("#").filter(|(_, r)| r.starts_with(|c: char| c.is_ascii_digit()))?;
        let (_, rest) = rest.split_once(" \"")?;
        let (node, rest) = rest.split_once("\" ")?;
        let operator: String = rest.chars().take_while(|c| c.is_alphanumeric() || "._".contains(*c)).collect();
        (!operator.is_empty()).then(|| EngineError::Unsupported {
            engine: NAME,
            operator,
            node: node.to_string(),
            why: e.root_cause().to_string(),
        })
    })
}

/// Our tensor from tract's.
fn from_tract(t: &Tensor) -> Result<NpTensor, TractError> {
    let whole = if t.datum_type() == DatumType::TDim { t.cast_to::<i64>()? } else { std::borrow::Cow::Borrowed(t) };
    macro_rules! bytes {
        ($t:ty) => {
            whole.try_as_plain_ram()?.as_slice::<$t>()?.iter().flat_map(|v| v.to_le_bytes()).collect()
        };
    }
    let unknown = || TractError::msg(format!("elements of type {:?} cannot be read", whole.datum_type()));
    let dtype = from_datum(whole.datum_type()).ok_or_else(unknown)?;
    let data: Vec<u8> = match dtype {
        DType::F16 => bytes!(f16),
        DType::Bool => whole.try_as_plain_ram()?.as_slice::<bool>()?.iter().map(|v| *v as u8).collect(),
        other => with_type!(other, T => bytes!(T), return Err(unknown())),
    };
    NpTensor::new(dtype, whole.shape(), data).ok_or_else(|| TractError::msg("the result has a wrong size"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::samples;

    #[test]
    fn an_overridable_initializer_may_be_fed() {
        samples::overridable(&TractEngine);
    }

    #[test]
    fn the_batch_may_change_from_run_to_run() {
        samples::batches(&TractEngine);
        samples::handed_on(&TractEngine);
        samples::one_name(&TractEngine);
    }

    #[test]
    fn wrong_inputs_are_named() {
        samples::wrong_inputs(&TractEngine);
    }

    #[test]
    fn an_unknown_operator_is_named() {
        samples::unknown_operator(&TractEngine);
    }

    #[test]
    fn a_shape_comes_out_as_integers() {
        samples::shapes(&TractEngine);
    }

    #[test]
    fn a_shape_is_summed() {
        samples::running_sums_of_shapes(&TractEngine);
    }

    #[test]
    fn a_slice_to_the_largest_integer_reaches_the_end() {
        samples::slice_to_the_end(&TractEngine);
    }

    #[test]
    fn external_data_is_found() {
        samples::external(&TractEngine);
    }

    #[test]
    fn the_node_that_fails_is_named() {
        let model = samples::mismatched();
        let inputs = Tensors::from([("x".to_string(), NpTensor::f32s(&[2, 3], &[0.0; 6]).unwrap())]);
        match TractEngine.load(&model, None).unwrap().run(&inputs) {
            Err(EngineError::Unsupported { operator, node, .. }) => {
                assert!(operator.contains("MatMul") && node == "product", "{operator} {node}");
            }
            other => panic!("{other:?}"),
        }
    }
}
