//! Smooth gates: x times something between 0 and 1 that grows with x.

use super::*;
use std::f64::consts::{FRAC_2_PI, SQRT_2};

pub(super) const GELU: Row = Row {
    name: "Gelu",
    infer: like_first,
    derivative: Derivative::Decompose("Erf or Tanh, Mul"),
    decompose: |b, s| {
        let by_tanh = s.op.str("approximate") == "tanh";
        let form = if by_tanh { gelu_tanh } else { gelu_exact };
        one(form(b, s.need(0)?))
    },
    samples: || vec![of(Attrs::new()).at(20), of(Attrs::new().with("approximate", "tanh")).at(20)],
    ..ROW
};

pub(super) const SWISH: Row = Row {
    name: "Swish",
    infer: like_first,
    derivative: Derivative::Decompose("Sigmoid, Mul"),
    decompose: |b, s| one(gated(b, s.need(0)?, s.op.float("alpha") as f64)),
    samples: || vec![of(Attrs::new()).at(24), of(Attrs::new().with("alpha", 1.5_f32)).at(24)],
    ..ROW
};

/// `Gelu` of ONNX Runtime, exact.
pub(super) const FUSED: Row = Row {
    domain: MICROSOFT,
    derivative: Derivative::Decompose("Erf, Mul"),
    decompose: |b, s| one(gelu_exact(b, s.need(0)?)),
    samples: || vec![of(Attrs::new())],
    ..GELU
};

pub(super) const BIAS_GELU: Row = Row {
    name: "BiasGelu",
    derivative: Derivative::Decompose("Add, Gelu"),
    decompose: |b, s| {
        let x = b.add(s.need(0)?, s.need(1)?)?;
        one(gelu_exact(b, x))
    },
    samples: || vec![with_bias(true)],
    ..FUSED
};

/// The approximation by tanh, with or without a bias.
pub(super) const FAST_GELU: Row = Row {
    name: "FastGelu",
    derivative: Derivative::Decompose("Mul, Tanh"),
    decompose: |b, s| {
        let x = s.need(0)?;
        let x = s.get(1).map_or(Ok(x), |bias| b.add(x, bias))?;
        one(gelu_tanh(b, x))
    },
    samples: || vec![with_bias(true), with_bias(false)],
    ..FUSED
};

pub(super) const QUICK_GELU: Row = Row {
    name: "QuickGelu",
    derivative: Derivative::Decompose("Sigmoid, Mul"),
    decompose: |b, s| one(gated(b, s.need(0)?, s.op.float("alpha") as f64)),
    samples: || vec![of(Attrs::new())],
    ..FUSED
};

/// y = a σ(α a) ⊙ b.
pub(super) const SWIGLU: Row = Row {
    name: "SwiGLU",
    infer: |cx| {
        let (a, b) = (cx.ty(0)?, cx.ty(1)?);
        cx.require(a.rank() == b.rank() && a.dtype == b.dtype, || format!("gate {a} and value {b} differ in rank or type"))?;
        like_first(cx)
    },
    derivative: Derivative::Decompose("Sigmoid, Mul"),
    decompose: |b, s| {
        let (gate, value, alpha) = (s.need(0)?, s.need(1)?, s.op.float("alpha") as f64);
        one(formula(b, [gate, value], |[a, value]| a * (a * alpha).op("Sigmoid") * value))
    },
    samples: || {
        let of = |attrs| sample(attrs, vec![floats(&[2, 3]), floats(&[2, 3])]).at(28);
        vec![of(Attrs::new()), of(Attrs::new().with("alpha", 0.5_f32))]
    },
    ..ROW
};

fn of(attrs: Attrs) -> Sample {
    sample(attrs, vec![floats(&[2, 3, 4])])
}

fn with_bias(given: bool) -> Sample {
    let bias = given.then(|| floats(&[4]));
    sample(Attrs::new(), [floats(&[2, 3, 4])].into_iter().chain(bias).collect())
}

/// x/2 · (1 + erf(x/√2)), spelled as engines recognise it.
fn gelu_exact(b: &mut Builder, x: ValueId) -> Built {
    formula(b, [x], |[x]| x * ((x / SQRT_2).op("Erf") + 1.0) * 0.5)
}

/// x/2 · (1 + tanh(√(2/π) (x + 0.044715 x³))).
fn gelu_tanh(b: &mut Builder, x: ValueId) -> Built {
    let c = FRAC_2_PI.sqrt();
    formula(b, [x], |[x]| x * ((x * (x * x * (c * 0.044715) + c)).op("Tanh") + 1.0) * 0.5)
}

/// x · σ(α x).
fn gated(b: &mut Builder, x: ValueId, alpha: f64) -> Built {
    formula(b, [x], |[x]| x * (x * alpha).op("Sigmoid"))
}
