//! `Gemm`: y = α A′ B′ + β C, where ′ transposes where `transA` or `transB` is set, and C broadcasts.

use super::matmul::gemm;
use super::*;

pub(super) const GEMM: Row = Row {
    name: "Gemm",
    infer: |cx| {
        let (a, b) = (cx.ty(0)?, cx.ty(1)?);
        cx.require(a.rank() == 2 && b.rank() == 2, || format!("{a} and {b} are not two matrices"))?;
        cx.require(a.dtype == b.dtype, || format!("element types {} and {} differ", a.dtype, b.dtype))?;
        let (ta, tb) = ((cx.op.int("transA") != 0) as usize, (cx.op.int("transB") != 0) as usize);
        let (k, l) = (&a.shape[1 - ta], &b.shape[tb]);
        let agree = k.known().is_none() || l.known().is_none() || k == l;
        cx.require(agree, || format!("{a} and {b} disagree in the contracted extent"))?;
        let shape = vec![a.shape[ta].clone(), b.shape[1 - tb].clone()];
        if (cx.present)(2) {
            broadcast(&shape, &cx.ty(2)?.shape)?;
        }
        Ok(vec![TensorType::new(a.dtype, shape)])
    },
    // With Y = α A′ B′ + β C: Ā′ = α Ȳ B′ᵀ, B̄′ = α A′ᵀ Ȳ (each transposed where its operand was), C̄ = β unbroadcast(Ȳ).
    pullback: |p| {
        let ct = p.ct(0)?;
        let op = p.op();
        let alpha = op.float("alpha");
        let (ta, tb) = (op.int("transA") != 0, op.int("transB") != 0);
        let (lhs, rhs) = (p.operand(0)?, p.operand(1)?);
        p.give(0, |b| {
            let rhs = b.weight_again(rhs, ct)?;
            if ta { gemm(b, rhs, ct, tb, true, alpha) } else { gemm(b, ct, rhs, false, !tb, alpha) }
        })?;
        p.give(1, |b| if tb { gemm(b, ct, lhs, true, ta, alpha) } else { gemm(b, lhs, ct, !ta, false, alpha) })?;
        let Some(c) = p.try_operand(2) else { return Ok(()) };
        p.give(2, |b| formula(b, [ct, c], |[ct, c]| ct.sum_to(c) * op.float("beta") as f64))
    },
    samples: || {
        let t = |a: i64, b: i64| Attrs::new().with("transA", a).with("transB", b);
        vec![
            plain(vec![floats(&[2, 3]), floats(&[3, 4])]),
            sample(t(0, 1), vec![floats(&[2, 3]), floats(&[4, 3]), floats(&[4])]),
            sample(t(1, 0), vec![floats(&[3, 2]), floats(&[3, 4]), floats(&[2, 1])]),
            sample(
                t(1, 1).with("alpha", 0.5_f32).with("beta", 2.0_f32),
                vec![floats(&[3, 2]), floats(&[4, 3]), floats(&[])],
            ),
            sample(
                t(0, 0).with("alpha", -1.5_f32).with("beta", 0.25_f32),
                vec![floats(&[2, 3]), floats(&[3, 4]), floats(&[2, 4])],
            ),
        ]
    },
    ..ROW
};
