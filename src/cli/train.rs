//! The command line of `train`.

use super::TextOptions;
use crate::engine::memory::parse_size;
use crate::engine::ort::device::{DeviceChoice, Optimization};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::PathBuf;
use std::str::FromStr;

/// `train`.
#[derive(Args, Debug, Clone)]
#[command(after_help = "Examples:
  ancre-rewrite train resnet.ancre.train.onnx --data digits/train --val digits/test --epochs 5
  ancre-rewrite train gpt.ancre.train.onnx --data tokens.bin --window 64 --steps 2000 --schedule cosine --warmup 100
  ancre-rewrite train gpt.ancre.train.onnx --data corpus.txt --tokenizer tokenizer.json --window 64 --val-split 0.1
  ancre-rewrite train resnet.ancre.train.onnx --data train.npz --epochs 5 --export deployed.onnx
  ancre-rewrite train resnet.ancre.train.onnx --resume     go on after an interruption, with the options that the run had

Ctrl-C finishes the step, writes a checkpoint and ends with status 130; --resume goes on from there. Checkpoints hold the whole \
state under the names of the graph's state inputs: `ancre-rewrite freeze MODEL.ancre.onnx --state DIR/best.safetensors` deploys one.

Exit status: 0 success, 1 the run diverged, 2 bad usage or bad input, 130 interrupted.")]
pub struct TrainArgs {
    /// The training graph that ancre-rewrite wrote (STEM.ancre.train.onnx; of a step in two graphs, STEM.ancre.grad.onnx)
    #[arg(value_name = "TRAIN.onnx")]
    pub model: PathBuf,
    /// What decides the run.
    #[command(flatten)]
    pub course: CourseOptions,
    /// Directory for checkpoints and log [default: STEM.ancre.run beside the training graph]
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub out: Option<PathBuf>,
    /// Go on from the newest checkpoint in the directory
    #[arg(long, help_heading = "Output")]
    pub resume: bool,
    /// Remove an earlier run's checkpoints from the directory
    #[arg(long, conflicts_with = "resume", help_heading = "Output")]
    pub overwrite: bool,
    /// Also write a checkpoint every N steps [default: after each epoch and every ten minutes]
    #[arg(long, value_name = "N", help_heading = "Output", value_parser = clap::value_parser!(u64).range(1..))]
    pub save_every: Option<u64>,
    /// Checkpoints to keep, besides the best
    #[arg(long, value_name = "N", default_value_t = 2, help_heading = "Output")]
    pub keep: usize,
    /// auto, cpu, cuda or cuda:N; auto takes CUDA where it works
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Runtime")]
    pub device: DeviceChoice,
    /// Threads inside an operator [default: ONNX Runtime's choice]
    #[arg(long, value_name = "N", help_heading = "Runtime", value_parser = clap::value_parser!(u32).range(1..))]
    pub threads: Option<u32>,
    /// Let CUDA round the operands of products to TF32
    #[arg(long, help_heading = "Runtime")]
    pub tf32: bool,
    /// Give freed memory back after each use
    #[arg(long, help_heading = "Runtime")]
    pub no_arena: bool,
    /// Most memory of the GPU to take, such as 8GiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Runtime")]
    pub gpu_memory: Option<u64>,
    /// How far ONNX Runtime may rewrite the graph
    #[arg(long, value_enum, value_name = "LEVEL", default_value_t, help_heading = "Runtime")]
    pub optimization: Optimization,
    /// One JSON document on stdout at the end
    #[arg(long)]
    pub json: bool,
    /// Say only what went wrong
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more: what was loaded, host bytes a step
    #[arg(short, long)]
    pub verbose: bool,
}

