//! Recurrences of a known number of steps, unrolled.
//!
//! ```text
//! LSTM  i, o, f, c̃ = x_t Wᵀ + h Rᵀ + b     c' = σ(f) c + σ(i) tanh(c̃)      h' = σ(o) tanh(c')
//! GRU   z, r = σ(x_t Wᵀ + h Rᵀ + b)        h̃ = tanh(x_t Wᵀ + (r h) Rᵀ + b)  h' = (1 − z) h̃ + z h
//! RNN   h' = tanh(x_t Wᵀ + h Rᵀ + b)
//! ```
//!
//! The products with x are one product over all steps.

use super::{Replaced, Source};
use crate::ir::{Attr, Attrs, Op, ValueId};
use crate::ops::build::{BuildError, Builder, Built};

/// Steps beyond which a recurrence stays as it is.
const LONGEST: i64 = 256;

/// One step from (products with x, h, c) to (h, c).
type Step =
    fn(&mut Builder, &Cell, ValueId, Option<ValueId>, Option<ValueId>) -> Result<(ValueId, Option<ValueId>), BuildError>;

/// One direction's weights.
struct Cell {
    hidden: i64,
    /// [H, gates · H].
    recurrent: ValueId,
    /// Bias of the products with h, [gates · H].
    recurrent_bias: Option<ValueId>,
    linear_before_reset: bool,
}

pub(super) fn lstm(b: &mut Builder, s: &Source) -> Replaced {
    if s.get(7).is_some() || s.attrs.int("input_forget", 0) != 0 {
        return Ok(None);
    }
    unroll(b, s, 4, &["Sigmoid", "Tanh", "Tanh"], lstm_step)
}

pub(super) fn gru(b: &mut Builder, s: &Source) -> Replaced {
    unroll(b, s, 3, &["Sigmoid", "Tanh"], gru_step)
}

pub(super) fn rnn(b: &mut Builder, s: &Source) -> Replaced {
    unroll(b, s, 1, &["Tanh"], |b, cell, x, h, _| {
        let (sum, _) = with_state(b, cell, x, h)?;
        Ok((b.op("Tanh", &[sum])?, None))
    })
}

/// Are the activations the operator's defaults?
fn usual(attrs: &Attrs, defaults: &[&str]) -> bool {
    let given: Vec<String> = match attrs.get("activations") {
        None => return true,
        Some(Attr::Opaque(a)) => a.strings.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect(),
        Some(_) => return false,
    };
    given.iter().zip(defaults.iter().cycle()).all(|(a, d)| a.eq_ignore_ascii_case(d))
}

fn unroll(b: &mut Builder, s: &Source, gates: i64, activations: &[&str], step: Step) -> Replaced {
    let plain =
        usual(&s.attrs, activations) && s.get(4).is_none() && s.attrs.get("clip").is_none() && s.attrs.int("layout", 0) == 0;
    let x = s.need(0)?;
    let ty = b.ty(x)?;
    let recurrent = b.ty(s.need(2)?)?;
    let steps = ty.shape.first().and_then(|d| d.known()).filter(|t| (1..=LONGEST).contains(t));
    let (Some(steps), Some(hidden), true) = (steps, recurrent.shape.get(2).and_then(|d| d.known()), plain) else {
        return Ok(None);
    };
    let backwards: &[bool] = match s.attrs.str("direction", "forward") {
        "forward" => &[false],
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        _ => return Ok(None),
    };
    let (mut all, mut last_h, mut last_c) = (Vec::new(), Vec::new(), Vec::new());
    for (d, backward) in backwards.iter().enumerate() {
        let part = |b: &mut Builder, v: ValueId| -> Built {
            let one = if backwards.len() == 1 { v } else { b.slice(v, 0, d as i64, d as i64 + 1)? };
            b.squeeze(one, &[0])
        };
        let (cell, projected) = cell(b, s, gates, hidden, &part)?;
        let places = b.ints(&vec![1; steps as usize]);
        let split = Op::new("Split", Attrs::new().with("axis", 0));
        let parts = if steps == 1 { vec![projected] } else { b.node(split, &[Some(projected), Some(places)])? };
        let mut h = s.get(5).map(|v| part(b, v)).transpose()?;
        let mut c = s.get(6).filter(|_| gates == 4).map(|v| part(b, v)).transpose()?;
        let mut states = vec![None; steps as usize];
        for k in 0..steps as usize {
            let t = if *backward { steps as usize - 1 - k } else { k };
            let x_t = b.squeeze(parts[t], &[0])?;
            let (next, cell_state) = step(b, &cell, x_t, h, c)?;
            (h, c) = (Some(next), cell_state);
            states[t] = h;
        }
        let states: Vec<ValueId> =
            states.into_iter().flatten().map(|v| b.unsqueeze(v, &[0, 1])).collect::<Result<_, _>>()?;
        all.push(b.concat(&states, 0)?);
        for (last, v) in [(&mut last_h, h), (&mut last_c, c)] {
            last.extend(v.map(|v| b.unsqueeze(v, &[0])).transpose()?);
        }
    }
    // Built last, as the node that takes the recurrence's place.
    let mut results = vec![b.concat(&last_h, 0)?];
    if !last_c.is_empty() {
        results.push(b.concat(&last_c, 0)?);
    }
    results.insert(0, b.concat(&all, 1)?);
    Ok(Some(results))
}

