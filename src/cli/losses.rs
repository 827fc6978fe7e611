//! The options of losses and of parameter groups.

use ancre_passes::transform::loss::LossKind;
use clap::{Args, ValueEnum};
use std::str::FromStr;

/// The losses of a training graph.
#[derive(Args, Debug, Default, PartialEq)]
pub struct LossArgs {
    /// Loss: auto (by evidence in the model), cross-entropy, next-token, mse, l1, huber, smooth-l1, bce, kl, focal, dice, ctc,
    /// distill, distill-mse, output (a scalar that the model computes itself; also: own) or none (no training graph). Repeatable: losses on
    /// OUTPUT are added up with their WEIGHT [default: auto, on the only float output, of weight 1]
    #[arg(long, value_name = "NAME[:OUTPUT[:WEIGHT]]", help_heading = "Training graph")]
    pub loss: Vec<LossArg>,
    /// [default: mean]
    #[arg(long, help_heading = "Training graph")]
    pub reduction: Option<Reduction>,
    /// Label smoothing of the cross-entropies
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Training graph")]
    pub label_smoothing: Option<f64>,
    /// Label whose positions do not count [default: -100, as in PyTorch]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Training graph")]
    pub ignore_index: Option<i64>,
    /// Axis of the output that holds the classes, where the model leaves it open [default: by the weight of its last linear map]
    #[arg(long, value_name = "N", allow_negative_numbers = true, help_heading = "Training graph")]
    pub class_axis: Option<i64>,
    /// Weights of the classes: numbers w0,w1,…, a file of them (.npy, .npz, .safetensors or text), or balanced: `train` weights classes
    /// by how seldom they are in its data, another program feeds the input class_weights
    #[arg(long, value_name = "FILE|W0,W1,…|balanced", help_heading = "Training graph")]
    pub class_weights: Option<String>,
    /// Exponent of the focal loss [default: 2]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Training graph")]
    pub focal_gamma: Option<f64>,
    /// What the Dice loss adds above and below, for what is nowhere [default: 1]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Training graph")]
    pub dice_smooth: Option<f64>,
    /// Class of the CTC loss that stands for no label [default: 0]
    #[arg(long, value_name = "N", help_heading = "Training graph")]
    pub ctc_blank: Option<u32>,
    /// Threshold of the Huber losses [default: 1]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Training graph")]
    pub huber_delta: Option<f64>,
    /// Weight positions by the input NAME, the model's own or a new one: 0 where padding is (repeatable, for one output each)
    #[arg(long, value_name = "[OUTPUT=]NAME", help_heading = "Training graph")]
    pub mask: Vec<String>,
    /// Learn from a teacher in the same graph, without labels: the source itself, another model with the same inputs, or another output of
    /// the model, at temperature T [default: 1]; beside other losses with a WEIGHT
    #[arg(long, value_name = "source|FILE|output=NAME[:T[:WEIGHT]]", help_heading = "Training graph")]
    pub distill: Option<String>,
    /// The model output the losses read that name none [default: the only float output]
    #[arg(long, value_name = "NAME", help_heading = "Training graph")]
    pub output: Option<String>,
    /// Name of the target input [default: labels (int64) or target (float); OUTPUT.labels and OUTPUT.target where there are several]
    #[arg(long, value_name = "[OUTPUT=]NAME", help_heading = "Training graph")]
    pub labels: Vec<String>,
}

impl LossArgs {
    /// The options that ask for no training graph.
    pub fn none() -> LossArgs {
        LossArgs { loss: vec![LossArg { choice: LossChoice::None, on: None }], ..LossArgs::default() }
    }

    /// Is a training graph wanted?
    pub fn train(&self) -> bool {
        !self.loss.iter().any(|l| l.choice == LossChoice::None)
    }

    /// Is there, or may there be, a loss of such a kind?
    pub fn may_be(&self, kind: impl Fn(LossKind) -> bool) -> bool {
        let auto = self.loss.is_empty() && self.distill.is_none();
        auto || self.loss.iter().any(|l| match l.choice {
            LossChoice::Auto => true,
            LossChoice::Kind(k) => kind(k),
            LossChoice::None => false,
        })
    }
}

/// One `--loss`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossArg {
    /// Which.
    pub choice: LossChoice,
    /// `OUTPUT[:WEIGHT]`. A name may hold colons, which only the model's outputs tell apart.
    pub on: Option<String>,
}

/// A loss as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LossChoice {
    /// By evidence in the model.
    Auto,
    /// This one.
    Kind(LossKind),
    /// No training graph.
    None,
}

impl FromStr for LossArg {
    type Err = String;

    fn from_str(text: &str) -> Result<LossArg, String> {
        let (word, on) = text.split_once(':').map_or((text, None), |(word, on)| (word, Some(on.to_string())));
        let choice = match word {
            "auto" => LossChoice::Auto,
            "none" => LossChoice::None,
            "output" => LossChoice::Kind(LossKind::Own),
            word => match LossKind::of_name(word) {
                Some(kind) => LossChoice::Kind(kind),
                None => return Err(format!("losses are auto, output, none, {}", LossKind::WORDS.join(", "))),
            },
        };
        Ok(LossArg { choice, on })
    }
}

/// One `--group`.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupArg {
    /// Names of the tensors.
    pub pattern: String,
    /// Learning rate, relative to that of all.
    pub lr: Option<f64>,
    /// Weight decay.
    pub decay: Option<f64>,
}

impl FromStr for GroupArg {
    type Err = String;

    fn from_str(text: &str) -> Result<GroupArg, String> {
        let expected = "GLOB=lr*X,decay=Y was expected, with either part or both".to_string();
        let (pattern, settings) = text.split_once('=').ok_or(expected.clone())?;
        let number = |text: &str| text.parse().ok().filter(|v: &f64| *v >= 0.0 && v.is_finite());
        let mut group = GroupArg { pattern: pattern.into(), lr: None, decay: None };
        for setting in settings.split(',') {
            match (setting.strip_prefix("lr*").and_then(number), setting.strip_prefix("decay=").and_then(number)) {
                (Some(x), _) if group.lr.is_none() => group.lr = Some(x),
                (_, Some(x)) if group.decay.is_none() => group.decay = Some(x),
                _ => return Err(format!("`{setting}`: {expected}, numbers of 0 or more")),
            }
        }
        if pattern.is_empty() { Err(expected) } else { Ok(group) }
    }
}

#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reduction {
    Mean,
    Sum,
}
