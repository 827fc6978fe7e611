//! The guard: a loss that jumps takes the run back to its best state, at a lower rate. After a few times in a row it gives up.
//!
//! A jump is judged by the run itself. The measures are the loss of the first step, the running mean of the losses and their mean
//! distance from it. A single batch that is far off is no jump; three in a row are, or one beyond any measure. A loss that begins at zero,
//! as that of a network that is its own teacher, can only rise: the highest loss of its first steps is the measure then.

use super::progress::percent;
use serde::{Deserialize, Serialize};

/// How often in a row a run goes back, where the options do not say.
pub(super) const MOST: u32 = 3;
/// Factor on the rate each time.
const LOWER: f64 = 0.2;
/// Steps that a jump is seen over.
const WINDOW: usize = 3;
/// Part of the running means that a step keeps.
const KEEPS: f64 = 0.9;
/// Steps between two states that are kept, at least.
const KEEP_EVERY: u64 = 20;
/// Factor by which the gradients' norm grows in a jump.
const NORM: f64 = 30.0;
/// A first loss below it is zero but for rounding.
pub(super) const ZERO: f64 = 1e-5;
/// Steps in which a loss that begins at zero finds its level. Adam moves every weight by the whole rate, also where gradients are rounding.
const LEVEL: u64 = 10;
/// A loss scale of 2¹⁶ that halves this often is below 2⁻²⁴, the least number of float16: then it is not the scale that overflows.
const SKIPS: u32 = 40;

/// What the guard knows of a run; checkpoints hold it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(super) struct Guard {
    /// Factor on the schedule's rate.
    pub(super) scale: f64,
    /// All jumps so far.
    pub(super) jumps: Vec<Jump>,
    /// Jumps since a state was kept last.
    in_row: u32,
    /// Steps in a row that a loss scale has skipped.
    #[serde(default)]
    skipped: u32,
    seen: Seen,
}

/// A jump, and what was done.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(super) struct Jump {
    /// The step, from 1.
    pub(super) step: u64,
    /// What jumped.
    pub(super) what: String,
    /// Step of the state that the run went back to; 0 is the start.
    pub(super) restored: u64,
    /// The highest rate from here on.
    pub(super) lr: f64,
}

/// Measures of the losses.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
struct Seen {
    steps: u64,
    first: f64,
    /// Was the first loss zero?
    #[serde(default)]
    from_zero: bool,
    mean: f64,
    deviation: f64,
    /// The lowest running mean.
    best: f64,
    /// Of the last steps: loss, logarithm of the gradients' norm, mean and deviation before them.
    recent: Vec<[f64; 4]>,
    norm: f64,
    /// The highest of the first norms.
    first_norm: f64,
    kept_at: u64,
    kept_mean: f64,
}

impl Default for Guard {
    fn default() -> Guard {
        Guard { scale: 1.0, jumps: Vec::new(), in_row: 0, skipped: 0, seen: Seen::default() }
    }
}

impl Guard {
    /// May a step be passed over? A step under a loss scale that overflows changes nothing and lowers the scale.
    pub(super) fn skips(&mut self, loss: f64, norm: f64, has_scale: bool) -> bool {
        let is_skipped = has_scale && loss.is_finite() && !norm.is_finite();
        self.skipped = if is_skipped { self.skipped + 1 } else { 0 };
        is_skipped && self.skipped <= SKIPS
    }

    /// Did the loss begin at zero? Then it tells nothing of rates.
    pub(super) fn begins_at_zero(&self) -> bool {
        self.seen.from_zero
    }

