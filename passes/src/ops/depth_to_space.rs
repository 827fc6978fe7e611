//! `DepthToSpace`, `SpaceToDepth`: blocks of channels to blocks of pixels and back.
//!
//! `SpaceToDepth` is the inverse of `DepthToSpace` in its mode DCR; the mode CRD is written out.

use super::*;

pub(super) const DEPTH_TO_SPACE: Row = Row {
    name: "DepthToSpace",
    infer: |cx| {
        let (ty, k) = blocks(cx)?;
        let channels = part_of(ty, 1, &(&k * &k), "depth")?;
        Ok(vec![TensorType::new(ty.dtype, vec![ty.shape[0].clone(), channels, &ty.shape[2] * &k, &ty.shape[3] * &k])])
    },
    // x̄ = ȳ with its blocks moved back to channels.
    pullback: |p| {
        let (x, ct, op) = (p.operand(0)?, p.ct(0)?, p.op());
        let k = op.int("blocksize");
        let ty = p.ty(0)?;
        let x_ct = if op.str("mode") == "DCR" {
            let v = p.b.op_with("SpaceToDepth", Attrs::new().with("blocksize", k), &[ct])?;
            p.b.graph.set_type(v, ty.into());
            v
        } else {
            // [N, C, H·k, W·k] -> [N, C, H, k, W, k] -> [N, C, k, k, H, W]
            let out = p.b.ty(ct)?;
            let (n, c) = (p.b.dim_of(ct, 0)?, p.b.dim_of(ct, 1)?);
            let (h, w, block) = (p.b.dim_of(x, 2)?, p.b.dim_of(x, 3)?, p.b.ints(&[k]));
            let target = p.b.shape_from(&[n, c, h, block, w, block])?;
            let block = Dim::from(k);
            let (n, c, h, w) = (out.shape[0].clone(), out.shape[1].clone(), ty.shape[2].clone(), ty.shape[3].clone());
            let apart = p.b.reshape_dynamic(ct, target, &[n, c, h, block.clone(), w, block])?;
            let turned = p.b.transpose(apart, &[0, 1, 3, 5, 2, 4])?;
            p.b.reshape_like(turned, x)?
        };
        p.accumulate(0, x_ct)
    },
    samples: || {
        vec![
            sample(Attrs::new().with("blocksize", 2), vec![floats(&[1, 8, 2, 3])]),
            sample(Attrs::new().with("blocksize", 2).with("mode", "CRD"), vec![floats(&[2, 8, 2, 3])]),
        ]
    },
    ..ROW
};

pub(super) const SPACE_TO_DEPTH: Row = Row {
    name: "SpaceToDepth",
    infer: |cx| {
        let (ty, k) = blocks(cx)?;
        let part = |i: usize| part_of(ty, i, &k, "space");
        Ok(vec![TensorType::new(ty.dtype, vec![ty.shape[0].clone(), &ty.shape[1] * &(&k * &k), part(2)?, part(3)?])])
    },
    // x̄ = ȳ with its channels moved back to blocks.
    pullback: |p| {
        let (ct, ty, k) = (p.ct(0)?, p.ty(0)?, p.op().int("blocksize"));
        let x_ct = p.b.op_with("DepthToSpace", Attrs::new().with("blocksize", k), &[ct])?;
        p.b.graph.set_type(x_ct, ty.into());
        p.accumulate(0, x_ct)
    },
    samples: || vec![sample(Attrs::new().with("blocksize", 2), vec![floats(&[2, 2, 4, 6])])],
    ..ROW
};

/// The extent of an axis in blocks of so many.
fn part_of(ty: &TensorType, axis: usize, block: &Dim, what: &str) -> Result<Dim, TypeError> {
    match (ty.shape[axis].div_exact(block), ty.shape[axis].known()) {
        (Some(part), _) => Ok(part),
        (None, Some(n)) => Err(TypeError(format!("{n} elements along axis {axis} of {ty} are not blocks of {block}"))),
        (None, None) => Ok(unknown_dim(what)),
    }
}

/// The operand's type and the block's edge.
fn blocks<'a>(cx: &'a Infer) -> Result<(&'a TensorType, Dim), TypeError> {
    let (ty, k) = (cx.ty(0)?, cx.op.int("blocksize"));
    cx.require(ty.rank() == 4, || format!("{ty} is not a batch of images"))?;
    cx.require((1..=1 << 24).contains(&k), || format!("`blocksize` is {k}, not a number from 1 on"))?;
    Ok((ty, Dim::from(k)))
}
