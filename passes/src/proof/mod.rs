//! A proof that two graphs compute the same outputs from the same inputs.
//!
//! Both graphs are read into one table of terms, each value in canonical form; equal terms are the same entry of the table
//! (hash-consing), so that two outputs are equal if they are the same number.
//!
//! ```text
//!   inputs        by name                                  initializers     by content
//!   Identity, Cast, Reshape, Transpose, …  that do nothing are gone; chains of them are one
//!   x·1, x+0, x·0                          are x, x and zeros
//!   W·[h₀;…;hₖ] with a one-hot row of W    is the state it chooses
//!   operators on known elements            are constants, where every engine must agree on the result
//!   operands that commute                  stand in one order
//! ```
//!
//! No rule is made for routers: with one-hot weights, every lowering of a router (products over stacked states, sums of pairs)
//! simplifies to the state it reads. The proof takes nothing from metadata.
//!
//! A proof says: for all inputs of the declared types, operators evaluated one by one give the same bits, under the assumptions
//! that [`Proof::assumptions`] lists.

mod arithmetic;
mod attributes;
mod canonical;
mod constant;
mod infer;
pub mod interface;
mod movement;
pub mod pairing;
mod parting;
mod rules;
mod subgraph;
mod term;

use crate::ir::{Graph, Kind, NodeId, ValueId};
use canonical::Side;
use term::{Granted, Table};

/// How hard to try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProofOptions {
    /// Treat sums of floats as equal in any order of their addends: they are equal as real numbers, not as floats.
    pub reassociate: bool,
}

/// The result of trying to prove two graphs equal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Are the graphs proved equal?
    pub proved: bool,
    /// Why, or why not, in a sentence.
    pub reason: String,
    /// What the proof takes for granted.
    pub assumptions: Vec<String>,
    /// Rewrites used, and how often.
    pub rewrites: Vec<(&'static str, usize)>,
    /// Where the graphs first part, if they were not proved equal.
    pub parting: Option<Parting>,
}

/// The first place at which two graphs differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parting {
    /// The output it was found on the way to.
    pub output: String,
    /// Value of the first graph.
    pub value_a: String,
    /// The node behind it and its operator.
    pub node_a: String,
    /// Value of the second graph.
    pub value_b: String,
    /// The node behind it and its operator.
    pub node_b: String,
    /// What differs.
    pub why: String,
}

/// Tries to prove that two graphs compute the same outputs. Their values should have types.
pub fn prove_equal(a: &Graph, b: &Graph, o: &ProofOptions) -> Proof {
    let refused = |reason: String| Proof { reason, ..Proof::default() };
    if let Some(why) = interfaces_differ(a, b) {
        return refused(why);
    }
    let mut t = Table::new(*o);
    let (side_a, side_b) = read_both(&mut t, a, b);
    let mut open = Vec::new();
    for out in a.outputs() {
        let name = a.name(out.value);
        let other = b.outputs().iter().find(|o| b.name(o.value) == name);
        let (x, y) = (side_a.term(out.value), other.and_then(|o| side_b.term(o.value)));
        if x.is_none() || x != y {
            open.push((name.to_string(), x, y));
        }
    }
    let rewrites: Vec<(&'static str, usize)> = t.rewrites.iter().map(|(n, c)| (*n, *c)).collect();
    if open.is_empty() {
        let count = a.outputs().len();
        let outputs = if count == 1 { "the output has".to_string() } else { format!("all {count} outputs have") };
        return Proof {
            proved: true,
            reason: format!("{outputs} one canonical form in both graphs"),
            assumptions: assumptions(&t, [a, b]),
            rewrites,
            parting: None,
        };
    }
    let (output, x, y) = open.swap_remove(0);
    let parting = x.zip(y).and_then(|(x, y)| parting::find(&t, [&side_a, &side_b], &output, x, y));
    let reason = match &parting {
        Some(p) => format!("`{output}`: {}", p.why),
        None => format!("`{output}` has no canonical form"),
    };
    Proof { proved: false, reason, assumptions: assumptions(&t, [a, b]), rewrites, parting }
}

/// Reads both graphs into one table: the nodes that outputs depend on, producers first.
fn read_both<'g>(t: &mut Table<'g>, a: &'g Graph, b: &'g Graph) -> (Side<'g>, Side<'g>) {
    for v in a.required_inputs() {
        let symbols = a.value(v).ty.shape.iter().flatten().flat_map(|d| d.symbols().map(str::to_string));
        t.symbols.extend(symbols);
    }
    let differ = a.opsets != b.opsets;
    let mut sides = (Side::new(a, 0, differ), Side::new(b, 1, differ));
    for side in [&mut sides.0, &mut sides.1] {
        let live = side.graph.ancestors(side.graph.outputs().iter().map(|o| o.value.node));
        let order: Vec<NodeId> = side.graph.topological_order().into_iter().filter(|id| live.contains(id)).collect();
        side.read(t, &order);
    }
    sides
}

