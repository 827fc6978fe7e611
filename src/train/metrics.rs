//! Figures over batches: mean loss and accuracy.

use super::checkpoint::Sums;
use super::data::Dataset;
use super::graph::{Scores, Term, TrainingGraph};
use crate::cli::Metric;
use crate::engine::Tensors;
use crate::engine::ort::stepper::Read;
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use ancre_passes::contract::ClassWeights;
use ancre_passes::ir::Shape;
use ancre_passes::transform::loss::LossKind;
use indexmap::IndexMap;
use std::collections::BTreeMap;

/// Which outputs a session reads of a graph's losses, after those that every step reads.
#[derive(Clone, Debug, Default)]
pub(super) struct Seats {
    /// For each loss: where its output and its own value come back.
    terms: Vec<(Option<usize>, Option<usize>)>,
}

impl Seats {
    /// Adds to the outputs that are read: the values of several losses, and the outputs that `wanted` of a loss.
    pub(super) fn of<'t>(
        t: &'t TrainingGraph,
        read: &mut Vec<&'t str>,
        wanted: impl Fn(&'t Term) -> Option<&'t str>,
    ) -> Seats {
        let mut seat = |name: Option<&'t str>| {
            let name = name?;
            Some(read.iter().position(|n| *n == name).unwrap_or_else(|| {
                read.push(name);
                read.len() - 1
            }))
        };
        let terms = t.losses.iter().map(|term| (seat(wanted(term)), seat(term.record.value.as_deref()))).collect();
        Seats { terms }
    }
}

/// What came back of a batch.
pub(super) struct Batch<'a> {
    pub(super) loss: f64,
    pub(super) read: &'a [Read],
    pub(super) seats: &'a Seats,
    pub(super) feeds: &'a Tensors,
}

impl Batch<'_> {
    /// The output that a loss reads, if it came back, and the target it was fed.
    fn of(&self, t: &TrainingGraph, i: usize) -> (Option<&Read>, Option<&NpTensor>) {
        let output = self.seats.terms.get(i).and_then(|(output, _)| self.read.get((*output)?));
        let target = t.losses.get(i).and_then(|term| self.feeds.get(term.record.target.as_deref()?));
        (output, target)
    }

    /// The value of one of several losses.
    fn value(&self, i: usize) -> Option<f64> {
        self.seats.terms.get(i).and_then(|(_, value)| Some(self.read.get((*value)?)?.number()))
    }

    fn samples(&self, t: &TrainingGraph) -> usize {
        let named = t.wanted.slots().filter(|s| s.batched).find_map(|s| self.feeds.get(&s.name));
        named.and_then(|x| x.shape().first().copied()).unwrap_or(1)
    }

    /// What the mean of a loss is over: its positions that count, times the weights of their classes. All samples have equally many
    /// positions but for those that do not count.
    fn weight(&self, t: &TrainingGraph, i: usize) -> f64 {
        let term = &t.losses[i];
        let record = &term.record;
        let mask = record.mask.as_deref().and_then(|name| self.feeds.get(name)).map(NpTensor::to_f64);
        let labels = self.of(t, i).1.filter(|_| term.kind.takes_labels()).map(NpTensor::to_i64);
        let classes = match &record.class_weights {
            _ if matches!(term.kind, LossKind::Focal | LossKind::Dice) => None,
            Some(ClassWeights::Given(all)) => Some(all.clone()),
            Some(ClassWeights::Fed(name)) => self.feeds.get(name).map(NpTensor::to_f64),
            None => None,
        };
        match (labels, mask) {
            _ if matches!(term.kind, LossKind::Dice | LossKind::BinaryDice) => self.samples(t) as f64,
            (_, mask) if term.kind == LossKind::Ctc => mask.map_or(self.samples(t) as f64, |m| m.iter().sum()),
            (Some(labels), mask) if record.ignore_index.is_some() || classes.is_some() || mask.is_some() => {
                // A mask of the leading axes weighs all positions below it.
                let mask = mask.filter(|m| !m.is_empty() && labels.len().is_multiple_of(m.len()));
                let of = |(at, label): (usize, &i64)| {
                    let class = |w: &Vec<f64>| usize::try_from(*label).ok().and_then(|l| w.get(l).copied()).unwrap_or(1.0);
                    mask.as_ref().map_or(1.0, |m| m[at * m.len() / labels.len()]) * classes.as_ref().map_or(1.0, class)
                };
                // No position predicts the first token of a text.
                let row = self.of(t, i).1.map_or(1, |l| l.shape().iter().skip(1).product::<usize>().max(1));
                let predicted = |at: usize| term.kind != LossKind::NextToken || !at.is_multiple_of(row);
                let counted = labels.iter().enumerate().filter(|(at, l)| predicted(*at) && Some(**l) != record.ignore_index);
                counted.map(of).sum()
            }
            (_, Some(mask)) => mask.iter().sum(),
            _ => self.samples(t) as f64,
        }
    }

    /// The sums of one loss.
    fn sums(&self, t: &TrainingGraph, i: usize, loss: f64) -> Sums {
        let (term, samples) = (&t.losses[i], self.samples(t) as f64);
        let is_sum = term.record.reduction == "sum";
        let weight = if is_sum { 1.0 } else { self.weight(t, i) };
        let mut sums = Sums::default();
        if weight > 0.0 {
            sums.loss = loss * weight;
        }
        sums.weight = if is_sum { samples } else { weight };
        let (output, target) = self.of(t, i);
        if let (Some(s), Some(scores), Some(labels)) = (&term.scores, output, target)
            && let Some((shape, values)) = scores.f32s()
            && let Some((right, all)) = count_right(&values, &shape, s, &labels.to_i64(), term.record.ignore_index)
        {
            (sums.right, sums.predictions) = (right, all);
        }
        sums
    }
}

