//! Figures over batches: mean loss and accuracy.

use super::checkpoint::Sums;
use super::data::Dataset;
use super::graph::{Scores, TrainingGraph};
use crate::cli::Metric;
use crate::engine::Tensors;
use crate::engine::ort::stepper::Read;
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use std::collections::BTreeMap;

/// A batch's loss, scores and labels.
pub(super) struct Batch<'a> {
    pub(super) loss: f64,
    /// The class scores, where they are read.
    pub(super) scores: Option<&'a Read>,
    pub(super) labels: Option<&'a NpTensor>,
}

impl Sums {
    pub(super) fn add(&mut self, b: &Batch, t: &TrainingGraph) {
        let samples = b.labels.and_then(|l| l.shape().first().copied()).unwrap_or(1);
        let labels = b.labels.filter(|_| t.loss_kind.takes_labels()).map(NpTensor::to_i64);
        let counted = |labels: &Vec<i64>| labels.iter().filter(|l| Some(**l) != t.loss.ignore_index).count();
        // A mean is over the positions that count. All samples have equally many positions but for ignored ones.
        let weight = match &labels {
            _ if t.loss.reduction == "sum" => 1.0,
            Some(labels) if t.loss.ignore_index.is_some() => counted(labels) as f64,
            _ => samples as f64,
        };
        if weight > 0.0 {
            self.loss += b.loss * weight;
        }
        self.weight += if t.loss.reduction == "sum" { samples as f64 } else { weight };
        self.samples += samples as u64;
        if let (Some(s), Some(scores), Some(labels)) = (&t.scores, b.scores, labels)
            && let Some((shape, values)) = scores.f32s()
            && let Some((right, all)) = count_right(values, &shape, s, &labels, t.loss.ignore_index)
        {
            self.right += right;
            self.predictions += all;
        }
    }

    /// The mean loss (per sample where the loss is a sum).
    pub(super) fn loss(&self) -> Option<f64> {
        (self.weight > 0.0).then(|| self.loss / self.weight)
    }

    /// The share of predictions that are right.
    pub(super) fn accuracy(&self) -> Option<f64> {
        (self.predictions > 0).then(|| self.right as f64 / self.predictions as f64)
    }
}

/// The class labels among what a batch feeds, without those that do not count.
pub(super) fn labels(t: &TrainingGraph, feeds: &Tensors) -> Vec<i64> {
    let labels = feeds.get(&t.loss.target).filter(|_| t.loss_kind.takes_labels()).map(NpTensor::to_i64);
    labels.into_iter().flatten().filter(|l| Some(*l) != t.loss.ignore_index).collect()
}

/// What a loss says about a language model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Language {
    pub(super) perplexity: f64,
    /// Where it is known how much text a token stands for.
    pub(super) bits_per_byte: Option<f64>,
}

impl Language {
    /// Of a mean loss on a text; `None` where the data is none, or the loss is no cross-entropy of the next token.
    pub(super) fn of(loss: f64, t: &TrainingGraph, set: &dyn Dataset) -> Option<Language> {
        let plain = t.loss_kind.takes_labels() && t.loss.reduction == "mean" && t.loss.label_smoothing == 0.0;
        (plain && set.is_sequence()).then(|| Language::of_loss(loss, set.bytes_per_token()))
    }

    fn of_loss(loss: f64, bytes_per_token: Option<f64>) -> Language {
        let bits = loss / std::f64::consts::LN_2;
        Language { perplexity: loss.exp(), bits_per_byte: bytes_per_token.map(|n| bits / n) }
    }

    pub(super) fn text(&self) -> String {
        let bits = self.bits_per_byte.map(|b| format!(", {b:.3} bits per byte")).unwrap_or_default();
        format!("perplexity {:.2}{bits}", self.perplexity)
    }
}

/// Figures that are asked for beside loss and accuracy, over the batches of a validation.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    asked: Vec<Metric>,
    /// Predictions among whose five highest scores the label is.
    in_five: u64,
    predictions: u64,
    /// By class: right, predicted, there.
    classes: BTreeMap<i64, [u64; 3]>,
    /// Sum of the distances of outputs and targets.
    distance: f64,
    values: u64,
}

