//! tract's inference rules as an oracle of types, for what our own rules leave open.
//!
//! A node's rule is asked for its results given its operands. tract compiles a plan for every node of shape arithmetic, which costs
//! a hundred times what our own rules do: nothing of tract is set up before the first question.

use super::{framework, from_datum, is_known, quietly, to_datum, to_tract};
use ancre_passes::analysis::types::{Fact, Oracle, unnamed_dim};
use ancre_passes::ir::{ANCRE, DType, Dim, Graph, NodeId, Tensor, ValueId, ValueType};
use ancre_passes::onnx::node_message;
use ancre_passes::ops::eval::{Array, Domain, Facts, Poly};
use onnx_protobuf::{GraphProto, Message, ModelProto, OperatorSetIdProto};
use std::sync::Arc;
use tract_onnx::model::{Onnx, ParsingContext};
use tract_onnx::pb;
use tract_onnx::prelude::{DatumType, Framework, InferenceFact, InferenceModel, TDim, Tensor as TractTensor};
use tract_onnx::tract_hir::infer::{Factoid, GenericFactoid, InferenceOp, ShapeFactoid};
use tract_onnx::tract_hir::internal::{IntoArcTensor, SymbolScope, TVec, tensor1};

/// An integer constant with more elements is not part of shape arithmetic.
const MOST_INTS: usize = 4096;
/// A float constant with more elements is no list of scales, such as a resize reads.
const MOST_FLOATS: usize = 16;

/// tract as the source of types.
#[derive(Default)]
pub struct TractOracle(Option<Setup>);

/// What all questions about one graph share.
struct Setup {
    framework: Onnx,
    /// tract has no bfloat16. In a graph without float16, float16 stands in for it.
    half_is_brain: bool,
}

impl Oracle for TractOracle {
    fn ask(&mut self, g: &Graph, node: NodeId, known: &dyn Facts<Poly>) -> Option<Vec<Fact>> {
        let half_is_brain = || !g.nodes().any(|n| g.node(n).results().iter().any(|v| v.ty.dtype == Some(DType::F16)));
        let setup = self.0.get_or_insert_with(|| Setup { framework: framework(), half_is_brain: half_is_brain() });
        let template = InferenceModel::default();
        let symbols = template.symbols.clone();
        let q = Question { g, node, known, symbols: &symbols, half_is_brain: setup.half_is_brain };
        let op = g.op(node)?;
        if !is_known(&setup.framework, &op.domain, &op.name) || !q.axis_exists() || !q.rank_is_possible() {
            return None;
        }
        let model = model(g, node, &setup.framework)?;
        let message = model.graph.as_ref()?.node.first()?;
        let context = ParsingContext {
            onnx_operator_set_version: g.opsets.get("").copied().unwrap_or(0),
            framework: &setup.framework,
            model: &model,
            parent_graphs: vec![],
            model_dir: None,
            template,
        };
        let facts = quietly(|| q.infer(message, &context)).ok().flatten()?;
        let results = g.results(node).filter(|v| !g.name(*v).is_empty());
        let mut facts =
            results.zip(facts).map(|(v, fact)| (v.slot, q.learned(v, &fact))).collect::<Vec<_>>().into_iter().peekable();
        // tract leaves out results without a name.
        let all =
            g.results(node).map(|v| facts.next_if(|(slot, _)| *slot == v.slot).map(|(_, fact)| fact).unwrap_or_default());
        Some(all.collect())
    }
}

/// A model of one operator in tract's own form.
fn model(g: &Graph, node: NodeId, framework: &Onnx) -> Option<pb::ModelProto> {
    let version = |(domain, version): (&String, &i64)| OperatorSetIdProto {
        domain: domain.clone(),
        version: *version,
        ..Default::default()
    };
    let model = ModelProto {
        ir_version: 8,
        opset_import: g.opsets.iter().filter(|(domain, _)| *domain != ANCRE).map(version).collect(),
        graph: Some(GraphProto { node: vec![node_message(g, node).ok()?], ..Default::default() }).into(),
        ..Default::default()
    };
    framework.proto_model_for_read(&mut model.write_to_bytes().ok()?.as_slice()).ok()
}

