//! `ancre-rewrite`: see the README.

use ancre_rewrite::cli::{Cli, Command};
use ancre_rewrite::engine::{self, child};
use ancre_rewrite::error::Failure;
use ancre_rewrite::rewrite::report;
#[cfg(feature = "ort")]
use ancre_rewrite::train;
use ancre_rewrite::{freeze, inspect, rewrite, runtime, verify};
use clap::{CommandFactory, Parser};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|a| a == child::ARGUMENT) {
        return ExitCode::from(child::serve());
    }
    report_full_disks();
    let cli = Cli::parse();
    // A panic unwinds through the outputs, which removes what was not finished.
    let done = catch_unwind(AssertUnwindSafe(|| run(&cli))).unwrap_or_else(|_| {
        Err(Failure::input("this is a fault of ancre-rewrite; nothing was written").help("report it with the lines above"))
    });
    engine::notices().iter().for_each(|notice| eprintln!("note: {notice}"));
    match done {
        Ok((text, status)) => {
            let mut out = std::io::stdout().lock();
            match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
                // A closed pipe (`| head`) is no error of ours.
                Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                    eprintln!("error: the report cannot be written: {e}");
                    ExitCode::from(2)
                }
                _ => ExitCode::from(status),
            }
        }
        Err(e) => {
            eprintln!("{}{e}", if e.status == 0 { "" } else { "error: " });
            ExitCode::from(e.status)
        }
    }
}

/// A file that may not grow further is to be an error of the write, not the end of the process: the default of this signal
/// would leave temporary files behind.
fn report_full_disks() {
    #[cfg(unix)]
    let _ = signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::new(AtomicBool::new(false)));
}

/// What goes to standard output, and the exit status.
fn run(cli: &Cli) -> Result<(String, u8), Failure> {
    let limits = match &cli.command {
        Some(Command::Verify(a)) => &a.limits,
        Some(Command::Inspect(a)) => &a.limits,
        _ => &cli.rewrite.limits,
    };
    child::isolate(child::Limits::of(limits.max_memory, limits.engine_timeout));
    let text = match &cli.command {
        #[cfg(feature = "ort")]
        Some(Command::Train(a)) => {
            let done = train::train_in_terminal(a)?;
            let text = match (a.json, a.quiet) {
                (true, _) => format!("{}\n", done.json()),
                (false, true) => String::new(),
                (false, false) => done.text(a.verbose),
            };
            return Ok((text, if done.interrupted { train::interrupt::STATUS } else { 0 }));
        }
        Some(Command::Verify(a)) => return verify::verify(a).map(|answer| (answer.text, answer.status)),
        Some(Command::Inspect(a)) => inspect::inspect(a)? + if a.json { "\n" } else { "" },
        Some(Command::Freeze(a)) => {
            let done = freeze::freeze(a)?;
            if a.json { format!("{}\n", done.json()) } else { freeze::text(&done) }
        }
        Some(Command::Runtime(a)) => runtime::runtime(a)?,
        Some(Command::Completions { shell }) => {
            let mut out = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "ancre-rewrite", &mut out);
            String::from_utf8_lossy(&out).into_owned()
        }
        None => {
            let (a, outcome) = (&cli.rewrite, rewrite::rewrite(&cli.rewrite)?);
            match (a.json, a.quiet) {
                (true, _) => format!("{}\n", report::json(&outcome)),
                (false, true) => String::new(),
                (false, false) => report::text(&outcome, a.verbose),
            }
        }
    };
    Ok((text, 0))
}
