//! `LSTM`, `GRU` and `RNN`, unrolled if the number of steps is known.
//!
//! ```text
//! LSTM  i, o, f, c̃ = x_t Wᵀ + h Rᵀ + b     c' = σ(f) c + σ(i) tanh(c̃)      h' = σ(o) tanh(c')
//! GRU   z, r = σ(x_t Wᵀ + h Rᵀ + b)        h̃ = tanh(x_t Wᵀ + (r h) Rᵀ + b)  h' = (1 − z) h̃ + z h
//! RNN   h' = tanh(x_t Wᵀ + h Rᵀ + b)
//! ```
//!
//! One product over all steps computes the products with x.

use super::*;
use crate::ir::Attr;

/// Most steps of a recurrence that is unrolled.
const LONGEST: i64 = 256;

/// A step from (product with x, h, c) to (h, c).
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

pub(super) const LSTM: Row = Row {
    name: "LSTM",
    infer: |cx| states(cx, 4),
    derivative: Derivative::Decompose("unrolled: MatMul, Sigmoid, Tanh; up to 256 steps, of known number"),
    decompose: |b, s| {
        refuse_if(s.get(7).is_some(), Why::Feature("peepholes"))?;
        refuse_if(s.op.int("input_forget") != 0, Why::Feature("coupled gates"))?;
        unroll(b, s, 4, &["Sigmoid", "Tanh", "Tanh"], lstm_step)
    },
    samples: || recurrences(4),
    ..ROW
};

pub(super) const GRU: Row = Row {
    name: "GRU",
    infer: |cx| states(cx, 3),
    decompose: |b, s| unroll(b, s, 3, &["Sigmoid", "Tanh"], gru_step),
    samples: || recurrences(3),
    ..LSTM
};

pub(super) const RNN: Row = Row {
    name: "RNN",
    infer: |cx| states(cx, 1),
    derivative: Derivative::Decompose("unrolled: MatMul, Tanh; up to 256 steps, of known number"),
    decompose: |b, s| {
        unroll(b, s, 1, &["Tanh"], |b, cell, x, h, _| {
            let (sum, _) = with_state(b, cell, x, h)?;
            Ok((b.op("Tanh", &[sum])?, None))
        })
    },
    samples: || recurrences(1),
    ..LSTM
};

/// All states [steps, directions, batch, H], the last state of each direction, and of an LSTM (four gates) the last cell.
fn states(cx: &Infer, gates: i64) -> Types {
    let (x, w) = (cx.ty(0)?, cx.ty(2)?);
    cx.require(x.rank() == 3 && w.rank() == 3, || format!("x is {x} and the recurrent weights are {w}; both need rank 3"))?;
    let (directions, hidden) = (w.shape[0].clone(), w.shape[2].clone());
    let (first, second) = (x.shape[0].clone(), x.shape[1].clone());
    // With layout 1 the batch comes first.
    let (all, last) = if cx.op.int("layout") == 0 {
        (vec![first, directions.clone(), second.clone(), hidden.clone()], vec![directions, second, hidden])
    } else {
        (vec![first.clone(), second, directions.clone(), hidden.clone()], vec![first, directions, hidden])
    };
    let last = TensorType::new(x.dtype, last);
    let mut types = vec![TensorType::new(x.dtype, all), last.clone()];
    types.extend((gates == 4).then_some(last));
    Ok(types)
}

fn recurrences(gates: i64) -> Vec<Sample> {
    let of = |direction: &str, directions: i64| {
        let (steps, batch, width, hidden) = (3, 2, 3, 4);
        let attrs = Attrs::new().with("direction", direction).with("hidden_size", hidden);
        let weights = [[directions, gates * hidden, width], [directions, gates * hidden, hidden]];
        let operands = vec![floats(&[steps, batch, width]), floats(&weights[0]), floats(&weights[1])];
        sample(attrs, [operands, vec![floats(&[directions, 2 * gates * hidden])]].concat()).results(2)
    };
    vec![of("forward", 1), of("bidirectional", 2)]
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

fn unroll(b: &mut Builder, s: &Source, gates: i64, activations: &[&str], step: Step) -> Decomposed {
    refuse_if(!usual(&s.op.attrs, activations), Why::Feature("other activations than the defaults"))?;
    refuse_if(s.get(4).is_some(), Why::Feature("`sequence_lens`"))?;
    refuse_if(s.op.attrs.get("clip").is_some(), Why::Feature("`clip`"))?;
    refuse_if(s.op.int("layout") != 0, Why::Feature("`layout` 1"))?;
    let (steps, hidden) = (extent(b, s.need(0)?, 0)?, extent(b, s.need(2)?, 2)?);
    let countable = (1..=LONGEST).contains(&steps);
    refuse_if(!countable, unfit(format!("has {steps} steps; up to {LONGEST} are written out")))?;
    let backwards: &[bool] = match s.op.str("direction") {
        "forward" => &[false],
        "reverse" => &[true],
        "bidirectional" => &[false, true],
        other => return Err(Why::Attribute { attribute: "direction", value: other.to_string() }),
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
    // The first result is built last: its node takes the recurrence's place.
    let mut results = vec![b.concat(&last_h, 0)?];
    if !last_c.is_empty() {
        results.push(b.concat(&last_c, 0)?);
    }
    results.insert(0, b.concat(&all, 1)?);
    Ok(results)
}

/// A direction's weights, and the products of all steps' x with the biases added: [T, B, gates · H].
fn cell(
    b: &mut Builder,
    s: &Source,
    gates: i64,
    hidden: i64,
    part: &dyn Fn(&mut Builder, ValueId) -> Built,
) -> Result<(Cell, ValueId), Why> {
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
    let linear_before_reset = s.op.int("linear_before_reset") != 0;
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
    let [new, output] = formulas(b, [parts[0], parts[1], parts[3]], |[input, output, candidate]| {
        let (input, output) = (input.op("Sigmoid"), output.op("Sigmoid"));
        [input * candidate.op("Tanh"), output]
    })?;
    let next = c.map_or(Ok(new), |c| formula(b, [new, parts[2], c], |[new, forget, c]| forget.op("Sigmoid") * c + new))?;
    let h = formula(b, [output, next], |[output, next]| output * next.op("Tanh"))?;
    Ok((h, Some(next)))
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
    let next = formula(b, [z, candidate], |[z, candidate]| (1.0 - z) * candidate)?;
    let next = h.map_or(Ok(next), |h| formula(b, [next, z, h], |[next, z, h]| next + z * h))?;
    Ok((next, None))
}
