//! `Pad` adds elements at the ends of axes, or removes them with negative amounts. The amounts are an attribute before opset 11.

use super::*;

pub(super) const PAD: Row = Row {
    name: "Pad",
    infer: |cx| {
        let ty = cx.ty(0)?;
        let mut shape = ty.shape.clone();
        match amounts(cx) {
            Some((before, after)) => {
                for (d, n) in shape.iter_mut().zip(before.iter().zip(&after)) {
                    *d = &*d + &Dim::from(n.0 + n.1);
                }
            }
            None => shape.iter_mut().for_each(|d| *d = unknown_dim("pad")),
        }
        Ok(vec![TensorType::new(ty.dtype, shape)])
    },
    // Padding by a constant: x̄ = the inner part of ȳ, and the constant gets the sum of the rest. Padding by the tensor's own
    // elements: see [`unfold`].
    pullback: |p| {
        match p.op().str("mode") {
            "constant" => {}
            "reflect" => return unfold(p, true),
            "edge" => return unfold(p, false),
            _ => return Err(p.unsupported("its mode is not constant, reflect or edge")),
        }
        let (ct, ty) = (p.ct(0)?, p.ty(0)?);
        let inner = match p.told(|cx| Ok(amounts(cx)))? {
            Some((before, after)) if before.iter().chain(&after).all(|n| *n >= 0) => {
                let axes: Vec<usize> = (0..ty.rank()).filter(|i| before[*i] + after[*i] != 0).collect();
                let of = |f: &dyn Fn(usize) -> i64| axes.iter().map(|i| f(*i)).collect::<Vec<_>>();
                let starts = p.b.ints(&of(&|i| before[i]));
                let ends = p.b.ints(&of(&|i| if after[i] == 0 { i64::MAX } else { -after[i] }));
                let which = p.b.ints(&of(&|i| i as i64));
                if axes.is_empty() { ct } else { p.b.op("Slice", &[ct, starts, ends, which])? }
            }
            Some((before, after)) => {
                let back: Vec<i64> = before.iter().chain(&after).map(|n| -n).collect();
                let back = p.b.ints(&back);
                p.b.op("Pad", &[ct, back])?
            }
            None if p.try_operand(3).is_none() => {
                // The amounts are computed in the graph.
                let pads = p.operand(1)?;
                let back = p.b.neg(pads)?;
                p.b.op("Pad", &[ct, back])?
            }
            None => return Err(p.unsupported("its amounts and axes are computed in the graph")),
        };
        p.b.graph.set_type(inner, ty.into());
        if p.wants(2) {
            let (all, kept) = (p.b.reduce_all("ReduceSum", ct)?, p.b.reduce_all("ReduceSum", inner)?);
            let rest = p.b.sub(all, kept)?;
            let value = p.operand(2)?;
            p.give(2, |b| b.reshape_like(rest, value))?;
        }
        p.accumulate(0, inner)
    },
    samples: || {
        vec![
            plain(vec![floats(&[2, 3]), ints(&[1, 0, 0, 2])]),
            plain(vec![floats(&[2, 3]), ints(&[1, 2]), floats(&[]), ints(&[-1])]),
            plain(vec![floats(&[4, 3]), ints(&[-1, 1, 0, -1])]),
            sample(Attrs::new().with("pads", vec![0, 1, 1, 0]), vec![floats(&[2, 3])]).at(10).shape_only(),
            sample(Attrs::new().with("mode", "reflect"), vec![floats(&[4, 4]), ints(&[0, 1, 0, 2])]),
            sample(Attrs::new().with("mode", "reflect"), vec![floats(&[2, 3, 4]), ints(&[0, 2, 3, 0, 1, 0])]),
            sample(Attrs::new().with("mode", "edge"), vec![floats(&[2, 3, 2]), ints(&[0, 2, 0, 0, 1, 3])]),
        ]
    },
    ..ROW
};

/// The cotangent of padding by reflection or by the edge. What lies before and after each axis is added to the elements that it
/// was copied from: reversed to those next to the first and the last, or summed to the first and the last.
fn unfold(p: &mut Pullback, reflects: bool) -> Result<(), GradError> {
    let ty = p.ty(0)?;
    let Some((before, after)) = p.told(|cx| Ok(amounts(cx)))? else {
        return Err(p.unsupported("its amounts are computed in the graph"));
    };
    if before.iter().chain(&after).any(|n| *n < 0) {
        return Err(p.unsupported("it removes elements in a mode that repeats others"));
    }
    let mut ct = p.ct(0)?;
    let rank = ty.rank();
    for axis in (0..rank).filter(|i| before[*i] + after[*i] > 0) {
        let Some(n) = ty.shape[axis].known() else {
            return Err(p.unsupported("it repeats elements of an axis whose extent is not known"));
        };
        let at = axis as i64;
        let mut parts = vec![p.b.slice(ct, at, before[axis], before[axis] + n)?];
        let ends = [
            (0, before[axis], if reflects { 1 } else { 0 }),
            (before[axis] + n, after[axis], if reflects { n - 1 - after[axis] } else { n - 1 }),
        ];
        for (start, count, place) in ends.into_iter().filter(|(_, count, _)| *count > 0) {
            let end = p.b.slice(ct, at, start, start + count)?;
            let (folded, extent) = if reflects {
                let reversed = p.b.ints(&(0..count).rev().collect::<Vec<_>>());
                (p.b.op_with("Gather", Attrs::new().with("axis", at), &[end, reversed])?, count)
            } else {
                (p.b.reduce_sum(end, &[at], true)?, 1)
            };
            let mut amounts = vec![0; 2 * rank];
            (amounts[axis], amounts[axis + rank]) = (place, n - place - extent);
            let amounts = p.b.ints(&amounts);
            parts.push(p.b.op("Pad", &[folded, amounts])?);
        }
        ct = p.b.sum(&parts)?;
    }
    p.b.graph.set_type(ct, ty.into());
    p.accumulate(0, ct)
}

/// What is added before and after each axis; `None` if it is computed in the graph or out of range.
fn amounts(cx: &Infer) -> Option<(Vec<i64>, Vec<i64>)> {
    let ty = cx.ty(0).ok()?;
    let pads = cx.listed("pads", 1).ok()??;
    if pads.iter().any(|n| n.unsigned_abs() >= 1 << 48) {
        return None;
    }
    let axes: Vec<usize> = match cx.listed("axes", 3).ok()? {
        Some(axes) => axes.iter().map(|a| ty.axis(*a)).collect::<Option<_>>()?,
        None => (0..ty.rank()).collect(),
    };
    let (mut before, mut after) = (vec![0; ty.rank()], vec![0; ty.rank()]);
    for (i, axis) in axes.iter().enumerate() {
        before[*axis] = *pads.get(i)?;
        after[*axis] = *pads.get(i + axes.len())?;
    }
    Some((before, after))
}
