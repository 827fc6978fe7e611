//! float32 master copies of half-precision parameters and statistics: the network computes in its own type, its state is float32.
//!
//! ```text
//!   before  y = MatMul(x, w: f16)
//!   after   y = MatMul(x, Cast(w: f32))        the gradient of w is that of the Cast: float32 too
//! ```

use crate::ir::{DType, Graph, NodeId, Tensor, ValueId};
use crate::ops::build::{BuildError, Builder};

/// Is it narrower than float32?
pub fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

/// Makes initializers of half precision float32 state, cast where they are read; returns how many.
///
/// # Errors
/// When an initializer's elements cannot be read, or a node cannot be built.
pub fn master_copies(g: &mut Graph, values: &[ValueId]) -> Result<usize, BuildError> {
    let mut copied = 0;
    for &v in values {
        let Some(old) = g.initializer(v).filter(|t| is_half(t.dtype())) else { continue };
        let dtype = old.dtype();
        let wide = old.to_f64().map_err(|e| BuildError {
            op: "initializer".into(),
            prefix: g.name(v).to_string(),
            error: crate::ops::TypeError(e.to_string()),
        })?;
        let wide = Tensor::floats(DType::F32, old.dims(), &wide);
        g.set_initializer(v, wide, true);
        let prefix = g.name(v).to_string();
        let mut b = Builder::new(g, &prefix);
        let narrow = b.cast(v, dtype)?;
        g.replace_uses(v, narrow, |n| n != narrow.node);
        copied += 1;
    }
    Ok(copied)
}

/// Stored means and variances of batch normalisations.
pub fn stored_statistics(g: &Graph) -> Vec<ValueId> {
    let mut found = Vec::new();
    for id in g.topological_order() {
        if !g.is_op(id, "BatchNormalization") {
            continue;
        }
        found.extend((3..5).filter_map(|i| stored(g, id, i)).filter(|v| !found.contains(v)).collect::<Vec<_>>());
    }
    found
}

fn stored(g: &Graph, id: NodeId, operand: usize) -> Option<ValueId> {
    let v = through(g, g.operand(id, operand)?);
    g.initializer(v).map(|_| v)
}

/// What a value is a copy of, through `Identity` and the `Cast` of a master copy.
pub fn through(g: &Graph, mut v: ValueId) -> ValueId {
    while (g.is_op(v.node, "Identity") || g.is_op(v.node, "Cast"))
        && let Some(from) = g.operand(v.node, 0)
    {
        v = from;
    }
    v
}
