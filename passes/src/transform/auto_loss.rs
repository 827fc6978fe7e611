//! `--loss auto`: chooses a loss on evidence in the model, or refuses with the reason.

use crate::analysis::head::constant_origin;
use crate::contract::{Fresh, Record};
use crate::ir::{DType, Graph, Kind, ValueId};
use crate::ops::{Class, Mixing, passes_through};
use crate::transform::loss::{self, LossError, LossKind, Squash, loss_output};

/// Chooses a loss by evidence in the model.
///
/// * Token logits [N, T, V] from integer ids, with V the rows of the embedding the ids index, out of a linear map: a language
///   model. Its loss is next-token when the model is causal: it masks later positions.
/// * A trailing `Softmax` or `LogSoftmax` over another axis than the samples': exclusive classes. A trailing `Sigmoid`: independent ones.
/// * A scalar from several inputs: the model computes its loss itself.
/// * Class logits [N, C] from an image (rank 4 or 5 float input with a convolution or patch projection): a classifier.
/// * Scores of the classes that a fresh head was asked for.
///
/// # Errors
/// The reason, when the evidence does not suffice.
pub fn choose(g: &Graph, output: Option<&str>) -> Result<LossKind, LossError> {
    let v = loss_output(g, output)?;
    let name = g.name(v).to_string();
    let refuse = |why: String| Err(LossError::WhichLoss(why));
    let Some(ty) = g.tensor_type(v) else {
        return refuse(format!("nothing tells which loss output `{name}` is meant for; {}", g.untyped(v)));
    };
    if ty.rank() == 0 && g.required_inputs().count() > 1 {
        return Ok(LossKind::Own);
    }
    let ids = g.required_inputs().find(|i| matches!(g.value(*i).ty.dtype, Some(DType::I64 | DType::I32)));
    let squashed = loss::squashed(g, v);
    if ty.rank() == 3 && ids.is_some() {
        let tables: Vec<i64> = g.required_inputs().filter_map(|i| embedding_rows(g, i)).collect();
        if ty.shape[2].known().is_some_and(|v| tables.contains(&v)) {
            let logits = squashed.as_ref().map_or(v, |s| s.logits);
            if !is_linear(g, logits) {
                return refuse(format!(
                    "output `{name}` {ty} is as wide as the vocabulary, but no linear map to the vocabulary precedes it"
                ));
            }
            if is_causal(g) {
                return Ok(LossKind::NextToken);
            }
            return refuse(format!(
                "output `{name}` {ty} holds token logits, but no causal mask tells whether the model predicts the next token or each position's own"
            ));
        }
    }
    match squashed.map(|s| s.squash) {
        Some(Squash::Softmax(1..)) if ids.is_none() || ty.rank() == 2 => return Ok(LossKind::CrossEntropy),
        Some(Squash::Sigmoid) => return Ok(LossKind::Bce),
        Some(Squash::Softmax(axis)) => {
            return refuse(format!(
                "output `{name}` {ty} comes out of a softmax over axis {axis}, which may be tokens or classes"
            ));
        }
        None => {}
    }
    if scaled(g, v).is_some_and(|from| loss::squashed(g, from).is_some()) {
        return refuse(format!("output `{name}` {ty} is a softmax or sigmoid that is scaled or shifted: no class score"));
    }
    let image = g.required_inputs().any(|i| g.is_float(i) && g.tensor_type(i).is_some_and(|t| matches!(t.rank(), 4 | 5)));
    if ty.rank() == 2 && image && ids.is_none() && ty.shape[1].known().is_none_or(|c| c >= 2) {
        return Ok(LossKind::CrossEntropy);
    }
    let has_fresh_head = Fresh::read(g).ok().flatten().is_some_and(|f| !f.tensors.is_empty());
    if has_fresh_head && ty.rank() >= 2 {
        return Ok(LossKind::CrossEntropy);
    }
    refuse(format!("nothing in the model tells which loss output `{name}` {ty} is meant for"))
}

/// Is the value the result of a linear map, perhaps with a bias, a scale or a cap?
fn is_linear(g: &Graph, mut v: ValueId) -> bool {
    for _ in 0..12 {
        let Some(op) = g.op(v.node) else { return false };
        let next = match op.name.as_str() {
            _ if Class::of(op) == Class::Mixing(Mixing::MatMul) => return true,
            name if passes_through(op) || name == "Tanh" => g.operand(v.node, 0),
            "Add" | "Mul" | "Div" => computed_operand(g, v),
            _ => return false,
        };
        let Some(next) = next else { return false };
        v = next;
    }
    false
}

/// The operand of a value's node that is no constant.
fn computed_operand(g: &Graph, v: ValueId) -> Option<ValueId> {
    g.operands(v.node).iter().flatten().copied().find(|o| constant_origin(g, *o).is_none() && g.constant(*o).is_none())
}

/// What a value is a multiple of, or is shifted from, by constants; `None` if it is neither.
fn scaled(g: &Graph, v: ValueId) -> Option<ValueId> {
    let step = |v: &ValueId| {
        let op = g.op(v.node).filter(|op| op.is("Sub") || matches!(Class::of(op), Class::Add | Class::Scale))?;
        computed_operand(g, *v).filter(|_| g.operands(v.node).len() == 2 && op.domain.is_empty())
    };
    std::iter::successors(step(&v), step).last()
}

