//! Errors as the command line shows them.

use ancre_passes::pipeline::PassError;
use ancre_passes::refusal::Hint;
use std::fmt;
use std::path::{Path, PathBuf};

/// A failure with its exit status.
#[derive(Debug)]
pub struct Failure {
    /// 1: a check said no; 2: bad usage or bad input.
    pub status: u8,
    /// What happened, and where.
    pub what: String,
    /// What to try, if there is something.
    pub help: Option<String>,
    /// The file it is about, which the words name too.
    pub file: Option<PathBuf>,
}

impl Failure {
    /// Bad usage or bad input.
    pub fn input(what: impl Into<String>) -> Failure {
        Failure { status: 2, what: what.into(), help: None, file: None }
    }

    /// A check that said no.
    pub fn check(what: impl Into<String>) -> Failure {
        Failure { status: 1, what: what.into(), help: None, file: None }
    }

    /// A fault of this tool, which has said more on stderr.
    pub fn fault(what: &str) -> Failure {
        Failure::input(format!("this is a fault of ancre-rewrite; {what}")).help("report it with the lines above")
    }

    /// The same about a file.
    pub fn at(self, path: &Path) -> Failure {
        Failure { what: format!("{}: {}", path.display(), self.what), file: Some(path.to_path_buf()), ..self }
    }

    /// The same with advice for a hint of the library.
    pub fn hint(self, hint: Option<Hint>) -> Failure {
        match hint {
            Some(hint) => self.help(advice(&hint)),
            None => self,
        }
    }

    /// The same with advice.
    pub fn help(self, help: impl Into<String>) -> Failure {
        Failure { help: Some(help.into()), ..self }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.what)?;
        if let Some(help) = &self.help {
            write!(f, "\n  try: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

impl From<PassError> for Failure {
    fn from(e: PassError) -> Failure {
        let failure = Failure::input(e.to_string()).hint(e.hint());
        match e {
            // `--stop-after` asked for it.
            PassError::Stopped(_) => Failure { status: 0, ..failure },
            _ => failure,
        }
    }
}

/// An error of the library and its advice as one sentence.
pub fn sentence(what: &dyn fmt::Display, hint: Option<Hint>) -> String {
    match hint {
        Some(hint) => format!("{what}; {}", advice(&hint)),
        None => what.to_string(),
    }
}

/// What a hint of the library means on the command line. No other place maps hints to options.
fn advice(hint: &Hint) -> &'static str {
    match hint {
        Hint::ChooseOutput => "choose one with --output NAME",
        Hint::ChooseClassAxis => {
            "say which with --class-axis N; where it holds none: --loss mse, and distill-mse with a teacher"
        }
        Hint::ChooseLoss => {
            "choose with --loss cross-entropy (int64 class labels), next-token (language models), mse, l1, huber, bce or own (a scalar output of the model)"
        }
        Hint::NameTrainable => "name some with --trainable GLOB",
        Hint::FreezeLess => "let --frozen GLOB match fewer, or --trainable-from name more",
        Hint::CorrectTrainableList => "the file of --trainable-from has one initializer's name a line",
        Hint::TrainBackbone => "leave out --freeze-backbone",
        Hint::SkipVerification => "--verify none leaves verification out",
        Hint::LargerBlocks => "--granularity block, or a number of adds of 1 or more",
        Hint::SingleAdds => "--granularity add",
        Hint::Temperature => "--tau X with X above 0",
        Hint::NoGate => "--parametrization free (which starts as the network), softmax or attention",
        Hint::Reassign => "--form reassign",
        Hint::Summaries => {
            "--parametrization attention --summaries N, or --parametrization free --summaries N with --sources states"
        }
        Hint::SparseRows => "--parametrization free --dilation N --period N, with N of at least 1 and --sources states",
        Hint::NormalizeIncoming => "--normalize incoming, or --scope stage",
        Hint::ChooseInit => {
            "--init uniform, identity, file:PATH or, for softmax and gated, near-identity=EPS with 0 < EPS < 1; constant takes none, attention and weights of deltas (but for free) uniform or file:PATH"
        }
        Hint::FixInput => "--fix NAME=N gives an integer input or a symbolic extent one value in the training graph",
        Hint::ChooseAdapted => "--lora-on GLOB names weights or nodes (repeatable); `inspect MODEL` lists the residual adds",
        Hint::FreezeBefore => "--frozen GLOB freezes what lies before it, with --chains none where a router does",
        Hint::CorrectInitFile => {
            "the file of --init file:PATH holds a matrix for each chain's logits, named as the message says"
        }
    }
}
