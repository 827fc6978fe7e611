//! `SwiGLU` (opset 28): y = a σ(α a) ⊙ b, a gated product.

use super::decompose::{Composite, one};
use super::sample::floats;
use super::*;

pub(super) const SWIGLU: Composite = Composite {
    domain: "",
    name: "SwiGLU",
    infer: |cx| {
        let (a, b) = (cx.ty(0)?, cx.ty(1)?);
        cx.require(a.rank() == b.rank() && a.dtype == b.dtype, || format!("{a} and {b} are no gate and value"))?;
        like_first(cx)
    },
    form: "Sigmoid, Mul",
    decompose: |b, s| {
        let (gate, value) = (s.need(0)?, s.need(1)?);
        let scaled = b.scale(gate, s.op.float("alpha").into())?;
        let open = b.op("Sigmoid", &[scaled])?;
        let gated = b.mul(gate, open)?;
        one(b.mul(gated, value))
    },
    samples: || {
        let of = |attrs| Sample::of("", attrs, vec![floats(&[2, 3]), floats(&[2, 3])]).at(28);
        vec![of(Attrs::new()), of(Attrs::new().with("alpha", 0.5_f32))]
    },
};