/// One node whose results are asked for.
struct Question<'a> {
    g: &'a Graph,
    node: NodeId,
    known: &'a dyn Facts<Poly>,
    symbols: &'a SymbolScope,
    half_is_brain: bool,
}

impl Question<'_> {
    fn infer(&self, message: &pb::NodeProto, context: &ParsingContext) -> Option<Vec<InferenceFact>> {
        let builder = context.framework.op_register.0.get(&message.op_type)?;
        let (mut op, captured) = builder(context, message).ok()?;
        let outputs = message.output.iter().filter(|n| !n.is_empty()).count();
        if InferenceOp::nboutputs(&*op).ok()? != outputs {
            return None;
        }
        let captured = captured.iter().map(|name| self.g.find(name)).collect::<Option<Vec<_>>>()?;
        let operands = self.g.operands(self.node).iter().flatten().copied().chain(captured);
        let inputs: Vec<InferenceFact> = operands.map(|v| self.operand(v)).collect();
        let results = vec![InferenceFact::default(); outputs];
        let (_, facts, _) = op.infer(inputs.iter().collect::<TVec<_>>(), results.iter().collect(), TVec::new()).ok()?;
        Some(facts.into_vec())
    }

    /// What is known of an operand. Its elements are included where they take part in the arithmetic on shapes.
    fn operand(&self, v: ValueId) -> InferenceFact {
        let array = self.known.array(v);
        array.and_then(|array| self.elements(&array)).unwrap_or_else(|| self.fact(&self.known.ty(v)))
    }

    /// The fact that carries elements, as far as tract has a form for them.
    fn elements(&self, array: &Array<Poly>) -> Option<InferenceFact> {
        if let Some(constant) = array.to_tensor() {
            return small_constant(&constant);
        }
        let shape: Vec<usize> = array.dims.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<_>>()?;
        let extents = array.extents().filter(|_| array.dtype == DType::I64)?;
        let extents: Vec<TDim> = extents.iter().map(|d| tdim(d, self.symbols)).collect();
        InferenceFact::try_from(tensor1(&extents).into_shape(&shape).ok()?.into_arc_tensor()).ok()
    }

    /// What tract says of a result.
    fn learned(&self, v: ValueId, fact: &InferenceFact) -> Fact {
        let dtype = fact.datum_type.concretize().and_then(|t| match t {
            DatumType::F16 if self.half_is_brain => Some(DType::BF16),
            t => from_datum(t),
        });
        let named = |(axis, d): (usize, &GenericFactoid<TDim>)| match d {
            GenericFactoid::Only(d) => dim(d),
            GenericFactoid::Any => unnamed_dim(self.g.name(v), axis),
        };
        let shape = (!fact.shape.is_open()).then(|| fact.shape.dims().enumerate().map(named).collect());
        Fact { ty: ValueType { dtype, shape }, elements: fact.value.concretize().and_then(|t| integers(&t)) }
    }

    fn fact(&self, ty: &ValueType) -> InferenceFact {
        let datum = ty.dtype.and_then(|t| match t {
            DType::BF16 if self.half_is_brain => Some(DatumType::F16),
            t => to_datum(t),
        });
        let closed = |shape: &Vec<Dim>| {
            ShapeFactoid::closed(shape.iter().map(|d| GenericFactoid::Only(tdim(d, self.symbols))).collect())
        };
        InferenceFact {
            datum_type: datum.map_or(GenericFactoid::Any, GenericFactoid::Only),
            shape: ty.shape.as_ref().map(closed).unwrap_or_default(),
            value: GenericFactoid::Any,
        }
    }

    /// Does the shape that a `ConstantOfShape` reads have a possible length? tract makes an extent for each of its elements.
    fn rank_is_possible(&self) -> bool {
        const MOST_AXES: i64 = 1 << 10;
        let length = || self.known.ty(self.g.operand(self.node, 0)?).shape?.first()?.known();
        !self.g.is_op(self.node, "ConstantOfShape") || length().is_none_or(|n| n <= MOST_AXES)
    }

    /// Does the first operand have the axis? (`Flatten`'s may be one past the last.) Some of tract's rules count up to the axis
    /// unchecked, and in a damaged file that is up to 2^64 steps.
    fn axis_exists(&self) -> bool {
        let Some(op) = self.g.op(self.node) else { return false };
        let rank = self.g.operand(self.node, 0).and_then(|v| self.known.ty(v).shape).map(|s| s.len() as i64);
        let axis = op.int("axis");
        let most = rank.unwrap_or(64);
        (-most..=most).contains(&axis)
    }
}

