//! The update of one trained tensor, or of many small ones laid end to end. A network has hundreds of biases and scales, and a
//! dozen operators for each of them would cost more than their arithmetic.

use super::optimizer::{OptimizerKind, OptimizerOptions, StateTensor, Trained};
use crate::contract::StateKind;
use crate::ir::{DType, Tensor, ValueId};
use crate::ops::build::{BuildError, Builder, Built};
use indexmap::IndexMap;
use std::collections::HashMap;

/// Scalars that all updates share.
pub(super) struct Scalars {
    /// The learning rate.
    pub(super) lr: ValueId,
    /// Length of a step along the direction: the learning rate, for Adam lr / (1 − β1^t).
    pub(super) size: ValueId,
    /// The same for the router.
    pub(super) router_size: ValueId,
    /// Adam: 1 / √(1 − β2^t).
    pub(super) inverse_root: Option<ValueId>,
    /// 1 − lr·λ of the weights.
    pub(super) keep: Option<ValueId>,
    /// Is this micro-batch the last of its update?
    pub(super) boundary: Option<ValueId>,
}

/// One large trained tensor, or several small ones of the same group and type.
pub(super) struct Pack<'a> {
    members: Vec<&'a Trained>,
    /// Their gradient, in the pack's shape.
    pub(super) gradient: ValueId,
    /// A gradient and its square, which the norm and Adam's second moment both read.
    square: Option<(ValueId, ValueId)>,
    /// Their group of parameters, by number.
    group: Option<usize>,
}

/// What the members of a pack have in common: their kind; their group of parameters; the type of small ones; the number of a
/// large one, or of the part of the backward pass that computes the gradients of small ones.
type Group = (Kind, Option<usize>, Option<DType>, usize);

/// So many small tensors are updated at once. Runtimes compute a gradient when its update asks for it, and keep the cotangents that it
/// is computed from until then: one update for all small tensors would keep those of the whole network.
const TOGETHER: usize = 32;

/// How a tensor is updated.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Weight,
    Router,
    Scale,
}

impl Kind {
    fn of(kind: StateKind) -> Kind {
        match kind {
            StateKind::Scale => Kind::Scale,
            kind if kind.is_router() => Kind::Router,
            _ => Kind::Weight,
        }
    }
}

/// The packs of all trained tensors, by the first member's place.
pub(super) fn packs<'a>(b: &mut Builder, trained: &'a [Trained], o: &OptimizerOptions) -> Result<Vec<Pack<'a>>, BuildError> {
    let types = trained.iter().map(|t| b.ty(t.value)).collect::<Result<Vec<_>, _>>()?;
    let small = |i: usize| types[i].elements().known().is_some_and(|n| n <= b.target.small_update);
    let ranks: HashMap<_, usize> = b.graph.topological_order().into_iter().enumerate().map(|(i, n)| (n, i)).collect();
    let mut by_rank: Vec<usize> = (0..trained.len()).filter(|i| small(*i) && !trained[*i].kind.is_router()).collect();
    by_rank.sort_by_key(|i| ranks.get(&trained[*i].gradient.node).copied());
    let parts: HashMap<usize, usize> = by_rank.into_iter().enumerate().map(|(place, i)| (i, place / TOGETHER)).collect();
    let mut groups: IndexMap<Group, Vec<&Trained>> = IndexMap::new();
    for (i, t) in trained.iter().enumerate() {
        let part = if small(i) { parts.get(&i).copied().unwrap_or(0) } else { i };
        let group = o.group_of(b.graph.name(t.value));
        groups.entry((Kind::of(t.kind), group, small(i).then_some(types[i].dtype), part)).or_default().push(t);
    }
    let mut out = Vec::with_capacity(groups.len());
    for ((_, group, ..), members) in groups {
        let gradients: Vec<ValueId> = members.iter().map(|t| t.gradient).collect();
        out.push(Pack { gradient: join(b, &gradients)?, square: None, members, group });
    }
    Ok(out)
}

/// Several tensors end to end; one stays as it is.
fn join(b: &mut Builder, values: &[ValueId]) -> Built {
    if let [one] = values {
        return Ok(*one);
    }
    let mut flat = Vec::with_capacity(values.len());
    for v in values {
        let elements = b.ty(*v)?.elements();
        flat.push(b.reshape(*v, &[-1], &[elements])?);
    }
    b.concat(&flat, 0)
}

