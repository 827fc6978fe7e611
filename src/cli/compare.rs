//! The command line of `compare`, and options that one verb hands on to another in words.

use super::{RewriteArgs, TrainArgs};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use std::ffi::OsString;
use std::marker::PhantomData;
use std::path::PathBuf;

/// `compare`.
#[derive(Args, Debug)]
#[command(after_help = "Variants:
  cascaded              the network as it is, trained by the same loop; the others are compared with it, and it is always there
  default, finetune     the router that keeps the function at the start
  deep                  softmax in the place of every skip, for deep networks from scratch
  paper                 ANCRe as published
  softmax, gated, free, attention, …   the words of --parametrization, everything else by default
  NAME=OPTIONS          any options of the router that the main job takes

Examples:
  ancre-rewrite compare mlp.onnx --data train.npz --val test.npz --epochs 5 --seeds 5 --from-scratch
  ancre-rewrite compare gpt.onnx --data corpus.txt --tokenizer bytes --val-split 0.1 --window 64 --steps 500 --loss next-token
  ancre-rewrite compare resnet.onnx --classes 10 --data digits/ --steps 300 --variants 'default,wide=--scope network --tau 0.1'
  ancre-rewrite compare mlp.onnx --resume --out mlp.compare --seeds 10     what is missing, with the options that it had

Exit status: 0 the comparison was made, 1 a network cannot be rewritten or trained, 2 bad usage or bad input, 130 interrupted. A run that
diverges is reported and ends nothing.")]
pub struct CompareArgs {
    /// The model
    pub model: PathBuf,
    /// Start from N seeds, one after the other: of fresh weights (--from-scratch), of the order of the samples, of dropout
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    pub seeds: u64,
    /// The first seed
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// What is compared with the network as it is, separated by commas (repeatable); see below [default: cascaded,default,paper]
    #[arg(long, value_name = "NAME|NAME=OPTIONS,…", allow_hyphen_values = true)]
    pub variants: Vec<String>,
    /// Every trained weight starts afresh, for each seed anew, the same for all variants
    #[arg(long)]
    pub from_scratch: bool,
    /// Write the page with the curves here too
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Directory for the runs, the report and the page [default: STEM.compare beside the model]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Keep the runs that the directory has, finish the one that was interrupted, make those that are missing
    #[arg(long)]
    pub resume: bool,
    /// Remove an earlier comparison's runs from the directory
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
    /// One JSON document on stdout
    #[arg(long)]
    pub json: bool,
    /// Say only what went wrong
    #[arg(short, long)]
    pub quiet: bool,
    /// What is handed on to `train`.
    #[command(flatten)]
    pub course: Words<OfTrain>,
    /// What is handed on to the main job.
    #[command(flatten)]
    pub network: Words<OfRewrite>,
}

/// A verb whose options another verb hands on.
pub trait Verb {
    /// Those that are handed on.
    fn options() -> Vec<Arg>;
}

/// Options of a verb without its own.
fn without(own: &[&str], verb: Command) -> Vec<Arg> {
    verb.get_arguments().filter(|a| !own.contains(&a.get_id().as_str())).cloned().collect()
}

/// Options of `train`, but for those that say where a run begins, when it ends early, and what it writes.
#[derive(Clone, Debug, Default)]
pub struct OfTrain;

impl Verb for OfTrain {
    fn options() -> Vec<Arg> {
        const OWN: [&str; 18] = [
            "model",
            "out",
            "resume",
            "overwrite",
            "save_every",
            "keep",
            "json",
            "quiet",
            "verbose",
            "patience",
            "seed",
            "state",
            "eval_graph",
            "log",
            "log_dir",
            "export",
            "prune",
            "forward",
        ];
        without(&OWN, TrainArgs::augment_args(Command::new("train")))
    }
}

/// Options of the main job that say what is trained. Those of the router belong to the variants.
#[derive(Clone, Debug, Default)]
pub struct OfRewrite;

