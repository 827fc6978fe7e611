//! `Squeeze`, `Unsqueeze`: drop and insert axes of extent 1.
//!
//! Each is the other's inverse, so their pullbacks name axes and never need the operand's shape at run time.

use super::sample::{floats, ints};
use super::*;

pub(super) struct Squeeze;

impl OpRule for Squeeze {
    fn name(&self) -> &'static str {
        "Squeeze"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let ty = cx.ty(0)?;
        let axes = squeezed(ty, cx.listed("axes", 1)?)
            .ok_or_else(|| TypeError(format!("the axes to squeeze out of {ty} are unknown or out of range")))?;
        let single = |a: &i64| ty.shape.get(*a as usize).and_then(Dim::known).is_none_or(|n| n == 1);
        cx.require(axes.iter().all(single), || format!("{ty} has more than one element along axes {axes:?}"))?;
        let kept = ty.shape.iter().enumerate().filter(|(i, _)| !axes.contains(&(*i as i64)));
        Ok(vec![TensorType::new(ty.dtype, kept.map(|(_, d)| d.clone()).collect::<Vec<_>>())])
    }
    /// x̄ = ȳ with the axes back.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        let axes = squeezed(&p.ty(0)?, p.listed("axes", 1)?).ok_or_else(|| p.unsupported("its axes are unknown"))?;
        let x_ct = p.b.unsqueeze(ct, &axes)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Squeeze", Attrs::new(), vec![floats(&[1, 3, 1]), ints(&[-1, 0])]),
            Sample::of("Squeeze", Attrs::new(), vec![floats(&[1, 3, 1])]),
            Sample::of("Squeeze", Attrs::new().with("axes", vec![2]), vec![floats(&[1, 3, 1])]).at(11).shape_only(),
        ]
    }
}

pub(super) struct Unsqueeze;

impl OpRule for Unsqueeze {
    fn name(&self) -> &'static str {
        "Unsqueeze"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let ty = cx.ty(0)?;
        let axes = cx.listed("axes", 1)?.ok_or_else(|| TypeError("no axes are given".into()))?;
        let rank = (ty.rank() + axes.len()) as i64;
        let axes = unsqueezed(axes, rank);
        let mut dims = ty.shape.iter().cloned();
        let shape = (0..rank).map(|i| if axes.contains(&i) { Some(Dim::from(1)) } else { dims.next() });
        let shape: Option<Vec<Dim>> = shape.collect();
        let shape = shape.filter(|_| dims.next().is_none());
        let shape = shape.ok_or_else(|| TypeError(format!("axes {axes:?} do not fit {ty}")))?;
        Ok(vec![TensorType::new(ty.dtype, shape)])
    }
    /// x̄ = ȳ without the axes.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        let axes = p.listed("axes", 1)?.ok_or_else(|| p.unsupported("no axes are given"))?;
        let axes = unsqueezed(axes, p.b.ty(ct)?.rank() as i64);
        let x_ct = p.b.squeeze(ct, &axes)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of("Unsqueeze", Attrs::new(), vec![floats(&[2, 3]), ints(&[0, -1])]),
            Sample::of("Unsqueeze", Attrs::new(), vec![floats(&[]), ints(&[0])]),
            Sample::of("Unsqueeze", Attrs::new().with("axes", vec![1]), vec![floats(&[2, 3])]).at(11).shape_only(),
        ]
    }
}

/// The axes a `Squeeze` drops, ascending: the listed ones, or all of extent 1.
fn squeezed(ty: &TensorType, listed: Option<Vec<i64>>) -> Option<Vec<i64>> {
    let mut axes: Vec<i64> = match listed {
        Some(axes) => axes.iter().map(|a| ty.axis(*a).map(|a| a as i64)).collect::<Option<_>>()?,
        None => (0..ty.rank() as i64).filter(|i| ty.shape[*i as usize].is_one()).collect(),
    };
    axes.sort_unstable();
    Some(axes)
}

/// The axes an `Unsqueeze` inserts, counted from the front of its result.
fn unsqueezed(axes: Vec<i64>, rank: i64) -> Vec<i64> {
    axes.into_iter().map(|a| if a < 0 { a + rank } else { a }).collect()
}
