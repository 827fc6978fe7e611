//! What a run came to, in words: a validation that is no better than a guess, or far worse than training.

use super::guard;
use super::progress::percent;
use serde::Serialize;

/// Something a person should know before the model is used.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Verdict {
    /// `no-better-than-chance`, `statistics-do-not-fit`, `worse-than-training`, `learned-nothing`.
    pub(super) kind: &'static str,
    pub(super) text: String,
    #[serde(rename = "try")]
    pub(super) advice: String,
}

/// What a verdict is made on.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) samples: usize,
    pub(super) parameters: i64,
    pub(super) lr: f64,
    pub(super) first_loss: Option<f64>,
    /// Loss and accuracy over the last epoch of training.
    pub(super) training: (Option<f64>, Option<f64>),
    /// Loss and accuracy of the validation whose state is used.
    pub(super) validation: Option<(f64, Option<f64>)>,
    /// Predictions in the validation, and the share of its commonest label.
    pub(super) predictions: u64,
    pub(super) commonest: Option<f64>,
    /// Accuracy on training data as in validation, where it was measured.
    pub(super) evaluated: Option<f64>,
    pub(super) has_statistics: bool,
    pub(super) data: Kind,
}

/// What the data are, as far as advice depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    Other,
    Images,
    /// Windows of a text, for a model of the next token.
    Text,
}

/// Training is ahead of validation by so much that it is worth a look.
pub(super) const AHEAD: f64 = 0.2;

/// What to do about a run that learned nothing, whose rate may be too high or too low.
const ANOTHER: &str = "another --lr (without one a few are tried), more epochs";

impl Facts {
    /// The verdicts, the gravest first.
    pub(super) fn judge(&self) -> Vec<Verdict> {
        let mut all = Vec::new();
        let mut say = |kind, text: String, advice: String| all.push(Verdict { kind, text, advice });
        let lower = format!("--lr {:.0e}", self.lr / 5.0);
        if let (Some((_, Some(accuracy))), Some(p)) = (self.validation, self.commonest) {
            // Two deviations of the number that a guess gets right.
            let chance = p + 2.0 * (p * (1.0 - p) / self.predictions.max(1) as f64).sqrt();
            if accuracy <= chance {
                let what = if self.data == Kind::Text { "token" } else { "label" };
                let advice = match self.data {
                    Kind::Text => "more steps (a language model from scratch needs thousands), --lr auto; and check that the text is cut \
                                   into tokens by the model's own tokenizer"
                        .into(),
                    Kind::Images => format!("{ANOTHER}; and check that images and labels are read as the model was trained"),
                    Kind::Other => format!("{ANOTHER}; and check that inputs and labels are made as the model was trained"),
                };
                say(
                    "no-better-than-chance",
                    format!(
                        "the validation is no better than always naming the commonest {what}: {} right, {} would be by that",
                        percent(accuracy),
                        percent(p)
                    ),
                    advice,
                );
            }
        }
        if let (Some((_, Some(accuracy))), Some(trained)) = (self.validation, self.training.1)
            && trained - accuracy > AHEAD
        {
            let gap = format!("training gets {} right, validation {}", percent(trained), percent(accuracy));
            match self.evaluated.filter(|e| self.has_statistics && trained - e > AHEAD) {
                Some(e) => say(
                    "statistics-do-not-fit",
                    format!(
                        "{gap}; the training data too, when they are judged as the validation is, with running statistics: {}",
                        percent(e)
                    ),
                    format!("--recalibrate-bn, {lower}, a larger --batch-size, or rewriting the model with --frozen-bn"),
                ),
                None => {
                    let (samples, advice) = match self.data {
                        Kind::Text => ("windows of text", format!("more text, fewer epochs, {lower}")),
                        Kind::Images => (
                            "images",
                            format!(
                                "more data, --flip, --crop, fewer epochs, {lower}, or rewriting the model with --freeze-backbone"
                            ),
                        ),
                        Kind::Other => (
                            "samples",
                            format!("more data, fewer epochs, {lower}, or rewriting the model with --freeze-backbone"),
                        ),
                    };
                    say(
                        "worse-than-training",
                        format!("{gap}: {} {samples} are learned by heart by {} parameters", self.samples, self.parameters),
                        advice,
                    );
                }
            }
        } else if let (Some((loss, None)), (Some(trained), None)) = (self.validation, self.training)
            && loss > 3.0 * trained.abs() + 1e-6
        {
            say(
                "worse-than-training",
                format!("the validation loss is {loss:.4}, over the last epoch of training it was {trained:.4}"),
                format!("more data, fewer epochs, {lower}"),
            );
        }
        if let (Some(first), (Some(last), _)) = (self.first_loss, self.training)
            && last >= first
            // Of a network that is its own teacher it can only rise.
            && first.abs() >= guard::ZERO
        {
            say(
                "learned-nothing",
                format!("the training loss did not fall: {first:.4} at the first step, {last:.4} over the last epoch"),
                ANOTHER.into(),
            );
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(f: Facts) -> Vec<&'static str> {
        f.judge().iter().map(|v| v.kind).collect()
    }

    #[test]
    fn advice_fits_the_data() {
        let facts = |data, validation, training| Facts {
            samples: 900,
            lr: 1e-3,
            training: (Some(1.0), Some(training)),
            validation: Some((2.0, Some(validation))),
            predictions: 9000,
            commonest: Some(0.15),
            data,
            ..Facts::default()
        };
        let said = |f: Facts| f.judge().into_iter().map(|v| format!("{}. {}", v.text, v.advice)).collect::<String>();
        let guess = said(facts(Kind::Text, 0.15, 0.16));
        assert!(guess.contains("commonest token") && guess.contains("tokenizer") && !guess.contains("label"), "{guess}");
        let gap = said(facts(Kind::Text, 0.4, 0.9));
        assert!(gap.contains("900 windows of text") && !gap.contains("--flip") && !gap.contains("--freeze"), "{gap}");
        assert!(said(facts(Kind::Images, 0.4, 0.9)).contains("--flip"));
        assert!(said(facts(Kind::Images, 0.15, 0.16)).contains("images and labels"));
    }

    #[test]
    fn a_guess_a_gap_and_statistics_that_do_not_fit_are_told_apart() {
        let good = Facts {
            samples: 60,
            lr: 1e-3,
            first_loss: Some(1.6),
            training: (Some(0.3), Some(0.92)),
            validation: Some((0.4, Some(0.87))),
            predictions: 300,
            commonest: Some(0.22),
            ..Facts::default()
        };
        assert_eq!(kinds(good.clone()), Vec::<&str>::new());
        let guess = Facts { validation: Some((1.7, Some(0.25))), training: (Some(1.6), Some(0.3)), ..good.clone() };
        assert_eq!(kinds(guess), ["no-better-than-chance", "learned-nothing"]);
        let gap = Facts { validation: Some((1.0, Some(0.6))), ..good.clone() };
        assert_eq!(kinds(gap.clone()), ["worse-than-training"]);
        assert_eq!(kinds(Facts { has_statistics: true, evaluated: Some(0.5), ..gap.clone() }), ["statistics-do-not-fit"]);
        assert_eq!(kinds(Facts { has_statistics: true, evaluated: Some(0.9), ..gap }), ["worse-than-training"]);
        let own_teacher = Facts { first_loss: Some(-1e-9), training: (Some(1e-6), None), ..Facts::default() };
        assert_eq!(kinds(own_teacher), Vec::<&str>::new());
        let regression = Facts { validation: Some((5.0, None)), training: (Some(0.1), None), ..good };
        assert_eq!(kinds(regression), ["worse-than-training"]);
    }
}