impl Sums {
    pub(super) fn add(&mut self, b: &Batch, t: &TrainingGraph) {
        let samples = b.samples(t);
        let mut more = match t.losses.len() {
            1 => b.sums(t, 0, b.loss),
            n => {
                let terms: Vec<Sums> = (0..n).map(|i| b.sums(t, i, b.value(i).unwrap_or(b.loss))).collect();
                let scored = terms.iter().find(|s| s.predictions > 0).cloned().unwrap_or_default();
                let (right, predictions) = (scored.right, scored.predictions);
                Sums { loss: b.loss * samples as f64, weight: samples as f64, right, predictions, terms, samples: 0 }
            }
        };
        more.samples = samples as u64;
        *self += more;
    }

    /// The mean of each of several losses, by name.
    pub(super) fn losses(&self, t: &TrainingGraph) -> BTreeMap<String, f64> {
        let each = t.losses.iter().zip(&self.terms);
        each.filter_map(|(term, sums)| Some((term.name().to_string(), sums.loss()?))).collect()
    }

    /// The accuracy of each of several losses on labels, by output.
    pub(super) fn accuracies(&self, t: &TrainingGraph) -> BTreeMap<String, f64> {
        let each = t.losses.iter().zip(&self.terms);
        each.filter_map(|(term, sums)| Some((term.scores.as_ref()?.output.clone(), sums.accuracy()?))).collect()
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

/// Several losses, and the accuracies of several outputs, in a few words; nothing where there is one.
pub(super) fn each(losses: &BTreeMap<String, f64>, accuracies: &BTreeMap<String, f64>) -> String {
    let of = |all: &BTreeMap<String, f64>| all.iter().map(|(n, v)| format!("{n} {v:.4}")).collect::<Vec<_>>().join(", ");
    match (losses.is_empty(), accuracies.len()) {
        (true, _) => String::new(),
        (false, 0..=1) => of(losses),
        _ => format!("{}; accuracy {}", of(losses), of(accuracies)),
    }
}

/// The class labels among what a batch feeds, without those that do not count, of the first loss that has some.
pub(super) fn labels(t: &TrainingGraph, feeds: &Tensors) -> Vec<i64> {
    let term = t.losses.iter().find(|term| term.kind.weights_classes());
    let labels = term.and_then(|term| Some((term, feeds.get(term.record.target.as_deref()?)?.to_i64())));
    let counted =
        |(term, labels): (&Term, Vec<i64>)| labels.into_iter().filter(|l| Some(*l) != term.record.ignore_index).collect();
    labels.map(counted).unwrap_or_default()
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
        let plain = t.single().is_some_and(|term| {
            let r = &term.record;
            let cross_entropy = matches!(term.kind, LossKind::CrossEntropy | LossKind::NextToken);
            cross_entropy && r.reduction == "mean" && r.label_smoothing == 0.0 && r.class_weights.is_none()
        });
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
    /// One for each loss.
    terms: Vec<Counts>,
}

/// What is counted of one output and its target.
#[derive(Clone, Debug, Default)]
struct Counts {
    /// Predictions among whose five highest scores the label is.
    in_five: u64,
    predictions: u64,
    /// By class: right, predicted, there.
    classes: BTreeMap<i64, [u64; 3]>,
    /// Sum of the distances of outputs and targets.
    distance: f64,
    values: u64,
    /// Changes that spellings need, and the labels that they should have.
    spelling: [u64; 2],
}

/// Does a loss have a figure? Otherwise what it needs.
fn has(m: Metric, term: &Term) -> (bool, &'static str) {
    let numbers = !term.kind.takes_labels() && !term.kind.has_teacher() && term.record.output.is_some();
    match m {
        Metric::Top1 | Metric::Top5 | Metric::F1 => (term.scores.is_some(), "class labels and an output of scores"),
        Metric::Perplexity => (matches!(term.kind, LossKind::CrossEntropy | LossKind::NextToken), "a cross-entropy"),
        Metric::Mae => (numbers, "a float target and the output that goes with it"),
        Metric::LabelErrorRate => (term.kind == LossKind::Ctc, "a CTC loss"),
    }
}

impl Tally {
    /// Checks that a loss has each of these figures.
    pub(super) fn new(asked: &[Metric], t: &TrainingGraph) -> Result<Tally, Failure> {
        for m in asked {
            if !t.losses.iter().any(|term| has(*m, term).0) {
                let needs = t.losses.first().map_or("", |term| has(*m, term).1);
                let each = t.losses.iter().map(|term| match &term.record.target {
                    Some(target) => format!("{} on `{target}`", term.record.kind),
                    None => term.record.kind.clone(),
                });
                let each = each.collect::<Vec<_>>().join(" + ");
                let what = format!("--metric {} needs {needs}; the loss is {each}", m.name());
                return Err(Failure::input(what).at(&t.path));
            }
        }
        let mut asked = asked.to_vec();
        // The loss of a spelling says little, and it has no accuracy.
        if !asked.contains(&Metric::LabelErrorRate) && t.losses.iter().any(|term| term.kind == LossKind::Ctc) {
            asked.push(Metric::LabelErrorRate);
        }
        Ok(Tally { asked, terms: vec![Counts::default(); t.losses.len()] })
    }

    /// Are there any figures?
    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    /// Forgets the batches.
    pub(super) fn begin(&mut self) {
        self.terms.fill(Counts::default());
    }

    pub(super) fn add(&mut self, b: &Batch, t: &TrainingGraph) {
        if self.asked.is_empty() {
            return;
        }
        for (i, (counts, term)) in self.terms.iter_mut().zip(&t.losses).enumerate() {
            let (Some(output), Some(target)) = b.of(t, i) else { continue };
            let Some((shape, values)) = output.f32s() else { continue };
            match &term.scores {
                _ if term.kind == LossKind::Ctc => counts.spell(&values, &shape, b, term, t),
                Some(s) => {
                    counts.judge(&values, &shape, s, &target.to_i64(), term.record.ignore_index);
                }
                None => {
                    let targets = target.to_f64();
                    let pairs = values.iter().zip(&targets).filter(|_| values.len() == targets.len());
                    counts.distance += pairs.map(|(y, t)| (f64::from(*y) - t).abs()).sum::<f64>();
                    counts.values += targets.len() as u64;
                }
            }
        }
    }

    /// The figures by name; of several outputs that have one, as `top-5/OUTPUT`.
    pub(super) fn figures(&self, m: &Sums, t: &TrainingGraph) -> Vec<(String, f64)> {
        let mut all = Vec::new();
        for metric in &self.asked {
            let mut of: IndexMap<&str, usize> = IndexMap::new();
            for (i, term) in t.losses.iter().enumerate().filter(|(_, term)| has(*metric, term).0) {
                of.entry(term.record.output.as_deref().unwrap_or_default()).or_insert(i);
            }
            for (output, i) in &of {
                let name = if of.len() > 1 { format!("{}/{output}", metric.name()) } else { metric.name().to_string() };
                all.push((name, self.terms[*i].figure(*metric, m.terms.get(*i).unwrap_or(m))));
            }
        }
        all
    }
}

impl Counts {
    fn judge(&mut self, values: &[f32], shape: &[usize], s: &Scores, labels: &[i64], ignored: Option<i64>) -> Option<()> {
        let classes = *shape.get(s.axis)?;
        each_prediction(values, shape, s, labels, ignored, |scores, step, label| {
            let score = |c: usize| scores[c * step];
            let best = best(scores, step, classes);
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

    /// Compares what the frames spell with the labels: the best class of each frame, repetitions once, blanks left out.
    fn spell(&mut self, values: &[f32], shape: &[usize], b: &Batch, term: &Term, t: &TrainingGraph) {
        let record = &term.record;
        let fed = |name: Option<&str>| name.and_then(|name| b.feeds.get(name));
        let names = record.lengths.as_ref();
        let labels = fed(record.target.as_deref());
        let lengths = [0, 1].map(|i| fed(names.map(|n| n[i].as_str())));
        let (Some(labels), [Some(frames), Some(counts)], &[first, second, classes]) = (labels, lengths, shape) else {
            return;
        };
        // Logits [T, N, C] where the graph gives the labels' samples to their second axis.
        let extents = |name: Option<&str>| t.shape(name?);
        let (of_output, of_labels) = (extents(record.output.as_deref()), extents(record.target.as_deref()));
        let is_second = |(y, l): (Shape, Shape)| l.first() == y.get(1) && l.first() != y.first();
        let time_first = of_output.zip(of_labels).is_some_and(is_second);
        let (samples, times) = if time_first { (second, first) } else { (first, second) };
        let (labels, frames, counts) = (labels.to_i64(), frames.to_i64(), counts.to_i64());
        let width = labels.len().checked_div(samples).unwrap_or(0);
        let blank = record.blank.unwrap_or(0);
        for (n, (frames, count)) in frames.iter().zip(&counts).enumerate().take(samples) {
            let at = |frame: usize| (if time_first { frame * samples + n } else { n * times + frame }) * classes;
            let within = |n: i64, most: usize| usize::try_from(n).unwrap_or(0).min(most);
            let classes = (0..within(*frames, times)).map(|frame| best(&values[at(frame)..], 1, classes));
            let mut spelt: Vec<i64> = classes.collect();
            spelt.dedup();
            spelt.retain(|c| *c != blank);
            let own = &labels[n * width..][..within(*count, width)];
            self.spelling[0] += strsim::generic_levenshtein(&spelt, &own.to_vec()) as u64;
            self.spelling[1] += own.len() as u64;
        }
    }

    fn figure(&self, metric: Metric, m: &Sums) -> f64 {
        let share = |n: u64, of: u64| n as f64 / of.max(1) as f64;
        match metric {
            Metric::Top1 => m.accuracy().unwrap_or(f64::NAN),
            Metric::Top5 => share(self.in_five, self.predictions),
            Metric::Perplexity => m.loss().unwrap_or(f64::NAN).exp(),
            Metric::Mae => self.distance / self.values.max(1) as f64,
            Metric::LabelErrorRate => share(self.spelling[0], self.spelling[1]),
            Metric::F1 => {
                let there = self.classes.values().filter(|c| c[2] > 0);
                let all: Vec<f64> = there.map(|[right, said, there]| share(2 * right, said + there)).collect();
                all.iter().sum::<f64>() / all.len().max(1) as f64
            }
        }
    }
}

/// The class of the highest of scores that lie `step` apart. Of equal scores the first counts, as in NumPy.
fn best(scores: &[f32], step: usize, classes: usize) -> i64 {
    let Some(first) = scores.first().copied() else { return 0 };
    let higher = |high: f32, v: &f32| if *v > high { *v } else { high };
    let highest = match scores.get(..classes).filter(|_| step == 1) {
        // A vocabulary has some fifty thousand classes: the highest of each of several lanes, then of those.
        Some(row) => {
            let (chunks, rest) = row.as_chunks::<16>();
            let mut lanes = [first; 16];
            for chunk in chunks {
                lanes.iter_mut().zip(chunk).for_each(|(lane, v)| *lane = higher(*lane, v));
            }
            lanes.iter().chain(rest).fold(first, higher)
        }
        None => scores.iter().step_by(step).take(classes).fold(first, higher),
    };
    scores.iter().step_by(step).take(classes).position(|v| *v == highest).unwrap_or(0) as i64
}

/// The numbers of right predictions and of all.
fn count_right(scores: &[f32], shape: &[usize], s: &Scores, labels: &[i64], ignored: Option<i64>) -> Option<(u64, u64)> {
    let classes = *shape.get(s.axis)?;
    let (mut right, mut all) = (0, 0);
    each_prediction(scores, shape, s, labels, ignored, |scores, step, label| {
        right += u64::from(best(scores, step, classes) == label);
        all += 1;
    })?;
    Some((right, all))
}

/// Goes through the predictions that count: the scores from the first class's on, how far they lie apart, and the label. `None` where labels
/// and scores do not fit.
fn each_prediction(
    scores: &[f32],
    shape: &[usize],
    s: &Scores,
    labels: &[i64],
    ignored: Option<i64>,
    mut seen: impl FnMut(&[f32], usize, i64),
) -> Option<()> {
    let classes = *shape.get(s.axis)?;
    let outer: usize = shape[..s.axis].iter().product();
    let inner: usize = shape[s.axis + 1..].iter().product();
    if labels.len() != outer * inner || classes == 0 || scores.len() < outer * classes * inner {
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
                seen(&scores[o * classes * inner + i..], inner, label);
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
    fn the_first_of_the_highest_scores_counts_in_every_lane() {
        let by_hand = |v: &[f32]| (1..v.len()).fold(0, |best, c| if v[c] > v[best] { c } else { best }) as i64;
        for classes in [1, 15, 16, 17, 40] {
            for high in 0..classes {
                let mut row: Vec<f32> = (0..classes).map(|c| -((c % 3) as f32)).collect();
                row[high] = 1.0;
                row[classes - 1] = 1.0;
                let apart: Vec<f32> = row.iter().flat_map(|v| [*v, 2.0]).collect();
                assert_eq!((best(&row, 1, classes), best(&apart, 2, classes)), (high as i64, high as i64), "{row:?}");
                row[classes / 2] = f32::NAN;
                assert_eq!(best(&row, 1, classes), by_hand(&row), "{row:?}");
            }
        }
    }

    #[test]
    fn a_position_predicts_the_next_token() {
        // [1, 3, 2]: predictions 1, 0, (0); labels ?, 1, 0
        let values = [0.1, 0.9, 0.8, 0.2, 0.5, 0.5];
        assert_eq!(count_right(&values, &[1, 3, 2], &scores(2, true), &[7, 1, 0], None), Some((2, 2)));
    }

    #[test]
    fn five_guesses_and_the_mean_f1_of_classes() {
        let mut counts = Counts::default();
        // Scores of seven classes fall from class 0 on: class 0 is always predicted.
        let row: Vec<f32> = (0..7).map(|c| -(c as f32)).collect();
        counts.judge(&row.repeat(4), &[4, 7], &scores(1, false), &[0, 0, 4, 5], None).unwrap();
        // Class 0: 2 right of 4 said and 2 there; classes 4 and 5 never.
        let figures = [Metric::Top5, Metric::F1].map(|m| counts.figure(m, &Sums::default()));
        assert_eq!(figures, [0.75, 2.0 / 3.0 / 3.0]);
    }
}
