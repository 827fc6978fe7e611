//! `Squeeze` and `Unsqueeze` drop and insert axes of extent 1.
//!
//! Each is the other's inverse, so no pullback needs the operand's shape at run time where the axes are known.

use super::*;

pub(super) const SQUEEZE: Row = Row {
    name: "Squeeze",
    infer: |cx| {
        let ty = cx.ty(0)?;
        let axes = squeezed(cx)?;
        let single = |a: &i64| ty.shape.get(*a as usize).and_then(Dim::known).is_none_or(|n| n == 1);
        cx.require(axes.iter().all(single), || format!("{ty} has more than one element along axes {axes:?}"))?;
        let kept = ty.shape.iter().enumerate().filter(|(i, _)| !axes.contains(&(*i as i64)));
        Ok(vec![TensorType::new(ty.dtype, kept.map(|(_, d)| d.clone()).collect::<Vec<_>>())])
    },
    // x̄ = ȳ with the axes back.
    pullback: |p| {
        let ct = p.ct(0)?;
        let (x, axes) = (p.operand(0)?, p.told(squeezed));
        p.give(0, |b| match axes {
            Ok(axes) => b.unsqueeze(ct, &axes),
            Err(_) => b.reshape_like(ct, x),
        })
    },
    samples: || {
        vec![
            plain(vec![floats(&[1, 3, 1]), ints(&[-1, 0])]),
            plain(vec![floats(&[1, 3, 1])]),
            sample(Attrs::new().with("axes", vec![2]), vec![floats(&[1, 3, 1])]).at(11).shape_only(),
        ]
    },
    ..ROW
};

pub(super) const UNSQUEEZE: Row = Row {
    name: "Unsqueeze",
    infer: |cx| {
        let ty = cx.ty(0)?;
        let axes = unsqueezed(cx)?;
        let rank = (ty.rank() + axes.len()) as i64;
        let mut dims = ty.shape.iter().cloned();
        let shape = (0..rank).map(|i| if axes.contains(&i) { Some(Dim::from(1)) } else { dims.next() });
        let shape: Option<Vec<Dim>> = shape.collect();
        let shape = shape.filter(|_| dims.next().is_none());
        let shape = shape.ok_or_else(|| TypeError(format!("axes {axes:?} do not fit {ty}")))?;
        Ok(vec![TensorType::new(ty.dtype, shape)])
    },
    // x̄ = ȳ without the axes.
    pullback: |p| {
        let ct = p.ct(0)?;
        let axes = p.told(unsqueezed)?;
        p.give(0, |b| b.squeeze(ct, &axes))
    },
    samples: || {
        vec![
            plain(vec![floats(&[2, 3]), ints(&[0, -1])]),
            plain(vec![floats(&[]), ints(&[0])]),
            sample(Attrs::new().with("axes", vec![1]), vec![floats(&[2, 3])]).at(11).shape_only(),
        ]
    },
    ..ROW
};

/// The axes a `Squeeze` drops, ascending: the listed ones, or all of extent 1 where none is listed. An extent without a name may be 1; a symbol of the
/// inputs is taken for more.
fn squeezed(cx: &Infer) -> Result<Vec<i64>, TypeError> {
    let ty = cx.ty(0)?;
    let axis = |a: &i64| match ty.axis(*a) {
        Some(axis) => Ok(axis as i64),
        None => Err(TypeError(format!("axis {a} is out of range for {ty}"))),
    };
    let mut axes: Vec<i64> = match cx.listed("axes", 1)?.filter(|list| !list.is_empty()) {
        Some(axes) => axes.iter().map(axis).collect::<Result<_, _>>()?,
        None if ty.shape.iter().any(Dim::is_unnamed) => {
            return Err(TypeError(format!("the rank is not known, since an extent of {ty} may be 1")));
        }
        None => (0..ty.rank() as i64).filter(|i| ty.shape[*i as usize].is_one()).collect(),
    };
    axes.sort_unstable();
    Ok(axes)
}

/// The axes an `Unsqueeze` inserts, counted from the front of its result.
fn unsqueezed(cx: &Infer) -> Result<Vec<i64>, TypeError> {
    let axes = cx.listed("axes", 1)?.ok_or_else(|| TypeError("its axes are missing".into()))?;
    let rank = (cx.ty(0)?.rank() + axes.len()) as i64;
    Ok(axes.into_iter().map(|a| if a < 0 { a + rank } else { a }).collect())
}
