//! The extension module `ancre_rewrite._native`: the command line's verbs for Python. What users see of it is in `ancre_rewrite/*.py`.
//!
//! A call is a command line with `--json`. The package builds it from keyword arguments by [`options`], so that both have the same
//! options, defaults and words.

use ancre_rewrite::cli::Cli;
use ancre_rewrite::engine::child::{self, Program};
use ancre_rewrite::engine::{self, ort::locate};
use ancre_rewrite::error::Failure;
use ancre_rewrite::tool;
use ancre_rewrite::train::graph::TrainingGraph;
use clap::{Arg, ArgAction, CommandFactory, Parser};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What an exception says: status, what, help, file, node, operator.
type Fault = (u8, String, Option<String>, Option<PathBuf>, Option<String>, Option<String>);

/// What a call did: what it would print, its exit status, notices; or the fault.
type Done = (String, u8, Vec<String>, Option<Fault>);

/// An option: name, does it take a value, may it be without one, may it be repeated, help.
type Described = (String, bool, bool, bool, String);

/// The stack of a call. Threads of Python have half a megabyte on some systems.
const STACK: usize = 16 << 20;
/// How long a call goes on before it looks whether Ctrl-C was pressed.
const PATIENCE: Duration = Duration::from_millis(50);

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{call, engine_child, main, options, prefer, start};
}

/// Carries out a command line, the first word of which is the program's name, and prints what comes of it. `interpreter` is the program
/// and the first arguments that start an engine.
#[pyfunction]
fn main(py: Python<'_>, words: Vec<OsString>, interpreter: Option<(PathBuf, Vec<OsString>)>) -> u8 {
    py.detach(|| tool::main(words, interpreter.map(program)))
}

/// Serves as an engine's process until its parent ends.
#[pyfunction]
fn engine_child(py: Python<'_>) -> u8 {
    py.detach(child::serve)
}

/// Says where the package `onnxruntime` of this interpreter lies.
#[pyfunction]
fn prefer(package: Option<PathBuf>) {
    locate::prefer(package);
}

/// Carries out a command line and prints nothing.
#[pyfunction]
fn call(py: Python<'_>, words: Vec<OsString>, interpreter: Option<(PathBuf, Vec<OsString>)>) -> PyResult<Done> {
    let (done, notices) = apart(py, move || {
        // The limits of engines and their notices are the process's.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let done = Cli::try_parse_from(words).map_err(usage).and_then(|cli| tool::run(&cli, interpreter.map(program)));
        (done, engine::notices())
    })?;
    Ok(match done {
        Ok((text, status)) => (text, status, notices, None),
        Err(e) => (String::new(), e.status, notices, Some(fault(e))),
    })
}

/// The state that the file of a training graph holds, as the bytes of a checkpoint; or the fault.
#[pyfunction]
fn start(py: Python<'_>, training: PathBuf) -> PyResult<(Vec<u8>, Option<Fault>)> {
    let read = move || TrainingGraph::read(&training).and_then(|t| t.start());
    Ok(match apart(py, read)? {
        Ok(bytes) => (bytes, None),
        Err(e) => (Vec::new(), Some(fault(e))),
    })
}

/// The options of a verb; of the main job without one.
#[pyfunction]
fn options(verb: Option<&str>) -> PyResult<Vec<Described>> {
    let mut all = Cli::command();
    all.build();
    let command = match verb {
        Some(verb) => {
            all.find_subcommand(verb).ok_or_else(|| PyValueError::new_err(format!("there is no verb `{verb}`")))?
        }
        None => &all,
    };
    let described = |a: &Arg| {
        let takes = matches!(a.get_action(), ArgAction::Set | ArgAction::Append);
        let optional = a.get_num_args().is_some_and(|n| n.min_values() == 0);
        let repeats = matches!(a.get_action(), ArgAction::Append) || a.get_value_delimiter().is_some();
        let help = a.get_help().map(ToString::to_string).unwrap_or_default();
        Some((a.get_long()?.to_string(), takes, optional, repeats, help))
    };
    let ours = |a: &&Arg| !matches!(a.get_id().as_str(), "help" | "version");
    Ok(command.get_arguments().filter(ours).filter_map(described).collect())
}

fn program((path, arguments): (PathBuf, Vec<OsString>)) -> Program {
    Program { path, arguments }
}

/// Runs something in a thread of its own, with the interpreter free meanwhile. After Ctrl-C nothing waits for it any more.
fn apart<T: Send + 'static>(py: Python<'_>, work: impl FnOnce() -> T + Send + 'static) -> PyResult<T> {
    let (send, done) = channel();
    let started = std::thread::Builder::new().stack_size(STACK).spawn(move || send.send(work()));
    started.map_err(|e| PyRuntimeError::new_err(format!("a thread does not start: {e}")))?;
    let done = Mutex::new(done);
    loop {
        let wait = || done.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(PATIENCE);
        match py.detach(wait) {
            Ok(found) => return Ok(found),
            Err(RecvTimeoutError::Timeout) => py.check_signals()?,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(PyRuntimeError::new_err("this is a fault of ancre-rewrite; report it with the lines above"));
            }
        }
    }
}

/// What is wrong with a command line, without what only concerns one that was typed.
fn usage(e: clap::Error) -> Failure {
    let text = e.to_string();
    let said =
        text.split("\n\nUsage:").next().unwrap_or_default().split("\n\nFor more information").next().unwrap_or_default();
    Failure::input(said.trim_start_matches("error: ").trim())
}

fn fault(e: Failure) -> Fault {
    let (node, operator) = place(&e.what).map_or((None, None), |(node, operator)| (Some(node), Some(operator)));
    let file = e.file.filter(|f| f != Path::new(""));
    (e.status, e.what, e.help, file, node, operator)
}

/// The node and the operator that a message names: messages write "node `name` (Operator)", engines "`Operator` (node `name`)".
fn place(what: &str) -> Option<(String, String)> {
    let (before, rest) = what.split_once("node `")?;
    let (node, after) = rest.split_once('`')?;
    let own = after.strip_prefix(" (").and_then(|a| a.split_once(')')).map(|(operator, _)| operator);
    let engines = || before.strip_suffix("` (")?.rsplit_once('`').map(|(_, operator)| operator);
    Some((node.to_string(), own.or_else(engines)?.to_string()))
}
