//! What a recurrence reads, a direction at a time.

use super::super::scan::{Loop, Step, scan};
use super::super::split::split;
use super::super::*;
use super::activation::Activation;
use build::BuildError;

/// One direction. T steps, batch B, H units.
pub(super) struct Direction {
    pub(super) hidden: i64,
    /// Does it run from the last step to the first?
    pub(super) backward: bool,
    pub(super) activations: Vec<Activation>,
    /// W, [gates · H, I].
    pub(super) weight: ValueId,
    /// x Wᵀ + b, [T, B, gates · H].
    pub(super) projected: ValueId,
    /// R, [gates · H, H].
    pub(super) recurrent: ValueId,
    /// [gates · H].
    pub(super) recurrent_bias: Option<ValueId>,
    /// P, [3 · H].
    pub(super) peepholes: Option<ValueId>,
    /// The state before each step and after it, [T, B, H].
    pub(super) before: ValueId,
    pub(super) after: ValueId,
    /// [B, H].
    pub(super) first_cell: ValueId,
    /// Where sequences have lengths: 1 inside them, else 0, [T, B, 1].
    pub(super) inside: Option<ValueId>,
    /// Cotangent of `after`.
    pub(super) ct: Option<ValueId>,
    /// Cotangents of the last state and, of an LSTM, of the last cell, [B, H].
    pub(super) last: Vec<ValueId>,
    pub(super) linear_before_reset: bool,
    /// Is the forget gate one minus the input gate?
    pub(super) coupled: bool,
}

impl Direction {
    /// R's rows from gate `from` to gate `to`.
    pub(super) fn rows(&self, b: &mut Builder, from: i64, to: i64) -> Built {
        let h = self.hidden;
        if from == 0 && b.ty(self.recurrent)?.shape[0].known() == Some(to * h) {
            return Ok(self.recurrent);
        }
        b.slice(self.recurrent, 0, from * h, to * h)
    }

    /// v Rᵀ + b, with the rows of some gates.
    pub(super) fn product(&self, b: &mut Builder, v: ValueId, from: i64, to: i64) -> Built {
        let rows = self.rows(b, from, to)?;
        let columns = b.transpose(rows, &[1, 0])?;
        let product = b.matmul(v, columns)?;
        let Some(bias) = self.recurrent_bias else { return Ok(product) };
        let bias = b.slice(bias, 0, from * self.hidden, to * self.hidden)?;
        b.add(product, bias)
    }

    /// x Wᵀ + h₋ Rᵀ + b of all gates.
    pub(super) fn sums(&self, b: &mut Builder, gates: i64) -> Built {
        let product = self.product(b, self.before, 0, gates)?;
        b.add(self.projected, product)
    }

    /// Takes the cotangents of state and cell against the direction. A step is linear in them; it gets them, its part of each factor,
    /// and what it reads whole.
    pub(super) fn sweep(
        &self,
        b: &mut Builder,
        factors: &[ValueId],
        whole: &[ValueId],
        step: impl FnOnce(&mut Builder, &[ValueId], &[ValueId], &[ValueId]) -> Step,
    ) -> Result<Vec<ValueId>, BuildError> {
        let parts: Vec<ValueId> = factors.iter().copied().chain(self.ct).chain(self.inside).collect();
        let l = Loop { carried: &self.last, parts: &parts, whole, backward: !self.backward };
        scan(b, &l, |b, read| {
            let (carried, read) = read.split_at(l.carried.len());
            let (parts, whole) = read.split_at(l.parts.len());
            let (factors, own) = parts.split_at(factors.len());
            let mut carried = carried.to_vec();
            if self.ct.is_some() {
                carried[0] = b.add(carried[0], own[0])?;
            }
            let Some(inside) = self.inside.and(own.last().copied()) else { return step(b, &carried, factors, whole) };
            // Outside its sequence a step hands on what it gets.
            let active = carried.iter().map(|c| b.mul(*c, inside)).collect::<Result<Vec<_>, _>>()?;
            let (mut next, stacked) = step(b, &active, factors, whole)?;
            for (next, (all, active)) in next.iter_mut().zip(carried.iter().zip(active)) {
                let passed = b.sub(*all, active)?;
                *next = b.add(*next, passed)?;
            }
            Ok((next, stacked))
        })
    }
}

/// The operands of all directions, and what the gradient has for them.
pub(super) struct Given<'a> {
    pub(super) op: &'a Op,
    pub(super) gates: i64,
    pub(super) operands: Vec<Option<ValueId>>,
    /// Cotangents of the results.
    pub(super) cts: Vec<Option<ValueId>>,
    /// The first result, [T, directions, B, H].
    pub(super) states: ValueId,
    pub(super) inside: Option<Inside>,
    pub(super) directions: usize,
}

