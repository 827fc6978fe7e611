//! `Pad`: more (or, with negative amounts, less) of a tensor at its ends. The amounts are an attribute before opset 11.

use super::sample::{floats, ints};
use super::*;

pub(super) struct Pad;

impl OpRule for Pad {
    fn name(&self) -> &'static str {
        "Pad"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let ty = cx.ty(0)?;
        let mut shape = ty.shape.clone();
        match amounts(ty, cx.listed("pads", 1).ok().flatten(), cx.listed("axes", 3)) {
            Some((before, after)) => {
                for (d, n) in shape.iter_mut().zip(before.iter().zip(&after)) {
                    *d = &*d + &Dim::from(n.0 + n.1);
                }
            }
            None => shape.iter_mut().for_each(|d| *d = unknown_dim("pad")),
        }
        Ok(vec![TensorType::new(ty.dtype, shape)])
    }
    /// Padding by a constant: x̄ = the inner part of ȳ, the constant gets the sum of the rest. Padding by the tensor's own
    /// elements: the rest is folded back onto those it was copied from.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        match p.op().str("mode") {
            "constant" => {}
            "reflect" => return unfold(p, true),
            "edge" => return unfold(p, false),
            _ => return Err(p.unsupported("padding by a constant, by reflection or by the edge is differentiated")),
        }
        let (ct, ty) = (p.ct(0)?, p.ty(0)?);
        let listed = p.listed("axes", 3).map_err(|e| TypeError(e.to_string()));
        let inner = match amounts(&ty, p.listed("pads", 1).ok().flatten(), listed) {
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
                // Amounts computed in the graph.
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
            let rest = p.b.reshape_like(rest, value)?;
            p.accumulate(2, rest)?;
        }
        p.accumulate(0, inner)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Pad", Attrs::new(), vec![floats(&[2, 3]), ints(&[1, 0, 0, 2])]),
            Sample::of("Pad", Attrs::new(), vec![floats(&[2, 3]), ints(&[1, 2]), floats(&[]), ints(&[-1])]),
            Sample::of("Pad", Attrs::new(), vec![floats(&[4, 3]), ints(&[-1, 1, 0, -1])]),
            Sample::of("Pad", Attrs::new().with("pads", vec![0, 1, 1, 0]), vec![floats(&[2, 3])]).at(10).shape_only(),
            Sample::of("Pad", Attrs::new().with("mode", "reflect"), vec![floats(&[4, 4]), ints(&[0, 1, 0, 2])]),
            Sample::of("Pad", Attrs::new().with("mode", "reflect"), vec![floats(&[2, 3, 4]), ints(&[0, 2, 3, 0, 1, 0])]),
            Sample::of("Pad", Attrs::new().with("mode", "edge"), vec![floats(&[2, 3, 2]), ints(&[0, 2, 0, 0, 1, 3])]),
        ]
    }
}

/// The cotangent of padding by reflection, or by the edge: what lies before and after each axis goes back, reversed, to the
/// elements next to the first and the last, or summed to these themselves.
fn unfold(p: &mut Pullback, reflects: bool) -> Result<(), GradError> {
    let ty = p.ty(0)?;
    let listed = p.listed("axes", 3).map_err(|e| TypeError(e.to_string()));
    let Some((before, after)) = amounts(&ty, p.listed("pads", 1).ok().flatten(), listed) else {
        return Err(p.unsupported("its amounts are computed in the graph"));
    };
    if before.iter().chain(&after).any(|n| *n < 0) {
        return Err(p.unsupported("it takes elements away while it repeats others"));
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

/// What is added before and after each axis; `None` where it is computed in the graph, or no amount that an axis can have.
fn amounts(
    ty: &TensorType,
    pads: Option<Vec<i64>>,
    axes: Result<Option<Vec<i64>>, TypeError>,
) -> Option<(Vec<i64>, Vec<i64>)> {
    let pads = pads.filter(|pads| pads.iter().all(|n| n.abs() < 1 << 48))?;
    let axes: Vec<usize> = match axes.ok()? {
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
