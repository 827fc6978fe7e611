//! `Reshape`: the same elements in row-major order under another shape.

use super::*;

pub(super) const RESHAPE: Row = Row {
    name: "Reshape",
    infer: |cx| {
        let ty = cx.ty(0)?;
        let listed = cx.attrs().ints("shape").map(|list| list.iter().map(|d| Dim::from(*d)).collect());
        let target: Vec<Dim> = match listed.or_else(|| cx.extents(1)) {
            Some(target) => target,
            // The shape is computed in the graph; its length tells the rank.
            None => return Ok(vec![TensorType::new(ty.dtype, cx.target(1, "reshape")?)]),
        };
        let free = target.iter().filter(|t| t.known() == Some(-1)).count();
        cx.require(free <= 1 && target.iter().all(|t| t.known().is_none_or(|t| t >= -1)), || {
            format!("its target {target:?} is no shape")
        })?;
        let copies = cx.op.int("allowzero") == 0;
        let mut shape = Vec::with_capacity(target.len());
        for (i, t) in target.iter().enumerate() {
            shape.push(match t.known() {
                Some(0) if copies => ty
                    .shape
                    .get(i)
                    .cloned()
                    .ok_or_else(|| TypeError(format!("its target copies dimension {i}, which {ty} does not have")))?,
                Some(-1) => Dim::from(1),
                _ => t.clone(),
            });
        }
        if let Some(free) = target.iter().position(|t| t.known() == Some(-1)) {
            let rest = product(&shape);
            shape[free] = remaining(&ty.shape, &shape, free).unwrap_or_else(|| unknown_dim("reshape"));
            cx.require(rest.known() != Some(0) && shape[free].known().is_none_or(|n| n >= 0), || {
                format!("{ty} does not reshape to {target:?}")
            })?;
        } else {
            let (from, to) = (ty.elements(), product(&shape));
            cx.require(from.known().is_none() || to.known().is_none() || from == to, || {
                format!("{ty} does not reshape to {target:?}")
            })?;
        }
        Ok(vec![TensorType::new(ty.dtype, shape)])
    },
    // x̄ = ȳ under x's shape.
    pullback: |p| {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        p.give(0, |b| b.reshape_like(ct, x))
    },
    samples: || {
        vec![
            plain(vec![floats(&[2, 6]), ints(&[3, 4])]),
            plain(vec![floats(&[2, 3, 4]), ints(&[0, -1])]),
            plain(vec![floats(&[2, 3, 4]), ints(&[0, 0, 2, 2])]),
            sample(Attrs::new().with("allowzero", 1), vec![floats(&[2, 6]), ints(&[1, -1, 3])]),
        ]
    },
    ..ROW
};

/// The extent of axis `free` of `to` (whose entry there is 1) that gives both shapes equally many elements. Common factors are
/// cancelled before the division, so that sums of symbols divide too.
fn remaining(from: &[Dim], to: &[Dim], free: usize) -> Option<Dim> {
    let mut left: Vec<Dim> = from.to_vec();
    let mut right = Vec::new();
    for (i, d) in to.iter().enumerate() {
        if i == free {
            continue;
        }
        match left.iter().position(|l| l == d) {
            Some(at) => drop(left.remove(at)),
            None => right.push(d.clone()),
        }
    }
    product(&left).div_exact(&product(&right))
}
