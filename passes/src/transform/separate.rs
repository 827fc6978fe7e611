//! Makes separate parameters of those that an exporter merged because their values were equal.
//!
//! ```text
//!   legacy   bn2.bias = Identity(bn1.bias)         → bn1.bias and bn2.bias, each an initializer
//!            y1 = Norm(x1, bn1.bias)  y2 = Norm(x2, bn2.bias)
//!   dynamo   y1 = Norm(x1, val_18)    y2 = Norm(x2, val_18)    → y1.scale and y2.scale
//! ```
//!
//! Only a tensor all of whose elements are equal is separated: scales of ones, biases of zeros, gates that start at some
//! value, running statistics of a fresh model. That two of these are equal says nothing; that two random tensors are equal
//! says that they are one parameter, tied on purpose, and it stays one. This holds for a tensor that is shared through
//! `Identity` too: both exporters merge a tied weight (an embedding that is also the last projection) in exactly that way, so
//! the `Identity` is no evidence for two parameters, and untying what was tied would be the worse mistake.
//!
//! Names. An `Identity` carries the name the parameter had in the source, so its result's name becomes the parameter's; what
//! reads the tensor directly beside such identities is the parameter whose name the tensor kept, and stays one. Without
//! identities every use is a parameter of its own, named by the first result of the node that reads it and the operand's role
//! there: `<value>.scale`, `.bias`, `.weight`, `.position`, `.mean`, `.var`. A name depends only on the nodes of the source, so
//! that the same names come out for the forward graph and for the training graph, if the pass runs on both before anything
//! rewrites the nodes that read parameters.
//!
//! Tensors whose role in a use is not a parameter's (masks, tables, constants of formulas) are not separated. Nor are single elements
//! that an element-wise operator reads: as far as a graph can tell they are numbers of a formula.

use crate::analysis::roles::{Role, UseRoles};
use crate::contract::{AdaptersRecord, Record};
use crate::ir::{DType, Graph, Kind, NodeId, Op, Tensor, ValueId};
use crate::ops::{Class, reads_values};
use indexmap::IndexMap;
use std::collections::HashSet;

/// Is a tensor of this role a parameter, or a statistic that belongs to one node?
fn is_own(role: Role) -> bool {
    role.trains() || role == Role::Statistic
}

/// A use: operand of a node.
type Use = (NodeId, usize);

/// One parameter to be: its name and who reads it.
struct Part {
    name: String,
    uses: Vec<Use>,
    /// The `Identity` whose result it replaces.
    identity: Option<NodeId>,
}

/// Gives each merged parameter, or statistic of one node, an initializer of its own. Returns the new names, each with the name of the
/// tensor it was merged into.
pub fn separate_parameters(g: &mut Graph) -> Vec<(String, String)> {
    separate(g, |_| true)
}

/// Repeats on a forward graph what [`separate_parameters`] did to the graph it was trained in, as far as `names` need it: each gets an
/// initializer of its own, to which a trained value can be written. Initializers that the graph has already stay.
///
/// # Errors
/// The names that the graph does not lead to: it is not the graph they come from.
pub fn separate_in_forward<'n>(g: &mut Graph, names: impl IntoIterator<Item = &'n str>) -> Result<(), Vec<String>> {
    let absent = |g: &Graph, name: &str| g.find(name).is_none_or(|v| g.initializer(v).is_none());
    let mut wanted: Vec<&str> = names.into_iter().filter(|n| absent(g, n)).collect();
    if !wanted.is_empty() {
        let set: HashSet<&str> = wanted.iter().copied().collect();
        separate(g, |parts| parts.iter().any(|p| set.contains(p.name.as_str())));
        wanted.retain(|n| absent(g, n));
    }
    if wanted.is_empty() { Ok(()) } else { Err(wanted.into_iter().map(String::from).collect()) }
}

/// Separates the parameters of those tensors whose parts are wanted.
fn separate(g: &mut Graph, wanted: impl Fn(&[Part]) -> bool) -> Vec<(String, String)> {
    let mut plan: IndexMap<ValueId, Vec<Part>> = IndexMap::new();
    let roles = UseRoles::new(g);
    // The zeros of an adapter belong to one weight, however many nodes read it.
    let adapters = AdaptersRecord::read(g).ok().flatten();
    let of_adapters: HashSet<&str> = adapters.iter().flat_map(AdaptersRecord::tensors).collect();
    for id in g.topological_order() {
        let Kind::Initializer { tensor, .. } = &g.node(id).kind else { continue };
        let v = g.result(id, 0);
        if !tensor.dtype().is_float() || g.name(v).starts_with("ancre.") || of_adapters.contains(g.name(v)) {
            continue;
        }
        let parts = parts_of(g, &roles, v, tensor);
        // Reading the bytes comes last: they may be in another file.
        if !parts.is_empty() && wanted(&parts) && is_constant_valued(tensor) {
            plan.insert(v, parts);
        }
    }
    let mut names = Vec::new();
    for (v, parts) in plan {
        let original = g.name(v).to_string();
        for part in parts {
            names.push((apply(g, v, part), original.clone()));
        }
        if !g.is_needed(v) && matches!(g.node(v.node).kind, Kind::Initializer { overridable: false, .. }) {
            g.remove(v.node);
        }
    }
    names
}

