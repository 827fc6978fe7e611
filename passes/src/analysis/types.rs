//! Types of values: what our own rules derive, then what the source declares, then what an engine knows.
//!
//! The graph is walked once, producers first. Weights are typed values without bytes, so no external file is read; small constants keep
//! their elements, and the arithmetic on shapes is followed as polynomials over the inputs' extents ([`eval`]). Whatever the
//! [`Oracle`] answers carries on like the rest, so one unknown operator does not lose what follows it.

use crate::ir::{Dim, Graph, NodeId, TensorType, ValueId, ValueType};
use crate::onnx::read_value_info;
use crate::ops;
use crate::ops::eval::{self, Array, Facts, Poly};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Somebody who knows more than our own rules, usually an engine's shape inference. It is asked last, and only about results that
/// are still open.
pub trait Oracle {
    /// What it knows of a node's results, in their order, from what is known of the operands. Symbols are those of the graph's
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

/// Is it one of [`unnamed_dim`] (or of the shape rules' unknown ones), or computed from one?
pub fn is_unnamed(d: &Dim) -> bool {
    d.symbols().any(|s| s.starts_with('?'))
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

/// What the source itself declares of the values inside its graph and of its outputs.
pub fn declared(g: &Graph) -> HashMap<String, ValueType> {
    let fed: HashSet<&str> = g
        .inputs()
        .iter()
        .filter_map(|n| g.value(g.result(*n, 0)).ty.shape.as_ref())
        .flatten()
        .flat_map(Dim::symbols)
        .collect();
    let outputs = g.outputs().iter().filter_map(|o| o.info.as_deref().map(|i| (g.name(o.value), i, true)));
    g.graph_shell
        .value_info
        .iter()
        .map(|i| (i.name.as_str(), i, false))
        .chain(outputs)
        .filter_map(|(name, info, is_output)| {
            let mut ty = read_value_info(info)?;
            for (axis, d) in ty.shape.iter_mut().flatten().enumerate() {
                // A dimension left open is unknown, not a symbol that others could share; so is a name that an exporter
                // made up for an output only.
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

struct Walk<'g> {
    g: &'g mut Graph,
    /// Elements of computed values that take part in the arithmetic on shapes.
    arrays: HashMap<ValueId, Array<Poly>>,
}

impl Facts<Poly> for Walk<'_> {
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

impl Walk<'_> {
    fn visit(&mut self, node: NodeId, declared: &HashMap<String, ValueType>, oracle: &mut Option<&mut dyn Oracle>) {
        let results: Vec<ValueId> = self.g.results(node).collect();
        let mut types: Vec<ValueType> = vec![ValueType::default(); results.len()];
        if let Some(arrays) = eval::evaluate_node(self.g, node, self, ops::MOST_ELEMENTS) {
            types = arrays.iter().map(|a| TensorType::fixed(a.dtype, &a.dims).into()).collect();
            self.arrays.extend(results.iter().copied().zip(arrays));
        } else {
            let own = infer_node(self.g, node, self).unwrap_or_default();
            types.iter_mut().zip(own).for_each(|(ty, own)| *ty = own.into());
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

    #[test]
    fn a_named_dimension_beats_an_unnamed_one() {
        let shape = |dims: &[Dim]| ValueType { dtype: Some(DType::F32), shape: Some(dims.to_vec()) };
        let (n, open) = (Dim::symbol("n"), unnamed_dim("v", 0));
        let merged = merge(&shape(&[n.clone(), Dim::from(3)]), shape(&[open, Dim::from(3)]));
        assert_eq!(merged, shape(&[n, Dim::from(3)]));
        assert!(is_resolved(&merged));
    }
}
