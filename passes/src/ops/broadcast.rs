//! Broadcasting and its transpose.

use super::{TypeError, product};
use crate::ir::{DType, Dim, Shape, TensorType, ValueId};
use crate::ops::build::{Builder, Built};

/// The shape two shapes broadcast to (numpy's rule).
///
/// # Errors
/// When two known extents differ and neither is 1. A known extent above 1 is preferred to a symbol, and the first of two
/// different symbols to the second: a valid model makes both equal (or one of them 1) at run time.
pub fn broadcast(a: &[Dim], b: &[Dim]) -> Result<Shape, TypeError> {
    let rank = a.len().max(b.len());
    let one = Dim::from(1);
    let at = |s: &[Dim], i: usize| if i + s.len() < rank { one.clone() } else { s[i + s.len() - rank].clone() };
    (0..rank)
        .map(|i| {
            let (x, y) = (at(a, i), at(b, i));
            match (x.known(), y.known()) {
                _ if x == y => Ok(x),
                (Some(1), _) => Ok(y),
                (_, Some(1)) => Ok(x),
                (Some(p), Some(q)) => Err(TypeError(format!("extents {p} and {q} do not broadcast in axis {i}"))),
                (Some(_), None) => Ok(x),
                (None, Some(_)) => Ok(y),
                (None, None) => Ok(x),
            }
        })
        .collect()
}

/// The transpose of broadcasting: sums a cotangent of the broadcast shape down to the operand's shape.
pub fn unbroadcast(b: &mut Builder, ct: ValueId, operand: ValueId) -> Built {
    let (from, to) = (b.ty(ct)?, b.ty(operand)?);
    if from.shape == to.shape {
        return Ok(ct);
    }
    let Some(lead) = from.rank().checked_sub(to.rank()) else {
        return Err(b.error("unbroadcast", TypeError(format!("{from} is not what {to} is broadcast to"))));
    };
    let mut axes: Vec<i64> = (0..lead as i64).collect();
    for (i, d) in to.shape.iter().enumerate() {
        if d.is_one() && !from.shape[lead + i].is_one() {
            axes.push((lead + i) as i64);
        }
    }
    if axes.is_empty() {
        return Ok(ct);
    }
    // If only leading axes go, one reduction drops them. Otherwise all are kept, and a reshape drops the leading ones.
    if axes.len() == lead {
        return sum_leading(b, ct, lead, b.target.ones_columns);
    }
    let kept = b.reduce_sum(ct, &axes, true)?;
    if lead == 0 { Ok(kept) } else { b.squeeze(kept, &(0..lead as i64).collect::<Vec<_>>()) }
}

/// Sum over leading axes. Rows of `narrow` or more elements are summed by a product with a row of ones.
pub(super) fn sum_leading(b: &mut Builder, v: ValueId, lead: usize, narrow: i64) -> Built {
    let from = b.ty(v)?;
    let to = TensorType::new(from.dtype, &from.shape[lead..]);
    let columns = to.elements();
    let Some(width) = columns.known().filter(|n| *n >= narrow && matches!(from.dtype, DType::F32 | DType::F64)) else {
        return b.reduce_sum(v, &(0..lead as i64).collect::<Vec<_>>(), false);
    };
    let rows = product(&from.shape[..lead]);
    let matrix = b.reshape(v, &[-1, width], &[rows, columns])?;
    let ones = b.row_of_ones(matrix)?;
    let sum = b.matmul(ones, matrix)?;
    let target = b.numbers(&to.shape)?;
    b.reshape(sum, &target, &to.shape)
}

/// Sum of a batch of products.
pub(super) fn sum_batch(b: &mut Builder, products: ValueId) -> Built {
    sum_leading(b, products, 1, b.target.ones_products)
}
