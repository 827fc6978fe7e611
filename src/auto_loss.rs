//! `--loss auto`: a loss on evidence in the model, or a refusal that lists the choices.

use ancre_passes::ir::{DType, Graph, Kind, ValueId};
use ancre_passes::transform::loss::LossKind;
use ancre_passes::transform::training::loss_output;

/// Chooses a loss by what the model shows of itself.
///
/// * Token logits [N, T, V] from integer ids, with V the rows of the embedding the ids index: a language model. Its loss is
///   next-token when the model is causal (it holds a triangular mask or a `Trilu`).
/// * Class logits [N, C] from an image (rank 4 or 5 float input with a convolution or patch projection): a classifier.
///
/// # Errors
/// The reason, when the evidence does not suffice.
pub fn choose(g: &Graph, output: Option<&str>) -> Result<LossKind, String> {
    let v = loss_output(g, output)?;
    let name = g.name(v).to_string();
    let refuse = |why: String| {
        Err(format!(
            "{why}; choose with --loss cross-entropy (int64 class labels), next-token (language models), mse, l1, huber or bce"
        ))
    };
    let Some(ty) = g.tensor_type(v) else {
        return refuse(format!("nothing tells which loss output `{name}` is meant for: its type is {}", g.value(v).ty));
    };
    let ids = g.required_inputs().find(|i| matches!(g.value(*i).ty.dtype, Some(DType::I64 | DType::I32)));
    if ty.rank() == 3
        && let Some(ids) = ids
    {
        let vocabulary = embedding_rows(g, ids);
        if vocabulary.is_some() && vocabulary == ty.shape[2].known() {
            if is_causal(g) {
                return Ok(LossKind::NextToken);
            }
            return refuse(format!(
                "output `{name}` {ty} holds token logits, but no causal mask tells whether the model predicts the next token or each position's own"
            ));
        }
    }
    let image = g.required_inputs().any(|i| g.is_float(i) && g.tensor_type(i).is_some_and(|t| matches!(t.rank(), 4 | 5)));
    if ty.rank() == 2 && image && ids.is_none() && ty.shape[1].known().is_none_or(|c| c >= 2) {
        return Ok(LossKind::CrossEntropy);
    }
    if ends_in_softmax(g, v) {
        return refuse(format!(
            "output `{name}` {ty} holds probabilities, and losses on probabilities are not built yet: train on the logits before them"
        ));
    }
    refuse(format!("nothing in the model tells which loss output `{name}` {ty} is meant for"))
}

/// Rows of the table that an integer input indexes.
fn embedding_rows(g: &Graph, ids: ValueId) -> Option<i64> {
    let mut at = vec![ids];
    for _ in 0..4 {
        let mut next = Vec::new();
        for v in at {
            for (node, operand) in g.uses(v) {
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
        Kind::Op(op)
            if op.name == "GroupQueryAttention"
                || op.attrs.int("unidirectional", 0) == 1
                || op.attrs.int("is_causal", 0) == 1 =>
        {
            true
        }
        // Positions compared with positions: `row >= column` over ranges.
        Kind::Op(op) if matches!(op.name.as_str(), "LessOrEqual" | "GreaterOrEqual" | "Less" | "Greater") => {
            g.operands(id).iter().flatten().all(|v| from_range(g, *v, 6))
        }
        Kind::Initializer { tensor, .. } => is_triangular(tensor),
        Kind::Op(op) if op.is("Constant") => op.attrs.tensor("value").is_some_and(is_triangular),
        _ => false,
    })
}

fn from_range(g: &Graph, v: ValueId, depth: usize) -> bool {
    if g.is_op(v.node, "Range") {
        return true;
    }
    depth > 0 && g.operands(v.node).iter().flatten().next().is_some_and(|o| from_range(g, *o, depth - 1))
}

/// A square constant with one value on and below the diagonal and another above it.
fn is_triangular(t: &ancre_passes::ir::Tensor) -> bool {
    let dims = t.dims();
    let [.., rows, columns] = dims else { return false };
    if rows != columns
        || *rows < 2
        || dims[..dims.len() - 2].iter().any(|d| *d != 1)
        || *rows > 8192
        || t.external().is_some()
    {
        return false;
    }
    let Ok(values) = t.to_f64() else { return false };
    let n = *rows as usize;
    let (below, above) = (values[0], values[1]);
    below != above && (0..n * n).all(|i| values[i] == if i % n > i / n { above } else { below })
}

/// Does the output come out of a `Softmax`?
fn ends_in_softmax(g: &Graph, v: ValueId) -> bool {
    g.op(v.node).is_some_and(|op| op.is("Softmax") || op.is("LogSoftmax") || op.is("Sigmoid"))
}