    /// Looks at a step; says what jumped.
    pub(super) fn judge(&mut self, loss: f64, norm: f64) -> Option<String> {
        if !loss.is_finite() {
            return Some(format!("the loss is {loss}"));
        }
        if !norm.is_finite() {
            return Some(format!("the gradients' norm is {norm}"));
        }
        let s = &mut self.seen;
        let ln = norm.max(f64::MIN_POSITIVE).ln();
        s.steps += 1;
        if s.steps == 1 {
            (s.first, s.mean, s.best, s.kept_mean, s.norm, s.first_norm) = (loss, loss, loss, loss, ln, ln);
            s.from_zero = loss.abs() < ZERO;
            return None;
        }
        if s.from_zero && s.steps <= LEVEL {
            let level = s.first.abs().max(loss.abs());
            (s.first, s.mean, s.best, s.kept_mean) = (level, level, level, level);
            s.first_norm = s.first_norm.max(ln);
            s.norm = s.first_norm;
            return None;
        }
        if s.steps <= WINDOW as u64 {
            s.first_norm = s.first_norm.max(ln);
        }
        let size = s.first.abs().max(s.mean.abs());
        s.recent.push([loss, ln, s.mean, s.deviation]);
        if s.recent.len() > WINDOW {
            s.recent.remove(0);
        }
        let whole = s.recent.len() == WINDOW;
        let lately = s.recent.iter().map(|r| r[0]).sum::<f64>() / s.recent.len() as f64;
        let norms = s.recent.iter().map(|r| r[1]).sum::<f64>() / s.recent.len() as f64;
        // What a jump is measured by has not seen it yet.
        let [_, _, mean, deviation] = s.recent[0];
        let far = loss - s.mean > 8.0 * (size + s.deviation);
        let rose = whole && lately - mean > size + 6.0 * deviation;
        let steep = whole && lately > mean + deviation && norms > s.first_norm.max(s.norm) + NORM.ln();
        if far || rose || steep {
            let what = if steep && !rose { format!(" and the gradients' norm to {norm:.3e}") } else { String::new() };
            return Some(format!("the loss went from about {mean:.4} to {loss:.4}{what}"));
        }
        // One batch that is far off says little about the mean.
        let counted = loss.min(s.mean + size);
        s.mean = KEEPS * s.mean + (1.0 - KEEPS) * counted;
        s.deviation = KEEPS * s.deviation + (1.0 - KEEPS) * (counted - s.mean).abs();
        s.norm = KEEPS * s.norm + (1.0 - KEEPS) * ln;
        s.best = s.best.min(s.mean);
        let gained = s.first - s.best;
        if gained > 0.3 * s.first.abs() && s.mean - s.best > 0.7 * gained + s.deviation {
            let lost = percent((s.mean - s.best) / gained);
            return Some(format!(
                "the loss rose from about {:.4} to {:.4}: {lost} of what was learned is lost",
                s.best, s.mean
            ));
        }
        None
    }

    /// Is the state after this step worth keeping? Not while the loss is rising, and seldom, since it is copied.
    pub(super) fn keeps(&mut self, epoch_ends: bool) -> bool {
        let s = &mut self.seen;
        let since = s.steps - s.kept_at;
        let due = since >= KEEP_EVERY.max(s.steps / 4) || epoch_ends && since >= KEEP_EVERY / 2;
        if !due || s.mean > s.kept_mean + s.deviation {
            return false;
        }
        (s.kept_at, s.kept_mean) = (s.steps, s.mean);
        self.in_row = 0;
        true
    }