/// Which steps lie inside their sequences.
#[derive(Clone, Copy)]
pub(super) struct Inside {
    /// 1 or 0, [T, B, 1].
    step: ValueId,
    /// Does the next step? bool [T, B, 1].
    next: ValueId,
}

/// Compares the steps of `states` with the lengths [B].
pub(super) fn insides(b: &mut Builder, states: ValueId, lengths: ValueId) -> Result<Inside, BuildError> {
    let dtype = b.ty(states)?.dtype;
    let steps = b.dim_of(states, 0)?;
    let steps = b.squeeze(steps, &[0])?;
    let (zero, one) = (b.int(0), b.int(1));
    let numbers = b.op("Range", &[zero, steps, one])?;
    let numbers = b.unsqueeze(numbers, &[1, 2])?;
    let following = b.add(numbers, one)?;
    let lengths = b.cast(lengths, DType::I64)?;
    let lengths = b.unsqueeze(lengths, &[1])?;
    let step = b.op("Less", &[numbers, lengths])?;
    Ok(Inside { step: b.cast(step, dtype)?, next: b.op("Less", &[following, lengths])? })
}

/// Equal parts along an axis of known extent.
pub(super) fn blocks(b: &mut Builder, v: ValueId, axis: usize, count: i64) -> Result<Vec<ValueId>, BuildError> {
    let size = b.number(&b.ty(v)?.shape[axis])? / count;
    let sizes = b.ints(&vec![size; count as usize]);
    split(b, v, sizes, axis, count as usize)
}

impl Given<'_> {
    /// A direction's part of a value along the axis of directions.
    fn part(&self, b: &mut Builder, v: ValueId, axis: i64, d: i64) -> Built {
        let one = if self.directions == 1 { v } else { b.slice(v, axis, d, d + 1)? };
        b.squeeze(one, &[axis])
    }

    pub(super) fn direction(
        &self,
        b: &mut Builder,
        d: i64,
        backward: bool,
        activations: Vec<Activation>,
    ) -> Result<Direction, BuildError> {
        let part = |b: &mut Builder, v: Option<ValueId>| v.map(|v| self.part(b, v, 0, d)).transpose();
        let [Some(x), Some(w), Some(r)] = self.operands[..3] else {
            return Err(b.error(&self.op.name, TypeError("an operand is missing".into())));
        };
        let (weight, recurrent) = (self.part(b, w, 0, d)?, self.part(b, r, 0, d)?);
        let hidden = b.number(&b.ty(recurrent)?.shape[1])?;
        let columns = b.transpose(weight, &[1, 0])?;
        let mut projected = b.matmul(x, columns)?;
        let mut recurrent_bias = None;
        if let Some(bias) = part(b, self.operands[3])? {
            let rows = self.gates * hidden;
            let own = b.slice(bias, 0, 0, rows)?;
            projected = b.add(projected, own)?;
            recurrent_bias = Some(b.slice(bias, 0, rows, 2 * rows)?);
        }
        let after = self.part(b, self.states, 1, d)?;
        let state = b.slice(after, 0, 0, 1)?;
        let state = b.squeeze(state, &[0])?;
        let zeros = b.zeros_like(state)?;
        let first = part(b, self.operands[5])?.unwrap_or(zeros);
        let ct = self.cts[0].map(|ct| self.part(b, ct, 1, d)).transpose()?;
        let of_last = &self.cts[1..if self.gates == 4 { 3 } else { 2 }];
        let last: Vec<_> = of_last.iter().map(|ct| part(b, *ct)).collect::<Result<_, _>>()?;
        Ok(Direction {
            hidden,
            backward,
            activations,
            weight,
            projected,
            recurrent,
            recurrent_bias,
            peepholes: part(b, self.operands[7])?,
            before: self.before(b, after, first, backward)?,
            after,
            first_cell: part(b, self.operands[6])?.unwrap_or(zeros),
            inside: self.inside.map(|i| i.step),
            ct: match (ct, self.inside) {
                (Some(ct), Some(inside)) => Some(b.mul(ct, inside.step)?),
                _ => ct,
            },
            last: last.into_iter().map(|ct| ct.unwrap_or(zeros)).collect(),
            linear_before_reset: self.op.int("linear_before_reset") != 0,
            coupled: self.op.int("input_forget") != 0,
        })
    }

    /// The states moved by one step, the first state in front of them.
    fn before(&self, b: &mut Builder, after: ValueId, first: ValueId, backward: bool) -> Built {
        let first = b.unsqueeze(first, &[0])?;
        if b.ty(after)?.shape[0].is_one() {
            return Ok(first);
        }
        if !backward {
            let others = b.slice(after, 0, 0, -1)?;
            return b.concat(&[first, others], 0);
        }
        let others = b.slice(after, 0, 1, i64::MAX)?;
        let moved = b.concat(&[others, first], 0)?;
        // The last step of a shorter sequence is its first, too.
        self.inside.map_or(Ok(moved), |inside| b.select(inside.next, moved, first))
    }
}
