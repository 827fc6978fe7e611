//! `Pow`: z = x^y with broadcasting; the exponent may have another element type.

use super::sample::{floats, floats_in};
use super::*;
use crate::ops::build::Built;

pub(super) struct Pow;

impl OpRule for Pow {
    fn name(&self) -> &'static str {
        "Pow"
    }
    fn infer(&self, cx: &Infer) -> Types {
        let base = cx.ty(0)?;
        Ok(vec![TensorType::new(base.dtype, broadcast::broadcast(&base.shape, &cx.ty(1)?.shape)?)])
    }
    /// x̄ = unbroadcast(z̄ ⊙ y ⊙ x^(y − 1)), ȳ = unbroadcast(z̄ ⊙ z ⊙ ln x), the latter 0 at x = 0.
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let (x, y, ct) = (p.operand(0)?, p.operand(1)?, p.ct(0)?);
        let dtype = p.ty(0)?.dtype;
        if p.wants(0) {
            let exponent = p.b.graph.constant(y).and_then(|t| match t.to_i64().ok().as_deref() {
                Some([n]) => Some(*n as f64),
                _ => t.scalar(),
            });
            let x_ct = match exponent {
                Some(0.0) => None,
                Some(c) => Some(constant_exponent(p, x, ct, c)?),
                None => {
                    let y = p.b.cast(y, dtype)?;
                    let lower = p.b.shift(y, -1.0)?;
                    let power = p.b.op("Pow", &[x, lower])?;
                    let slope = p.b.mul(y, power)?;
                    // 0 · x^(−1) is not a number at x = 0, where x⁰ has the slope 0.
                    let zero = p.b.scalar(dtype, 0.0);
                    let flat = p.b.op("Equal", &[y, zero])?;
                    let slope = p.b.select(flat, zero, slope)?;
                    Some(p.b.mul(ct, slope)?)
                }
            };
            if let Some(x_ct) = x_ct {
                p.accumulate_broadcast(0, x_ct)?;
            }
        }
        if p.wants(1) {
            let z = p.result(0);
            // ln 1 = 0 stands in at x = 0.
            let is_zero = p.b.compare("Equal", x, 0.0)?;
            let safe = p.b.add(x, is_zero)?;
            let log = p.b.op("Log", &[safe])?;
            let slope = p.b.mul(z, log)?;
            let y_ct = p.b.mul(ct, slope)?;
            let own = p.ty(1)?.dtype;
            let y_ct = p.b.cast(y_ct, own)?;
            p.accumulate_broadcast(1, y_ct)?;
        }
        Ok(())
    }
    /// A constant exponent of 1 or more has none.
    fn has_pole(&self, g: &Graph, node: NodeId, operand: usize) -> bool {
        let exponent = g.operand(node, 1).and_then(|y| g.constant(y)).and_then(|t| t.to_f64().ok());
        operand == 0 && exponent.is_none_or(|all| all.iter().any(|c| *c < 1.0 && *c != 0.0))
    }
    fn samples(&self) -> Vec<Sample> {
        vec![
            power(2.0),
            power(0.5),
            power(3.0),
            power(-1.0),
            power(-0.5),
            power(1.7),
            power(1.0),
            Sample::of("Pow", Attrs::new(), vec![floats_in(&[2, 3], 0.5, 2.0), floats(&[2, 3])]),
            Sample::of("Pow", Attrs::new(), vec![floats_in(&[2, 1, 3], 0.5, 2.0), floats(&[4, 1])]),
        ]
    }
}

/// z̄ ⊙ c x^(c − 1), by products and the result where `Pow` itself can be avoided.
fn constant_exponent(p: &mut Pullback, x: ValueId, ct: ValueId, c: f64) -> Built {
    let z = p.result(0);
    let slope = if c == 1.0 {
        return Ok(ct);
    } else if c == 2.0 {
        x
    } else if c == 3.0 {
        p.b.mul(x, x)?
    } else if c == 4.0 {
        let square = p.b.mul(x, x)?;
        p.b.mul(square, x)?
    } else if c == 0.5 {
        let quotient = p.b.div(ct, z)?;
        return p.b.scale(quotient, 0.5);
    } else if c == -0.5 {
        let quotient = p.b.div(z, x)?;
        let product = p.b.mul(ct, quotient)?;
        return p.b.scale(product, -0.5);
    } else if c == -1.0 {
        p.b.mul(z, z)?
    } else {
        let dtype = p.b.ty(x)?.dtype;
        let lower = p.b.scalar(dtype, c - 1.0);
        p.b.op("Pow", &[x, lower])?
    };
    let product = p.b.mul(ct, slope)?;
    p.b.scale(product, c)
}

fn power(c: f32) -> Sample {
    let exponent = SampleOperand::FloatConstant { dims: vec![], values: vec![c] };
    Sample::of("Pow", Attrs::new(), vec![floats_in(&[2, 3], 0.5, 2.0), exponent])
}
