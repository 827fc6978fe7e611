//! Runs models on the same inputs and compares the outputs of each with those of the first, A.
//!
//! One model is loaded at a time: A runs on all inputs, then each B. With both engines each of them runs both models; that engines
//! agree with one another is reported, but is no part of the verdict: if A and B agree in one engine, tract's A is as far from
//! ONNX Runtime's B as from its own A.

use super::compare::{Comparison, Report, Tolerance, compare_all};
use super::inputs::{Coverage, Planner, Trial};
use super::{Subject, VerifyOptions, memory, undefined};
use crate::engine::random_inputs::{self, Sizes};
use crate::engine::{self, Engine, EngineChoice, EngineError, Session, Tensors};
use crate::error::Failure;
use std::time::Instant;

/// Where A and B differ.
#[derive(Clone, Debug)]
pub struct Failing {
    pub engine: &'static str,
    /// The input that shows it.
    pub trial: Trial,
    /// The output and how far it is off; or why B gives none.
    pub what: String,
    /// Do both models run on that input?
    pub both_run: bool,
}

/// What an engine took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    pub engine: &'static str,
    /// Seconds of loading and running A.
    pub(crate) a: f64,
    /// Seconds of loading and running B.
    pub(crate) b: f64,
}

/// What running the models showed.
#[derive(Clone, Debug, Default)]
pub struct NumericReport {
    /// The verdict and the worst of each output over trials and engines.
    pub(crate) report: Report,
    /// Trials, as people read them, each with what it showed.
    pub(crate) trials: Vec<(String, Comparison)>,
    pub(crate) costs: Vec<Cost>,
    /// The first input on which A and B differ.
    pub failing: Option<Failing>,
    pub(crate) coverage: Vec<Coverage>,
    /// How far the two engines' results of A lie apart.
    pub(crate) engines_apart: Option<Comparison>,
    /// Outputs in which A itself has NaN, of which equality says little, and where that begins.
    pub(crate) undefined: Vec<(String, String)>,
    pub(crate) notes: Vec<String>,
}

/// The engines an option stands for. Fails when ONNX Runtime is asked for and there is none.
pub(crate) fn engines(which: EngineChoice) -> Result<Vec<Box<dyn Engine>>, Failure> {
    let ort = || engine::ort().map_err(|e| Failure::input(e.to_string()));
    Ok(match which {
        EngineChoice::Tract => vec![engine::tract()],
        EngineChoice::Ort => vec![ort()?],
        EngineChoice::Both => vec![engine::tract(), ort()?],
    })
}

/// Runs A and every B and compares: in the engine or engines asked for; else in tract, or in ONNX Runtime where tract cannot
/// run one of them and there is a runtime. The reports are in the order of `bs`. Fails when an engine cannot run a model, or
/// no input can be made up.
pub(crate) fn compare_models(a: &Subject, bs: &[&Subject], o: &VerifyOptions) -> Result<Vec<NumericReport>, Failure> {
    if let Some(which) = o.engine {
        return compare_in(engines(which)?, a, bs, o);
    }
    let failed = match compare_in(vec![engine::tract()], a, bs, o) {
        Err(e) if e.status == 1 => e,
        answer => return answer,
    };
    let ort = match engine::ort() {
        Ok(ort) => ort,
        Err(missing) => return Err(Failure { what: format!("{}; {missing}", failed.what), ..failed }),
    };
    match compare_in(vec![ort], a, bs, o) {
        Ok(mut found) => {
            let note = format!("compared in ONNX Runtime, since tract cannot run the models: {}", failed.what);
            found.iter_mut().for_each(|f| f.notes.insert(0, note.clone()));
            Ok(found)
        }
        Err(e) if e.what == failed.what => Err(e),
        Err(e) => Err(Failure { what: format!("{}; {}", failed.what, e.what), ..e }),
    }
}