impl Pack<'_> {
    /// The gradients of its members.
    pub(super) fn gradients(&self) -> Vec<ValueId> {
        self.members.iter().map(|t| t.gradient).collect()
    }

    /// g² of the gradient as it is now; with `keep` the update has it too.
    pub(super) fn square(&mut self, b: &mut Builder, keep: bool) -> Built {
        let square = b.mul(self.gradient, self.gradient)?;
        self.square = keep.then_some((self.gradient, square));
        Ok(square)
    }

    /// The weight, if the pack is one large tensor.
    pub(super) fn large(&self) -> Option<ValueId> {
        match self.members.as_slice() {
            [one] => Some(one.value),
            _ => None,
        }
    }

    fn kind(&self) -> Kind {
        self.members.first().map_or(Kind::Weight, |t| Kind::of(t.kind))
    }

    fn prefix(&self, b: &Builder) -> String {
        match self.members.as_slice() {
            [one] => format!("optimizer/{}", b.graph.name(one.value)),
            _ if self.kind() == Kind::Router => "optimizer/router".into(),
            _ if self.kind() == Kind::Scale => "optimizer/scales".into(),
            _ => "optimizer/small".into(),
        }
    }

    /// Takes apart what [`join`] joined.
    fn split(&self, b: &mut Builder, joined: ValueId) -> Result<Vec<ValueId>, BuildError> {
        if self.members.len() == 1 {
            return Ok(vec![joined]);
        }
        let types = self.members.iter().map(|t| b.ty(t.value)).collect::<Result<Vec<_>, _>>()?;
        let sizes = types.iter().map(|t| b.number(&t.elements())).collect::<Result<Vec<i64>, _>>()?;
        b.split(joined, 0, &sizes)?
            .into_iter()
            .zip(types)
            .map(|(part, ty)| {
                let target = b.numbers(&ty.shape)?;
                b.reshape(part, &target, &ty.shape)
            })
            .collect()
    }

    /// Adds a state for each member, which starts at zero. `next` takes the joined states and returns a value for the caller and the
    /// joined next states.
    ///
    /// The default in the file is a single broadcastable zero. The declared dimensions are made symbolic later, so that the full
    /// tensor may be fed.
    fn state(
        &self,
        b: &mut Builder,
        what: &str,
        kind: StateKind,
        states: &mut Vec<StateTensor>,
        next: impl FnOnce(&mut Builder, ValueId) -> Result<(ValueId, ValueId), BuildError>,
    ) -> Built {
        let mut values = Vec::with_capacity(self.members.len());
        let mut full = Vec::with_capacity(self.members.len());
        for t in &self.members {
            let ty = b.ty(t.value)?;
            let name = format!("{}.{what}", b.graph.name(t.value));
            let ones = vec![1i64; ty.rank()];
            let v = b.graph.add_initializer(&name, Tensor::floats(ty.dtype, &ones, &[0.0]), true);
            // While the step is built the state has the parameter's type.
            b.graph.set_type(v, ty.clone().into());
            values.push(v);
            full.push(if self.members.len() == 1 {
                v
            } else {
                // The default must reach its full size before it is joined.
                let elements = ty.elements();
                let flat = b.reshape(v, &[-1], std::slice::from_ref(&elements))?;
                let size = b.number(&elements)?;
                let size = b.ints(&[size]);
                b.op("Expand", &[flat, size])?
            });
        }
        let joined = join(b, &full)?;
        let (now, stored) = next(b, joined)?;
        let next = self.split(b, stored)?.into_iter().map(Some);
        states.extend(values.into_iter().zip(next).map(|(value, next)| StateTensor { value, next, kind }));
        Ok(now)
    }

    /// Adds the gradient to the sums over micro-batches; the pack's gradient becomes their mean.
    pub(super) fn accumulate(
        &mut self,
        b: &mut Builder,
        micro_batches: u32,
        boundary: ValueId,
        states: &mut Vec<StateTensor>,
    ) -> Result<(), BuildError> {
        b.prefix = self.prefix(b);
        let gradient = self.gradient;
        let total = self.state(b, "accumulator", StateKind::Accumulator, states, |b, sum| {
            let total = b.add(sum, gradient)?;
            // After an update the sums start again.
            let dtype = b.ty(total)?.dtype;
            let zero = b.scalar(dtype, 0.0);
            Ok((total, b.select(boundary, zero, total)?))
        })?;
        self.gradient = b.scale(total, 1.0 / micro_batches as f64)?;
        Ok(())
    }

    /// The next value of the members and of their moments, not before the scalars `first` are known.
    pub(super) fn update(
        &self,
        b: &mut Builder,
        s: &Scalars,
        first: &[ValueId],
        o: &OptimizerOptions,
        states: &mut Vec<StateTensor>,
    ) -> Result<(), BuildError> {
        b.prefix = self.prefix(b);
        let values: Vec<ValueId> = self.members.iter().map(|t| t.value).collect();
        let w = join(b, &values)?;
        let group = self.group.and_then(|i| o.groups.get(i));
        let scale = group.map_or(1.0, |g| g.lr_scale);
        let usual = if self.kind() == Kind::Weight { o.decay() } else { 0.0 };
        let of_group = group.and_then(|g| g.decay).filter(|_| self.kind() != Kind::Scale);
        let lambda = of_group.unwrap_or(usual);
        let mut g = self.gradient;
        if lambda != 0.0 && o.kind != OptimizerKind::AdamW {
            let pull = b.scale(w, lambda)?;
            g = b.add(g, pull)?;
        }
        let size = b.scale(if self.kind() == Kind::Router { s.router_size } else { s.size }, scale)?;
        let size = behind(b, first, size)?;
        let direction = match s.inverse_root {
            Some(inverse_root) => self.adam(b, g, inverse_root, s.boundary, o, states)?,
            None => self.sgd(b, g, s.boundary, o, states)?,
        };
        let mut change = b.mul(direction, size)?;
        if self.kind() == Kind::Scale && o.kind.is_adam() {
            // Adam's steps have the learning rate's size, whatever the tensor's. Those of a scale are parts of it, which also keeps it
            // above zero.
            change = b.mul(change, w)?;
        }
        let kept = match s.keep {
            _ if lambda == 0.0 || o.kind != OptimizerKind::AdamW => w,
            Some(keep) if group.is_none() => b.mul(w, keep)?,
            // 1 − lr·λ of the group's own rate.
            _ => {
                let of_router = if self.kind() == Kind::Router { o.router_lr_scale } else { 1.0 };
                let shrink = b.scale(s.lr, lambda * scale * of_router)?;
                let keep = b.from_number_sub(1.0, shrink)?;
                b.mul(w, keep)?
            }
        };
        let next = b.sub(kept, change)?;
        let next = held(b, s.boundary, next, w)?;
        let next = self.split(b, next)?.into_iter().map(Some);
        states.extend(self.members.iter().zip(next).map(|(t, next)| StateTensor { value: t.value, next, kind: t.kind }));
        Ok(())
    }

    /// m ← β1 m + (1 − β1) g, v ← β2 v + (1 − β2) g²; the direction is m / (√v / √(1 − β2^t) + ε), rounded where PyTorch rounds.
    /// Folding the root into ε and the step would save a pass, but moves a network's trajectory as soon as a value lies within
    /// rounding of a kink.
    fn adam(
        &self,
        b: &mut Builder,
        g: ValueId,
        inverse_root: ValueId,
        boundary: Option<ValueId>,
        o: &OptimizerOptions,
        states: &mut Vec<StateTensor>,
    ) -> Built {
        let m = self.state(b, "exp_avg", StateKind::Moment, states, |b, m| {
            let next = blend(b, m, g, o.beta1)?;
            Ok((next, held(b, boundary, next, m)?))
        })?;
        let square = match self.square {
            Some((of, square)) if of == g => square,
            _ => b.mul(g, g)?,
        };
        let v = self.state(b, "exp_avg_sq", StateKind::Moment, states, |b, v| {
            let next = blend(b, v, square, o.beta2)?;
            Ok((next, held(b, boundary, next, v)?))
        })?;
        let root = b.sqrt(v)?;
        let root = b.mul(root, inverse_root)?;
        let below = b.shift(root, o.eps)?;
        b.div(m, below)
    }

    /// v ← μ v + g; the direction is v, or g + μ v for Nesterov, or g without momentum.
    fn sgd(
        &self,
        b: &mut Builder,
        g: ValueId,
        boundary: Option<ValueId>,
        o: &OptimizerOptions,
        states: &mut Vec<StateTensor>,
    ) -> Built {
        if o.momentum == 0.0 {
            return Ok(g);
        }
        let v = self.state(b, "momentum_buffer", StateKind::Moment, states, |b, v| {
            let kept = b.scale(v, o.momentum)?;
            let next = b.add(kept, g)?;
            Ok((next, held(b, boundary, next, v)?))
        })?;
        if !o.nesterov {
            return Ok(v);
        }
        let ahead = b.scale(v, o.momentum)?;
        b.add(g, ahead)
    }
}

/// Between updates everything but the accumulators and the counter stays.
fn held(b: &mut Builder, boundary: Option<ValueId>, next: ValueId, old: ValueId) -> Built {
    match boundary {
        Some(boundary) => b.select(boundary, next, old),
        None => Ok(next),
    }
}

/// Makes a scalar depend on others, so that it is there only once they are: runtimes order nodes by what they read.
fn behind(b: &mut Builder, first: &[ValueId], scalar: ValueId) -> Built {
    let mut scalar = scalar;
    let dtype = b.ty(scalar)?.dtype;
    for v in first {
        let yes = b.constant("const/true", Tensor::bools(&[], &[true]));
        let v = b.cast(*v, dtype)?;
        scalar = b.select(yes, scalar, v)?;
    }
    Ok(scalar)
}

/// β·old + (1 − β)·new.
pub(super) fn blend(b: &mut Builder, old: ValueId, new: ValueId, beta: f64) -> Built {
    let kept = b.scale(old, beta)?;
    let added = b.scale(new, 1.0 - beta)?;
    b.add(kept, added)
}
