//! `MatMul`: z = x · y over the last two axes with numpy's batching; a vector operand is a row (left) or a column (right).

use super::broadcast::sum_batch;
use super::*;

pub(super) const MATMUL: Row = Row {
    name: "MatMul",
    infer: |cx| Ok(vec![product_type(cx.ty(0)?, cx.ty(1)?)?]),
    // X̄ = Z̄ Yᵀ, Ȳ = Xᵀ Z̄, summed over broadcast batch axes. With a matrix on the right (a linear layer) the leading axes
    // are flattened, so that the weight's cotangent is one product and not the sum of a batch of products.
    pullback: |p| {
        let ct = p.ct(0)?;
        let (x, y) = (p.operand(0)?, p.operand(1)?);
        let (x_rank, y_rank) = (p.ty(0)?.rank(), p.ty(1)?.rank());
        if x_rank == 1 && y_rank == 1 {
            p.give(0, |b| b.mul(ct, y))?;
            return p.give(1, |b| b.mul(ct, x));
        }
        // Vectors become matrices; then all three have two axes or more.
        let lhs = if x_rank == 1 { p.b.unsqueeze(x, &[0])? } else { x };
        let rhs = if y_rank == 1 { p.b.unsqueeze(y, &[1])? } else { y };
        let mut out = ct;
        if x_rank == 1 {
            out = p.b.unsqueeze(out, &[-2])?;
        }
        if y_rank == 1 {
            out = p.b.unsqueeze(out, &[-1])?;
        }
        if p.b.ty(rhs)?.rank() == 2 {
            return linear(p, [x, y], lhs, rhs, out);
        }
        p.give(0, |b| {
            let term = if b.ty(lhs)?.rank() == 2 && b.ty(out)?.rank() == 3 {
                contract_batch(b, out, rhs)?
            } else {
                let transposed = b.transpose_last(rhs)?;
                formula(b, [out, transposed, lhs], |[out, rhs, lhs]| out.dot(rhs).sum_to(lhs))?
            };
            b.reshape_like(term, x)
        })?;
        p.give(1, |b| {
            let transposed = b.transpose_last(lhs)?;
            formula(b, [transposed, out, rhs, y], |[lhs, out, rhs, y]| lhs.dot(out).sum_to(rhs).reshape_like(y))
        })
    },
    samples: || {
        let of = |x: &[i64], y: &[i64]| plain(vec![floats(x), floats(y)]);
        vec![
            of(&[2, 3], &[3, 4]),
            of(&[2, 5, 3], &[3, 4]),
            of(&[2, 2, 5, 3], &[3, 4]),
            of(&[2, 5, 3], &[2, 3, 4]),
            of(&[2, 1, 5, 3], &[4, 3, 2]),
            of(&[5, 3], &[2, 3, 4]),
            of(&[40, 3], &[2, 3, 2]),
            of(&[5, 3], &[2, 2, 3, 4]),
            of(&[3], &[3]),
            of(&[3], &[3, 4]),
            of(&[3], &[2, 3, 4]),
            of(&[2, 3], &[3]),
            of(&[2, 5, 3], &[3]),
            of(&[1, 3], &[2, 3, 1]),
        ]
    },
    ..ROW
};

/// The pullback of x [.., M, K] · y [K, N].
fn linear(p: &mut Pullback, [x, y]: [ValueId; 2], lhs: ValueId, rhs: ValueId, out: ValueId) -> Result<(), GradError> {
    let ct = p.ct(0)?;
    let rows_ct = rows(p.b, out)?;
    p.give(0, |b| {
        let weight = b.weight_again(rhs, ct)?;
        let term = gemm(b, rows_ct, weight, false, true, 1.0)?;
        b.reshape_like(term, x)
    })?;
    p.give(1, |b| {
        let rows_x = rows(b, lhs)?;
        let term = if b.matrix_behind(rhs).is_some() {
            // The `Transpose` behind y undoes this one, so nothing is moved.
            let term = gemm(b, rows_ct, rows_x, true, false, 1.0)?;
            b.transpose(term, &[1, 0])?
        } else {
            gemm(b, rows_x, rows_ct, true, false, 1.0)?
        };
        b.reshape_like(term, y)
    })
}

/// The type of a product.
pub(super) fn product_type(x: &TensorType, y: &TensorType) -> Result<TensorType, TypeError> {
    let fail = |what: &str| TypeError(format!("{x} and {y} {what}"));
    if x.dtype != y.dtype {
        return Err(fail("differ in element type"));
    }
    let (Some(k), Some(l)) = (x.shape.last(), y.shape.get(y.rank().saturating_sub(2))) else {
        return Err(fail("cannot be multiplied: a scalar is no matrix"));
    };
    if let (Some(a), Some(b)) = (k.known(), l.known())
        && a != b
    {
        return Err(fail("disagree in the contracted extent"));
    }
    let batch = |t: &TensorType| t.shape[..t.rank().saturating_sub(2)].to_vec();
    let mut shape = broadcast(&batch(x), &batch(y))?;
    if x.rank() > 1 {
        shape.push(x.shape[x.rank() - 2].clone());
    }
    if y.rank() > 1 {
        shape.push(y.shape[y.rank() - 1].clone());
    }
    Ok(TensorType::new(x.dtype, shape))
}

