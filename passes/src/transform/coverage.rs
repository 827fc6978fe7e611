//! The table of operators and their derivatives (`passes/OPERATORS.md`), written from the rules.

use crate::ops::{Derivative, rules, unruled};
use std::collections::BTreeMap;
use std::fmt::Write;

/// The whole file.
pub fn operator_table() -> String {
    let mut rows: BTreeMap<(&str, &str), (&str, &str)> = BTreeMap::new();
    for (domain, op, why) in unruled() {
        rows.insert((domain, op), ("none", why));
    }
    for rule in rules().iter().filter(|r| r.domain() != "ancre") {
        let (kind, what) = match rule.derivative() {
            Derivative::Pullback => ("pullback", ""),
            Derivative::Decompose(form) => ("by decomposition", form),
            Derivative::Zero => ("zero", ""),
            Derivative::None(why) => ("none", why),
        };
        rows.insert((rule.domain(), rule.name()), (kind, what));
    }
    let count = |kind: &str| rows.values().filter(|r| r.0 == kind).count();
    let mut text = format!(
        "# Operators and their derivatives\n\n\
         Written from the rules; `cargo test -p ancre-passes operators_file` says when it is out of date.\n\n\
         {} operators have a pullback, {} are written as other operators first, {} have derivative zero, {} have none, for the reason \
         given. An operator that is not listed is kept as it is and has no derivative either; the error names it and the path it lies \
         on.\n\n| operator | derivative | |\n|---|---|---|\n",
        count("pullback"),
        count("by decomposition"),
        count("zero"),
        count("none")
    );
    for ((domain, op), (kind, what)) in &rows {
        let name = if domain.is_empty() { op.to_string() } else { format!("{domain}.{op}") };
        let _ = writeln!(text, "| {name} | {kind} | {what} |");
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn operators_file_is_current() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/OPERATORS.md");
        let table = super::operator_table();
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(path, &table).unwrap();
        }
        let file = std::fs::read_to_string(path).unwrap_or_default();
        assert!(file == table, "passes/OPERATORS.md is out of date: run this test with BLESS=1");
    }
}
