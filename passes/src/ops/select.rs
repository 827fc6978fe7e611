//! `Where`: z = x where the condition holds, y elsewhere; all three broadcast.

use super::*;

pub(super) const WHERE: Row = Row {
    name: "Where",
    infer: |cx| {
        let (condition, x, y) = (cx.ty(0)?, cx.ty(1)?, cx.ty(2)?);
        cx.require(x.dtype == y.dtype, || format!("element types {} and {} differ", x.dtype, y.dtype))?;
        let values = broadcast(&x.shape, &y.shape)?;
        Ok(vec![TensorType::new(x.dtype, broadcast(&values, &condition.shape)?)])
    },
    // x̄ = unbroadcast(z̄ where c), ȳ = unbroadcast(z̄ where not c).
    pullback: |p| {
        let condition = p.operand(0)?;
        p.accumulate_chosen(condition, 1, 2)
    },
    samples: || {
        vec![
            plain(vec![truths(&[2, 1], &[true, false]), floats(&[2, 3]), floats(&[3])]),
            plain(vec![truths(&[3], &[true, false, true]), floats(&[2, 3]), fixed(&[], &[-9.0])]),
            plain(vec![truths(&[3], &[true, false, true]), fixed(&[], &[-9.0]), floats(&[2, 1])]),
        ]
    },
    ..ROW
};
