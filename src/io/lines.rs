//! Reports for people.

use std::fmt::{Display, Write};

/// A report: lines that begin with what they are about.
pub(crate) struct Lines {
    /// Characters before the text of a line.
    pub width: usize,
    pub text: String,
}

impl Lines {
    pub(crate) fn new(width: usize) -> Lines {
        Lines { width, text: String::new() }
    }

    /// Adds a line. A line without a name goes on with what the line before is about.
    pub(crate) fn put(&mut self, name: &str, text: impl Display) {
        let _ = writeln!(self.text, "{name:<0$}{text}", self.width);
    }
}

/// Adds a line to a report: what it is about, then its text as `format!` takes it.
macro_rules! put {
    ($lines:expr, $name:expr, $($text:tt)+) => {
        $lines.put($name, format_args!($($text)+))
    };
}

pub(crate) use put;
