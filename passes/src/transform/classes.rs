//! Replaces the final classifier by a fresh one for another number of classes.
//!
//! ```text
//!   before   y = Gemm(features, fc.weight [1000, K], fc.bias [1000])
//!   after    y = Gemm(features, fc.weight [N, K],    fc.bias [N])        U(±1/√K), as PyTorch's Linear
//! ```
//!
//! The classifier is the last linear map before the output. Nodes after it (a softmax, a pooling, a reshape) stay. In the constants
//! of a `Reshape` the new number of classes replaces the old one. Any other node there that depends on the number of classes is a
//! reason to refuse.

use super::fresh::Fresh;
use crate::analysis::head::{constant_origin, find_head, quantised_head};
use crate::analysis::types::{infer_node, is_resolved};
use crate::ir::{DType, Dim, Graph, NodeId, NodeSite, Tensor, TensorType, ValueId, ValueType};
use crate::ops::{Along, axes_of, constant_ints};
use std::collections::HashSet;

/// Elements of the largest weight that is made: four gigabytes of float32.
const MOST_ELEMENTS: i64 = 1 << 30;

/// A classifier that was replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replaced {
    /// The classifier's node.
    pub node: String,
    /// The value it reads.
    pub input: String,
    /// Classes it had.
    pub before: i64,
    /// Features it reads.
    pub features: i64,
    /// Names of the fresh tensors.
    pub fresh: Vec<String>,
}

/// Why a model's classifier cannot be replaced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ClassifierError {
    #[error("no linear map (Gemm, MatMul, Conv) lies before output `{0}`")]
    NoMap(String),
    #[error(
        "{0}, the last linear map, has a quantised weight, and a fresh one has no scale yet: change the classes of the float model, then quantise it"
    )]
    Quantised(NodeSite),
    #[error("{0}, the last linear map, {1}")]
    Map(NodeSite, String),
    #[error("{0} would have a weight {1:?} of more than {MOST_ELEMENTS} elements")]
    TooLarge(NodeSite, Vec<i64>),
    #[error("{site} follows the classifier and does not take {classes} classes instead of {before}")]
    Follower { site: NodeSite, classes: i64, before: i64 },
    #[error(
        "output `{output}` of type {ty} has no axis that counts {before} classes: {site}, the last linear map, is no classifier"
    )]
    Output { output: String, ty: ValueType, before: i64, site: NodeSite },
}

/// Replaces the last linear map before `output` by a fresh one of `classes` classes.
///
/// # Errors
/// When there is no such map, or something after it depends on the number of classes.
pub fn replace_classifier(g: &mut Graph, output: ValueId, classes: i64, seed: u64) -> Result<Replaced, ClassifierError> {
    let out_name = g.name(output).to_string();
    if let Some(node) = quantised_head(g, output) {
        return Err(ClassifierError::Quantised(g.site(node)));
    }
    let head = find_head(g, output).ok_or_else(|| ClassifierError::NoMap(out_name.clone()))?;
    let site = g.site(head.node);
    let unfit = |what: &str| ClassifierError::Map(site.clone(), what.to_string());
    let (axis, dtype, mut dims) = class_axis(g, head.node, head.operand)?;
    let features = dims.iter().enumerate().filter(|(a, _)| *a != axis).map(|(_, d)| d).product();
    let before = std::mem::replace(&mut dims[axis], classes);
    let elements = dims.iter().try_fold(1i64, |n, d| n.checked_mul(*d)).filter(|n| *n <= MOST_ELEMENTS);
    if elements.is_none() {
        return Err(ClassifierError::TooLarge(site, dims));
    }
    let bound = 1.0 / (features as f64).sqrt();
    let mut fresh = vec![renew(g, (head.node, head.operand), |name| Fresh::new(seed, name).uniform(dtype, &dims, bound))];
    if let Some((node, operand)) = head.bias {
        let bias = g.operand(node, operand).and_then(|v| g.tensor_type(v));
        let ty = bias.ok_or_else(|| unfit("has a bias of unknown type"))?;
        let mut dims = ty.known_dims().unwrap_or_default();
        match dims.iter().position(|d| *d == before) {
            Some(i) => dims[i] = classes,
            None if before == 1 || ty.rank() == 0 => dims = vec![classes],
            None => return Err(unfit(&format!("has a bias of type {ty}, {before} elements were expected"))),
        }
        fresh.push(renew(g, (node, operand), |name| Fresh::new(seed, name).uniform(ty.dtype, &dims, bound)));
    }
    let input = g.name(head.input).to_string();
    let shape = g.value(output).ty.shape.clone();
    follow(g, head.node, before, classes)?;
    let counts = |(old, new): (&Dim, &Dim)| old.known() == Some(before) && new.known() == Some(classes);
    if before != classes
        && let (Some(old), Some(new)) = (shape, g.value(output).ty.shape.clone())
    {
        let changed: Vec<_> = old.iter().zip(&new).filter(|(old, new)| old != new).collect();
        if old.len() != new.len() || changed.len() != 1 || !counts(changed[0]) {
            return Err(ClassifierError::Output { output: out_name, ty: g.value(output).ty.clone(), before, site });
        }
    }
    Ok(Replaced { node: site.name, input, before, features, fresh })
}

