//! `ancre-rewrite`: see the README.
fn main() {}
