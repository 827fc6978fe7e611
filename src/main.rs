//! `ancre-rewrite`: see the README.

use ancre_rewrite::engine::child::{self, Program};
use ancre_rewrite::tool;
use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|a| a == child::ARGUMENT) {
        return ExitCode::from(child::serve());
    }
    ExitCode::from(tool::main(std::env::args_os(), Program::this()))
}
