//! One parameter where an exporter wrote several: a tied weight beside its own transpose, a weight for each call that reads it.
//!
//! ```text
//!   source    h = Gather(wte, ids)   logits = MatMul(y, val_7)            wte [V, D], val_7 [D, V] = wteᵀ, bit for bit
//!   training  h = Gather(wte, ids)   logits = MatMul(y, Transpose(wte))
//! ```
//!
//! The head of a language model reads its embedding through a `Transpose`, and both of PyTorch's exporters fold that into a
//! second initializer. Trained apart, the two would drift from one another, and neither would get the sum of both gradients.
//!
//! The evidence is equality of all bits, for matrices that are no pattern (zeros and ones, a ramp: see `is_irregular`), in one
//! pair only: where three tensors agree, nothing says which belong together. Networks whose layers were cloned before training
//! (`TransformerEncoder`) start with many tensors that are equal, of one layout, and yet apart. PyTorch's newer exporter writes the
//! weight of a linear map that is called several times (ALBERT's layers) as often, each time transposed. It also notes the parameter
//! that each call was given; equal tensors with one such note are one parameter.
//!
//! The forward graph keeps both tensors. What is tied is recorded there ([`Ties`]), so that whoever writes a trained value into it
//! writes both.

use crate::analysis::origin::weight_of_call;
use crate::analysis::roles::{Role, initializer_roles};
use crate::contract::{Record, Tie, Ties};
use crate::ir::{Graph, Kind, Tensor, ValueId};
use crate::ops::build::{BuildError, Builder};
use std::collections::{HashMap, HashSet};

/// Extent of the corner by which candidates are found.
const CORNER: usize = 4;

/// Fewer elements than this prove nothing.
const FEWEST: usize = 64;

/// Elements among which distinct ones are counted.
const SAMPLE: usize = 4096;

/// Pairs of trained matrices of which one is the other's transpose. Reads a corner of each matrix, and the whole of those whose corners
/// agree. A tensor whose data is not at hand is tied to nothing.
pub fn find_ties(g: &Graph) -> Vec<Tie> {
    let matrices: Vec<(ValueId, Role)> =
        initializer_roles(g).into_iter().filter(|(v, r)| r.trains() && fits(g, *v)).collect();
    let tensor = |i: usize| g.initializer(matrices[i].0);
    let mut by_corner: HashMap<(Vec<i64>, Vec<u8>), Vec<usize>> = HashMap::new();
    let mut turned = Vec::new();
    for i in 0..matrices.len() {
        let Some(t) = tensor(i) else { continue };
        let Some((corner, across)) = corners(t) else { continue };
        by_corner.entry((t.dims().to_vec(), corner)).or_default().push(i);
        turned.push((i, (vec![t.dims()[1], t.dims()[0]], across)));
    }
    let mut pairs: Vec<(usize, usize)> = Vec::new();
    for (i, key) in &turned {
        let others = by_corner.get(key).into_iter().flatten().filter(|j| *j > i);
        pairs.extend(others.filter(|j| is_tied(tensor(*i), tensor(**j))).map(|j| (*i, *j)));
    }
    let mut partners: HashMap<usize, usize> = HashMap::new();
    pairs.iter().for_each(|(a, b)| [a, b].into_iter().for_each(|i| *partners.entry(*i).or_default() += 1));
    pairs.retain(|(a, b)| partners[a] == 1 && partners[b] == 1);
    let tie = |(a, b): (usize, usize)| {
        // An embedding is the parameter: it is read by rows.
        let (a, b) = if matrices[b].1 == Role::Embedding && matrices[a].1 != Role::Embedding { (b, a) } else { (a, b) };
        Tie { name: g.name(matrices[a].0).to_string(), transposed: g.name(matrices[b].0).to_string(), copy: false }
    };
    let copies = find_copies(g, matrices.iter().map(|(v, _)| *v));
    pairs.into_iter().map(tie).chain(copies).collect()
}

/// Equal matrices that calls with one parameter read.
fn find_copies(g: &Graph, matrices: impl Iterator<Item = ValueId>) -> Vec<Tie> {
    let mut first: HashMap<&str, ValueId> = HashMap::new();
    let mut copies = Vec::new();
    for v in matrices {
        let mut notes = g.uses(v).map(|(n, _)| weight_of_call(g, n));
        let Some(note) = notes.next().flatten().filter(|first| notes.all(|n| n == Some(*first))) else { continue };
        let own = *first.entry(note).or_insert(v);
        if own != v && g.initializer(own).zip(g.initializer(v)).is_some_and(|(a, b)| is_equal(a, b)) {
            copies.push(Tie { name: g.name(own).to_string(), transposed: g.name(v).to_string(), copy: true });
        }
    }
    copies
}

