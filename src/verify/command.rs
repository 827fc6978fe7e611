//! The verb.

use super::{
    ProofMode, Subject, Tolerance, VerifyOptions, compare_subjects, given, gradient, junit, memory, numeric, pairs, report,
};
use crate::cli::VerifyArgs;
use crate::engine::EngineChoice;
use crate::engine::memory::Watch;
use crate::engine::{Tensors, random_inputs};
use crate::error::Failure;
use crate::io::files::Outputs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Instant;

/// What the verb says, and the exit status.
pub struct Answer {
    /// For stdout.
    pub text: String,
    /// 0: equivalent, 1: not equivalent, or not proved where only a proof counts.
    pub status: u8,
}

/// Runs `verify`. An error is a check that could not be made: bad usage, bad input, or an engine that cannot run a model. Its
/// status is 2.
pub fn verify(args: &VerifyArgs) -> Result<Answer, Failure> {
    if !args.pairs.is_empty() {
        return pairs::verify_all(args).map_err(|failure| {
            report::annotate([report::complaint(&failure.to_string())]);
            Failure { status: 2, ..failure }
        });
    }
    catch_unwind(AssertUnwindSafe(|| attempt(args)))
        .unwrap_or_else(|_| Err(Failure::fault("no answer was found")))
        .map_err(|failure| unchecked(args, failure))
}

/// Ends this process, with the check's reports written, when it uses more than `--max-memory` before what comes back is dropped. Only for
/// a process that is the tool; engines keep to the limit in any. Pairs have processes of their own.
pub fn watch(args: &VerifyArgs) -> Option<Watch> {
    let given = args.clone();
    let limit = args.limits.max_memory.filter(|_| args.pairs.is_empty());
    limit.map(|limit| memory::watch(limit, move |failure| unchecked(&given, failure)))
}

/// Says where CI reads it that a check could not be made.
fn unchecked(args: &VerifyArgs, failure: Failure) -> Failure {
    let file = args.b.as_ref().or(args.gradient.as_ref());
    report::annotate(file.map(|file| report::annotation(file, junit::UNCHECKED, &failure.to_string())));
    let written = args.junit.as_ref().map(|path| write(path, &junit::unchecked(&files(args), &failure)?));
    match written {
        Some(Err(e)) => Failure { what: format!("{}; and {}", failure.what, e.what), status: 2, ..failure },
        _ => Failure { status: 2, ..failure },
    }
}

/// The files that are checked.
fn files(args: &VerifyArgs) -> String {
    let files = [&args.a, &args.b, &args.gradient];
    files.into_iter().flatten().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" ")
}

fn attempt(args: &VerifyArgs) -> Result<Answer, Failure> {
    if let Some(train) = &args.gradient {
        return check_gradient(args, train);
    }
    let (Some(a), Some(b)) = (&args.a, &args.b) else {
        return Err(Failure::input("two models are compared").help("ancre-rewrite verify A.onnx B.onnx"));
    };
    let clock = Instant::now();
    let mut o = verify_options(args)?;
    let (a, b) = (Subject::read(a)?, Subject::read(b)?);
    random_inputs::check_dims(&a.graph, &o.dims).map_err(|e| e.at(&a.path))?;
    o.given = given::read_inputs(&args.input, &a.graph)?;
    let verdict = compare_subjects(&a, &b, &o).map_err(|e| advised(e, &o))?;
    let seconds = clock.elapsed().as_secs_f64();
    report::annotate(report::annotations(&a, &b, &verdict));
    if let Some(path) = &args.junit {
        write(path, &junit::of_verdict(&a, &b, &verdict, &o, seconds)?)?;
    }
    let text = if args.json {
        format!("{}\n", report::json(&a, &b, &verdict, &o, seconds))
    } else if args.quiet && verdict.equivalent {
        String::new()
    } else {
        report::text(&a, &b, &verdict, &o, args.verbose)
    };
    Ok(Answer { text, status: !verdict.equivalent as u8 })
}

/// An engine's failure with what may help: another engine, other extents of the inputs.
fn advised(e: Failure, o: &VerifyOptions) -> Failure {
    if e.status != 1 {
        return e;
    }
    let tried: Vec<String> = numeric::other_engine(o.engine, "--engine").into_iter().chain(e.help.clone()).collect();
    if tried.is_empty() { e } else { e.help(tried.join("; or ")) }
}

fn check_gradient(args: &VerifyArgs, train: &Path) -> Result<Answer, Failure> {
    let clock = Instant::now();
    let mut o = verify_options(args)?;
    o.engine = Some(args.engine.unwrap_or(EngineChoice::Ort));
    o.trials = args.trials.unwrap_or(3) as usize;
    let train = Subject::read(train)?;
    random_inputs::check_dims(&train.graph, &o.dims).map_err(|e| e.at(&train.path))?;
    o.given = given::read_inputs(&args.input, &train.graph)?;
    let reports = gradient::check(&train, &o)?;
    let failures = gradient::report::failures(&reports);
    report::annotate(failures.iter().map(|(_, message)| report::annotation(&train.path, "wrong gradient", message)));
    if let Some(path) = &args.junit {
        write(path, &junit::of_gradients(&train.path, &reports, clock.elapsed().as_secs_f64())?)?;
    }
    let text = if args.json {
        format!("{}\n", gradient::report::json(&train.path, &reports, &o))
    } else if args.quiet && failures.is_empty() {
        String::new()
    } else {
        gradient::report::text(&train.path, &reports, args.verbose)
    };
    Ok(Answer { text, status: !failures.is_empty() as u8 })
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    let mut outputs = Outputs::default();
    outputs.add_bytes(text.as_bytes(), path)?;
    outputs.commit()
}

fn verify_options(args: &VerifyArgs) -> Result<VerifyOptions, Failure> {
    let number = |value: Option<f64>, name: &str| match value {
        Some(v) if !(v.is_finite() && v >= 0.0) => Err(Failure::input(format!("{name} {v}: a number from 0 on is needed"))),
        v => Ok(v.unwrap_or(1e-5)),
    };
    Ok(VerifyOptions {
        proof: match (args.proof, args.no_proof) {
            (true, _) => ProofMode::Only,
            (_, true) => ProofMode::Never,
            _ => ProofMode::First,
        },
        reassociate: args.reassociate,
        engine: args.engine,
        trials: args.trials.unwrap_or(8) as usize,
        seed: args.seed.unwrap_or(0),
        tolerance: Tolerance { atol: number(args.atol, "--atol")?, rtol: number(args.rtol, "--rtol")?, precision: None },
        dims: random_inputs::dims(&args.dim)?,
        given: Tensors::new(),
        max_memory: args.limits.max_memory,
    })
}
