//! Integer lists that are attributes in older opsets and operands in newer ones, and what reductions make of them.

use super::formula::Term;
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

impl Pullback<'_, '_> {
    /// Integers given as the attribute `name` or as constant operand `i`; `None` when neither is there.
    ///
    /// # Errors
    /// When the operand is computed in the graph.
    pub fn listed(&self, name: &str, i: usize) -> Result<Option<Vec<i64>>, GradError> {
        match self.attrs().ints(name) {
            Some(list) => Ok(Some(list.to_vec())),
            None if self.try_operand(i).is_some() => self.ints(i).map(Some),
            None => Ok(None),
        }
    }
}

/// Over which axes a `Reduce…` node reduces.
pub(super) struct Reduction {
    /// Axes counted from the front, ascending. None with `noop_with_empty_axes`: ONNX Runtime then still applies what is done
    /// to each element (|x|, x², ln x).
    pub(super) axes: Vec<usize>,
    /// Do reduced axes stay with extent 1?
    pub(super) keep: bool,
}

impl Reduction {
    fn new(op: &Op, ty: &TensorType, listed: Option<Vec<i64>>) -> Option<Reduction> {
        let keep = op.int("keepdims") != 0;
        let mut axes = match listed {
            Some(list) if !list.is_empty() => list.iter().map(|a| ty.axis(*a)).collect::<Option<Vec<usize>>>()?,
            _ if op.int("noop_with_empty_axes") != 0 => Vec::new(),
            _ => (0..ty.rank()).collect(),
        };
        axes.sort_unstable();
        Some(Reduction { axes, keep })
    }

    /// Of the node a shape rule works on.
    pub(super) fn in_types(cx: &Infer) -> Result<Reduction, TypeError> {
        let (ty, listed) = (cx.ty(0)?, cx.listed("axes", 1)?);
        Reduction::new(cx.op, ty, listed).ok_or_else(|| TypeError(format!("an axis is out of range for {ty}")))
    }

    /// Of the node a pullback works on.
    pub(super) fn of(p: &Pullback) -> Result<Reduction, GradError> {
        let listed = p.listed("axes", 1)?;
        Reduction::new(&p.op(), &p.ty(0)?, listed).ok_or_else(|| p.unsupported("an axis is out of range"))
    }

    /// Makes a value of the reduced shape broadcast against the operand: where more than leading axes were dropped, they
    /// come back with extent 1.
    pub(super) fn back<'f>(&self, v: Term<'f>) -> Term<'f> {
        if self.keep || self.axes.iter().enumerate().all(|(i, a)| i == *a) {
            return v;
        }
        v.then(|b, v| b.unsqueeze(v, &self.places()))
    }

    /// One of the `Reduce…` operators over the same axes, all of them kept.
    pub(super) fn over<'f>(&self, op: &str, v: Term<'f>) -> Term<'f> {
        v.then(|b, v| b.reduce(op, v, &self.places(), true))
    }

    /// How many elements of the operand make one.
    pub(super) fn count<'f>(&self, x: Term<'f>) -> Term<'f> {
        x.then(|b, x| {
            let dtype = b.ty(x)?.dtype;
            b.extent(x, &self.axes, dtype)
        })
    }

    fn places(&self) -> Vec<i64> {
        self.axes.iter().map(|a| *a as i64).collect()
    }
}

/// The shape rule of the reductions.
pub(super) fn reduced(cx: &Infer) -> Types {
    let ty = cx.ty(0)?;
    // Axes nobody knows, but with all of them kept at least the rank is known.
    if cx.listed("axes", 1).is_err() && cx.op.int("keepdims") != 0 {
        return Ok(vec![TensorType::new(ty.dtype, ty.shape.iter().map(|_| unknown_dim("r")).collect::<Vec<_>>())]);
    }
    let r = Reduction::in_types(cx)?;
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