/// The axis of the weight that counts classes, and the weight's type and extents.
fn class_axis(g: &Graph, node: NodeId, operand: usize) -> Result<(usize, DType, Vec<i64>), ClassifierError> {
    let unfit = |what: &str| ClassifierError::Map(g.site(node), what.to_string());
    let weight = g.operand(node, operand).and_then(|v| g.tensor_type(v));
    let weight = weight.ok_or_else(|| unfit("has a weight of unknown type"))?;
    let dims = weight.known_dims().ok_or_else(|| unfit("has a weight of unknown shape"))?;
    let axes = axes_of(g, node).ok_or_else(|| unfit("reads values of unknown types"))?;
    let along: Vec<Along> = axes.operand(operand).iter().map(|l| axes.along(*l)).collect();
    match along.iter().position(|a| *a == Along::Free) {
        Some(axis) if (0..dims.len()).all(|a| a == axis || along[a] == Along::Contracted) => Ok((axis, weight.dtype, dims)),
        _ => Err(unfit(&format!("has a weight of type {weight} as operand {operand}, which is not a classifier's"))),
    }
}

/// Gives a node's operand a fresh initializer; returns its name, which is the old one's where no other node reads that.
fn renew(g: &mut Graph, (node, operand): (NodeId, usize), make: impl FnOnce(&str) -> Tensor) -> String {
    let Some(old) = g.operand(node, operand) else { return String::new() };
    let origin = constant_origin(g, old).unwrap_or(old);
    let name = g.name(origin).to_string();
    let v = g.add_initializer(&format!("{name}.fresh"), make(&name), false);
    g.set_operand(node, operand, Some(v));
    let mut from = old;
    while !g.is_needed(from) {
        let before = g.operand(from.node, 0);
        if from == origin {
            g.swap_names(origin, v);
            g.remove(origin.node);
            g.node_mut(v.node).name.clone_from(&name);
            return name;
        }
        g.remove(from.node);
        let Some(before) = before else { break };
        from = before;
    }
    g.name(v).to_string()
}

/// Derives the types of the values after the classifier anew.
fn follow(g: &mut Graph, node: NodeId, before: i64, classes: i64) -> Result<(), ClassifierError> {
    let after = g.descendants([node]);
    let order = g.topological_order();
    let mut changed = HashSet::new();
    for n in order.into_iter().filter(|n| after.contains(n)) {
        let site = g.site(n);
        if g.is_op(n, "Reshape") && before != 1 {
            reshape_to(g, n, before, classes);
        }
        let Some(types) = infer_node(g, n, g) else {
            return Err(ClassifierError::Follower { site, classes, before });
        };
        for (v, ty) in g.results(n).zip(types) {
            let ty = ty.into();
            // A shape that the graph computes is as before, but for the classes.
            if is_resolved(&ty) {
                g.set_type(v, ty);
            } else if let Some(old) = g.tensor_type(v) {
                let follows = |d: Dim| if d.known() == Some(before) { Dim::from(classes) } else { d };
                let shape: Vec<Dim> = old.shape.into_iter().map(follows).collect();
                g.set_type(v, TensorType::new(old.dtype, shape).into());
            }
            changed.insert(v);
        }
    }
    g.forget_declarations(&changed);
    Ok(())
}

