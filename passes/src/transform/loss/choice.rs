//! Which loss, and its options.

use crate::ir::words;

words! {
    /// Which loss.
    LossKind {
        /// Softmax cross-entropy with int64 class labels.
        CrossEntropy = "cross-entropy",
        /// Softmax cross-entropy of each position's logits with the next position's token.
        NextToken = "next-token",
        /// Mean squared error.
        Mse = "mse",
        /// Mean absolute error.
        L1 = "l1",
        /// Huber: quadratic below `delta`, linear above.
        Huber = "huber",
        /// Huber divided by `delta`, as PyTorch's `smooth_l1_loss`.
        SmoothL1 = "smooth-l1",
        /// Binary cross-entropy on logits.
        Bce = "bce",
        /// Kullback-Leibler divergence of the softmax from a distribution.
        Kl = "kl",
        /// Focal: the cross-entropy, times (1 − p)^γ of the label's probability.
        Focal = "focal",
        /// Focal on independent logits.
        BinaryFocal = "binary-focal",
        /// Soft Dice over classes, of the softmax and labels.
        Dice = "dice",
        /// Soft Dice of the sigmoid and targets of 0 to 1.
        BinaryDice = "binary-dice",
        /// Connectionist temporal classification: sequences of labels without their places.
        Ctc = "ctc",
        /// Kullback-Leibler divergence of the softmax from a teacher's.
        Distill = "distill",
        /// The same of independent logits.
        DistillBce = "distill-bce",
        /// Mean squared difference from a teacher's output.
        DistillMse = "distill-mse",
        /// A scalar output of the model, which computes its loss itself.
        Own = "own",
    }
}

impl LossKind {
    /// Are its targets class indices (int64), not floats?
    pub fn takes_labels(self) -> bool {
        self.weights_classes() || self == LossKind::Ctc
    }

    /// Has each position a label, whose class may have a weight?
    pub fn weights_classes(self) -> bool {
        matches!(self, LossKind::CrossEntropy | LossKind::NextToken | LossKind::Focal | LossKind::Dice)
    }

    /// Does it read a softmax over classes?
    pub fn has_classes(self) -> bool {
        self.takes_labels() || matches!(self, LossKind::Kl | LossKind::Distill)
    }

    /// Does it read independent logits, whose probabilities are their sigmoids?
    pub fn is_binary(self) -> bool {
        matches!(self, LossKind::Bce | LossKind::BinaryFocal | LossKind::BinaryDice | LossKind::DistillBce)
    }

    /// Does it compare with a teacher?
    pub fn has_teacher(self) -> bool {
        matches!(self, LossKind::Distill | LossKind::DistillBce | LossKind::DistillMse)
    }

    /// Does it read a target that is fed?
    pub fn has_target(self) -> bool {
        !self.has_teacher() && self != LossKind::Own
    }
}

/// Weights of classes.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ClassWeights {
    /// All are one.
    #[default]
    Even,
    /// These, one a class.
    Given(Vec<f64>),
    /// An input of the graph, `class_weights`: what is fed follows the training data.
    Fed,
}

/// A loss and its options.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LossOptions {
    /// Which loss.
    pub kind: LossKind,
    /// The output it reads; the training graph's own choice when absent.
    pub output: Option<String>,
    /// Its factor in a sum of several.
    pub weight: f64,
    /// Sum instead of mean.
    pub sum: bool,
    /// Label smoothing ε of the cross-entropies.
    pub smoothing: f64,
    /// The label of positions that do not count.
    pub ignore_index: Option<i64>,
    /// Huber's threshold.
    pub huber_delta: f64,
    /// Name of the target input; `labels` or `target` when absent.
    pub labels: Option<String>,
    /// Axis of the classes, counted from the end where negative; by evidence when absent.
    pub class_axis: Option<i64>,
    /// Weights of the classes, where targets are labels.
    pub class_weights: ClassWeights,
    /// The focal losses' γ.
    pub gamma: f64,
    /// What Dice adds above and below.
    pub dice_smooth: f64,
    /// Name of an input that weights positions.
    pub mask: Option<String>,
    /// Temperature of a distillation.
    pub temperature: f64,
    /// The class of CTC that stands for no label.
    pub blank: i64,
}

impl LossOptions {
    /// The mean of a loss over everything.
    pub fn of(kind: LossKind) -> LossOptions {
        LossOptions {
            kind,
            output: None,
            weight: 1.0,
            sum: false,
            smoothing: 0.0,
            ignore_index: None,
            huber_delta: 1.0,
            labels: None,
            class_axis: None,
            class_weights: ClassWeights::Even,
            gamma: 2.0,
            dice_smooth: 1.0,
            mask: None,
            temperature: 1.0,
            blank: 0,
        }
    }
}
