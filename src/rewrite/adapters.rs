//! The adapters that the main job added, for its report.

use ancre_passes::contract::{AdapterRecord, AdaptersRecord};
use ancre_passes::ir::Graph;
use ancre_passes::refusal::Refusal;
use serde_json::{Value, json};

/// The adapters of a graph.
pub(crate) struct Adapted {
    record: AdaptersRecord,
    /// Elements of all A and B.
    elements: u64,
    /// Elements of adapted weights that are stored in integers, which are no parameters by their type.
    integers: u64,
    /// Maps that were meant and got none.
    refused: Vec<String>,
}

impl Adapted {
    pub(super) fn of(g: &Graph, record: AdaptersRecord, refused: &[Refusal]) -> Adapted {
        let len = |name: &str| g.find(name).and_then(|v| g.initializer(v)).map_or(0, |t| t.len() as u64);
        let elements = record.tensors().map(len).sum();
        let of_map = |a: &AdapterRecord| len(&a.a) * len(&a.b) / (record.rank * record.rank).max(1) as u64;
        let integers = record.adapters.iter().filter(|a| a.quantised).map(of_map).sum();
        Adapted { record, elements, integers, refused: refused.iter().map(Refusal::to_string).collect() }
    }

    /// What is said of maps without an adapter.
    pub(super) fn notice(&self) -> Option<String> {
        let first = self.refused.first()?;
        let n = self.refused.len();
        Some(format!("{n} maps inside residual branches get no adapter: {first}{}", if n > 1 { ", …" } else { "" }))
    }

    /// In words, beside the number of the model's own parameters.
    pub(super) fn text(&self, parameters: u64) -> String {
        let AdaptersRecord { rank, alpha, adapters } = &self.record;
        let parameters = parameters + self.integers;
        let share = 100.0 * self.elements as f64 / (parameters.max(1)) as f64;
        let s = if adapters.len() == 1 { "" } else { "s" };
        let quantised = adapters.iter().filter(|a| a.quantised).count();
        let stored = if quantised > 0 { format!(", {quantised} of them stored in integers") } else { String::new() };
        format!(
            "rank {rank}, alpha {alpha} on {} weight{s}{stored}: {} elements, {share:.2}% beside the model's {parameters}",
            adapters.len(),
            self.elements
        )
    }

    pub(super) fn json(&self, parameters: u64) -> Value {
        let AdaptersRecord { rank, alpha, adapters } = &self.record;
        let parameters = parameters + self.integers;
        json!({"rank": rank, "alpha": alpha, "adapters": adapters, "elements": self.elements,
               "share": self.elements as f64 / parameters.max(1) as f64, "refused": self.refused})
    }
}
