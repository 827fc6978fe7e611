//! The command line.

#[cfg(feature = "ort")]
mod compare;
mod losses;
#[cfg(feature = "ort")]
mod train;
mod verify;

#[cfg(feature = "ort")]
pub use compare::{CompareArgs, OfRewrite, OfTrain, Verb, Words};
pub use losses::{GroupArg, LossArg, LossArgs, LossChoice, Reduction};
#[cfg(feature = "ort")]
pub use train::{CourseOptions, DataOptions, Metric, RateChoice, Recalibrate, ScheduleKind, TrainArgs};
pub use verify::{LimitArgs, VerifyArgs};

use crate::engine::EngineChoice;
use ancre_passes::contract::{StateFrom, StepForm};
use ancre_passes::ir::{Form, Normalize, Rule, Scope, Sources};
use ancre_passes::target::Target;
use ancre_passes::transform::narrow::Precision;
use ancre_passes::transform::optimizer::OptimizerKind;
use ancre_passes::transform::route::Preset;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// Rewrites the skips of a residual ONNX network into a learned all-pairs router and emits its training graph.
#[derive(Parser, Debug)]
#[command(
    name = "ancre-rewrite",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_precedence_over_arg = true,
    max_term_width = 110,
    after_help = "Examples:
  ancre-rewrite resnet.onnx                                    route it, verify it, write forward and training graph
  ancre-rewrite inspect resnet.onnx                            only show its residual structure
  ancre-rewrite gpt.onnx --loss next-token --preset paper      ANCRe as published, for training from scratch
  ancre-rewrite mlp.onnx --loss mse --optimizer sgd --momentum 0.9 -o out/
  ancre-rewrite train resnet.ancre.train.onnx --data train.npz --val test.npz --epochs 5 --export deployed.onnx
  ancre-rewrite compare resnet.onnx --data train.npz --val test.npz --epochs 5     does the router help here?
  ancre-rewrite verify resnet.onnx resnet.ancre.onnx           are they equivalent? (for CI)
  ancre-rewrite freeze resnet.ancre.onnx --state trained.safetensors -o deployed.onnx
  ancre-rewrite topology resnet.ancre.run                      a page: which states the trained blocks read
  ancre-rewrite runtime install                                fetch a stock ONNX Runtime for training

Exit status: 0 success, 1 a check said no, 2 bad usage or bad input."
)]
pub struct Cli {
    /// What to do; without a verb: rewrite, emit, verify.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The main job.
    #[command(flatten)]
    pub rewrite: RewriteArgs,
}

/// The verbs besides the main job.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Show the residual structure, changing nothing
    Inspect(InspectArgs),
    /// Are two models equivalent? Or: are a training graph's gradients right?
    Verify(VerifyArgs),
    /// Write trained state back and bake the router into a deployable model
    Freeze(FreezeArgs),
    /// Train in ONNX Runtime, from the training graph that the main job writes
    #[cfg(feature = "ort")]
    Train(Box<TrainArgs>),
    /// Does the router help on this model and this data? Train it with and without, over seeds
    #[cfg(feature = "ort")]
    Compare(Box<CompareArgs>),
    /// Write a model with the gradients of its outputs beside them
    Grad(GradArgs),
    /// Show which states the blocks of a routed network read, as a page or a picture
    Topology(TopologyArgs),
    /// Turn text into a file of tokens
    Tokenize(TokenizeArgs),
    /// Show which ONNX Runtime is used, or fetch one with pip
    Runtime(RuntimeArgs),
    /// Print shell completions
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
}

