//! The rate where none is given: a few around the rule's, each tried for a small part of the run on a copy of the state.
//!
//! All begin at the same state and see the same batches, so that their losses compare. The rates lie a factor apart; from the rule's the trial
//! goes up while the loss gets lower, and down where it does not.

use super::guard::Guard;
use super::interrupt;
use super::rates::Ground;
use super::schedule::Schedule;
use crate::engine::EngineError;
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

/// A rate that was tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Tried {
    pub(super) lr: f64,
    /// Mean loss over the last third of its steps; none where the loss jumped.
    pub(super) loss: Option<f64>,
}

/// What a trial found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Trial {
    /// Steps with each rate.
    pub(super) steps: u64,
    /// In the order of the rates.
    pub(super) tried: Vec<Tried>,
}

impl Trial {
    /// The rate with the lowest loss.
    pub(super) fn best(&self) -> Option<f64> {
        let finite = self.tried.iter().filter_map(|t| Some((t.lr, t.loss?)));
        finite.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(lr, _)| lr)
    }
}

/// Steps of a trial with each rate; `None` where a run is too short for one.
pub(super) fn steps(total: u64) -> Option<u64> {
    (total >= SHARE * LEAST / 2).then_some((total / SHARE).clamp(LEAST, MOST))
}

/// Tries rates around `rule`. Fails when a step or a batch does.
pub(super) fn trial(
    Ground { t, steps: made, state, batches }: &mut Ground,
    rule: f64,
    steps: u64,
) -> Result<Trial, Failure> {
    let fail = |e: EngineError| Failure::input(format!("trying learning rates: {e}")).at(&t.path);
    let first = state.tensors().map_err(fail)?;
    let mut loss_of = |exponent: i32| -> Result<Tried, Failure> {
        state.put_back(&first).map_err(fail)?;
        let lr = rounded(rule * FACTOR.powi(exponent));
        let schedule = Schedule::constant(lr, steps / 4, steps);
        let (mut batches, mut guard, mut losses) = (batches(), Guard::default(), Vec::new());
        for step in 0..steps {
            if interrupt::came() {
                return Err(Failure { status: interrupt::STATUS, ..Failure::input("interrupted before the first step") });
            }
            let Some(batch) = batches.next() else { break };
            let batch = batch?;
            let done = made.step(t, (&batch.feeds, batch.samples), schedule.rate(step), false, state);
            let done = done.map_err(|e| Failure { what: format!("trying learning rates: {}", e.what), ..e }.at(&t.path))?;
            let (loss, norm) = (done.loss, done.grad_norm);
            // Labels that are all ignored tell nothing.
            if loss.is_nan() && norm == 0.0 {
                continue;
            }
            if guard.skips(loss, norm, t.has_loss_scale()) {
                continue;
            }
            if guard.judge(loss, norm).is_some() {
                return Ok(Tried { lr, loss: None });
            }
            losses.push(loss);
        }
        let last = &losses[losses.len() * 2 / 3..];
        Ok(Tried { lr, loss: (!last.is_empty()).then(|| last.iter().sum::<f64>() / last.len() as f64) })
    };
    let tried = climb(&mut loss_of)?;
    state.put_back(&first).map_err(fail)?;
    Ok(Trial { steps, tried })
}

/// To three digits: a rate that a person can write.
fn rounded(lr: f64) -> f64 {
    format!("{lr:.2e}").parse().unwrap_or(lr)
}

/// Goes from the middle rate up while that is better, else down while that is.
fn climb<E>(try_one: &mut impl FnMut(i32) -> Result<Tried, E>) -> Result<Vec<Tried>, E> {
    let is_better = |a: &Tried, b: &Tried| a.loss.unwrap_or(f64::INFINITY) < b.loss.unwrap_or(f64::INFINITY);
    let mut tried = vec![try_one(0)?];
    for exponent in 1..=REACH {
        tried.push(try_one(exponent)?);
        if !is_better(&tried[tried.len() - 1], &tried[tried.len() - 2]) {
            break;
        }
    }
    let rose = tried.len() > 2;
    for exponent in (1..=REACH).take_while(|_| !rose) {
        tried.insert(0, try_one(-exponent)?);
        if !is_better(&tried[0], &tried[1]) {
            break;
        }
    }
    Ok(tried)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_goes_from_the_rule_to_where_the_loss_is_lowest_and_no_further() {
        // Losses of the rates two steps below the rule's to two above it; none jumped.
        let found = |losses: [f64; 5]| {
            let mut try_one = |e: i32| -> Result<Tried, ()> {
                let loss = losses[(e + 2) as usize];
                Ok(Tried { lr: FACTOR.powi(e), loss: loss.is_finite().then_some(loss) })
            };
            let trial = Trial { steps: 6, tried: climb(&mut try_one).unwrap() };
            (trial.tried.len(), trial.best().map(|lr| lr.log(FACTOR).round()))
        };
        let jump = f64::INFINITY;
        assert_eq!(found([5.0, 4.0, 3.0, 2.0, 1.0]), (3, Some(2.0)));
        assert_eq!(found([5.0, 4.0, 3.0, 2.0, jump]), (3, Some(1.0)));
        assert_eq!(found([5.0, 4.0, 3.0, 3.5, 1.0]), (3, Some(0.0)));
        assert_eq!(found([1.0, 2.0, 3.0, jump, jump]), (4, Some(-2.0)));
        assert_eq!(found([5.0, 2.0, 3.0, 4.0, jump]), (4, Some(-1.0)));
        assert_eq!(found([5.0, 2.0, jump, 1.0, jump]), (3, Some(1.0)));
        assert_eq!(found([jump; 5]), (3, None));
    }

    #[test]
    fn a_run_of_a_few_steps_has_no_trial_and_a_long_ones_is_short() {
        assert_eq!((rounded(3e-4 * FACTOR * FACTOR), rounded(1e-3 / FACTOR)), (2.7e-3, 3.33e-4));
        assert_eq!([17, 18, 60, 600, 1_000_000].map(steps), [None, Some(LEAST), Some(10), Some(100), Some(MOST)]);
    }
}