    /// Goes back to what was known when a state was kept; `most` is how often in a row it may. `lr` is the schedule's highest rate.
    pub(super) fn back(&mut self, then: &Guard, step: u64, what: &str, restored: u64, lr: f64, most: u32) -> Option<&Jump> {
        if self.in_row >= most {
            return None;
        }
        self.in_row += 1;
        self.scale *= LOWER;
        self.seen = then.seen.clone();
        self.seen.recent.clear();
        self.jumps.push(Jump { step, what: what.into(), restored, lr: lr * self.scale });
        self.jumps.last()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Step, from 1, at which the losses jump.
    fn jumps_at(losses: impl IntoIterator<Item = f64>) -> Option<usize> {
        let mut guard = Guard::default();
        losses.into_iter().position(|l| guard.judge(l, 1.0).is_some()).map(|i| i + 1)
    }

    #[test]
    fn a_gradient_that_overflows_at_every_loss_scale_jumps() {
        let mut guard = Guard::default();
        let skips = |guard: &mut Guard, norm| guard.skips(1.0, norm, true);
        assert!((0..SKIPS).all(|_| skips(&mut guard, f64::INFINITY)));
        assert!(!skips(&mut guard, f64::INFINITY));
        assert!(!skips(&mut guard, 1.0) && skips(&mut guard, f64::NAN), "a good step begins the count anew");
        assert!(!guard.skips(1.0, f64::NAN, false) && !guard.skips(f64::NAN, f64::NAN, true));
    }

    #[test]
    fn losses_that_leap_collapse_or_are_no_numbers_jump() {
        assert_eq!(jumps_at([1.63, 19.7]), Some(2));
        assert_eq!(jumps_at([1.0, f64::NAN]), Some(2));
        assert_eq!(jumps_at([1.6, 1.5, 4.0, 4.5, 5.0, 5.0]), Some(5));
        // What was learned goes, though no higher than where it began.
        let learned = (0..60).map(|i| 4.0 * 0.95f64.powi(i) + 0.2);
        let at = jumps_at(learned.chain([4.2; 60])).unwrap();
        assert!((61..90).contains(&at), "{at}");
        let mut guard = Guard::default();
        assert!(guard.judge(1.0, f64::INFINITY).is_some());
    }

    #[test]
    fn one_hard_batch_a_noisy_loss_and_a_loss_that_falls_below_zero_do_not_jump() {
        let mut losses: Vec<f64> = (0..80).map(|i| 2.0 * 0.93f64.powi(i)).collect();
        losses[50] = 3.0;
        losses[70] = 1.0;
        assert_eq!(jumps_at(losses), None);
        // Losses between 0.05 and 5, in no order.
        assert_eq!(jumps_at((0..500).map(|i| 5.0 / f64::from(1 + i * 37 % 101))), None);
        assert_eq!(jumps_at((0..200).map(|i| 1.0 - 0.1 * f64::from(i))), None);
        assert_eq!(jumps_at([0.0; 50]), None);
    }

    #[test]
    fn a_loss_that_begins_at_zero_is_measured_by_where_it_settles() {
        // A network that is its own teacher, at 5e-4 and at 2e-2.
        let calm = [-1.5e-9, 4e-9, 4.7e-6, 8.1e-6, 2e-6, 5e-6, 3e-6, 2e-6, 4e-6, 2e-6];
        let settled = (0..90).map(|i| 2e-6 * 0.97f64.powi(i) * (1.0 + f64::from(i % 3)));
        assert_eq!(jumps_at(calm.into_iter().chain(settled.clone())), None);
        let leap = calm.into_iter().chain(settled.take(20)).chain([3e-4]);
        assert_eq!(jumps_at(leap), Some(31));
        assert_eq!(jumps_at([0.0, 1e-6, f64::INFINITY]), Some(3));
        assert_eq!(jumps_at([1e-3, 19.7]), Some(2));
    }

    #[test]
    fn it_gives_up_after_jumps_in_a_row_and_a_state_that_is_kept_ends_the_row() {
        let mut guard = Guard::default();
        let then = guard.clone();
        let jump = guard.back(&then, 5, "x", 0, 1.0, 1).unwrap();
        assert_eq!((jump.lr, jump.restored), (LOWER, 0));
        assert!(guard.back(&then, 7, "x", 0, 1.0, 1).is_none());
        (0..KEEP_EVERY).for_each(|i| assert_eq!(guard.judge(2.0 - 0.01 * i as f64, 1.0), None));
        assert!(guard.keeps(false));
        assert!(guard.back(&then, 40, "x", 20, 1.0, 1).is_some());
    }
}
