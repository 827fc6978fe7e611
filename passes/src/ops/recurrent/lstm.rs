//! LSTM, with [ONNX's](https://onnx.ai/onnx/operators/onnx__LSTM.html) names, ⊙ between values of one step:
//!
//! ```text
//! i, f = φ(x Wᵀ + h₋ Rᵀ + P ⊙ c₋ + b)     g = γ(x Wᵀ + h₋ Rᵀ + b)     c = f ⊙ c₋ + i ⊙ g
//! o = φ(x Wᵀ + h₋ Rᵀ + P ⊙ c + b)         h = o ⊙ η(c)
//! ```
//!
//! Coupled gates have f = 1 − i. From h of all steps the gates are had at once, but for the cells, which a loop of two operators
//! makes. With ẑ the sums that the activations are of, and c̄, h̄ what later steps and the step's own result give:
//!
//! ```text
//! ô = h̄ ⊙ η(c) φ'      c̄ += h̄ ⊙ o η' + ô ⊙ Pₒ      î = c̄ ⊙ g φ'      f̂ = c̄ ⊙ c₋ φ'      ĝ = c̄ ⊙ i γ'
//! c̄₋ = c̄ ⊙ f + î ⊙ Pᵢ + f̂ ⊙ P_f                    h̄₋ = (î, ô, f̂, ĝ) R
//! ```

use super::super::broadcast::sum_leading;
use super::super::scan::{Loop, scan};
use super::super::*;
use super::Back;
use super::direction::{Direction, blocks};
use build::BuildError;

/// The input and the forget gate, each with what its activation is of.
struct Gates {
    sums: [ValueId; 2],
    input: ValueId,
    forget: ValueId,
}

pub(super) fn pullback(b: &mut Builder, s: &Direction) -> Result<Back, BuildError> {
    let [gate, squash, shape] = &s.activations[..] else {
        return Err(b.error("LSTM", TypeError("it has three activations a direction".into())));
    };
    // ONNX Runtime bounds what the gates are of, but not the cell.
    let shape = &shape.unbounded();
    let sums = s.sums(b, 4)?;
    let z = blocks(b, sums, 2, 4)?;
    let peepholes = s.peepholes.map(|p| blocks(b, p, 0, 3)).transpose()?;
    let candidate = squash.apply(b, z[3])?;
    let of_before = peepholes.as_ref().map(|p| [p[0], p[2]]);
    let before = cells(b, s, [z[0], z[2]], candidate, of_before)?;
    let gates = gates(b, s, [z[0], z[2]], before, of_before)?;
    let (kept, added) = (b.mul(gates.forget, before)?, b.mul(gates.input, candidate)?);
    let cell = b.add(kept, added)?;
    let output_sum = seen(b, z[1], cell, peepholes.as_ref().map(|p| p[1]))?;
    let (output, shaped) = (gate.apply(b, output_sum)?, shape.apply(b, cell)?);
    let of_input = if s.coupled { b.sub(candidate, before)? } else { candidate };
    let factors = [
        gate.operand_ct(b, [output_sum, output, shaped])?,
        shape.operand_ct(b, [cell, shaped, output])?,
        gate.operand_ct(b, [gates.sums[0], gates.input, of_input])?,
        if s.coupled { b.zeros_like(z[2])? } else { gate.operand_ct(b, [gates.sums[1], gates.forget, before])? },
        squash.operand_ct(b, [z[3], candidate, gates.input])?,
        gates.forget,
    ];
    let whole: Vec<ValueId> = [s.recurrent].into_iter().chain(peepholes.into_iter().flatten()).collect();
    let results = s.sweep(b, &factors, &whole, |b, carried, factors, whole| {
        let (h, recurrent) = (carried[0], whole[0]);
        let output = b.mul(h, factors[0])?;
        let through = b.mul(h, factors[1])?;
        let mut c = b.add(carried[1], through)?;
        c = seen(b, c, output, whole.get(2).copied())?;
        let [input, forget, candidate] = [b.mul(c, factors[2])?, b.mul(c, factors[3])?, b.mul(c, factors[4])?];
        let all = b.concat(&[input, output, forget, candidate], 1)?;
        let mut earlier = b.mul(c, factors[5])?;
        earlier = seen(b, earlier, input, whole.get(1).copied())?;
        earlier = seen(b, earlier, forget, whole.get(3).copied())?;
        Ok((vec![b.matmul(all, recurrent)?, earlier], vec![all]))
    })?;
    let [h_ct, c_ct, all] = results[..] else { return Err(b.error("LSTM", TypeError("its loop has three results".into()))) };
    let mut peepholes_ct = None;
    if s.peepholes.is_some() {
        let parts = blocks(b, all, 2, 4)?;
        let mut sums = Vec::new();
        for (part, cell) in [(parts[0], before), (parts[1], cell), (parts[2], before)] {
            let product = b.mul(part, cell)?;
            sums.push(sum_leading(b, product, 2, b.target.ones_columns)?);
        }
        peepholes_ct = Some(b.concat(&sums, 0)?);
    }
    Ok(Back { projected: all, products: vec![(all, s.before)], first: vec![h_ct, c_ct], peepholes: peepholes_ct })
}

