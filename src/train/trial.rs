//! The rate where none is given: a few around the rule's, each tried for a small part of the run on a copy of the state.
//!
//! All begin at the same state and see the same batches, so that their losses compare step by step. The rates lie a factor apart. From the
//! rule's the trial goes up as long as the higher rate is no worse, and down where the first one up was. Two rates between which the batches'
//! noise decides are tried for twice as many steps; where that does not tell them apart either, the higher one is taken: a constant high
//! rate looks worse than it ends, since the run's own rate goes down at the end.

use super::data::Batches;
use super::guard::Guard;
use super::interrupt;
use super::rates::Ground;
use super::schedule::Schedule;
use crate::engine::{EngineError, Tensors};
use crate::error::Failure;
use serde::Serialize;

/// From one rate to the next.
const FACTOR: f64 = 3.0;
/// Rates above and below the rule's, at most.
const REACH: i32 = 2;
/// Part of the run that each rate is tried for, in steps, and the least and the most.
const SHARE: u64 = 6;
const LEAST: u64 = 6;
const MOST: u64 = 100;
/// Mean differences beyond so many standard errors are no noise.
const CLEAR: f64 = 2.0;
/// Standard errors that a higher rate may be behind, after twice the steps, and a lower one has to be ahead.
const LENIENT: f64 = 1.0;

/// A rate that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Tried {
    pub(super) lr: f64,
    /// Steps with it.
    pub(super) steps: u64,
    /// Mean loss over the last half of its steps; none where the loss jumped.
    pub(super) loss: Option<f64>,
}

/// What a trial found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Trial {
    /// Steps with each rate, at first.
    pub(super) steps: u64,
    /// In the order of the rates.
    pub(super) tried: Vec<Tried>,
    /// The rate that was chosen; none where the loss jumped at all.
    pub(super) lr: Option<f64>,
}

/// Steps of a trial with each rate; `None` where a run is too short for one.
pub(super) fn steps(total: u64) -> Option<u64> {
    (total >= SHARE * LEAST / 2).then_some((total / SHARE).clamp(LEAST, MOST))
}

/// A rate's losses so far.
struct Course {
    lr: f64,
    /// Those of steps that tell nothing are no numbers.
    losses: Vec<f64>,
    jumped: bool,
    guard: Guard,
    batches: Batches,
    /// The state after these steps, where it may be needed.
    then: Option<Tensors>,
}

impl Course {
    fn tried(&self) -> Tried {
        let last = self.losses[self.losses.len() / 2..].iter().copied().filter(|l| !l.is_nan());
        let (n, sum) = last.fold((0, 0.0), |(n, sum), l| (n + 1, sum + l));
        let loss = (n > 0 && !self.jumped).then(|| sum / f64::from(n));
        Tried { lr: self.lr, steps: self.losses.len() as u64, loss }
    }
}

/// Tries rates around `rule`. Fails when a step or a batch does.
pub(super) fn trial(ground: &mut Ground, rule: f64, steps: u64) -> Result<Trial, Failure> {
    let first = ground.state.tensors().map_err(|e| failed(e, ground))?;
    let mut runner = Runner { ground, first, rule, steps };
    let mut holder = runner.begin(0)?;
    let mut others = Vec::new();
    climb(&mut |exponent| {
        let (wins, other) = runner.challenge(&mut holder, exponent)?;
        others.push(other.tried());
        Ok::<_, Failure>(wins)
    })?;
    let Runner { ground, first, .. } = runner;
    ground.state.put_back(&first).map_err(|e| failed(e, ground))?;
    let winner = holder.tried();
    let mut tried = [others, vec![winner]].concat();
    tried.sort_by(|a, b| a.lr.total_cmp(&b.lr));
    Ok(Trial { steps, tried, lr: winner.loss.map(|_| winner.lr) })
}

fn failed(e: EngineError, ground: &Ground) -> Failure {
    Failure::input(format!("trying learning rates: {e}")).at(&ground.t.path)
}

