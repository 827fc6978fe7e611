//! What ONNX says of its operators: operands, types, attributes with their defaults, in every version.
//!
//! `table.rs` is written by `passes/schema/generate.py` from `onnx.defs`; [`meaning`] has what the schemas do not tell. An
//! operator's version is the latest one at or below the graph's operator set.

pub mod meaning;
#[rustfmt::skip]
mod table;

use super::attributes::kind;
use super::short_domain;
use crate::ir::{Attr, DType, Op};
use std::collections::HashMap;
use std::sync::OnceLock;

/// The newest operator set of the standard domain that is known.
pub const NEWEST: i64 = table::NEWEST;
/// The newest version of the file format that is known.
pub const NEWEST_IR: i64 = table::NEWEST_IR;

/// One version of an operator.
#[derive(Debug)]
pub struct Schema {
    /// Its domain; empty for `ai.onnx`.
    pub domain: &'static str,
    /// Its name.
    pub name: &'static str,
    /// The operator set it came with.
    pub since: i64,
    flags: u8,
    /// Operands in their order; only the last may be variadic.
    pub operands: &'static [Formal],
    /// Results in their order.
    pub results: &'static [Formal],
    types: &'static [(&'static str, u32)],
    /// Attributes by name.
    pub attributes: &'static [Attribute],
}

const DEPRECATED: u8 = 1;
const FUNCTION: u8 = 2;

/// An operand or result.
#[derive(Debug)]
pub struct Formal {
    /// Its name.
    pub name: &'static str,
    /// A type constraint's name, or one type.
    pub constraint: &'static str,
    /// May it be left out?
    pub optional: bool,
    /// Does it stand for any number of them?
    pub variadic: bool,
}

/// An attribute.
#[derive(Debug)]
pub struct Attribute {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: Kind,
    /// Must it be given?
    pub required: bool,
    /// Its value where it is left out, if the schema states one.
    pub default: Option<Value>,
}

/// What an attribute holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Int,
    Float,
    String,
    Ints,
    Floats,
    Strings,
    Tensor,
    Graph,
    SparseTensor,
    TypeProto,
}

impl Kind {
    /// Is an attribute one of this kind? Of those that no operator has nothing is said.
    fn holds(self, a: &Attr) -> bool {
        match a {
            Attr::Int(_) => self == Kind::Int,
            Attr::Float(_) => self == Kind::Float,
            Attr::Str(_) => self == Kind::String,
            Attr::Ints(_) => self == Kind::Ints,
            Attr::Floats(_) => self == Kind::Floats,
            Attr::Tensor(_) => self == Kind::Tensor,
            Attr::Opaque(a) => kind(a).is_none_or(|kind| kind == self),
        }
    }
}

/// The default of an attribute.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Value {
    Int(i64),
    Float(f32),
    Str(&'static str),
    Ints(&'static [i64]),
    Strs(&'static [&'static str]),
}

impl Value {
    /// The same as an attribute of the IR; `None` for lists of strings, which it does not read.
    pub fn attr(self) -> Option<Attr> {
        Some(match self {
            Value::Int(v) => v.into(),
            Value::Float(v) => v.into(),
            Value::Str(v) => v.into(),
            Value::Ints(v) => v.into(),
            Value::Strs(_) => return None,
        })
    }

    /// Is an attribute this value?
    pub fn is(self, a: &Attr) -> bool {
        match (self, a) {
            (Value::Int(d), Attr::Int(v)) => d == *v,
            (Value::Float(d), Attr::Float(v)) => d.to_bits() == v.to_bits(),
            (Value::Str(d), Attr::Str(v)) => d == v,
            (Value::Ints(d), Attr::Ints(v)) => d == v.as_slice(),
            (Value::Strs(d), Attr::Opaque(a)) => d.iter().map(|s| s.as_bytes()).eq(a.strings.iter().map(Vec::as_slice)),
            _ => false,
        }
    }
}

impl Schema {
    /// Has the operator been withdrawn with this version?
    pub fn deprecated(&self) -> bool {
        self.flags & DEPRECATED != 0
    }

    /// Does the standard say how to write it by other operators?
    pub fn has_body(&self) -> bool {
        self.flags & FUNCTION != 0
    }

