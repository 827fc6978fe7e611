//! `Gemm`: y = α A′ B′ + β C, where ′ transposes if asked and C broadcasts.

use super::broadcast::{broadcast, unbroadcast};
use super::matmul::gemm;
use super::sample::floats;
use super::*;

pub(super) struct Gemm;

impl OpRule for Gemm {
    fn name(&self) -> &'static str {
        "Gemm"
    }
    fn infer(&self, cx: &Infer) -> Types {
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
    }
    /// With Y = α A′ B′ + β C: Ā′ = α Ȳ B′ᵀ, B̄′ = α A′ᵀ Ȳ (each transposed where its operand was), C̄ = β unbroadcast(Ȳ).
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let ct = p.ct(0)?;
        let op = p.op();
        let alpha = op.float("alpha");
        let (ta, tb) = (op.int("transA") != 0, op.int("transB") != 0);
        let (a, b) = (p.operand(0)?, p.operand(1)?);
        if p.wants(0) {
            let term = if ta { gemm(p.b, b, ct, tb, true, alpha)? } else { gemm(p.b, ct, b, false, !tb, alpha)? };
            p.accumulate(0, term)?;
        }
        if p.wants(1) {
            let term = if tb { gemm(p.b, ct, a, true, ta, alpha)? } else { gemm(p.b, a, ct, !ta, false, alpha)? };
            p.accumulate(1, term)?;
        }
        if p.wants(2) {
            let c = p.operand(2)?;
            let term = unbroadcast(p.b, ct, c)?;
            let term = p.b.scale(term, op.float("beta") as f64)?;
            p.accumulate(2, term)?;
        }
        Ok(())
    }
    fn samples(&self) -> Vec<Sample> {
        let t = |a: i64, b: i64| Attrs::new().with("transA", a).with("transB", b);
        vec![
            Sample::of("Gemm", Attrs::new(), vec![floats(&[2, 3]), floats(&[3, 4])]),
            Sample::of("Gemm", t(0, 1), vec![floats(&[2, 3]), floats(&[4, 3]), floats(&[4])]),
            Sample::of("Gemm", t(1, 0), vec![floats(&[3, 2]), floats(&[3, 4]), floats(&[2, 1])]),
            Sample::of(
                "Gemm",
                t(1, 1).with("alpha", 0.5_f32).with("beta", 2.0_f32),
                vec![floats(&[3, 2]), floats(&[4, 3]), floats(&[])],
            ),
            Sample::of(
                "Gemm",
                t(0, 0).with("alpha", -1.5_f32).with("beta", 0.25_f32),
                vec![floats(&[2, 3]), floats(&[3, 4]), floats(&[2, 4])],
            ),
        ]
    }
}