/// Which other engine to ask, where one failed, by the option that chooses it; `None` where there is no other.
pub(crate) fn other_engine(asked: Option<EngineChoice>, option: &str) -> Option<String> {
    let is_there = engine::ort().is_ok();
    match asked {
        Some(EngineChoice::Tract) if is_there => Some(format!("{option} ort")),
        Some(EngineChoice::Tract) => Some(format!("{option} ort, after `ancre-rewrite runtime install`")),
        Some(EngineChoice::Ort) => Some(format!("{option} tract")),
        Some(EngineChoice::Both) => Some(format!("the one that can, by {option} ort or {option} tract")),
        None if is_there => None,
        None => Some("ONNX Runtime, which `ancre-rewrite runtime install` fetches".into()),
    }
}

fn compare_in(
    engines: Vec<Box<dyn Engine>>,
    a: &Subject,
    bs: &[&Subject],
    o: &VerifyOptions,
) -> Result<Vec<NumericReport>, Failure> {
    let mut found = NumericReport::default();
    let mut of_b: Vec<NumericReport> = bs.iter().map(|_| NumericReport::default()).collect();
    let mut trials: Option<Vec<Trial>> = None;
    let mut of_first_engine: Option<Vec<Tensors>> = None;
    for e in engines {
        let clock = Instant::now();
        let (trials, of_a) = run_reference(e.as_ref(), a, bs, o, &mut trials, &mut found)?;
        let seconds_of_a = clock.elapsed().as_secs_f64();
        for (b, found) in bs.iter().zip(&mut of_b) {
            let clock = Instant::now();
            run_other(e.as_ref(), b, trials, &of_a, o.tolerance.of([&a.graph, &b.graph]), found)?;
            found.costs.push(Cost { engine: e.name(), a: seconds_of_a, b: clock.elapsed().as_secs_f64() });
        }
        match &of_first_engine {
            None => of_first_engine = Some(of_a),
            Some(first) => {
                let mut apart = Comparison::default();
                for (x, y) in first.iter().zip(&of_a) {
                    apart.and(&Comparison::worst(&compare_all(x, y, o.tolerance)));
                }
                found.engines_apart = Some(apart);
            }
        }
    }
    for b in &mut of_b {
        // Every engine took the same trials.
        b.report.trials = trials.as_ref().map_or(0, Vec::len);
        b.coverage.clone_from(&found.coverage);
        b.engines_apart.clone_from(&found.engines_apart);
        b.undefined.clone_from(&found.undefined);
    }
    Ok(of_b)
}

/// A's outputs for every trial; the trials are made with the first engine.
fn run_reference<'t>(
    e: &dyn Engine,
    a: &Subject,
    bs: &[&Subject],
    o: &VerifyOptions,
    trials: &'t mut Option<Vec<Trial>>,
    found: &mut NumericReport,
) -> Result<(&'t [Trial], Vec<Tensors>), Failure> {
    let mut session = a.load(e)?;
    let made = match trials.take() {
        Some(made) => made,
        None => make_trials(e, &mut session, a, bs, o, found)?,
    };
    let made: &'t [Trial] = trials.insert(made);
    let outputs = in_order(made, |trial| session.run(&trial.inputs).map_err(|error| cannot_run(e, a, trial, &error)))?;
    for (trial, outputs) in made.iter().zip(&outputs) {
        for (name, t) in outputs {
            let known = found.undefined.iter().any(|(n, _)| n == name);
            if t.dtype().is_float() && !known && t.to_f64().iter().any(|v| v.is_nan()) {
                let from = undefined::origin(e, a, &trial.inputs, &[name], o).ok().flatten();
                found.undefined.push((name.clone(), from.map_or(String::new(), |from| format!(": {from}"))));
            }
        }
    }
    Ok((made, outputs))
}