    /// The attribute of this name.
    pub fn attribute(&self, name: &str) -> Option<&'static Attribute> {
        self.attributes.binary_search_by(|a| a.name.cmp(name)).ok().map(|i| &self.attributes[i])
    }

    /// An attribute that the operator does not know, or lacks.
    pub fn misattributed(&self, op: &Op) -> Option<String> {
        let version = self.since;
        // Names that start so are a tool's own, which readers skip.
        let unknown = |n: &&String| !n.starts_with("__") && self.attribute(n).is_none();
        if let Some(name) = op.attrs.0.keys().find(unknown) {
            return Some(format!("has no attribute `{name}` in version {version}"));
        }
        let lacked = self.attributes.iter().find(|a| a.required && op.attrs.get(a.name).is_none())?;
        Some(format!("lacks the attribute `{}` of version {version}", lacked.name))
    }

    /// What is wrong with a node's number of operands and results; `present` says which operands are there.
    pub fn miscounted(&self, operands: usize, present: impl Fn(usize) -> bool, results: usize) -> Option<String> {
        let version = self.since;
        // Of operands of any number none is left out.
        let may_lack = |i: usize, f: &Formal| if f.variadic { i >= operands } else { f.optional };
        let all = (0..operands.max(self.operands.len())).filter_map(|i| Some((i, self.operand(i)?)));
        if let Some((_, f)) = all.into_iter().find(|(i, f)| !(may_lack(*i, f) || *i < operands && present(*i))) {
            return Some(format!("lacks the operand `{}` of version {version}", f.name));
        }
        if operands.checked_sub(1).is_some_and(|last| self.operand(last).is_none()) {
            return Some(format!("has {operands} operands, more than version {version} takes"));
        }
        let more = results.checked_sub(1).is_some_and(|last| self.result(last).is_none());
        more.then(|| format!("has {results} results, more than version {version} gives"))
    }

    /// Operand `i`. A variadic operand stands for all places after it too.
    pub fn operand(&self, i: usize) -> Option<&'static Formal> {
        nth(self.operands, i)
    }

    /// Result `i`. A variadic result stands for all places after it too.
    pub fn result(&self, i: usize) -> Option<&'static Formal> {
        nth(self.results, i)
    }

    /// May an operand or result of this schema have this element type?
    pub fn takes(&self, formal: &Formal, t: DType) -> bool {
        match self.types.iter().find(|(name, _)| *name == formal.constraint) {
            Some((_, mask)) => mask >> t.onnx() & 1 == 1,
            None => formal.constraint.strip_prefix("tensor(").and_then(|n| n.strip_suffix(')')) == Some(t.onnx_name()),
        }
    }
}

fn nth(formals: &'static [Formal], i: usize) -> Option<&'static Formal> {
    formals.get(i).or_else(|| formals.last().filter(|f| f.variadic))
}

/// Every version of an operator, the oldest first.
pub fn versions(domain: &str, name: &str) -> &'static [Schema] {
    type Index = HashMap<(&'static str, &'static str), &'static [Schema]>;
    // Rules ask for a default's schema at every node, and many times.
    static INDEX: OnceLock<Index> = OnceLock::new();
    let index = INDEX.get_or_init(|| {
        let operators = table::SCHEMAS.chunk_by(|a, b| (a.domain, a.name) == (b.domain, b.name));
        operators.map(|all| ((all[0].domain, all[0].name), all)).collect()
    });
    index.get(&(short_domain(domain), name)).copied().unwrap_or_default()
}

/// An operator as an operator set has it; `None` if that has none of the name.
pub fn at(domain: &str, name: &str, opset: i64) -> Option<&'static Schema> {
    versions(domain, name).iter().rev().find(|s| s.since <= opset)
}

/// The same, or the operator's first version where the set is older than that: an operator that is too new is read so.
pub fn at_or_first(domain: &str, name: &str, opset: i64) -> Option<&'static Schema> {
    at(domain, name, opset).or_else(|| versions(domain, name).first())
}

