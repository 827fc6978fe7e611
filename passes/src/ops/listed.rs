//! Integer lists that older opsets have as attributes and newer ones as operands, and the axes of reductions.

use super::*;

impl Infer<'_> {
    /// Integers given as the attribute `name` or as constant operand `i`; `None` when neither is there.
    ///
    /// # Errors
    /// When the operand is computed in the graph.
    pub fn listed(&self, name: &str, i: usize) -> Result<Option<Vec<i64>>, TypeError> {
        match self.attrs().ints(name) {
            Some(list) => Ok(Some(list.to_vec())),
            None if (self.present)(i) => {
                self.ints(i).map(Some).ok_or_else(|| TypeError(format!("`{name}` is computed in the graph")))
            }
            None => Ok(None),
        }
    }
}

/// The axes over which a `Reduce…` node reduces.
pub(super) struct Reduction {
    /// Axes counted from the front, ascending. Empty with `noop_with_empty_axes`; ONNX Runtime then still applies the
    /// operator's function to each element (|x|, x², ln x).
    pub(super) axes: Vec<usize>,
    /// Do reduced axes stay with extent 1?
    pub(super) keep: bool,
}

impl Reduction {
    pub(super) fn of(cx: &Infer) -> Result<Reduction, TypeError> {
        let ty = cx.ty(0)?;
        let axis = |a: &i64| ty.axis(*a).ok_or_else(|| TypeError(format!("axis {a} is out of range for {ty}")));
        let mut axes = match cx.listed("axes", 1)? {
            Some(list) if !list.is_empty() => list.iter().map(axis).collect::<Result<Vec<usize>, _>>()?,
            _ if cx.op.int("noop_with_empty_axes") != 0 => Vec::new(),
            _ => (0..ty.rank()).collect(),
        };
        axes.sort_unstable();
        Ok(Reduction { axes, keep: cx.op.int("keepdims") != 0 })
    }

    /// Reshapes a value of the reduced shape to broadcast against the operand. Dropped leading axes need no reshape.
    pub(super) fn back<'f>(&self, v: Term<'f>) -> Term<'f> {
        if self.keep || self.axes.iter().enumerate().all(|(i, a)| i == *a) {
            return v;
        }
        v.then(|b, v| b.unsqueeze(v, &self.places()))
    }

    /// The axes as ONNX writes them.
    pub(super) fn places(&self) -> Vec<i64> {
        self.axes.iter().map(|a| *a as i64).collect()
    }
}

/// The shape rule of the reductions.
pub(super) fn reduced(cx: &Infer) -> Types {
    let ty = cx.ty(0)?;
    // The axes are computed in the graph. Since all of them are kept, the rank is known.
    if cx.listed("axes", 1).is_err() && cx.op.int("keepdims") != 0 {
        return Ok(vec![TensorType::new(ty.dtype, ty.shape.iter().map(|_| unknown_dim("r")).collect::<Vec<_>>())]);
    }
    let r = Reduction::of(cx)?;
    let shape: Vec<Dim> = ty
        .shape
        .iter()
        .enumerate()
        .filter_map(|(i, d)| match r.axes.contains(&i) {
            false => Some(d.clone()),
            true => r.keep.then(|| Dim::from(1)),
        })
        .collect();
    Ok(vec![TensorType::new(ty.dtype, shape)])
}
