//! Runs passes: verifies the graph after each, times and counts them, and shows the graph between them for debugging.

use super::{Cx, Pass};
use crate::analysis::types;
use crate::ir::{Graph, ValueId};
use crate::ops::build::BuildError;
use crate::ops::{self, GradError};
use crate::refusal::Hint;
use crate::text;
use crate::transform::legalize::ConvertError;
use crate::transform::loss::LossError;
use crate::transform::rebatch::RebatchError;
use crate::transform::route::RouteError;
use crate::verify::{self, Mistyped, Stage};
use std::cell::OnceCell;
use std::time::Instant;

/// Why a pipeline ended early.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum PassError {
    #[error("{what}")]
    Unfit { what: String, hint: Option<Hint> },
    #[error(transparent)]
    Loss(LossError),
    #[error(transparent)]
    Gradient(#[from] GradError),
    #[error(transparent)]
    Route(#[from] RouteError),
    #[error(transparent)]
    Rebatch(#[from] RebatchError),
    #[error(transparent)]
    Convert(#[from] ConvertError),
    #[error("building the graph failed: {0}")]
    Build(#[from] BuildError),
    #[error("after pass {pass}, a fault of this tool:\n  {}", .found.iter().take(5).cloned().collect::<Vec<_>>().join("\n  "))]
    Invalid { pass: &'static str, found: Vec<String> },
    #[error("there is no {0} yet: the pass that makes it runs before")]
    Missing(&'static str),
    #[error("stopped after pass {0}")]
    Stopped(&'static str),
}

impl From<LossError> for PassError {
    fn from(e: LossError) -> PassError {
        match e {
            LossError::Build(e) => PassError::Build(e),
            e => PassError::Loss(e),
        }
    }
}

impl PassError {
    /// The graph does not have what was asked for.
    pub fn unfit(what: impl Into<String>) -> PassError {
        PassError::Unfit { what: what.into(), hint: None }
    }

    /// What the user may do about it.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            PassError::Unfit { hint, .. } => hint.clone(),
            PassError::Loss(e) => e.hint(),
            PassError::Route(e) => e.hint(),
            PassError::Gradient(GradError::NoPullback { hint, .. }) => hint.clone(),
            _ => None,
        }
    }
}

/// What to show and where to stop, for debugging.
#[derive(Clone, Debug, Default)]
pub struct Debugging {
    /// Show the graph after these passes; `all`: after each.
    pub print_after: Vec<String>,
    /// Stop after this pass.
    pub stop_after: Option<String>,
    /// Largest number of changes of all passes that could leave a place as it is. Bisection finds the change that breaks a graph: the
    /// last change under the smallest limit that breaks it.
    pub max_changes: Option<usize>,
}

impl Debugging {
    /// A name among the options that no pass has.
    pub fn unknown_pass(&self) -> Option<&str> {
        let all = super::passes();
        let mut named = self.print_after.iter().filter(|n| *n != "all").chain(&self.stop_after);
        named.find(|n| !all.iter().any(|p| p.name == **n)).map(String::as_str)
    }
}

/// One run of a pass.
#[derive(Clone, Copy, Debug)]
pub struct PassRun {
    /// The pass.
    pub pass: &'static str,
    /// Its changes.
    pub changed: usize,
    /// Places it refused to change.
    pub refused: usize,
    /// How long it took.
    pub seconds: f64,
}

/// Runs passes.
#[derive(Default)]
pub struct PassManager<'a> {
    /// Every run so far.
    pub runs: Vec<PassRun>,
    debugging: Debugging,
    /// Where graphs are shown.
    show: Option<&'a dyn Fn(&str)>,
    /// A graph whose own violations are not the fault of a pass.
    source: Option<&'a Graph>,
    /// Those violations, open and legal, once they have been asked for.
    known: [OnceCell<Vec<String>>; 2],
}

/// Types that the source declares, where nothing else could tell them, and that its operators contradict now that more is known: each
/// violation, and what is wrong with the file.
fn misdeclared(g: &Graph, source: &Graph) -> Vec<(String, String)> {
    let declared = types::declared(source);
    let told = |v: ValueId| {
        let types = ops::result_types(source.op(v.node)?, source.operands(v.node), source)?.ok()?;
        types.into_iter().nth(v.slot as usize)
    };
    let of_file = |m: &Mistyped| {
        let name = g.name(m.value);
        let said = declared.get(name)?.tensor().filter(|said| said.may_be(&m.have) && !said.may_be(&m.want))?;
        if source.find(name).and_then(told).is_some_and(|told| !told.may_be(&m.want)) {
            return None;
        }
        let what = format!("the file declares `{name}` as {said}, but {} gives {}", g.site(m.value.node), m.want);
        Some((m.violation(g), format!("{what}; correct the declaration or re-export the model")))
    };
    g.nodes().flat_map(|id| verify::mistyped(g, id)).filter_map(|m| of_file(&m)).collect()
}

impl<'a> PassManager<'a> {
    /// A manager that shows graphs by `show`.
    pub fn new(debugging: Debugging, show: &'a dyn Fn(&str)) -> PassManager<'a> {
        PassManager { debugging, show: Some(show), ..PassManager::default() }
    }

    /// From now on violations of `source` itself are not the fault of a pass.
    pub fn starts_from(&mut self, source: &'a Graph) {
        (self.source, self.known) = (Some(source), Default::default());
    }

    /// Runs passes one after the other.
    ///
    /// # Errors
    /// The first that fails, or that leaves an ill-formed graph (checked in debug builds).
    pub fn run(&mut self, passes: &[Pass], g: &mut Graph, cx: &mut Cx) -> Result<(), PassError> {
        for pass in passes {
            let begin = Instant::now();
            cx.changes_left = self.debugging.max_changes;
            let applied = (pass.run)(g, cx)?;
            if applied.left.is_some() {
                self.debugging.max_changes = applied.left;
            }
            if let Some(last) = &applied.last {
                self.say(&format!("# {}: {} changes, the last at {last}\n", pass.name, applied.changed));
            }
            let refused = applied.refused.len();
            let seconds = begin.elapsed().as_secs_f64();
            self.runs.push(PassRun { pass: pass.name, changed: applied.changed, refused, seconds });
            cx.refused.extend(applied.refused);
            if cfg!(debug_assertions) {
                self.check(g, pass.name, Stage::Open)?;
            }
            let stops = self.debugging.stop_after.as_deref() == Some(pass.name);
            if stops || self.debugging.print_after.iter().any(|n| n == pass.name || n == "all") {
                self.say(&format!("# after {}\n{}", pass.name, text::outline(g)));
            }
            if stops {
                return Err(PassError::Stopped(pass.name));
            }
        }
        Ok(())
    }

    /// Runs the passes after which a graph is emitted, and verifies it, in release builds too.
    ///
    /// # Errors
    /// As [`PassManager::run`].
    pub fn run_to_emit(&mut self, passes: &[Pass], g: &mut Graph, cx: &mut Cx) -> Result<(), PassError> {
        self.run(passes, g, cx)?;
        self.check(g, passes.last().map_or("", |p| p.name), Stage::Legal)
    }

    fn say(&self, text: &str) {
        if let Some(show) = self.show {
            show(text);
        }
    }

    pub(super) fn check(&self, g: &Graph, pass: &'static str, stage: Stage) -> Result<(), PassError> {
        let Err(mut found) = verify::verify(g, stage) else { return Ok(()) };
        if let Some(source) = self.source {
            let before = self.known[usize::from(stage == Stage::Legal)]
                .get_or_init(|| verify::verify(source, stage).err().unwrap_or_default());
            found.retain(|f| !before.contains(f));
        }
        if found.is_empty() {
            return Ok(());
        }
        let declared = self.source.map(|source| misdeclared(g, source)).unwrap_or_default();
        match declared.first().filter(|_| found.iter().all(|f| declared.iter().any(|(violation, _)| violation == f))) {
            Some((_, what)) => Err(PassError::unfit(what.clone())),
            None => Err(PassError::Invalid { pass, found }),
        }
    }
}