impl Tally {
    /// Checks that the loss and the target have these figures.
    pub(super) fn new(asked: &[Metric], t: &TrainingGraph) -> Result<Tally, Failure> {
        for m in asked {
            let (fits, needs) = match m {
                Metric::Top1 | Metric::Top5 | Metric::F1 => (t.scores.is_some(), "class labels and an output of scores"),
                Metric::Perplexity => (t.loss_kind.takes_labels(), "a cross-entropy"),
                Metric::Mae => (
                    !t.loss_kind.takes_labels() && t.loss.output.is_some(),
                    "a float target and the output that goes with it",
                ),
            };
            if !fits {
                let what =
                    format!("--metric {} needs {needs}; the loss is {} on `{}`", m.name(), t.loss.kind, t.loss.target);
                return Err(Failure::input(what).at(&t.path));
            }
        }
        Ok(Tally { asked: asked.to_vec(), ..Tally::default() })
    }

    /// Forgets the batches.
    pub(super) fn begin(&mut self) {
        *self = Tally { asked: std::mem::take(&mut self.asked), ..Tally::default() };
    }

    pub(super) fn add(&mut self, b: &Batch, t: &TrainingGraph) {
        if self.asked.is_empty() {
            return;
        }
        let Some((shape, values)) = b.scores.and_then(Read::f32s) else { return };
        let Some(labels) = b.labels else { return };
        match &t.scores {
            Some(s) => {
                self.judge(values, &shape, s, &labels.to_i64(), t.loss.ignore_index);
            }
            None => {
                let targets = labels.to_f64();
                let pairs = values.iter().zip(&targets).filter(|_| values.len() == targets.len());
                self.distance += pairs.map(|(y, t)| (f64::from(*y) - t).abs()).sum::<f64>();
                self.values += targets.len() as u64;
            }
        }
    }

    fn judge(&mut self, values: &[f32], shape: &[usize], s: &Scores, labels: &[i64], ignored: Option<i64>) -> Option<()> {
        let classes = *shape.get(s.axis)?;
        each_prediction(shape, s, labels, ignored, |at, label| {
            let score = |c: usize| values[at(c)];
            let best = best(classes, &score);
            self.predictions += 1;
            self.classes.entry(best).or_default()[1] += 1;
            self.classes.entry(label).or_default()[2] += 1;
            self.classes.entry(label).or_default()[0] += u64::from(best == label);
            if let Some(own) = usize::try_from(label).ok().filter(|l| *l < classes) {
                let above = (0..classes).filter(|c| score(*c) > score(own) || score(*c) == score(own) && *c < own).count();
                self.in_five += u64::from(above < 5);
            }
        })
    }

    /// The figures by name.
    pub(super) fn figures(&self, m: &Sums) -> Vec<(&'static str, f64)> {
        let share = |n: u64, of: u64| n as f64 / of.max(1) as f64;
        let figure = |metric: &Metric| match metric {
            Metric::Top1 => m.accuracy().unwrap_or(f64::NAN),
            Metric::Top5 => share(self.in_five, self.predictions),
            Metric::Perplexity => m.loss().unwrap_or(f64::NAN).exp(),
            Metric::Mae => self.distance / self.values.max(1) as f64,
            Metric::F1 => {
                let there = self.classes.values().filter(|c| c[2] > 0);
                let all: Vec<f64> = there.map(|[right, said, there]| share(2 * right, said + there)).collect();
                all.iter().sum::<f64>() / all.len().max(1) as f64
            }
        };
        self.asked.iter().map(|metric| (metric.name(), figure(metric))).collect()
    }
}

/// The class of the highest score. Of equal scores the first counts, as in NumPy.
fn best(classes: usize, score: &impl Fn(usize) -> f32) -> i64 {
    (1..classes).fold(0, |best, c| if score(c) > score(best) { c } else { best }) as i64
}