/// A matrix that could stand for another one: nothing but operands of operators read it.
fn fits(g: &Graph, v: ValueId) -> bool {
    let Kind::Initializer { tensor, overridable: false } = &g.node(v.node).kind else { return false };
    let whole = !g.is_captured(v) && !g.is_output(v);
    tensor.dims().len() == 2 && tensor.len() >= FEWEST && tensor.dtype().is_float() && whole
}

/// The elements of the upper left corner, and the same read down the columns.
fn corners(t: &Tensor) -> Option<(Vec<u8>, Vec<u8>)> {
    let size = t.dtype().size()?;
    let bytes = t.bytes().ok()?;
    let (rows, columns) = (t.dims()[0] as usize, t.dims()[1] as usize);
    let (r, c) = (rows.min(CORNER), columns.min(CORNER));
    let at = |i: usize, j: usize| &bytes[(i * columns + j) * size..][..size];
    let plain = (0..r).flat_map(|i| (0..c).flat_map(move |j| at(i, j).iter().copied())).collect();
    let across = (0..c).flat_map(|j| (0..r).flat_map(move |i| at(i, j).iter().copied())).collect();
    Some((plain, across))
}

fn is_tied(a: Option<&Tensor>, b: Option<&Tensor>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    a.dtype() == b.dtype() && is_irregular(a) && is_transpose(a, b)
}

/// Does the matrix have so many different values that no rule made it? Matrices made by a rule (unit matrices, ramps) are equal even
/// where they are different parameters.
fn is_irregular(t: &Tensor) -> bool {
    let (Some(size), Ok(bytes)) = (t.dtype().size(), t.bytes()) else { return false };
    let some = t.len().min(SAMPLE);
    let distinct: HashSet<&[u8]> = bytes.chunks_exact(size).take(some).collect();
    distinct.len() >= some / 8
}

fn is_equal(a: &Tensor, b: &Tensor) -> bool {
    (a.dtype(), a.dims()) == (b.dtype(), b.dims()) && a.bytes().ok().zip(b.bytes().ok()).is_some_and(|(a, b)| a == b)
}

fn is_transpose(a: &Tensor, b: &Tensor) -> bool {
    let (Ok(x), Ok(y)) = (a.bytes(), b.bytes()) else { return false };
    let (rows, columns) = (a.dims()[0] as usize, a.dims()[1] as usize);
    match a.dtype().size() {
        Some(2) => equal_across::<2>(&x, &y, rows, columns),
        Some(4) => equal_across::<4>(&x, &y, rows, columns),
        Some(8) => equal_across::<8>(&x, &y, rows, columns),
        _ => false,
    }
}

/// Squares of this extent are read at once, so that both sides stay in the cache.
const TILE: usize = 32;

fn equal_across<const N: usize>(x: &[u8], y: &[u8], rows: usize, columns: usize) -> bool {
    let (x, y) = (x.as_chunks::<N>().0, y.as_chunks::<N>().0);
    if x.len() != rows * columns || y.len() != x.len() {
        return false;
    }
    tiles(rows, columns).all(|(top, left)| {
        (top..(top + TILE).min(rows))
            .all(|i| (left..(left + TILE).min(columns)).all(|j| x[i * columns + j] == y[j * rows + i]))
    })
}

fn tiles(rows: usize, columns: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows).step_by(TILE).flat_map(move |i| (0..columns).step_by(TILE).map(move |j| (i, j)))
}

/// The transpose of a matrix.
fn transpose(t: &Tensor) -> Option<Tensor> {
    let size = t.dtype().size()?;
    let bytes = t.bytes().ok()?;
    let &[r, c] = t.dims() else { return None };
    let (rows, columns) = (r as usize, c as usize);
    let mut out = vec![0; bytes.len()];
    for (top, left) in tiles(rows, columns) {
        for i in top..(top + TILE).min(rows) {
            for j in left..(left + TILE).min(columns) {
                let (from, to) = ((i * columns + j) * size, (j * rows + i) * size);
                out[to..to + size].copy_from_slice(&bytes[from..from + size]);
            }
        }
    }
    Some(Tensor::from_bytes(t.dtype(), &[c, r], out))
}

