//! Fresh values for every trained weight, by its role: where training from scratch starts.
//!
//! | role | start |
//! |---|---|
//! | weight of a linear map or convolution | U(±1/√fan_in), PyTorch's `kaiming_uniform(a=√5)` |
//! | its bias | the same bound; 0 where no map is found |
//! | embedding | N(0, 1); one that is the head's weight too starts as that |
//! | learned position | N(0, 0.02²), what vision and language transformers use |
//! | scale of a normalisation, written as one node or as several | 1 |
//! | bias of a normalisation | 0 |
//! | slope of `PRelu` | ¼ |
//! | running mean, running variance | 0, 1 |
//! | other scales (layer scale) | kept: their start belongs to the model |

use super::fresh::{Fresh, constant};
use crate::analysis::head::constant_origin;
use crate::analysis::roles::{Role, initializer_roles};
use crate::ir::{Graph, Kind, NodeId, Tensor, ValueId};
use crate::ops::{Along, Class, Label, Mixing, axes_of, keeps_elements};

/// Gives every trained weight and running statistic a fresh value; returns the names of those that keep theirs.
pub fn reinitialize(g: &mut Graph, seed: u64) -> Vec<String> {
    let mut kept = Vec::new();
    for (v, role) in initializer_roles(g) {
        let name = g.name(v).to_string();
        if name.starts_with("ancre.") || !(role.trains() || role == Role::Statistic) {
            continue;
        }
        match fresh(g, v, role, seed) {
            Some(t) => {
                let overridable = matches!(g.node(v.node).kind, Kind::Initializer { overridable: true, .. });
                g.set_initializer(v, t, overridable);
            }
            None => kept.push(name),
        }
    }
    kept
}

fn fresh(g: &Graph, v: ValueId, role: Role, seed: u64) -> Option<Tensor> {
    let old = g.initializer(v)?;
    let (dtype, dims) = (old.dtype(), old.dims());
    let stream = || Fresh::new(seed, g.name(v));
    let bounded = |fan_in: i64| stream().uniform(dtype, dims, 1.0 / (fan_in.max(1) as f64).sqrt());
    match role {
        Role::Weight => carried(g, v).into_iter().find_map(|(n, i)| fan_in(g, n, i)).map(bounded),
        // A table that is also the head's weight starts as a head: its scale keeps the scores in bounds.
        Role::Embedding => Some(match carried(g, v).into_iter().find_map(|(n, i)| fan_in(g, n, i)) {
            Some(fan_in) => bounded(fan_in),
            None => stream().normal(dtype, dims, 1.0),
        }),
        Role::Position => Some(stream().normal(dtype, dims, 0.02)),
        Role::NormScale => Some(constant(dtype, dims, 1.0)),
        Role::NormBias => Some(constant(dtype, dims, 0.0)),
        Role::Bias => Some(match carried(g, v).into_iter().find_map(|(n, i)| map_of_bias(g, n, i)) {
            Some(fan_in) => bounded(fan_in),
            None => constant(dtype, dims, 0.0),
        }),
        Role::Scale => {
            let uses = carried(g, v);
            if uses.iter().any(|(n, _)| g.is_op(*n, "PRelu")) {
                Some(constant(dtype, dims, 0.25))
            } else if uses.iter().any(|(n, i)| scales_normalised(g, *n, *i)) {
                Some(constant(dtype, dims, 1.0))
            } else {
                None
            }
        }
        Role::Statistic => {
            let variance = carried(g, v).iter().any(|(n, i)| g.is_op(*n, "BatchNormalization") && *i == 4);
            Some(constant(dtype, dims, if variance { 1.0 } else { 0.0 }))
        }
        Role::Frozen(_) => None,
    }
}

/// Who reads a constant, through operators that hand it on: consumer and operand.
fn carried(g: &Graph, v: ValueId) -> Vec<(NodeId, usize)> {
    let mut found = Vec::new();
    let mut open = vec![v];
    while let Some(at) = open.pop() {
        for (n, i) in g.uses_in_order(at) {
            let onward = i == 0 && g.results(n).next().is_some_and(|r| constant_origin(g, r) == Some(v));
            if onward {
                open.extend(g.results(n));
            } else {
                found.push((n, i));
            }
        }
    }
    found
}

/// Inputs that one result of the map sums over; PyTorch's `fan_in`.
fn fan_in(g: &Graph, node: NodeId, operand: usize) -> Option<i64> {
    let op = g.op(node)?;
    let dims = g.tensor_type(g.operand(node, operand)?)?.known_dims()?;
    match Class::of(op) {
        // For a transposed convolution PyTorch counts from the weight's second axis on.
        _ if op.is("ConvTranspose") => dims.get(1..).map(|rest| rest.iter().product()),
        Class::Mixing(Mixing::Conv | Mixing::MatMul | Mixing::Attention) => {
            let axes = axes_of(g, node)?;
            let contracted = |l: &Label| axes.along(*l) == Along::Contracted;
            Some(dims.iter().zip(axes.operand(operand)).filter(|(_, l)| contracted(l)).map(|(d, _)| d).product())
        }
        _ => None,
    }
}

