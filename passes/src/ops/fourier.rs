//! Discrete Fourier transforms of a known length as products with tables of cosines and sines.
//!
//! ```text
//! X = Σ_n (a + i b) e^{−2πi k n / N}:   Re = a C + b S,   Im = b C − a S,   C = cos(2π k n / N), S = sin(2π k n / N)
//! ```

use super::*;

/// Most places of a transform that is written out. The tables have the square of it.
const LONGEST: i64 = 2048;

pub(super) const DFT: Row = Row {
    name: "DFT",
    infer: transformed,
    derivative: Derivative::Decompose("MatMul with tables of cosines and sines; up to 2048 places, of known number"),
    decompose: transform,
    samples: || {
        let of = |attrs: Attrs, dims: &[i64]| sample(attrs, vec![floats(dims)]);
        let axis = |a: i64| ints_of(&[], &[a]);
        vec![
            of(Attrs::new().with("axis", 1), &[2, 5, 1]),
            of(Attrs::new().with("axis", 1).with("inverse", 1), &[2, 4, 2]),
            of(Attrs::new().with("axis", 2).with("onesided", 1), &[2, 3, 6, 1]),
            plain(vec![floats(&[2, 5, 3, 2]), SampleOperand::Missing, axis(1)]).at(20),
        ]
    },
    ..ROW
};

/// The transformed axis, from the front: an attribute before opset 20, an operand (by default the last axis but one) since.
fn axis_of(listed: Option<i64>, op: &Op, opset: i64, rank: usize) -> Option<usize> {
    let axis = listed.unwrap_or_else(|| if opset < 20 { op.int_at("axis", opset) } else { -2 });
    let axis = if axis < 0 { axis + rank as i64 } else { axis };
    (0..rank as i64 - 1).contains(&axis).then_some(axis as usize)
}

/// Real and imaginary parts along the last axis. A one-sided transform has half the places.
fn transformed(cx: &Infer) -> Types {
    let x = cx.ty(0)?;
    let first = |i: usize| if (cx.present)(i) { cx.ints(i).and_then(|v| v.first().copied()).map(Some) } else { Some(None) };
    let unknown = || TypeError("its axis or its length is computed in the graph".into());
    let (length, listed) = (first(1).ok_or_else(unknown)?, first(2).ok_or_else(unknown)?);
    // Opset 20 changed the default axis; the defaults agree only for rank 3.
    let said = listed.is_some() || cx.attrs().get("axis").is_some() || x.rank() == 3;
    cx.require(said, || "its axis depends on the operator set".into())?;
    let axis = axis_of(listed, cx.op, 17, x.rank());
    let axis = axis.ok_or_else(|| TypeError(format!("its axis is out of range for {x}")))?;
    let mut out = x.clone();
    out.shape[x.rank() - 1] = Dim::from(2);
    if let Some(n) = length {
        out.shape[axis] = Dim::from(n);
    }
    if cx.op.int("onesided") != 0 {
        out.shape[axis] = out.shape[axis].known().map_or_else(|| unknown_dim("half"), |n| Dim::from(n / 2 + 1));
    }
    Ok(vec![out])
}

fn transform(b: &mut Builder, s: &Source) -> Decomposed {
    let x = s.need(0)?;
    let ty = type_of(b, x)?;
    let rank = ty.rank() as i64;
    let listed = s.get(2).map(|v| constant(b, v)).transpose()?.and_then(|axis| axis.first().copied());
    let axis = axis_of(listed, &s.op, s.opset, ty.rank());
    let axis = axis.ok_or_else(|| unfit(format!("transforms an axis that {ty} does not have")))?;
    let parts = extent(b, x, ty.rank() - 1)?;
    let n = extent(b, x, axis)?;
    refuse_if(!(1..=LONGEST).contains(&n), unfit(format!("has {n} places; up to {LONGEST} are written as products")))?;
    if let Some(length) = s.get(1) {
        let length = constant(b, length)?;
        refuse_if(length != [n], unfit(format!("makes a length of {length:?} from {n} places")))?;
    }
    let inverse = s.op.int("inverse") != 0;
    let onesided = s.op.int("onesided") != 0;
    refuse_if(inverse && onesided, Why::Feature("a one-sided inverse"))?;
    let kept = if onesided { n / 2 + 1 } else { n };
    let axis = axis as i64;
    // Real or imaginary part, with the transformed axis last.
    let mut perm: Vec<i64> = (0..rank - 1).filter(|a| *a != axis).collect();
    perm.push(axis);
    let arranged = |b: &mut Builder, i: i64| {
        let part = b.slice(x, rank - 1, i, i + 1)?;
        let part = b.squeeze(part, &[rank - 1])?;
        b.transpose(part, &perm)
    };
    let (cos, sin) = tables(b, ty.dtype, n, kept, inverse);
    let re = arranged(b, 0)?;
    let (mut real, mut imaginary) = (b.matmul(re, cos)?, b.matmul(re, sin)?);
    if parts == 2 {
        let im = arranged(b, 1)?;
        let (c, d) = (b.matmul(im, sin)?, b.matmul(im, cos)?);
        real = b.sub(real, c)?;
        imaginary = b.add(imaginary, d)?;
    }
    let mut back = vec![0; rank as usize - 1];
    perm.iter().enumerate().for_each(|(to, from)| back[*from as usize] = to as i64);
    let parts: Vec<ValueId> = [real, imaginary]
        .into_iter()
        .map(|v| {
            let v = b.transpose(v, &back)?;
            b.unsqueeze(v, &[rank - 1])
        })
        .collect::<Result<_, build::BuildError>>()?;
    Ok(vec![b.concat(&parts, rank - 1)?])
}

/// cos θ and sin θ, [n, kept], with θ = ∓2π k j / n, divided by n for the inverse.
fn tables(b: &mut Builder, dtype: DType, n: i64, kept: i64, inverse: bool) -> (ValueId, ValueId) {
    let (sign, scale) = if inverse { (1.0, 1.0 / n as f64) } else { (-1.0, 1.0) };
    let angle = |i: i64| sign * std::f64::consts::TAU * ((i / kept) * (i % kept) % n) as f64 / n as f64;
    let cos: Vec<f64> = (0..n * kept).map(|i| scale * angle(i).cos()).collect();
    let sin: Vec<f64> = (0..n * kept).map(|i| scale * angle(i).sin()).collect();
    let stem = format!("const/dft/{n}");
    (
        b.constant(&format!("{stem}/cos"), Tensor::floats(dtype, &[n, kept], &cos)),
        b.constant(&format!("{stem}/sin"), Tensor::floats(dtype, &[n, kept], &sin)),
    )
}