/// The results in the order of the trials. Trials of the same extents run one after the other, since an engine may prepare anew
/// for other extents.
fn in_order<T>(trials: &[Trial], mut run: impl FnMut(&Trial) -> Result<T, Failure>) -> Result<Vec<T>, Failure> {
    let mut order: Vec<usize> = (0..trials.len()).collect();
    order.sort_by_key(|i| trials.iter().position(|t| t.sizes == trials[*i].sizes));
    let mut results: Vec<(usize, T)> = Vec::new();
    for i in order {
        results.push((i, run(&trials[i])?));
    }
    results.sort_by_key(|(i, _)| *i);
    Ok(results.into_iter().map(|(_, t)| t).collect())
}

fn make_trials(
    e: &dyn Engine,
    session: &mut Box<dyn Session>,
    a: &Subject,
    bs: &[&Subject],
    o: &VerifyOptions,
    found: &mut NumericReport,
) -> Result<Vec<Trial>, Failure> {
    // All Bs take the same inputs.
    let b = bs.first().copied().unwrap_or(a);
    let unfit = |why: String| Failure::input(why).at(&a.path);
    let mut planner = Planner::new(&a.graph, &b.graph, &o.given, o.seed);
    let fixed = fixed_sizes(a, b, o)?;
    let mut first: Option<Trial> = None;
    let mut why: Option<Failure> = None;
    for sizes in random_inputs::sizes(&a.graph, &fixed) {
        let trial = planner.first(&sizes).map_err(unfit)?;
        check_memory(a, b, &sizes, o)?;
        match session.run(&trial.inputs) {
            Ok(_) => {
                first = Some(trial);
                break;
            }
            Err(error) => {
                why = why.or(Some(cannot_run(e, a, &trial, &error)));
                if matches!(error, EngineError::Died { .. }) {
                    break;
                }
            }
        }
    }
    let Some(first) = first else {
        return Err(why.unwrap_or_else(|| unfit("no input can be made up".into())));
    };
    let mut other = None;
    if first.style != super::inputs::Style::Given && o.trials > 1 {
        for sizes in planner.other_sizes(&first.sizes, &fixed) {
            let Ok(inputs) = check_memory(a, b, &sizes, o).map_err(|e| e.what).and_then(|()| planner.probe(&sizes)) else {
                continue;
            };
            match session.run(&inputs) {
                Ok(_) => {
                    other = Some(sizes);
                    break;
                }
                // An extent was too much for the engine, which starts anew.
                Err(EngineError::Died { .. }) => *session = a.load(e)?,
                Err(_) => {}
            }
        }
    }
    let trials = planner.trials(first, other.as_ref(), o.trials).map_err(unfit)?;
    found.coverage = planner.coverage();
    Ok(trials)
}

/// Extents that trials may not vary: `--dim`, the extents of the user's arrays, and those that B fixes.
fn fixed_sizes(a: &Subject, b: &Subject, o: &VerifyOptions) -> Result<Sizes, Failure> {
    let mut fixed = o.dims.clone();
    for v in a.graph.required_inputs() {
        let name = a.graph.name(v);
        let (Some(t), Some(shape)) = (o.given.get(name), &a.graph.value(v).ty.shape) else { continue };
        let fits = t.shape().len() == shape.len()
            && t.shape().iter().zip(shape).all(|(n, d)| d.known().is_none_or(|d| d == *n as i64));
        if !fits || a.graph.value(v).ty.dtype.is_some_and(|d| d != t.dtype()) {
            return Err(Failure::input(format!(
                "--input {name}: the array is {}{:?}, the model takes {}",
                t.dtype(),
                t.shape(),
                a.graph.value(v).ty
            ))
            .help("save it with that type (numpy: astype) and shape"));
        }
        for (n, d) in t.shape().iter().zip(shape) {
            if let Some(symbol) = ancre_passes::proof::interface::plain_symbol(d) {
                fixed.entry(symbol).or_insert(*n as i64);
            }
        }
    }
    for (symbol, n) in ancre_passes::proof::interface::fixed_by_other(&a.graph, &b.graph) {
        fixed.entry(symbol).or_insert(n);
    }
    Ok(fixed)
}

