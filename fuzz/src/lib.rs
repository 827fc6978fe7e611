//! Fuzzing of `ancre-passes`: damaged models are taken from import to the proof, in this process and without an engine.
//!
//! - [`seeds`]: undamaged models: windows of `models/`, the golden texts, the operators' samples, what the passes emit, the corpus.
//! - [`mutate`]: damage to bytes, to messages, and changes that give another function.
//! - [`course`]: what a case goes through, and what must hold on the way.
//! - [`guard`]: limits on memory and time, and what a panic said.
//! - [`search`]: the loop: damage, run, keep what shows something new.
//! - [`minimise`]: makes a finding small.

pub mod case;
pub mod course;
pub mod guard;
pub mod minimise;
pub mod mutate;
pub mod search;
pub mod seeds;

/// A number below `n`; 0 when `n` is.
pub(crate) fn below(r: &mut ancre_passes::random::Random, n: usize) -> usize {
    r.below(n as u64) as usize
}

/// One of these, of which there is at least one.
pub(crate) fn pick<'a, T>(r: &mut ancre_passes::random::Random, of: &'a [T]) -> &'a T {
    &of[below(r, of.len())]
}
