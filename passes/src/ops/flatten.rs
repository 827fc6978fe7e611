//! `Flatten`: a matrix. The axes before `axis` are its rows, the others its columns.

use super::*;

pub(super) const FLATTEN: Row = Row {
    name: "Flatten",
    infer: |cx| {
        let ty = cx.ty(0)?;
        let (axis, rank) = (cx.op.int("axis"), ty.rank() as i64);
        let axis = if axis < 0 { axis + rank } else { axis };
        cx.require((0..=rank).contains(&axis), || format!("axis {axis} is out of range for {ty}"))?;
        let (rows, columns) = ty.shape.split_at(axis as usize);
        Ok(vec![TensorType::new(ty.dtype, vec![product(rows), product(columns)])])
    },
    // x̄ = ȳ under x's shape.
    pullback: |p| {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        p.give(0, |b| b.reshape_like(ct, x))
    },
    samples: || {
        vec![
            plain(vec![floats(&[2, 3, 4])]),
            sample(Attrs::new().with("axis", -1), vec![floats(&[2, 3, 4])]),
            sample(Attrs::new().with("axis", 0), vec![floats(&[2, 3])]),
        ]
    },
    ..ROW
};
