//! A command line from its words to what it prints. The executable and the Python package start here.

use crate::cli::{Cli, Command};
use crate::engine;
use crate::engine::child::{self, Program};
use crate::error::Failure;
use crate::rewrite::report;
#[cfg(feature = "ort")]
use crate::{compare, train};
use crate::{freeze, grad, inspect, rewrite, runtime, text, topology, verify};
use clap::{CommandFactory, Parser};
use serde_json::Value;
use std::ffi::OsString;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// Carries out a command line, whose first word is the program's name, and prints what comes of it. The exit status comes back.
pub fn main(words: impl IntoIterator<Item = OsString>, program: Option<Program>) -> u8 {
    report_full_disks();
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(e) => {
            let _ = e.print();
            return e.exit_code() as u8;
        }
    };
    let _watch = match &cli.command {
        Some(Command::Verify(a)) => verify::watch(a),
        _ => None,
    };
    let done = run(&cli, program);
    engine::notices().iter().for_each(|notice| eprintln!("note: {notice}"));
    match done {
        Ok((text, status)) => {
            let mut out = std::io::stdout().lock();
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                // A reader that closes the pipe (`| head`) is no error.
                Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                    eprintln!("error: the report cannot be written: {e}");
                    2
                }
                _ => status,
            }
        }
        Err(e) => {
            eprintln!("{}{e}", if e.status == 0 { "" } else { "error: " });
            e.status
        }
    }
}

/// Turns a write past the file-size limit into an error. By default its signal ends the process, which leaves temporary files
/// behind.
fn report_full_disks() {
    #[cfg(unix)]
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// The report that was asked for.
fn chosen(is_json: bool, is_quiet: bool, json: impl Fn() -> Value, text: impl Fn() -> String) -> String {
    match (is_json, is_quiet) {
        (true, _) => format!("{}\n", json()),
        (false, true) => String::new(),
        (false, false) => text(),
    }
}

/// Carries out a command line: what goes to standard output, and the exit status. A panic is a [`Failure`]; it has unwound through the
/// outputs, which remove unfinished files. Without a `program` engines run in this process, which then dies of what they die of.
pub fn run(cli: &Cli, program: Option<Program>) -> Result<(String, u8), Failure> {
    catch_unwind(AssertUnwindSafe(|| carry_out(cli, program))).unwrap_or_else(|_| Err(Failure::fault("nothing was written")))
}

fn carry_out(cli: &Cli, program: Option<Program>) -> Result<(String, u8), Failure> {
    let limits = match &cli.command {
        Some(Command::Verify(a)) => &a.limits,
        Some(Command::Inspect(a)) => &a.limits,
        Some(Command::Grad(a)) => &a.limits,
        _ => &cli.rewrite.limits,
    };
    let time = limits.engine_timeout.map(Duration::from_secs);
    if let Some(program) = program {
        child::isolate(program, child::Limits { memory: limits.max_memory, time });
    }
    let text = match &cli.command {
        #[cfg(feature = "ort")]
        Some(Command::Train(a)) => {
            let done = train::train(a)?;
            let text = match done.is_told() {
                true => chosen(a.json, a.quiet, || done.json(), || done.text(a.verbose)),
                false => String::new(),
            };
            return Ok((text, if done.interrupted { train::interrupt::STATUS } else { 0 }));
        }
        #[cfg(feature = "ort")]
        Some(Command::Compare(a)) => {
            let done = compare::compare(a)?;
            let text = chosen(a.json, a.quiet, || done.json(), || done.text());
            return Ok((text, if done.interrupted { train::interrupt::STATUS } else { 0 }));
        }
        Some(Command::Verify(a)) => return verify::verify(a).map(|answer| (answer.text, answer.status)),
        Some(Command::Inspect(a)) => inspect::inspect(a)? + if a.json { "\n" } else { "" },
        Some(Command::Freeze(a)) => {
            let done = freeze::freeze(a)?;
            chosen(a.json, false, || done.json(), || freeze::text(&done))
        }
        Some(Command::Grad(a)) => {
            let done = grad::grad(a)?;
            chosen(a.json, false, || done.json(), || done.text())
        }
        Some(Command::Topology(a)) => {
            let found = topology::topology(a)?;
            chosen(a.json, false, || found.json(), || found.text())
        }
        Some(Command::Tokenize(a)) => {
            let done = text::tokenize(a)?;
            chosen(a.json, false, || done.json(), || done.text())
        }
        Some(Command::Runtime(a)) => runtime::runtime(a)?,
        Some(Command::Completions { shell }) => {
            let mut out = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "ancre-rewrite", &mut out);
            String::from_utf8_lossy(&out).into_owned()
        }
        None => {
            let (a, outcome) = (&cli.rewrite, rewrite::rewrite(&cli.rewrite)?);
            chosen(a.json, a.quiet, || report::json(&outcome), || report::text(&outcome, a.verbose))
        }
    };
    Ok((text, 0))
}