/// Makes one parameter of each pair that the metadata ties. The readers of the other tensor take the parameter's transpose.
///
/// # Errors
/// When a node cannot be built.
pub fn tie_parameters(g: &mut Graph) -> Result<Vec<Tie>, BuildError> {
    let mut done = Vec::new();
    for tie in Ties::read(g).ok().flatten().unwrap_or_default().0 {
        let (Some(own), Some(other)) = (g.find(&tie.name), g.find(&tie.transposed)) else { continue };
        // The metadata of a damaged file may tie what has other extents.
        let turned = |t: &Tensor| match tie.copy {
            true => t.dims().to_vec(),
            false => t.dims().iter().rev().copied().collect(),
        };
        let turned = g.initializer(own).map(|t| (t.dtype(), turned(t)));
        let same = turned.zip(g.initializer(other)).is_some_and(|(own, t)| own == (t.dtype(), t.dims().to_vec()));
        if own == other || !same || !fits(g, other) {
            continue;
        }
        if tie.copy {
            g.replace_uses(other, own, |_| true);
            g.remove(other.node);
            done.push(tie);
            continue;
        }
        let transposed = Builder::new(g, &tie.transposed).transpose(own, &[1, 0])?;
        g.replace_uses(other, transposed, |_| true);
        g.remove(other.node);
        g.rename(transposed, &tie.transposed);
        done.push(tie);
    }
    Ok(done)
}

/// Writes the parameter's value to the tensor that holds its transpose.
pub fn follow(g: &mut Graph, tie: &Tie) -> bool {
    let (Some(own), Some(other)) = (g.find(&tie.name), g.find(&tie.transposed)) else { return false };
    let Some(value) = g.initializer(own).and_then(|t| if tie.copy { Some(t.clone()) } else { transpose(t) }) else {
        return false;
    };
    let fits = g.initializer(other).is_some_and(|t| t.dims() == value.dims() && t.dtype() == value.dtype());
    if fits {
        g.set_initializer(other, value, false);
    }
    fits
}