impl Verb for OfRewrite {
    fn options() -> Vec<Arg> {
        const OWN: [&str; 36] = [
            "model",
            "out",
            "preset",
            "form",
            "granularity",
            "scope",
            "tau",
            "parametrization",
            "normalize",
            "init",
            "chains",
            "sources",
            "dilation",
            "period",
            "summaries",
            "no_train",
            "reinit",
            "verify",
            "trials",
            "seed",
            "atol",
            "rtol",
            "input",
            "require_equivalent",
            "require",
            "print_after",
            "stop_after",
            "max_changes",
            "dry_run",
            "json",
            "quiet",
            "verbose",
            "state",
            "eval_graph",
            "infer_graph",
            "grad_outputs",
        ];
        // An option that both verbs have goes to `train`.
        let of_train = OfTrain::options();
        let mut options = without(&OWN, RewriteArgs::augment_args(Command::new("rewrite")));
        options.retain(|a| of_train.iter().all(|t| t.get_id() != a.get_id()));
        options
    }
}

/// Options as they were given, in words that another process of this tool takes.
#[derive(Clone, Debug, Default)]
pub struct Words<V> {
    /// The words.
    pub words: Vec<OsString>,
    of: PhantomData<V>,
}

impl<V: Verb> Args for Words<V> {
    fn augment_args(command: Command) -> Command {
        V::options().into_iter().fold(command, Command::arg)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<V: Verb> FromArgMatches for Words<V> {
    fn from_arg_matches(found: &ArgMatches) -> Result<Self, clap::Error> {
        let mut words = Vec::new();
        for option in V::options() {
            let (id, Some(name)) = (option.get_id().as_str(), option.get_long()) else { continue };
            if found.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            if matches!(option.get_action(), ArgAction::SetTrue) {
                words.push(format!("--{name}").into());
                continue;
            }
            for value in found.get_raw(id).into_iter().flatten() {
                let mut word = OsString::from(format!("--{name}="));
                word.push(value);
                words.push(word);
            }
        }
        Ok(Words { words, of: PhantomData })
    }

    fn update_from_arg_matches(&mut self, found: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(found)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::cli::{Cli, Command};
    use clap::Parser;

    fn handed_on(line: &str) -> (Vec<String>, Vec<String>) {
        let words = ["ancre-rewrite", "compare", "m.onnx"].into_iter().chain(line.split_whitespace());
        let Some(Command::Compare(a)) = Cli::try_parse_from(words).unwrap().command else { panic!("no comparison") };
        let text = |words: &[std::ffi::OsString]| words.iter().map(|w| w.to_string_lossy().into_owned()).collect();
        (text(&a.course.words), text(&a.network.words))
    }

    #[test]
    fn options_of_other_verbs_are_handed_on_as_they_were_given() {
        let line = "--data a.npz --mean 0.5,0.25 --lr -1 --flip --metric top-1,f1 --recalibrate-bn --optimizer sgd --frozen a --frozen b";
        let (train, rewrite) = handed_on(line);
        let expected = "--data=a.npz --flip --mean=0.5 --mean=0.25 --lr=-1 --recalibrate-bn=on --metric=top-1 --metric=f1";
        let sorted = |words: &[String]| {
            let mut words = words.to_vec();
            words.sort();
            words
        };
        assert_eq!(sorted(&train), sorted(&expected.split(' ').map(String::from).collect::<Vec<_>>()));
        assert_eq!(rewrite, ["--optimizer=sgd", "--frozen=a", "--frozen=b"]);
        // What they read again is what was said.
        let again = Cli::try_parse_from(["ancre-rewrite", "train", "t.onnx"].into_iter().map(String::from).chain(train));
        assert!(matches!(again.unwrap().command, Some(Command::Train(t)) if t.course.reading.mean == Some(vec![0.5, 0.25])));
    }
}
