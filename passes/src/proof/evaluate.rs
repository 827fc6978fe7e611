//! Operators on known elements.

use super::known::{Elements, Known, broadcast_places, common, count, in_range, places, rounded, softmax, strides};
use super::term::{Table, TermId};
use crate::ir::{Attrs, DType, Dim};

/// The known result of an operator of the standard domain, if its operands are known well enough and its result is one that
/// every engine must agree on. Movement of elements is not here: see `movement`.
pub(super) fn evaluate(t: &mut Table, name: &str, attrs: &Attrs, args: &[TermId], opset: i64) -> Option<Known> {
    match name {
        "Shape" => shape(t, attrs, *args.first()?),
        "Size" => {
            let n = t.ty(*args.first()?)?.elements();
            Some(Known::extents(DType::I64, vec![], vec![n]))
        }
        "ConstantOfShape" => {
            let dims = t.ints(*args.first()?)?;
            let n = count(&dims)?;
            match attrs.tensor("value") {
                None => Known::floats(DType::F32, dims, vec![0.0; n], 0.0),
                Some(v) if v.dtype().is_float() => {
                    let v = *v.to_f64().ok()?.first()?;
                    Known::floats(attrs.tensor("value")?.dtype(), dims, vec![v; n], 0.0).filter(|_| v.is_finite())
                }
                Some(v) => Some(Known::ints(v.dtype(), dims, vec![*v.to_i64().ok()?.first()?; n])),
            }
        }
        "Cast" => cast(&*t.known(*args.first()?)?, DType::from_onnx(attrs.int("to", 0) as i32)?),
        "Neg" | "Abs" | "Sqrt" | "Reciprocal" | "Floor" | "Ceil" | "Sign" | "Not" | "Sigmoid" | "Tanh" | "Relu" => {
            unary(name, &*t.known(*args.first()?)?)
        }
        "Add" | "Sub" | "Mul" | "Div" | "Min" | "Max" | "Mod" | "Equal" | "Less" | "LessOrEqual" | "And" | "Or" | "Xor" => {
            let [a, b] = args else { return None };
            if name == "Mod" && attrs.int("fmod", 0) != 0 {
                return None;
            }
            let (a, b) = (t.known(*a)?, t.known(*b)?);
            binary(name, &a, &b)
        }
        "Where" => {
            let [c, x, y] = args else { return None };
            let (c, x, y) = (t.known(*c)?, t.known(*x)?, t.known(*y)?);
            select(&c, &x, &y)
        }
        "Range" => {
            let [s, e, d] = args else { return None };
            let (s, e, d) = (t.known(*s)?, t.known(*e)?, t.known(*d)?);
            let (start, end, step) = (s.single()?, e.single()?, d.single()?);
            if step == 0 {
                return None;
            }
            let span = end.checked_sub(start)?;
            let n = if (span > 0) == (step > 0) { span.unsigned_abs().div_ceil(step.unsigned_abs()) } else { 0 };
            let n = count(&[i64::try_from(n).ok()?])?;
            Some(Known::ints(s.dtype, vec![n as i64], (0..n as i64).map(|i| start + i * step).collect()))
        }
        "ReduceProd" | "ReduceSum" | "ReduceMax" | "ReduceMin" => reduce(t, name, attrs, args),
        "Softmax" => {
            let x = t.known(*args.first()?)?;
            let rank = x.dims.len() as i64;
            let axis = attrs.int("axis", if opset < 13 { 1 } else { -1 });
            let last = (if axis < 0 { axis + rank } else { axis }) == rank - 1;
            if last && x.dtype.is_float() { softmax(&x, *x.dims.last()? as usize) } else { None }
        }
        _ => None,
    }
}

fn shape(t: &mut Table, attrs: &Attrs, x: TermId) -> Option<Known> {
    let dims = t.shape(x)?.clone();
    let n = dims.len() as i64;
    let clamp = |v: i64| (if v < 0 { v + n } else { v }).clamp(0, n) as usize;
    let (start, end) = (clamp(attrs.int("start", 0)), clamp(attrs.int("end", n)));
    let dims = dims.get(start..end.max(start))?.to_vec();
    Some(Known::extents(DType::I64, vec![dims.len() as i64], dims))
}

