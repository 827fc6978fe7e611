//! Errors as the command line shows them.

use std::fmt;
use std::path::Path;

/// What went wrong, with the exit status it leads to.
#[derive(Debug)]
pub struct Failure {
    /// 1: a check said no; 2: bad usage or bad input.
    pub status: u8,
    /// What happened, and where.
    pub what: String,
    /// What to try, if there is something.
    pub help: Option<String>,
}

impl Failure {
    /// Bad usage or bad input.
    pub fn input(what: impl Into<String>) -> Failure {
        Failure { status: 2, what: what.into(), help: None }
    }

    /// A check that said no.
    pub fn check(what: impl Into<String>) -> Failure {
        Failure { status: 1, what: what.into(), help: None }
    }

    /// The same about a file.
    pub fn at(self, path: &Path) -> Failure {
        Failure { what: format!("{}: {}", path.display(), self.what), ..self }
    }

    /// The same with advice.
    pub fn help(self, help: impl Into<String>) -> Failure {
        Failure { help: Some(help.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if let Some(help) = &self.help {
            write!(f, "\n  try: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}
