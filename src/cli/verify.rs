//! `verify`'s arguments.

use crate::engine::EngineChoice;
use crate::engine::memory::parse_size;
use clap::Args;
use std::path::PathBuf;

/// How much an engine, which runs in a process of its own, may take.
#[derive(Args, Clone, Debug, Default)]
pub struct LimitArgs {
    /// Most memory an engine may use, such as 500M or 8G; verify: fail (2) when more would be needed [default: 4 GiB and 16 times the model]
    #[arg(long, value_name = "SIZE", value_parser = parse_size, help_heading = "Verification")]
    pub max_memory: Option<u64>,
    /// Most seconds an engine may take to load a model or to run it once [default: 120 and one a MiB of the model]
    #[arg(long, value_name = "SECONDS", help_heading = "Verification", value_parser = clap::value_parser!(u64).range(1..))]
    pub engine_timeout: Option<u64>,
}

/// `verify`.
#[derive(Args, Clone, Debug, Default)]
#[command(after_help = "Examples:
  ancre-rewrite verify resnet.onnx resnet.ancre.onnx                     interface, a proof, or else outputs on chosen inputs
  ancre-rewrite verify a.onnx b.onnx --engine ort --atol 1e-6 --trials 20
  ancre-rewrite verify a.onnx b.onnx --input images=batch.npy            on the user's own inputs
  ancre-rewrite verify a.onnx b.onnx --proof                             for all inputs, or fail
  ancre-rewrite verify a.onnx b.onnx --json --junit report.xml           for CI
  ancre-rewrite verify --gradient resnet.ancre.train.onnx                gradients against finite differences

Exit status: 0 equivalent, 1 not equivalent (with --proof: not proved), 2 could not be checked: bad usage or input, or no engine runs a model.")]
pub struct VerifyArgs {
    /// The reference, for example the source model
    #[arg(required_unless_present = "gradient", value_name = "A")]
    pub a: Option<PathBuf>,
    /// The model compared with it, for example its rewrite
    #[arg(required_unless_present = "gradient", value_name = "B")]
    pub b: Option<PathBuf>,
    /// Check the gradients and the updates of a training graph instead
    #[arg(long, value_name = "TRAIN.onnx", conflicts_with_all = ["a", "b"])]
    pub gradient: Option<PathBuf>,
    /// Only a proof counts: fail (1) where none is found, run nothing [default: a proof is tried first, then the models are run]
    #[arg(long, conflicts_with = "no_proof")]
    pub proof: bool,
    /// Do not look for a proof, run the models
    #[arg(long)]
    pub no_proof: bool,
    /// A proof may take sums of floats for equal in whatever order they are added
    #[arg(long)]
    pub reassociate: bool,
    /// Engine that runs the models; both: each of them, A against B in either [default: tract, or ONNX Runtime where tract cannot run them]
    #[arg(long)]
    pub engine: Option<EngineChoice>,
    /// Number of inputs tried, the first ones random, then zeros, ties, large and small magnitudes, flipped signs [default: 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub trials: Option<u32>,
    /// Seed of everything random [default: 0]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Outputs may differ by atol + rtol * (the output's largest magnitude) [default: 1e-5]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub atol: Option<f64>,
    /// [default: 1e-5]
    #[arg(long, value_name = "X", allow_negative_numbers = true)]
    pub rtol: Option<f64>,
    /// Feed an input from a file: NAME=FILE.npy, NAME=FILE.npz (the array of that name), or FILE.npz (all its arrays); .safetensors as .npz (repeatable)
    #[arg(long, value_name = "NAME=FILE")]
    pub input: Vec<String>,
    /// Extent of a symbolic input dimension (repeatable)
    #[arg(long, value_name = "NAME=N")]
    pub dim: Vec<String>,
    /// How much engines may take.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
    /// Also write a JUnit report
    #[arg(long, value_name = "FILE")]
    pub junit: Option<PathBuf>,
    /// Say only what differs
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more: every trial, every note, timings
    #[arg(short, long)]
    pub verbose: bool,
}