fn check_memory(a: &Subject, b: &Subject, sizes: &Sizes, o: &VerifyOptions) -> Result<(), Failure> {
    let Some(limit) = o.max_memory else { return Ok(()) };
    for s in [a, b] {
        let needed = memory::estimate(&s.graph, sizes);
        if needed > limit {
            return Err(memory::exceeded("running it needs about", needed, limit).at(&s.path));
        }
    }
    Ok(())
}

/// Runs B on every trial and compares with A's outputs.
fn run_other(
    e: &dyn Engine,
    b: &Subject,
    trials: &[Trial],
    of_a: &[Tensors],
    tolerance: Tolerance,
    found: &mut NumericReport,
) -> Result<(), Failure> {
    let mut session = b.load(e)?;
    let compared = in_order(trials, |trial| Ok(session.run(&trial.inputs)))?;
    let fails = |r: &Result<Tensors, EngineError>| r.as_ref().err().cloned();
    let failed = compared.iter().zip(trials).find_map(|(r, t)| Some((fails(r)?, t)));
    // tract may lack what B does. What an engine dies of says nothing of B.
    let says_nothing = compared.iter().all(Result::is_err)
        || compared.iter().any(|r| matches!(r, Err(EngineError::Died { .. })))
        || e.name() == "tract";
    let differs = |(want, got): (&Tensors, &Result<Tensors, EngineError>)| {
        got.as_ref().is_ok_and(|got| !Comparison::worst(&compare_all(got, want, tolerance)).equivalent)
    };
    if let Some((error, trial)) = failed.filter(|_| says_nothing && !of_a.iter().zip(&compared).any(differs)) {
        return Err(cannot_run(e, b, trial, &error));
    }
    for ((trial, want), got) in trials.iter().zip(of_a).zip(compared) {
        let label = format!("{}, {}", e.name(), trial.label());
        match got {
            Ok(got) => {
                let comparisons = compare_all(&got, want, tolerance);
                let verdict = Comparison::worst(&comparisons);
                if let Some(c) = comparisons.iter().find(|c| !c.verdict.equivalent)
                    && found.failing.is_none()
                {
                    let what = format!("output `{}` differs by {:.3e}", c.name, c.verdict.max_abs);
                    found.failing = Some(Failing { engine: e.name(), trial: trial.clone(), what, both_run: true });
                }
                found.trials.push((label, verdict));
                found.report.add(comparisons);
            }
            Err(error) => {
                let verdict = Comparison::UNLIKE;
                found.report.verdict.and(&verdict);
                found.notes.push(format!("A runs with {} and B does not: {error}", trial.label()));
                let what = format!("A runs, B does not: {error}");
                found.trials.push((label, verdict));
                found.failing.get_or_insert(Failing { engine: e.name(), trial: trial.clone(), what, both_run: false });
            }
        }
    }
    Ok(())
}

fn cannot_run(e: &dyn Engine, s: &Subject, trial: &Trial, error: &EngineError) -> Failure {
    let text = error.to_string();
    if matches!(error, EngineError::Output { .. }) {
        return Failure::check(text).at(&s.path);
    }
    let failure =
        engine_failure(e, s, if trial.sizes.is_empty() { text } else { format!("{text} (input: {})", trial.label()) });
    match trial.sizes.keys().next() {
        // The model loads; an extent may not suit it.
        Some(symbol)
            if matches!(error, EngineError::Run { .. } | EngineError::Died { .. } | EngineError::Panicked { .. }) =>
        {
            failure.help(format!("--dim \"{symbol}=N\" if that extent is at fault"))
        }
        _ => failure,
    }
}

/// The failure of an engine, with status 1: the check could not be made. Whoever knows the command adds what to try.
pub(super) fn engine_failure(e: &dyn Engine, s: &Subject, why: String) -> Failure {
    Failure::check(format!("{} cannot run it: {why}", e.name())).at(&s.path)
}