struct Runner<'g, 'a> {
    ground: &'g mut Ground<'a>,
    /// The state before all.
    first: Tensors,
    rule: f64,
    steps: u64,
}

impl Runner<'_, '_> {
    /// The first steps with a rate.
    fn begin(&mut self, exponent: i32) -> Result<Course, Failure> {
        self.ground.state.put_back(&self.first).map_err(|e| failed(e, self.ground))?;
        let (lr, batches) = (rounded(self.rule * FACTOR.powi(exponent)), (self.ground.batches)());
        let mut course = Course { lr, losses: Vec::new(), jumped: false, guard: Guard::default(), batches, then: None };
        self.go_on(&mut course, self.steps)?;
        Ok(course)
    }

    /// Goes on to so many steps, on the state as it is.
    fn go_on(&mut self, course: &mut Course, steps: u64) -> Result<(), Failure> {
        let Ground { t, steps: made, state, .. } = &mut *self.ground;
        let schedule = Schedule::constant(course.lr, self.steps / 4, steps);
        while (course.losses.len() as u64) < steps && !course.jumped {
            if interrupt::came() {
                return Err(Failure { status: interrupt::STATUS, ..Failure::input("interrupted before the first step") });
            }
            let Some(batch) = course.batches.next() else { break };
            let (batch, rate) = (batch?, schedule.rate(course.losses.len() as u64));
            let done = made.step(t, (&batch.feeds, batch.samples), rate, false, state);
            let done = done.map_err(|e| Failure { what: format!("trying learning rates: {}", e.what), ..e }.at(&t.path))?;
            let (loss, norm) = (done.loss, done.grad_norm);
            // Labels that are all ignored tell nothing.
            let is_empty = loss.is_nan() && norm == 0.0;
            if is_empty || course.guard.skips(loss, norm, t.has_loss_scale()) {
                course.losses.push(f64::NAN);
                continue;
            }
            course.jumped = course.guard.judge(loss, norm).is_some() || course.guard.begins_at_zero();
            course.losses.push(loss);
        }
        Ok(())
    }

    /// Tries another rate against the one that holds. Returns whether it wins, and the one that lost; the winner holds.
    fn challenge(&mut self, holder: &mut Course, exponent: i32) -> Result<(bool, Course), Failure> {
        if holder.then.is_none() {
            holder.then = Some(self.ground.state.tensors().map_err(|e| failed(e, self.ground))?);
        }
        let mut other = self.begin(exponent)?;
        let told = Difference::of(&other.losses, &holder.losses, self.steps);
        let undecided = !other.jumped && !holder.jumped && !told.is_clear();
        if undecided {
            self.go_on(&mut other, 2 * self.steps)?;
            if (holder.losses.len() as u64) < 2 * self.steps {
                let then = holder.then.take().unwrap_or_default();
                self.ground.state.put_back(&then).map_err(|e| failed(e, self.ground))?;
                self.go_on(holder, 2 * self.steps)?;
            }
        }
        let wins = match (other.jumped, holder.jumped) {
            (true, _) => false,
            (false, true) => true,
            _ if undecided => Difference::of(&other.losses, &holder.losses, 2 * self.steps).favours(exponent > 0),
            _ => told.mean < 0.0,
        };
        if wins {
            std::mem::swap(holder, &mut other);
        }
        Ok((wins, other))
    }
}

/// How far the losses of one rate are from those of another.
#[derive(Clone, Copy, Debug)]
struct Difference {
    mean: f64,
    /// Standard error of the mean.
    error: f64,
}

impl Difference {
    /// Over the last half of the first so many steps.
    fn of(a: &[f64], b: &[f64], steps: u64) -> Difference {
        let pairs = a.iter().zip(b).take(steps as usize).skip(steps as usize / 2).map(|(a, b)| a - b);
        let all: Vec<f64> = pairs.filter(|d| d.is_finite()).collect();
        let n = all.len() as f64;
        let mean = all.iter().sum::<f64>() / n;
        let variance = all.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / (n - 1.0);
        Difference { mean, error: (variance / n).sqrt() }
    }

