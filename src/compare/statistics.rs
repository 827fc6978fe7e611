//! Means, deviations, and what paired differences allow to say.

use serde::Serialize;
use statrs::distribution::{ContinuousCDF, StudentsT};

/// Probability with which an interval holds the true mean of the differences.
pub(super) const CONFIDENCE: f64 = 0.95;

/// How the intervals are made.
pub(super) const FORMULA: &str =
    "paired differences d over n seeds, 95% interval: mean(d) ± t(0.975, n − 1) · s(d) / √n, Student's t";

/// Mean and deviation of some numbers.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) n: usize,
    pub(super) mean: f64,
    /// With n − 1; nothing for a single number.
    pub(super) deviation: Option<f64>,
}

impl Spread {
    /// Nothing for no numbers.
    pub(super) fn of(values: &[f64]) -> Option<Spread> {
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
        Some(Spread { n, mean, deviation: (n > 1).then(|| (squares / (n - 1) as f64).sqrt()) })
    }
}

/// A mean of paired differences with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Difference {
    #[serde(flatten)]
    pub(super) spread: Spread,
    /// The interval; nothing for a single pair.
    pub(super) low: Option<f64>,
    pub(super) high: Option<f64>,
}

/// What an interval says of a mean difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// The interval is below zero.
    Lower,
    /// It is above zero.
    Higher,
    /// It holds zero.
    Nothing,
    /// There is no interval.
    Unknown,
}

impl Difference {
    /// Of pairs (variant, base). Nothing for no pairs.
    pub(super) fn of(pairs: &[(f64, f64)]) -> Option<Difference> {
        let spread = Spread::of(&pairs.iter().map(|(a, b)| a - b).collect::<Vec<_>>())?;
        let half = spread.deviation.map(|s| quantile(spread.n - 1) * s / (spread.n as f64).sqrt());
        Some(Difference { spread, low: half.map(|h| spread.mean - h), high: half.map(|h| spread.mean + h) })
    }

    pub(super) fn finding(&self) -> Finding {
        match (self.low, self.high) {
            (Some(_), Some(high)) if high < 0.0 => Finding::Lower,
            (Some(low), Some(_)) if low > 0.0 => Finding::Higher,
            (Some(_), Some(_)) => Finding::Nothing,
            _ => Finding::Unknown,
        }
    }
}

/// t(0.975, degrees of freedom).
fn quantile(freedom: usize) -> f64 {
    StudentsT::new(0.0, 1.0, freedom as f64).map_or(f64::INFINITY, |t| t.inverse_cdf(0.5 + CONFIDENCE / 2.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, t) in [(1, 12.7062), (2, 4.30265), (4, 2.77645), (9, 2.26216), (29, 2.04523)] {
            assert!((quantile(freedom) - t).abs() < 1e-4, "{freedom}: {}", quantile(freedom));
        }
    }

    #[test]
    fn an_interval_is_of_the_differences_and_not_of_the_values() {
        // The seeds differ by far more than the variants.
        let pairs = [(1.0, 1.1), (2.0, 2.1), (3.0, 3.13)];
        let d = Difference::of(&pairs).unwrap();
        assert!((d.spread.mean + 0.11).abs() < 1e-12 && (d.spread.deviation.unwrap() - 0.03f64 / 3f64.sqrt()).abs() < 1e-12);
        let half = 4.30265 * 0.03 / 3.0;
        assert!((d.low.unwrap() + 0.11 + half).abs() < 1e-6 && (d.high.unwrap() + 0.11 - half).abs() < 1e-6, "{d:?}");
        assert_eq!(d.finding(), Finding::Lower);
        assert_eq!(Difference::of(&[(1.0, 0.9), (1.0, 1.1)]).unwrap().finding(), Finding::Nothing);
        let single = Difference::of(&[(1.0, 0.5)]).unwrap();
        assert_eq!((single.finding(), single.low, single.spread.mean), (Finding::Unknown, None, 0.5));
    }
}