/// Makes both tensors equal again after each got a fresh value. The linear map's value is kept: its scale keeps the results in bounds,
/// while the readers of an embedding take any scale.
pub fn begin(g: &mut Graph, tie: &Tie) {
    let back = Tie { name: tie.transposed.clone(), transposed: tie.name.clone(), copy: false };
    follow(g, if tie.copy { tie } else { &back });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Attrs, DType, Op, TensorType};
    use crate::verify::{Stage, verify};
    use onnx_protobuf::{NodeProto, StringStringEntryProto};
    use std::sync::Arc;

    fn values(seed: usize) -> Vec<f32> {
        (0..96).map(|i| ((i * 37 + seed) as f32 * 0.71).sin()).collect()
    }

    fn turned(rows: usize, columns: usize, of: &[f32]) -> Vec<f32> {
        (0..columns).flat_map(|j| (0..rows).map(move |i| of[i * columns + j])).collect()
    }

    /// `MatMul(Gather(table, ids), map)`, of 12 words and width 8, and further maps of that kind.
    fn language_model(table: &[f32], maps: &[Vec<f32>]) -> Graph {
        called(table, maps, &[])
    }

    /// The same with what an exporter noted of the maps' calls.
    fn called(table: &[f32], maps: &[Vec<f32>], calls: &[String]) -> Graph {
        let mut g = Graph::default();
        let ids = g.add_input("ids", TensorType::fixed(DType::I64, &[5]).into(), None);
        // The map comes first in the file: which of the two is the parameter does not hang on that.
        let maps: Vec<ValueId> = maps
            .iter()
            .enumerate()
            .map(|(i, m)| g.add_initializer(&format!("map{i}"), Tensor::f32s(&[8, 12], m), false))
            .collect();
        let table = g.add_initializer("table", Tensor::f32s(&[12, 8], table), false);
        let ty = |d: &[i64]| TensorType::fixed(DType::F32, d).into();
        let n = g.add_op("", Op::new("Gather", Attrs::new()), &[Some(table), Some(ids)]);
        let h = g.push_result(n, "h", ty(&[5, 8]));
        for (i, map) in maps.into_iter().enumerate() {
            let mut op = Op::new("MatMul", Attrs::new());
            if let Some(call) = calls.get(i) {
                let value = call.clone();
                let note = StringStringEntryProto { key: "pkg.torch.onnx.fx_node".into(), value, ..Default::default() };
                op.source = Some(Arc::new(NodeProto { metadata_props: vec![note], ..Default::default() }));
            }
            let n = g.add_op("", op, &[Some(h), Some(map)]);
            let y = g.push_result(n, &format!("y{i}"), ty(&[5, 12]));
            g.add_output(y, None);
        }
        g
    }

    #[test]
    fn a_head_that_is_its_embedding_transposed_is_tied_to_it() {
        let v = values(1);
        let mut g = language_model(&v, &[turned(12, 8, &v)]);
        let ties = find_ties(&g);
        assert_eq!(ties, [Tie { name: "table".into(), transposed: "map0".into(), copy: false }]);
        Ties(ties.clone()).write(&mut g);
        assert_eq!(tie_parameters(&mut g).unwrap(), ties);
        verify(&g, Stage::Open).unwrap();
        let map = g.find("map0").unwrap();
        assert!(g.is_op(map.node, "Transpose") && g.operand(map.node, 0) == g.find("table"));
    }

    #[test]
    fn a_value_written_to_one_is_written_to_both() {
        let (v, w) = (values(1), values(50));
        let mut g = language_model(&v, &[turned(12, 8, &v)]);
        let tie = find_ties(&g).remove(0);
        let table = g.find("table").unwrap();
        g.set_initializer(table, Tensor::f32s(&[12, 8], &w), false);
        assert!(follow(&mut g, &tie));
        let map = g.initializer(g.find("map0").unwrap()).unwrap();
        assert_eq!((map.dims(), map.to_f32().unwrap()), (&[8, 12][..], turned(12, 8, &w)));
    }

    #[test]
    fn what_differs_in_a_bit_is_made_by_a_rule_or_agrees_with_two_is_not_tied() {
        let v = values(1);
        let mut other = turned(12, 8, &v);
        other[95] = f32::from_bits(other[95].to_bits() ^ 1);
        assert!(find_ties(&language_model(&v, &[other])).is_empty(), "one bit");
        let unit: Vec<f32> = (0..96).map(|i| if i % 9 == 0 { 1.0 } else { 0.0 }).collect();
        assert!(find_ties(&language_model(&unit, &[turned(12, 8, &unit)])).is_empty(), "a pattern");
        let map = turned(12, 8, &v);
        assert!(find_ties(&language_model(&v, &[map.clone(), map])).is_empty(), "two heads");
    }

    #[test]
    fn equal_tensors_of_one_layout_are_two_parameters() {
        let v = values(1);
        assert!(find_ties(&language_model(&values(3), &[v.clone(), v])).is_empty());
    }

    /// ALBERT's layers are one layer, called several times; PyTorch's newer exporter writes its weights for each call.
    #[test]
    fn albert_a_weight_that_was_written_for_every_call_is_one_parameter() {
        let v = values(1);
        let noted = |parameters: [&str; 2]| {
            let call = |p: &str| {
                format!(
                    "%linear : [num_users=1] = call_function[target=torch.ops.aten.linear.default](args = (%h, %{p}, %p_b), kwargs = {{}})"
                )
            };
            called(&values(3), &[v.clone(), v.clone()], &parameters.map(call))
        };
        let mut g = noted(["p_ffn_weight", "p_ffn_weight"]);
        let ties = find_ties(&g);
        assert_eq!(ties, [Tie { name: "map0".into(), transposed: "map1".into(), copy: true }]);
        Ties(ties.clone()).write(&mut g);
        let mut trained = g.clone();
        assert_eq!(tie_parameters(&mut trained).unwrap(), ties);
        verify(&trained, Stage::Open).unwrap();
        assert!(trained.find("map1").is_none());
        assert_eq!(trained.uses(trained.find("map0").unwrap()).count(), 2);
        let own = g.find("map0").unwrap();
        g.set_initializer(own, Tensor::f32s(&[8, 12], &values(9)), false);
        assert!(follow(&mut g, &ties[0]));
        assert_eq!(g.initializer(g.find("map1").unwrap()).unwrap().to_f32().unwrap(), values(9));
        assert!(find_ties(&noted(["p_layers_0_weight", "p_layers_1_weight"])).is_empty());
    }
}
