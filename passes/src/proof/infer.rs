//! Types of terms: our own shape rules on the operands' types, then what the graph knows.

use super::canonical::Side;
use super::term::{Granted, MadeUp, Table, TermId};
use crate::ir::{DType, Dim, NodeId, Op, Shape, TensorType, ValueType};
use crate::ops::eval::places::count;
use crate::ops::eval::{Array, Domain, Poly};
use crate::ops::{self, Class, Infer};

/// How many of the last axes of operands that broadcast do not; `None` where operands do not broadcast.
fn broadcasts(op: &Op, operands: usize) -> Option<usize> {
    match op.name.as_str() {
        "MatMul" | "FusedMatMul" => Some(2),
        "SkipLayerNormalization" => Some(0),
        _ => {
            let class = Class::of(op);
            (operands > 1 && class.is_elementwise() && class != Class::Carry).then_some(0)
        }
    }
}

/// Types of a node's results, and whether its rule refuses operands that are known: what is known of the operator does not hold
/// for it then. Extents that nothing names are symbols of their own.
pub(super) fn types(t: &mut Table, side: &Side, id: NodeId, op: &Op, args: &[TermId]) -> (Vec<ValueType>, bool) {
    let g = side.graph;
    let mut refused = false;
    let operand_types: Vec<Option<TensorType>> = args.iter().map(|a| t.ty(*a)).collect();
    let expanded = if op.is("Expand") { expanded(t, args, &operand_types) } else { None };
    let mut own: Vec<TensorType> = expanded.into_iter().collect();
    if own.is_empty() {
        let extents: Vec<Option<Vec<Dim>>> = args.iter().map(|a| small_extents(t, *a)).collect();
        // The rule of `Slice` assumes that a computed end lies inside the axis.
        let fits = |dims: &&Vec<Dim>| op.name != "Slice" || dims.iter().all(|d| d.known().is_some());
        let array = |i: usize| {
            let dims = extents.get(i)?.as_ref().filter(fits)?;
            let elements = dims.iter().map(Poly::extent).collect::<Option<_>>()?;
            Some(Array { dtype: DType::I64, dims: vec![dims.len() as i64], elements })
        };
        let present = |i: usize| args.get(i).is_some_and(|a| *a != TermId::NONE);
        let cx = Infer { op, types: &operand_types, array: &array, present: &present };
        let known = |i: usize| {
            !present(i) || operand_types[i].as_ref().is_some_and(|ty| ty.dtype.is_float()) || extents[i].is_some()
        };
        let inferred = ops::infer(&cx);
        refused = matches!(inferred, Some(Err(_))) && (0..args.len()).all(known);
        own = inferred.and_then(Result::ok).unwrap_or_default();
    }
    if let Some(fixed) = broadcasts(op, args.len())
        && let Some(ty) = own.first_mut()
    {
        undecided(t, &operand_types, fixed, ty);
    }
    // The same operator on the same operands has the same extents in both graphs.
    let plain = op.attrs.0.is_empty() && side.is_standard(op);
    let axis = |slot: usize, axis: usize| MadeUp::Axis { op: op.name.clone(), args: args.into(), slot, axis };
    let mut out = Vec::with_capacity(g.node(id).results().len());
    let mut declared = false;
    for (slot, v) in g.results(id).enumerate() {
        let fact = &g.value(v).ty;
        let own = own.get(slot);
        let dtype = own.map(|ty| ty.dtype).or(fact.dtype);
        let shape = match (own.map(|ty| &ty.shape), &fact.shape) {
            (Some(own), Some(fact)) if own.len() == fact.len() && broadcasts(op, args.len()).is_none() => {
                let open = |d: &Dim| !t.is_definite(d);
                let taken = own.iter().zip(fact).map(|(o, f)| if open(o) && is_solid(t, f) { f } else { o });
                let shape: Shape = taken.cloned().collect();
                declared |= shape != *own;
                Some(shape)
            }
            (Some(own), _) => Some(own.clone()),
            (None, Some(fact)) => {
                declared = true;
                let made_up = |t: &mut Table, i| if plain { t.made_up(axis(slot, i)) } else { t.fresh_dim() };
                let extent = |(i, d): (usize, &Dim)| if is_solid(t, d) { d.clone() } else { made_up(t, i) };
                Some(fact.iter().enumerate().map(extent).collect::<Shape>())
            }
            (None, None) => None,
        };
        out.push(ValueType { dtype, shape });
    }
    if declared && g.results(id).any(|v| g.value(v).ty.shape.is_some()) {
        t.granted.insert(Granted::Declared(op.full_name()));
    }
    (out, refused)
}

fn small_extents(t: &mut Table, a: TermId) -> Option<Vec<Dim>> {
    const MOST: usize = 4096;
    let small = a != TermId::NONE
        && !t.is_float(a)
        && t.shape(a)
            .is_some_and(|s| count(&s.iter().map(|d| d.known().unwrap_or(MOST as i64)).collect::<Vec<_>>(), MOST).is_some());
    if small { t.dims(a) } else { None }
}

/// Is the extent known, or computed from the inputs' extents alone? An engine writes a quotient as text: then every name in the text
/// must be an input's.
fn is_solid(t: &Table, d: &Dim) -> bool {
    let ours = |s: &str| {
        t.symbols.contains(s)
            || s.split(|c: char| !c.is_alphanumeric() && !"_.:".contains(c))
                .all(|word| word.is_empty() || word.chars().all(|c| c.is_ascii_digit()) || t.symbols.contains(word))
                && !s.starts_with('?')
    };
    d.symbols().all(ours)
}

/// Makes the extent unknown on axes where two operands have different symbolic extents: they may broadcast either way.
fn undecided(t: &mut Table, operands: &[Option<TensorType>], fixed: usize, ty: &mut TensorType) {
    let rank = ty.shape.len();
    for from_end in fixed + 1..=rank {
        let mut seen: Vec<Dim> = Vec::new();
        let mut known = false;
        for o in operands.iter().flatten() {
            let Some(d) = o.shape.len().checked_sub(from_end).map(|i| &o.shape[i]) else { continue };
            match d.known() {
                Some(1) => {}
                Some(_) => known = true,
                None => seen.push(d.clone()),
            }
        }
        seen.sort_unstable();
        seen.dedup();
        if seen.len() > 1 && !known {
            ty.shape[rank - from_end] = t.made_up(MadeUp::Broadcast(seen));
        }
    }
}

/// The type of `Expand` to a shape that is computed from extents. Where one of two extents is a number other than 1, the other is
/// that number or 1.
fn expanded(t: &mut Table, args: &[TermId], operands: &[Option<TensorType>]) -> Option<TensorType> {
    let (x, dims) = (operands.first()?.as_ref()?, t.dims(*args.get(1)?)?);
    if dims.iter().all(|d| d.known().is_some()) {
        return None;
    }
    let rank = x.rank().max(dims.len());
    let at = |s: &[Dim], i: usize| (i + s.len()).checked_sub(rank).map_or(Dim::from(1), |i| s[i].clone());
    let extent = |i: usize| match (at(&x.shape, i), at(&dims, i)) {
        (a, b) if a == b || b.is_one() => Some(a),
        (a, b) if a.is_one() => Some(b),
        (a, b) if a.known().is_some() != b.known().is_some() => Some(if a.known().is_some() { a } else { b }),
        _ => None,
    };
    Some(TensorType::new(x.dtype, (0..rank).map(extent).collect::<Option<Shape>>()?))
}
