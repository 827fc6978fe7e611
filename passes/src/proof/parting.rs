//! Where two graphs first part.

use super::Parting;
use super::canonical::{Side, commutes};
use super::term::{Head, OpKey, Table, TermId};
use crate::ir::ValueId;
use std::collections::HashSet;

/// Pairs of terms that are looked at.
const MOST: usize = 1 << 18;

/// A pair of terms that differ, with the last values of the graphs that they are.
#[derive(Clone, Copy)]
struct Pair {
    terms: [TermId; 2],
    values: [Option<ValueId>; 2],
    /// Place of the operator in the first graph; a constant's is its reader's.
    place: usize,
}

/// The earliest pair, in the first graph's order, that differs although its operands agree.
pub(super) fn find(t: &Table, sides: [&Side; 2], output: &str, x: TermId, y: TermId) -> Option<Parting> {
    let place = |v: Option<ValueId>| v.map_or(usize::MAX, |v| sides[0].place(v));
    let value = |i: usize| sides[i].graph.outputs().iter().map(|o| o.value).find(|v| sides[i].graph.name(*v) == output);
    let mut open = vec![Pair { terms: [x, y], values: [value(0), value(1)], place: place(value(0)) }];
    let mut seen = HashSet::new();
    let mut best: Option<(usize, Pair, String)> = None;
    while let Some(mut pair) = open.pop() {
        let [x, y] = pair.terms;
        if !seen.insert(pair.terms) || seen.len() > MOST {
            continue;
        }
        if let (Some(v), Some(w)) = (origin(t, x, 0), origin(t, y, 1)) {
            pair.values = [Some(v), Some(w)];
            if t.as_const(x).is_none() || t.as_const(y).is_none() {
                pair.place = place(Some(v));
            }
        }
        match compare(t, sides, x, y) {
            Compared::Here(why) => {
                let at = pair.place;
                if best.as_ref().is_none_or(|(b, ..)| at < *b) {
                    best = Some((at, pair, why));
                }
            }
            Compared::Below(pairs) => open.extend(pairs.into_iter().map(|terms| Pair { terms, ..pair })),
        }
    }
    let (_, pair, why) = best?;
    let describe = |i: usize| {
        let g = sides[i].graph;
        pair.values[i].map_or((String::new(), String::new()), |v| (g.name(v).to_string(), g.site(v.node).to_string()))
    };
    let ((value_a, node_a), (value_b, node_b)) = (describe(0), describe(1));
    Some(Parting { output: output.to_string(), value_a, node_a, value_b, node_b, why })
}

fn origin(t: &Table, x: TermId, side: usize) -> Option<ValueId> {
    if x == TermId::NONE { None } else { t.info(x).origin[side] }
}

enum Compared {
    /// They differ here, for this reason.
    Here(String),
    /// They differ because of these operands.
    Below(Vec<[TermId; 2]>),
}

fn compare(t: &Table, sides: [&Side; 2], x: TermId, y: TermId) -> Compared {
    if x == TermId::NONE || y == TermId::NONE {
        return Compared::Here("an optional operand is there in one graph only".into());
    }
    let (p, q) = (t.term(x), t.term(y));
    if let (Head::Const(c), Head::Const(d)) = (&p.head, &q.head) {
        return Compared::Here(t.constants.difference(*c, *d));
    }
    if !same_kind(&p.head, &q.head) {
        return Compared::Here(format!("{} and {}", what(&p.head), what(&q.head)));
    }
    if p.head != q.head {
        return Compared::Here(difference(&p.head, &q.head));
    }
    if p.args.len() != q.args.len() {
        return Compared::Here(format!("{} has {} operands and {}", what(&p.head), p.args.len(), q.args.len()));
    }
    let (mut sorted_p, mut sorted_q) = (p.args.clone(), q.args.clone());
    sorted_p.sort_unstable();
    sorted_q.sort_unstable();
    if sorted_p == sorted_q {
        return Compared::Here(format!("the operands of {} are the same in another order", what(&p.head)));
    }
    if let Head::Unique(_) = p.head {
        return Compared::Here("values that are drawn anew in each run".into());
    }
    let pairs = if is_unordered(&p.head, p.args.len()) {
        // Operands that both have are left out. The others are paired by name, then by kind, then in order.
        let mut left: Vec<TermId> = p.args.iter().copied().filter(|a| !q.args.contains(a)).collect();
        let mut right: Vec<TermId> = q.args.iter().copied().filter(|a| !p.args.contains(a)).collect();
        let mut pairs = Vec::new();
        for round in 0..2 {
            left.retain(|a| match right.iter().position(|b| alike(t, sides, *a, *b, round == 0)) {
                Some(i) => {
                    pairs.push([*a, right.remove(i)]);
                    false
                }
                None => true,
            });
        }
        pairs.extend(left.into_iter().zip(right).map(|(a, b)| [a, b]));
        pairs
    } else {
        p.args.iter().zip(&q.args).filter(|(a, b)| a != b).map(|(a, b)| [*a, *b]).collect()
    };
    if pairs.is_empty() {
        return Compared::Here(format!("{} reads one value more often in one graph", what(&p.head)));
    }
    Compared::Below(pairs)
}

