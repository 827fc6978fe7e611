//! The passes in the order in which they run, and the manager that runs them.
//!
//! A training graph takes [`ROUTE`], [`PREPARE`] and [`TRAIN`], a forward graph [`ROUTE`] and [`FORWARD`]; [`PIPELINES`] lists all
//! arrays by name. The arrays are the only place where an order is written: the main job, the tests, the diagram in docs/design.md and
//! `examples/opt.rs` read them.

mod choose;
mod context;
pub mod gradient;
mod manager;
mod outputs;
mod passes;
pub mod rewrite;
pub mod split;
pub mod training;
mod words;

pub use context::{Choice, Cx};
pub use manager::{Debugging, PassError, PassManager, PassRun};
pub use passes::*;
pub use words::{WordError, run_words};

pub use crate::transform::glob;

use crate::ir::Graph;
use crate::refusal::Applied;
use crate::verify::Stage;
use std::fmt::Write;

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

/// A pass.
#[derive(Clone, Copy)]
pub struct Pass {
    /// Name, a verb.
    pub name: &'static str,
    /// Its promise. The tests check each.
    pub contract: Contract,
    /// What it does and why it stands where it does.
    pub why: &'static str,
    /// Runs it.
    pub run: Run,
}

/// What runs a pass.
pub type Run = fn(&mut Graph, &mut Cx) -> Result<Applied, PassError>;

impl Pass {
    const fn new(name: &'static str, contract: Contract, why: &'static str, run: Run) -> Pass {
        Pass { name, contract, why, run }
    }
}

/// From the source to the routed graph, which all others start from.
pub const ROUTE: &[Pass] = &[ROUTE_SKIPS, ADD_ADAPTERS];

/// From the routed graph to the forward graph.
pub const FORWARD: &[Pass] = &[LOWER_ROUTES, ELIMINATE_DEAD, CONVERT_OPSET];

/// From the routed graph to one that can be differentiated: separate parameters in plain operators of one operator set.
pub const PREPARE: &[Pass] = &[
    FIX_INPUTS,
    INLINE_CONTROL_FLOW,
    SEPARATE_PARAMETERS,
    REBATCH,
    TIE_PARAMETERS,
    FLOAT_WEIGHTS,
    LEGALIZE,
    FAKE_QUANTIZE,
    CHOOSE_PARAMETERS,
    MASTER_COPIES,
    FOLD_CONSTANTS,
    LOWER_ATTENTION,
];

/// From the prepared graph to the training graph.
pub const TRAIN: &[Pass] = &[
    ACTIVATE_DROPOUT,
    TRAIN_BATCH_NORM,
    APPEND_LOSS,
    NARROW_PRODUCTS,
    DIFFERENTIATE,
    RECOMPUTE,
    APPEND_OPTIMIZER,
    DECLARE_OUTPUTS,
    LOWER_ROUTES,
    LOWER_ABSTRACT,
    ELIMINATE_DEAD,
    ALIGN_SCALARS,
    BLOCK_CONVOLUTIONS,
    MARK_IN_PLACE,
    DESCRIBE,
    WIDEN,
];

/// From the prepared graph to the evaluation graph: forward and loss, no updates.
pub const EVAL: &[Pass] =
    &[APPEND_LOSS, DECLARE_OUTPUTS, LOWER_ROUTES, LOWER_ABSTRACT, ELIMINATE_DEAD, BLOCK_CONVOLUTIONS, DESCRIBE, WIDEN];

/// From the prepared graph to the model with its state as inputs.
pub const INFER: &[Pass] = &[LOWER_ROUTES, LOWER_ABSTRACT, ELIMINATE_DEAD, DESCRIBE, WIDEN];

/// From a teacher's graph to one that can stand in a training graph, of the same batch and operator set.
pub const PREPARE_TEACHER: &[Pass] = &[FIX_INPUTS, INLINE_CONTROL_FLOW, REBATCH, LEGALIZE, FOLD_CONSTANTS];

/// From a model to one that can be differentiated with respect to what it has: its inputs and initializers stay as they are.
pub const PREPARE_GRADIENT: &[Pass] = &[INLINE_CONTROL_FLOW, LEGALIZE, CHOOSE_PARAMETERS, FOLD_CONSTANTS];

/// From the prepared graph to one that also gives gradients of its own outputs.
pub const GRAD: &[Pass] = &[
    APPEND_COTANGENTS,
    DIFFERENTIATE,
    DECLARE_GRADIENTS,
    LOWER_ROUTES,
    LOWER_ABSTRACT,
    ELIMINATE_DEAD,
    ALIGN_SCALARS,
    BLOCK_CONVOLUTIONS,
    WIDEN,
];

/// All pipelines by name.
pub const PIPELINES: &[(&str, &[Pass])] = &[
    ("route", ROUTE),
    ("forward", FORWARD),
    ("prepare", PREPARE),
    ("train", TRAIN),
    ("eval", EVAL),
    ("infer", INFER),
    ("prepare-teacher", PREPARE_TEACHER),
    ("prepare-gradient", PREPARE_GRADIENT),
    ("grad", GRAD),
];