/// The parameters that were merged into `v`, or none if it is only one.
fn parts_of(g: &Graph, roles: &UseRoles, v: ValueId, tensor: &Tensor) -> Vec<Part> {
    let uses = g.uses_in_order(v);
    if uses.len() < 2 {
        return Vec::new();
    }
    let owns = |v: ValueId, (n, i): Use| {
        i < g.node(n).operand_count() && !(tensor.len() == 1 && takes_number(g, n)) && is_own(roles.role(v, n, i))
    };
    let mut direct = Vec::new();
    let mut parts = Vec::new();
    let mut others = 0;
    let mut identities = false;
    let mut open: Vec<(ValueId, Use)> = uses.iter().rev().map(|u| (v, *u)).collect();
    while let Some((from, (n, i))) = open.pop() {
        if g.is_op(n, "Identity") {
            identities = true;
            let own = g.result(n, 0);
            let its = g.uses_in_order(own);
            let readers: Vec<Use> = its.iter().copied().filter(|(r, _)| !g.is_op(*r, "Identity")).collect();
            if !g.is_captured(own) && !g.is_output(own) && readers.iter().any(|u| owns(own, *u)) {
                parts.push(Part { name: g.name(own).to_string(), uses: readers, identity: Some(n) });
            } else {
                others += readers.len();
            }
            open.extend(its.iter().rev().filter(|(r, _)| g.is_op(*r, "Identity")).map(|u| (own, *u)));
        } else if from == v && owns(v, (n, i)) {
            direct.push((n, i));
        } else if g.op(n).is_none_or(|op| reads_values(op, i)) {
            others += 1;
        }
    }
    if identities {
        // The tensor's own name is that of the parameter which reads it directly.
        let one = parts.len() == 1 && direct.is_empty() && others == 0;
        return if one { Vec::new() } else { parts };
    }
    if direct.len() + others < 2 {
        return Vec::new();
    }
    let named = |(n, i): Use| {
        let role = role_word(roles.role(v, n, i), i);
        Part { name: format!("{}.{role}", first_name(g, n)), uses: vec![(n, i)], identity: None }
    };
    direct.into_iter().map(named).collect()
}

fn apply(g: &mut Graph, v: ValueId, part: Part) -> String {
    let Some(tensor) = g.initializer(v).cloned() else { return String::new() };
    let new = g.add_initializer(&format!("{}.separate", part.name), tensor, false);
    for (n, i) in part.uses {
        g.set_operand(n, i, Some(new));
    }
    if let Some(identity) = part.identity {
        // Other identities may read this one; they stand for parameters of their own.
        let own = g.result(identity, 0);
        g.replace_uses(own, v, |_| true);
        g.remove(identity);
    }
    g.rename(new, &part.name)
}

fn first_name(g: &Graph, n: NodeId) -> String {
    g.results(n).map(|r| g.name(r)).find(|name| !name.is_empty()).unwrap_or(&g.node(n).name).to_string()
}

fn role_word(role: Role, operand: usize) -> &'static str {
    match role {
        Role::Weight | Role::Embedding => "weight",
        Role::Bias | Role::NormBias => "bias",
        Role::NormScale | Role::Scale => "scale",
        Role::Position => "position",
        Role::Statistic if operand == 4 => "var",
        Role::Statistic => "mean",
        Role::Frozen(_) => "constant",
    }
}

/// Does the node compute with its operands as numbers, not as parameters: element by element, or repeated?
fn takes_number(g: &Graph, n: NodeId) -> bool {
    let takes = |op: &Op| op.is("Expand") || (Class::of(op).is_elementwise() && Class::of(op) != Class::Activation);
    g.op(n).is_some_and(takes)
}

