//! Which versions of an operator mean the same for a node.
//!
//! Most of it follows from the schemas: the node's attributes, operands, results and types must be known to both versions, and an
//! attribute that it leaves out must have the same default. `CHANGES` and the short lists below have what schemas do not tell.

use super::{Schema, Value, at, newest_with, versions};
use crate::ir::{Attr, DType, Graph, NodeId, Op, ValueType};
use std::borrow::Cow;

/// A node as it is used.
pub struct Use<'a> {
    /// Its operator.
    pub op: &'a Op,
    /// Types of its operands; `None` where one is left out.
    pub operands: Vec<Option<ValueType>>,
    /// Types of its results.
    pub results: Vec<ValueType>,
}

impl<'a> Use<'a> {
    /// How a node of a graph is used; `None` for inputs and initializers.
    pub fn of(g: &'a Graph, id: NodeId) -> Option<Use<'a>> {
        let ty = |v| g.value(v).ty.clone();
        let mut operands: Vec<_> = g.operands(id).iter().map(|v| v.map(ty)).collect();
        while operands.last().is_some_and(Option::is_none) {
            operands.pop();
        }
        Some(Use { op: g.op(id)?, operands, results: g.results(id).map(ty).collect() })
    }

    /// An operator whose operands and results nothing is known of, in these numbers.
    pub fn untyped(op: &'a Op, operands: usize, results: usize) -> Use<'a> {
        Use { op, operands: vec![Some(ValueType::default()); operands], results: vec![ValueType::default(); results] }
    }

    fn rank(&self) -> Option<i64> {
        let first = [self.operands.first().and_then(Option::as_ref), self.results.first()];
        first.into_iter().flatten().find_map(|t| Some(t.shape.as_ref()?.len() as i64))
    }

    fn types(&self) -> impl Iterator<Item = DType> {
        self.operands.iter().flatten().chain(&self.results).filter_map(|t| t.dtype)
    }

    /// What is wrong with the node in an operator set; `None` if nothing is, or the operator is not known at all.
    pub fn unfit(&self, opset: i64) -> Option<String> {
        let op = self.op;
        let oldest = versions(&op.domain, &op.name).first()?;
        let Some(schema) = at(&op.domain, &op.name, opset) else {
            return Some(format!("exists from opset {}", oldest.since));
        };
        if schema.deprecated() {
            return Some(format!("is gone since opset {}", schema.since));
        }
        let version = schema.since;
        let counts = schema.miscounted(self.operands.len(), |i| self.operands[i].is_some(), self.results.len());
        let stated = schema.misattributed(op).or(counts);
        stated.or_else(|| self.refused_type(schema).map(|t| format!("does not take {t} in version {version}")))
    }

    /// An element type of the node that a version does not take.
    fn refused_type(&self, schema: &Schema) -> Option<DType> {
        let operands = self.operands.iter().enumerate().filter_map(|(i, t)| Some((schema.operand(i)?, t.as_ref()?)));
        // Some later results are statistics, which runtimes give in the type that they compute in.
        let results = self.results.iter().enumerate().take(1).filter_map(|(i, t)| Some((schema.result(i)?, t)));
        operands.chain(results).find_map(|(f, t)| t.dtype.filter(|t| !schema.takes(f, *t)))
    }

    /// Does the node, as it stands, say the same in two operator sets?
    pub fn same_meaning(&self, from: i64, to: i64) -> bool {
        let op = self.op;
        let (a, b) = match (at(&op.domain, &op.name, from), at(&op.domain, &op.name, to)) {
            (Some(a), Some(b)) => (a, b),
            // A pass built the node for a later operator set; a file's is taken for its operator's first version.
            (None, Some(b)) => match versions(&op.domain, &op.name).first().filter(|_| op.source.is_some()) {
                Some(first) => (first, b),
                None => return true,
            },
            _ => return versions(&op.domain, &op.name).is_empty(),
        };
        if a.since == b.since {
            return true;
        }
        let speaks =
            |name: &str, v: &Attr| a.attribute(name).is_some() && b.attribute(name).is_none() && !says_nothing(op, name, v);
        let other_default = |name: &str, d: Value| {
            op.attrs.get(name).is_none()
                && b.attribute(name).is_some_and(|b| b.default != Some(d) && !is_respelled(&op.name, name, d, b.default))
        };
        let lacks = |name: &str| op.attrs.get(name).is_none() && !a.attribute(name).is_some_and(|a| a.required);
        let needs = |s: &Schema, i: usize| s.operands.get(i).is_some_and(|f| !f.optional);
        let changed = b.deprecated()
            || op.attrs.0.iter().any(|(name, v)| speaks(name, v))
            || a.attributes.iter().any(|attr| attr.default.is_some_and(|d| other_default(attr.name, d)))
            || b.attributes.iter().any(|attr| attr.required && lacks(attr.name))
            || self.operands.len() > self.operands.iter().enumerate().filter(|(i, _)| b.operand(*i).is_some()).count()
            || (self.operands.len()..b.operands.len()).any(|i| needs(b, i) && !needs(a, i))
            || self.results.len() > self.results.iter().enumerate().filter(|(i, _)| b.result(*i).is_some()).count()
            || self.refused_type(b).is_some_and(|_| self.refused_type(a).is_none());
        !changed && self.last_change(from.min(to), from.max(to), from).is_none()
    }

    /// The last operator set after `after`, up to `until`, that changed the meaning in a way that schemas do not tell. The node
    /// is written for operator set `written`.
    pub fn last_change(&self, after: i64, until: i64, written: i64) -> Option<i64> {
        let hit = |c: &&Change| c.op == self.op.name && after < c.since && c.since <= until && (c.touches)(self, written);
        if self.op.domain.is_empty() { CHANGES.iter().filter(hit).map(|c| c.since).max() } else { None }
    }

    /// The least operator set, from `least` on, in which the node means what it means in `from`.
    pub fn lowest(&self, from: i64, least: i64) -> i64 {
        let mut reached = from;
        for s in versions(&self.op.domain, &self.op.name).iter().rev().filter(|s| s.since <= from) {
            if !self.same_meaning(from, s.since) {
                break;
            }
            reached = s.since;
            if reached <= least {
                return least;
            }
        }
        if versions(&self.op.domain, &self.op.name).is_empty() { least } else { reached }
    }
}

/// An operator set that changed what an operator does in a way that its schema does not tell.
struct Change {
    op: &'static str,
    since: i64,
    /// Is this node among those that are concerned, as an operator set has it?
    touches: fn(&Use, i64) -> bool,
}

const fn change(op: &'static str, since: i64, touches: fn(&Use, i64) -> bool) -> Change {
    Change { op, since, touches }
}

/// The changes of meaning that onnx.defs does not show. All others follow from the schemas.
const CHANGES: &[Change] = &[
    // The last window of a pooling counts elements beyond the padding no longer.
    change("AveragePool", 19, |u, _| u.op.int("ceil_mode") == 1 && u.op.int("count_include_pad") == 1),
    // The causal mask counts from the end of the keys.
    change("Attention", 24, |u, _| u.op.int("is_causal") == 1),
    // Results after the first were statistics of the batch, then became running ones.
    change("BatchNormalization", 14, |u, _| u.results.len() > 1),
    // The axis was an attribute, 1 by default; the operand is -2 by default.
    change("DFT", 20, |_, _| true),
    // Images of more than two axes.
    change("GridSample", 20, |u, _| u.rank().is_some_and(|r| r > 4)),
    // Scale and bias of each group, then of each channel.
    change("GroupNormalization", 21, |_, _| true),
    // The axes from this one on were taken together.
    change("Hardmax", 13, not_last_axis),
    change("LogSoftmax", 13, not_last_axis),
    change("Softmax", 13, not_last_axis),
    // The quotient of floats was rounded to zero only.
    change("Mod", 28, |u, _| u.op.int("fmod") == 0 && u.types().any(DType::is_float)),
    // Modes that came later, or went.
    change("Pad", 19, |u, _| u.op.str("mode") == "wrap"),
    change("Resize", 19, |u, _| u.op.str(PLACES) == "half_pixel_symmetric"),
    change("Resize", 13, |u, _| u.op.str(PLACES) == "tf_half_pixel_for_nn"),
    // The second operand was the scales; elements were taken from the left.
    change("Resize", 11, |_, _| true),
    // Boxes were shifted by half a pixel, without an attribute that says so.
    change("RoiAlign", 16, |_, _| true),
    // The first operand was the lengths.
    change("Scan", 9, |_, _| true),
    // The number of parts is told by an operand or an attribute.
    change("Split", 18, |u, _| u.operands.len() < 2 && ["num_outputs", "split"].iter().all(|a| u.op.attrs.get(a).is_none())),
];

const PLACES: &str = "coordinate_transformation_mode";

fn not_last_axis(u: &Use, opset: i64) -> bool {
    match attribute(u.op, "axis", opset).as_deref() {
        // Before opset 11 no axis was counted from the end.
        Some(Attr::Int(-1)) => opset < 11,
        Some(Attr::Int(axis)) => u.rank().is_none_or(|r| *axis != r - 1),
        _ => false,
    }
}

/// Values that have another name from an operator set on: operator, attribute, operator set, old name, new name.
pub const RESPELLED: &[(&str, &str, i64, &str, &str)] =
    &[("GridSample", "mode", 20, "bilinear", "linear"), ("GridSample", "mode", 20, "bicubic", "cubic")];

fn is_respelled(op: &str, attribute: &str, a: Value, b: Option<Value>) -> bool {
    RESPELLED.iter().any(|(o, n, _, old, new)| {
        let (old, new) = (Value::Str(old), Value::Str(new));
        *o == op && *n == attribute && ((a == old && b == Some(new)) || (a == new && b == Some(old)))
    })
}

/// Attributes without a default in the schemas, and the number that each of their elements is where they are left out.
const IMPLIED: &[(&str, i64)] = &[("dilations", 1), ("strides", 1), ("pads", 0), ("output_padding", 0)];

/// Does an attribute, where it is spelled like this, say what leaving it out says in the newest operator set that has it?
pub fn says_nothing(op: &Op, name: &str, a: &Attr) -> bool {
    let Some(known) = newest_with(&op.domain, &op.name, name) else { return false };
    match (known.default, a) {
        (Some(d), a) => d.is(a) || (name == "auto_pad" && matches!(a, Attr::Str(s) if s.is_empty())),
        (None, Attr::Ints(v)) if !known.required => {
            IMPLIED.iter().any(|(n, each)| *n == name && v.iter().all(|v| v == each))
        }
        _ => false,
    }
}

/// An attribute as an operator set reads it: as it is given, or the default of that operator set.
pub fn attribute<'a>(op: &'a Op, name: &str, opset: i64) -> Option<Cow<'a, Attr>> {
    let value = match op.attrs.get(name) {
        Some(given) => Cow::Borrowed(given),
        None => {
            let known = match at(&op.domain, &op.name, opset).and_then(|s| s.attribute(name)) {
                Some(known) => known,
                // Where an attribute came later, its default is what was done before.
                None => newest_with(&op.domain, &op.name, name)?,
            };
            Cow::Owned(known.default?.attr()?)
        }
    };
    let Attr::Str(s) = value.as_ref() else { return Some(value) };
    let old =
        |(o, n, since, old, _): &&(&str, &str, i64, &str, &str)| *o == op.name && *n == name && opset < *since && s == old;
    match RESPELLED.iter().find(old) {
        Some((.., new)) => Some(Cow::Owned((*new).into())),
        None => Some(value),
    }
}

/// The attributes by which an operator differs from one without any in the newest operator set, in the order of their names:
/// two spellings of one meaning are the same here.
pub fn spoken(op: &Op, opset: i64) -> Vec<(&str, Cow<'_, Attr>)> {
    let schema = at(&op.domain, &op.name, opset);
    let by_default = schema.into_iter().flat_map(|s| s.attributes).filter(|a| a.default.is_some()).map(|a| a.name);
    let mut names: Vec<&str> = op.attrs.0.keys().map(String::as_str).chain(by_default).collect();
    names.sort_unstable();
    names.dedup();
    let value = |name: &str| attribute(op, name, opset).filter(|a| !says_nothing(op, name, a));
    names.into_iter().filter_map(|name| Some((name, value(name)?))).collect()
}
