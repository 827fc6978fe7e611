//! Operators that only move elements.

use super::places::{Places, axis_of, common, count, expanded, mapped, permuted, range, sliced, strided, strides};
use super::{Array, Call, Domain, Element};
use crate::ir::DType;

impl<D: Domain> Call<'_, D> {
    pub(super) fn moved(&self) -> Option<Array<D>> {
        let most = self.most;
        match self.name() {
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
                let (x, dims) = (self.x(0)?, self.reshaped()?);
                (count(&dims, usize::MAX)? == x.elements.len()).then(|| Array { dims, ..x.clone() })
            }
            "Transpose" => {
                let x = self.x(0)?;
                let rank = x.dims.len();
                let perm: Vec<usize> = match self.op.attrs.ints("perm") {
                    Some(p) => p.iter().map(|p| usize::try_from(*p).ok()).collect::<Option<_>>()?,
                    None => (0..rank).rev().collect(),
                };
                (perm.len() == rank).then_some(())?;
                x.picked(permuted(&x.dims, &perm, most)?)
            }
            "Expand" => {
                let x = self.x(0)?;
                let dims = common(&x.dims, &self.x(1)?.ints()?)?;
                x.picked(expanded(&x.dims, &dims, most)?)
            }
            "Concat" => self.concat(),
            "Slice" => self.slice(),
            "Gather" => self.gather(),
            "GatherElements" => self.gather_elements(),
            "GatherND" => self.gather_nd(),
            "ScatterElements" => self.scatter_elements(),
            "ScatterND" => self.scatter_nd(),
            "Tile" => {
                let (x, repeats) = (self.x(0)?, self.x(1)?.ints()?);
                let own = strides(&x.dims);
                (repeats.len() == own.len()).then_some(())?;
                let dims = x.dims.iter().zip(repeats).map(|(d, r)| d.checked_mul(r)).collect::<Option<_>>()?;
                x.picked(mapped(dims, most, |at| offset(at.iter().zip(&x.dims).map(|(i, d)| i % d), &own))?)
            }
            "Pad" => self.pad(),
            "Trilu" => {
                let x = self.x(0)?;
                let k = if self.is_there(1) { self.one(1)? } else { 0 };
                let upper = self.op.int("upper") != 0;
                let own = strides(&x.dims);
                let places = mapped(x.dims.clone(), most, |at| {
                    let [.., i, j] = at else { return None };
                    let above = j.saturating_sub(*i);
                    let kept = if upper { above >= k } else { above <= k };
                    if kept { offset(at.iter().copied(), &own) } else { Some(x.elements.len()) }
                })?;
                x.picked_with(&[zero(x.dtype)], places)
            }
            "Where" => self.choose(),
            "OneHot" => self.one_hot(),
            "ConstantOfShape" => {
                let dims = self.x(0)?.ints()?;
                let fill: Element<D> = match self.op.attrs.tensor("value") {
                    Some(t) => Array::of_tensor(t, 1)?.elements.pop()?,
                    None => Element::Float(0.0),
                };
                let dtype = self.op.attrs.tensor("value").map_or(DType::F32, |t| t.dtype());
                Some(Array { dtype, elements: vec![fill; count(&dims, most)?], dims })
            }
            _ => None,
        }
    }

    fn reshaped(&self) -> Option<Vec<i64>> {
        let x = self.x(0)?;
        let rank = x.dims.len();
        match self.name() {
            "Reshape" => {
                let mut to = self.listed("shape", 1)??;
                if self.op.int("allowzero") == 0 {
                    for (i, d) in to.iter_mut().enumerate().filter(|(_, d)| **d == 0) {
                        *d = *x.dims.get(i)?;
                    }
                }
                if let Some(i) = to.iter().position(|d| *d == -1) {
                    to[i] = 1;
                    let rest = count(&to, usize::MAX)?;
                    to[i] = x.elements.len().checked_div(rest)? as i64;
                }
                Some(to)
            }
            "Flatten" => {
                let axis = self.op.int("axis");
                let axis = if axis == rank as i64 { rank } else { axis_of(axis, rank)? };
                let part = |dims: &[i64]| i64::try_from(count(dims, usize::MAX)?).ok();
                Some(vec![part(&x.dims[..axis])?, part(&x.dims[axis..])?])
            }
            "Squeeze" => {
                let one = |axis: &usize| x.dims[*axis] == 1;
                let axes: Vec<usize> = match self.listed("axes", 1)?.filter(|list| !list.is_empty()) {
                    Some(list) => list.iter().map(|a| axis_of(*a, rank).filter(one)).collect::<Option<_>>()?,
                    None => (0..rank).filter(one).collect(),
                };
                Some((0..rank).filter(|i| !axes.contains(i)).map(|i| x.dims[i]).collect())
            }
            _ => {
                let axes = self.listed("axes", 1)??;
                let rank = rank + axes.len();
                let axes: Vec<usize> = axes.iter().map(|a| axis_of(*a, rank)).collect::<Option<_>>()?;
                let mut from = x.dims.iter();
                (0..rank).map(|i| if axes.contains(&i) { Some(1) } else { from.next().copied() }).collect()
            }
        }
    }

    fn concat(&self) -> Option<Array<D>> {
        let parts: Vec<&Array<D>> = (0..self.operands.len()).map(|i| self.x(i)).collect::<Option<_>>()?;
        joined(&parts, self.axis()?, self.most)
    }

    fn slice(&self) -> Option<Array<D>> {
        let x = self.x(0)?;
        let rank = x.dims.len();
        let (starts, ends) = (self.listed("starts", 1)??, self.listed("ends", 2)??);
        let n = starts.len();
        let axes = self.listed("axes", 3)?.unwrap_or_else(|| (0..n as i64).collect());
        let steps = self.listed("steps", 4)?.unwrap_or_else(|| vec![1; n]);
        (ends.len() == n && axes.len() == n && steps.len() == n).then_some(())?;
        let (mut dims, mut by) = (x.dims.clone(), strides(&x.dims));
        let (mut first, mut seen) = (0, Vec::with_capacity(n));
        for i in 0..n {
            let axis = axis_of(axes[i], rank).filter(|a| !seen.contains(a))?;
            let (start, len) = range(x.dims[axis], starts[i], ends[i], steps[i])?;
            first += start * by[axis];
            // No step is taken from the only element.
            by[axis] = if len > 1 { by[axis] * steps[i] } else { 0 };
            dims[axis] = len;
            seen.push(axis);
        }
        x.picked(strided(dims, &by, first, self.most)?)
    }

    /// Parts of an axis.
    pub(super) fn split(&self) -> Option<Vec<Array<D>>> {
        let (x, axis) = (self.x(0)?, self.axis()?);
        let sizes = part_sizes(x.dims[axis], self.results as i64, self.listed("split", 1)?)?;
        let mut at = 0;
        sizes
            .into_iter()
            .map(|len| {
                let part = x.picked(sliced(&x.dims, axis, at, len, 1, self.most)?);
                at += len;
                part
            })
            .collect()
    }

    fn gather(&self) -> Option<Array<D>> {
        let (x, at, axis) = (self.x(0)?, self.x(1)?, self.axis()?);
        let n = x.dims[axis];
        let chosen: Vec<i64> = at.ints()?.into_iter().map(|i| inside(i, n)).collect::<Option<_>>()?;
        let (outer, inner) = (&x.dims[..axis], &x.dims[axis + 1..]);
        let step = count(inner, self.most)?;
        let dims = [outer, &at.dims, inner].concat();
        let mut from = Vec::with_capacity(count(&dims, self.most)?);
        for o in 0..count(outer, self.most)? {
            for i in &chosen {
                let first = (o * n as usize + *i as usize) * step;
                from.extend(first..first + step);
            }
        }
        x.picked((dims, from))
    }

    /// The place in `x` of each index of another array of indices along an axis.
    fn along(&self, x: &Array<D>, at: &Array<D>, axis: usize) -> Option<Places> {
        let (chosen, own, mut flat) = (at.ints()?, strides(&x.dims), 0);
        (at.dims.len() == x.dims.len()).then_some(())?;
        mapped(at.dims.clone(), self.most, |index| {
            let i = inside(*chosen.get(flat)?, x.dims[axis])?;
            flat += 1;
            index.iter().zip(&x.dims).all(|(i, d)| i < d).then_some(())?;
            offset(index.iter().enumerate().map(|(k, p)| if k == axis { i } else { *p }), &own)
        })
    }

    fn gather_elements(&self) -> Option<Array<D>> {
        let x = self.x(0)?;
        x.picked(self.along(x, self.x(1)?, self.axis()?)?)
    }

    /// The first place of the block in `x` that each row of coordinates names, the block's number of elements, and the number of
    /// coordinates. `shared` leading axes are common.
    fn blocks(&self, x: &Array<D>, at: &Array<D>, shared: usize) -> Option<(Vec<usize>, usize, usize)> {
        let (coordinates, own) = (at.ints()?, strides(&x.dims));
        let m = usize::try_from(*at.dims.last()?).ok()?;
        let block = count(x.dims.get(shared + m..)?, self.most)?;
        let lead = count(x.dims.get(..shared)?, self.most)?;
        let rows = count(&at.dims[..at.dims.len() - 1], self.most)?;
        let mut first = Vec::with_capacity(rows);
        for r in 0..rows {
            let which = rows.checked_div(lead).map_or(0, |each| r / each.max(1));
            let start = which * count(&x.dims[shared..], usize::MAX)?;
            let row = coordinates.get(r * m..(r + 1) * m)?;
            let inner = row.iter().enumerate().map(|(k, i)| inside(*i, x.dims[shared + k]));
            let inner: Vec<i64> = inner.collect::<Option<_>>()?;
            first.push(start + offset(inner.into_iter(), &own[shared..])?);
        }
        Some((first, block, m))
    }

    fn gather_nd(&self) -> Option<Array<D>> {
        let (x, at) = (self.x(0)?, self.x(1)?);
        let shared = usize::try_from(self.op.int("batch_dims")).ok()?;
        let (first, block, m) = self.blocks(x, at, shared)?;
        let dims = [&at.dims[..at.dims.len() - 1], x.dims.get(shared + m..)?].concat();
        count(&dims, self.most)?;
        x.picked((dims, first.into_iter().flat_map(|f| f..f + block).collect()))
    }

    /// The elements of the first operand, with the i-th of `updates` in place `into[i]`; `None` if a place occurs twice.
    fn scattered(&self, into: &[usize], updates: &Array<D>) -> Option<Array<D>> {
        let x = self.x(0)?;
        let n = x.elements.len();
        let mut from: Vec<usize> = (0..n).collect();
        let plain = self.op.str("reduction") == "none" && into.len() == updates.elements.len();
        (plain && updates.dtype == x.dtype).then_some(())?;
        for (i, at) in into.iter().enumerate() {
            let slot = from.get_mut(*at).filter(|slot| **slot < n)?;
            *slot = n + i;
        }
        x.picked_with(&updates.elements, (x.dims.clone(), from))
    }

    fn scatter_elements(&self) -> Option<Array<D>> {
        let (_, into) = self.along(self.x(0)?, self.x(1)?, self.axis()?)?;
        self.scattered(&into, self.x(2)?)
    }

    fn scatter_nd(&self) -> Option<Array<D>> {
        let (first, block, _) = self.blocks(self.x(0)?, self.x(1)?, 0)?;
        let into: Vec<usize> = first.into_iter().flat_map(|f| f..f + block).collect();
        self.scattered(&into, self.x(2)?)
    }

    fn pad(&self) -> Option<Array<D>> {
        let x = self.x(0)?;
        let rank = x.dims.len();
        let pads = self.listed("pads", 1)??;
        let axes = match self.is_there(3) {
            true => self.x(3)?.ints()?,
            false => (0..rank as i64).collect(),
        };
        (pads.len() == 2 * axes.len()).then_some(())?;
        let (mut before, mut dims) = (vec![0; rank], x.dims.clone());
        for (i, axis) in axes.iter().enumerate() {
            let (axis, after) = (axis_of(*axis, rank)?, pads[axes.len() + i]);
            before[axis] = pads[i];
            dims[axis] = dims[axis].checked_add(pads[i])?.checked_add(after)?;
        }
        let fill = match self.x(2) {
            Some(value) => value.elements.first()?.clone(),
            None if self.op.attrs.get("value").is_some() => Element::Float(f64::from(self.op.float("value"))),
            None => zero(x.dtype),
        };
        let (mode, own) = (self.op.str("mode"), strides(&x.dims));
        let places = mapped(dims, self.most, |at| {
            let mut place = 0;
            for k in 0..rank {
                let (i, n) = (at[k] - before[k], x.dims[k]);
                let i = match mode {
                    _ if (0..n).contains(&i) => i,
                    "constant" => return Some(x.elements.len()),
                    "edge" if n > 0 => i.clamp(0, n - 1),
                    // Engines differ beyond one reflection or turn.
                    "reflect" if i.abs() < n => i.abs(),
                    "reflect" if (0..n).contains(&(2 * (n - 1) - i)) => 2 * (n - 1) - i,
                    "wrap" if (-n..2 * n).contains(&i) => i.rem_euclid(n),
                    _ => return None,
                };
                place += i * own[k];
            }
            Some(place as usize)
        })?;
        x.picked_with(&[fill], places)
    }

    fn choose(&self) -> Option<Array<D>> {
        let (c, x, y) = (self.x(0)?, self.x(1)?, self.x(2)?);
        let dims = common(&common(&c.dims, &x.dims)?, &y.dims)?;
        let places = |of: &Array<D>| Some(expanded(&of.dims, &dims, self.most)?.1);
        let (by, p, q) = (places(c)?, places(x)?, places(y)?);
        let n = x.elements.len();
        // The runtime adds the chosen element to zero, which loses the sign of −0.
        let signed_zero = |e: &Element<D>| matches!(e, Element::Float(v) if *v == 0.0 && v.is_sign_negative());
        (x.dtype == y.dtype && !x.elements.iter().chain(&y.elements).any(signed_zero)).then_some(())?;
        let from = (0..by.len()).map(|i| Some(if c.elements.get(by[i])?.int()? != 0 { p[i] } else { n + q[i] }));
        x.picked_with(&y.elements, (dims.clone(), from.collect::<Option<_>>()?))
    }

    fn one_hot(&self) -> Option<Array<D>> {
        let (at, depth, values) = (self.x(0)?, self.one(1)?, self.x(2)?);
        let rank = at.dims.len();
        let axis = axis_of(self.op.int("axis"), rank + 1)?;
        let mut dims = at.dims.clone();
        dims.insert(axis, Some(depth).filter(|d| *d > 0)?);
        (values.elements.len() == 2).then_some(())?;
        let hot = |i: i64| if i < 0 { i.saturating_add(depth) } else { i };
        let hot: Vec<i64> = at.ints()?.into_iter().map(hot).collect();
        let mut own = strides(&at.dims);
        own.insert(axis, 0);
        values.picked(mapped(dims, self.most, |index| {
            let i = offset(index.iter().copied(), &own)?;
            Some(usize::from(*hot.get(i)? == index[axis]))
        })?)
    }
}

