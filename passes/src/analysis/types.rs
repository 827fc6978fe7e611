//! Types of values: what our own rules derive, then what the source declares, then what an engine knows.
//!
//! The graph is walked once, producers first. Of weights only the types are read, so no external file is opened. Small constants keep
//! their elements, and the arithmetic on shapes is followed as polynomials over the inputs' extents ([`eval`]). The walk goes on with
//! what the [`Oracle`] answers, so one unknown operator does not lose what follows it.

use crate::ir::{Attr, Dim, Graph, NodeId, TensorType, ValueId, ValueType};
use crate::onnx::read_value_info;
use crate::ops;
use crate::ops::eval::{self, Array, Facts, Poly};
use onnx_protobuf::GraphProto;
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::ops::Deref;

/// A source of types beside our own rules, usually an engine's shape inference. It is asked last, and only about results that are
/// still open.
pub trait Oracle {
    /// The facts it knows of a node's results, in their order, from the facts about the operands. Symbols are those of the graph's
    /// inputs; a dimension it cannot name is [`unnamed_dim`].
    fn ask(&mut self, g: &Graph, node: NodeId, known: &dyn Facts<Poly>) -> Option<Vec<Fact>>;
}

/// What is known of a value.
#[derive(Clone, Debug, Default)]
pub struct Fact {
    /// Its type.
    pub ty: ValueType,
    /// Its elements, where it takes part in the arithmetic on shapes.
    pub elements: Option<Array<Poly>>,
}

/// Stands for a dimension of a value that cannot be expressed in the inputs' symbols. It equals no other one.
pub fn unnamed_dim(value: &str, axis: usize) -> Dim {
    Dim::symbol(&format!("?{value}_{axis}"))
}

/// Is it an [`unnamed_dim`], an unknown extent of a shape rule, or computed from one of these?
pub fn is_unnamed(d: &Dim) -> bool {
    d.is_unnamed()
}

/// Is element type and shape of the value known, all dimensions expressed in the inputs' symbols?
pub fn is_resolved(ty: &ValueType) -> bool {
    ty.dtype.is_some() && ty.shape.as_ref().is_some_and(|s| !s.iter().any(is_unnamed))
}

/// The better of two statements about one value: `new` where it says something, else `old`; dimension by dimension.
pub fn merge(old: &ValueType, new: ValueType) -> ValueType {
    let shape = match (&old.shape, new.shape) {
        (Some(o), Some(n)) if o.len() == n.len() => {
            Some(n.into_iter().zip(o).map(|(n, o)| if is_unnamed(&n) { o.clone() } else { n }).collect())
        }
        (_, Some(n)) => Some(n),
        (o, None) => o.clone(),
    };
    ValueType { dtype: new.dtype.or(old.dtype), shape }
}

/// The symbols in the shapes of the graph's inputs.
fn input_symbols(g: &Graph) -> HashSet<&str> {
    let shapes = g.inputs().iter().filter_map(|n| g.value(g.result(*n, 0)).ty.shape.as_ref());
    shapes.flatten().flat_map(Dim::symbols).collect()
}

/// What the source itself declares of the values inside its graph and of its outputs.
pub fn declared(g: &Graph) -> HashMap<String, ValueType> {
    let fed = input_symbols(g);
    let outputs = g.outputs().iter().filter_map(|o| o.info.as_deref().map(|i| (g.name(o.value), i, true)));
    g.graph_shell
        .value_info
        .iter()
        .map(|i| (i.name.as_str(), i, false))
        .chain(outputs)
        .filter_map(|(name, info, is_output)| {
            let mut ty = read_value_info(info)?;
            for (axis, d) in ty.shape.iter_mut().flatten().enumerate() {
                // A dimension that is left open is unknown: no other value may share it. A name that no input has is unknown too:
                // an exporter made it up for an output.
                let open = *d == Dim::symbol(&format!("{}_dim_{axis}", info.name));
                if open || (is_output && d.symbols().any(|s| !fed.contains(s))) {
                    *d = unnamed_dim(name, axis);
                }
            }
            Some((name.to_string(), ty))
        })
        .collect()
}

/// The types of a node's results by our own shape rule.
pub fn infer_node(g: &Graph, node: NodeId, known: &dyn Facts<Poly>) -> Option<Vec<TensorType>> {
    ops::result_types(g.op(node)?, g.operands(node), known)?.ok()
}