/// Are all elements equal, bit for bit?
fn is_constant_valued(t: &Tensor) -> bool {
    let size = t.dtype().size().filter(|_| t.dtype() != DType::Str);
    match (size, t.bytes()) {
        (Some(size), Ok(bytes)) if !bytes.is_empty() => {
            let first = &bytes[..size];
            bytes.chunks_exact(size).all(|c| c == first)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, TensorType, ValueType};
    use crate::verify::{Stage, verify};

    fn ty(dims: &[i64]) -> ValueType {
        TensorType::fixed(DType::F32, dims).into()
    }

    fn node(g: &mut Graph, op: &str, result: &str, operands: &[ValueId]) -> ValueId {
        let operands: Vec<_> = operands.iter().map(|v| Some(*v)).collect();
        let n = g.add_op(result, Op::new(op, Attrs::new()), &operands);
        g.push_result(n, result, ValueType::default())
    }

    fn values(g: &Graph) -> Vec<&str> {
        let all = g.nodes().filter(|n| matches!(g.node(*n).kind, Kind::Initializer { .. }));
        all.map(|n| g.name(g.result(n, 0))).collect()
    }

    fn pairs(found: &[(String, String)]) -> Vec<(&str, &str)> {
        found.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect()
    }

    /// Two normalisations that read one tensor of ones as scale and one of zeros as bias, as dynamo writes them.
    fn dynamo() -> Graph {
        let mut g = Graph::default();
        let x = g.add_input("x", ty(&[2, 3]), None);
        let ones = g.add_initializer("ones", Tensor::f32s(&[3], &[1.0; 3]), false);
        let zeros = g.add_initializer("zeros", Tensor::f32s(&[3], &[0.0; 3]), false);
        let y = node(&mut g, "LayerNormalization", "y", &[x, ones, zeros]);
        let z = node(&mut g, "LayerNormalization", "z", &[y, ones, zeros]);
        g.add_output(z, None);
        g
    }

    /// `second` is the first tensor again, through an `Identity`, as the legacy exporter writes it.
    fn legacy(values: &[f32; 3]) -> Graph {
        let mut g = Graph::default();
        let x = g.add_input("x", ty(&[2, 3]), None);
        let first = g.add_initializer("first.weight", Tensor::f32s(&[3], values), false);
        let second = node(&mut g, "Identity", "second.weight", &[first]);
        let third = node(&mut g, "Identity", "third.weight", &[second]);
        let a = node(&mut g, "LayerNormalization", "a", &[x, first]);
        let b = node(&mut g, "LayerNormalization", "b", &[a, second]);
        let c = node(&mut g, "LayerNormalization", "c", &[b, third]);
        g.add_output(c, None);
        g
    }

    #[test]
    fn each_use_of_a_shared_constant_becomes_a_parameter() {
        let mut g = dynamo();
        let found = separate_parameters(&mut g);
        let expected = [("y.scale", "ones"), ("z.scale", "ones"), ("y.bias", "zeros"), ("z.bias", "zeros")];
        assert_eq!(pairs(&found), expected);
        assert_eq!(g.name(g.operand(g.find("z").unwrap().node, 1).unwrap()), "z.scale");
        assert!(g.find("ones").is_none());
        verify(&g, Stage::Open).unwrap();
        assert!(separate_parameters(&mut g).is_empty(), "a second run finds nothing");
    }

    #[test]
    fn identities_name_the_parameters_they_merged() {
        let mut g = legacy(&[1.0; 3]);
        let found = separate_parameters(&mut g);
        assert_eq!(pairs(&found), [("second.weight", "first.weight"), ("third.weight", "first.weight")]);
        let mut names = values(&g);
        names.sort_unstable();
        assert_eq!(names, ["first.weight", "second.weight", "third.weight"]);
        assert_eq!(g.name(g.operand(g.find("c").unwrap().node, 1).unwrap()), "third.weight");
        verify(&g, Stage::Open).unwrap();
    }

    #[test]
    fn a_tensor_that_is_not_constant_valued_is_tied_on_purpose() {
        let mut g = legacy(&[1.0, 2.0, 1.0]);
        assert!(separate_parameters(&mut g).is_empty());
        assert_eq!(values(&g), ["first.weight"]);
    }

    #[test]
    fn numbers_of_formulas_and_shapes_are_no_parameters() {
        let mut g = Graph::default();
        let x = g.add_input("x", ty(&[2, 3]), None);
        let half = g.add_initializer("half", Tensor::f32s(&[1], &[0.5]), false);
        let ones = g.add_initializer("ones", Tensor::f32s(&[3], &[1.0; 3]), false);
        let a = node(&mut g, "Mul", "a", &[x, half]);
        let b = node(&mut g, "Mul", "b", &[a, half]);
        let shape = node(&mut g, "Shape", "shape", &[ones]);
        let c = node(&mut g, "Div", "c", &[b, ones]);
        let d = node(&mut g, "Max", "d", &[c, ones]);
        for v in [d, shape] {
            g.add_output(v, None);
        }
        assert!(separate_parameters(&mut g).is_empty());
    }

    #[test]
    fn statistics_of_two_batch_normalisations_are_two() {
        let mut g = Graph::default();
        let x = g.add_input("x", ty(&[2, 3, 4]), None);
        let zeros = g.add_initializer("zeros", Tensor::f32s(&[3], &[0.0; 3]), false);
        let ones = g.add_initializer("ones", Tensor::f32s(&[3], &[1.0; 3]), false);
        let y = node(&mut g, "BatchNormalization", "y", &[x, ones, zeros, zeros, ones]);
        g.add_output(y, None);
        let found = separate_parameters(&mut g);
        assert_eq!(pairs(&found), [("y.bias", "zeros"), ("y.mean", "zeros"), ("y.scale", "ones"), ("y.var", "ones")]);
        verify(&g, Stage::Open).unwrap();
    }

    #[test]
    fn the_forward_graph_is_separated_by_name() {
        let mut g = dynamo();
        let names = ["y.scale", "z.scale"];
        separate_in_forward(&mut g, names).unwrap();
        assert!(g.find("y.scale").is_some() && g.find("zeros").is_some() && g.find("y.bias").is_none());
        separate_in_forward(&mut g, names).unwrap();
        assert_eq!(separate_in_forward(&mut g, ["elsewhere.scale"]), Err(vec!["elsewhere.scale".to_string()]));
    }
}
