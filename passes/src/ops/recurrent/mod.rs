//! Recurrences: `LSTM`, `GRU` and `RNN`, h = φ(x Wᵀ + h₋ Rᵀ + b), of any length. The forward graph keeps them, as runtimes have
//! kernels for them.
//!
//! Of the forward pass the pullback reads the states h, the first result. The gates are computed from them again, those of all
//! steps in one product. The cotangents of the states alone need a loop, a `Scan` against the direction: a step multiplies them
//! with slopes that are computed before the loop for all steps, and with R once. The cotangents of x and of the weights are
//! single products after it.

mod activation;
mod direction;
mod gru;
mod lstm;

use super::broadcast::sum_leading;
use super::matmul::{gemm, rows};
use super::sample::{floats, sample};
use super::*;
use crate::ir::Attr;
use activation::activations;
use build::BuildError;
use direction::{Direction, Given, insides};

/// One of them.
pub(super) struct Recurrence {
    name: &'static str,
    /// Blocks of rows of its weights.
    gates: i64,
    /// A direction's activations where none are given.
    activations: &'static [&'static str],
    pullback: fn(&mut Builder, &Direction) -> Result<Back, BuildError>,
}

pub(super) const LSTM: Recurrence =
    Recurrence { name: "LSTM", gates: 4, activations: &["Sigmoid", "Tanh", "Tanh"], pullback: lstm::pullback };
pub(super) const GRU: Recurrence =
    Recurrence { name: "GRU", gates: 3, activations: &["Sigmoid", "Tanh"], pullback: gru::pullback };
pub(super) const RNN: Recurrence = Recurrence { name: "RNN", gates: 1, activations: &["Tanh"], pullback: plain };

/// The cotangents of what a direction reads.
struct Back {
    /// Of `projected`.
    projected: ValueId,
    /// Of the products with blocks of R's rows, [T, B, rows]; and what is multiplied there, [T, B, H].
    products: Vec<(ValueId, ValueId)>,
    /// Of the first state and cell, [B, H].
    first: Vec<ValueId>,
    /// Of P.
    peepholes: Option<ValueId>,
}

/// RNN: ẑ = h̄ ⊙ φ', h̄₋ = ẑ R.
fn plain(b: &mut Builder, s: &Direction) -> Result<Back, BuildError> {
    let sums = s.sums(b, 1)?;
    let dtype = b.ty(sums)?.dtype;
    let one = b.scalar(dtype, 1.0);
    let slope = s.activations[0].operand_ct(b, [sums, s.after, one])?;
    let results = s.sweep(b, &[slope], &[s.recurrent], |b, carried, factors, whole| {
        let z = b.mul(carried[0], factors[0])?;
        Ok((vec![b.matmul(z, whole[0])?], vec![z]))
    })?;
    Ok(Back { projected: results[1], products: vec![(results[1], s.before)], first: vec![results[0]], peepholes: None })
}

impl OpRule for Recurrence {
    fn name(&self) -> &'static str {
        self.name
    }
    /// All states [steps, directions, batch, H], the last of each direction, and of an LSTM the last cells.
    fn infer(&self, cx: &Infer) -> Types {
        let (x, w, r) = (cx.ty(0)?, cx.ty(1)?, cx.ty(2)?);
        cx.require(x.rank() == 3 && w.rank() == 3 && r.rank() == 3, || format!("{x} is no sequence of vectors"))?;
        let (directions, hidden) = (w.shape[0].clone(), r.shape[2].clone());
        let (first, second) = (x.shape[0].clone(), x.shape[1].clone());
        // By batch the direction comes after it.
        let (all, last) = if cx.op.int("layout") == 0 {
            (vec![first, directions.clone(), second.clone(), hidden.clone()], vec![directions, second, hidden])
        } else {
            (vec![first.clone(), second, directions.clone(), hidden.clone()], vec![first, directions, hidden])
        };
        let last = TensorType::new(x.dtype, last);
        let mut types = vec![TensorType::new(x.dtype, all), last.clone()];
        types.extend((self.gates == 4).then_some(last));
        Ok(types)
    }
    /// See [`lstm`], [`gru`] and [`plain`].
    fn pullback(&self, p: &mut Pullback) -> Result<(), GradError> {
        let op = p.op();
        if is_batch_first(&op) {
            return Err(p.unsupported("its first axis is the batch, and it could not be written with the steps first"));
        }
        let backwards: &[bool] = match op.str("direction") {
            "forward" => &[false],
            "reverse" => &[true],
            "bidirectional" => &[false, true],
            other => return Err(p.unsupported(&format!("its attribute `direction` is {other}"))),
        };
        let each = self.activations.len();
        let mut functions = activations(&op, self.activations, each * backwards.len()).map_err(|e| p.unsupported(&e))?;
        let types = result_types(&op, p.graph().operands(p.node()), p.graph());
        let all = types.and_then(Result::ok).ok_or_else(|| p.unsupported("its type is not known"))?.swap_remove(0);
        let states = p.extra_result(0, "states", all);
        let operands: Vec<_> = (0..8).map(|i| p.try_operand(i)).collect();
        let cts = (0..3).map(|i| p.try_ct(i)).collect();
        let inside = operands[4].map(|lengths| insides(p.b, states, lengths)).transpose()?;
        let given = Given { op: &op, gates: self.gates, operands, cts, states, inside, directions: backwards.len() };
        let mut parts: Vec<Vec<ValueId>> = vec![Vec::new(); 8];
        for (d, backward) in backwards.iter().enumerate() {
            let direction = given.direction(p.b, d as i64, *backward, functions.drain(..each).collect())?;
            let back = (self.pullback)(p.b, &direction)?;
            operand_cts(p, &direction, back, &mut parts)?;
        }
        for (i, parts) in parts.into_iter().enumerate().filter(|(_, parts)| !parts.is_empty()) {
            let parts = parts.iter().map(|v| p.b.unsqueeze(*v, &[0])).collect::<Result<Vec<_>, _>>()?;
            let joined = p.b.concat(&parts, 0)?;
            p.accumulate(i, joined)?;
        }
        Ok(())
    }
    /// With the steps first, between transpositions: for `layout = 1` runtimes have no kernel.
    fn decompose(&self, b: &mut Builder, s: &Source) -> Decomposed {
        let mut op = Op::new(self.name, s.op.attrs.clone());
        op.attrs.0.shift_remove("layout");
        let mut operands = s.operands.clone();
        for i in [0, 5, 6] {
            if let Some(v) = s.get(i) {
                operands[i] = Some(b.transpose(v, &[1, 0, 2])?);
            }
        }
        let results = b.node(op, &operands)?;
        let perm = |i: usize| if i == 0 { &[2, 0, 1, 3][..] } else { &[1, 0, 2] };
        results.iter().enumerate().map(|(i, v)| Ok(b.transpose(*v, perm(i))?)).collect()
    }
    fn samples(&self) -> Vec<Sample> {
        samples(self)
    }
}