/// What decides a run. Its checkpoints remember it: `--resume` needs none of it again.
#[derive(Args, Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CourseOptions {
    /// Training data: .npz, .safetensors or directory of .npy with arrays named like the graph's inputs; directory with one
    /// folder of images a class; file of tokens (.bin); text with --tokenizer
    #[arg(long, value_name = "FILE|DIR", help_heading = "Data", required_unless_present = "resume")]
    pub data: Option<PathBuf>,
    /// Validation data, used after each epoch
    #[arg(long, value_name = "FILE|DIR", help_heading = "Data")]
    pub val: Option<PathBuf>,
    /// Hold back this part of the training data for validation, such as 0.1 (of a token file: its end)
    #[arg(long, value_name = "X", conflicts_with = "val", help_heading = "Data")]
    pub val_split: Option<f64>,
    /// Samples in a batch, for each rank under mpirun [default: what the graph fixes, else 8 to 32, by the number of samples]
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: Option<u32>,
    /// Leave out an epoch's last batch if it is not full
    #[arg(long, help_heading = "Data")]
    pub drop_last: bool,
    /// How the data are read.
    #[command(flatten)]
    #[serde(flatten)]
    pub reading: DataOptions,
    /// Passes over the data [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "steps", help_heading = "Course")]
    pub epochs: Option<u64>,
    /// Steps, instead of epochs
    #[arg(long, value_name = "N", help_heading = "Course")]
    pub steps: Option<u64>,
    /// Highest learning rate, or auto: the one that a range test on a copy of the state finds [default: the best of a few that are
    /// tried for a sixth of the steps each, 6 to 100, around one that follows from what is trained: 0.001 from scratch, 0.0003 for
    /// trained weights with a fresh head, 0.0005 for trained weights, 0.0002 for quantised ones, 0.01 where only a fresh head
    /// or the router trains; ten times as much for sgd]
    #[arg(long, allow_negative_numbers = true, value_name = "X|auto", help_heading = "Course")]
    pub lr: Option<RateChoice>,
    /// How the rate goes down [default: wsd, or constant where --lr says a number]
    #[arg(long, value_enum, help_heading = "Course")]
    pub schedule: Option<ScheduleKind>,
    /// Steps over which the rate rises to the highest [default: a quarter of an epoch or of a shorter run, 4 to 100]
    #[arg(long, value_name = "N", help_heading = "Course")]
    pub warmup: Option<u64>,
    /// Rate at which cosine, linear and wsd end [default: 0]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Course")]
    pub min_lr: Option<f64>,
    /// Part of the steps, at the beginning, in which a fresh head trains alone, at ten times the rate [default: 0]
    #[arg(long, value_name = "X", help_heading = "Course")]
    pub head_first: Option<f64>,
    /// How often in a row a loss that jumps takes the run back to its best state, at a fifth of the rate, before the run gives up
    /// [default: 3]
    #[arg(long, value_name = "N", help_heading = "Course")]
    pub guard: Option<u32>,
    /// After the last step, take running statistics anew from training data: always, never, or where they lag far behind the
    /// batches' [default: auto; without a word: on]
    #[arg(long, value_enum, value_name = "on|off|auto", num_args = 0..=1, default_missing_value = "on", help_heading = "Course")]
    pub recalibrate_bn: Option<Recalibrate>,
    /// Also tell these figures of each validation: top-1, top-5, f1 (mean over classes), perplexity, mae
    #[arg(long, value_enum, value_name = "NAME", value_delimiter = ',', help_heading = "Course")]
    pub metric: Vec<Metric>,
    /// Stop when N validations in a row have brought nothing better
    #[arg(long, value_name = "N", help_heading = "Course", value_parser = clap::value_parser!(u32).range(1..))]
    pub patience: Option<u32>,
    /// Seed of the order of samples and of augmentation [default: 0]
    #[arg(long, value_name = "N", help_heading = "Course")]
    pub seed: Option<u64>,
    /// Start from the tensors of this file instead of the graph's own [default for graphs without state: STEM.ancre.state.safetensors
    /// beside it]
    #[arg(long, value_name = "FILE.safetensors", help_heading = "Course")]
    pub state: Option<PathBuf>,
    /// Graph for --val [default: STEM.ancre.eval.onnx beside the training graph, else made of what lies beside it]
    #[arg(long, value_name = "FILE", help_heading = "Course")]
    pub eval_graph: Option<PathBuf>,
    /// One JSON object a step [default: log.jsonl in the directory]
    #[arg(long, value_name = "FILE.jsonl", help_heading = "Output")]
    pub log: Option<PathBuf>,
    /// Also write the log as TensorBoard event files into this directory
    #[arg(long, value_name = "DIR", help_heading = "Output")]
    pub log_dir: Option<PathBuf>,
    /// At the end, freeze the trained state into the forward graph and write the deployable model
    #[arg(long, value_name = "MODEL.onnx", help_heading = "Output")]
    pub export: Option<PathBuf>,
    /// What --export leaves out of the router: weights below EPS in magnitude [default: as freeze]
    #[arg(long, value_name = "EPS", help_heading = "Output")]
    pub prune: Option<f64>,
    /// The forward graph for --export [default: STEM.ancre.onnx beside the training graph]
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub forward: Option<PathBuf>,
}

