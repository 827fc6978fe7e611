//! The passes in their order, and what each promises.
//!
//! ```text
//! import → find types → residual analysis ─┐
//!                                          ▼
//!   route-skips ──► lower-routes ──► eliminate-dead ──► forward graph
//!        │
//!        └──► separate-parameters ──► rebatch ──► tie-parameters ──► legalize ──► master-copies ──► fold-constants
//!                     ──► activate-dropout ──► train-batch-norm ──► append-loss ──► differentiate ──► append-optimizer
//!                     ──► lower-routes ──► lower-batch-norm ──► eliminate-dead ──► widen ──► training graph
//! ```

pub mod evaluation;
pub mod training;

use crate::ir::{Graph, NodeId};
use crate::transform::{eliminate, lower_routes};
use crate::verify;

/// What a pass promises about the function a graph computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contract {
    /// The same function, bit for bit up to the engine's own choices.
    Exact,
    /// The same function up to rounding.
    Rounding,
    /// The same function when every router row is one-hot on its nearest state.
    EqualAtOneHot,
    /// Each sample of a batch comes out as it did alone.
    EverySample,
    /// The outputs that were there keep their function; others are added.
    Extends,
    /// Another function, on purpose.
    Changes,
}

/// A pass as the pipeline lists it.
#[derive(Clone, Copy, Debug)]
pub struct PassInfo {
    /// Name, a verb.
    pub name: &'static str,
    /// Its promise.
    pub contract: Contract,
    /// What it does and why it stands where it does.
    pub what: &'static str,
}

/// Every pass, in pipeline order. The tests check each promise.
pub const PASSES: &[PassInfo] = &[
    PassInfo {
        name: "route-skips",
        contract: Contract::EqualAtOneHot,
        what: "replaces (reassign) or augments skips by routes; first, because it reads the source's own structure",
    },
    PassInfo {
        name: "separate-parameters",
        contract: Contract::Exact,
        what: "gives parameters that an exporter merged an initializer each; before anything rewrites the nodes that name them",
    },
    PassInfo {
        name: "rebatch",
        contract: Contract::EverySample,
        what: "rebuilds a graph with a batch in its shapes for another one; while the nodes are still the source's, so that it can be planned on that",
    },
    PassInfo {
        name: "tie-parameters",
        contract: Contract::Exact,
        what: "makes one parameter of a matrix and its transpose that an exporter stored beside it; before parameters are chosen",
    },
    PassInfo {
        name: "legalize",
        contract: Contract::Rounding,
        what: "brings the source's operators to opset 18 and fused ones to plain ones, so that every pullback sees one form",
    },
    PassInfo {
        name: "master-copies",
        contract: Contract::Exact,
        what: "makes half-precision parameters float32 state, cast where they are read; before folding, which would fold the casts",
    },
    PassInfo {
        name: "fold-constants",
        contract: Contract::Exact,
        what: "folds shape arithmetic, so that pullbacks see constant axes and shapes; training graph only, the forward graph keeps the source's nodes",
    },
    PassInfo {
        name: "activate-dropout",
        contract: Contract::Changes,
        what: "replaces the source's dropouts by masks of the step; before differentiation, which needs no pullback for them then",
    },
    PassInfo {
        name: "train-batch-norm",
        contract: Contract::Changes,
        what: "puts batch normalisation into training mode; before differentiation, which needs its own pullback",
    },
    PassInfo { name: "append-loss", contract: Contract::Extends, what: "adds the target input and the loss" },
    PassInfo {
        name: "differentiate",
        contract: Contract::Extends,
        what: "adds the gradients; while routes are still one operator each, so that their pullback is one too",
    },
    PassInfo { name: "append-optimizer", contract: Contract::Extends, what: "adds the update of every trained tensor" },
    PassInfo {
        name: "lower-routes",
        contract: Contract::Rounding,
        what: "replaces the router's operators by plain ones; late, because the lowering is chosen for the whole router",
    },
    PassInfo {
        name: "lower-batch-norm",
        contract: Contract::Rounding,
        what: "replaces training-mode batch normalisation by plain operators",
    },
    PassInfo { name: "eliminate-dead", contract: Contract::Exact, what: "removes what nobody reads" },
    PassInfo {
        name: "widen",
        contract: Contract::Rounding,
        what: "lets bfloat16 operators that the target has no kernels for compute in float32; last, because kernels are asked for by the operators that are emitted",
    },
];

/// Verifies a graph after a pass, in debug builds and tests.
///
/// # Errors
/// Every violated invariant, with the pass that left it.
pub fn check(g: &Graph, pass: &str) -> Result<(), String> {
    check_at(g, pass, verify::Stage::Open)
}

fn check_at(g: &Graph, pass: &str, stage: verify::Stage) -> Result<(), String> {
    if !cfg!(debug_assertions) {
        return Ok(());
    }
    verify::verify(g, stage).map_err(|found| format!("after pass {pass}, a fault of this tool:\n  {}", found.join("\n  ")))
}

/// From a routed graph to the forward graph that is emitted.
///
/// # Errors
/// A fault of a pass, with its name.
pub fn lower_forward(g: &mut Graph, keep: impl Fn(&Graph, NodeId) -> bool) -> Result<(), String> {
    lower_routes::lower_routes(g).map_err(|e| format!("pass lower-routes: {e}"))?;
    check(g, "lower-routes")?;
    eliminate::eliminate_dead(g, keep);
    check_at(g, "eliminate-dead", verify::Stage::Legal)
}
