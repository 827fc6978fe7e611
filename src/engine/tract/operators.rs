//! tract's ONNX reader, with the operators replaced whose reading differs from ONNX.

use std::sync::OnceLock;
use tract_onnx::model::{Onnx, ParsingContext};
use tract_onnx::pb::{NodeProto, TensorProto};
use tract_onnx::prelude::{DatumType, TractResult};
use tract_onnx::tract_hir::infer::InferenceOp;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::ops::array::ConstantOfShape;
use tract_onnx::tract_hir::tract_core::ops::array::CumSum as CoreCumSum;
use tract_onnx::tract_hir::tract_core::ops::cast::cast;
use tract_onnx::tract_hir::tract_core::ops::identity::Identity;

/// tract's ONNX reader, set up so that declared types cannot mislead it.
pub(super) fn framework() -> Onnx {
    let mut framework = tract_onnx::onnx().with_ignore_value_info(true).with_ignore_output_shapes(true);
    framework.op_register.insert("BatchNormalization", batch_normalization);
    framework.op_register.insert("Cast", cast_operator);
    framework.op_register.insert("ConstantOfShape", constant_of_shape);
    framework.op_register.insert("CumSum", cumulative_sum);
    for name in ["LSTM", "GRU", "RNN"] {
        framework.op_register.insert(name, recurrence);
    }
    framework
}

/// As tract's own, which knows no `spatial = 0`: beside a scale of one number a channel it says nothing.
fn batch_normalization(cx: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let mut initializers = cx.model.graph.iter().flat_map(|g| &g.initializer);
    let scale = initializers.find(|t| node.input.get(1) == Some(&t.name)).map(|t| t.dims.len());
    let mut node = node.clone();
    node.attribute.retain(|a| a.name != "spatial" || (a.i == 0 && scale != Some(1)));
    tracts_own("BatchNormalization")?(cx, &node)
}

/// A reader of nodes.
type Reader = fn(&ParsingContext, &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// How tract reads an operator.
fn tracts_own(name: &str) -> TractResult<Reader> {
    static OWN: OnceLock<Onnx> = OnceLock::new();
    OWN.get_or_init(tract_onnx::onnx).op_register.0.get(name).copied().with_context(|| format!("tract reads no {name}"))
}

fn cast_operator(cx: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    if node.get_attr::<DatumType>("to")? == DatumType::I64 {
        return Ok((expand(CastToInt64), vec![]));
    }
    tracts_own("Cast")?(cx, node)
}

/// As tract's own, which passes over attributes that change what a recurrence computes.
fn recurrence(cx: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let usual: &[&str] = match node.op_type.as_str() {
        "LSTM" => &["Sigmoid", "Tanh", "Tanh"],
        "GRU" => &["Sigmoid", "Tanh"],
        _ => &["Tanh"],
    };
    let given = node.attribute.iter().filter(|a| a.name == "activations").flat_map(|a| &a.strings);
    let is_usual = |(given, usual): (&Vec<u8>, &&str)| given.eq_ignore_ascii_case(usual.as_bytes());
    ensure!(given.zip(usual.iter().cycle()).all(is_usual), "tract takes no other activations than the defaults");
    for name in ["clip", "input_forget"] {
        ensure!(!node.attribute.iter().any(|a| a.name == name && (a.i, a.f) != (0, 0.0)), "tract takes no `{name}`");
    }
    tracts_own(&node.op_type)?(cx, node)
}

/// A cast to tract's shape arithmetic, as tract's own, that leaves int64 as it is. tract's own goes through 32 bits, which turns
/// the largest integer, the bound of a slice "to the end", into -1.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct CastToInt64;

impl Expansion for CastToInt64 {
    fn name(&self) -> StaticName {
        "CastToInt64".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 1)?;
        same_shape(s, inputs, outputs, |t| if t == DatumType::I64 { t } else { DatumType::TDim })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        if model.outlet_fact(inputs[0])?.datum_type == DatumType::I64 {
            return model.wire_node(prefix, Identity, inputs);
        }
        model.wire_node(prefix, cast(DatumType::TDim), inputs)
    }
}

/// As tract's own, but fills with float32 zeros when no value is given, as ONNX says. tract's own fills with float64 zeros.
fn constant_of_shape(cx: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let value = match node.get_attr_opt::<&TensorProto>("value")? {
        Some(value) => cx.load_tensor(value)?,
        None => tensor0(0f32),
    };
    ensure!(value.len() == 1, "the value to fill with must be one number");
    Ok((expand(ConstantOfShape::new(value.into_shape(&[])?.into_arc_tensor())), vec![]))
}

fn cumulative_sum(_: &ParsingContext, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let is_set = |name| Ok::<_, TractError>(node.get_attr_opt::<i64>(name)? == Some(1));
    Ok((expand(CumulativeSum { exclusive: is_set("exclusive")?, reverse: is_set("reverse")? }), vec![]))
}

/// As tract's own, but also sums values of the shape arithmetic (decoders count positions from a mask of ones) and takes an axis
/// that is a tensor of one element.
#[derive(Clone, Debug, Hash, PartialEq, Eq)]
struct CumulativeSum {
    exclusive: bool,
    reverse: bool,
}

impl Expansion for CumulativeSum {
    fn name(&self) -> StaticName {
        "CumSum".into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 2)?;
        same_shape(s, inputs, outputs, |t| if t == DatumType::TDim { DatumType::I64 } else { t })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let axis = model.outlet_fact(inputs[1])?.konst.clone().context("the axis must be a constant")?;
        ensure!(axis.len() == 1, "the axis must be one number");
        let axis = axis.cast_to::<i64>()?.try_as_plain_ram()?.as_slice::<i64>()?[0];
        let fact = model.outlet_fact(inputs[0])?.clone();
        let rank = fact.rank() as i64;
        ensure!((-rank..rank).contains(&axis), "the axis {axis} is not one of a tensor of rank {rank}");
        let mut summed = tvec!(inputs[0]);
        if fact.datum_type == DatumType::TDim {
            summed = model.wire_node(format!("{prefix}.whole"), cast(DatumType::I64), &summed)?;
        }
        let axis = (if axis < 0 { axis + rank } else { axis }) as usize;
        model.wire_node(prefix, CoreCumSum { axis, exclusive: self.exclusive, reverse: self.reverse }, &summed)
    }
}

/// The rule of a result that has the first operand's shape, and an element type that follows from the operand's.
fn same_shape<'r, 'p: 'r>(
    s: &mut Solver<'r>,
    inputs: &'p [TensorProxy],
    outputs: &'p [TensorProxy],
    result: fn(DatumType) -> DatumType,
) -> InferenceResult {
    check_output_arity(outputs, 1)?;
    s.equals(&inputs[0].shape, &outputs[0].shape)?;
    s.given(&inputs[0].datum_type, move |s, t| s.equals(&outputs[0].datum_type, result(t)))
}