pub(super) fn cast(x: &Known, to: DType) -> Option<Known> {
    let dims = x.dims.clone();
    match &x.elements {
        Elements::Float(v) if to.is_float() => {
            // From f64 to a half directly and by way of f32 may round differently.
            if x.dtype == DType::F64 && to != DType::F32 && rounded(to, v.clone())? != *v && to != DType::F64 {
                return None;
            }
            Known::floats(to, dims, rounded(to, v.clone())?, x.bound)
        }
        Elements::Float(v) if to == DType::Bool => {
            let known = v.iter().map(|v| (!v.is_nan()).then_some((*v != 0.0) as i64)).collect::<Option<_>>()?;
            Some(Known::ints(to, dims, known))
        }
        Elements::Float(v) => {
            let whole = |v: &f64| (v.abs() < 9e15).then(|| in_range(to, v.trunc() as i64)).flatten();
            Some(Known::ints(to, dims, v.iter().map(whole).collect::<Option<_>>()?))
        }
        Elements::Int(v) if to.is_float() => {
            // Integers above 2^53 are not read as f64 exactly.
            if v.iter().any(|v| v.abs() > 1 << 53) {
                return None;
            }
            Known::floats(to, dims, rounded(to, v.iter().map(|v| *v as f64).collect())?, 0.0)
        }
        Elements::Int(v) if to == DType::Bool => Some(Known::ints(to, dims, v.iter().map(|v| (*v != 0) as i64).collect())),
        Elements::Int(v) => Some(Known::ints(to, dims, v.iter().map(|v| in_range(to, *v)).collect::<Option<_>>()?)),
        Elements::Extents(v) => matches!(to, DType::I64).then(|| Known::extents(to, dims, v.clone())),
    }
}

fn unary(name: &str, x: &Known) -> Option<Known> {
    let dims = x.dims.clone();
    match &x.elements {
        Elements::Float(v) => {
            let exact: fn(f64) -> f64 = match name {
                "Neg" => |v| -v,
                "Abs" => f64::abs,
                "Sqrt" => f64::sqrt,
                "Reciprocal" => |v| 1.0 / v,
                "Floor" => f64::floor,
                "Ceil" => f64::ceil,
                // Not correctly rounded, but bounded.
                "Sigmoid" | "Tanh" => return Known::floats(x.dtype, dims, vec![f64::NAN; v.len()], 1.001),
                _ => return None,
            };
            let unknown = v.iter().any(|v| v.is_nan());
            let stays_bounded = matches!(name, "Neg" | "Abs");
            let out: Vec<f64> = v.iter().map(|v| exact(*v)).collect();
            // A NaN that was not an unknown element before is none of ours.
            let new_nan = out.iter().zip(v).any(|(o, v)| o.is_nan() && !v.is_nan());
            if new_nan || (unknown && !stays_bounded) {
                return None;
            }
            Known::floats(x.dtype, dims, rounded(x.dtype, out)?, x.bound)
        }
        Elements::Int(v) => {
            let f: fn(i64) -> Option<i64> = match name {
                "Neg" => i64::checked_neg,
                "Abs" => i64::checked_abs,
                "Sign" => |v| Some(v.signum()),
                "Not" => |v| Some(1 - v),
                "Relu" => |v| Some(v.max(0)),
                _ => return None,
            };
            let out = v.iter().map(|v| f(*v).and_then(|v| in_range(x.dtype, v))).collect::<Option<_>>()?;
            Some(Known::ints(x.dtype, dims, out))
        }
        Elements::Extents(_) => None,
    }
}

