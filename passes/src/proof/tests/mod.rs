//! What must be proved, and above all what must not be.

#![allow(clippy::unwrap_used)]

mod defaults;
mod moved;
mod refused;
mod routes;

use super::{Proof, ProofOptions, prove_equal};
use crate::ir::Graph;
use crate::text::parse;

/// A graph from its text; a text that starts with `(` is given a name.
pub(super) fn graph(text: &str) -> Graph {
    let text = if text.trim_start().starts_with(['(']) { format!("g {text}") } else { text.to_string() };
    parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// A graph of one input `x` of a type with one output `y`.
pub(super) fn of_x(ty: &str, constants: &str, body: &str) -> Graph {
    let g = graph(&format!("({ty} x) => (y) <{constants}> {{ {body} }}"));
    assert!(g.find("y").is_some());
    g
}

pub(super) fn prove(a: &Graph, b: &Graph) -> Proof {
    let forth = prove_equal(a, b, &ProofOptions::default());
    let back = prove_equal(b, a, &ProofOptions::default());
    assert_eq!(forth.proved, back.proved, "{} / {}", forth.reason, back.reason);
    assert_eq!(forth.proved, forth.parting.is_none());
    forth
}

#[track_caller]
pub(super) fn equal(ty: &str, constants: &str, a: &str, b: &str) -> Proof {
    let proof = prove(&of_x(ty, constants, a), &of_x(ty, constants, b));
    assert!(proof.proved, "{a}  is not proved equal to  {b}: {}", proof.reason);
    proof
}

/// The reason why two bodies are not proved equal.
#[track_caller]
pub(super) fn differ(ty: &str, constants: &str, a: &str, b: &str) -> String {
    let proof = prove(&of_x(ty, constants, a), &of_x(ty, constants, b));
    assert!(!proof.proved, "{a}  is proved equal to  {b}");
    proof.reason
}
