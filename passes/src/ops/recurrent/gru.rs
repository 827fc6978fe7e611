//! GRU, with [ONNX's](https://onnx.ai/onnx/operators/onnx__GRU.html) names, ⊙ between values of one step:
//!
//! ```text
//! z, r = φ(x Wᵀ + h₋ Rᵀ + b)     n = γ(x Wᵀ + u + b)     h = (1 − z) ⊙ n + z ⊙ h₋
//! u = (r ⊙ h₋) Rᵀ + b            or, linear before reset, u = r ⊙ (h₋ Rᵀ + b)
//! ```
//!
//! From h of all steps the gates are had at once. With ẑ, r̂, n̂ the cotangents of the sums that the activations are of, and h̄ what
//! later steps and the step's own result give:
//!
//! ```text
//! n̂ = h̄ ⊙ (1 − z) γ'      ẑ = h̄ ⊙ (h₋ − n) φ'
//! m = n̂ R                 r̂ = m ⊙ h₋ φ'          h̄₋ = h̄ ⊙ z + m ⊙ r + (ẑ, r̂) R
//! or                      r̂ = n̂ ⊙ (h₋ Rᵀ + b) φ'   h̄₋ = h̄ ⊙ z + (ẑ, r̂, n̂ ⊙ r) R
//! ```

use super::super::*;
use super::Back;
use super::direction::{Direction, blocks};
use build::BuildError;

pub(super) fn pullback(b: &mut Builder, s: &Direction) -> Result<Back, BuildError> {
    let [gate, squash] = &s.activations[..] else {
        return Err(b.error("GRU", TypeError("it has two activations a direction".into())));
    };
    let of_x = blocks(b, s.projected, 2, 3)?;
    let linear = s.linear_before_reset;
    let product = s.product(b, s.before, 0, if linear { 3 } else { 2 })?;
    let of_h = blocks(b, product, 2, if linear { 3 } else { 2 })?;
    let (z_sum, r_sum) = (b.add(of_x[0], of_h[0])?, b.add(of_x[1], of_h[1])?);
    let (z, r) = (gate.apply(b, z_sum)?, gate.apply(b, r_sum)?);
    let kept = b.mul(r, if linear { of_h[2] } else { s.before })?;
    let u = if linear { kept } else { s.product(b, kept, 2, 3)? };
    let n_sum = b.add(of_x[2], u)?;
    let n = squash.apply(b, n_sum)?;
    let (open, moved) = (b.from_number_sub(1.0, z)?, b.sub(s.before, n)?);
    let of_n = squash.operand_ct(b, [n_sum, n, open])?;
    let of_z = gate.operand_ct(b, [z_sum, z, moved])?;
    if linear {
        let of_u = b.mul(of_n, r)?;
        let slope = b.mul(of_n, of_h[2])?;
        let of_r = gate.operand_ct(b, [r_sum, r, slope])?;
        let results = s.sweep(b, &[of_z, of_r, of_u, z], &[s.recurrent], |b, carried, factors, whole| {
            let h = carried[0];
            let all = [b.mul(h, factors[0])?, b.mul(h, factors[1])?, b.mul(h, factors[2])?];
            let all = b.concat(&all, 1)?;
            let (passed, back) = (b.mul(h, factors[3])?, b.matmul(all, whole[0])?);
            Ok((vec![b.add(passed, back)?], vec![all, h]))
        })?;
        let n_ct = b.mul(results[2], of_n)?;
        let gates_ct = b.slice(results[1], 2, 0, 2 * s.hidden)?;
        let projected = b.concat(&[gates_ct, n_ct], 2)?;
        return Ok(Back { projected, products: vec![(results[1], s.before)], first: vec![results[0]], peepholes: None });
    }
    let of_r = gate.operand_ct(b, [r_sum, r, s.before])?;
    let rows = [s.rows(b, 0, 2)?, s.rows(b, 2, 3)?];
    let results = s.sweep(b, &[of_z, of_r, of_n, z, r], &rows, |b, carried, factors, whole| {
        let h = carried[0];
        let n = b.mul(h, factors[2])?;
        let m = b.matmul(n, whole[1])?;
        let gates = [b.mul(h, factors[0])?, b.mul(m, factors[1])?];
        let gates = b.concat(&gates, 1)?;
        let terms = [b.mul(h, factors[3])?, b.mul(m, factors[4])?, b.matmul(gates, whole[0])?];
        Ok((vec![b.sum(&terms)?], vec![gates, n]))
    })?;
    let projected = b.concat(&results[1..3], 2)?;
    let products = vec![(results[1], s.before), (results[2], kept)];
    Ok(Back { projected, products, first: vec![results[0]], peepholes: None })
}