/// sum + P ⊙ c, where there is a P.
fn seen(b: &mut Builder, sum: ValueId, c: ValueId, peephole: Option<ValueId>) -> Built {
    let Some(p) = peephole else { return Ok(sum) };
    let term = b.mul(c, p)?;
    b.add(sum, term)
}

fn gates(
    b: &mut Builder,
    s: &Direction,
    [input, forget]: [ValueId; 2],
    before: ValueId,
    peepholes: Option<[ValueId; 2]>,
) -> Result<Gates, BuildError> {
    let sums = [seen(b, input, before, peepholes.map(|p| p[0]))?, seen(b, forget, before, peepholes.map(|p| p[1]))?];
    let input = s.activations[0].apply(b, sums[0])?;
    let forget = if s.coupled { b.from_number_sub(1.0, input)? } else { s.activations[0].apply(b, sums[1])? };
    Ok(Gates { sums, input, forget })
}

/// The cell before each step, [T, B, H].
fn cells(
    b: &mut Builder,
    s: &Direction,
    sums: [ValueId; 2],
    candidate: ValueId,
    peepholes: Option<[ValueId; 2]>,
) -> Result<ValueId, BuildError> {
    let mut parts = sums.to_vec();
    parts.push(candidate);
    if peepholes.is_none() {
        // The gates do not look at the cell: no step has to compute them.
        let gates = gates(b, s, sums, candidate, None)?;
        parts = vec![gates.forget, b.mul(gates.input, candidate)?];
    }
    let count = parts.len();
    parts.extend(s.inside);
    let whole = peepholes.as_ref().map_or(&[][..], |p| p);
    let l = Loop { carried: &[s.first_cell], parts: &parts, whole, backward: s.backward };
    let results = scan(b, &l, |b, read| {
        let (c, parts, whole) = (read[0], &read[1..1 + count], &read[1 + l.parts.len()..]);
        let peepholes = <[ValueId; 2]>::try_from(whole).ok();
        let (forget, added) = match parts {
            [forget, added] => (*forget, *added),
            _ => {
                let gates = gates(b, s, [parts[0], parts[1]], c, peepholes)?;
                (gates.forget, b.mul(gates.input, parts[2])?)
            }
        };
        let kept = b.mul(forget, c)?;
        let mut next = b.add(kept, added)?;
        if s.inside.is_some() {
            let change = b.sub(next, c)?;
            let change = b.mul(change, read[1 + count])?;
            next = b.add(c, change)?;
        }
        Ok((vec![next], vec![c]))
    })?;
    Ok(results[1])
}
