//! The learned topology: which earlier states the blocks came to read.

use super::graph::TrainingGraph;
use crate::engine::ort::stepper::DeviceState;
use crate::error::Failure;
use crate::topology::weights::weights;
use crate::topology::{Network, Weights};
use serde::Serialize;
use std::fmt::Write;

/// How often the log tells the weights over a run, about.
pub(super) const LOGGED: u64 = 50;

/// With fewer shortcuts than this there is next to nothing to learn.
pub(super) const WORTH: usize = 2;

/// A weight of the router that is not on the original skip.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Shortcut {
    pub(super) chain: usize,
    /// The block that reads, from 1.
    pub(super) block: usize,
    /// The state it reads: `h0` is what the chain starts from, `h3` what its third block gave; `0:h3` is another chain's.
    pub(super) source: String,
    pub(super) weight: f32,
    /// Weight that the original skip into the block is left with.
    pub(super) skip: f32,
}

/// The routed network of a training graph, as checkpoints describe it.
pub(super) fn network(t: &TrainingGraph) -> Result<Option<Network>, Failure> {
    let name = t.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().replace(".train.", "."));
    Network::of(&t.graph, name).map_err(|e| Failure::input(e).at(&t.path))
}

/// The router's weights in a running state; `None` where the graph has no router, or the state lacks its tensors.
pub(super) fn weights_now(t: &TrainingGraph, state: &DeviceState) -> Option<Vec<Weights>> {
    let held = |name: &str| state.tensor(name).map(|t| t.to_f32());
    let default = |name: &str| t.graph.initializer(t.graph.find(name)?)?.to_f32().ok();
    weights(t.router.as_ref()?, &|name| held(name).or_else(|| default(name))).ok()
}

/// The shortcuts, the strongest first.
pub(super) fn shortcuts(all: &[Weights]) -> Vec<Shortcut> {
    let of = |w: &Weights| -> Vec<Shortcut> {
        let cells = w.all().filter(|(row, column, _)| !w.is_skip(*row, *column));
        let shortcut = |(row, column, weight): (usize, usize, f32)| Shortcut {
            chain: w.id,
            block: row + 1,
            source: w.columns[column].clone(),
            weight,
            skip: w.rows[row].last().copied().unwrap_or_default(),
        };
        cells.map(shortcut).collect()
    };
    let mut found: Vec<Shortcut> = all.iter().flat_map(of).collect();
    found.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
    found
}

/// The strongest shortcuts as lines.
pub(super) fn lines(all: &[Shortcut], most: usize) -> String {
    let mut text = String::new();
    for s in all.iter().take(most) {
        let _ = writeln!(
            text,
            "chain {}  {} -> block {}  weight {:+.3}  (the skip into it: {:+.3})",
            s.chain, s.source, s.block, s.weight, s.skip
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strongest_shortcut_comes_first() {
        let columns = ["h0", "h1", "h2"].map(String::from).to_vec();
        let all = [Weights { id: 4, columns, rows: vec![vec![1.0], vec![0.25, 0.75], vec![0.1, -0.5, 0.4]] }];
        let all = shortcuts(&all);
        let seen: Vec<_> = all.iter().map(|s| (s.block, s.source.as_str(), s.weight, s.skip)).collect();
        assert_eq!(seen, [(3, "h1", -0.5, 0.4), (2, "h0", 0.25, 0.75), (3, "h0", 0.1, 0.4)]);
        assert!(lines(&all, 1).starts_with("chain 4  h1 -> block 3  weight -0.500"), "{}", lines(&all, 1));
    }
}