fn binary(name: &str, a: &Known, b: &Known) -> Option<Known> {
    let dims = common(&a.dims, &b.dims)?;
    count(&dims)?;
    let (p, q) = (broadcast_places(&a.dims, &dims)?, broadcast_places(&b.dims, &dims)?);
    let result = if matches!(name, "Equal" | "Less" | "LessOrEqual") { DType::Bool } else { a.dtype };
    match (&a.elements, &b.elements) {
        (Elements::Float(x), Elements::Float(y)) if a.dtype == b.dtype => {
            let pairs = p.iter().zip(&q).map(|(i, j)| (x[*i], y[*j]));
            float_binary(name, result, dims, pairs, a, b)
        }
        (Elements::Int(x), Elements::Int(y)) if a.dtype == b.dtype => {
            let f = |(i, j): (&usize, &usize)| int_binary(name, x[*i], y[*j]).and_then(|v| in_range(result, v));
            Some(Known::ints(result, dims, p.iter().zip(&q).map(f).collect::<Option<_>>()?))
        }
        _ => {
            let (x, y) = (extents(a)?, extents(b)?);
            let pairs = p.iter().zip(&q).map(|(i, j)| (&x[*i], &y[*j]));
            if result == DType::Bool {
                let equal =
                    |(x, y): (&Dim, &Dim)| if name == "Equal" { decided_equal(x, y).map(|v| v as i64) } else { None };
                return Some(Known::ints(result, dims, pairs.map(equal).collect::<Option<_>>()?));
            }
            Some(Known::extents(DType::I64, dims, pairs.map(|(x, y)| extent_binary(name, x, y)).collect::<Option<_>>()?))
        }
    }
}

/// Elements as extents; 64-bit integers only, which do not wrap.
fn extents(k: &Known) -> Option<Vec<Dim>> {
    match &k.elements {
        Elements::Extents(v) => Some(v.clone()),
        Elements::Int(v) if k.dtype == DType::I64 => Some(v.iter().map(|v| Dim::from(*v)).collect()),
        _ => None,
    }
}

/// Are two extents equal whatever the inputs' extents (at least 1) are, or unequal whatever they are?
fn decided_equal(x: &Dim, y: &Dim) -> Option<bool> {
    let d = x - y;
    if d.known() == Some(0) {
        return Some(true);
    }
    let mut signs = d.terms().map(|(_, c)| c.signum());
    let first = signs.next()?;
    // Every symbol is at least 1, so that terms of one sign cannot add up to zero.
    signs.all(|s| s == first).then_some(false)
}

fn extent_binary(name: &str, x: &Dim, y: &Dim) -> Option<Dim> {
    Some(match name {
        "Add" => x + y,
        "Sub" => x - y,
        "Mul" => x * y,
        "Div" => x.div_exact(y)?,
        _ if x == y && matches!(name, "Min" | "Max") => x.clone(),
        _ => return None,
    })
}

fn int_binary(name: &str, x: i64, y: i64) -> Option<i64> {
    Some(match name {
        "Add" => x.checked_add(y)?,
        "Sub" => x.checked_sub(y)?,
        "Mul" => x.checked_mul(y)?,
        "Div" => x.checked_div(y)?,
        // The sign is the divisor's.
        "Mod" => x.checked_rem_euclid(y).filter(|_| y > 0)?,
        "Min" => x.min(y),
        "Max" => x.max(y),
        "Equal" => (x == y) as i64,
        "Less" => (x < y) as i64,
        "LessOrEqual" => (x <= y) as i64,
        "And" => x & y,
        "Or" => x | y,
        "Xor" => x ^ y,
        _ => return None,
    })
}

