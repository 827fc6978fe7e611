//! `com.microsoft.MatMulNBits`: y = x · Wᵀ + bias with W [N, K] in codes of a few bits, blocks of which along K share a scale and a zero
//! point: w = (code − zero) · scale.
//!
//! Operands: x [.., K]; codes, bytes [N, blocks, bytes a block], the first code in the lowest bits; scales [N · blocks]; zero points, as
//! bytes packed row by row or as numbers of x's type, 2^(bits − 1) where they are missing; g_idx; bias [N]. The codes have no derivative.

use super::build::Built;
use super::matmul::rows;
use super::*;

pub(super) const MATMUL_NBITS: Row = Row {
    domain: MICROSOFT,
    name: "MatMulNBits",
    infer: |cx| {
        let x = cx.ty(0)?;
        let (k, n) = (cx.op.int("K"), cx.op.int("N"));
        let fits = x.shape.last().is_some_and(|d| d.known().is_none_or(|d| d == k));
        cx.require(fits, || format!("{x} has no rows of {k}"))?;
        let mut shape = x.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = Dim::from(n);
        }
        Ok(vec![TensorType::new(x.dtype, shape)])
    },
    // x̄ = ȳ W. The weight is made from its codes when ȳ is there, so that neither the runtime's folding of constants nor the forward
    // pass keeps it in floats.
    pullback: |p| {
        let (x, ct) = (p.operand(0)?, p.ct(0)?);
        if p.wants(2) || p.wants(3) {
            return Err(p.unsupported("its scales and zero points do not train"));
        }
        if p.wants(0) {
            let node = p.node();
            let weight = match weight(p.b, node, ct)? {
                Some(weight) => weight,
                None => return Err(p.unsupported("its codes are not those of 2, 4 or 8 bits in order")),
            };
            p.give(0, |b| {
                let flat = rows(b, ct)?;
                let term = b.matmul(flat, weight)?;
                b.reshape_like(term, x)
            })?;
        }
        p.give(5, |b| {
            let flat = rows(b, ct)?;
            b.reduce_sum(flat, &[0], false)
        })
    },
    samples: || {
        let codes = |dims: &[i64]| SampleOperand::Bytes {
            dims: dims.to_vec(),
            values: (0..dims.iter().product::<i64>()).map(|i| (i * 37 % 251) as u8).collect(),
        };
        let scales = |n: usize| fixed(&[n as i64], &(0..n).map(|i| 0.01 + 0.01 * (i % 3) as f32).collect::<Vec<_>>());
        let of =
            |bits: i64, k: i64, n: i64| Attrs::new().with("bits", bits).with("K", k).with("N", n).with("block_size", 16);
        vec![
            sample(of(4, 32, 5), vec![floats(&[3, 32]), codes(&[5, 2, 8]), scales(10)]),
            sample(of(4, 20, 3), vec![floats(&[2, 3, 20]), codes(&[3, 2, 8]), scales(6), codes(&[3])]),
            sample(of(8, 32, 4), vec![floats(&[3, 32]), codes(&[4, 2, 16]), scales(8), codes(&[8])]),
            sample(
                of(4, 48, 3),
                vec![
                    floats(&[2, 48]),
                    codes(&[3, 3, 8]),
                    scales(9),
                    codes(&[6]),
                    SampleOperand::Missing,
                    fixed(&[3], &[0.5, -1.0, 2.0]),
                ],
            ),
        ]
    },
    ..ROW
};

/// W as floats, made after `ct` is known. `None`: its codes lie otherwise.
fn weight(b: &mut Builder, node: NodeId, ct: ValueId) -> Result<Option<ValueId>, build::BuildError> {
    let operand = |i: usize| b.graph.operand(node, i);
    let (Some(codes), Some(scales), zeros, order) = (operand(1), operand(2), operand(3), operand(4)) else {
        return Ok(None);
    };
    let Some(op) = b.graph.op(node).cloned() else { return Ok(None) };
    let (bits, k, n, block) = (op.int("bits"), op.int("K"), op.int("N"), op.int("block_size"));
    if !matches!(bits, 2 | 4 | 8) || order.is_some() || op.int("weight_prepacked") != 0 || block <= 0 {
        return Ok(None);
    }
    let blocks = (k + block - 1) / block;
    let dtype = b.ty(ct)?.dtype;
    let codes = b.late(codes, ct)?;
    let mut w = digits(b, codes, dtype, bits)?;
    w = b.reshape_to(w, &[n, blocks, block])?;
    w = match zeros {
        None => b.shift(w, -f64::from(1 << (bits - 1)))?,
        Some(z) => {
            let packed = b.ty(z)?.dtype == DType::U8;
            let mut z = if packed { digits(b, z, dtype, bits)? } else { z };
            if packed {
                let per_byte = 8 / bits;
                let padded = (blocks + per_byte - 1) / per_byte * per_byte;
                z = b.reshape_to(z, &[n, padded])?;
                z = b.slice(z, 1, 0, blocks)?;
            }
            let z = b.reshape_to(z, &[n, blocks, 1])?;
            b.sub(w, z)?
        }
    };
    let scales = b.reshape_to(scales, &[n, blocks, 1])?;
    w = b.mul(w, scales)?;
    w = b.reshape_to(w, &[n, blocks * block])?;
    if blocks * block > k { b.slice(w, 1, 0, k).map(Some) } else { Ok(Some(w)) }
}

/// Bytes as their digits of so many bits, the lowest first, along a new last axis; as floats, which every provider computes with.
fn digits(b: &mut Builder, bytes: ValueId, dtype: DType, bits: i64) -> Built {
    let mut rest = b.cast(bytes, dtype)?;
    let base = f64::from(1 << bits);
    let mut parts = Vec::new();
    for _ in 1..8 / bits {
        let scaled = b.scale(rest, 1.0 / base)?;
        let higher = b.op("Floor", &[scaled])?;
        let above = b.scale(higher, base)?;
        parts.push(b.sub(rest, above)?);
        rest = higher;
    }
    parts.push(rest);
    let parts: Vec<ValueId> = parts.into_iter().map(|v| b.unsqueeze(v, &[-1])).collect::<Result<_, _>>()?;
    b.concat(&parts, -1)
}