/// Why two graphs cannot be compared at all, if they cannot.
fn interfaces_differ(a: &Graph, b: &Graph) -> Option<String> {
    let inputs = |g: &Graph| -> Vec<ValueId> { g.required_inputs().collect() };
    for (g, h, which) in [(a, b, "second"), (b, a, "first")] {
        for v in inputs(g) {
            let name = g.name(v);
            let Some(w) = inputs(h).into_iter().find(|w| h.name(*w) == name) else {
                return Some(format!("the input `{name}` is missing in the {which} model"));
            };
            let (x, y) = (&g.value(v).ty, &h.value(w).ty);
            if x != y {
                return Some(format!("the input `{name}` is {x} in one model and {y} in the other"));
            }
        }
        for o in g.outputs() {
            let name = g.name(o.value);
            if !h.outputs().iter().any(|p| h.name(p.value) == name) {
                return Some(format!("the output `{name}` is missing in the {which} model"));
            }
        }
    }
    a.outputs().is_empty().then(|| "the models have no outputs".to_string())
}

/// What a proof takes for granted, in sentences.
fn assumptions(t: &Table, graphs: [&Graph; 2]) -> Vec<String> {
    let mut out = vec![
        "every operator gives the same bits for the same operands, whatever stands around it; an engine that fuses operators may round otherwise".to_string(),
        "inputs have the declared types; extents with one name are equal, and at least 1".to_string(),
    ];
    if !t.zeroed.is_empty() {
        const SHOWN: usize = 4;
        let name = |x: &term::TermId| {
            let origin = t.info(*x).origin;
            let value = origin[0].map(|v| graphs[0].name(v)).or_else(|| origin[1].map(|v| graphs[1].name(v)));
            value.map(|n| format!("`{n}`"))
        };
        let names: Vec<String> = t.zeroed.iter().filter_map(name).collect();
        let what = match &names[..] {
            [] => String::new(),
            few if few.len() <= SHOWN => format!(" ({})", few.join(", ")),
            many => format!(" ({} and {} more)", many[..SHOWN].join(", "), many.len() - SHOWN),
        };
        out.push(format!("values that are multiplied by an exact zero, such as the router's states, are finite{what}"));
    }
    for g in &t.granted {
        out.push(match g {
            Granted::SignOfZero => "the sign of zero is not told apart".into(),
            Granted::ExactProducts => {
                "products of floats with exactly 0 and 1 are exact in matrix products (not so under TF32)".into()
            }
            Granted::Reassociated => {
                "sums of floats are equal in whatever order they are added: the outputs are equal as real numbers, and differ by rounding".into()
            }
            Granted::Deterministic(op) => format!("`{op}` is a function of its operands and attributes"),
            Granted::SameDraw(node) => format!("{node} draws the same random numbers in both"),
            Granted::Declared(op) => format!("results of `{op}` have the shapes that are declared or inferred for them"),
        });
    }
    if graphs.iter().any(|g| g.inputs().iter().any(|n| matches!(g.node(*n).kind, Kind::Initializer { .. }))) {
        out.push("optional inputs keep their defaults".into());
    }
    for file in &t.constants.missing {
        out.push(format!("the external data `{file}`, which cannot be read, is the same for both models"));
    }
    out
}

#[cfg(test)]
mod tests;
