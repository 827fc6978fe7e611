//! A teacher beside the student: another graph of the same inputs whose outputs the student's are compared with. Its weights are
//! constants of the training graph, and no gradient goes through it.
//!
//! ```text
//!   before  y = f(x; w)                      after  y = f(x; w)
//!                                                   teacher/y = f0(x; teacher/w)
//! ```

use super::LossError;
use crate::ir::{Graph, Kind, NodeId, Tensor, ValueId, ValueType};
use crate::ops;
use std::collections::HashMap;

/// Whom a distillation learns from.
#[derive(Clone, Debug)]
pub enum Teacher {
    /// Another graph.
    Graph(Box<Graph>),
    /// Another output of the model itself.
    Output(String),
}

/// The teacher's values for outputs of the student; another graph is appended.
///
/// # Errors
/// When the teacher reads what the model is not fed, has no such output, or one of another type.
pub(super) fn append(g: &mut Graph, teacher: &Teacher, wanted: &[ValueId]) -> Result<HashMap<ValueId, ValueId>, LossError> {
    let mut values = HashMap::new();
    match teacher {
        Teacher::Output(name) => {
            let unknown = || LossError::Unfit(format!("the model has no output `{name}` to learn from"));
            let of = g.outputs().iter().map(|o| o.value).find(|v| g.name(*v) == name).ok_or_else(unknown)?;
            for output in wanted.iter().filter(|output| **output != of) {
                fits(g, *output, of)?;
                values.insert(*output, of);
            }
        }
        Teacher::Graph(t) => {
            let mut of = Vec::new();
            for output in wanted {
                let name = g.name(*output);
                let named = t.outputs().iter().map(|o| o.value).find(|v| t.name(*v) == name);
                let floats: Vec<ValueId> = t.outputs().iter().map(|o| o.value).filter(|v| t.is_float(*v)).collect();
                let only = if let [one] = floats[..] { Some(one) } else { None };
                of.push(named.or(only).ok_or_else(|| LossError::Unfit(format!("the teacher has no output `{name}`")))?);
            }
            let map = graft(g, t, &of)?;
            for (output, v) in wanted.iter().zip(of) {
                let v = map[&v];
                fits(g, *output, v)?;
                values.insert(*output, v);
            }
        }
    }
    Ok(values)
}

/// A teacher's output has the student's shape.
fn fits(g: &Graph, student: ValueId, teacher: ValueId) -> Result<(), LossError> {
    let (own, other) = (g.tensor_type(student), g.tensor_type(teacher));
    let same = own.as_ref().zip(other.as_ref()).is_none_or(|(a, b)| {
        a.rank() == b.rank()
            && a.shape.iter().zip(&b.shape).all(|(a, b)| a.known().zip(b.known()).is_none_or(|(a, b)| a == b))
    });
    if same {
        return Ok(());
    }
    Err(LossError::Unfit(format!(
        "output `{}` is {}, and the teacher's is {}",
        g.name(student),
        g.value(student).ty,
        g.value(teacher).ty
    )))
}

/// Copies what the values `of` of another graph are computed from; inputs are the graph's own of the same names, and so are constants
/// that neither trains. Returns where each value went.
fn graft(g: &mut Graph, t: &Graph, of: &[ValueId]) -> Result<HashMap<ValueId, ValueId>, LossError> {
    let unfit = |what: String| Err(LossError::Unfit(format!("the teacher {what}")));
    for (domain, version) in &t.opsets {
        match g.opsets.get(domain) {
            Some(own) if own != version => {
                return unfit(format!("is of version {version} of the operator set `{domain}`, the model of {own}"));
            }
            Some(_) => {}
            None => {
                g.opsets.insert(domain.clone(), *version);
            }
        }
    }
    let needed = t.ancestors(of.iter().map(|v| v.node));
    let needed = |id: &NodeId| needed.contains(id) || of.iter().any(|v| v.node == *id);
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    for id in t.topological_order().into_iter().filter(needed) {
        let results: Vec<ValueId> = t.results(id).collect();
        match &t.node(id).kind {
            Kind::Input(_) => {
                let name = t.name(results[0]);
                let own = g.find(name).filter(|v| match &g.node(v.node).kind {
                    Kind::Input(_) => true,
                    Kind::Initializer { overridable, .. } => !overridable,
                    Kind::Op(_) => false,
                });
                let Some(own) = own.filter(|v| g.value(*v).ty.dtype == t.value(results[0]).ty.dtype) else {
                    return unfit(format!("reads {} `{name}`, which the model is not fed", t.value(results[0]).ty));
                };
                map.insert(results[0], own);
            }
            Kind::Initializer { tensor, .. } => {
                let name = t.name(results[0]);
                let shared = g.find(name).filter(|v| match &g.node(v.node).kind {
                    Kind::Initializer { tensor: own, overridable: false } => equal(own, tensor),
                    _ => false,
                });
                let v = shared.unwrap_or_else(|| g.add_initializer(&format!("teacher/{name}"), tensor.clone(), false));
                map.insert(results[0], v);
            }
            Kind::Op(op) => {
                if t.captures(id).next().is_some() {
                    return unfit(format!("has {}, whose body reads values from outside", t.site(id)));
                }
                let operands: Vec<Option<ValueId>> =
                    t.operands(id).iter().map(|v| v.and_then(|v| map.get(&v).copied())).collect();
                let types: Vec<ValueType> = match ops::result_types(op, &operands, g) {
                    Some(Ok(types)) => types.into_iter().map(ValueType::from).collect(),
                    Some(Err(e)) => return unfit(format!("does not fit the model's inputs at {}: {e}", t.site(id))),
                    None => Vec::new(),
                };
                let node = g.add_op(&format!("teacher/{}", t.node(id).name), op.clone(), &operands);
                for (slot, v) in results.into_iter().enumerate() {
                    let ty = types.get(slot).cloned().unwrap_or_else(|| t.value(v).ty.clone());
                    let name = t.name(v);
                    let name = if name.is_empty() { String::new() } else { format!("teacher/{name}") };
                    map.insert(v, g.push_result(node, &name, ty));
                }
            }
        }
    }
    Ok(map)
}

/// Are two constants one?
fn equal(a: &Tensor, b: &Tensor) -> bool {
    a.dtype() == b.dtype()
        && a.dims() == b.dims()
        && match (a.external(), b.external()) {
            (Some(a), Some(b)) => a == b,
            (None, None) => a.bytes().ok().zip(b.bytes().ok()).is_some_and(|(a, b)| a == b),
            _ => false,
        }
}