/// [.., K] as [rows, K].
pub(super) fn rows(b: &mut Builder, v: ValueId) -> Built {
    let ty = b.ty(v)?;
    let rank = ty.rank();
    if rank == 2 {
        return Ok(v);
    }
    match ty.shape.last().and_then(Dim::known) {
        Some(last) if last > 0 => {
            let lead = product(&ty.shape[..rank - 1]);
            b.reshape(v, &[-1, last], &[lead, Dim::from(last)])
        }
        _ => b.op_with("Flatten", Attrs::new().with("axis", rank as i64 - 1), &[v]),
    }
}

/// α · X′ Y′ of two matrices. A `Transpose` behind an operand becomes part of the `Gemm`.
pub(super) fn gemm(b: &mut Builder, x: ValueId, y: ValueId, trans_x: bool, trans_y: bool, alpha: f32) -> Built {
    let before = |v: ValueId, transposed: bool| b.matrix_behind(v).map_or((v, transposed), |from| (from, !transposed));
    let ((x, trans_x), (y, trans_y)) = (before(x, trans_x), before(y, trans_y));
    let mut attrs = Attrs::new();
    if alpha != 1.0 {
        attrs = attrs.with("alpha", alpha);
    }
    if trans_x {
        attrs = attrs.with("transA", 1);
    }
    if trans_y {
        attrs = attrs.with("transB", 1);
    }
    b.op_with("Gemm", attrs, &[x, y])
}

/// Is one long product cheaper than the sum of a batch of products [M, P] · [P, K]?
pub(super) fn is_long(b: &Builder, m: &Dim, k: &Dim, inner: &Dim) -> bool {
    match (m.known(), k.known(), inner.known()) {
        (Some(m), Some(k), Some(p)) => b.target.long_product * m * k > p * (m + k),
        _ => false,
    }
}

/// Σ_batch A Bᵀ for A [batch, .., M, P] and B [batch, .., K, P], to [.., M, K].
///
/// It is the sum of a batch of products, which writes batch · M · K numbers, or one long product of both operands transposed, which
/// moves batch · P · (M + K) numbers. The target says how much dearer a moved number is.
pub(super) fn contract_batch(b: &mut Builder, lhs: ValueId, rhs: ValueId) -> Built {
    Ok(contract_batches(b, lhs, &[rhs])?[0])
}

/// [`contract_batch`] of one A with several B of the same type.
pub(super) fn contract_batches(b: &mut Builder, lhs: ValueId, all: &[ValueId]) -> Result<Vec<ValueId>, BuildError> {
    let Some(first) = all.first() else { return Ok(Vec::new()) };
    let (l, r) = (b.ty(lhs)?, b.ty(*first)?);
    let rank = l.rank() as i64;
    let inner: Dim = l.shape[l.rank() - 1].clone();
    let (m, k) = (l.shape[l.rank() - 2].clone(), r.shape[r.rank() - 2].clone());
    let single = l.shape[0].is_one();
    if single || !is_long(b, &m, &k, &inner) {
        let sum = |rhs: &ValueId| {
            let transposed = b.transpose_last(*rhs)?;
            let product = b.matmul(lhs, transposed)?;
            if single { b.squeeze(product, &[0]) } else { sum_batch(b, product) }
        };
        return all.iter().map(sum).collect();
    }
    // [batch, .., M, P] -> [.., M, batch, P] -> [.., M, batch · P].
    let mut perm: Vec<i64> = (1..rank - 1).collect();
    perm.extend([0, rank - 1]);
    let gather = |b: &mut Builder, v: ValueId, ty: &TensorType| -> Built {
        let moved = b.transpose(v, &perm)?;
        let mut shape: Vec<Dim> = ty.shape[1..ty.rank() - 1].to_vec();
        // In a `Reshape`, 0 copies an extent.
        let mut target = vec![0; shape.len()];
        target.push(-1);
        shape.push(&ty.shape[0] * &inner);
        b.reshape(moved, &target, &shape)
    };
    let lhs = gather(b, lhs, &l)?;
    let product = |rhs: &ValueId| {
        let rhs = gather(b, *rhs, &r)?;
        if rank == 3 {
            return gemm(b, lhs, rhs, false, true, 1.0);
        }
        let transposed = b.transpose_last(rhs)?;
        b.matmul(lhs, transposed)
    };
    all.iter().map(product).collect()
}