/// A direction's weights, and the products of all steps' x: [T, B, gates · H], biases added.
fn cell(
    b: &mut Builder,
    s: &Source,
    gates: i64,
    hidden: i64,
    part: &dyn Fn(&mut Builder, ValueId) -> Built,
) -> Result<(Cell, ValueId), BuildError> {
    let w = part(b, s.need(1)?)?;
    let w = b.transpose(w, &[1, 0])?;
    let r = part(b, s.need(2)?)?;
    let recurrent = b.transpose(r, &[1, 0])?;
    let mut projected = b.matmul(s.need(0)?, w)?;
    let mut recurrent_bias = None;
    if let Some(bias) = s.get(3) {
        let bias = part(b, bias)?;
        let own = b.slice(bias, 0, 0, gates * hidden)?;
        projected = b.add(projected, own)?;
        recurrent_bias = Some(b.slice(bias, 0, gates * hidden, 2 * gates * hidden)?);
    }
    let linear_before_reset = s.attrs.int("linear_before_reset", 0) != 0;
    Ok((Cell { hidden, recurrent, recurrent_bias, linear_before_reset }, projected))
}

/// x + (h Rᵀ + b), and the second term.
fn with_state(
    b: &mut Builder,
    cell: &Cell,
    x: ValueId,
    h: Option<ValueId>,
) -> Result<(ValueId, Option<ValueId>), BuildError> {
    let product = h.map(|h| b.matmul(h, cell.recurrent)).transpose()?;
    let term = match (product, cell.recurrent_bias) {
        (Some(p), Some(bias)) => Some(b.add(p, bias)?),
        (one, other) => one.or(other),
    };
    Ok((term.map_or(Ok(x), |t| b.add(x, t))?, term))
}

fn gate(b: &mut Builder, cell: &Cell, v: ValueId, i: i64) -> Built {
    let axis = b.ty(v)?.rank() as i64 - 1;
    b.slice(v, axis, i * cell.hidden, (i + 1) * cell.hidden)
}

fn lstm_step(
    b: &mut Builder,
    cell: &Cell,
    x: ValueId,
    h: Option<ValueId>,
    c: Option<ValueId>,
) -> Result<(ValueId, Option<ValueId>), BuildError> {
    let (sum, _) = with_state(b, cell, x, h)?;
    let sizes = b.ints(&[cell.hidden; 4]);
    let parts = b.node(Op::new("Split", Attrs::new().with("axis", 1)), &[Some(sum), Some(sizes)])?;
    let (input, output) = (b.op("Sigmoid", &[parts[0]])?, b.op("Sigmoid", &[parts[1]])?);
    let candidate = b.op("Tanh", &[parts[3]])?;
    let mut next = b.mul(input, candidate)?;
    if let Some(c) = c {
        let forget = b.op("Sigmoid", &[parts[2]])?;
        let kept = b.mul(forget, c)?;
        next = b.add(kept, next)?;
    }
    let squashed = b.op("Tanh", &[next])?;
    Ok((b.mul(output, squashed)?, Some(next)))
}

fn gru_step(
    b: &mut Builder,
    cell: &Cell,
    x: ValueId,
    h: Option<ValueId>,
    _: Option<ValueId>,
) -> Result<(ValueId, Option<ValueId>), BuildError> {
    let (sum, term) = with_state(b, cell, x, h)?;
    let (z, own) = (gate(b, cell, sum, 0)?, gate(b, cell, x, 2)?);
    let z = b.op("Sigmoid", &[z])?;
    let reset = |b: &mut Builder| -> Built {
        let r = gate(b, cell, sum, 1)?;
        b.op("Sigmoid", &[r])
    };
    let inner = match (h, term) {
        (_, Some(term)) if cell.linear_before_reset => {
            let (r, t) = (reset(b)?, gate(b, cell, term, 2)?);
            Some(b.mul(r, t)?)
        }
        (Some(h), _) => {
            let r = reset(b)?;
            let kept = b.mul(r, h)?;
            let weights = gate(b, cell, cell.recurrent, 2)?;
            let product = b.matmul(kept, weights)?;
            let bias = cell.recurrent_bias.map(|v| gate(b, cell, v, 2)).transpose()?;
            Some(bias.map_or(Ok(product), |bias| b.add(product, bias))?)
        }
        (None, Some(term)) => Some(gate(b, cell, term, 2)?),
        (None, None) => None,
    };
    let sum = inner.map_or(Ok(own), |inner| b.add(own, inner))?;
    let candidate = b.op("Tanh", &[sum])?;
    let open = b.from_number_sub(1.0, z)?;
    let mut next = b.mul(open, candidate)?;
    if let Some(h) = h {
        let kept = b.mul(z, h)?;
        next = b.add(next, kept)?;
    }
    Ok((next, None))
}