/// `fan_in` of the map whose result a bias is added to.
fn map_of_bias(g: &Graph, node: NodeId, operand: usize) -> Option<i64> {
    if operand == 2 && g.operand(node, 1).is_some() {
        return fan_in(g, node, 1);
    }
    if !g.is_op(node, "Add") || operand > 1 {
        return None;
    }
    let mut v = g.operand(node, 1 - operand)?;
    for _ in 0..4 {
        let op = g.op(v.node)?;
        match Class::of(op) {
            Class::Mixing(Mixing::Conv | Mixing::MatMul) => {
                let is_weight = |i: &usize| g.operand(v.node, *i).is_some_and(|w| constant_origin(g, w).is_some());
                return fan_in(g, v.node, [1, 0].into_iter().find(is_weight)?);
            }
            _ if keeps_elements(op) => v = g.operand(v.node, 0)?,
            _ => return None,
        }
    }
    None
}

/// Does a product scale what was just divided by a root: a normalisation written out?
fn scales_normalised(g: &Graph, node: NodeId, operand: usize) -> bool {
    let rooted = |v: ValueId| {
        let mut open = vec![(v, 0)];
        while let Some((v, depth)) = open.pop() {
            let Some(op) = g.op(v.node) else { continue };
            match op.name.as_str() {
                "Sqrt" | "Reciprocal" | "Pow" => return true,
                "Div" | "Cast" | "Add" if depth < 3 => {
                    open.extend(g.operand(v.node, usize::from(op.name == "Div")).map(|v| (v, depth + 1)))
                }
                "Mul" if depth < 2 => {
                    open.extend([0, 1].into_iter().filter_map(|i| g.operand(v.node, i)).map(|v| (v, depth + 1)))
                }
                _ => {}
            }
        }
        false
    };
    g.is_op(node, "Mul") && operand < 2 && g.operand(node, 1 - operand).is_some_and(rooted)
}

/// What became of a convolutional network's batch normalisation when it was exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normalisation {
    /// The normalisation is complete, or there are no convolutions.
    Whole,
    /// Convolutions and activations, but no normalisation of any kind.
    Gone,
    /// Some convolutions, so many of so many, hand their sum, with a bias, directly to an activation. They have lost the normalisation
    /// that followed them, while the normalisation before a convolution is still there.
    Partly(usize, usize),
}

/// Looks for batch normalisation that an exporter folded into convolutions.
pub fn normalisation(g: &Graph) -> Normalisation {
    let any = |names: &[&str]| g.nodes().any(|n| g.op(n).is_some_and(|op| names.contains(&op.name.as_str())));
    let convolutions: Vec<NodeId> = g.nodes().filter(|n| g.is_op(*n, "Conv") && !is_of_one_place(g, *n)).collect();
    if convolutions.len() <= 2 {
        return Normalisation::Whole;
    }
    if any(&["BatchNormalization"]) {
        let bare = convolutions.iter().filter(|n| is_bare(g, **n)).count();
        return if bare * 4 < convolutions.len() {
            Normalisation::Whole
        } else {
            Normalisation::Partly(bare, convolutions.len())
        };
    }
    let other = ["InstanceNormalization", "GroupNormalization", "LayerNormalization", "Sqrt"];
    if g.nodes().any(|n| activates(g, n)) && !any(&other) { Normalisation::Gone } else { Normalisation::Whole }
}

fn activates(g: &Graph, node: NodeId) -> bool {
    g.op(node).is_some_and(|op| Class::of(op) == Class::Activation)
}

/// Does the convolution see one place only, as those of a squeeze-and-excitation do? They have no normalisation of their own.
fn is_of_one_place(g: &Graph, node: NodeId) -> bool {
    g.tensor_type(g.result(node, 0)).is_some_and(|t| t.shape.iter().skip(2).all(|d| d.is_one()))
}

