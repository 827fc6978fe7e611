//! `GlobalAveragePool` and `GlobalMaxPool`: mean and maximum over all spatial axes, which stay with extent 1.

use super::sample::floats;
use super::*;

pub(super) struct GlobalAveragePool;
pub(super) struct GlobalMaxPool;

impl OpRule for GlobalAveragePool {
    fn name(&self) -> &'static str {
        "GlobalAveragePool"
    }
    fn infer(&self, cx: &Infer) -> Types {
        infer(cx)
    }
    /// x̄ = ȳ / area, everywhere.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        let (x, ty) = (p.operand(0)?, p.ty(0)?);
        let axes: Vec<usize> = (2..ty.rank()).collect();
        let area = p.b.extent(x, &axes, ty.dtype)?;
        let share = p.b.div(ct, area)?;
        let term = p.b.expand_like(share, x)?;
        p.accumulate(0, term)
    }
    fn samples(&self) -> Vec<Sample> {
        samples("GlobalAveragePool")
    }
}

impl OpRule for GlobalMaxPool {
    fn name(&self) -> &'static str {
        "GlobalMaxPool"
    }
    fn infer(&self, cx: &Infer) -> Types {
        infer(cx)
    }
    /// The first maximum of each channel takes ȳ.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        let (x, ty) = (p.operand(0)?, p.ty(0)?);
        let area = ty.shape[2..].iter().fold(Dim::from(1), |a, d| &a * d);
        let rows = [ty.shape[0].clone(), ty.shape[1].clone(), area];
        let flat = super::conv::reshape_around(p.b, x, &rows)?;
        let first = p.b.op_with("ArgMax", Attrs::new().with("axis", 2).with("keepdims", 1), &[flat])?;
        let zero = p.b.scalar(ty.dtype, 0.0);
        let zeros = p.b.expand_like(zero, flat)?;
        let column = [ty.shape[0].clone(), ty.shape[1].clone(), Dim::from(1)];
        let ct = super::conv::reshape_around(p.b, ct, &column)?;
        let placed = p.b.op_with("ScatterElements", Attrs::new().with("axis", 2), &[zeros, first, ct])?;
        let term = p.b.reshape_like(placed, x)?;
        p.accumulate(0, term)
    }
    fn samples(&self) -> Vec<Sample> {
        samples("GlobalMaxPool")
    }
}

/// The operand with spatial extents of 1.
pub(super) fn infer(cx: &Infer) -> Types {
    let mut ty = cx.ty(0)?.clone();
    cx.require(ty.rank() >= 3, || format!("{ty} has no spatial axes"))?;
    ty.shape[2..].fill(Dim::from(1));
    Ok(vec![ty])
}

fn samples(name: &str) -> Vec<Sample> {
    [&[2, 3, 4, 5][..], &[1, 2, 6], &[2, 2, 2, 3, 2]]
        .iter()
        .map(|dims| Sample::of(name, Attrs::new(), vec![floats(dims)]))
        .collect()
}