/// The numbers of right predictions and of all.
fn count_right(scores: &[f32], shape: &[usize], s: &Scores, labels: &[i64], ignored: Option<i64>) -> Option<(u64, u64)> {
    let classes = *shape.get(s.axis)?;
    let (mut right, mut all) = (0, 0);
    each_prediction(shape, s, labels, ignored, |at, label| {
        right += u64::from(best(classes, &|c| scores[at(c)]) == label);
        all += 1;
    })?;
    Some((right, all))
}

/// Goes through the predictions that count: where each class's score lies, and the label. `None` where labels and scores do not fit.
fn each_prediction(
    shape: &[usize],
    s: &Scores,
    labels: &[i64],
    ignored: Option<i64>,
    mut seen: impl FnMut(&dyn Fn(usize) -> usize, i64),
) -> Option<()> {
    let classes = *shape.get(s.axis)?;
    let outer: usize = shape[..s.axis].iter().product();
    let inner: usize = shape[s.axis + 1..].iter().product();
    if labels.len() != outer * inner || classes == 0 {
        return None;
    }
    // Next-token logits [N, T, V]: position t predicts the label of t + 1.
    let length = if s.shifted { *shape.get(1)? } else { 0 };
    for o in 0..outer {
        for i in 0..inner {
            let position = o * inner + i;
            if s.shifted && (position + 1).is_multiple_of(length) {
                continue;
            }
            let label = labels[position + usize::from(s.shifted)];
            if Some(label) != ignored {
                seen(&|c: usize| (o * classes + c) * inner + i, label);
            }
        }
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(axis: usize, shifted: bool) -> Scores {
        Scores { output: String::new(), axis, classes: None, shifted }
    }

    #[test]
    fn a_guess_among_256_bytes_is_eight_bits() {
        let l = Language::of_loss(256f64.ln(), Some(1.0));
        assert!((l.perplexity - 256.0).abs() < 1e-9 && (l.bits_per_byte.unwrap() - 8.0).abs() < 1e-12);
        assert_eq!(Language::of_loss(256f64.ln(), Some(4.0)).text(), "perplexity 256.00, 2.000 bits per byte");
        assert_eq!(Language::of_loss(0.0, None).text(), "perplexity 1.00");
    }

    #[test]
    fn predictions_are_counted_on_either_axis() {
        let values = [0.1, 0.9, 0.8, 0.2, 0.5, 0.5];
        assert_eq!(count_right(&values, &[3, 2], &scores(1, false), &[1, 0, 0], None), Some((3, 3)));
        assert_eq!(count_right(&values, &[3, 2], &scores(1, false), &[1, 1, -100], Some(-100)), Some((1, 2)));
        // [1, 2 classes, 3 positions]
        assert_eq!(count_right(&values, &[1, 2, 3], &scores(1, false), &[1, 1, 0], None), Some((2, 3)));
        assert_eq!(count_right(&values, &[3, 2], &scores(1, false), &[1, 0], None), None);
    }

    #[test]
    fn a_position_predicts_the_next_token() {
        // [1, 3, 2]: predictions 1, 0, (0); labels ?, 1, 0
        let values = [0.1, 0.9, 0.8, 0.2, 0.5, 0.5];
        assert_eq!(count_right(&values, &[1, 3, 2], &scores(2, true), &[7, 1, 0], None), Some((2, 2)));
    }

    #[test]
    fn five_guesses_and_the_mean_f1_of_classes() {
        let asked = vec![Metric::Top5, Metric::F1];
        let mut tally = Tally { asked, ..Tally::default() };
        // Scores of seven classes fall from class 0 on: class 0 is always predicted.
        let row: Vec<f32> = (0..7).map(|c| -(c as f32)).collect();
        tally.judge(&row.repeat(4), &[4, 7], &scores(1, false), &[0, 0, 4, 5], None).unwrap();
        // Class 0: 2 right of 4 said and 2 there; classes 4 and 5 never.
        assert_eq!(tally.figures(&Sums::default()), [("top-5", 0.75), ("f1", 2.0 / 3.0 / 3.0)]);
    }
}