/// A convolution with a bias whose result an activation reads at once.
fn is_bare(g: &Graph, node: NodeId) -> bool {
    g.operand(node, 2).is_some() && g.uses(g.result(node, 0)).any(|(n, _)| activates(g, n))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, DType, Op, TensorType};

    #[test]
    fn each_role_starts_as_it_should() {
        let mut g = Graph::default();
        let ty = |d: &[i64]| TensorType::fixed(DType::F32, d).into();
        let mut v = g.add_input("x", ty(&[1, 3, 8, 8]), None);
        let named = |g: &mut Graph, name: &str, dims: &[i64]| {
            let n = dims.iter().product::<i64>() as usize;
            g.add_initializer(name, Tensor::f32s(dims, &vec![9.0; n]), false)
        };
        let operands: Vec<_> = [("w", &[4i64, 3, 1, 1][..]), ("b", &[4])].map(|(n, d)| Some(named(&mut g, n, d))).into();
        let n = g.add_op("", Op::new("Conv", Attrs::new()), &[Some(v), operands[0], operands[1]]);
        v = g.push_result(n, "c", ty(&[1, 4, 8, 8]));
        let mut all = vec![Some(v)];
        for name in ["scale", "shift", "mean", "var"] {
            all.push(Some(named(&mut g, name, &[4])));
        }
        let n = g.add_op("", Op::new("BatchNormalization", Attrs::new()), &all);
        v = g.push_result(n, "n", ty(&[1, 4, 8, 8]));
        let gamma = named(&mut g, "gamma", &[4, 1, 1]);
        let n = g.add_op("", Op::new("Mul", Attrs::new()), &[Some(v), Some(gamma)]);
        v = g.push_result(n, "y", ty(&[1, 4, 8, 8]));
        g.add_output(v, None);

        assert_eq!(reinitialize(&mut g, 1), ["gamma"]);
        let values = |name: &str| g.initializer(g.find(name).unwrap()).unwrap().to_f64().unwrap();
        let bound = 1.0 / 3f64.sqrt();
        for name in ["w", "b"] {
            assert!(values(name).iter().all(|v| v.abs() < bound), "{name}: {:?}", values(name));
        }
        assert_ne!(values("w")[..4], values("b")[..]);
        assert_eq!([values("scale")[0], values("shift")[0], values("mean")[0], values("var")[0]], [1.0, 0.0, 0.0, 1.0]);
    }

    /// `MatMul(Gather(table, ids), Transpose(table))`: the scores of a network whose embedding is its head.
    #[test]
    fn a_table_that_is_also_the_head_starts_as_a_head() {
        for tied in [true, false] {
            let mut g = Graph::default();
            let ids = g.add_input("ids", TensorType::fixed(DType::I64, &[5]).into(), None);
            let ty = |d: &[i64]| TensorType::fixed(DType::F32, d).into();
            let table = g.add_initializer("table", Tensor::f32s(&[40, 16], &[9.0; 640]), false);
            let n = g.add_op("", Op::new("Gather", Attrs::new()), &[Some(table), Some(ids)]);
            let mut y = g.push_result(n, "h", ty(&[5, 16]));
            if tied {
                let n = g.add_op("", Op::new("Transpose", Attrs::new()), &[Some(table)]);
                let turned = g.push_result(n, "t", ty(&[16, 40]));
                let n = g.add_op("", Op::new("MatMul", Attrs::new()), &[Some(y), Some(turned)]);
                y = g.push_result(n, "y", ty(&[5, 40]));
            }
            g.add_output(y, None);
            reinitialize(&mut g, 3);
            let largest = g
                .initializer(g.find("table").unwrap())
                .unwrap()
                .to_f64()
                .unwrap()
                .iter()
                .fold(0.0, |m: f64, v| m.max(v.abs()));
            assert_eq!(largest <= 0.25, tied, "{largest}");
        }
    }

    /// Blocks of a pre-activation network: `relu(norm(x))`, then two convolutions with a normalisation between them, folded into
    /// the first or not; and a squeeze-and-excitation.
    fn preactivated(folded: bool) -> Graph {
        let mut g = Graph::default();
        let ty = |d: &[i64]| TensorType::fixed(DType::F32, d).into();
        let wide: &[i64] = &[1, 4, 8, 8];
        let mut v = g.add_input("x", ty(wide), None);
        let op = |g: &mut Graph, name: &str, v: ValueId, parameters: &[&[i64]], dims: &[i64]| {
            let mut operands = vec![Some(v)];
            for d in parameters {
                let n = d.iter().product::<i64>() as usize;
                operands.push(Some(g.add_initializer("", Tensor::f32s(d, &vec![1.0; n]), false)));
            }
            let node = g.add_op("", Op::new(name, Attrs::new()), &operands);
            g.push_result(node, "", ty(dims))
        };
        let (kernel, vector): (&[i64], &[i64]) = (&[4, 4, 1, 1], &[4]);
        for _ in 0..3 {
            v = op(&mut g, "BatchNormalization", v, &[vector; 4], wide);
            v = op(&mut g, "Relu", v, &[], wide);
            v = match folded {
                true => op(&mut g, "Conv", v, &[kernel, vector], wide),
                false => {
                    let c = op(&mut g, "Conv", v, &[kernel], wide);
                    op(&mut g, "BatchNormalization", c, &[vector; 4], wide)
                }
            };
            v = op(&mut g, "Relu", v, &[], wide);
            v = op(&mut g, "Conv", v, &[kernel], wide);
            let one: &[i64] = &[1, 4, 1, 1];
            let mut s = op(&mut g, "GlobalAveragePool", v, &[], one);
            s = op(&mut g, "Conv", s, &[kernel, vector], one);
            s = op(&mut g, "Sigmoid", s, &[], one);
            let node = g.add_op("", Op::new("Mul", Attrs::new()), &[Some(v), Some(s)]);
            v = g.push_result(node, "", ty(wide));
        }
        g.add_output(v, None);
        g
    }

    #[test]
    fn normalisation_that_was_folded_in_part_is_missed() {
        assert_eq!(normalisation(&preactivated(true)), Normalisation::Partly(3, 6));
        assert_eq!(normalisation(&preactivated(false)), Normalisation::Whole);
    }
}
