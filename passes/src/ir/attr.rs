//! Operator attributes.

use super::tensor::Tensor;
use indexmap::IndexMap;
use onnx_protobuf::AttributeProto;
use onnx_protobuf::attribute_proto::AttributeType;

/// One attribute's value. A value that the IR does not interpret (subgraph, type, sparse tensor) stays as the source wrote it.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Attr {
    Int(i64),
    Float(f32),
    Str(String),
    Ints(Vec<i64>),
    Floats(Vec<f32>),
    Tensor(Tensor),
    Opaque(Box<AttributeProto>),
}

macro_rules! from {
    ($($ty:ty, $v:ident => $attr:expr;)+) => {$(
        impl From<$ty> for Attr {
            fn from($v: $ty) -> Attr {
                $attr
            }
        }
    )+};
}

from! {
    i64, v => Attr::Int(v);
    f32, v => Attr::Float(v);
    &str, v => Attr::Str(v.to_string());
    Vec<i64>, v => Attr::Ints(v);
    &[i64], v => Attr::Ints(v.to_vec());
    Vec<f32>, v => Attr::Floats(v);
    Tensor, v => Attr::Tensor(v);
}

/// The attributes of a node, in the source's order.
#[derive(Clone, Debug, Default)]
pub struct Attrs(pub IndexMap<String, Attr>);

impl Attr {
    /// A list of strings, as an attribute of that name.
    pub fn strings(name: &str, values: &[&str]) -> Attr {
        let strings = values.iter().map(|v| v.as_bytes().to_vec()).collect();
        let type_ = AttributeType::STRINGS.into();
        Attr::Opaque(Box::new(AttributeProto { name: name.into(), strings, type_, ..Default::default() }))
    }
}

impl Attrs {
    /// No attributes.
    pub fn new() -> Attrs {
        Attrs::default()
    }

    /// The same attributes and one more.
    pub fn with(mut self, name: &str, value: impl Into<Attr>) -> Attrs {
        self.0.insert(name.to_string(), value.into());
        self
    }

    /// The attribute of that name.
    pub fn get(&self, name: &str) -> Option<&Attr> {
        self.0.get(name)
    }

    /// An integer attribute, if present. What ONNX means without it, `Op::int` tells.
    pub fn int(&self, name: &str) -> Option<i64> {
        if let Some(Attr::Int(v)) = self.get(name) { Some(*v) } else { None }
    }

    /// A float attribute, if present; see `Op::float`.
    pub fn float(&self, name: &str) -> Option<f32> {
        if let Some(Attr::Float(v)) = self.get(name) { Some(*v) } else { None }
    }

    /// A string attribute, if present; see `Op::str`.
    pub fn str(&self, name: &str) -> Option<&str> {
        if let Some(Attr::Str(v)) = self.get(name) { Some(v) } else { None }
    }

    /// A list of integers, if present.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        if let Some(Attr::Ints(v)) = self.get(name) { Some(v) } else { None }
    }

    /// A list of floats, if present.
    pub fn floats(&self, name: &str) -> Option<&[f32]> {
        if let Some(Attr::Floats(v)) = self.get(name) { Some(v) } else { None }
    }

    /// A list of strings, if present.
    pub fn strings(&self, name: &str) -> Option<Vec<String>> {
        let Some(Attr::Opaque(a)) = self.get(name) else { return None };
        Some(a.strings.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect())
    }

    /// A tensor, if present.
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        if let Some(Attr::Tensor(v)) = self.get(name) { Some(v) } else { None }
    }
}
