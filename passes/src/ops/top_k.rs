//! `TopK`: the k largest (or smallest) elements along an axis, and their places.

use super::*;

pub(super) const TOP_K: Row = Row {
    name: "TopK",
    infer: |cx| {
        let (ty, axis) = (cx.ty(0)?, cx.axis()?);
        let mut shape = ty.shape.clone();
        shape[axis] = match (cx.attrs().get("k"), cx.ints(1).as_deref()) {
            (Some(_), _) => Dim::from(cx.op.int("k")),
            (None, Some([k])) => Dim::from(*k),
            _ => unknown_dim("k"),
        };
        Ok(vec![TensorType::new(ty.dtype, shape.clone()), TensorType::new(DType::I64, shape)])
    },
    // x̄ = zeros with ȳ at the places that the elements came from.
    pullback: |p| {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        let places = TensorType::new(DType::I64, p.b.ty(ct)?.shape);
        let places = p.extra_result(1, "places", places);
        let axis = p.op().int("axis");
        let zeros = p.b.zeros_like(x)?;
        p.give(0, |b| b.op_with("ScatterElements", Attrs::new().with("axis", axis), &[zeros, places, ct]))
    },
    samples: || {
        let values: Vec<f32> = (0..12).map(|i| (i * 5 % 12) as f32 * 0.1).collect();
        let x = || SampleOperand::Values { dims: vec![3, 4], values: values.clone() };
        vec![
            plain(vec![x(), ints(&[2])]).results(2),
            sample(Attrs::new().with("axis", 0).with("largest", 0), vec![x(), ints(&[1])]),
        ]
    },
    ..ROW
};