/// Do two terms have one name, or are they of one kind?
fn alike(t: &Table, sides: [&Side; 2], a: TermId, b: TermId, by_name: bool) -> bool {
    if a == TermId::NONE || b == TermId::NONE {
        return false;
    }
    if by_name {
        let (v, w) = (origin(t, a, 0), origin(t, b, 1));
        return v.zip(w).is_some_and(|(v, w)| sides[0].graph.name(v) == sides[1].graph.name(w));
    }
    what(t.head(a)) == what(t.head(b)) && t.ty(a) == t.ty(b)
}

fn is_unordered(h: &Head, operands: usize) -> bool {
    match h {
        Head::Op(k) => commutes(&k.name, operands),
        Head::Sum(_) => true,
        _ => false,
    }
}

fn same_kind(p: &Head, q: &Head) -> bool {
    match (p, q) {
        (Head::Op(k), Head::Op(l)) => k.name == l.name,
        (Head::Sum(_), Head::Sum(_)) => true,
        _ => std::mem::discriminant(p) == std::mem::discriminant(q),
    }
}

/// What a term is, for people.
fn what(h: &Head) -> String {
    match h {
        Head::Input(name) => format!("the input `{name}`"),
        Head::Const(_) | Head::Extents(..) => "a constant".into(),
        Head::Zero(..) => "zeros".into(),
        Head::Op(k) => k.name.clone(),
        Head::Result(slot) => format!("result {slot} of an operator"),
        Head::Reshape(_) => "Reshape".into(),
        Head::Transpose(_) => "Transpose".into(),
        Head::Slice { .. } => "Slice".into(),
        Head::Concat(_) => "Concat".into(),
        Head::Expand(_) => "Expand".into(),
        Head::Cast(_) => "Cast".into(),
        Head::Sum(_) => "a sum".into(),
        Head::Unique(_) => "a value that cannot be compared".into(),
    }
}

/// How two heads of one kind differ.
fn difference(p: &Head, q: &Head) -> String {
    match (p, q) {
        (Head::Op(k), Head::Op(l)) => operators(k, l),
        (Head::Input(a), Head::Input(b)) => format!("the inputs `{a}` and `{b}`"),
        (Head::Sum(a), Head::Sum(b)) if a.len() == b.len() => "sums with other coefficients".into(),
        (Head::Sum(a), Head::Sum(b)) => format!("sums of {} and {} terms", a.len(), b.len()),
        (Head::Slice { axis, start, len, step }, Head::Slice { axis: a, start: s, len: l, step: p }) => format!(
            "slices of axis {axis} from {start} ({len} elements, step {step}) and of axis {a} from {s} ({l} elements, step {p})"
        ),
        (Head::Reshape(a), Head::Reshape(b)) => format!("reshapes to {a:?} and {b:?}"),
        (Head::Expand(a), Head::Expand(b)) => format!("broadcasts to {a:?} and {b:?}"),
        (Head::Transpose(a), Head::Transpose(b)) => format!("transposes by {a:?} and {b:?}"),
        (Head::Concat(a), Head::Concat(b)) => format!("joined along axis {a} and {b}"),
        (Head::Cast(a), Head::Cast(b)) => format!("conversions to {a} and {b}"),
        (Head::Zero(a, s), Head::Zero(b, r)) => format!("zeros {a}{s:?} and {b}{r:?}"),
        (Head::Result(a), Head::Result(b)) => format!("results {a} and {b} of an operator"),
        _ => format!("{} that differ", what(p)),
    }
}

fn operators(k: &OpKey, l: &OpKey) -> String {
    for (name, a) in &k.attrs {
        match l.attrs.iter().find(|(n, _)| n == name) {
            None => {
                return format!("attribute `{name}` of {} is {} in one graph and left out in the other", k.name, show(a));
            }
            Some((_, b)) if a != b => return format!("attribute `{name}` of {} is {} and {}", k.name, show(a), show(b)),
            _ => {}
        }
    }
    if let Some((name, b)) = l.attrs.iter().find(|(n, _)| !k.attrs.iter().any(|(m, _)| m == n)) {
        return format!("attribute `{name}` of {} is left out in one graph and {} in the other", k.name, show(b));
    }
    if k.version != l.version {
        return format!("{} of operator sets {} and {}", k.name, k.version - 1, l.version - 1);
    }
    format!("{} with {} and {} results", k.name, k.results, l.results)
}

fn show(a: &super::term::AttrKey) -> String {
    use super::term::AttrKey::*;
    match a {
        Int(v) => v.to_string(),
        Float(v) => f32::from_bits(*v).to_string(),
        Str(v) => format!("\"{v}\""),
        Ints(v) => format!("{v:?}"),
        Floats(v) => format!("{:?}", v.iter().map(|v| f32::from_bits(*v)).collect::<Vec<_>>()),
        Const(_) => "one tensor".into(),
        Bytes(_) => "one body".into(),
    }
}
