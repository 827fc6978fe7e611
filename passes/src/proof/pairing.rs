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
    let of_a: HashMap<ValueId, ValueId> = found.list.into_iter().collect();
    results(a, &order_a).filter_map(|v| of_a.get(&v).map(|w| (v, *w))).collect()
}

#[derive(Default)]
struct Pairs {
    list: Vec<(ValueId, ValueId)>,
    of_a: HashSet<ValueId>,
    of_b: HashSet<ValueId>,
}

impl Pairs {
    /// Pairs two values that are still single.
    fn add(&mut self, v: ValueId, w: ValueId) -> bool {
        if self.of_a.contains(&v) || self.of_b.contains(&w) {
            return false;
        }
        self.of_a.insert(v);
        self.of_b.insert(w);
        self.list.push((v, w));
        true
    }
}

/// Named results of operators, in order.
fn results<'g>(g: &'g Graph, order: &'g [NodeId]) -> impl Iterator<Item = ValueId> + 'g {
    order.iter().filter(|n| g.op(**n).is_some()).flat_map(|n| g.results(*n)).filter(|v| !g.name(*v).is_empty())
}

/// Exporters number values: two files may use the same numbers for different things. Names count when most of those that
/// both models have are computed by the same operator.
fn names_mean_the_same(a: &Graph, b: &Graph, order: &[NodeId]) -> bool {
    let (mut shared, mut same) = (0, 0);
    for v in results(a, order) {
        let Some(op) = b.find(a.name(v)).and_then(|w| b.op(w.node)) else { continue };
        shared += 1;
        same += a.op(v.node).is_some_and(|o| o.full_name() == op.full_name()) as usize;
    }
    2 * same >= shared
}

/// Values whose computation has the same form: operators alike, constants of the same type and shape. What the constants and
/// attributes are does not count, as they may be what differs.
fn pair_by_structure(a: &Graph, order_a: &[NodeId], b: &Graph, order_b: &[NodeId], found: &mut Pairs) {
    let single = |g: &Graph, order: &[NodeId], taken: &HashSet<ValueId>| {
        let forms = forms(g, order);
        let mut of_form: HashMap<u64, Vec<ValueId>> = HashMap::new();
        for v in results(g, order).filter(|v| !taken.contains(v)) {
            of_form.entry(forms[&v]).or_default().push(v);
        }
        (forms, of_form)
    };
    let (forms_a, of_a) = single(a, order_a, &found.of_a);
    let (_, of_b) = single(b, order_b, &found.of_b);
    for v in results(a, order_a) {
        let form = forms_a[&v];
        let (Some(vs), Some(ws)) = (of_a.get(&form), of_b.get(&form)) else { continue };
        // Where several have one form they pair in order, provided that there are as many.
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
    let mut of_a: HashMap<ValueId, ValueId> = found.list.iter().copied().collect();
    for n in order_a.iter().rev() {
        let Some(op) = a.op(*n) else { continue };
        let Some(w) = a.results(*n).find_map(|v| of_a.get(&v).copied()) else { continue };
        if b.op(w.node).is_none_or(|o| o.full_name() != op.full_name()) {
            continue;
        }
        let (of_n, of_w) = (a.operands(*n), b.operands(w.node));
        for (v, w) in of_n.iter().zip(of_w).filter_map(|(v, w)| Some(((*v)?, (*w)?))) {
            if a.op(v.node).is_some() && b.op(w.node).is_some() && v.slot == w.slot && found.add(v, w) {
                of_a.insert(v, w);
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
