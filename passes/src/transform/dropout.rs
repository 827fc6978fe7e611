//! Dropout: off in what is deployed and compared, on in the training graph.
//!
//! ONNX Runtime's own `Dropout` starts its random sequence anew in every session, so the training graph computes its masks itself,
//! from `ancre.step`, the node and a seed, in integer operators that every provider has:
//!
//! ```text
//!   keys   k(step, node) = H(step; constants of seed and node)                  four numbers a node
//!   rows   a_r = H(r; k₁, k₂) / 2        all axes but the last                   H(i; k, l) = ((i·A + k)³ · D + l)³   mod p
//!   cols   b_c = H(c; k₃, k₄) / 2        the last axis
//!   keep   (a_r + b_c)³ mod p ≥ ratio · p                                        y = x ⊙ keep / (1 − ratio)
//! ```
//!
//! p = 2147483579 is a prime below 2³¹ with p ≡ 2 (mod 3), so that cubing permutes the residues and every product fits into int64.
//! A mask costs five integer operators over the tensor. The same step gives the same mask in every session and on every provider.

use super::fresh::Fresh;
use super::train_batch_norm;
use crate::ir::{DType, Dim, Graph, Kind, NodeId, Tensor, TensorType, ValueId};
use crate::ops::build::{BuildError, Builder, Built};

/// A prime below 2³¹, ≡ 2 mod 3.
const P: i64 = 2_147_483_579;
/// Multipliers of the two rounds, primitive enough: odd numbers of no small order.
const A: i64 = 1_103_515_245;
const D: i64 = 1_812_433_253 % P;

/// The counter of micro-batches.
pub const STEP: &str = "ancre.step";

/// The counter's input, if the graph has one. Where the source has a value of the counter's name, the counter's name gets a number.
pub fn counter(g: &Graph) -> Option<ValueId> {
    let is_counter = |v: ValueId| {
        let overridable = matches!(g.node(v.node).kind, Kind::Initializer { overridable: true, .. });
        overridable && g.name(v).starts_with(STEP) && g.tensor_type(v) == Some(TensorType::fixed(DType::I64, &[]))
    };
    g.inputs().iter().map(|id| g.result(*id, 0)).find(|v| is_counter(*v))
}

/// The counter's input, which is added if the graph has none.
pub fn step(g: &mut Graph) -> ValueId {
    counter(g).unwrap_or_else(|| g.add_initializer(STEP, Tensor::i64s(&[], &[0]), true))
}

/// Turns a file exported for training into one exported after `model.eval()`: an active dropout becomes the identity, batch
/// normalisation reads its stored statistics (one that computes them from a weight was in training mode for good). Returns how many nodes were changed.
pub fn evaluation_mode(g: &mut Graph) -> usize {
    let mut changed = 0;
    for id in g.nodes().collect::<Vec<_>>() {
        let Some(op) = g.op(id).cloned() else { continue };
        if op.is("Dropout") && g.operand(id, 2).and_then(|mode| number(g, mode)).is_some_and(|on| on != 0.0) {
            let operands = g.operands(id).to_vec();
            g.replace_op(id, op, &operands[..2]);
            changed += 1;
        } else if op.is("BatchNormalization")
            && op.int("training_mode") == 1
            && g.results(id).skip(1).all(|v| !g.is_needed(v))
            && !train_batch_norm::computes_statistics(g, id)
        {
            g.edit_attrs(id, |a| _ = a.0.shift_remove("training_mode"));
            g.drop_results(id, 1);
            changed += 1;
        }
    }
    changed
}

/// Replaces every dropout by a mask of the step; returns the names of the nodes. A dropout that the file turns off, or of ratio 0,
/// stays the identity.
///
/// # Errors
/// When a node cannot be built because types are unknown.
pub fn activate_dropout(g: &mut Graph, seed: u64) -> Result<Vec<String>, BuildError> {
    let order = g.topological_order();
    let active: Vec<NodeId> = order.into_iter().filter(|id| g.is_op(*id, "Dropout") && is_active(g, *id)).collect();
    if active.is_empty() {
        return Ok(Vec::new());
    }
    let keys = keys(g, &active, seed)?;
    let mut names = Vec::with_capacity(active.len());
    for (i, id) in active.into_iter().enumerate() {
        names.push(g.site(id).name);
        replace(g, id, keys, i as i64)?;
    }
    Ok(names)
}

/// The single element of a constant.
fn number(g: &Graph, v: ValueId) -> Option<f64> {
    let t = g.constant(v).filter(|t| t.len() == 1)?;
    t.to_f64().ok()?.first().copied()
}

fn is_active(g: &Graph, id: NodeId) -> bool {
    let operand = |i: usize| g.operand(id, i).and_then(|v| number(g, v));
    operand(2) != Some(0.0) && operand(1) != Some(0.0)
}

