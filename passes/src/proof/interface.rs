//! Do two models take and give the same tensors?

use crate::ir::{Dim, Graph, ValueId, ValueType};
use indexmap::IndexMap;
use serde::Serialize;

/// One difference between two interfaces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// What differs: ``input `x` ``, ``output `y` ``, …
    pub what: String,
    /// As A has it.
    pub a: String,
    /// As B has it.
    pub b: String,
    /// Does it break a caller of A that is given B? Other differences are notes: another name of a symbolic extent, an extent that only
    /// one of the models fixes, another order.
    pub breaking: bool,
    /// Does it keep the models from being fed the same inputs?
    #[serde(skip)]
    pub of_input: bool,
}

const ABSENT: &str = "absent";

/// One declared input or output.
struct Port {
    name: String,
    ty: ValueType,
    has_default: bool,
}

fn port(g: &Graph, v: ValueId, has_default: bool) -> Port {
    Port { name: g.name(v).to_string(), ty: g.value(v).ty.clone(), has_default }
}

fn inputs(g: &Graph) -> Vec<Port> {
    let fed = g.inputs().iter().map(|n| g.result(*n, 0)).filter(|v| g.constant(*v).is_none());
    fed.map(|v| port(g, v, g.initializer(v).is_some())).collect()
}

fn outputs(g: &Graph) -> Vec<Port> {
    g.outputs().iter().map(|o| port(g, o.value, false)).collect()
}

/// All differences between the interfaces of A and B, breaking ones first.
pub fn differences(a: &Graph, b: &Graph) -> Vec<Difference> {
    let mut found = ports("input", &inputs(a), &inputs(b));
    found.extend(ports("output", &outputs(a), &outputs(b)));
    found.sort_by_key(|d| !d.breaking);
    found
}

fn ports(side: &str, a: &[Port], b: &[Port]) -> Vec<Difference> {
    let of_input = side == "input";
    let by_name =
        |ports: &[Port]| -> IndexMap<String, usize> { ports.iter().enumerate().map(|(i, p)| (p.name.clone(), i)).collect() };
    let (in_a, in_b) = (by_name(a), by_name(b));
    let mut found = Vec::new();
    let difference = |name: &str, a: String, b: String, breaking: bool| Difference {
        what: format!("{side} `{name}`"),
        a,
        b,
        breaking,
        of_input: of_input && breaking,
    };
    for p in a {
        match in_b.get(&p.name).map(|i| &b[*i]) {
            // An input with a default need not be fed: its absence from B is a note.
            None => found.push(difference(&p.name, describe(p), ABSENT.into(), !p.has_default)),
            Some(q) => {
                if let Some(breaking) = conflict(&p.ty, &q.ty) {
                    found.push(difference(&p.name, describe(p), describe(q), breaking && !(p.has_default && q.has_default)));
                } else if p.has_default != q.has_default {
                    found.push(difference(&p.name, describe(p), describe(q), p.has_default));
                }
            }
        }
    }
    for q in b.iter().filter(|q| !in_a.contains_key(&q.name)) {
        found.push(difference(&q.name, ABSENT.into(), describe(q), !q.has_default));
    }
    let order = |ports: &[Port], other: &IndexMap<String, usize>| -> Vec<String> {
        ports.iter().filter(|p| !p.has_default && other.contains_key(&p.name)).map(|p| p.name.clone()).collect()
    };
    let (order_a, order_b) = (order(a, &in_b), order(b, &in_a));
    if order_a != order_b && order_a.len() == order_b.len() {
        found.push(Difference {
            what: format!("order of the {side}s"),
            a: order_a.join(", "),
            b: order_b.join(", "),
            breaking: false,
            of_input: false,
        });
    }
    found
}

fn describe(p: &Port) -> String {
    if p.has_default { format!("{} with a default", p.ty) } else { p.ty.to_string() }
}