/// The fact that carries a small constant's elements.
fn small_constant(t: &Tensor) -> Option<InferenceFact> {
    let limit = if t.dtype().is_float() { MOST_FLOATS } else { MOST_INTS };
    if t.len() > limit {
        return None;
    }
    to_tract(t.dtype(), &t.dims().iter().map(|d| *d as usize).collect::<Vec<_>>(), &t.bytes().ok()?)
        .and_then(|t| InferenceFact::try_from(t.into_arc_tensor()))
        .ok()
}

/// The elements of a result of shape arithmetic.
fn integers(t: &TractTensor) -> Option<Array<Poly>> {
    let dims = t.shape().iter().map(|d| *d as i64).collect();
    let extents = t.cast_to::<TDim>().ok()?;
    let element = |d: &TDim| convert(d, &|_| None).and_then(|d| Poly::extent(&d));
    let elements = extents.try_as_plain_ram().ok()?.as_slice::<TDim>().ok()?.iter().map(element).collect::<Option<_>>()?;
    matches!(t.datum_type(), DatumType::I64 | DatumType::TDim).then_some(Array { dtype: DType::I64, dims, elements })
}

/// Our polynomial as tract's expression.
fn tdim(d: &Dim, symbols: &SymbolScope) -> TDim {
    let term = |(names, c): (&[Arc<str>], i64)| {
        names.iter().fold(TDim::Val(c), |product, name| product * TDim::Sym(symbols.sym(name)))
    };
    d.terms().map(term).fold(TDim::Val(0), |sum, t| sum + t)
}

/// tract's expression as our polynomial. An expression that is no polynomial (a quotient, a maximum) becomes one symbol that is
/// named by its text, so that equal expressions stay equal.
fn dim(d: &TDim) -> Dim {
    convert(d, &|other| Some(Dim::symbol(&other.to_string()))).unwrap_or_else(|| Dim::symbol(&d.to_string()))
}

