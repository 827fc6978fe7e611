//! A textual form of graphs, for tests and for people: ONNX's own text syntax with a few additions.
//!
//! ```text
//! <opset_import: ["" : 17]>
//! main (float[batch, 3] x, float c = {0.5}) => (float[batch, 3] y)
//! <
//!     float[3, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9},
//!     float[batch, 3] odd
//! >
//! {
//!     odd = custom.Strange <mode = "fast", axes = [0, 1], fill = float[1] {0}> (x, , w)
//!     [/net/Add] y = Add (odd, c)     # an input with elements is an initializer that may be overridden
//! }
//! ```
//!
//! A router that operators name is written after the nodes. Its values are in five lists: logits and gate, the states of earlier
//! chains, these states in the chain's shape, the chain's own states, and each row's route; a sixth list holds the deltas of form `input`.
//!
//! ```text
//!     @0 <form = "reassign", rule = "gated", …> (logits, gate) (s) (s.fit) (h0, h1, h2) (, r1)
//! ```
//!
//! A type without brackets is a scalar's, `float[]` one of unknown rank, and a dimension may be a polynomial of symbols. Types of
//! operators' results are inferred; a declaration without elements states one that the operator's rule does not give. A label
//! names a node that is not named like its first result.
//!
//! Beyond ONNX's syntax: names need no quotes while they consist of letters, digits and `_ . / : $ -`; an unknown element type is
//! `?`; an initializer's default may have a type of its own, `float[n] m = float[1] {0}`; elements may be elided. `{…}` stands for the
//! elements 0, 1, 2, …, and `{1, 5, …}` repeats the last element. Subgraphs, lists of strings and other attributes that the IR does
//! not interpret print as `…` and cannot be read back.

mod parse;
mod print;

pub use parse::{ParseError, parse};
pub use print::{body, outline, print};

use crate::ir::{Graph, NodeId, TensorType};
use crate::ops::{self, TypeError};

/// The results' types by the operator's rule; `None` where there is no rule, or not all operands have a known type.
fn inferred(g: &Graph, id: NodeId) -> Result<Option<Vec<TensorType>>, TypeError> {
    let Some(op) = g.op(id) else { return Ok(None) };
    let operands = g.operands(id);
    if operands.iter().flatten().any(|v| g.tensor_type(*v).is_none()) {
        return Ok(None);
    }
    ops::result_types(op, operands, g).transpose()
}

/// May the name stand without quotes?
fn is_bare(name: &str) -> bool {
    name.starts_with(|c: char| c.is_alphanumeric() || "_/".contains(c))
        && name.chars().all(is_bare_char)
        && !name.contains("//")
}

fn is_bare_char(c: char) -> bool {
    c.is_alphanumeric() || "_./:$-".contains(c)
}
