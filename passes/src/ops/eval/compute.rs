//! Operators that compute from more than two elements.

use super::places::{axis_of, count, strided, strides};
use super::{Array, Call, Domain, Element, Meet, length, number, rounded};
use crate::ir::DType;

impl<D: Domain> Call<'_, D> {
    /// `Max` with the first bound, then `Min` with the second.
    pub(super) fn clip(&self) -> Option<Array<D>> {
        let x = self.x(0)?;
        let mut clipped = x.clone();
        for (i, attr, name) in [(1, "min", "Max"), (2, "max", "Min")] {
            let bound = match self.op.attrs.get(attr) {
                None if !self.is_there(i) => continue,
                None => self.x(i)?.clone(),
                Some(_) => {
                    let v = f64::from(self.op.float(attr));
                    Array { dtype: x.dtype, dims: vec![], elements: vec![rounded(x.dtype, v)?] }
                }
            };
            clipped = clipped.binary(name, self.op, &bound, self.most)?;
        }
        Some(clipped)
    }

    pub(super) fn reduce(&self) -> Option<Array<D>> {
        let x = self.x(0)?;
        let rank = x.dims.len();
        let listed = self.listed("axes", 1)?.unwrap_or_default();
        if listed.is_empty() && self.op.int("noop_with_empty_axes") != 0 {
            return Some(x.clone());
        }
        let mut gone = vec![listed.is_empty(); rank];
        for a in listed {
            gone[axis_of(a, rank)?] = true;
        }
        let kept: Vec<i64> = x.dims.iter().zip(&gone).map(|(d, gone)| if *gone { 1 } else { *d }).collect();
        let own = strides(&kept);
        let steps: Vec<i64> = own.iter().zip(&gone).map(|(s, gone)| if *gone { 0 } else { *s }).collect();
        let (_, into) = strided(x.dims.clone(), &steps, 0, usize::MAX)?;
        let n = count(&kept, self.most)?;
        let name = match self.name() {
            "ReduceSum" => "Add",
            "ReduceProd" => "Mul",
            "ReduceMax" => "Max",
            _ => "Min",
        };
        let adds = matches!(name, "Add" | "Mul");
        if x.dtype.is_float() && adds {
            return None;
        }
        let meet = Meet::of(name, self.op, x.dtype)?;
        let mut out: Vec<Option<Element<D>>> = vec![None; n];
        for (e, at) in x.elements.iter().zip(into) {
            let slot = out.get_mut(at)?;
            *slot = Some(match slot {
                Some(all) => meet
                    .apply(all, e)
                    .filter(|sum| !adds || number::is_total(name, x.dtype, all.int(), e.int(), sum.int()))?,
                None => e.clone(),
            });
        }
        let keep = self.op.int("keepdims") != 0;
        let dims = kept.iter().zip(&gone).filter(|(_, gone)| keep || !**gone).map(|(d, _)| *d).collect();
        // No elements have no largest one, and engines differ in their sum.
        Some(Array { dtype: x.dtype, dims, elements: out.into_iter().collect::<Option<_>>()? })
    }

    /// The places of each line along an axis, in the order of the other axes.
    fn lines(dims: &[i64], axis: usize) -> impl Iterator<Item = Vec<usize>> {
        let n = dims[axis].max(0) as usize;
        let part = |dims: &[i64]| count(dims, usize::MAX).unwrap_or(0);
        let (outer, inner) = (part(&dims[..axis]), part(&dims[axis + 1..]));
        // Without elements there are no lines, however many the other extents say.
        let lines = if n == 0 { 0 } else { outer * inner };
        (0..lines).map(move |l| (0..n).map(|i| (l / inner * n + i) * inner + l % inner).collect())
    }

    pub(super) fn running_sum(&self) -> Option<Array<D>> {
        let x = self.x(0)?;
        let axis = axis_of(self.one(1)?, x.dims.len())?;
        if x.dtype.is_float() {
            return None;
        }
        let (exclusive, reverse) = (self.op.int("exclusive") != 0, self.op.int("reverse") != 0);
        let meet = Meet::of("Add", self.op, x.dtype)?;
        let mut out = x.elements.clone();
        for mut line in Self::lines(&x.dims, axis) {
            if reverse {
                line.reverse();
            }
            let mut sum = Element::Int(0);
            for at in line {
                let next = meet.apply(&sum, &x.elements[at])?;
                out[at] = if exclusive { sum } else { next.clone() };
                sum = next;
            }
        }
        Some(Array { elements: out, ..x.clone() })
    }

    pub(super) fn place_of_largest(&self) -> Option<Array<D>> {
        let x = self.x(0)?;
        let axis = self.axis()?;
        let last = self.op.int("select_last_index") != 0;
        let name = match (self.name() == "ArgMax", last) {
            (true, false) => "Greater",
            (true, true) => "GreaterOrEqual",
            (false, false) => "Less",
            (false, true) => "LessOrEqual",
        };
        let meet = Meet::of(name, self.op, x.dtype)?;
        let mut found = Vec::new();
        for line in Self::lines(&x.dims, axis) {
            let mut best = 0;
            for i in 1..line.len() {
                if meet.apply(&x.elements[line[i]], &x.elements[line[best]])?.int()? != 0 {
                    best = i;
                }
            }
            line.first()?;
            found.push(Element::Int(best as i64));
        }
        let mut dims = x.dims.clone();
        dims[axis] = 1;
        if self.op.int("keepdims") == 0 {
            dims.remove(axis);
        }
        Some(Array { dtype: DType::I64, dims, elements: found })
    }

    pub(super) fn range(&self) -> Option<Array<D>> {
        let t = self.x(0)?.dtype;
        if t.is_float() {
            let one = |i: usize| match self.x(i)?.elements.as_slice() {
                [Element::Float(v)] if v.is_finite() => Some(*v),
                _ => None,
            };
            let (start, end, step) = (one(0)?, one(1)?, one(2)?);
            let n = ((end - start) / step).ceil().max(0.0);
            let n = count(&[(n < 1e15).then_some(n as i64)?], self.most)?;
            // Engines add up the steps or multiply them; both agree where nothing rounds.
            let exact = |v: &f64| (v * 1024.0).fract() == 0.0 && v.abs() < 2f64.powi(20) && number::round(t, *v) == Some(*v);
            let at = |i: usize| Some(start + i as f64 * step).filter(exact).map(Element::Float);
            [start, end, step, n as f64 * step].iter().all(exact).then_some(())?;
            return Some(Array { dtype: t, dims: vec![n as i64], elements: (0..n).map(at).collect::<Option<_>>()? });
        }
        let (start, end, step) = (self.one(0)?, self.one(1)?, self.one(2)?);
        let n = length(start, end, step).and_then(|n| count(&[i64::try_from(n).ok()?], self.most))?;
        let at = |i: usize| number::wrap(t, start.wrapping_add((i as i64).wrapping_mul(step))).map(Element::Int);
        Some(Array { dtype: t, dims: vec![n as i64], elements: (0..n).map(at).collect::<Option<_>>()? })
    }

    pub(super) fn non_zero(&self) -> Option<Array<D>> {
        // For a scalar the runtime reports one coordinate, the standard none.
        let x = self.x(0).filter(|x| !x.dims.is_empty())?;
        let is_set = |e: &Element<D>| match e {
            Element::Int(v) => Some(*v != 0),
            Element::Float(v) => Some(*v != 0.0),
            Element::Open(_) => None,
        };
        let set: Vec<bool> = x.elements.iter().map(is_set).collect::<Option<_>>()?;
        let all = strides(&x.dims);
        let places: Vec<i64> = (0..set.len() as i64).filter(|i| set[*i as usize]).collect();
        let along = x.dims.iter().zip(&all).flat_map(|(d, s)| places.iter().map(move |p| Element::Int(p / s % d)));
        Some(Array { dtype: DType::I64, dims: vec![x.dims.len() as i64, places.len() as i64], elements: along.collect() })
    }

    /// Along the last axis. Entries whose exponential underflows are exactly zero; if one entry remains, it is exactly one. All other
    /// entries are only bounded.
    pub(super) fn softmax(&self) -> Option<Array<D>> {
        let x = self.x(0)?;
        let axis = self.axis()?;
        let width = *x.dims.last()? as usize;
        if axis + 1 != x.dims.len() || width == 0 || !x.dtype.is_float() {
            return None;
        }
        // Far below ln(smallest denormal / 2), so that every implementation of exp underflows.
        let gone = if x.dtype == DType::F64 { -760.0 } else { -110.0 };
        let float = |e: &Element<D>| if let Element::Float(v) = e { v.is_finite().then_some(*v) } else { None };
        let mut out = Vec::with_capacity(x.elements.len());
        for row in x.elements.chunks(width) {
            let row: Vec<f64> = row.iter().map(float).collect::<Option<_>>()?;
            let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let near = row.iter().filter(|v| **v - top > gone).count();
            for v in row {
                out.push(match (v - top > gone, near) {
                    (false, _) => Element::Float(0.0),
                    (true, 1) => Element::Float(1.0),
                    (true, _) => D::within(x.dtype, 1.001)?,
                });
            }
        }
        Some(Array { elements: out, ..x.clone() })
    }
}
