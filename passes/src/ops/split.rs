//! `Split`: consecutive parts along an axis, of given sizes (an attribute before opset 13) or of equal sizes.

use super::*;

/// Most parts of a node; a damaged file may ask for any number.
const MOST_PARTS: i64 = 1 << 20;

pub(super) const SPLIT: Row = Row {
    name: "Split",
    infer: |cx| {
        let (ty, axis) = (cx.ty(0)?, cx.axis()?);
        let sizes: Vec<Dim> = match cx.listed("split", 1)? {
            Some(sizes) => {
                let sum = sizes.iter().fold(0i64, |sum, n| sum.saturating_add(*n));
                let fits = ty.shape[axis].known().is_none_or(|n| n == sum);
                cx.require(fits, || format!("its parts {sizes:?} are not those of {ty} along axis {axis}"))?;
                sizes.into_iter().map(Dim::from).collect()
            }
            None => {
                // Before opset 18 only the node's results tell the number of parts.
                let written = cx.op.source.as_ref().map_or(0, |n| n.output.len() as i64);
                let count = cx.attrs().int("num_outputs").unwrap_or(written);
                cx.require(count > 0, || "its number of parts is unknown".into())?;
                cx.require(count <= MOST_PARTS, || format!("{count} parts are too many"))?;
                equal_parts(&ty.shape[axis], count)
            }
        };
        let part = |size: Dim| {
            let mut shape = ty.shape.clone();
            shape[axis] = size;
            TensorType::new(ty.dtype, shape)
        };
        Ok(sizes.into_iter().map(part).collect())
    },
    // x̄ = the parts' cotangents joined, with zeros for parts that the loss does not read.
    pullback: |p| {
        let axis = p.op().int("axis");
        let results: Vec<ValueId> = p.graph().results(p.node()).collect();
        let mut parts = Vec::with_capacity(results.len());
        for (i, y) in results.into_iter().enumerate() {
            parts.push(match p.try_ct(i) {
                Some(ct) => ct,
                None => p.b.zeros_like(y)?,
            });
        }
        let x_ct = p.b.concat(&parts, axis)?;
        let ty = p.ty(0)?;
        p.b.graph.set_type(x_ct, ty.into());
        p.accumulate(0, x_ct)
    },
    samples: || {
        vec![
            sample(Attrs::new().with("axis", -1), vec![floats(&[2, 6]), ints(&[1, 3, 2])]).results(3),
            sample(Attrs::new().with("num_outputs", 2), vec![floats(&[5, 2])]).results(2),
            sample(Attrs::new().with("axis", 1), vec![floats(&[2, 6]), ints(&[4, 2])]),
        ]
    },
    ..ROW
};

fn equal_parts(extent: &Dim, count: i64) -> Vec<Dim> {
    if let Some(n) = extent.known() {
        // Since opset 18 the last part may be smaller.
        let size = n.max(0) / count + (n.max(0) % count != 0) as i64;
        return (0..count).map(|i| Dim::from(n.saturating_sub(i.saturating_mul(size)).clamp(0, size))).collect();
    }
    match extent.div_exact(&Dim::from(count)) {
        Some(size) => vec![size; count as usize],
        None => (0..count).map(|_| unknown_dim("split")).collect(),
    }
}

/// Parts whose sizes are a value of the graph.
pub(super) fn split(
    b: &mut Builder,
    v: ValueId,
    sizes: ValueId,
    axis: usize,
    count: usize,
) -> Result<Vec<ValueId>, BuildError> {
    if count == 1 {
        return Ok(vec![v]);
    }
    let attrs = Attrs::new().with("axis", axis as i64);
    if constant_ints(b.graph, sizes).is_some() {
        return b.node(Op::new("Split", attrs), &[Some(v), Some(sizes)]);
    }
    // Without known sizes the shape rule cannot count the parts, so the node is added without it.
    let ty = b.ty(v)?;
    let node = b.graph.add_op("", Op::new("Split", attrs), &[Some(v), Some(sizes)]);
    let stem = format!("{}/Split", b.prefix);
    let part = |b: &mut Builder, i| {
        let mut shape = ty.shape.clone();
        shape[axis] = unknown_dim("split");
        b.graph.push_result(node, &format!("{stem}.{i}"), TensorType::new(ty.dtype, shape).into())
    };
    Ok((0..count).map(|i| part(b, i)).collect())
}