/// Rows of the table that an integer input indexes.
fn embedding_rows(g: &Graph, ids: ValueId) -> Option<i64> {
    let mut at = vec![ids];
    for _ in 0..4 {
        let mut next = Vec::new();
        for v in at {
            for (node, operand) in g.uses_in_order(v) {
                let Some(op) = g.op(node) else { continue };
                if op.is("Gather") && operand == 1 {
                    let table = g.operand(node, 0)?;
                    if let Some(t) = g.initializer(table).filter(|t| t.dtype().is_float() && t.dims().len() == 2) {
                        return t.dims().first().copied();
                    }
                }
                if op.is("Cast") || op.is("Identity") || op.is("Reshape") {
                    next.push(g.result(node, 0));
                }
            }
        }
        at = next;
    }
    None
}

/// Does the model mask later positions?
fn is_causal(g: &Graph) -> bool {
    g.nodes().any(|id| match &g.node(id).kind {
        Kind::Op(op) if op.is("Trilu") => true,
        Kind::Op(op) if op.name == "GroupQueryAttention" || op.int("unidirectional") == 1 || op.int("is_causal") == 1 => {
            true
        }
        // Positions compared with positions: `column <= row`, over ranges.
        Kind::Op(op) if matches!(op.name.as_str(), "LessOrEqual" | "GreaterOrEqual" | "Less" | "Greater") => {
            g.operands(id).iter().flatten().all(|v| holds_positions(g, *v, 8))
        }
        Kind::Initializer { tensor, .. } => is_triangular(tensor),
        Kind::Op(op) if op.is("Constant") => op.attrs.tensor("value").is_some_and(is_triangular),
        _ => false,
    })
}

/// Does the value hold 0, 1, 2, …, perhaps reshaped, gathered from or shifted? It is made by a `Range` or is a constant.
fn holds_positions(g: &Graph, v: ValueId, depth: usize) -> bool {
    if g.is_op(v.node, "Range") {
        return true;
    }
    if let Some(t) = g.constant(v) {
        let counts = |values: Vec<i64>| values.len() > 1 && values.windows(2).all(|w| w[1] == w[0] + 1);
        return !t.dtype().is_float() && t.len() <= 1 << 16 && t.external().is_none() && t.to_i64().is_ok_and(counts);
    }
    let Some(op) = g.op(v.node).filter(|_| depth > 0) else { return false };
    let data = match op.name.as_str() {
        "Add" | "Sub" => 2,
        "Gather" | "GatherND" | "Tile" => 1,
        _ if passes_through(op) => 1,
        _ => return false,
    };
    g.operands(v.node).iter().take(data).flatten().any(|o| holds_positions(g, *o, depth - 1))
}

/// A square constant that holds one value above the diagonal and others on and next to it: a causal mask, perhaps of a sliding
/// window, perhaps with position biases added.
fn is_triangular(t: &crate::ir::Tensor) -> bool {
    let dims = t.dims();
    let [outer @ .., rows, columns] = dims else { return false };
    if rows != columns || !(2..=4096).contains(rows) || outer.iter().any(|d| *d != 1) {
        return false;
    }
    // The tensor's file may be missing.
    let Ok(values) = t.to_f64() else { return false };
    let n = *rows as usize;
    let above = values[1];
    (0..n * n).all(|i| (i % n <= i / n) || values[i] == above)
        && (0..n).all(|i| values[i * n + i] != above)
        && (1..n).all(|i| values[i * n + i - 1] != above)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::analysis::types::resolve_types;
    use crate::text::parse;
    use crate::transform::loss::{LossOptions, append_loss};

    /// A score from 1 to 5: a sigmoid, scaled and shifted. Squeezed without axes, its rank is unknown where an extent is.
    const SCORE: &str =
        "net (float[n, 3, 8, 8] x) => (y) <float[2, 3, 8, 8] w = {…}, float four = {4}, float one = {1}, float[] q> {
        c = Conv (x, w) f = Flatten (c) SQUEEZE s = Sigmoid (q) m = Mul (s, four) y = Add (m, one) }";

    fn score(squeeze: &str) -> Graph {
        let mut g = parse(&SCORE.replace("SQUEEZE", squeeze)).unwrap();
        resolve_types(&mut g, None);
        g
    }

    #[test]
    fn speechmos_scaled_sigmoid_is_no_class_score() {
        let g = score("q = Identity (f)");
        assert_eq!(g.tensor_type(g.outputs()[0].value).unwrap().rank(), 2);
        let e = choose(&g, None).unwrap_err().to_string();
        assert!(e.contains("no class score"), "{e}");
    }

    #[test]
    fn speechmos_squeeze_of_a_nameless_extent_names_itself() {
        let mut g = score("z = NonZero (f) t = Cast <to = 1> (z) u = Unsqueeze <axes = [0]> (t) [sq] q = Squeeze (u)");
        let y = g.outputs()[0].value;
        let e = choose(&g, Some("y")).unwrap_err().to_string();
        assert!(e.contains("node `sq` (Squeeze) gives"), "{e}");
        let e = append_loss(&mut g, y, &LossOptions::of(LossKind::CrossEntropy)).err().unwrap().to_string();
        assert!(e.contains("known rank") && e.contains("node `sq` (Squeeze) gives"), "{e}");
    }
}
