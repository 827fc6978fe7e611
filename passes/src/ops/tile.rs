//! `Tile` repeats the operand along each axis.

use super::*;

pub(super) const TILE: Row = Row {
    name: "Tile",
    infer: |cx| {
        let ty = cx.ty(0)?;
        let mut shape = ty.shape.clone();
        match cx.extents(1) {
            Some(repeats) => {
                cx.require(repeats.len() == shape.len(), || format!("{} repeats do not fit {ty}", repeats.len()))?;
                shape.iter_mut().zip(repeats).for_each(|(d, n)| *d = &*d * &n);
            }
            None => shape.iter_mut().for_each(|d| *d = unknown_dim("tile")),
        }
        Ok(vec![TensorType::new(ty.dtype, shape)])
    },
    // x̄ = Σ of ȳ over the repeats, which become axes of their own.
    pullback: |p| {
        let (x, ct, ty) = (p.operand(0)?, p.ct(0)?, p.ty(0)?);
        let repeats = p.told(|cx| Ok(cx.ints(1)))?;
        if repeats.as_ref().is_some_and(|r| r.len() != ty.rank()) {
            return Err(p.unsupported("its repeats do not fit its operand"));
        }
        let (mut target, mut shape, mut over) = (Vec::new(), Vec::new(), Vec::new());
        for (i, d) in ty.shape.iter().enumerate() {
            let n = repeats.as_ref().map(|r| r[i]);
            if n != Some(1) {
                over.push(target.len() as i64);
                shape.push(n.map_or_else(|| unknown_dim("tile"), Dim::from));
                target.push(match n {
                    Some(n) => p.b.ints(&[n]),
                    None => {
                        let repeats = p.operand(1)?;
                        p.b.slice(repeats, 0, i as i64, i as i64 + 1)?
                    }
                });
                if d.is_one() {
                    // An axis of extent 1 consists of its repeats alone.
                    continue;
                }
            }
            shape.push(d.clone());
            target.push(p.b.dim_of(x, i)?);
        }
        let target = p.b.shape_from(&target)?;
        let apart = p.b.reshape_dynamic(ct, target, &shape)?;
        let sum = p.b.reduce_sum(apart, &over, false)?;
        p.give(0, |b| b.reshape_like(sum, x))
    },
    samples: || vec![plain(vec![floats(&[2, 3]), ints(&[2, 3])]), plain(vec![floats(&[1, 3, 2]), ints(&[4, 1, 2])])],
    ..ROW
};
