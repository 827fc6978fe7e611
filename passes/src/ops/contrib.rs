//! Fused operators of ONNX Runtime's own domain, as its optimiser leaves them in saved models. They have shape rules only: a pass
//! writes them as standard operators before anything is differentiated.

use super::matmul::product_type;
use super::sample::floats;
use super::*;

const DOMAIN: &str = "com.microsoft";
const REASON: &str = "a contrib operator: decomposed first";

fn sample(name: &str, attrs: Attrs, operands: Vec<SampleOperand>) -> Sample {
    let mut s = Sample::of(name, attrs, operands).shape_only();
    s.op.domain = DOMAIN.to_string();
    s
}

pub(super) struct FusedMatMul;

impl OpRule for FusedMatMul {
    fn name(&self) -> &'static str {
        "FusedMatMul"
    }
    fn domain(&self) -> &'static str {
        DOMAIN
    }
    /// `transBatch…` moves the first axis to the second last place, then `trans…` swaps the last two.
    fn infer(&self, cx: &Infer) -> Types {
        let arranged = |i: usize, trans: &str, batch: &str| -> Result<TensorType, TypeError> {
            let mut ty = cx.ty(i)?.clone();
            let rank = ty.rank();
            if rank < 2 {
                return Ok(ty);
            }
            if cx.attrs().int(batch, 0) != 0 {
                ty.shape[..rank - 1].rotate_left(1);
            }
            if cx.attrs().int(trans, 0) != 0 {
                ty.shape.swap(rank - 1, rank - 2);
            }
            Ok(ty)
        };
        let (a, b) = (arranged(0, "transA", "transBatchA")?, arranged(1, "transB", "transBatchB")?);
        Ok(vec![product_type(&a, &b)?])
    }
    fn derivative(&self) -> Derivative {
        Derivative::None(REASON)
    }
    fn samples(&self) -> Vec<Sample> {
        let attrs = |a: i64, b: i64| Attrs::new().with("transA", a).with("transB", b).with("alpha", 0.5_f32);
        vec![
            sample("FusedMatMul", attrs(0, 1), vec![floats(&[2, 3, 4]), floats(&[2, 5, 4])]),
            sample("FusedMatMul", attrs(1, 0), vec![floats(&[2, 4, 3]), floats(&[4, 5])]),
        ]
    }
}

macro_rules! element_wise {
    ($($rule:ident $operands:expr;)*) => {$(
        pub(super) struct $rule;

        impl OpRule for $rule {
            fn name(&self) -> &'static str {
                stringify!($rule)
            }
            fn domain(&self) -> &'static str {
                DOMAIN
            }
            fn infer(&self, cx: &Infer) -> Types {
                like_first(cx)
            }
            fn derivative(&self) -> Derivative {
                Derivative::None(REASON)
            }
            fn samples(&self) -> Vec<Sample> {
                vec![sample(stringify!($rule), Attrs::new(), $operands)]
            }
        }
    )*};
}

element_wise! {
    FastGelu vec![floats(&[2, 3, 4]), floats(&[4])];
    QuickGelu vec![floats(&[2, 3, 4])];
    BiasGelu vec![floats(&[2, 3, 4]), floats(&[4])];
}

pub(super) struct SkipLayerNormalization;

impl OpRule for SkipLayerNormalization {
    fn name(&self) -> &'static str {
        "SkipLayerNormalization"
    }
    fn domain(&self) -> &'static str {
        DOMAIN
    }
    fn infer(&self, cx: &Infer) -> Types {
        super::fused::skipped(cx)
    }
    fn derivative(&self) -> Derivative {
        Derivative::None(REASON)
    }
    fn samples(&self) -> Vec<Sample> {
        let operands = vec![floats(&[2, 3, 4]), floats(&[2, 3, 4]), floats(&[4]), floats(&[4])];
        vec![sample("SkipLayerNormalization", Attrs::new(), operands)]
    }
}
