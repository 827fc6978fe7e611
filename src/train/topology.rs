//! The learned topology: which earlier states the blocks came to read.

use crate::engine::Tensors;
use ancre_passes::contract::{ChainRecord, RouterRecord};
use ancre_passes::transform::route::reference_weights;
use serde::Serialize;
use std::fmt::Write;

/// A weight of the router that is not on the original skip.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Shortcut {
    pub(super) chain: usize,
    /// The block that reads, from 1.
    pub(super) block: usize,
    /// The state it reads: `h0` is what the chain starts from, `h3` what its third block gave; another chain's by its value.
    pub(super) source: String,
    pub(super) weight: f64,
    /// Weight that the original skip into the block is left with.
    pub(super) skip: f64,
}

/// The shortcuts of a state, the strongest first; `None` when the state lacks the router's tensors.
pub(super) fn shortcuts(router: &RouterRecord, state: &Tensors) -> Option<Vec<Shortcut>> {
    let mut all = Vec::new();
    for chain in &router.chains {
        let logits = state.get(&chain.logits)?.to_f32();
        let gate = match &chain.gate {
            Some(name) => Some(state.get(name)?.to_f32()),
            None => None,
        };
        if logits.len() != chain.blocks * chain.width() || gate.as_ref().is_some_and(|g| g.len() != chain.blocks) {
            return None;
        }
        let weights =
            reference_weights(&logits, gate.as_deref(), chain.blocks, router.parametrization, router.normalize, router.tau);
        for row in 0..chain.blocks {
            let reads = chain.reads(row);
            let of_row = &weights[row * chain.width()..row * chain.width() + reads];
            for (column, weight) in of_row[..reads - 1].iter().enumerate() {
                let source = source(chain, column);
                all.push(Shortcut { chain: chain.id, block: row + 1, source, weight: *weight, skip: of_row[reads - 1] });
            }
        }
    }
    all.sort_by(|a, b| b.weight.abs().total_cmp(&a.weight.abs()));
    Some(all)
}

fn source(chain: &ChainRecord, column: usize) -> String {
    match chain.sources.get(column) {
        Some(s) => format!("`{}`", s.state),
        None => format!("h{}", column - chain.sources.len()),
    }
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
    use crate::io::tensor::NpTensor;
    use ancre_passes::transform::route::{Form, Normalize, Rule, Scope};

    #[test]
    fn the_strongest_shortcut_comes_first() {
        let chain = ChainRecord {
            id: 4,
            blocks: 3,
            adds_per_block: 1,
            logits: "l".into(),
            gate: None,
            sources: vec![],
            states: (0..4).map(|i| format!("s{i}")).collect(),
            rows: vec![],
        };
        let router = RouterRecord {
            form: Form::Augment,
            granularity: "add".into(),
            scope: Scope::Stage,
            parametrization: Rule::Free,
            init: "uniform".into(),
            tau: 1.0,
            normalize: Normalize::Incoming,
            chains: vec![chain],
        };
        let l = [1.0, 9.0, 9.0, 0.25, 0.75, 9.0, 0.1, -0.5, 0.4];
        let state = Tensors::from([("l".to_string(), NpTensor::f32s(&[3, 3], &l).unwrap())]);
        let all = shortcuts(&router, &state).unwrap();
        let seen: Vec<_> = all.iter().map(|s| (s.block, s.source.as_str(), s.weight as f32, s.skip as f32)).collect();
        assert_eq!(seen, [(3, "h1", -0.5, 0.4), (2, "h0", 0.25, 0.75), (3, "h0", 0.1, 0.4)]);
        assert!(lines(&all, 1).starts_with("chain 4  h1 -> block 3  weight -0.500"), "{}", lines(&all, 1));
        assert!(shortcuts(&router, &Tensors::new()).is_none());
    }
}