impl CourseOptions {
    /// These options, and where they say nothing those of an earlier run.
    pub fn over(&self, then: &CourseOptions) -> CourseOptions {
        let object = |o: &CourseOptions| match serde_json::to_value(o) {
            Ok(Value::Object(map)) => map,
            _ => Map::new(),
        };
        let (given, mut all) = (object(self), object(then));
        let said = |v: &Value| !(v.is_null() || *v == Value::Bool(false) || *v == Value::Array(Vec::new()));
        // Each of these pairs decides one thing.
        for (one, other) in [("epochs", "steps"), ("val", "val_split")] {
            for (a, b) in [(one, other), (other, one)] {
                if given.get(a).is_some_and(said) {
                    all.remove(b);
                }
            }
        }
        all.extend(given.into_iter().filter(|(_, v)| said(v)));
        serde_json::from_value(Value::Object(all)).unwrap_or_else(|_| self.clone())
    }

    /// The options as a checkpoint holds them: paths from the root, so that a run can be resumed from any directory. Nothing is
    /// remembered where a path is no Unicode.
    pub fn to_be_remembered(mut self) -> CourseOptions {
        let files = [&mut self.data, &mut self.val, &mut self.state, &mut self.eval_graph];
        for path in
            files.into_iter().chain([&mut self.log, &mut self.log_dir, &mut self.export, &mut self.forward]).flatten()
        {
            if let Ok(whole) = std::path::absolute(&*path) {
                *path = whole;
            }
        }
        if let Some(file) = self.reading.text.tokenizer.as_mut().filter(|name| name.as_os_str() != "bytes")
            && let Ok(whole) = std::path::absolute(&*file)
        {
            *file = whole;
        }
        if serde_json::to_value(&self).is_ok() { self } else { CourseOptions::default() }
    }
}

/// How a data set is read.
#[derive(Args, Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct DataOptions {
    /// Mirror training images left to right, every second time
    #[arg(long, help_heading = "Data")]
    pub flip: bool,
    /// Pad training images by an eighth and cut them out at a random place
    #[arg(long, help_heading = "Data")]
    pub crop: bool,
    /// Subtracted from each channel of an image, values being in [0, 1] [default for folders of images of three channels: ImageNet's
    /// 0.485,0.456,0.406, unless the model normalises its images itself]
    #[arg(long, value_name = "X,…", value_delimiter = ',', allow_hyphen_values = true, help_heading = "Data")]
    pub mean: Option<Vec<f32>>,
    /// Divides each channel of an image [default: with the mean's default 0.229,0.224,0.225, else 1]
    #[arg(long, value_name = "X,…", value_delimiter = ',', allow_hyphen_values = true, help_heading = "Data")]
    pub std: Option<Vec<f32>>,
    /// Tokens in a sample of a token file [default: what the graph fixes]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub window: Option<usize>,
    /// Tokens from one sample's start to the next one's [default: the window]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub stride: Option<usize>,
    /// How text is read.
    #[command(flatten)]
    #[serde(flatten)]
    pub text: TextOptions,
    /// Go on without up to N images that cannot be decoded [default: 0]
    #[arg(long, value_name = "N", help_heading = "Data")]
    pub skip_bad: Option<usize>,
    /// Height and width of images where the model leaves them open
    #[arg(long, value_name = "HxW", value_parser = image_size, help_heading = "Data")]
    pub image_size: Option<[usize; 2]>,
    /// Seed of the order and of what is random about a sample.
    #[arg(skip)]
    #[serde(skip)]
    pub seed: u64,
    /// Names of the classes, where another set has fixed them: those of the training set for its validation set.
    #[arg(skip)]
    #[serde(skip)]
    pub classes: Option<Vec<String>>,
}