/// `inspect`.
#[derive(Args, Debug)]
pub struct InspectArgs {
    /// The model
    pub model: PathBuf,
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
    /// Why the node or value NAME is or is not a residual add
    #[arg(long, value_name = "NAME", conflicts_with = "rejected")]
    pub why: Option<String>,
    /// Every element-wise add that is not residual, and why not
    #[arg(long)]
    pub rejected: bool,
    /// Write a Graphviz drawing of the chains
    #[arg(long, value_name = "FILE")]
    pub dot: Option<PathBuf>,
    /// Write a picture of the chains before and after the rewrite
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// How much engines may take.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// `grad`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ancre-rewrite grad resnet.onnx --of logits                    logits.ct in, input.grad out: a vector-Jacobian product
  ancre-rewrite grad energy.onnx --of energy=sum --wrt positions    minus the forces of every sample
  ancre-rewrite grad gpt.onnx --of logits=sum --wrt '*.weight' -o gpt.grad.onnx")]
pub struct GradArgs {
    /// The model
    pub model: PathBuf,
    /// The output whose gradient is wanted (repeatable: gradients are added up). OUTPUT=sum: of the sum of its elements; OUTPUT=ct, and
    /// OUTPUT alone where it is no scalar: its cotangent is an input, OUTPUT.ct [default: the only float output]
    #[arg(long, value_name = "OUTPUT[=sum|ct]")]
    pub of: Vec<String>,
    /// Float inputs and parameters that match, each of which gets an output NAME.grad (repeatable); other constants by name, or by a pattern
    /// that matches nothing else [default: every float input]
    #[arg(long, value_name = "NAME|GLOB")]
    pub wrt: Vec<String>,
    /// Output directory (existing, or ending in /) or file [default: STEM.grad.onnx next to the model]
    #[arg(short, long, value_name = "DIR|FILE")]
    pub out: Option<String>,
    /// Operator set [default: 18, or the smallest later one that can express the source]
    #[arg(long, value_name = "N")]
    pub opset: Option<i64>,
    /// What compares the model's own outputs with the source: by default the proof, then tract or ONNX Runtime where there is none
    #[arg(long)]
    pub verify: Option<VerifyArg>,
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
    /// How much engines may take.
    #[command(flatten)]
    pub limits: LimitArgs,
}

/// `topology`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ancre-rewrite topology gpt.ancre.run                          the page gpt.ancre.run/topology.html, with the run's curves
  ancre-rewrite topology gpt.ancre.onnx --svg gpt.svg --png gpt.png
  ancre-rewrite topology gpt.ancre.run/best.safetensors --json  the weights as numbers
  ancre-rewrite topology vit.ancre.onnx --input images.npz      the weights of attention, on data")]
pub struct TopologyArgs {
    /// The forward graph that ancre-rewrite wrote (STEM.ancre.onnx), the directory of a training run, or a checkpoint
    #[arg(value_name = "MODEL.ancre.onnx|RUN_DIR|CKPT.safetensors")]
    pub source: PathBuf,
    /// Data on which a model with --parametrization attention is run: FILE.npz (arrays named like its inputs), NAME=FILE.npz or NAME=FILE.npy; .safetensors
    /// as .npz (repeatable). The weights shown are means over at most 256 samples
    #[arg(long, value_name = "NAME=FILE")]
    pub input: Vec<String>,
    /// Write a page that needs nothing beside itself [default: STEM.topology.html beside the source, unless another output is asked for]
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Write one picture of everything as SVG
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Write one picture of everything as PNG
    #[arg(long, value_name = "FILE")]
    pub png: Option<PathBuf>,
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

/// `tokenize`.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  ancre-rewrite tokenize corpus.txt --tokenizer tokenizer.json          corpus.bin
  ancre-rewrite tokenize wiki/ more.jsonl --tokenizer bytes -o all.bin --val-split 0.05

The file is a .safetensors whatever its name: `tokens`, u16 where the vocabulary fits and u32 otherwise. `train --data` takes it, and flat u16.")]
pub struct TokenizeArgs {
    /// Text files (UTF-8; of a .jsonl each line is a document, of a .parquet each row), or directories of them
    #[arg(value_name = "TEXT", required = true)]
    pub texts: Vec<PathBuf>,
    /// How the texts are read.
    #[command(flatten)]
    pub text: TextOptions,
    /// Output [default: the first text's name with .bin]
    #[arg(short, long, alias = "output", value_name = "FILE.bin")]
    pub out: Option<PathBuf>,
    /// Write this part of the tokens, the end, to FILE.val.bin, such as 0.1
    #[arg(long, value_name = "X")]
    pub val_split: Option<f64>,
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

/// How text becomes tokens.
#[derive(Args, Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct TextOptions {
    /// What turns text into tokens: a tokenizer.json (Hugging Face's), or bytes
    #[arg(long, value_name = "tokenizer.json|bytes", help_heading = "Data")]
    pub tokenizer: Option<PathBuf>,
    /// The field of a .jsonl file or the column of a .parquet file that holds the text [default: text]
    #[arg(long, value_name = "NAME", help_heading = "Data")]
    pub text_column: Option<String>,
    /// The token after each document, by default the tokenizer's own (`<|endoftext|>` or the like), if it has one
    #[arg(long, value_name = "TOKEN", help_heading = "Data")]
    pub end_of_text: Option<String>,
}

/// `freeze`.
#[derive(Args, Debug)]
pub struct FreezeArgs {
    /// The forward graph that ancre-rewrite wrote (STEM.ancre.onnx)
    pub model: PathBuf,
    /// Trained state, tensors named like the training graph's state inputs
    #[arg(long, value_name = "CKPT.safetensors")]
    pub state: Option<PathBuf>,
    /// Keep the router trainable instead of baking it in
    #[arg(long, conflicts_with = "prune")]
    pub keep_router: bool,
    /// Keep adapters beside their weights, trainable, instead of merging them
    #[arg(long)]
    pub keep_adapters: bool,
    /// Write adapters beside an untouched base: FILE.safetensors and adapter_config.json as PEFT has them, FILE.onnx_adapter for ONNX
    /// Runtime's LoraAdapter, and FILE.onnx, the base with its adapters as optional inputs
    #[arg(long, value_name = "FILE", conflicts_with = "keep_adapters")]
    pub adapter: Option<PathBuf>,
    /// Leave out weights below EPS in magnitude; 0 keeps all but zeros [default: the highest of 1e-2, 1e-3 … 1e-8 that moves the
    /// outputs by less than 1e-5 plus 1e-5 of their largest, on made-up inputs]
    #[arg(long, value_name = "EPS")]
    pub prune: Option<f64>,
    /// Output [default: STEM.frozen.onnx beside the model]
    #[arg(short, long, alias = "output", value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

/// `runtime`.
#[derive(Args, Debug)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "The library is looked for in this order: ORT_DYLIB_PATH, what `runtime install` fetched, the package onnxruntime of the Python in use, \
                  the system's library path."
)]
pub struct RuntimeArgs {
    /// [default: show]
    #[command(subcommand)]
    pub command: Option<RuntimeCommand>,
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
}

/// What `runtime` does.
#[derive(Subcommand, Debug)]
pub enum RuntimeCommand {
    /// Which library is used, its version and providers, and how it was found
    Show {
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
    /// Fetch the pip wheel and keep its libraries in the user's cache; no Python environment is modified
    Install {
        /// The wheel with the CUDA provider
        #[arg(long)]
        cuda: bool,
        /// Version [default: the newest]
        #[arg(long, value_name = "V")]
        version: Option<String>,
        /// One JSON document on stdout
        #[arg(long)]
        json: bool,
    },
}
/// Reads one of the library's enums by its words.
macro_rules! word_of {
    ($kind:ty) => {
        word_of!($kind, <$kind>::WORDS.iter().copied())
    };
    ($kind:ty, $words:expr) => {
        PossibleValuesParser::new($words).try_map(|word| <$kind>::of_name(&word).ok_or("no such word"))
    };
}

/// Which forward values the backward pass computes again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecomputeChoice {
    /// None.
    Off,
    /// The inside of blocks of so many residual adds.
    Blocks(usize),
}

/// `off`, `blocks` or a number of adds.
fn recompute(text: &str) -> Result<RecomputeChoice, String> {
    match text {
        "off" => Ok(RecomputeChoice::Off),
        "blocks" => Ok(RecomputeChoice::Blocks(1)),
        n => {
            let adds = n.parse().ok().filter(|n| *n > 0).map(RecomputeChoice::Blocks);
            adds.ok_or_else(|| "off, blocks or a number of residual adds was expected".into())
        }
    }
}

/// What compares the rewrite with its source.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum VerifyArg {
    Tract,
    Ort,
    Both,
    None,
}

