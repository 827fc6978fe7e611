//! The residual structure of a network: which adds join a skip with a residual branch, and how those follow one another.
//!
//! An element-wise add is a *residual join* when one addend, the skip, is a value `h` (the state), or a projection of it, and
//! another addend is a residual branch of `h`:
//!
//! ```text
//!            ┌──────── skip ────────┐
//!        h ──┤                      + ── post ── h'
//!            └── branch (mixing) ───┘
//! ```
//!
//! - The branch is computed from `h` through at least one mixing operator (convolution, matrix product, attention, pooling,
//!   recurrence), and its type is the skip's: nothing is broadcast.
//! - The add post-dominates every reader of `h` from which it can be reached: what lies between feeds the add and nothing
//!   else. Readers of `h` from which the add cannot be reached (long skips, heads) do not matter. Values may enter the branch
//!   from outside (masks, conditioning, encoder states), and its results may be outputs (cached keys, attention maps). A mask
//!   or a position bias is excluded by this rule: states lie between it and a later score, and their own skips go past that score.
//! - Where results of the branch do reach past the add, it is still a join if they meet the add's result again before any
//!   mixing operator. The add must not be inside the branch of a join whose outside its skip comes from.
//! - An identity skip passes copies, casts, quantise/dequantise pairs, rearrangements and scales only. A projected skip passes at
//!   most one convolution or linear map besides pooling, padding, slicing, resizing and normalisation. It passes no nonlinear
//!   function, and fewer linear operators than the branch has. The branch contains no join of its own. It contains a nonlinear
//!   function unless the skip has no linear map: sums of parallel maps (low-rank adapters, kernels of several sizes) are one map.
//! - Inside another branch a skip with a factor for each channel is a term of that branch's formula.
//! - `x + f(x) + g(x)`, written as two adds, is one join if only the second add reads the first.
//!
//! Joins form a *chain* while each state is the previous join's sum, or a function of that alone without mixing operators
//! (activation, normalisation): the chain's `post`. Rearrangements between two adds must cancel out, or be undone after a single
//! add. A rearrangement that lasts, such as another partition into windows, starts a new chain even if the shape is the same.
//! Joins inside the branch of another join are no part of its chain: groups of blocks with a skip around each group are one chain,
//! and the blocks of each group are another.

mod branch;
mod chains;
mod classes;
mod flow;
mod inside;
mod join;
mod layout;
mod loose;
mod reason;
mod skip;
#[cfg(test)]
mod tests;
mod transient;

use crate::ir::{Graph, NodeId, ValueId, ValueType};

pub use inside::branch_nodes;

/// Is the skip the state itself?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JoinKind {
    /// The state unchanged, up to precision, arrangement and scale.
    Identity,
    /// The state after a convolution, linear map, pooling, padding, slice or normalisation.
    Projection,
}

/// An add that joins a skip and a residual branch.
#[derive(Clone, Debug)]
pub struct Join {
    /// The add; the last one for x + f + g, which is one join.
    pub node: NodeId,
    /// The operand by which the skip enters the first add on its path.
    pub skip_operand: usize,
    /// Is the skip the state itself?
    pub kind: JoinKind,
    /// The value the skip starts from.
    pub state: ValueId,
    /// The use of `state`, as (consumer, operand), that begins the skip path: the add itself when `direct`.
    pub entry: (NodeId, usize),
    /// The skip passes no operator before the (first) add.
    pub direct: bool,
    /// The skip is multiplied by a scale.
    pub scaled_skip: bool,
    /// The branch is multiplied by a scale or gate of its own (layer scale, adaLN gate) as its last step.
    pub scaled_branch: bool,
    /// The branch's mixing operators in order: `Conv`, `MatMul`, `Attention`, `Pool`, …
    pub signature: Vec<String>,
    /// The sum; for a fused operator the first of its results that is defined.
    pub sum: ValueId,
    /// Further adds that the join consists of, before `node`.
    pub also: Vec<NodeId>,
    /// Number of nodes of the branch.
    pub branch_nodes: usize,
    /// The add of the smallest branch that holds this join, where one does.
    pub inside: Option<NodeId>,
}

/// A maximal run of identity joins over one hidden state of one type.
#[derive(Clone, Debug)]
pub struct Chain {
    /// Place among the chains in execution order of their first adds.
    pub id: usize,
    /// Its joins, in order.
    pub joins: Vec<Join>,
    /// `h_0` to `h_K`; `h_k` is what follows block `k`, after `post`.
    pub states: Vec<ValueId>,
    /// Type of the states.
    pub ty: ValueType,
    /// What follows each add before the next state, as a word: `none`, `relu`, `layernorm`; several operators joined by `+`.
    pub post: String,
    /// Some skip or branch is multiplied by a scale or gate.
    pub scaled: bool,
    /// Signatures of one period: operators joined by `·`, blocks by ` | `.
    pub signature: String,
    /// Adds in one repeated unit, by the branches' signatures; 0 when nothing repeats.
    pub period: usize,
}

/// A float add that joins nothing.
#[derive(Clone, Debug)]
pub struct Rejected {
    /// The add.
    pub node: NodeId,
    /// Why not, naming its operands.
    pub reason: String,
}

/// What [`find_residuals`] found.
#[derive(Clone, Debug, Default)]
pub struct ResidualStructure {
    /// Runs of identity joins, single ones included.
    pub chains: Vec<Chain>,
    /// Joins with a projected skip, in execution order.
    pub projections: Vec<Join>,
    /// Every other float add, in execution order.
    pub rejected: Vec<Rejected>,
}

impl ResidualStructure {
    /// Number of identity joins.
    pub fn identity_count(&self) -> usize {
        self.chains.iter().map(|c| c.joins.len()).sum()
    }
}

/// Why an add with a given skip is no join.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// The other addend is not computed from it.
    Independent,
    /// It is, but without a mixing operator.
    NoMixing(ValueId),
    /// It is, and what lies between reaches past the add, starting with this node.
    Leaks(ValueId, NodeId),
    /// The skip is multiplied by a function of the state.
    Gated(ValueId, NodeId),
    /// The skip is scaled by channel, inside this join's branch.
    Term(ValueId, NodeId),
    /// The state is a constant that is no state.
    Constant(ValueId),
    /// The add is inside this join's branch, the skip comes from outside.
    Crosses(ValueId, NodeId),
    /// As a projection: the branch has no more linear operators than the skip, or is linear.
    Parallel(ValueId),
    /// As a projection: the branch contains joins.
    Fusion(ValueId),
}

/// Finds the residual structure of a graph. Types should have been resolved before (`types::resolve_types`): where shapes are
/// unknown, a broadcast cannot be told from a sum.
pub fn find_residuals(g: &Graph) -> ResidualStructure {
    let flow = flow::Flow::new(g);
    let mut finder = join::Finder::new(&flow);
    finder.strict();
    loose::recover(&mut finder);
    chains::build(&flow, finder)
}
