//! Rules of single operators of the standard domain.

use super::canonical::{Site, is_inference_dropout, order_operands};
use super::term::{Args, Granted, Head, Table, TermId};
use crate::ir::{DType, Dim, Shape, TensorType, ValueType};
use crate::ops::eval::part_sizes;
use crate::ops::eval::places::{axis_of, range};
use crate::ops::permutation;

impl<'g> Table<'g> {
    /// The canonical terms of an operator of the standard domain that has rules; `None` to keep it as it is.
    pub(super) fn rules(&mut self, s: &Site<'_, 'g>) -> Option<Vec<TermId>> {
        let one = |t: TermId| Some(vec![t]);
        let (x, y, ty) = (s.arg(0), s.arg(1), s.ty());
        let a = &s.op.attrs;
        match s.op.name.as_str() {
            "Identity" => one(x),
            "Dropout" if is_inference_dropout(self, s) => {
                let mask = s.types.get(1).cloned().map(|ty| self.plain("Dropout mask", &[x], ty));
                Some([Some(x), mask].into_iter().flatten().collect())
            }
            name @ ("Cast" | "CastLike") => {
                let to = if name == "Cast" { DType::from_onnx(s.op.int("to") as i32)? } else { self.dtype(y)? };
                let plain = |t: DType| t.size().is_some() && t.onnx() <= DType::BF16.onnx();
                if plain(to) && plain(self.dtype(x)?) { one(self.cast(x, to)) } else { None }
            }
            "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => {
                let shape = self.definite_shape(&ty?)?;
                let t = self.reshape(x, shape);
                one(self.noted_if_unmoved(t, x))
            }
            "Expand" => {
                let shape = self.definite_shape(&ty?)?;
                one(self.expand(x, shape))
            }
            "Transpose" => {
                let perm = permutation(a, self.shape(x)?.len())?;
                let t = self.transpose(x, &perm);
                one(self.noted_if_unmoved(t, x))
            }
            "Concat" => {
                let axis = axis_of(s.op.int_at("axis", s.opset), self.shape(x)?.len())?;
                if s.args.contains(&TermId::NONE) { None } else { one(self.concat(axis, s.args)) }
            }
            "Slice" => one(self.slice_node(s)?),
            "Split" => self.split_node(s),
            "Gather" => one(self.gather_node(s)?),
            "Tile" => {
                let repeats = self.ints(y)?;
                if repeats.iter().all(|r| *r == 1) { one(x) } else { None }
            }
            "Pad" => {
                let pads = a.ints("pads").map(<[i64]>::to_vec).or_else(|| self.ints(y))?;
                if pads.iter().all(|p| *p == 0) { one(x) } else { None }
            }
            _ => self.arithmetic_node(s).map(|t| vec![t]),
        }
    }

    /// A shape as a key, if all its extents are functions of the inputs' and of those of terms.
    pub(super) fn definite_shape(&self, ty: &TensorType) -> Option<Shape> {
        ty.shape.iter().all(|d| self.is_definite(d)).then(|| ty.shape.clone())
    }

    /// Counts a reshape or transpose `t` of `x` that moves nothing.
    fn noted_if_unmoved(&mut self, t: TermId, x: TermId) -> TermId {
        if t == x {
            self.did("reshapes and transposes that move nothing");
        }
        t
    }

    fn arithmetic_node(&mut self, s: &Site<'_, 'g>) -> Option<TermId> {
        let (x, y, ty) = (s.arg(0), s.arg(1), s.ty());
        let a = &s.op.attrs;
        let name = s.op.name.as_str();
        if x == TermId::NONE {
            return None;
        }
        match name {
            "Sum" | "Max" | "Min" | "Mean" if s.args.len() == 1 => Some(x),
            // Before opset 11 a missing bound is the largest finite number.
            "Clip" if s.opset >= 11 && s.args.len() == 1 && a.get("min").is_none() && a.get("max").is_none() => Some(x),
            "Sum" => self.sum_node(s),
            "Add" | "Sub" | "Mul" | "Div" | "Max" | "Min" | "Pow" => self.element_wise(s, name, x, y),
            "Neg" => match self.head(x).clone() {
                Head::Op(k) if k.name == "Neg" => Some(self.term(x).args[0]),
                Head::Zero(..) if self.is_float(x) => {
                    self.granted.insert(Granted::SignOfZero);
                    Some(x)
                }
                _ => self.reassociated(&[(x, -1.0)], &ty),
            },
            "And" | "Or" => {
                for (c, other) in [(x, y), (y, x)] {
                    let neutral = if name == "And" { 1.0 } else { 0.0 };
                    if self.uniform(c) == Some(neutral) && self.same_type(other, &ty) {
                        return Some(other);
                    }
                }
                None
            }
            "Not" => match self.head(x).clone() {
                Head::Op(k) if k.name == "Not" => Some(self.term(x).args[0]),
                _ => None,
            },
            "Where" => {
                let (p, q) = (s.arg(1), s.arg(2));
                let taken = match self.uniform(x) {
                    Some(0.0) => q,
                    Some(_) => p,
                    None if p == q => p,
                    None => return None,
                };
                self.same_type(taken, &ty).then_some(taken)
            }
            "MatMul" => self.matmul_rules(x, y, &ty),
            "Conv" if s.arg(2) == TermId::NONE => self.conv_rules(x, y, ty),
            "Gemm" => {
                let one = |name| s.op.float(name) == 1.0;
                if !one("alpha") || !one("beta") || s.arg(1) == TermId::NONE {
                    return None;
                }
                let flip = |t: &mut Self, v: TermId, name| {
                    if s.op.int(name) == 0 { Some(v) } else { (t.shape(v)?.len() == 2).then(|| t.transpose(v, &[1, 0])) }
                };
                let (p, q) = (flip(self, x, "transA")?, flip(self, y, "transB")?);
                self.gemm_rules(p, q, s.arg(2), &ty)
            }
            "ReduceSum" => {
                let rank = self.shape(x)?.len();
                let listed = a.ints("axes").map(<[i64]>::to_vec).or_else(|| self.ints(y))?;
                let axes: Vec<usize> = listed.iter().map(|a| axis_of(*a, rank)).collect::<Option<_>>()?;
                self.reduce_sum_rules(x, &axes, &ty)
            }
            _ => None,
        }
    }

    fn sum_node(&mut self, s: &Site<'_, 'g>) -> Option<TermId> {
        let ty = s.ty();
        if let [x, y] = s.args {
            return self.element_wise(s, "Add", *x, *y);
        }
        let terms: Vec<(TermId, f64)> = s.args.iter().map(|t| (*t, 1.0)).collect();
        if terms.iter().any(|(t, _)| *t == TermId::NONE) {
            return None;
        }
        if let Some(t) = self.reassociated(&terms, &ty) {
            return Some(t);
        }
        // Zeros are left out where the remaining addend has the sum's type.
        let left: Vec<TermId> = s.args.iter().copied().filter(|t| self.uniform(*t) != Some(0.0)).collect();
        match left[..] {
            [only] if self.same_type(only, &ty) => Some(self.without_zero(only)),
            _ => None,
        }
    }

    /// An operator on pairs of elements: its rules, then constants of equal elements as scalars.
    fn element_wise(&mut self, s: &Site<'_, 'g>, name: &str, x: TermId, y: TermId) -> Option<TermId> {
        let ty = s.ty();
        if y == TermId::NONE || s.args.len() != 2 {
            return None;
        }
        let done = match name {
            "Add" => self.add_rules(x, y, &ty),
            "Sub" => self.sub_rules(x, y, &ty),
            "Mul" => self.mul_rules(x, y, &ty),
            "Div" | "Pow" if self.uniform(y) == Some(1.0) && self.same_type(x, &ty) => {
                self.did("x * 1");
                Some(x)
            }
            "Div" => match self.uniform(y).filter(|c| *c != 0.0 && self.options.reassociate) {
                Some(c) if self.same_type(x, &ty) => self.reassociated(&[(x, 1.0 / c)], &ty),
                _ => None,
            },
            _ => None,
        };
        if done.is_some() || name == "Pow" {
            return done;
        }
        // A constant of equal elements that broadcasts becomes a scalar, unless both are constants: then the result is computed.
        let both = [x, y];
        let mut out = both;
        for (i, c) in both.into_iter().enumerate() {
            let other = both[1 - i];
            if self.as_const(c).is_some()
                && self.as_const(other).is_none()
                && self.info(other).known.is_none()
                && self.uniform(c).is_some()
                && self.same_type(other, &ty)
            {
                out[i] = self.as_scalar(c)?;
            }
        }
        if out == both && s.op.name == name {
            return None;
        }
        let ty = ty.map_or(ValueType::default(), ValueType::from);
        let mut args = Args::from_slice(&out);
        let mut name = name.to_string();
        order_operands(&mut name, &mut args);
        Some(self.plain(&name, &args, ty))
    }

    /// `Slice` as ranges of single axes, where all of it is known.
    fn slice_node(&mut self, s: &Site<'_, 'g>) -> Option<TermId> {
        let a = &s.op.attrs;
        let x = s.arg(0);
        let rank = self.shape(x)?.len();
        let list = |t: &mut Self, i: usize, name: &str| match a.ints(name) {
            Some(v) => Some(v.to_vec()),
            None => t.ints(s.arg(i)),
        };
        let (starts, ends) = (list(self, 1, "starts")?, list(self, 2, "ends")?);
        let axes = match s.arg(3) {
            TermId::NONE if a.ints("axes").is_none() => (0..starts.len() as i64).collect(),
            _ => list(self, 3, "axes")?,
        };
        let steps = if s.arg(4) == TermId::NONE { vec![1; starts.len()] } else { self.ints(s.arg(4))? };
        if starts.len() != ends.len() || axes.len() != starts.len() || steps.len() != starts.len() {
            return None;
        }
        let mut ranges = Vec::new();
        for (i, axis) in axes.iter().enumerate() {
            let axis = axis_of(*axis, rank)?;
            let extent = self.shape(x)?.get(axis)?.known();
            let (start, end, step) = (starts[i], ends[i], steps[i]);
            // Such a slice takes all of an axis, however long it is.
            let all = start == 0 && step == 1 && end >= Dim::FAR;
            if extent.is_some() || !all {
                let (start, len) = range(extent?, start, end, step)?;
                ranges.push((axis, start, len, step));
            }
        }
        if ranges.iter().enumerate().any(|(i, r)| ranges[..i].iter().any(|q| q.0 == r.0)) {
            return None;
        }
        ranges.sort_unstable();
        ranges.into_iter().try_fold(x, |t, (axis, start, len, step)| self.slice(t, axis, start, len, step))
    }

    /// `Split` as ranges of an axis.
    fn split_node(&mut self, s: &Site<'_, 'g>) -> Option<Vec<TermId>> {
        let x = s.arg(0);
        let axis = axis_of(s.op.int("axis"), self.shape(x)?.len())?;
        let extent = self.shape(x)?.get(axis)?.known()?;
        let listed = match s.op.attrs.ints("split") {
            Some(v) => Some(v.to_vec()),
            None if s.arg(1) != TermId::NONE => Some(self.ints(s.arg(1))?),
            None => None,
        };
        let sizes = part_sizes(extent, s.results as i64, listed)?;
        let starts = sizes.iter().scan(0, |at, len| Some(std::mem::replace(at, *at + len)));
        starts.zip(&sizes).map(|(start, len)| self.slice(x, axis, start, *len, 1)).collect()
    }

    /// `Gather` of constant places: ranges of the axis.
    fn gather_node(&mut self, s: &Site<'_, 'g>) -> Option<TermId> {
        const MOST: usize = 64;
        let (x, at) = (s.arg(0), s.arg(1));
        let axis = axis_of(s.op.int("axis"), self.shape(x)?.len())?;
        let extent = self.shape(x)?.get(axis)?.known()?;
        let places = self.ints(at)?;
        let inner = self.ty(at)?.rank();
        let constant = self.as_const(x).is_some();
        if inner > 1 || (places.len() > MOST && !constant) || places.is_empty() || places.len() > 1 << 12 {
            return None;
        }
        let places: Vec<i64> = places.into_iter().map(|p| if p < 0 { p + extent } else { p }).collect();
        if places.iter().any(|p| !(0..extent).contains(p)) {
            return None;
        }
        let parts: Option<Vec<TermId>> = places.iter().map(|p| self.slice(x, axis, *p, 1, 1)).collect();
        let joint = self.concat(axis, &parts?);
        if inner == 1 {
            return Some(joint);
        }
        let mut shape = self.shape(joint)?.clone();
        shape.remove(axis);
        Some(self.reshape(joint, shape))
    }
}