/// The extents of the parts that an axis of `n` is split into.
pub fn part_sizes(n: i64, parts: i64, listed: Option<Vec<i64>>) -> Option<Vec<i64>> {
    let sizes = listed.unwrap_or_else(|| {
        // The last part may be smaller.
        let each = n.div_euclid(parts.max(1)) + (n.rem_euclid(parts.max(1)) != 0) as i64;
        (0..parts).map(|i| each.min(n - i * each)).collect()
    });
    let fits = sizes.len() as i64 == parts
        && sizes.iter().all(|s| (0..=n).contains(s))
        && sizes.iter().map(|s| i128::from(*s)).sum::<i128>() == i128::from(n);
    fits.then_some(sizes)
}

/// Joined along an axis.
pub fn joined<D: Domain>(parts: &[&Array<D>], axis: usize, most: usize) -> Option<Array<D>> {
    let first = parts.first()?;
    let mut dims = first.dims.clone();
    *dims.get_mut(axis)? = parts.iter().map(|p| p.dims.get(axis).copied()).sum::<Option<i64>>()?;
    let beside = |p: &&Array<D>| {
        let others = |dims: &[i64]| dims.iter().enumerate().filter(|(i, _)| *i != axis).map(|(_, d)| *d).collect::<Vec<_>>();
        p.dtype == first.dtype && others(&p.dims) == others(&dims) && p.dims.len() == dims.len()
    };
    parts.iter().all(beside).then_some(())?;
    let mut elements = Vec::with_capacity(count(&dims, most)?);
    let outer = count(&dims[..axis], most)?;
    for o in 0..outer {
        for p in parts {
            let chunk = p.elements.len() / outer;
            elements.extend_from_slice(p.elements.get(o * chunk..(o + 1) * chunk)?);
        }
    }
    Some(Array { dtype: first.dtype, dims, elements })
}

fn zero<D>(t: DType) -> Element<D> {
    if t.is_float() { Element::Float(0.0) } else { Element::Int(0) }
}

/// An index counted from the front, if it is one of `n`.
fn inside(i: i64, n: i64) -> Option<i64> {
    let i = if i < 0 { i + n } else { i };
    (0..n).contains(&i).then_some(i)
}

fn offset(index: impl Iterator<Item = i64>, strides: &[i64]) -> Option<usize> {
    usize::try_from(index.zip(strides).map(|(i, s)| i * s).sum::<i64>()).ok()
}