fn modulo(b: &mut Builder, x: ValueId) -> Built {
    let p = b.int(P);
    b.op("Mod", &[x, p])
}

/// x³ mod p, of 0 ≤ x < p.
fn cube(b: &mut Builder, x: ValueId) -> Built {
    let square = b.mul(x, x)?;
    let square = modulo(b, square)?;
    let cube = b.mul(square, x)?;
    modulo(b, cube)
}

/// (x·a + c) mod p.
fn affine(b: &mut Builder, x: ValueId, a: ValueId, c: ValueId) -> Built {
    let scaled = b.mul(x, a)?;
    let shifted = b.add(scaled, c)?;
    modulo(b, shifted)
}

/// ((x·a + k)³ · d + l)³ mod p.
fn hash(b: &mut Builder, x: ValueId, [a, k, d, l]: [ValueId; 4]) -> Built {
    let first = affine(b, x, a, k)?;
    let first = cube(b, first)?;
    let second = affine(b, first, d, l)?;
    cube(b, second)
}

/// Four keys for each node, one vector of all.
fn keys(g: &mut Graph, nodes: &[NodeId], seed: u64) -> Built {
    let step = step(g);
    let mut constants = [const { Vec::new() }; 4];
    for id in nodes {
        let name = g.name(g.result(*id, 0)).to_string();
        let mut fresh = Fresh::new(seed, &format!("dropout {name}"));
        for c in &mut constants {
            c.extend((0..4).map(|_| 1 + fresh.below(P as u64 - 1) as i64));
        }
    }
    let mut b = Builder::new(g, "dropout");
    let count = 4 * nodes.len() as i64;
    let constants = constants.map(|c| b.constant("dropout/keys", Tensor::i64s(&[count], &c)));
    let step = modulo(&mut b, step)?;
    hash(&mut b, step, constants)
}

/// Hashes of 0 … n−1, halved so that two of them add up to less than p.
fn hashed_range(b: &mut Builder, count: ValueId, n: &Dim, keys: [ValueId; 2]) -> Built {
    let (zero, one) = (b.int(0), b.int(1));
    let range = b.op("Range", &[zero, count, one])?;
    b.graph.set_type(range, TensorType::new(DType::I64, vec![n.clone()]).into());
    let (a, d, two) = (b.int(A), b.int(D), b.int(2));
    let hashed = hash(b, range, [a, keys[0], d, keys[1]])?;
    b.div(hashed, two)
}

/// The product of some extents of a value, as a scalar.
fn count(b: &mut Builder, x: ValueId, axes: std::ops::Range<usize>, n: &Dim) -> Built {
    if let Some(n) = n.known() {
        return Ok(b.int(n));
    }
    let mut product = b.ints(&[1]);
    for axis in axes {
        let d = b.dim_of(x, axis)?;
        product = b.mul(product, d)?;
    }
    b.squeeze(product, &[0])
}

/// Random residues mod p in the shape of `x`.
fn residues(b: &mut Builder, x: ValueId, keys: [ValueId; 4]) -> Built {
    let ty = b.ty(x)?;
    let last = ty.rank().saturating_sub(1);
    let n = ty.shape.last().cloned().unwrap_or_else(|| Dim::from(1));
    let width = count(b, x, last..ty.rank(), &n)?;
    let columns = hashed_range(b, width, &n, [keys[2], keys[3]])?;
    let rows = ty.shape[..last].iter().fold(Dim::from(1), |p, d| &p * d);
    let height = count(b, x, 0..last, &rows)?;
    let mut each = hashed_range(b, height, &rows, [keys[0], keys[1]])?;
    if last > 0 {
        let mut shape: Vec<Dim> = ty.shape[..last].to_vec();
        shape.push(Dim::from(1));
        let mut parts = Vec::with_capacity(last + 1);
        for axis in 0..last {
            parts.push(b.dim_of(x, axis)?);
        }
        parts.push(b.ints(&[1]));
        let target = b.shape_from(&parts)?;
        each = b.reshape_dynamic(each, target, &shape)?;
    }
    let sum = b.add(each, columns)?;
    if ty.rank() == 0 {
        let scalar = b.squeeze(sum, &[0])?;
        return cube(b, scalar);
    }
    cube(b, sum)
}

