//! `Concat`: joins along an axis.

use super::*;

pub(super) const CONCAT: Row = Row {
    name: "Concat",
    infer: |cx| {
        let mut all = cx.ty(0)?.clone();
        let axis = cx.axis()?;
        for i in 1..cx.types.len() {
            let other = cx.ty(i)?;
            cx.require(other.rank() == all.rank() && other.dtype == all.dtype, || {
                format!("{all} and operand {i}, {other}, differ in rank or element type")
            })?;
            for (j, (a, b)) in all.shape.iter_mut().zip(&other.shape).enumerate() {
                if j == axis {
                    *a = &*a + b;
                } else if a.known().is_none() && b.known().is_some() {
                    *a = b.clone();
                } else if a.known().is_some() && b.known().is_some() && a != b {
                    return Err(TypeError(format!("extents {a} and {b} of axis {j} differ")));
                }
            }
        }
        Ok(vec![all])
    },
    // x̄ᵢ is the part of ȳ that xᵢ became: a `Slice` if one operand's cotangent is wanted, else a `Split` for all.
    pullback: |p| {
        let (ct, count) = (p.ct(0)?, p.operand_count());
        let axis = p.told(|cx| cx.axis())?;
        let wanted: Vec<usize> = (0..count).filter(|i| p.wants(*i)).collect();
        let known: Option<Vec<i64>> = (0..count).map(|i| p.ty(i).ok()?.shape[axis].known()).collect();
        if let ([i], Some(known)) = (wanted.as_slice(), &known) {
            let start: i64 = known[..*i].iter().sum();
            let x_ct = if count == 1 { ct } else { p.b.slice(ct, axis as i64, start, start + known[*i])? };
            return p.accumulate(*i, x_ct);
        }
        let mut sizes = Vec::with_capacity(count);
        for i in 0..count {
            let x = p.operand(i)?;
            sizes.push(p.b.dim_of(x, axis)?);
        }
        let sizes = p.b.shape_from(&sizes)?;
        let parts = split::split(p.b, ct, sizes, axis, count)?;
        for i in wanted {
            let x = p.operand(i)?;
            let ty = p.b.ty(x)?;
            p.b.graph.set_type(parts[i], ty.into());
            p.accumulate(i, parts[i])?;
        }
        Ok(())
    },
    samples: || {
        vec![
            sample(Attrs::new().with("axis", -1), vec![floats(&[2, 3]), floats(&[2, 1]), floats(&[2, 2])]),
            sample(Attrs::new().with("axis", 0), vec![floats(&[2, 3]), fixed(&[1, 3], &[0.0, 0.0, 0.0])]),
            sample(Attrs::new().with("axis", 0), vec![floats(&[2, 3])]),
        ]
    },
    ..ROW
};
