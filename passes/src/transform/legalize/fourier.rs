//! Discrete Fourier transforms of a known length as products with tables of cosines and sines.
//!
//! ```text
//! X = Σ_n (a + i b) e^{−2πi k n / N}:   Re = a C + b S,   Im = b C − a S,   C = cos(2π k n / N), S = sin(2π k n / N)
//! ```

use super::{Replaced, Source};
use crate::ir::{DType, Tensor, ValueId};
use crate::ops::build::Builder;

/// Length beyond which a transform stays as it is: the tables have its square's size.
const LONGEST: i64 = 2048;

/// The form of opset 17: the axis is an attribute.
pub(super) fn dft_17(b: &mut Builder, s: &Source) -> Replaced {
    transform(b, s, 1)
}

/// The form of opset 20: the axis is an operand.
pub(super) fn dft(b: &mut Builder, s: &Source) -> Replaced {
    transform(b, s, -2)
}

fn transform(b: &mut Builder, s: &Source, default_axis: i64) -> Replaced {
    let x = s.need(0)?;
    let ty = b.ty(x)?;
    let rank = ty.rank() as i64;
    let axis = match s.get(2) {
        None => s.attrs.int("axis", default_axis),
        Some(v) => match b.graph.constant(v).and_then(|t| t.to_i64().ok()).as_deref() {
            Some([axis]) => *axis,
            _ => return Ok(None),
        },
    };
    let axis = if axis < 0 { axis + rank } else { axis };
    let (Some(parts), true) = (ty.shape.last().and_then(|d| d.known()), (0..rank - 1).contains(&axis)) else {
        return Ok(None);
    };
    let n = ty.shape[axis as usize].known().filter(|n| (1..=LONGEST).contains(n));
    let length = s.get(1).map(|v| b.graph.constant(v).and_then(|t| t.to_i64().ok()));
    let Some(n) = n.filter(|n| length.as_ref().is_none_or(|l| l.as_deref() == Some(&[*n]))) else { return Ok(None) };
    let inverse = s.attrs.int("inverse", 0) != 0;
    let onesided = s.attrs.int("onesided", 0) != 0;
    if inverse && onesided {
        return Ok(None);
    }
    let kept = if onesided { n / 2 + 1 } else { n };
    // The transformed axis last, real and imaginary parts apart.
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
        .collect::<Result<_, _>>()?;
    Ok(Some(vec![b.concat(&parts, rank - 1)?]))
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