/// Types of the results of `If` and `Loop`: what all their bodies declare of their outputs. A value that a loop carries must agree with
/// its first value too, and a value that a loop collects gets a first axis.
fn declared_by_bodies(g: &Graph, node: NodeId) -> Vec<ValueType> {
    let Some(op) = g.op(node).filter(|op| op.is("If") || op.is("Loop")) else { return Vec::new() };
    let attrs = op.attrs.0.values();
    let bodies: Vec<&GraphProto> = attrs.filter_map(|a| if let Attr::Opaque(a) = a { a.g.as_ref() } else { None }).collect();
    let fed = input_symbols(g);
    let of_result = |v: ValueId| {
        let slot = v.slot as usize;
        // The first output of a loop's body is its condition.
        let output = |b: &&GraphProto| b.output.get(slot + usize::from(op.is("Loop"))).and_then(read_value_info);
        let said = bodies.iter().map(|b| output(b).unwrap_or_default());
        let first = g.operand(node, slot + 2).filter(|_| op.is("Loop")).map(|v| g.value(v).ty.clone());
        let mut ty = said.chain(first.clone()).reduce(|a, b| common(a, &b)).unwrap_or_default();
        if let Some(shape) = ty.shape.as_mut().filter(|_| op.is("Loop") && first.is_none()) {
            shape.insert(0, unnamed_dim("", 0));
        }
        for (axis, d) in ty.shape.iter_mut().flatten().enumerate() {
            if d.symbols().any(|s| !fed.contains(s)) {
                *d = unnamed_dim(g.name(v), axis);
            }
        }
        ty
    };
    g.results(node).map(of_result).collect()
}

/// The type in which two statements agree. An extent in which they differ is unnamed.
fn common(a: ValueType, b: &ValueType) -> ValueType {
    let extent = |(a, b): (Dim, &Dim)| if a == *b { a } else { unnamed_dim("", 0) };
    let shape = match (a.shape, &b.shape) {
        (Some(a), Some(b)) if a.len() == b.len() => Some(a.into_iter().zip(b).map(extent).collect()),
        _ => None,
    };
    ValueType { dtype: a.dtype.filter(|t| b.dtype == Some(*t)), shape }
}

/// What [`resolve_types`] reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Number of operator results.
    pub values: usize,
    /// Names of those whose type is not fully known, in file order.
    pub unresolved: Vec<String>,
}

/// Types every value as well as possible.
pub fn resolve_types(g: &mut Graph, mut oracle: Option<&mut dyn Oracle>) -> Coverage {
    let declared = declared(g);
    let mut walk = Walk { g, arrays: HashMap::new() };
    let mut coverage = Coverage::default();
    for node in walk.g.topological_order() {
        if walk.g.op(node).is_none() {
            continue;
        }
        walk.visit(node, &declared, &mut oracle);
        for v in walk.g.results(node).filter(|v| !walk.g.name(*v).is_empty()) {
            coverage.values += 1;
            if !is_resolved(&walk.g.value(v).ty) {
                coverage.unresolved.push(walk.g.name(v).to_string());
            }
        }
    }
    coverage
}

/// A graph, and the elements of computed values that take part in the arithmetic on shapes.
pub struct Walk<G> {
    /// The graph, with the types of its values.
    pub g: G,
    /// The elements.
    pub arrays: HashMap<ValueId, Array<Poly>>,
}

impl<G: Deref<Target = Graph>> Facts<Poly> for Walk<G> {
    fn array(&self, v: ValueId) -> Option<Cow<'_, Array<Poly>>> {
        match self.arrays.get(&v) {
            Some(array) => Some(Cow::Borrowed(array)),
            None => self.g.array(v),
        }
    }

    fn ty(&self, v: ValueId) -> ValueType {
        self.g.value(v).ty.clone()
    }
}

impl Walk<&mut Graph> {
    /// Types the results of an operator as well as possible, and computes their elements where they are known.
    pub fn visit(&mut self, node: NodeId, declared: &HashMap<String, ValueType>, oracle: &mut Option<&mut dyn Oracle>) {
        let results: Vec<ValueId> = self.g.results(node).collect();
        let mut types: Vec<ValueType> = vec![ValueType::default(); results.len()];
        if let Some(arrays) = eval::evaluate_node(self.g, node, self, ops::MOST_ELEMENTS) {
            types = arrays.iter().map(|a| TensorType::fixed(a.dtype, &a.dims).into()).collect();
            self.arrays.extend(results.iter().copied().zip(arrays));
        } else {
            let own = infer_node(self.g, node, self).map(|own| own.into_iter().map(ValueType::from).collect());
            let own: Vec<ValueType> = own.unwrap_or_else(|| declared_by_bodies(self.g, node));
            types.iter_mut().zip(own).for_each(|(ty, own)| *ty = own);
            let named = |v: &ValueId| !self.g.name(*v).is_empty();
            let is_open = |types: &[ValueType]| results.iter().zip(types).any(|(v, ty)| named(v) && !is_resolved(ty));
            if is_open(&types) {
                for (v, ty) in results.iter().zip(&mut types) {
                    if let Some(d) = declared.get(self.g.name(*v)) {
                        *ty = merge(d, std::mem::take(ty));
                    }
                }
            }
            if is_open(&types)
                && !self.only_inherits(node, &types)
                && let Some(oracle) = oracle
                && let Some(facts) = oracle.ask(self.g, node, self)
            {
                for ((v, ty), fact) in results.iter().zip(&mut types).zip(facts) {
                    *ty = merge(ty, fact.ty);
                    self.arrays.extend(fact.elements.map(|array| (*v, array)));
                }
            }
        }
        for (v, ty) in results.into_iter().zip(types) {
            let ty = merge(&self.g.value(v).ty, ty);
            self.g.set_type(v, ty);
        }
    }