impl VerifyArg {
    /// The engine that is asked for; `None`: nothing is to run.
    pub fn engine(self) -> Option<EngineChoice> {
        match self {
            VerifyArg::Tract => Some(EngineChoice::Tract),
            VerifyArg::Ort => Some(EngineChoice::Ort),
            VerifyArg::Both => Some(EngineChoice::Both),
            VerifyArg::None => None,
        }
    }
}

/// A number from 0 to 1.
fn momentum(text: &str) -> Result<f32, String> {
    text.parse().ok().filter(|m| (0.0..=1.0).contains(m)).ok_or_else(|| "a number from 0 to 1 was expected".into())
}

/// The main job.
#[derive(Args, Debug, Default)]
pub struct RewriteArgs {
    /// The model
    pub model: Option<PathBuf>,
    /// Output directory (existing, or ending in /) or forward graph's file [default: next to the model]
    #[arg(short, long, value_name = "DIR|FILE")]
    pub out: Option<String>,
    /// finetune: reassign, add, gated, uniform; deep: input, add, softmax, uniform, tau 0.1; paper: augment, block, softmax, uniform; later
    /// flags override
    #[arg(long, value_parser = word_of!(Preset), help_heading = "Router")]
    pub preset: Option<Preset>,
    /// What takes the weighted sum: the skip's place, beside the whole block, or the place of all that the block reads
    #[arg(long, value_parser = word_of!(Form), help_heading = "Router")]
    pub form: Option<Form>,
    /// What one block is: add, block (the repeated unit) or a number of adds
    #[arg(long, value_name = "add|block|N", help_heading = "Router")]
    pub granularity: Option<String>,
    /// Which states a row may read
    #[arg(long, value_parser = word_of!(Scope), help_heading = "Router")]
    pub scope: Option<Scope>,
    /// Softmax temperature [default: 0.01; of --preset deep 0.1]
    #[arg(long, allow_negative_numbers = true, help_heading = "Router")]
    pub tau: Option<f32>,
    /// Weights of a row
    #[arg(long, value_parser = word_of!(Rule), help_heading = "Router")]
    pub parametrization: Option<Rule>,
    /// What a row sums up: the earlier states, or what each block added, h_i - h_(i-1) (with --form input: h_i less the sum that it read), after the first state [default: states]
    #[arg(long, value_parser = word_of!(Sources), help_heading = "Router")]
    pub sources: Option<Sources>,
    /// With free weights: a row reads every Nth state back from the nearest (DenseFormer) [default: 1]
    #[arg(long, value_name = "N", help_heading = "Router", value_parser = clap::value_parser!(u32).range(1..))]
    pub dilation: Option<u32>,
    /// With free weights: every Nth block has a route, the others stay as they are [default: 1]
    #[arg(long, value_name = "N", help_heading = "Router", value_parser = clap::value_parser!(u32).range(1..))]
    pub period: Option<u32>,
    /// With attention or free weights: a row reads every Nth state from the first on, and its nearest (attention residuals in blocks) [default: 1]
    #[arg(long, value_name = "N", help_heading = "Router", value_parser = clap::value_parser!(u32).range(1..))]
    pub summaries: Option<u32>,
    /// Softmax over a row's sources, or over a source's targets [default: incoming]
    #[arg(long, value_parser = word_of!(Normalize), help_heading = "Router")]
    pub normalize: Option<Normalize>,
    /// Start of the logits: uniform, identity, near-identity[=EPS] or file:PATH (.npz, .safetensors)
    #[arg(long, value_name = "INIT", help_heading = "Router")]
    pub init: Option<String>,
    /// Chains to rewrite: all, none, or ids such as 0,2,3 [default: all]
    #[arg(long, value_name = "all|none|IDS", help_heading = "Router")]
    pub chains: Option<String>,
    /// Train low-rank adapters (LoRA) of this rank in place of the weights, which stay as they are, in their own type
    #[arg(long, value_name = "RANK", help_heading = "Adapters", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub lora: Option<u32>,
    /// What an adapter adds is multiplied by X / RANK [default: RANK, a factor of 1]
    #[arg(long, value_name = "X", requires = "lora", allow_negative_numbers = true, help_heading = "Adapters")]
    pub lora_alpha: Option<f64>,
    /// Weights, or nodes that read them, that get adapters (repeatable) [default: all linear maps inside residual branches]
    #[arg(long, value_name = "GLOB", requires = "lora", help_heading = "Adapters")]
    pub lora_on: Vec<String>,
    /// Forward graph only
    #[arg(long, help_heading = "Training graph")]
    pub no_train: bool,
    /// What only makes sense for a training graph.
    #[command(flatten)]
    pub training: TrainingGraphArgs,
    /// Batch of both graphs: keep the source's, dynamic, or N [default: the forward graph keeps it, the training graph is dynamic]
    #[arg(long, allow_negative_numbers = true, value_name = "keep|dynamic|N", help_heading = "Start")]
    pub batch: Option<String>,
    /// Replace the last linear map before the output by a fresh one of N classes, in both graphs
    #[arg(long, value_name = "N", help_heading = "Start", value_parser = clap::value_parser!(u32).range(1..))]
    pub classes: Option<u32>,
    /// Start every trained weight afresh, by PyTorch's defaults for its role, in both graphs: training from scratch
    #[arg(long, value_name = "SEED", help_heading = "Start")]
    pub reinit: Option<u64>,
    /// Machine whose costs choose among formulations of the same computation; cpu-blocks: faster convolutions, which only ONNX Runtime on x86-64 can run [default: cpu]
    #[arg(long, value_parser = PossibleValuesParser::new(Target::NAMES).try_map(|name| Target::of_name(&name).ok_or("no such target")), help_heading = "Training graph")]
    pub target: Option<&'static Target>,
    /// Engine that compares the rewrite with its source, proved or not; none: no verification, and the training graph is not opened in an engine [default: a proof, else tract, else ONNX Runtime]
    #[arg(long, help_heading = "Verification")]
    pub verify: Option<VerifyArg>,
    /// Inputs to compare on where no proof is found [default: 2]
    #[arg(long, value_name = "N", help_heading = "Verification")]
    pub trials: Option<usize>,
    /// Seed of the random inputs and of the training graph's dropout masks [default: 0]
    #[arg(long, value_name = "N", help_heading = "Verification")]
    pub seed: Option<u64>,
    /// [default: 1e-5]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Verification")]
    pub atol: Option<f64>,
    /// [default: 1e-5]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Verification")]
    pub rtol: Option<f64>,
    /// Extent of a symbolic input dimension (repeatable)
    #[arg(long, value_name = "NAME=N", help_heading = "Verification")]
    pub dim: Vec<String>,
    /// Feed an input from a file where the rewrite is compared with its source: NAME=FILE.npy, NAME=FILE.npz or FILE.npz (repeatable)
    #[arg(long, value_name = "NAME=FILE", help_heading = "Verification")]
    pub input: Vec<String>,
    /// How much engines may take.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Fail (1) when the file written is not equivalent to the source
    #[arg(long, help_heading = "Verification")]
    pub require_equivalent: bool,
    /// Fail (1) when there is nothing to rewrite
    #[arg(long, help_heading = "Verification")]
    pub require: bool,
    /// Print the graph as text to stderr after the pass NAME, or after all (repeatable)
    #[arg(long, value_name = "NAME|all", hide_short_help = true, help_heading = "Looking into the passes")]
    pub print_after: Vec<String>,
    /// Stop after the pass NAME; print the graph, write nothing
    #[arg(long, value_name = "NAME", hide_short_help = true, help_heading = "Looking into the passes")]
    pub stop_after: Option<String>,
    /// Let passes that may leave a place as it is make N changes at most: bisection finds the change that breaks a model
    #[arg(long, value_name = "N", hide_short_help = true, help_heading = "Looking into the passes")]
    pub max_changes: Option<usize>,
    /// Report, write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
    /// Say only what went wrong
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more: frozen tensors, timings
    #[arg(short, long)]
    pub verbose: bool,
    /// Operator set of the graphs [default: the forward graph keeps the source's, the training graph 18 or the smallest that can]
    #[arg(long, value_name = "N", help_heading = "Start", value_parser = clap::value_parser!(i64).range(7..=28))]
    pub opset: Option<i64>,
}