    /// Is it more than noise? Not where there are too few steps to tell.
    fn is_clear(&self) -> bool {
        self.mean.abs() > CLEAR * self.error
    }

    /// Is the first rate to be preferred, as the higher one or the lower one?
    fn favours(&self, higher: bool) -> bool {
        self.mean < LENIENT * self.error * if higher { 1.0 } else { -1.0 }
    }
}

/// To three digits: a rate that a person can write.
fn rounded(lr: f64) -> f64 {
    format!("{lr:.2e}").parse().unwrap_or(lr)
}

/// Goes from the middle rate up while that wins, else down while that does. Rates are powers of the factor.
fn climb<E>(wins: &mut impl FnMut(i32) -> Result<bool, E>) -> Result<(), E> {
    let mut up = 1;
    while up <= REACH && wins(up)? {
        up += 1;
    }
    let mut down = 1;
    while up == 1 && down <= REACH && wins(-down)? {
        down += 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_goes_from_the_rule_to_where_the_loss_is_lowest_and_no_further() {
        // Losses of the rates two steps below the rule's to two above it.
        let found = |losses: [f64; 5]| {
            let (mut holds, mut count) = (0, 1);
            climb(&mut |e| {
                let wins = losses[(e + 2) as usize] < losses[(holds + 2) as usize];
                (holds, count) = (if wins { e } else { holds }, count + 1);
                Ok::<_, ()>(wins)
            })
            .unwrap();
            (count, holds)
        };
        assert_eq!(found([5.0, 4.0, 3.0, 2.0, 1.0]), (3, 2));
        assert_eq!(found([5.0, 4.0, 3.0, 2.0, 6.0]), (3, 1));
        assert_eq!(found([5.0, 4.0, 3.0, 3.5, 1.0]), (3, 0));
        assert_eq!(found([1.0, 2.0, 3.0, 9.0, 9.0]), (4, -2));
        assert_eq!(found([5.0, 2.0, 3.0, 4.0, 9.0]), (4, -1));
    }

    #[test]
    fn what_noise_decides_goes_to_the_higher_rate() {
        let of = |all: &[f64]| Difference::of(all, &[0.0; 8], 8);
        // Only the last half counts.
        let ahead = of(&[9.0, 9.0, 9.0, 9.0, -1.0, -1.1, -0.9, -1.0]);
        assert!(ahead.is_clear() && ahead.favours(true) && ahead.favours(false));
        let behind = of(&[0.0, 0.0, 0.0, 0.0, 1.0, 1.1, 0.9, 1.0]);
        assert!(behind.is_clear() && !behind.favours(true) && !behind.favours(false));
        let noise = of(&[0.0, 0.0, 0.0, 0.0, 1.0, -1.0, 1.0, -0.9]);
        assert!(!noise.is_clear() && noise.favours(true) && !noise.favours(false));
        // A step that tells nothing is left out, too few tell nothing, and equal losses are no reason to go up.
        assert!(of(&[0.0, 0.0, 0.0, 0.0, f64::NAN, 1.1, 0.9, 1.0]).is_clear());
        let none = of(&[0.0, 0.0, 0.0, 0.0, 1.0]);
        assert!(!none.is_clear() && !none.favours(true));
        let equal = of(&[0.0; 8]);
        assert!(!equal.is_clear() && !equal.favours(true) && !equal.favours(false));
    }

    #[test]
    fn a_run_of_a_few_steps_has_no_trial_and_a_long_ones_is_short() {
        assert_eq!((rounded(3e-4 * FACTOR * FACTOR), rounded(1e-3 / FACTOR)), (2.7e-3, 3.33e-4));
        assert_eq!([17, 18, 60, 600, 1_000_000].map(steps), [None, Some(LEAST), Some(10), Some(100), Some(MOST)]);
    }
}
