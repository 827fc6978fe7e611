//! The search: damage a model, run it, keep it if it shows something that none before it did.

use crate::case::Case;
use crate::course::{self, Outcome};
use crate::guard;
use crate::mutate::{Mutant, mutate};
use crate::seeds::Seed;
use crate::{below, pick};
use ancre_passes::ir::Graph;
use ancre_passes::random::Random;
use std::collections::{BTreeMap, HashSet};

/// Smaller inputs run faster and are as likely to show something: large ones are kept only while few are.
const LARGEST_KEPT: usize = 16 << 10;

/// Findings of one kind.
#[derive(Clone, Debug)]
pub struct Finding {
    /// How many cases.
    pub count: usize,
    /// The smallest.
    pub case: Case,
    /// What it said.
    pub detail: String,
    /// What was done to the model it was made of.
    pub done: Vec<&'static str>,
}

/// A claim of the proof about a model and what was made of it, to be tried in an engine.
pub struct Claim {
    /// The changes.
    pub kind: String,
    /// The model.
    pub model: Vec<u8>,
    /// What was made of it.
    pub changed: Vec<u8>,
}

/// A search under way.
pub struct Search {
    seed: u64,
    seeds: Vec<Entry>,
    features: HashSet<u64>,
    claimed: HashSet<String>,
    /// Findings by kind.
    pub findings: BTreeMap<String, Finding>,
    /// Cases run.
    pub executions: u64,
    /// Cases that could be read.
    pub read: u64,
}

struct Entry {
    seed: Seed,
    /// Its graph, for the proof.
    graph: Option<Graph>,
}

/// What one step gave.
pub struct Step {
    /// A case that showed something new.
    pub kept: Option<Case>,
    /// Kinds of findings that are new, or have a smaller case now.
    pub found: Vec<String>,
    /// A claim of a new kind.
    pub claim: Option<Claim>,
}

impl Search {
    /// A search from these seeds.
    pub fn new(seed: u64, seeds: Vec<Seed>) -> Search {
        let (features, claimed, findings) = (HashSet::new(), HashSet::new(), BTreeMap::new());
        let mut s = Search { seed, seeds: Vec::new(), features, claimed, findings, executions: 0, read: 0 };
        for seed in seeds {
            let mut outcome = course::run(&seed.case);
            s.note(&seed.case, &mut outcome, &["nothing"]);
            s.features.extend(outcome.features);
            s.seeds.push(Entry { seed, graph: outcome.source });
        }
        s
    }

    /// Number of inputs, and of things seen.
    pub fn size(&self) -> (usize, usize) {
        (self.seeds.len(), self.features.len())
    }

    /// The next case. `before` is told of it before it runs.
    pub fn step(&mut self, number: u64, before: impl FnOnce(&Case)) -> Step {
        let r = &mut Random::new(self.seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15), "search");
        // The newest half of the inputs gets half of the tries.
        let n = self.seeds.len();
        let from = if below(r, 2) == 0 { n / 2 } else { 0 };
        let base = from + below(r, n - from);
        let mutant = mutate(&self.seeds[base].seed, &pick(r, &self.seeds).seed, r);
        before(&mutant.case);
        let mut outcome = course::run(&mutant.case);
        self.executions += 1;
        self.read += u64::from(outcome.source.is_some());
        let claim = self.compare(base, &mutant, &mut outcome);
        let mut found = self.note(&mutant.case, &mut outcome, &mutant.done);
        let new = outcome.features.difference(&self.features).count();
        let mut kept = None;
        if new > 0 && found.is_empty() && outcome.faults.is_empty() {
            self.features.extend(outcome.features.iter().copied());
            if mutant.case.bytes.len() <= LARGEST_KEPT {
                if below(r, 4) == 0 {
                    found.extend(self.repeat(&mutant.case, &outcome));
                }
                kept = Some(mutant.case.clone());
                self.seeds.push(Entry { seed: Seed::of(mutant.case), graph: outcome.source });
            }
        }
        Step { kept, found, claim }
    }

    /// The proof on a model and what was made of it.
    fn compare(&mut self, base: usize, mutant: &Mutant, outcome: &mut Outcome) -> Option<Claim> {
        let (Some(a), Some(b)) = (&self.seeds[base].graph, &outcome.source) else { return None };
        if self.seeds[base].seed.case.bytes == mutant.case.bytes {
            return None;
        }
        let proof = match guard::caught(|| course::prove(a, b)) {
            Ok(proof) => proof,
            Err((place, what)) => {
                outcome.fault(format!("panic at {place}"), &what);
                return None;
            }
        };
        if !proof.proved {
            return None;
        }
        if mutant.differs {
            outcome.fault("a proof of what is not equal".into(), &format!("{:?}", proof.rewrites));
        }
        let mut changes = mutant.done.clone();
        changes.sort_unstable();
        changes.dedup();
        let kind = changes.join(", ");
        let (model, changed) = (self.seeds[base].seed.case.bytes.clone(), mutant.case.bytes.clone());
        self.claimed.insert(kind.clone()).then_some(Claim { kind, model, changed })
    }

    /// Two runs write the same files; notes it where they do not.
    fn repeat(&mut self, case: &Case, first: &Outcome) -> Vec<String> {
        let mut outcome = Outcome::default();
        if course::run(case).emitted != first.emitted {
            outcome.fault("two runs write different files".into(), "");
        }
        self.note(case, &mut outcome, &["a second run"])
    }

    /// Notes what must not be; returns the kinds that are new or have a smaller case.
    fn note(&mut self, case: &Case, outcome: &mut Outcome, done: &[&'static str]) -> Vec<String> {
        let mut found = Vec::new();
        for fault in &outcome.faults {
            let finding = || Finding { count: 0, case: case.clone(), detail: fault.detail.clone(), done: done.to_vec() };
            let known = self.findings.contains_key(&fault.kind);
            let entry = self.findings.entry(fault.kind.clone()).or_insert_with(finding);
            entry.count += 1;
            if !known || entry.case.bytes.len() > 2 * case.bytes.len() {
                *entry = Finding { count: entry.count, ..finding() };
                found.push(fault.kind.clone());
            }
        }
        found
    }
}