/// The options that only make sense for a training graph.
#[derive(Args, Debug, Default, PartialEq)]
pub struct TrainingGraphArgs {
    /// The losses.
    #[command(flatten)]
    pub losses: LossArgs,
    /// [default: adamw, with PyTorch's defaults]
    #[arg(long, value_parser = word_of!(OptimizerKind), help_heading = "Training graph")]
    pub optimizer: Option<OptimizerKind>,
    /// Momentum of SGD
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Training graph")]
    pub momentum: Option<f64>,
    /// Nesterov momentum
    #[arg(long, help_heading = "Training graph")]
    pub nesterov: bool,
    /// Weight decay [default: 0.01 for adamw, 0 otherwise]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Training graph")]
    pub weight_decay: Option<f64>,
    /// [default: 0.9]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Training graph")]
    pub beta1: Option<f64>,
    /// [default: 0.999]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Training graph")]
    pub beta2: Option<f64>,
    /// [default: 1e-8]
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Training graph")]
    pub eps: Option<f64>,
    /// Clip the gradients' global norm
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Training graph")]
    pub clip_norm: Option<f64>,
    /// Micro-batches per update
    #[arg(long, value_name = "N", help_heading = "Training graph")]
    pub accumulate: Option<u32>,
    /// Learning rate of logits and gates relative to the weights'
    #[arg(long, allow_negative_numbers = true, value_name = "X", help_heading = "Training graph")]
    pub router_lr_scale: Option<f64>,
    /// The learning rate, relative to the others', and the weight decay of the tensors that match, such as '*.bias=lr*2,decay=0'
    /// (repeatable; a tensor is of the first group that matches)
    #[arg(long, value_name = "GLOB=lr*X,decay=Y", help_heading = "Training graph")]
    pub group: Vec<GroupArg>,
    /// Output the gradient of every trained tensor as NAME.grad
    #[arg(long, help_heading = "Training graph")]
    pub grad_outputs: bool,
    /// One training graph, or two: STEM.ancre.grad.onnx (from a batch to gradients) and STEM.ancre.update.onnx (from gradients to the next
    /// state), between which gradients may be summed over batches or processes [default: whole]
    #[arg(long, value_parser = word_of!(StepForm), value_name = "whole|split", help_heading = "Training graph")]
    pub step: Option<StepForm>,
    /// Where the state starts from: STEM.ancre.init.onnx, a graph that gives it (init), defaults inside the graphs (inline), or
    /// STEM.ancre.state.safetensors (separate) [default: init]
    #[arg(long, value_parser = word_of!(StateFrom), help_heading = "Training graph")]
    pub state: Option<StateFrom>,
    /// Also write STEM.ancre.eval.onnx: forward and loss, no updates, the same state inputs
    #[arg(long, help_heading = "Training graph")]
    pub eval_graph: bool,
    /// Also write STEM.ancre.infer.onnx: the model, with its trained state as inputs
    #[arg(long, help_heading = "Training graph")]
    pub infer_graph: bool,
    /// Type of products and convolutions; parameters, normalisations, softmaxes and losses stay float32. fp16 has a loss scale in its state
    /// [default: fp32]
    #[arg(long, value_parser = word_of!(Precision), help_heading = "Training graph")]
    pub precision: Option<Precision>,
    /// Less memory, more time: the backward pass computes the inside of residual blocks again. blocks: of each; N: of N blocks at once,
    /// so that every N-th state is kept (a router reads all of them, and so they are kept) [default: off]
    #[arg(long, value_name = "off|blocks|N", value_parser = recompute, help_heading = "Training graph")]
    pub recompute: Option<RecomputeChoice>,
    /// Keep batch normalisation as in evaluation
    #[arg(long, help_heading = "Training graph")]
    pub frozen_bn: bool,
    /// Part of batch normalisation's running statistics that a step keeps [default: the model's, and 0.9 where that is 1]
    #[arg(long, value_name = "X", value_parser = momentum, help_heading = "Training graph")]
    pub bn_momentum: Option<f32>,
    /// Train a quantised model: gradients go straight through rounding inside its range and are zero outside; weights stored as integers
    /// train as float32 and are quantised again by freeze
    #[arg(long, help_heading = "Training graph")]
    pub qat: bool,
    /// Also train the scales of quantised values (LSQ); implies --qat
    #[arg(long, help_heading = "Training graph")]
    pub qat_scales: bool,
    /// Train only the head (the last linear map before the output and what follows) and the router; implies --frozen-bn
    #[arg(long, conflicts_with = "trainable_from", help_heading = "Training graph")]
    pub freeze_backbone: bool,
    /// Also train the initializers that match (repeatable)
    #[arg(long, value_name = "GLOB", help_heading = "Training graph")]
    pub trainable: Vec<String>,
    /// Do not train the initializers that match (repeatable)
    #[arg(long, value_name = "GLOB", help_heading = "Training graph")]
    pub frozen: Vec<String>,
    /// Train exactly the initializers named in FILE, one a line, and the router
    #[arg(long, value_name = "FILE", help_heading = "Training graph")]
    pub trainable_from: Option<PathBuf>,
    /// Train a weight and its transpose, which an exporter stored beside it (an embedding and the head tied to it), each by itself
    #[arg(long, help_heading = "Training graph")]
    pub untied: bool,
    /// Give an integer input or a symbolic extent one value in the training graph (repeatable): it decides an If, a Loop's or an LSTM's length
    #[arg(long, value_name = "NAME=N", help_heading = "Training graph")]
    pub fix: Vec<String>,
}

impl TrainingGraphArgs {
    /// Was any of these options given? `--loss none` asks for no training graph.
    pub fn are_given(&self) -> bool {
        let none = TrainingGraphArgs { losses: LossArgs::none(), ..TrainingGraphArgs::default() };
        *self != TrainingGraphArgs::default() && *self != none
    }
}