fn replace(g: &mut Graph, id: NodeId, keys: ValueId, index: i64) -> Result<(), BuildError> {
    let name = g.site(id).name;
    let mut b = Builder::new(g, &format!("dropout/{name}"));
    let [x, ratio_operand, mode] = [0, 1, 2].map(|i| b.graph.operand(id, i));
    let Some(x) = x else { return Ok(()) };
    let dtype = b.ty(x)?.dtype;
    let mut own = Vec::with_capacity(4);
    for i in 4 * index..4 * index + 4 {
        own.push(b.slice(keys, 0, i, i + 1)?);
    }
    let random = residues(&mut b, x, [own[0], own[1], own[2], own[3]])?;
    let ratio = match ratio_operand {
        None => Some(0.5),
        Some(v) => number(b.graph, v),
    };
    // Elements below the bound are dropped.
    let (mut below, mut scale) = match (ratio, ratio_operand) {
        (None, Some(ratio)) => {
            let wide = b.cast(ratio, DType::F64)?;
            let bound = b.scale(wide, P as f64)?;
            let bound = b.cast(bound, DType::I64)?;
            let kept = b.from_number_sub(1.0, wide)?;
            let least = b.scalar(DType::F64, 1e-30);
            let kept = b.op("Max", &[kept, least])?;
            let scale = b.from_number_div(1.0, kept)?;
            (bound, b.cast(scale, dtype)?)
        }
        (ratio, _) => {
            let ratio = ratio.unwrap_or(0.5);
            let kept = if ratio < 1.0 { 1.0 / (1.0 - ratio) } else { 0.0 };
            (b.int((ratio * P as f64).ceil() as i64), b.scalar(dtype, kept))
        }
    };
    if let Some(mode) = mode {
        // The mode is computed in the graph or is an input. The dropout is off while it is false.
        let (all, one) = (b.int(0), b.scalar(dtype, 1.0));
        below = b.select(mode, below, all)?;
        scale = b.select(mode, scale, one)?;
    }
    let dropped = b.op("Less", &[random, below])?;
    let keep = b.op("Not", &[dropped])?;
    let mask = b.cast(keep, dtype)?;
    let kept = b.mul(x, mask)?;
    let y = b.mul(kept, scale)?;
    let results: Vec<ValueId> = b.graph.results(id).collect();
    for (old, new) in results.into_iter().zip([y, keep]) {
        if b.graph.is_needed(old) {
            b.graph.redirect(old, new);
        }
    }
    Ok(())
}

/// A dropout node for tests: ratio and whether it is on.
#[cfg(test)]
pub(crate) fn dropout_node(g: &mut Graph, x: ValueId, ratio: f32, on: Option<bool>) -> ValueId {
    let ratio = g.add_initializer("ratio", Tensor::f32s(&[], &[ratio]), false);
    let mode = on.map(|on| g.add_initializer("training", Tensor::bools(&[], &[on]), false));
    let node = g.add_op("drop", crate::ir::Op::new("Dropout", crate::ir::Attrs::new()), &[Some(x), Some(ratio), mode]);
    let ty = g.value(x).ty.clone();
    g.push_result(node, "dropped", ty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify;

    fn network(ratio: f32, on: Option<bool>) -> Graph {
        let mut g = Graph::default();
        let ty = TensorType::new(DType::F32, [Dim::symbol("n"), Dim::from(3), Dim::from(4)]);
        let x = g.add_input("x", ty.into(), None);
        let y = dropout_node(&mut g, x, ratio, on);
        g.add_output(y, None);
        g
    }

    fn ops(g: &Graph, name: &str) -> usize {
        g.nodes().filter(|n| g.is_op(*n, name)).count()
    }

    #[test]
    fn a_dropout_becomes_plain_operators() {
        for on in [None, Some(true)] {
            let mut g = network(0.25, on);
            evaluation_mode(&mut g);
            assert_eq!(ops(&g, "Dropout"), 1);
            assert_eq!(activate_dropout(&mut g, 0).unwrap(), ["drop"]);
            crate::transform::eliminate::eliminate_dead(&mut g, |_, _| false);
            verify::verify(&g, verify::Stage::Legal).unwrap();
            assert_eq!((ops(&g, "Dropout"), ops(&g, "Less")), (0, 1));
            assert_eq!(g.name(g.outputs()[0].value), "dropped");
            assert!(g.initializer(g.find(STEP).unwrap()).is_some());
        }
    }

    #[test]
    fn what_the_file_turns_off_stays_off() {
        for (ratio, on) in [(0.25, Some(false)), (0.0, Some(true)), (0.0, None)] {
            let mut g = network(ratio, on);
            evaluation_mode(&mut g);
            assert!(activate_dropout(&mut g, 0).unwrap().is_empty(), "{ratio} {on:?}");
            assert!(g.find(STEP).is_none());
        }
    }

    #[test]
    fn the_residues_are_permuted() {
        // p is a prime, and 3 divides p − 1 not.
        assert_eq!(P % 3, 2);
        assert!((2..46341).all(|d| P % d != 0));
    }
}