/// Exchanges the number of classes in a `Reshape`'s target: in a constant, or in the constants it is joined from.
fn reshape_to(g: &mut Graph, node: NodeId, before: i64, classes: i64) {
    let Some(target) = g.operand(node, 1) else { return };
    let mut places = vec![(node, 1, target)];
    if g.is_op(target.node, "Concat") && g.uses(target).count() == 1 {
        places = g.operands(target.node).iter().enumerate().filter_map(|(i, v)| Some((target.node, i, (*v)?))).collect();
    }
    for (n, i, v) in places {
        let Some(dims) = constant_ints(g, v).filter(|d| d.contains(&before)) else { continue };
        let new: Vec<i64> = dims.iter().map(|d| if *d == before { classes } else { *d }).collect();
        let name = format!("{}.classes", g.name(v));
        let v = g.add_initializer(&name, Tensor::i64s(&[new.len() as i64], &new), false);
        g.set_operand(n, i, Some(v));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, Op};

    fn classifier(transposed: bool, multiply_after: bool) -> Graph {
        let mut g = Graph::default();
        let x = g.add_input("x", TensorType::new(DType::F32, [Dim::symbol("n"), Dim::from(4)]).into(), None);
        let dims = if transposed { [3, 4] } else { [4, 3] };
        let w = g.add_initializer("fc.weight", Tensor::f32s(&dims, &[1.0; 12]), false);
        let b = g.add_initializer("fc.bias", Tensor::f32s(&[3], &[0.0; 3]), false);
        let n = g.add_op("", Op::new("Gemm", Attrs::new().with("transB", transposed as i64)), &[Some(x), Some(w), Some(b)]);
        let ty = TensorType::new(DType::F32, [Dim::symbol("n"), Dim::from(3)]);
        let mut y = g.push_result(n, "logits", ty.clone().into());
        if multiply_after {
            let scale = g.add_initializer("scale", Tensor::f32s(&[3], &[1.0; 3]), false);
            let n = g.add_op("", Op::new("Mul", Attrs::new()), &[Some(y), Some(scale)]);
            y = g.push_result(n, "scaled", ty.into());
        }
        g.add_output(y, None);
        g
    }

    #[test]
    fn weight_and_bias_are_fresh_and_keep_their_names() {
        for transposed in [false, true] {
            let mut g = classifier(transposed, false);
            let y = g.find("logits").unwrap();
            let r = replace_classifier(&mut g, y, 7, 0).unwrap();
            assert_eq!((r.before, r.features, r.fresh), (3, 4, vec!["fc.weight".to_string(), "fc.bias".into()]));
            let w = g.initializer(g.find("fc.weight").unwrap()).unwrap();
            assert_eq!(w.dims(), if transposed { [7, 4] } else { [4, 7] });
            assert!(w.to_f64().unwrap().iter().all(|v| v.abs() < 0.5 && *v != 0.0));
            assert_eq!(g.tensor_type(y).unwrap().shape, [Dim::symbol("n"), Dim::from(7)]);
        }
    }

    #[test]
    fn what_depends_on_the_classes_is_a_refusal() {
        let mut g = classifier(true, true);
        let y = g.find("scaled").unwrap();
        let e = replace_classifier(&mut g, y, 7, 0).unwrap_err();
        assert!(e.to_string().contains("`scaled` (Mul) follows the classifier"), "{e}");
    }
}
