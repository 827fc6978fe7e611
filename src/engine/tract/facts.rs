//! Types of values by tract's inference rules.
//!
//! The graph is walked once, producers first, and each node's rule is asked for its results given its operands. Weights are
//! typed values without bytes, so no external file is read; small integer constants keep their elements, and tract carries
//! the arithmetic on shapes through, symbols included. What our own rules say in full is not asked for: tract compiles a plan
//! for every node of such arithmetic. A node tract cannot do falls back to our own rule and then to the source's declaration,
//! so one unknown operator does not lose what follows it.

use super::{framework, from_datum, is_known, quietly, to_datum, to_tract};
use ancre_passes::analysis::types::{ShapeOracle, declared, infer_node_knowing, is_resolved, merge, unnamed_dim};
use ancre_passes::ir::{ANCRE, DType, Dim, Graph, Kind, NodeId, Tensor, TensorType, ValueId, ValueType};
use ancre_passes::onnx::node_message;
use ancre_passes::ops::constant_extents;
use ancre_passes::ops::eval::{Array, Facts, Poly, evaluate_node};
use indexmap::IndexMap;
use onnx_protobuf::{GraphProto, Message, ModelProto, OperatorSetIdProto};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;
use tract_onnx::model::{Onnx, ParsingContext};
use tract_onnx::pb;
use tract_onnx::prelude::{DatumType, Framework, InferenceFact, InferenceModel, TDim};
use tract_onnx::tract_hir::infer::{Factoid, GenericFactoid, InferenceOp, ShapeFactoid};
use tract_onnx::tract_hir::internal::{IntoArcTensor, SymbolScope, TVec, tensor1};

/// Elements above which an integer constant is not part of shape arithmetic.
const MOST_INTS: usize = 4096;
/// The same for floats, which take part only as scales of a resize and the like.
const MOST_FLOATS: usize = 16;

/// tract as the source of shape facts.
#[derive(Clone, Copy, Debug, Default)]
pub struct TractOracle;

impl ShapeOracle for TractOracle {
    fn facts(&self, g: &Graph) -> Result<IndexMap<String, ValueType>, String> {
        let order = g.topological_order();
        let framework = framework();
        let model = model(g, None, &framework).ok_or("the operator sets cannot be read")?;
        let template = InferenceModel::default();
        let mut walk = Walk {
            g,
            symbols: template.symbols.clone(),
            declared: declared(g),
            half_is_brain: !has_type(g, DType::F16),
            facts: HashMap::with_capacity(g.node_bound()),
            integers: HashMap::new(),
        };
        let context = ParsingContext {
            onnx_operator_set_version: g.opsets.get("").copied().unwrap_or(0),
            framework: &framework,
            model: &model,
            parent_graphs: vec![],
            model_dir: None,
            template,
        };
        for node in order {
            walk.visit(node, &context);
        }
        Ok(walk.into_types())
    }
}

/// Is the node an operator that tract is asked about? Constants are made without it.
fn is_asked(g: &Graph, node: NodeId, framework: &Onnx) -> bool {
    g.op(node).is_some_and(|op| !op.is("Constant") && is_known(framework, &op.domain, &op.name))
}

fn has_type(g: &Graph, dtype: DType) -> bool {
    g.nodes().any(|n| g.node(n).results().iter().any(|v| v.ty.dtype == Some(dtype)))
}

/// A model in tract's own form: of one operator, or of none.
fn model(g: &Graph, node: Option<NodeId>, framework: &Onnx) -> Option<pb::ModelProto> {
    let version = |(domain, version): (&String, &i64)| OperatorSetIdProto {
        domain: domain.clone(),
        version: *version,
        ..Default::default()
    };
    let node = node.map(|n| node_message(g, n)).transpose().ok()?.into_iter().collect();
    let model = ModelProto {
        ir_version: 8,
        opset_import: g.opsets.iter().filter(|(domain, _)| *domain != ANCRE).map(version).collect(),
        graph: Some(GraphProto { node, ..Default::default() }).into(),
        ..Default::default()
    };
    framework.proto_model_for_read(&mut model.write_to_bytes().ok()?.as_slice()).ok()
}