/// Is a node a recurrence whose first axis is the batch?
pub(crate) fn is_batch_first(op: &Op) -> bool {
    op.domain.is_empty() && [&LSTM, &GRU, &RNN].iter().any(|r| r.name == op.name) && op.int("layout") != 0
}

/// Adds a direction's part to the cotangent of x, and to `parts` its parts of the other operands' cotangents.
fn operand_cts(p: &mut Pullback, s: &Direction, back: Back, parts: &mut [Vec<ValueId>]) -> Result<(), GradError> {
    if p.wants(0) {
        let x_ct = p.b.matmul(back.projected, s.weight)?;
        p.accumulate(0, x_ct)?;
    }
    if p.wants(1) {
        let (sums, x) = (rows(p.b, back.projected)?, p.operand(0)?);
        let x = rows(p.b, x)?;
        parts[1].push(gemm(p.b, sums, x, true, false, 1.0)?);
    }
    if p.wants(2) {
        let mut blocks = Vec::new();
        for (product, state) in &back.products {
            let (product, state) = (rows(p.b, *product)?, rows(p.b, *state)?);
            blocks.push(gemm(p.b, product, state, true, false, 1.0)?);
        }
        parts[2].push(p.b.concat(&blocks, 0)?);
    }
    if p.wants(3) {
        let mut sum = |v: ValueId| sum_leading(p.b, v, 2, p.b.target.ones_columns);
        let own = sum(back.projected)?;
        let same = back.products.len() == 1 && back.products[0].0 == back.projected;
        let others = if same { vec![own] } else { back.products.iter().map(|(v, _)| sum(*v)).collect::<Result<_, _>>()? };
        parts[3].push(p.b.concat(&[vec![own], others].concat(), 0)?);
    }
    let states = [(5, back.first.first()), (6, back.first.get(1)), (7, back.peepholes.as_ref())];
    for (i, ct) in states.into_iter().filter(|(i, _)| p.wants(*i)) {
        parts[i].extend(ct);
    }
    Ok(())
}

/// Forward; both ways from given states; backwards over sequences of several lengths; with other activations.
fn samples(of: &Recurrence) -> Vec<Sample> {
    let (steps, batch, width, hidden) = (3, 2, 3, 4);
    let one = |direction: &str, attrs: Attrs, lengths: bool, full: bool| {
        let d = if direction == "bidirectional" { 2 } else { 1 };
        let weights = [[d, of.gates * hidden, width], [d, of.gates * hidden, hidden]];
        let mut operands = vec![floats(&[steps, batch, width]), floats(&weights[0]), floats(&weights[1])];
        let values = vec![3, 2];
        operands.push(floats(&[d, 2 * of.gates * hidden]));
        operands.push(if lengths { SampleOperand::Ints32 { dims: vec![2], values } } else { SampleOperand::Missing });
        let states = if of.gates == 4 { 2 } else { 1 };
        operands.extend(vec![floats(&[d, batch, hidden]); if full { states } else { 0 }]);
        operands.extend((full && of.gates == 4).then(|| floats(&[d, 3 * hidden])));
        let attrs = attrs.with("direction", direction).with("hidden_size", hidden);
        sample(attrs, operands).of(of).results(if full { states + 1 } else { 2 })
    };
    let functions: Vec<&str> = ["Softsign", "Affine", "ScaledTanh"].into_iter().take(of.activations.len()).collect();
    let numbers = |n: f32| vec![n; functions.len() - 1];
    let other = Attrs::new()
        .with("activations", Attr::strings("activations", &functions))
        .with("activation_alpha", numbers(0.6))
        .with("activation_beta", numbers(0.4));
    let mut all = vec![
        one("forward", Attrs::new(), false, false),
        one("bidirectional", Attrs::new(), false, true),
        one("reverse", Attrs::new(), true, true),
        one("forward", Attrs::new(), true, true),
        one("forward", other, false, false),
        one("forward", Attrs::new().with("clip", 0.05f32), false, true),
    ];
    all.extend((of.gates == 4).then(|| one("forward", Attrs::new().with("input_forget", 1), false, true)));
    for full in [false, true].into_iter().filter(|_| of.gates == 3) {
        all.push(one("bidirectional", Attrs::new().with("linear_before_reset", 1), full, full));
    }
    all
}