/// What of a node no version of its operator has: an element type among those of its operands, or what an attribute holds.
pub fn misfit(op: &Op, operands: impl Iterator<Item = Option<DType>>) -> Option<String> {
    let newest = versions(&op.domain, &op.name).last()?;
    let mut types = operands.enumerate().filter_map(|(i, t)| Some((newest.operand(i)?, t?)));
    if let Some((_, t)) = types.find(|(formal, t)| !newest.takes(formal, *t)) {
        return Some(format!("does not take {t}"));
    }
    // Names that start so are a tool's own, which readers skip.
    let other = |(name, a): &(&String, &Attr)| match newest_with(&op.domain, &op.name, name) {
        Some(known) => !known.kind.holds(a),
        None => !name.starts_with("__"),
    };
    let (name, _) = op.attrs.0.iter().find(other)?;
    Some(format!("has an attribute `{name}` that it does not take"))
}

/// An attribute in the newest version of an operator that has it. An operator of an unknown domain is read like the standard operator
/// of its name.
fn newest_with(domain: &str, name: &str, attribute: &str) -> Option<&'static Attribute> {
    let find = |domain| versions(domain, name).iter().rev().find_map(|s| s.attribute(attribute));
    find(domain).or_else(|| find("").filter(|_| versions(domain, name).is_empty()))
}

/// Every version of every operator, by domain, name and version.
pub fn all() -> &'static [Schema] {
    table::SCHEMAS
}

/// The version of the file format that an operator set came with: the least that a file with it may have.
pub fn ir_version_of(opset: i64) -> i64 {
    let reached = table::IR_VERSIONS.iter().rev().find(|(v, _)| *v <= opset);
    reached.map_or(3, |(_, ir)| *ir)
}

/// Attributes as an operator means them: an attribute that is not given has ONNX's default.
impl Op {
    fn default_of(&self, name: &str) -> Option<Value> {
        newest_with(&self.domain, &self.name, name)?.default
    }

    /// An integer attribute, or its default in the newest operator set that has it; 0 where ONNX names none.
    pub fn int(&self, name: &str) -> i64 {
        let default = || if let Some(Value::Int(v)) = self.default_of(name) { v } else { 0 };
        self.attrs.int(name).unwrap_or_else(default)
    }

    /// As [`Op::int`], with the default of an operator set whose default is another one.
    pub fn int_at(&self, name: &str, opset: i64) -> i64 {
        let default = || at(&self.domain, &self.name, opset)?.attribute(name)?.default;
        match default() {
            Some(Value::Int(v)) => self.attrs.int(name).unwrap_or(v),
            _ => self.int(name),
        }
    }

    /// A float attribute, or its default as [`Op::int`].
    pub fn float(&self, name: &str) -> f32 {
        let default = || if let Some(Value::Float(v)) = self.default_of(name) { v } else { 0.0 };
        self.attrs.float(name).unwrap_or_else(default)
    }

    /// A string attribute, or its default as [`Op::int`]; empty where ONNX names none.
    pub fn str(&self, name: &str) -> &str {
        let default = || if let Some(Value::Str(v)) = self.default_of(name) { v } else { "" };
        self.attrs.str(name).unwrap_or_else(default)
    }
}

// A row of the table.
#[allow(clippy::too_many_arguments)]
const fn schema(
    domain: &'static str,
    name: &'static str,
    since: i64,
    flags: u8,
    operands: &'static [Formal],
    results: &'static [Formal],
    types: &'static [(&'static str, u32)],
    attributes: &'static [Attribute],
) -> Schema {
    Schema { domain, name, since, flags, operands, results, types, attributes }
}

const fn one(name: &'static str, constraint: &'static str) -> Formal {
    Formal { name, constraint, optional: false, variadic: false }
}

const fn opt(name: &'static str, constraint: &'static str) -> Formal {
    Formal { name, constraint, optional: true, variadic: false }
}

const fn many(name: &'static str, constraint: &'static str) -> Formal {
    Formal { name, constraint, optional: true, variadic: true }
}

const fn must(name: &'static str, kind: Kind) -> Attribute {
    Attribute { name, kind, required: true, default: None }
}

const fn may(name: &'static str, kind: Kind) -> Attribute {
    Attribute { name, kind, required: false, default: None }
}

const fn or(name: &'static str, default: Value) -> Attribute {
    let kind = match default {
        Value::Int(_) => Kind::Int,
        Value::Float(_) => Kind::Float,
        Value::Str(_) => Kind::String,
        Value::Ints(_) => Kind::Ints,
        Value::Strs(_) => Kind::Strings,
    };
    Attribute { name, kind, required: false, default: Some(default) }
}

#[cfg(test)]
mod tests;
