//! Types of values: what an engine knows, then what the source declares, then what our own rules derive.

use crate::ir::{Dim, Graph, NodeId, TensorType, ValueId, ValueType};
use crate::onnx::read_value_info;
use crate::ops;
use indexmap::IndexMap;
use std::collections::{HashMap, HashSet};

/// Somebody who knows the types of values, usually an engine's shape inference.
pub trait ShapeOracle {
    /// Types by value name; values it knows nothing of are left out. Symbols are those of the graph's inputs; a dimension
    /// it cannot name is [`unnamed_dim`].
    ///
    /// # Errors
    /// When the graph as a whole cannot be analysed. One unknown operator is no such reason.
    fn facts(&self, g: &Graph) -> Result<IndexMap<String, ValueType>, String>;
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

/// Results of operators, in file order.
fn op_results(g: &Graph) -> Vec<ValueId> {
    g.nodes().filter(|n| g.op(*n).is_some()).flat_map(|n| g.results(n)).filter(|v| !g.name(*v).is_empty()).collect()
}

/// Gives the results of operators the types stated for their names. Inputs and initializers keep theirs.
pub fn apply_facts(g: &mut Graph, facts: &IndexMap<String, ValueType>) {
    for v in op_results(g) {
        if let Some(fact) = facts.get(g.name(v)) {
            let ty = merge(&g.value(v).ty, fact.clone());
            g.set_type(v, ty);
        }
    }
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

/// The types of a node's results by our own shape rule, from operand types that the caller knows.
pub fn infer_node(g: &Graph, node: NodeId, type_of: &dyn Fn(ValueId) -> Option<TensorType>) -> Option<Vec<TensorType>> {
    infer_node_knowing(g, node, type_of, &|v| ops::constant_extents(g, v))
}

/// As [`infer_node`], with integers (a target shape, axes; extents among them) that the caller knows.
pub fn infer_node_knowing(
    g: &Graph,
    node: NodeId,
    type_of: &dyn Fn(ValueId) -> Option<TensorType>,
    extents_of: &dyn Fn(ValueId) -> Option<Vec<Dim>>,
) -> Option<Vec<TensorType>> {
    let op = g.op(node)?;
    if op.is("Constant") {
        let t = op.attrs.tensor("value")?;
        return Some(vec![TensorType::fixed(t.dtype(), t.dims())]);
    }
    ops::result_types_knowing(op, g.operands(node), type_of, extents_of)?.ok()
}

/// Derives what is still unknown by our own shape rules, producers before consumers.
pub fn infer_forward(g: &mut Graph) {
    let order = g.topological_order();
    for node in order {
        let open = g.results(node).any(|v| !is_resolved(&g.value(v).ty));
        if g.op(node).is_none() || !open {
            continue;
        }
        let Some(types) = infer_node(g, node, &|v| g.tensor_type(v)) else { continue };
        for (v, ty) in g.results(node).zip(types) {
            // What was known before comes from a better source than the rule.
            let ty = merge(&ty.into(), g.value(v).ty.clone());
            g.set_type(v, ty);
        }
    }
}

/// What [`resolve_types`] reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Number of operator results.
    pub values: usize,
    /// Names of those whose type is not fully known, in no meaningful order.
    pub unresolved: Vec<String>,
    /// Why the oracle gave nothing at all.
    pub oracle_failed: Option<String>,
}

/// Types every value as well as possible: oracle, then the source's declarations, then our own rules.
pub fn resolve_types(g: &mut Graph, oracle: Option<&dyn ShapeOracle>) -> Coverage {
    let mut coverage = Coverage::default();
    match oracle.map(|o| o.facts(g)) {
        Some(Ok(facts)) => apply_facts(g, &facts),
        Some(Err(why)) => coverage.oracle_failed = Some(why),
        None => {}
    }
    let declared = declared(g);
    let results = op_results(g);
    for v in &results {
        let ty = &g.value(*v).ty;
        if !is_resolved(ty)
            && let Some(d) = declared.get(g.name(*v))
        {
            let ty = merge(d, ty.clone());
            g.set_type(*v, ty);
        }
    }
    infer_forward(g);
    coverage.values = results.len();
    coverage.unresolved =
        results.iter().filter(|v| !is_resolved(&g.value(**v).ty)).map(|v| g.name(*v).to_string()).collect();
    coverage
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, DType, Op};

    struct Knows(&'static str, ValueType);
    impl ShapeOracle for Knows {
        fn facts(&self, _: &Graph) -> Result<IndexMap<String, ValueType>, String> {
            Ok(IndexMap::from([(self.0.to_string(), self.1.clone())]))
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
        let coverage = resolve_types(&mut g, Some(&Knows("a", known.clone().into())));
        assert_eq!(coverage, Coverage { values: 2, ..Default::default() });
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
