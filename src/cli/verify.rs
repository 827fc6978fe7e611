//! `verify`'s arguments.

use crate::engine::EngineChoice;
use crate::engine::memory::parse_size;
use clap::{Args, ValueEnum};
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
  ancre-rewrite verify --pairs models/ --junit reports/                  each STEM.ancre.onnx against the STEM.onnx beside it
  ancre-rewrite verify --gradient resnet.ancre.train.onnx                gradients against finite differences

Exit status: 0 equivalent, 1 not equivalent (with --proof: not proved), 2 could not be checked: bad usage or input, or no engine runs a model. \
With --pairs: 0 where all are equivalent, 2 where one could not be checked, else 1.")]
pub struct VerifyArgs {
    /// The reference, for example the source model
    #[arg(required_unless_present_any = ["gradient", "pairs"], value_name = "A")]
    pub a: Option<PathBuf>,
    /// The model compared with it, for example its rewrite
    #[arg(required_unless_present_any = ["gradient", "pairs"], value_name = "B")]
    pub b: Option<PathBuf>,
    /// Check the gradients and the updates of a training graph instead
    #[arg(long, value_name = "TRAIN.onnx", conflicts_with_all = ["a", "b"])]
    pub gradient: Option<PathBuf>,
    /// Check many pairs: in a directory each STEM.ancre.onnx below it against the STEM.onnx beside it; in a file a line SOURCE REWRITTEN
    /// for each pair (repeatable). One that stands in a file is not looked for in a directory
    #[arg(long, value_name = "DIR|FILE", conflicts_with_all = ["a", "b", "gradient"])]
    pub pairs: Vec<PathBuf>,
    /// Pass over a STEM.ancre.onnx without its STEM.onnx; otherwise it could not be checked
    #[arg(long, requires = "pairs")]
    pub allow_missing_source: bool,
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
    /// Also write a JUnit report; with --pairs one for each pair, into this directory, whose earlier reports of this tool go
    #[arg(long, value_name = "FILE|DIR")]
    pub junit: Option<PathBuf>,
    /// Say only what differs
    #[arg(short, long, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more: every trial, every note, timings
    #[arg(short, long)]
    pub verbose: bool,
}

impl VerifyArgs {
    /// The options that hold for each pair of `--pairs`, as a command line has them.
    pub fn of_one(&self) -> Vec<String> {
        // Every field stands here, so that a new one cannot be forgotten.
        let VerifyArgs {
            a: _,
            b: _,
            gradient: _,
            pairs: _,
            allow_missing_source: _,
            json: _,
            junit: _,
            proof,
            no_proof,
            reassociate,
            engine,
            trials,
            seed,
            atol,
            rtol,
            input,
            dim,
            limits: LimitArgs { max_memory, engine_timeout },
            quiet,
            verbose,
        } = self;
        let flag = |name: &str, on: &bool| on.then(|| name.to_string());
        fn value<T: ToString>(name: &str, v: &Option<T>) -> Option<String> {
            v.as_ref().map(|v| format!("{name}={}", v.to_string()))
        }
        let engine = engine.and_then(|e| Some(e.to_possible_value()?.get_name().to_string()));
        let single = [
            flag("--proof", proof),
            flag("--no-proof", no_proof),
            flag("--reassociate", reassociate),
            flag("--quiet", quiet),
            flag("--verbose", verbose),
            value("--engine", &engine),
            value("--trials", trials),
            value("--seed", seed),
            value("--atol", atol),
            value("--rtol", rtol),
            value("--max-memory", max_memory),
            value("--engine-timeout", engine_timeout),
        ];
        let inputs = input.iter().map(|v| format!("--input={v}"));
        let dims = dim.iter().map(|v| format!("--dim={v}"));
        single.into_iter().flatten().chain(inputs).chain(dims).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Command};
    use clap::Parser;

    #[test]
    fn the_options_of_a_pair_are_those_given() {
        let given = [
            "--proof",
            "--reassociate",
            "--verbose",
            "--engine=both",
            "--trials=3",
            "--seed=7",
            "--atol=0.0001",
            "--rtol=0.000002",
            "--max-memory=8589934592",
            "--engine-timeout=9",
            "--input=x=a b.npy",
            "--dim=n=2",
        ];
        let parse = |options: &[&str]| {
            let all = ["ancre-rewrite", "verify", "--pairs", "models"];
            match Cli::try_parse_from(all.iter().chain(options)).unwrap().command {
                Some(Command::Verify(args)) => args,
                _ => panic!("no verify"),
            }
        };
        let mut back = parse(&given).of_one();
        back.sort();
        let mut given = given.map(String::from);
        given.sort();
        assert_eq!(back, given);
    }
}