struct Walk<'g> {
    g: &'g Graph,
    symbols: SymbolScope,
    declared: HashMap<String, ValueType>,
    /// tract has no bfloat16. Where the graph has no float16 either, that stands in for it.
    half_is_brain: bool,
    facts: HashMap<ValueId, InferenceFact>,
    /// The arithmetic on shapes that we follow ourselves; `facts` has its elements too.
    integers: HashMap<ValueId, Array<Poly>>,
}

impl Facts<Poly> for Walk<'_> {
    fn array(&self, v: ValueId) -> Option<Cow<'_, Array<Poly>>> {
        self.integers.get(&v).map(Cow::Borrowed)
    }

    /// Polynomials only: in any other form an extent would lose what tract knows about it.
    fn ty(&self, v: ValueId) -> ValueType {
        let shape = self.facts.get(&v).and_then(|f| f.shape.concretize()?.iter().map(polynomial).collect());
        ValueType { shape, ..self.type_of(v) }
    }
}

impl Walk<'_> {
    fn visit(&mut self, node: NodeId, context: &ParsingContext) {
        let g = self.g;
        match &g.node(node).kind {
            Kind::Input(_) => self.learn_types(node, vec![g.value(g.result(node, 0)).ty.clone()]),
            Kind::Initializer { tensor, overridable } => self.constant(g.result(node, 0), tensor, !overridable),
            Kind::Op(op) => {
                if op.is("Constant")
                    && let Some(tensor) = op.attrs.tensor("value")
                {
                    return self.constant(g.result(node, 0), tensor, true);
                }
                if self.counts(node) || self.rule_is_enough(node) {
                    return;
                }
                if let Some(facts) = self.ask(node, context) {
                    let results = g.results(node).filter(|v| !g.name(*v).is_empty());
                    self.facts.extend(results.zip(facts));
                }
                let open = g.results(node).any(|v| !is_resolved(&self.type_of(v)));
                if open {
                    self.fall_back(node);
                }
            }
        }
    }

    /// What our own shape rule says.
    fn own_rule(&self, node: NodeId) -> Option<Vec<TensorType>> {
        let extents_of = |v| self.integers.get(&v).and_then(Array::extents).or_else(|| constant_extents(self.g, v));
        infer_node_knowing(self.g, node, &|v| self.type_of(v).tensor(), &extents_of)
    }

    /// Are the node's results a few integers that we can tell?
    fn counts(&mut self, node: NodeId) -> bool {
        let Some(found) = evaluate_node(self.g, node, self, MOST_INTS) else { return false };
        let all: Option<Vec<InferenceFact>> = found.iter().map(|array| self.counted(array)).collect();
        let Some(facts) = all else { return false };
        for ((v, fact), array) in self.g.results(node).zip(facts).zip(found) {
            self.facts.insert(v, fact);
            self.integers.insert(v, array);
        }
        true
    }

    /// The fact that carries integers of shape arithmetic, as far as tract has a form for them.
    fn counted(&self, found: &Array<Poly>) -> Option<InferenceFact> {
        if found.dtype.is_float() {
            return None;
        }
        if let Some(constant) = found.to_tensor() {
            return small_constant(&constant);
        }
        if found.dtype == DType::I64 {
            let shape: Vec<usize> = found.dims.iter().map(|d| usize::try_from(*d).ok()).collect::<Option<_>>()?;
            let extents: Vec<TDim> = found.extents()?.iter().map(|d| tdim(d, &self.symbols)).collect();
            return InferenceFact::try_from(tensor1(&extents).into_shape(&shape).ok()?.into_arc_tensor()).ok();
        }
        Some(self.fact(&TensorType::fixed(found.dtype, &found.dims).into()))
    }

    /// Our own rule, which costs a hundredth of tract's inference, where it says all there is to know: the types of results
    /// that take no part in the arithmetic on shapes.
    fn rule_is_enough(&mut self, node: NodeId) -> bool {
        let g = self.g;
        let known = |v: ValueId| self.facts.get(&v).is_some_and(|f| f.value.concretize().is_some());
        if g.op(node).is_some_and(|op| op.is("Shape") || op.is("Size"))
            || g.operands(node).iter().flatten().copied().all(known)
        {
            return false;
        }
        let Some(types) = self.own_rule(node) else { return false };
        let types: Vec<ValueType> = types.into_iter().map(Into::into).collect();
        let all = types.len() == g.results(node).count() && types.iter().all(is_resolved);
        if all {
            self.learn_types(node, types);
        }
        all
    }

    /// What our own rule, else the declaration says of results that tract does not know.
    fn fall_back(&mut self, node: NodeId) {
        let g = self.g;
        let own = self.own_rule(node).unwrap_or_default();
        let types = g.results(node).enumerate().map(|(i, v)| {
            let mut ty = ValueType::default();
            for worse_first in
                [self.declared.get(g.name(v)).cloned(), own.get(i).cloned().map(Into::into)].into_iter().flatten()
            {
                ty = merge(&ty, worse_first);
            }
            merge(&ty, self.type_of(v))
        });
        let types = types.collect();
        self.learn_types(node, types);
    }

    fn learn_types(&mut self, node: NodeId, types: Vec<ValueType>) {
        for (v, ty) in self.g.results(node).zip(types) {
            let known = self.facts.remove(&v).unwrap_or_default();
            let fact = InferenceFact { value: known.value, ..self.fact(&ty) };
            self.facts.insert(v, fact);
        }
    }

    fn constant(&mut self, v: ValueId, tensor: &Tensor, fixed: bool) {
        let inside = fixed && tensor.external().is_none();
        if inside
            && !tensor.dtype().is_float()
            && let Some(found) = Array::of_tensor(tensor, MOST_INTS)
        {
            self.integers.insert(v, found);
        }
        let fact = inside.then(|| small_constant(tensor)).flatten();
        let fact = fact.unwrap_or_else(|| self.fact(&TensorType::fixed(tensor.dtype(), tensor.dims()).into()));
        self.facts.insert(v, fact);
    }

    /// Facts of the node's results by tract's rule, or `None` when it has none or fails.
    fn ask(&self, node: NodeId, context: &ParsingContext) -> Option<Vec<InferenceFact>> {
        if !is_asked(self.g, node, context.framework) || !self.axis_exists(node) || !self.rank_is_possible(node) {
            return None;
        }
        let own = model(self.g, Some(node), context.framework)?;
        let message = own.graph.as_ref()?.node.first()?;
        let builder = context.framework.op_register.0.get(&message.op_type)?;
        quietly(|| {
            let (mut op, captured) = builder(context, message).ok()?;
            let outputs = message.output.iter().filter(|n| !n.is_empty()).count();
            if InferenceOp::nboutputs(&*op).ok()? != outputs {
                return None;
            }
            let operands = self.g.operands(node).iter().flatten().copied();
            let captured = captured.iter().map(|name| self.g.find(name)).collect::<Option<Vec<_>>>()?;
            let open = InferenceFact::default();
            let inputs: TVec<&InferenceFact> =
                operands.chain(captured).map(|v| self.facts.get(&v).unwrap_or(&open)).collect();
            let results = vec![InferenceFact::default(); outputs];
            let (_, facts, _) = op.infer(inputs, results.iter().collect(), TVec::new()).ok()?;
            Some(facts.into_vec())
        })
        .flatten()
    }

    /// Is the shape that a `ConstantOfShape` reads as long as one may be? tract makes an extent for each of its elements.
    fn rank_is_possible(&self, node: NodeId) -> bool {
        const MOST_AXES: i64 = 1 << 10;
        let length = || self.ty(self.g.operand(node, 0)?).shape?.first()?.known();
        !self.g.is_op(node, "ConstantOfShape") || length().is_none_or(|n| n <= MOST_AXES)
    }

    /// Is the axis of the first operand there (`Flatten`'s may be one past the last)? Some of tract's rules count up to it
    /// unchecked, and a damaged one is up to 2^64 steps away.
    fn axis_exists(&self, node: NodeId) -> bool {
        let Some(op) = self.g.op(node) else { return false };
        let rank = self.g.operand(node, 0).and_then(|v| self.facts.get(&v)).and_then(|f| f.shape.rank().concretize());
        let last_by_default = matches!(op.name.as_str(), "LayerNormalization" | "RMSNormalization");
        let axis = op.attrs.int("axis", if last_by_default { -1 } else { 0 });
        let most = rank.unwrap_or(64);
        (-most..=most).contains(&axis)
    }

    fn type_of(&self, v: ValueId) -> ValueType {
        let Some(fact) = self.facts.get(&v) else { return ValueType::default() };
        let dtype = fact.datum_type.concretize().and_then(|t| match t {
            DatumType::F16 if self.half_is_brain => Some(DType::BF16),
            t => from_datum(t),
        });
        let shape = (!fact.shape.is_open()).then(|| {
            let named = |(axis, d): (usize, &GenericFactoid<TDim>)| match d {
                GenericFactoid::Only(d) => dim(d),
                GenericFactoid::Any => unnamed_dim(self.g.name(v), axis),
            };
            fact.shape.dims().enumerate().map(named).collect()
        });
        ValueType { dtype, shape }
    }

    fn fact(&self, ty: &ValueType) -> InferenceFact {
        let datum = ty.dtype.and_then(|t| match t {
            DType::BF16 if self.half_is_brain => Some(DatumType::F16),
            t => to_datum(t),
        });
        let shape = ty
            .shape
            .as_ref()
            .map(|shape| ShapeFactoid::closed(shape.iter().map(|d| GenericFactoid::Only(tdim(d, &self.symbols))).collect()));
        InferenceFact {
            datum_type: datum.map_or(GenericFactoid::Any, GenericFactoid::Only),
            shape: shape.unwrap_or_default(),
            value: GenericFactoid::Any,
        }
    }

    /// Types of the operators' results, as far as anything is known.
    fn into_types(self) -> IndexMap<String, ValueType> {
        let g = self.g;
        let results = g.nodes().filter(|n| g.op(*n).is_some()).flat_map(|n| g.results(n));
        results
            .map(|v| (g.name(v).to_string(), self.type_of(v)))
            .filter(|(name, ty)| !name.is_empty() && *ty != ValueType::default())
            .collect()
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

/// Our polynomial as tract's expression.
fn tdim(d: &Dim, symbols: &SymbolScope) -> TDim {
    let term = |(names, c): (&[Arc<str>], i64)| {
        names.iter().fold(TDim::Val(c), |product, name| product * TDim::Sym(symbols.sym(name)))
    };
    d.terms().map(term).fold(TDim::Val(0), |sum, t| sum + t)
}

/// tract's expression as our polynomial. What is none (a quotient, a maximum) becomes one symbol named by its text, so that
/// equal expressions stay equal.
fn dim(d: &TDim) -> Dim {
    convert(d, &|other| Some(Dim::symbol(&other.to_string()))).unwrap_or_else(|| Dim::symbol(&d.to_string()))
}

/// tract's expression if it is a polynomial.
fn polynomial(d: &TDim) -> Option<Dim> {
    convert(d, &|_| None)
}

/// An expression by its parts; `other` says what becomes of those that are no polynomials.
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
    use ancre_passes::ir::{Attrs, Op};
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
        assert_eq!(resolve_types(&mut g, Some(&TractOracle)), Coverage { values: 5, ..Default::default() });
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
        resolve_types(&mut g, Some(&TractOracle));
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
        assert!(resolve_types(&mut g, Some(&TractOracle)).unresolved.is_empty());
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
        assert_eq!(resolve_types(&mut g, Some(&TractOracle)).unresolved, ["a"]);
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
        assert!(resolve_types(&mut g, Some(&TractOracle)).unresolved.is_empty());
        assert_eq!(named(&g, "b"), "f32[n,8]");
    }

    #[test]
    fn filling_without_a_value_gives_float32() {
        let mut g = Graph::default();
        let shape = g.add_initializer("shape", Tensor::i64s(&[2], &[2, 3]), false);
        let y = op(&mut g, Op::new("ConstantOfShape", Attrs::new()), &[shape], "y");
        g.add_output(y, None);
        resolve_types(&mut g, Some(&TractOracle));
        assert_eq!(named(&g, "y"), "f32[2,3]");
    }

    #[test]
    fn bfloat16_goes_through_an_engine_that_has_none() {
        let mut g = Graph::default();
        let ty = TensorType::new(DType::BF16, [Dim::symbol("n"), Dim::from(4)]);
        let x = g.add_input("x", ty.into(), None);
        let y = op(&mut g, Op::new("Softmax", Attrs::new().with("axis", -1)), &[x], "y");
        g.add_output(y, None);
        resolve_types(&mut g, Some(&TractOracle));
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