/// Converts an expression part by part; `other` converts the parts that are no polynomials.
fn convert(d: &TDim, other: &dyn Fn(&TDim) -> Option<Dim>) -> Option<Dim> {
    match d {
        TDim::Val(v) => Some(Dim::from(*v)),
        TDim::Sym(s) => Some(Dim::symbol(&s.to_string())),
        TDim::Add(terms) => terms.iter().try_fold(Dim::from(0), |sum, t| Some(&sum + &convert(t, other)?)),
        TDim::Mul(factors) => factors.iter().try_fold(Dim::from(1), |product, f| Some(&product * &convert(f, other)?)),
        TDim::MulInt(c, d) => Some(&Dim::from(*c) * &convert(d, other)?),
        _ => other(d),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ancre_passes::analysis::types::{Coverage, resolve_types};
    use ancre_passes::ir::{Attrs, Op, TensorType};
    use onnx_protobuf::TensorProto;

    fn op(g: &mut Graph, op: Op, operands: &[ValueId], result: &str) -> ValueId {
        let operands: Vec<Option<ValueId>> = operands.iter().copied().map(Some).collect();
        let node = g.add_op("", op, &operands);
        g.push_result(node, result, ValueType::default())
    }

    fn named(g: &Graph, name: &str) -> String {
        g.value(g.find(name).unwrap()).ty.to_string()
    }

    fn input(g: &mut Graph, name: &str, dims: &[Dim]) -> ValueId {
        g.add_input(name, TensorType::new(DType::F32, dims).into(), None)
    }

    #[test]
    fn arithmetic_on_shapes_is_carried_through() {
        // y = Reshape(x, Concat(Shape(x)[0] * 12, -1)), as legacy exporters write a view
        let mut g = Graph::default();
        let x = input(&mut g, "x", &[Dim::symbol("batch size"), Dim::from(24), Dim::from(8)]);
        let shape = op(&mut g, Op::new("Shape", Attrs::new()), &[x], "shape");
        let zero = g.add_initializer("zero", Tensor::i64s(&[1], &[0]), false);
        let twelve = g.add_initializer("twelve", Tensor::i64s(&[1], &[12]), false);
        let rest = g.add_initializer("rest", Tensor::i64s(&[1], &[-1]), false);
        let batch = op(&mut g, Op::new("Gather", Attrs::new()), &[shape, zero], "batch");
        let rows = op(&mut g, Op::new("Mul", Attrs::new()), &[batch, twelve], "rows");
        let target = op(&mut g, Op::new("Concat", Attrs::new().with("axis", 0)), &[rows, rest], "target");
        let y = op(&mut g, Op::new("Reshape", Attrs::new()), &[x, target], "y");
        g.add_output(y, None);
        assert_eq!(resolve_types(&mut g, Some(&mut TractOracle::default())), Coverage { values: 5, ..Default::default() });
        assert_eq!(named(&g, "y"), "f32[12*batch size,16]");
        assert_eq!(named(&g, "rows"), "i64[1]");
    }

    #[test]
    fn a_slice_to_the_largest_integer_reaches_the_end() {
        // Bounds as dynamo writes them before optimisation: Reshape(Cast(2^63 - 1), [-1]).
        let mut g = Graph::default();
        let x = input(&mut g, "x", &[Dim::symbol("n"), Dim::from(9)]);
        let ints =
            |g: &mut Graph, name: &str, dims: &[i64], v: i64| g.add_initializer(name, Tensor::i64s(dims, &[v]), false);
        let (largest, minus_one) = (ints(&mut g, "largest", &[], i64::MAX), ints(&mut g, "minus one", &[1], -1));
        let largest = op(&mut g, Op::new("Cast", Attrs::new().with("to", 7)), &[largest], "cast");
        let zero = ints(&mut g, "zero", &[1], 0);
        let (one, two) = (ints(&mut g, "one", &[1], 1), ints(&mut g, "two", &[1], 2));
        let end = op(&mut g, Op::new("Reshape", Attrs::new().with("allowzero", 0)), &[largest, minus_one], "end");
        let all = op(&mut g, Op::new("Slice", Attrs::new()), &[x, zero, end, zero, one], "all");
        let half = op(&mut g, Op::new("Slice", Attrs::new()), &[all, zero, end, one, two], "half");
        g.add_output(half, None);
        g.opsets.insert(String::new(), 18);
        resolve_types(&mut g, Some(&mut TractOracle::default()));
        assert_eq!(named(&g, "all"), "f32[n,9]");
        assert_eq!(named(&g, "half"), "f32[n,5]");
    }

    #[test]
    fn weights_are_not_read() {
        let mut p = TensorProto { name: "w".into(), dims: vec![8, 3], data_type: 1, ..Default::default() };
        p.data_location = onnx_protobuf::tensor_proto::DataLocation::EXTERNAL.into();
        let mut g = Graph::default();
        let x = input(&mut g, "x", &[Dim::symbol("n"), Dim::from(8)]);
        let w = g.add_initializer("w", Tensor::from_proto(p.clone(), None).unwrap(), false);
        let constant = Op::new("Constant", Attrs::new().with("value", Tensor::from_proto(p, None).unwrap()));
        let c = op(&mut g, constant, &[], "c");
        let sum = op(&mut g, Op::new("Add", Attrs::new()), &[w, c], "sum");
        let y = op(&mut g, Op::new("MatMul", Attrs::new()), &[x, sum], "y");
        g.add_output(y, None);
        assert!(resolve_types(&mut g, Some(&mut TractOracle::default())).unresolved.is_empty());
        assert_eq!(named(&g, "y"), "f32[n,3]");
    }

    #[test]
    fn an_unknown_operator_loses_only_itself() {
        let mut g = Graph::default();
        let x = input(&mut g, "x", &[Dim::symbol("n"), Dim::from(8)]);
        // `Relu` of another domain is not the `Relu` that tract knows.
        let a = op(&mut g, Op::in_domain("custom", "Relu", Attrs::new()), &[x], "a");
        let b = op(&mut g, Op::new("Relu", Attrs::new()), &[x], "b");
        g.add_output(a, None);
        g.add_output(b, None);
        assert_eq!(resolve_types(&mut g, Some(&mut TractOracle::default())).unresolved, ["a"]);
        assert_eq!(named(&g, "b"), "f32[n,8]");
    }

    #[test]
    fn the_declaration_carries_on_behind_an_unknown_operator() {
        let mut g = Graph::default();
        let ty = TensorType::new(DType::F32, [Dim::symbol("n"), Dim::from(8)]);
        let x = g.add_input("x", ty.clone().into(), None);
        let a = op(&mut g, Op::in_domain("custom", "Strange", Attrs::new()), &[x], "a");
        g.set_type(a, ty.into());
        g.add_output(a, None);
        // Written and read again, the output's declaration is all that is known of it.
        let bytes = ancre_passes::onnx::emit(&g).unwrap().to_bytes().unwrap();
        let mut g = ancre_passes::onnx::import(ModelProto::parse_from_bytes(&bytes).unwrap(), None).unwrap();
        let a = g.find("a").unwrap();
        let b = op(&mut g, Op::new("Flatten", Attrs::new()), &[a], "b");
        g.add_output(b, None);
        assert!(resolve_types(&mut g, Some(&mut TractOracle::default())).unresolved.is_empty());
        assert_eq!(named(&g, "b"), "f32[n,8]");
    }

    #[test]
    fn filling_without_a_value_gives_float32() {
        let mut g = Graph::default();
        let shape = g.add_initializer("shape", Tensor::i64s(&[2], &[2, 3]), false);
        let y = op(&mut g, Op::new("ConstantOfShape", Attrs::new()), &[shape], "y");
        g.add_output(y, None);
        resolve_types(&mut g, Some(&mut TractOracle::default()));
        assert_eq!(named(&g, "y"), "f32[2,3]");
    }

    #[test]
    fn bfloat16_goes_through_an_engine_that_has_none() {
        let mut g = Graph::default();
        let ty = TensorType::new(DType::BF16, [Dim::symbol("n"), Dim::from(4)]);
        let x = g.add_input("x", ty.into(), None);
        let y = op(&mut g, Op::new("Softmax", Attrs::new().with("axis", -1)), &[x], "y");
        g.add_output(y, None);
        resolve_types(&mut g, Some(&mut TractOracle::default()));
        assert_eq!(named(&g, "y"), "bf16[n,4]");
    }

    #[test]
    fn what_is_no_polynomial_keeps_its_text() {
        let symbols = SymbolScope::default();
        let n = TDim::Sym(symbols.sym("n"));
        assert_eq!(dim(&(n.clone() * 3 + 1)), &(&Dim::symbol("n") * &Dim::from(3)) + &Dim::from(1));
        assert_eq!(dim(&((n.clone() + 1) / 2)), dim(&((n.clone() + 1) / 2)));
        assert_ne!(dim(&((n.clone() + 1) / 2)), dim(&(n.clone() / 2)));
        let polynomial = &(&Dim::symbol("n") * &Dim::symbol("m")) - &Dim::from(2);
        assert_eq!(dim(&tdim(&polynomial, &symbols)), polynomial);
    }
}
