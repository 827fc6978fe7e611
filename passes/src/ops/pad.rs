//! `Pad`: more (or, with negative amounts, less) of a tensor at its ends. The amounts are an attribute before opset 11.

use super::sample::{floats, ints};
use super::*;

pub(super) struct Pad;

impl OpRule for Pad {
    fn name(&self) -> &'static str {
        "Pad"
    }
    fn since(&self) -> i64 {
        11
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
    /// Padding by a constant: x̄ = the inner part of ȳ, the constant gets the sum of the rest. Other modes are not differentiated.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        if p.attrs().str("mode", "constant") != "constant" {
            return Err(p.unsupported("only padding by a constant is differentiated"));
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
            Sample::of("Pad", Attrs::new().with("mode", "reflect"), vec![floats(&[4, 4]), ints(&[0, 1, 0, 2])]).shape_only(),
        ]
    }
}

/// What is added before and after each axis; `None` where it is computed in the graph.
fn amounts(
    ty: &TensorType,
    pads: Option<Vec<i64>>,
    axes: Result<Option<Vec<i64>>, TypeError>,
) -> Option<(Vec<i64>, Vec<i64>)> {
    let pads = pads?;
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