/// Every pass once, in the order of the pipelines.
pub fn passes() -> Vec<&'static Pass> {
    let mut all: Vec<&'static Pass> = Vec::new();
    for pass in PIPELINES.iter().flat_map(|(_, passes)| *passes) {
        if !all.iter().any(|p| p.name == pass.name) {
            all.push(pass);
        }
    }
    all
}

/// From a routed graph to the forward graph that is emitted.
///
/// # Errors
/// A fault of a pass, with its name.
pub fn lower_forward(g: &mut Graph) -> Result<(), PassError> {
    PassManager::default().run_to_emit(FORWARD, g, &mut Cx::default())
}

/// Verifies a graph after a pass that was run by itself, in debug builds.
///
/// # Errors
/// Every violated invariant, with the pass that left it.
pub fn check(g: &Graph, pass: &'static str) -> Result<(), PassError> {
    if cfg!(debug_assertions) { PassManager::default().check(g, pass, Stage::Open) } else { Ok(()) }
}

/// Verifies a graph that is emitted without a pipeline, in release builds too. Violations of `source` itself are not reported.
///
/// # Errors
/// Every violated invariant.
pub fn ready(g: &Graph, source: &Graph, pass: &'static str) -> Result<(), PassError> {
    let mut manager = PassManager::default();
    manager.starts_from(source);
    manager.check(g, pass, Stage::Legal)
}

/// The pipelines as a Mermaid flow chart.
pub fn diagram() -> String {
    let mut text = String::from("flowchart TD\n");
    let chain = |passes: &[Pass]| passes.iter().map(|p| p.name).collect::<Vec<_>>().join("<br>");
    for (name, passes) in PIPELINES {
        let _ = writeln!(text, "  {name}[\"<b>{name}</b><br>{}\"]", chain(passes));
    }
    text += "  source([model.onnx]) --> route --> forward --> out([forward graph])\n";
    text += "  route --> prepare --> train --> trained([training graph])\n";
    text += "  prepare --> eval --> evaluated([evaluation graph])\n";
    text += "  prepare --> grad --> gradients([gradient graph])\n";
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse;

    const SUMS: &str = "g (float[2] x) => (float[2] y) <int64 a = {1}, int64 b = {2}> {
        s = Add (a, b) t = Mul (s, b) f = Cast <to = 1> (t) y = Mul (x, f) }";

    const BREAKS: Pass = Pass::new("breaks", Contract::Exact, "leaves a type that the rule does not give", |g, _| {
        let y = g.outputs()[0].value;
        g.set_type(y, crate::ir::TensorType::fixed(crate::ir::DType::F32, &[3]).into());
        Ok(Applied::of(1))
    });

    #[test]
    fn a_pass_that_breaks_a_graph_is_named_and_what_is_wrong_in_the_source_is_not_its_fault() {
        let mut g = parse(SUMS).unwrap();
        let run = |g: &mut Graph, manager: &mut PassManager| manager.run_to_emit(&[BREAKS], g, &mut Cx::default());
        let e = run(&mut g, &mut PassManager::default()).unwrap_err().to_string();
        assert!(e.contains("after pass breaks") && e.contains("`y`"), "{e}");
        let source = g.clone();
        let mut manager = PassManager::default();
        manager.starts_from(&source);
        run(&mut g, &mut manager).unwrap();
    }

    #[test]
    fn changes_end_at_the_limit_and_the_last_one_is_said() {
        for (limit, said) in [(0, ""), (1, "`s`"), (2, "`t`")] {
            let shown = std::cell::RefCell::new(String::new());
            let show = |text: &str| shown.borrow_mut().push_str(text);
            let mut manager = PassManager::new(Debugging { max_changes: Some(limit), ..Debugging::default() }, &show);
            manager.run(&[FOLD_CONSTANTS, FOLD_CONSTANTS], &mut parse(SUMS).unwrap(), &mut Cx::default()).unwrap();
            assert_eq!(manager.runs.iter().map(|r| r.changed).sum::<usize>(), limit);
            assert!(
                shown.borrow().contains(said) && (limit == 0) == shown.borrow().is_empty(),
                "{limit}: {}",
                shown.borrow()
            );
        }
    }

    /// The diagram of docs/design.md of the passes is the arrays'. `BLESS=1` writes it anew.
    #[test]
    fn design_page_shows_the_pipelines() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/design.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (begin, end) = ("<!-- pipelines -->\n```mermaid\n", "```\n<!-- /pipelines -->");
        let (before, rest) = page.split_once(begin).unwrap();
        let (shown, after) = rest.split_once(end).unwrap();
        let want = super::diagram();
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, format!("{before}{begin}{want}{end}{after}")).unwrap();
        } else {
            assert_eq!(shown, want, "docs/design.md is out of date: run this test with BLESS=1");
        }
    }
}
