//! `GatherND`: the slices that the last axis of the indices names by their first coordinates.

use super::*;

pub(super) const GATHER_ND: Row = Row {
    name: "GatherND",
    infer: |cx| {
        let (ty, indices) = (cx.ty(0)?, cx.ty(1)?);
        let (depth, lead) = indices
            .shape
            .split_last()
            .ok_or_else(|| TypeError("its indices are a scalar and hold no coordinates".into()))?;
        let depth = depth.known().ok_or_else(|| TypeError("the number of coordinates is unknown".into()))?;
        let indexed = usize::try_from(cx.op.int("batch_dims").saturating_add(depth)).ok();
        let rest = indexed.and_then(|n| ty.shape.get(n..));
        let rest = rest.ok_or_else(|| TypeError(format!("{depth} coordinates do not fit {ty}")))?;
        Ok(vec![TensorType::new(ty.dtype, [lead, rest].concat())])
    },
    // x̄ = zeros with ȳ added where it came from. The indexed axes of x become one, on which coordinates are row-major places.
    pullback: |p| {
        let (x, indices, ct) = (p.operand(0)?, p.operand(1)?, p.ct(0)?);
        let (ty, own) = (p.ty(0)?, p.ty(1)?);
        if p.op().int("batch_dims") != 0 {
            return Err(p.unsupported("`batch_dims` is above 0"));
        }
        let depth = own.shape.last().and_then(Dim::known).unwrap_or(0) as usize;
        let (indexed, rest) = ty.shape.split_at(depth);
        // The row-major stride of each coordinate.
        let mut strides = vec![p.b.ints(&[1])];
        let mut step = Dim::from(1);
        for i in (1..depth).rev() {
            step = &step * &indexed[i];
            let stride = match step.known() {
                Some(n) => p.b.ints(&[n]),
                None => {
                    let d = p.b.dim_of(x, i)?;
                    p.b.mul(strides[0], d)?
                }
            };
            strides.insert(0, stride);
        }
        let last = own.rank() as i64 - 1;
        let mut extents = Vec::with_capacity(depth);
        for i in 0..depth {
            extents.push(p.b.dim_of(x, i)?);
        }
        let extents = p.b.shape_from(&extents)?;
        // Negative coordinates count from the end.
        let places = p.b.op("Mod", &[indices, extents])?;
        let strides = p.b.shape_from(&strides)?;
        let places = p.b.mul(places, strides)?;
        let places = p.b.reduce_sum(places, &[last], false)?;
        let rows = product(indexed);
        let mut target = vec![p.b.ints(&[-1])];
        for i in depth..ty.rank() {
            target.push(p.b.dim_of(x, i)?);
        }
        let target = p.b.shape_from(&target)?;
        let flat: Vec<Dim> = std::iter::once(rows).chain(rest.iter().cloned()).collect();
        let like = p.b.reshape_dynamic(x, target, &flat)?;
        let x_ct = gather::add_slices(p.b, ct, like, places, 0)?;
        p.give(0, |b| b.reshape_like(x_ct, x))
    },
    samples: || {
        vec![
            plain(vec![floats(&[3, 4]), ints_of(&[3, 2], &[1, 2, -1, 0, 1, 2])]),
            plain(vec![floats(&[3, 4, 2]), ints_of(&[2, 2, 1], &[1, 2, 1, 0])]),
            plain(vec![floats(&[3, 4, 2]), ints_of(&[2, 2], &[1, -1, 0, 0])]),
            sample(Attrs::new().with("batch_dims", 1), vec![floats(&[2, 3, 2]), ints_of(&[2, 1], &[1, 0])]).shape_only(),
        ]
    },
    ..ROW
};