/// `None`: they agree. Otherwise: is the difference breaking?
fn conflict(a: &ValueType, b: &ValueType) -> Option<bool> {
    if a.dtype != b.dtype {
        return Some(a.dtype.is_some() && b.dtype.is_some());
    }
    match (&a.shape, &b.shape) {
        (None, None) => None,
        (None, Some(_)) | (Some(_), None) => Some(false),
        (Some(a), Some(b)) if a.len() != b.len() => Some(true),
        (Some(a), Some(b)) => {
            let extents = a.iter().zip(b).filter_map(|(a, b)| match (a.known(), b.known()) {
                (Some(a), Some(b)) => (a != b).then_some(true),
                (None, None) => None,
                _ => Some(false),
            });
            extents.reduce(|x, y| x || y)
        }
    }
}

/// Extents that B fixes where A has a plain symbol. An input that both models take must have these.
pub fn fixed_by_other(a: &Graph, b: &Graph) -> IndexMap<String, i64> {
    let mut fixed = IndexMap::new();
    for v in a.required_inputs() {
        let Some(w) = b.find(a.name(v)) else { continue };
        let (Some(of_a), Some(of_b)) = (&a.value(v).ty.shape, &b.value(w).ty.shape) else { continue };
        for (of_a, of_b) in of_a.iter().zip(of_b) {
            if let (Some(symbol), Some(n)) = (plain_symbol(of_a), of_b.known()) {
                fixed.entry(symbol).or_insert(n);
            }
        }
    }
    fixed
}

/// The symbol that an extent is, if it is nothing but one.
pub fn plain_symbol(d: &Dim) -> Option<String> {
    let symbol = d.symbols().next()?.to_string();
    (*d == Dim::symbol(&symbol)).then_some(symbol)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, DType, Op, TensorType};

    fn model(input: &str, dtype: DType, shape: &[Dim], output: &str) -> Graph {
        let mut g = Graph::default();
        let ty = TensorType::new(dtype, shape.to_vec());
        let x = g.add_input(input, ty.clone().into(), None);
        let n = g.add_op("", Op::new("Relu", Attrs::new()), &[Some(x)]);
        let y = g.push_result(n, output, ty.into());
        g.add_output(y, None);
        g
    }

    fn of(a: &Graph, b: &Graph) -> Vec<(String, bool)> {
        differences(a, b).into_iter().map(|d| (d.what, d.breaking)).collect()
    }

    #[test]
    fn symbols_may_have_another_name() {
        let a = model("x", DType::F32, &[Dim::symbol("batch"), Dim::from(3)], "y");
        let b = model("x", DType::F32, &[Dim::symbol("N"), Dim::from(3)], "y");
        assert_eq!(differences(&a, &b), []);
    }

    #[test]
    fn names_types_and_extents_must_agree() {
        let a = model("x", DType::F32, &[Dim::symbol("batch"), Dim::from(3)], "y");
        let fixed = model("x", DType::F32, &[Dim::from(2), Dim::from(3)], "y");
        assert_eq!(of(&a, &fixed), [("input `x`".to_string(), false), ("output `y`".to_string(), false)]);
        assert_eq!(fixed_by_other(&a, &fixed), IndexMap::from([("batch".to_string(), 2)]));
        let wider = model("x", DType::F32, &[Dim::symbol("batch"), Dim::from(4)], "y");
        assert_eq!(of(&a, &wider), [("input `x`".to_string(), true), ("output `y`".to_string(), true)]);
        let halves = model("x", DType::F16, &[Dim::symbol("batch"), Dim::from(3)], "y");
        assert!(of(&a, &halves).iter().all(|d| d.1));
        let renamed = model("x", DType::F32, &[Dim::symbol("batch"), Dim::from(3)], "z");
        assert_eq!(of(&a, &renamed), [("output `y`".to_string(), true), ("output `z`".to_string(), true)]);
        let ranked = model("x", DType::F32, &[Dim::symbol("batch")], "y");
        assert!(of(&a, &ranked).iter().all(|d| d.1));
    }
}