fn float_binary(
    name: &str,
    result: DType,
    dims: Vec<i64>,
    pairs: impl Iterator<Item = (f64, f64)>,
    a: &Known,
    b: &Known,
) -> Option<Known> {
    let largest = |k: &Known| match &k.elements {
        Elements::Float(v) => v.iter().filter(|v| !v.is_nan()).fold(k.bound, |m, v| m.max(v.abs())),
        _ => 0.0,
    };
    if result == DType::Bool {
        let compared = pairs.map(|(x, y)| {
            let holds = match name {
                "Equal" => x == y,
                "Less" => x < y,
                _ => x <= y,
            };
            (!x.is_nan() && !y.is_nan()).then_some(holds as i64)
        });
        return Some(Known::ints(result, dims, compared.collect::<Option<_>>()?));
    }
    let mut unknown = false;
    let mut out = Vec::new();
    for (x, y) in pairs {
        let v = match name {
            "Mul" if x == 0.0 || y == 0.0 => {
                if x.is_nan() || y.is_nan() {
                    0.0
                } else {
                    x * y
                }
            }
            _ if x.is_nan() || y.is_nan() => f64::NAN,
            "Add" => x + y,
            "Sub" => x - y,
            "Mul" => x * y,
            "Div" => x / y,
            // Of two zeros of different sign either may come out.
            "Min" | "Max" if x == y && x.is_sign_negative() != y.is_sign_negative() => return None,
            "Min" => x.min(y),
            "Max" => x.max(y),
            _ => return None,
        };
        let open = x.is_nan() || y.is_nan();
        if v.is_infinite() || (v.is_nan() && !open) {
            return None;
        }
        unknown |= v.is_nan();
        out.push(v);
    }
    let bound = match name {
        _ if !unknown => 0.0,
        "Add" | "Sub" => largest(a) + largest(b),
        "Mul" => largest(a) * largest(b),
        _ => return None,
    };
    Known::floats(result, dims, rounded(result, out)?, bound * 1.001)
}

fn select(c: &Known, x: &Known, y: &Known) -> Option<Known> {
    let dims = common(&common(&c.dims, &x.dims)?, &y.dims)?;
    count(&dims)?;
    let (c, x, y) = (c.broadcast(&dims)?, x.broadcast(&dims)?, y.broadcast(&dims)?);
    let Elements::Int(c) = &c.elements else { return None };
    if x.dtype != y.dtype {
        return None;
    }
    match (&x.elements, &y.elements) {
        (Elements::Float(p), Elements::Float(q)) => {
            let out = c.iter().enumerate().map(|(i, c)| if *c != 0 { p[i] } else { q[i] }).collect();
            Known::floats(x.dtype, dims, out, x.bound.max(y.bound))
        }
        (Elements::Int(p), Elements::Int(q)) => {
            let out = c.iter().enumerate().map(|(i, c)| if *c != 0 { p[i] } else { q[i] }).collect();
            Some(Known::ints(x.dtype, dims, out))
        }
        _ => {
            let (p, q) = (extents(&x)?, extents(&y)?);
            let out = c.iter().enumerate().map(|(i, c)| if *c != 0 { p[i].clone() } else { q[i].clone() }).collect();
            Some(Known::extents(DType::I64, dims, out))
        }
    }
}

/// Reductions of integers.
fn reduce(t: &mut Table, name: &str, attrs: &Attrs, args: &[TermId]) -> Option<Known> {
    let x = t.known(*args.first()?)?;
    let rank = x.dims.len() as i64;
    let listed = match (attrs.ints("axes"), args.get(1)) {
        (Some(list), _) => Some(list.to_vec()),
        (None, Some(a)) if *a != TermId::NONE => Some(t.ints(*a)?),
        _ => None,
    };
    let axes: Vec<i64> = match listed {
        Some(list) if !list.is_empty() => list.into_iter().map(|a| if a < 0 { a + rank } else { a }).collect(),
        _ if attrs.int("noop_with_empty_axes", 0) != 0 => return None,
        _ => (0..rank).collect(),
    };
    let all = (0..rank).all(|i| axes.contains(&i));
    if !all || axes.iter().any(|a| !(0..rank).contains(a)) || x.len() == 0 || x.len() > 1 << 16 {
        return None;
    }
    let dims = if attrs.int("keepdims", 1) != 0 { vec![1; rank as usize] } else { Vec::new() };
    match &x.elements {
        Elements::Int(v) => {
            let one = v.iter().copied().map(Some).reduce(|a, b| {
                let (a, b) = (a?, b?);
                match name {
                    "ReduceProd" => a.checked_mul(b),
                    "ReduceSum" => a.checked_add(b),
                    "ReduceMax" => Some(a.max(b)),
                    _ => Some(a.min(b)),
                }
            })??;
            Some(Known::ints(x.dtype, dims, vec![in_range(x.dtype, one)?]))
        }
        Elements::Extents(v) if name == "ReduceProd" => {
            Some(Known::extents(x.dtype, dims, vec![v.iter().fold(Dim::from(1), |p, d| &p * d)]))
        }
        Elements::Extents(v) if name == "ReduceSum" => {
            Some(Known::extents(x.dtype, dims, vec![v.iter().fold(Dim::from(0), |p, d| &p + d)]))
        }
        _ => None,
    }
}

