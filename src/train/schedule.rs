//! The learning rate over the steps.

use crate::cli::ScheduleKind;

/// A schedule with its numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Schedule {
    pub(super) kind: ScheduleKind,
    pub(super) lr: f64,
    /// Where all but a constant rate end.
    pub(super) min_lr: f64,
    /// Steps over which the rate rises in a straight line.
    pub(super) warmup: u64,
    pub(super) total: u64,
    /// Steps, at the beginning, in which a fresh head trains alone.
    pub(super) head: u64,
}

/// Part of the steps after the warm-up over which `wsd` goes down.
const DECAY: f64 = 0.4;

/// The rate of a head that trains alone, relative to that of all.
const HEAD: f64 = 10.0;

impl Schedule {
    /// A rate that stays after the warm-up.
    pub(super) fn constant(lr: f64, warmup: u64, total: u64) -> Schedule {
        Schedule { kind: ScheduleKind::Constant, lr, min_lr: 0.0, warmup, total, head: 0 }
    }

    /// The rate of a step, counted from 0. It depends on the step alone, so a resumed run has the same rates.
    pub(super) fn rate(&self, step: u64) -> f64 {
        let Some(step) = step.checked_sub(self.head) else { return HEAD * self.lr };
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / self.warmup as f64;
        }
        // The last step has the least rate.
        let rest = self.total.saturating_sub(self.head + self.warmup + 1).max(1);
        let done = ((step - self.warmup) as f64 / rest as f64).min(1.0);
        let share = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
            ScheduleKind::Linear => 1.0 - done,
            ScheduleKind::Wsd => ((1.0 - done) / DECAY).min(1.0),
        };
        self.min_lr + (self.lr - self.min_lr) * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(kind: ScheduleKind, warmup: u64, total: u64) -> Vec<f64> {
        let s = Schedule { kind, lr: 1.0, min_lr: 0.25, warmup, total, head: 0 };
        (0..total).map(|i| (s.rate(i) * 1e6).round() / 1e6).collect()
    }

    #[test]
    fn rates_rise_then_go_down_to_the_least() {
        assert_eq!(rates(ScheduleKind::Constant, 2, 4), [0.5, 1.0, 1.0, 1.0]);
        assert_eq!(rates(ScheduleKind::Linear, 2, 6), [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]);
        assert_eq!(rates(ScheduleKind::Cosine, 0, 3), [1.0, 0.625, 0.25]);
        assert_eq!(rates(ScheduleKind::Wsd, 1, 7), [1.0, 1.0, 1.0, 1.0, 1.0, 0.625, 0.25]);
        // A warm-up longer than the run, a run of one step.
        assert_eq!(rates(ScheduleKind::Cosine, 4, 2), [0.25, 0.5]);
        assert_eq!(rates(ScheduleKind::Linear, 0, 1), [1.0]);
        let s = Schedule { kind: ScheduleKind::Linear, lr: 1.0, min_lr: 0.0, warmup: 0, total: 5, head: 2 };
        assert_eq!((0..5).map(|i| s.rate(i)).collect::<Vec<_>>(), [10.0, 10.0, 1.0, 0.5, 0.0]);
    }
}
