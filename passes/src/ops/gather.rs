//! `Gather`: the slices of an axis that the indices name. `GatherElements`: y[i, j] = x[indices[i, j], j] for axis 0, and so on.

use super::place::{Start, place};
use super::scatter::add_at;
use super::*;

pub(super) const GATHER: Row = Row {
    name: "Gather",
    infer: |cx| {
        let (ty, axis) = (cx.ty(0)?, cx.axis()?);
        let indices = &cx.ty(1)?.shape;
        let shape = [&ty.shape[..axis], indices, &ty.shape[axis + 1..]].concat();
        Ok(vec![TensorType::new(ty.dtype, shape)])
    },
    // x̄ = zeros with each slice of ȳ added where it came from. One constant index, or a run of them, takes one `Pad`.
    pullback: |p| {
        let (x, indices, ct) = (p.operand(0)?, p.operand(1)?, p.ct(0)?);
        let (ty, rank) = (p.ty(0)?, p.ty(1)?.rank());
        let axis = p.told(|cx| cx.axis())?;
        if let Some(first) = constant_ints(p.b.graph, indices).and_then(|list| run(&list)) {
            let block = match rank {
                0 => Some(p.b.unsqueeze(ct, &[axis as i64])?),
                1 => Some(ct),
                _ => None,
            };
            if let Some(block) = block {
                let start = if first < 0 { &ty.shape[axis] + &Dim::from(first) } else { Dim::from(first) };
                let x_ct = place(p.b, block, x, &[(axis, Start::At(start))])?;
                return p.accumulate(0, x_ct);
            }
        }
        p.give(0, |b| add_slices(b, ct, x, indices, axis))
    },
    samples: || {
        vec![
            plain(vec![floats(&[5, 3]), ints_of(&[2, 2], &[1, 4, 1, 0])]),
            sample(Attrs::new().with("axis", 1), vec![floats(&[2, 5, 3]), ints(&[1, -1, 1])]),
            sample(Attrs::new().with("axis", -1), vec![floats(&[2, 5]), ints_of(&[], &[-1])]),
            sample(Attrs::new().with("axis", 1), vec![floats(&[2, 5, 3]), ints(&[1, 2])]),
            sample(Attrs::new().with("axis", 1), vec![floats(&[2, 5, 3]), ints_of(&[2, 2], &[4, 1, 2, 2])]),
            plain(vec![floats(&[5]), ints(&[1, 1, 2, 0])]),
        ]
    },
    ..ROW
};

pub(super) const GATHER_ELEMENTS: Row = Row {
    name: "GatherElements",
    infer: |cx| Ok(vec![TensorType::new(cx.ty(0)?.dtype, cx.ty(1)?.shape.clone())]),
    // x̄ = zeros with ȳ added where it came from.
    pullback: |p| {
        let (x, indices, ct) = (p.operand(0)?, p.operand(1)?, p.ct(0)?);
        let axis = p.told(|cx| cx.axis())?;
        p.give(0, |b| {
            let zeros = b.zeros_like(x)?;
            add_at(b, zeros, indices, ct, axis)
        })
    },
    samples: || {
        vec![
            sample(Attrs::new().with("axis", 1), vec![floats(&[2, 4]), ints_of(&[2, 3], &[1, -1, 1, 0, 2, 2])]),
            plain(vec![floats(&[3, 2]), ints_of(&[1, 2], &[2, 0])]),
        ]
    },
    ..ROW
};

/// The first index, if the indices are consecutive.
fn run(indices: &[i64]) -> Option<i64> {
    let first = *indices.first()?;
    let last = first + indices.len() as i64 - 1;
    let whole = indices.windows(2).all(|w| w[1] == w[0] + 1) && !(first < 0 && last >= 0);
    whole.then_some(first)
}

/// Zeros of `like`'s shape with the slices of `ct` added at the indices along an axis.
///
/// `ScatterND` would not need the indices repeated over each slice, but with two threads its CPU kernel loses additions to the
/// same row (ONNX Runtime 1.32). So it is `ScatterElements`.
pub(super) fn add_slices(b: &mut Builder, ct: ValueId, like: ValueId, indices: ValueId, axis: usize) -> Built {
    let ty = b.ty(like)?;
    let (many, rank) = (b.ty(indices)?, ty.rank());
    let count = many.elements();
    let mut shape = ty.shape.clone();
    shape[axis] = count;
    // As if the indices were a vector.
    let ct = match many.rank() {
        1 => ct,
        0 => b.unsqueeze(ct, &[axis as i64])?,
        _ => {
            let mut target = Vec::with_capacity(rank);
            for i in 0..rank {
                target.push(if i == axis { b.ints(&[-1]) } else { b.dim_of(like, i)? });
            }
            let target = b.shape_from(&target)?;
            b.reshape_dynamic(ct, target, &shape)?
        }
    };
    let mut along = vec![1; rank];
    along[axis] = -1;
    let mut line = vec![Dim::from(1); rank];
    line[axis] = shape[axis].clone();
    let line = b.reshape(indices, &along, &line)?;
    let places = b.expand_like(line, ct)?;
    let zeros = b.zeros_like(like)?;
    let v = add_at(b, zeros, places, ct, axis)?;
    Ok(b.state(v, ty))
}
