//! Which value of B stands for which value of A: by name, by the shape of what computes it, and backward from the outputs.

use crate::ir::{Graph, Kind, NodeId, ValueId};
use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet};
use std::hash::{Hash, Hasher};

/// Pairs of values, results of operators both, in A's order of computation.
pub fn pairs(a: &Graph, b: &Graph) -> Vec<(ValueId, ValueId)> {
    let (order_a, order_b) = (a.topological_order(), b.topological_order());
    let mut found = Pairs::default();
    if names_mean_the_same(a, b, &order_a) {
        for v in results(a, &order_a) {
            if let Some(w) = b.find(a.name(v)).filter(|w| b.op(w.node).is_some()) {
                found.add(v, w);
            }
        }
    }
    for o in a.outputs() {
        if let Some(p) = b.outputs().iter().find(|p| b.name(p.value) == a.name(o.value))
            && a.op(o.value.node).is_some()
            && b.op(p.value.node).is_some()
        {
            found.add(o.value, p.value);
        }
    }
    pair_by_structure(a, &order_a, b, &order_b, &mut found);
    pair_backward(a, &order_a, b, &mut found);
    results(a, &order_a).filter_map(|v| found.of_a.get(&v).map(|w| (v, *w))).collect()
}

#[derive(Default)]
struct Pairs {
    /// The partner of each value of A that has one.
    of_a: HashMap<ValueId, ValueId>,
    /// Values of B that have a partner.
    of_b: HashSet<ValueId>,
}

impl Pairs {
    /// Pairs two values that are still single.
    fn add(&mut self, v: ValueId, w: ValueId) {
        if !self.of_a.contains_key(&v) && !self.of_b.contains(&w) {
            self.of_a.insert(v, w);
            self.of_b.insert(w);
        }
    }
}

/// Named results of operators, in order.
fn results<'g>(g: &'g Graph, order: &'g [NodeId]) -> impl Iterator<Item = ValueId> + 'g {
    order.iter().filter(|n| g.op(**n).is_some()).flat_map(|n| g.results(*n)).filter(|v| !g.name(*v).is_empty())
}

/// Do equal names mean equal values? Exporters number values, so two files may give one number to different values. Names count when
/// most names that both models have are computed by the same operator.
fn names_mean_the_same(a: &Graph, b: &Graph, order: &[NodeId]) -> bool {
    let (mut shared, mut same) = (0, 0);
    for v in results(a, order) {
        let Some(op) = b.find(a.name(v)).and_then(|w| b.op(w.node)) else { continue };
        shared += 1;
        same += a.op(v.node).is_some_and(|o| o.full_name() == op.full_name()) as usize;
    }
    2 * same >= shared
}

/// Pairs values whose computation has the same form: the same operators, constants of the same types and shapes. Elements of constants
/// and attributes do not count, because the models may differ in them.
fn pair_by_structure(a: &Graph, order_a: &[NodeId], b: &Graph, order_b: &[NodeId], found: &mut Pairs) {
    let single = |g: &Graph, order: &[NodeId], taken: &dyn Fn(&ValueId) -> bool| {
        let forms = forms(g, order);
        let mut of_form: HashMap<u64, Vec<ValueId>> = HashMap::new();
        for v in results(g, order).filter(|v| !taken(v)) {
            of_form.entry(forms[&v]).or_default().push(v);
        }
        (forms, of_form)
    };
    let (forms_a, of_a) = single(a, order_a, &|v| found.of_a.contains_key(v));
    let (_, of_b) = single(b, order_b, &|v| found.of_b.contains(v));
    for v in results(a, order_a) {
        let form = forms_a[&v];
        let (Some(vs), Some(ws)) = (of_a.get(&form), of_b.get(&form)) else { continue };
        // Where several values have one form they pair in order, if both models have as many of them.
        if vs.len() == ws.len()
            && let Some(i) = vs.iter().position(|u| *u == v)
        {
            found.add(v, ws[i]);
        }
    }
}

fn forms(g: &Graph, order: &[NodeId]) -> HashMap<ValueId, u64> {
    let mut forms: HashMap<ValueId, u64> = HashMap::new();
    for n in order {
        let mut h = DefaultHasher::new();
        match &g.node(*n).kind {
            Kind::Input(_) => g.node(*n).name.hash(&mut h),
            Kind::Initializer { tensor, .. } => (tensor.dtype(), tensor.dims()).hash(&mut h),
            Kind::Op(op) => {
                op.full_name().hash(&mut h);
                g.reads(*n).for_each(|v| forms.get(&v).hash(&mut h));
            }
        }
        for v in g.results(*n) {
            let mut h = h.clone();
            v.slot.hash(&mut h);
            forms.insert(v, h.finish());
        }
    }
    forms
}

/// Operands of paired nodes that apply the same operator pair by position.
fn pair_backward(a: &Graph, order_a: &[NodeId], b: &Graph, found: &mut Pairs) {
    for n in order_a.iter().rev() {
        let Some(op) = a.op(*n) else { continue };
        let Some(w) = a.results(*n).find_map(|v| found.of_a.get(&v).copied()) else { continue };
        if b.op(w.node).is_none_or(|o| o.full_name() != op.full_name()) {
            continue;
        }
        let (of_n, of_w) = (a.operands(*n), b.operands(w.node));
        for (v, w) in of_n.iter().zip(of_w).filter_map(|(v, w)| Some(((*v)?, (*w)?))) {
            if a.op(v.node).is_some() && b.op(w.node).is_some() && v.slot == w.slot {
                found.add(v, w);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, DType, Op, TensorType, ValueType};

    /// x through unary operators; values are named prefix0, prefix1, …
    fn chain(ops: &[&str], prefix: &str) -> Graph {
        let mut g = Graph::default();
        let mut v = g.add_input("x", TensorType::fixed(DType::F32, &[3]).into(), None);
        for (i, op) in ops.iter().enumerate() {
            let n = g.add_op("", Op::new(op, Attrs::new()), &[Some(v)]);
            let name = if i + 1 == ops.len() { "y".to_string() } else { format!("{prefix}{i}") };
            v = g.push_result(n, &name, ValueType::default());
        }
        g.add_output(v, None);
        g
    }

    fn named(a: &Graph, b: &Graph) -> Vec<(String, String)> {
        pairs(a, b).into_iter().map(|(v, w)| (a.name(v).to_string(), b.name(w).to_string())).collect()
    }

    fn strings(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(a, b)| (a.to_string(), b.to_string())).collect()
    }

    #[test]
    fn renamed_values_pair_by_structure() {
        let (a, b) = (chain(&["Relu", "Exp", "Neg"], "a"), chain(&["Relu", "Exp", "Neg"], "b"));
        assert_eq!(named(&a, &b), strings(&[("a0", "b0"), ("a1", "b1"), ("y", "y")]));
    }

    #[test]
    fn a_dropped_node_leaves_what_is_before_and_after_it_paired() {
        let (a, b) = (chain(&["Relu", "Exp", "Neg", "Abs"], "a"), chain(&["Relu", "Neg", "Abs"], "b"));
        assert_eq!(named(&a, &b), strings(&[("a0", "b0"), ("a2", "b1"), ("y", "y")]));
    }

    #[test]
    fn numbers_that_mean_something_else_are_no_names() {
        let (a, b) = (chain(&["Relu", "Exp", "Neg"], "v"), chain(&["Abs", "Relu", "Exp", "Neg"], "v"));
        assert!(named(&a, &b).iter().all(|(v, w)| v != w || v == "y"), "{:?}", named(&a, &b));
    }
}
