//! `Gather`: the slices of an axis that the indices name.

use super::place::{Start, place};
use super::sample::floats;
use super::scatter_elements::add_at;
use super::*;
use crate::ops::build::{Builder, Built};

pub(super) struct Gather;

impl OpRule for Gather {
    fn name(&self) -> &'static str {
        "Gather"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let (ty, axis) = (cx.ty(0)?, cx.axis()?);
        let indices = &cx.ty(1)?.shape;
        let shape = [&ty.shape[..axis], indices, &ty.shape[axis + 1..]].concat();
        Ok(vec![TensorType::new(ty.dtype, shape)])
    }
    /// x̄ = zeros with each slice of ȳ added where it came from; a single constant index or a run of them is one `Pad`.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, indices, ct) = (p.operand(0)?, p.operand(1)?, p.ct(0)?);
        let (ty, rank) = (p.ty(0)?, p.ty(1)?.rank());
        let axis = p.op().int("axis");
        let axis = ty.axis(axis).ok_or_else(|| p.unsupported("its axis is out of range"))?;
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
        let x_ct = add_slices(p.b, ct, x, indices, axis)?;
        p.accumulate(0, x_ct)
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            Sample::of(
                "Gather",
                Attrs::new(),
                vec![floats(&[5, 3]), SampleOperand::Ints { dims: vec![2, 2], values: vec![1, 4, 1, 0] }],
            ),
            Sample::of(
                "Gather",
                Attrs::new().with("axis", 1),
                vec![floats(&[2, 5, 3]), SampleOperand::Ints { dims: vec![3], values: vec![1, -1, 1] }],
            ),
            Sample::of(
                "Gather",
                Attrs::new().with("axis", -1),
                vec![floats(&[2, 5]), SampleOperand::Ints { dims: vec![], values: vec![-1] }],
            ),
            Sample::of(
                "Gather",
                Attrs::new().with("axis", 1),
                vec![floats(&[2, 5, 3]), SampleOperand::Ints { dims: vec![2], values: vec![1, 2] }],
            ),
            Sample::of(
                "Gather",
                Attrs::new().with("axis", 1),
                vec![floats(&[2, 5, 3]), SampleOperand::Ints { dims: vec![2, 2], values: vec![4, 1, 2, 2] }],
            ),
            Sample::of(
                "Gather",
                Attrs::new(),
                vec![floats(&[5]), SampleOperand::Ints { dims: vec![4], values: vec![1, 1, 2, 0] }],
            ),
        ]
    }
}

/// The first index, if each next one is one more.
fn run(indices: &[i64]) -> Option<i64> {
    let first = *indices.first()?;
    let last = first + indices.len() as i64 - 1;
    let whole = indices.windows(2).all(|w| w[1] == w[0] + 1) && !(first < 0 && last >= 0);
    whole.then_some(first)
}

/// Zeros of `like`'s shape with the slices of `ct` added at the indices along an axis.
///
/// `ScatterElements` and not `ScatterND`, which would not need the indices repeated over each slice: with two threads the
/// latter's CPU kernel loses additions to the same row (ONNX Runtime 1.32).
pub(super) fn add_slices(b: &mut Builder, ct: ValueId, like: ValueId, indices: ValueId, axis: usize) -> Built {
    let ty = b.ty(like)?;
    let (many, rank) = (b.ty(indices)?, ty.rank());
    let count = many.elements();
    let mut shape = ty.shape.clone();
    shape[axis] = count;
    // Let the indices be a vector.
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
    b.graph.set_type(v, ty.into());
    Ok(v)
}
