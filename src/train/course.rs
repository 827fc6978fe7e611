//! What decides the course of a run. A run is only resumed with the same.

use crate::error::Failure;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What decides the course of a run, as its checkpoints record it.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[allow(missing_docs)]
pub(super) struct Course {
    /// Hash of the training graph's file.
    pub(super) graph: String,
    /// Hash of some of the samples, their number, and how they are read.
    pub(super) data: String,
    pub(super) seed: u64,
    pub(super) batch_size: usize,
    pub(super) lr: f64,
    pub(super) schedule: String,
    pub(super) warmup: u64,
    pub(super) min_lr: f64,
    /// Steps in which a fresh head trains alone.
    #[serde(default)]
    pub(super) head_first: u64,
    /// Steps of the whole run, where the schedule depends on them.
    pub(super) steps: Option<u64>,
    /// What changes the last bits only.
    pub(super) environment: Environment,
}

/// What changes the last bits of a run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[allow(missing_docs)]
pub(super) struct Environment {
    pub(super) device: String,
    pub(super) threads: Option<usize>,
    /// Processes that share a batch.
    #[serde(default = "one")]
    pub(super) ranks: usize,
    pub(super) runtime: String,
    pub(super) optimization: String,
}

fn one() -> usize {
    1
}

impl Course {
    /// Compares with the course of the checkpoint to resume from; returns what may change the last bits. Fails when
    /// it is another course; the error names every difference.
    pub(super) fn check(&self, then: &Course) -> Result<Vec<String>, Failure> {
        let lists = |c: &Course| -> Vec<(String, Value)> {
            let value = serde_json::to_value(c).unwrap_or_default();
            value.as_object().into_iter().flatten().map(|(k, v)| (k.clone(), v.clone())).collect()
        };
        let mut differences = Vec::new();
        let mut environment = Vec::new();
        for ((key, now), (_, before)) in lists(self).into_iter().zip(lists(then)) {
            match key.as_str() {
                _ if now == before => {}
                "graph" => differences.push("the training graph is another one".to_string()),
                "data" => differences.push("the data are others, or are read in another way".to_string()),
                "environment" => {
                    for (name, value) in now.as_object().into_iter().flatten().filter(|(n, v)| before.get(n) != Some(v)) {
                        let before = before.get(name).unwrap_or(&Value::Null);
                        environment.push(format!("{name} {} (it was {})", plain(value), plain(before)));
                    }
                }
                _ => {
                    let option = key.replace('_', "-");
                    differences.push(format!("--{option} is {}, it was {}", plain(&now), plain(&before)));
                }
            }
        }
        if differences.is_empty() {
            return Ok(environment);
        }
        Err(Failure::input(format!("--resume would not continue the run it finds: {}", differences.join("; ")))
            .help("give the options of that run, or start another one with another --out"))
    }
}

fn plain(v: &Value) -> String {
    match v {
        Value::String(s) => s.clone(),
        Value::Null => "not set".into(),
        other => other.to_string(),
    }
}

/// A hash of 64 bits that is the same in every build: FNV-1a over eight bytes at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hash(u64);

impl Default for Hash {
    fn default() -> Hash {
        Hash(0xcbf2_9ce4_8422_2325)
    }
}

impl Hash {
    /// Adds bytes and their number.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|w| self.mix(u64::from_le_bytes(*w)));
        rest.iter().for_each(|b| self.mix(u64::from(*b)));
        self.mix(bytes.len() as u64);
    }

    fn mix(&mut self, word: u64) {
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        // A product carries bits upwards only.
        self.0 ^= self.0 >> 32;
    }

    pub(super) fn number(&self) -> u64 {
        self.0
    }

    pub(crate) fn text(self) -> String {
        format!("{:016x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_course_is_refused_by_name_and_another_environment_is_told() {
        let a = Course { lr: 0.1, batch_size: 4, schedule: "cosine".into(), steps: Some(10), ..Course::default() };
        assert_eq!(a.check(&a).unwrap(), Vec::<String>::new());
        let b = Course { lr: 0.2, steps: None, graph: "x".into(), ..a.clone() };
        let e = b.check(&a).unwrap_err();
        for said in ["the training graph is another one", "--lr is 0.2, it was 0.1", "--steps is not set, it was 10"] {
            assert!(e.what.contains(said), "{e}");
        }
        assert_eq!(e.status, 2);
        let mut c = a.clone();
        c.environment.threads = Some(2);
        assert_eq!(c.check(&a).unwrap(), ["threads 2 (it was not set)"]);
    }

    #[test]
    fn a_hash_sees_every_byte_and_where_it_is() {
        let of = |parts: &[&[u8]]| {
            let mut h = Hash::default();
            parts.iter().for_each(|p| h.add(p));
            h.text()
        };
        let base = [7u8; 40];
        for i in 0..40 {
            let mut other = base;
            other[i] ^= 0x80;
            assert_ne!(of(&[&base]), of(&[&other]), "{i}");
        }
        assert_ne!(of(&[b"ab", b"c"]), of(&[b"a", b"bc"]));
        assert_eq!(of(&[&base]), of(&[&base]));
    }
}
