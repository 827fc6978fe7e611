//! `OneHot`: along a new axis, one value at the index and another elsewhere.

use super::*;

pub(super) const ONE_HOT: Row = Row {
    name: "OneHot",
    infer: |cx| {
        let (indices, values) = (cx.ty(0)?, cx.ty(2)?);
        let rank = indices.rank() as i64 + 1;
        let axis = cx.op.int("axis");
        let axis = if axis < 0 { axis + rank } else { axis };
        cx.require((0..rank).contains(&axis), || format!("axis {axis} is out of range for {indices}"))?;
        let depth = match cx.extents(1).as_deref() {
            Some([n]) => n.clone(),
            _ => unknown_dim("depth"),
        };
        let mut shape = indices.shape.clone();
        shape.insert(axis as usize, depth);
        Ok(vec![TensorType::new(values.dtype, shape)])
    },
    derivative: Derivative::None("the two values of a one-hot encoding are not trained"),
    samples: || {
        vec![
            plain(vec![ints(&[1, 0]), ints_of(&[], &[3]), fixed(&[2], &[0.0, 1.0])]).shape_only(),
            sample(Attrs::new().with("axis", 0), vec![ints_of(&[2, 1], &[1, 0]), ints(&[3]), fixed(&[2], &[0.0, 1.0])])
                .shape_only(),
        ]
    },
    ..ROW
};
