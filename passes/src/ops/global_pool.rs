//! `GlobalAveragePool` and `GlobalMaxPool`: mean and maximum over all spatial axes, which stay with extent 1.

use super::*;

pub(super) const GLOBAL_AVERAGE_POOL: Row = Row {
    name: "GlobalAveragePool",
    infer,
    // x̄ = ȳ / area.
    pullback: |p| {
        let ct = p.ct(0)?;
        let (x, ty) = (p.operand(0)?, p.ty(0)?);
        let axes: Vec<usize> = (2..ty.rank()).collect();
        let area = p.b.extent(x, &axes, ty.dtype)?;
        let share = p.b.div(ct, area)?;
        p.give(0, |b| b.expand_like(share, x))
    },
    samples,
    ..ROW
};

pub(super) const GLOBAL_MAX_POOL: Row = Row {
    name: "GlobalMaxPool",
    infer,
    // The first maximum of each channel takes ȳ.
    pullback: |p| {
        let ct = p.ct(0)?;
        let (x, ty) = (p.operand(0)?, p.ty(0)?);
        let area = product(&ty.shape[2..]);
        let rows = [ty.shape[0].clone(), ty.shape[1].clone(), area];
        let flat = super::conv::reshape_around(p.b, x, &rows)?;
        let first = p.b.op_with("ArgMax", Attrs::new().with("axis", 2).with("keepdims", 1), &[flat])?;
        let zero = p.b.scalar(ty.dtype, 0.0);
        let zeros = p.b.expand_like(zero, flat)?;
        let column = [ty.shape[0].clone(), ty.shape[1].clone(), Dim::from(1)];
        let ct = super::conv::reshape_around(p.b, ct, &column)?;
        let placed = p.b.op_with("ScatterElements", Attrs::new().with("axis", 2), &[zeros, first, ct])?;
        p.give(0, |b| b.reshape_like(placed, x))
    },
    samples,
    ..ROW
};

/// The operand with spatial extents of 1.
pub(super) fn infer(cx: &Infer) -> Types {
    let mut ty = cx.ty(0)?.clone();
    cx.require(ty.rank() >= 3, || format!("{ty} has no spatial axes"))?;
    ty.shape[2..].fill(Dim::from(1));
    Ok(vec![ty])
}

fn samples() -> Vec<Sample> {
    [&[2, 3, 4, 5][..], &[1, 2, 6], &[2, 2, 2, 3, 2]].iter().map(|dims| plain(vec![floats(dims)])).collect()
}