/// Dimensions under permuted axes, and the place that each element comes from.
pub(super) fn permuted_places(dims: &[i64], perm: &[usize]) -> Option<(Vec<i64>, Vec<usize>)> {
    let all = strides(dims);
    let to: Vec<i64> = perm.iter().map(|p| dims.get(*p).copied()).collect::<Option<_>>()?;
    let steps: Vec<usize> = perm.iter().map(|p| all[*p]).collect();
    let from = places(&to, &steps, 0)?;
    Some((to, from))
}

/// Dimensions of `len` elements of an axis from `start` on, with a step, and the place that each element comes from.
pub(super) fn sliced_places(dims: &[i64], axis: usize, start: i64, len: i64, step: i64) -> Option<(Vec<i64>, Vec<usize>)> {
    let mut to = dims.to_vec();
    *to.get_mut(axis)? = len;
    let chunk = count(&to[axis + 1..])?;
    let mut from = Vec::with_capacity(count(&to)?);
    for o in 0..count(&to[..axis])? as i64 {
        for i in 0..len {
            let at = usize::try_from(o * dims[axis] + start + i * step).ok()? * chunk;
            from.extend(at..at + chunk);
        }
    }
    Some((to, from))
}

/// Joined along an axis.
pub(super) fn joined(parts: &[std::rc::Rc<Known>], axis: usize) -> Option<Known> {
    let first = parts.first()?;
    let mut dims = first.dims.clone();
    if parts.iter().any(|p| p.dtype != first.dtype || p.dims.len() != dims.len()) || axis >= dims.len() {
        return None;
    }
    dims[axis] = parts.iter().map(|p| p.dims[axis]).sum();
    let outer = count(&dims[..axis])?;
    count(&dims)?;
    let chunk = |p: &Known| p.len() / outer.max(1);
    fn join<T: Clone>(parts: &[(&[T], usize)], outer: usize) -> Option<Vec<T>> {
        let mut out = Vec::new();
        for o in 0..outer {
            for (v, chunk) in parts {
                out.extend_from_slice(v.get(o * chunk..(o + 1) * chunk)?);
            }
        }
        Some(out)
    }
    if parts.iter().all(|p| matches!(p.elements, Elements::Float(_))) {
        let all: Vec<(&[f64], usize)> = parts
            .iter()
            .filter_map(|p| match &p.elements {
                Elements::Float(v) => Some((v.as_slice(), chunk(p))),
                _ => None,
            })
            .collect();
        let bound = parts.iter().fold(0.0, |m: f64, p| m.max(p.bound));
        return Known::floats(first.dtype, dims, join(&all, outer)?, bound);
    }
    if parts.iter().all(|p| matches!(p.elements, Elements::Int(_))) {
        let all: Vec<(&[i64], usize)> = parts
            .iter()
            .filter_map(|p| match &p.elements {
                Elements::Int(v) => Some((v.as_slice(), chunk(p))),
                _ => None,
            })
            .collect();
        return Some(Known::ints(first.dtype, dims, join(&all, outer)?));
    }
    let owned: Vec<(Vec<Dim>, usize)> = parts.iter().map(|p| Some((extents(p)?, chunk(p)))).collect::<Option<_>>()?;
    let all: Vec<(&[Dim], usize)> = owned.iter().map(|(v, c)| (v.as_slice(), *c)).collect();
    Some(Known::extents(first.dtype, dims, join(&all, outer)?))
}