/// A figure of a validation.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// Share of predictions that are right.
    #[value(name = "top-1")]
    Top1,
    /// Share of predictions among whose five highest scores the label is.
    #[value(name = "top-5")]
    Top5,
    /// Harmonic mean of precision and recall, as the mean over the classes that occur.
    F1,
    /// Exponential of a cross-entropy.
    Perplexity,
    /// Mean distance of output and target.
    Mae,
    /// What has to be inserted, deleted or replaced in the spelling with the best class of each frame, as a share of the labels. Reported
    /// for every CTC loss, asked for or not.
    LabelErrorRate,
}

impl Metric {
    /// The command line's name.
    pub fn name(self) -> &'static str {
        match self {
            Metric::Top1 => "top-1",
            Metric::Top5 => "top-5",
            Metric::F1 => "f1",
            Metric::Perplexity => "perplexity",
            Metric::Mae => "mae",
            Metric::LabelErrorRate => "label-error-rate",
        }
    }
}

/// When running statistics are taken anew.
#[derive(ValueEnum, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recalibrate {
    /// Where they lag far behind the batches'.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// A learning rate as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum RateChoice {
    /// By a range test.
    Auto,
    /// This one.
    Rate(f64),
}

impl FromStr for RateChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<RateChoice, String> {
        if text == "auto" {
            return Ok(RateChoice::Auto);
        }
        text.parse().map(RateChoice::Rate).map_err(|_| "a number or auto was expected".to_string())
    }
}

/// How the rate goes down after the warm-up.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScheduleKind {
    /// It stays.
    Constant,
    /// Half a cosine down to the least rate.
    Cosine,
    /// A straight line down to the least rate.
    Linear,
    /// Warm-up, stable, decay: constant, and over the last two fifths a straight line down to the least rate.
    Wsd,
}

impl ScheduleKind {
    /// The command line's name.
    pub fn name(self) -> &'static str {
        match self {
            ScheduleKind::Constant => "constant",
            ScheduleKind::Cosine => "cosine",
            ScheduleKind::Linear => "linear",
            ScheduleKind::Wsd => "wsd",
        }
    }
}

fn image_size(text: &str) -> Result<[usize; 2], String> {
    let two = text.split_once(['x', 'X']).and_then(|(h, w)| Some([h.parse().ok()?, w.parse().ok()?]));
    two.filter(|s: &[usize; 2]| s[0] > 0 && s[1] > 0).ok_or_else(|| "HxW such as 224x224 was expected".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_resumed_run_is_not_told_it_remembers() {
        let reading = DataOptions { flip: true, mean: Some(vec![0.25]), ..DataOptions::default() };
        let then = CourseOptions { epochs: Some(3), lr: Some(RateChoice::Rate(0.5)), reading, ..CourseOptions::default() };
        let now = CourseOptions { steps: Some(9), lr: Some(RateChoice::Auto), ..CourseOptions::default() }.over(&then);
        assert_eq!((now.epochs, now.steps, now.lr), (None, Some(9), Some(RateChoice::Auto)));
        assert_eq!((now.reading.flip, now.reading.mean), (true, Some(vec![0.25])));
        assert_eq!(CourseOptions::default().over(&then).epochs, Some(3));
    }

    #[test]
    fn image_sizes_are_read() {
        assert_eq!((image_size("32x64"), image_size("32").is_err(), image_size("0x3").is_err()), (Ok([32, 64]), true, true));
    }
}
