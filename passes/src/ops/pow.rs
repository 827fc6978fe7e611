//! `Pow`: z = x^y with broadcasting; the exponent may have another element type.

use super::*;

pub(super) const POW: Row = Row {
    name: "Pow",
    infer: |cx| {
        let base = cx.ty(0)?;
        Ok(vec![TensorType::new(base.dtype, broadcast(&base.shape, &cx.ty(1)?.shape)?)])
    },
    // x̄ = unbroadcast(z̄ ⊙ y ⊙ x^(y − 1)), ȳ = unbroadcast(z̄ ⊙ z ⊙ ln x), the latter 0 at x = 0.
    pullback: |p| {
        let (x, y, z, ct) = (p.operand(0)?, p.operand(1)?, p.result(0), p.ct(0)?);
        let (dtype, own) = (p.ty(0)?.dtype, p.ty(1)?.dtype);
        let exponent = p.b.graph.constant(y).and_then(|t| match t.to_i64().ok().as_deref() {
            Some([n]) => Some(*n as f64),
            _ => t.scalar(),
        });
        match exponent {
            Some(0.0) => {}
            Some(c) => p.give_broadcast(0, |b| constant_exponent(b, [x, z, ct], c))?,
            None => p.give_broadcast(0, |b| {
                let y = b.cast(y, dtype)?;
                let slope = formula(b, [x, y], |[x, y]| y * x.to(y - 1.0))?;
                // x⁰ has the slope 0, but at x = 0 the product 0 · x^(−1) is NaN.
                let zero = b.scalar(dtype, 0.0);
                let flat = b.op("Equal", &[y, zero])?;
                let slope = b.select(flat, zero, slope)?;
                b.mul(ct, slope)
            })?,
        }
        // At x = 0 the logarithm is taken of 1.
        let logarithm =
            |b: &mut Builder| formula(b, [x, z, ct], |[x, z, ct]| (ct * (z * (x + x.is("Equal", 0.0)).op("Log"))).cast(own));
        p.give_broadcast(1, logarithm)
    },
    // A constant exponent of 1 or more has none.
    has_pole: |g, node, operand| {
        let exponent = g.operand(node, 1).and_then(|y| g.constant(y)).and_then(|t| t.to_f64().ok());
        operand == 0 && exponent.is_none_or(|all| all.iter().any(|c| *c < 1.0 && *c != 0.0))
    },
    samples: || {
        vec![
            power(2.0),
            power(0.5),
            power(3.0),
            power(-1.0),
            power(-0.5),
            power(1.7),
            power(1.0),
            plain(vec![floats_in(&[2, 3], 0.5, 2.0), floats(&[2, 3])]),
            plain(vec![floats_in(&[2, 1, 3], 0.5, 2.0), floats(&[4, 1])]),
        ]
    },
    ..ROW
};

/// z̄ ⊙ c x^(c − 1), without `Pow` where products or the result z serve.
fn constant_exponent(b: &mut Builder, values: [ValueId; 3], c: f64) -> Built {
    formula(b, values, |[x, z, ct]| match c {
        1.0 => ct,
        2.0 => ct * x * c,
        3.0 => ct * (x * x) * c,
        4.0 => ct * (x * x * x) * c,
        0.5 => ct / z * c,
        -0.5 => ct * (z / x) * c,
        -1.0 => ct * (z * z) * c,
        _ => ct * x.power(c - 1.0) * c,
    })
}

fn power(c: f32) -> Sample {
    let exponent = fixed(&[], &[c]);
    plain(vec![floats_in(&[2, 3], 0.5, 2.0), exponent])
}