    /// Are the dimensions that nobody can name all the operands'? Then there is no more to say.
    fn only_inherits(&self, node: NodeId, types: &[ValueType]) -> bool {
        let operands = self.g.reads(node).filter_map(|v| self.g.value(v).ty.shape.as_ref()).flatten();
        let known: HashSet<&str> = operands.flat_map(Dim::symbols).collect();
        let inherited = |d: &Dim| d.symbols().all(|s| !s.starts_with('?') || known.contains(s));
        types.iter().all(|ty| ty.dtype.is_some() && ty.shape.as_ref().is_some_and(|s| s.iter().all(inherited)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, DType, Op};

    /// Knows every result to be of one type, and what it was asked about.
    struct Knows(ValueType, Vec<String>);
    impl Oracle for Knows {
        fn ask(&mut self, g: &Graph, node: NodeId, _: &dyn Facts<Poly>) -> Option<Vec<Fact>> {
            self.1.push(g.name(g.result(node, 0)).to_string());
            Some(vec![Fact { ty: self.0.clone(), elements: None }])
        }
    }

    /// `a = Strange(x); b = Add(a, x)`
    fn graph() -> Graph {
        let mut g = Graph::default();
        let ty = TensorType::new(DType::F32, [Dim::symbol("n"), Dim::from(4)]);
        let x = g.add_input("x", ty.into(), None);
        let strange = g.add_op("", Op::in_domain("custom", "Strange", Attrs::new()), &[Some(x)]);
        let a = g.push_result(strange, "a", ValueType::default());
        let add = g.add_op("", Op::new("Add", Attrs::new()), &[Some(a), Some(x)]);
        let b = g.push_result(add, "b", ValueType::default());
        g.add_output(b, None);
        g
    }

    #[test]
    fn own_rules_carry_the_oracle_s_facts_on() {
        let mut g = graph();
        let known = TensorType::new(DType::F32, [Dim::symbol("n"), Dim::from(4)]);
        let mut oracle = Knows(known.clone().into(), Vec::new());
        let coverage = resolve_types(&mut g, Some(&mut oracle));
        assert_eq!(coverage, Coverage { values: 2, ..Default::default() });
        assert_eq!(oracle.1, ["a"], "only what our own rules leave open is asked");
        assert_eq!(g.tensor_type(g.find("b").unwrap()), Some(known));
    }

    #[test]
    fn an_unknown_operator_leaves_its_results_open() {
        let mut g = graph();
        let coverage = resolve_types(&mut g, None);
        assert_eq!(coverage.unresolved, ["a", "b"]);
    }

    /// What the branches of an `If` both declare is known; the axis on which they differ is not.
    #[test]
    fn the_branches_of_an_if_tell_its_type_where_they_agree() {
        use onnx_protobuf::{AttributeProto, ValueInfoProto};
        let mut g = graph();
        let ty = |width: i64| {
            let mut branch = Graph::default();
            let v = branch.add_input("v", TensorType::new(DType::F32, [Dim::symbol("n"), Dim::from(width)]).into(), None);
            branch.add_output(v, None);
            let file = crate::onnx::emit(&branch).unwrap().to_bytes().unwrap();
            let model = <onnx_protobuf::ModelProto as onnx_protobuf::Message>::parse_from_bytes(&file).unwrap();
            ValueInfoProto { name: "out".into(), ..model.graph.output[0].clone() }
        };
        let branch = |width: i64| {
            let body = GraphProto { output: vec![ty(width)], ..Default::default() };
            Attr::Opaque(Box::new(AttributeProto { g: Some(body).into(), ..Default::default() }))
        };
        let (x, mut attrs) = (g.find("x").unwrap(), Attrs::new());
        for (name, width) in [("then_branch", 4), ("else_branch", 5)] {
            attrs.0.insert(name.into(), branch(width));
        }
        let node = g.add_op("", Op::new("If", attrs), &[Some(x)]);
        let v = g.push_result(node, "chosen", ValueType::default());
        resolve_types(&mut g, None);
        let shape = g.tensor_type(v).unwrap().shape;
        assert!(shape[0] == Dim::symbol("n") && is_unnamed(&shape[1]), "{shape:?}");
    }

    #[test]
    fn a_named_dimension_beats_an_unnamed_one() {
        let shape = |dims: &[Dim]| ValueType { dtype: Some(DType::F32), shape: Some(dims.to_vec()) };
        let (n, open) = (Dim::symbol("n"), unnamed_dim("v", 0));
        let merged = merge(&shape(&[n.clone(), Dim::from(3)]), shape(&[open, Dim::from(3)]));
        assert_eq!(merged, shape(&[n, Dim::from(3)]));
        assert!(is_resolved(&merged));
    }
}
