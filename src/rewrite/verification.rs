//! Is the rewrite equal to its source? The question is asked of the forward graph as it lies on disk, before it gets its name.
//!
//! * `one_hot`: the router set to one-hot must give the source's outputs. Under `augment`, which adds to every block, and where no
//!   parameters make a row one-hot (attention, softmaxes over deltas), it is two things instead: the graph without its routes equals the source, and every route's weighted sum equals the one recomputed
//!   here, in f64, from the states' values.
//! * `emitted`: the file as it is against the source.
//!
//! A proof is looked for first. It holds for all inputs, under the assumptions that it lists. A graph without a proof is compared
//! in an engine. The recomputed sums of `augment` are always compared: no proof says what happens outside the graph.

use crate::engine::{EngineChoice, EngineError, Session, Tensors};
use crate::error::Failure;
use crate::io::tensor::NpTensor;
use crate::verify::numeric;
use crate::verify::report::engine_name;
use crate::verify::{self, Comparison, Subject, Verdict, VerifyOptions};
use ancre_passes::ir::{RouterId, RouterSpec, Rule, ValueId};
use ancre_passes::transform::bake;
use ancre_passes::transform::route::{AttentionRow, Form, RouteOptions};
use indexmap::IndexMap;
use serde_json::{Value, json};

type Routers = IndexMap<RouterId, RouterSpec>;

/// How a graph compares with the source.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finding {
    /// The verdict and the distance of outputs: 0 where it is proved.
    pub verdict: Comparison,
    /// Is it proved?
    pub proved: bool,
    /// Was it compared in an engine?
    pub compared: bool,
    /// What the proof takes for granted.
    pub assumptions: Vec<String>,
}

impl Finding {
    fn of(v: &Verdict) -> Option<Finding> {
        let numbers = v.numeric.as_ref().map(|n| n.report.verdict.clone());
        (v.proved() || numbers.is_some()).then(|| Finding {
            proved: v.proved(),
            compared: numbers.is_some(),
            verdict: numbers.unwrap_or_default(),
            assumptions: v.proof.iter().filter(|p| p.proved).flat_map(|p| p.assumptions.clone()).collect(),
        })
    }

    pub(super) fn json(&self) -> Value {
        let Comparison { equivalent, max_abs, max_rel } = &self.verdict;
        json!({"equivalent": equivalent, "max_abs": max_abs, "max_rel": max_rel, "method": if self.compared { "numeric" } else { "proof" },
               "proved": self.proved, "assumptions": self.assumptions})
    }
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Verification {
    /// `tract`, `ort` or `both`; `None` where nothing was run.
    pub engine: Option<&'static str>,
    /// Router at one-hot against the source.
    pub one_hot: Finding,
    /// Distance of `augment`'s routes from the recomputed sums, if there are any and an engine ran them.
    pub rows: Option<Comparison>,
    /// The file against the source; `None` where it has no proof and no engine runs it.
    pub emitted: Option<Finding>,
    /// Inputs compared on.
    pub trials: usize,
    /// Notices for people.
    pub notices: Vec<String>,
}

impl Verification {
    pub(super) fn json(&self) -> Value {
        let mut one_hot = self.one_hot.clone();
        if let Some(rows) = &self.rows {
            one_hot.verdict.and(rows);
            one_hot.compared = true;
        }
        json!({"engine": self.engine, "one_hot": one_hot.json(), "emitted": self.emitted.as_ref().map(Finding::json),
               "trials": self.trials})
    }

    fn take_run(&mut self, v: &Verdict) {
        let Some(ran) = &v.numeric else { return };
        self.engine = Some(engine_name(ran));
        self.trials = ran.report.trials;
        let undefined = ran.undefined.iter().map(|(name, from)| {
            format!("output `{name}` of the source itself is NaN on the random inputs, so that its equality says little, and a loss of it would be NaN on such inputs{from}")
        });
        for note in ran.notes.iter().cloned().chain(undefined) {
            if !self.notices.contains(&note) {
                self.notices.push(note);
            }
        }
    }
}

/// Compares the source with the forward graph as it was read back from its file; `routed`: it has a router. Errors have
/// status 1 when the graph is not the source at one-hot (a fault of this tool), or when neither a proof nor an engine can
/// tell.
pub(super) fn verify(
    source: &Subject,
    file: Subject,
    routed: bool,
    o: &RouteOptions,
    how: &VerifyOptions,
) -> Result<Verification, Failure> {
    let model = &source.path;
    let unreadable = |e: String| Failure::input(e).at(&file.path);
    let routers = if routed { Some(bake::read_routers(&file.graph).map_err(|e| unreadable(e.to_string()))?) } else { None };
    let one_hot = routers.as_ref().map(|r| bake::at_one_hot(&file.graph, r, o)).transpose();
    let one_hot = one_hot.map_err(|e| unreadable(e.to_string()))?;
    let one_hot = one_hot.map(|g| Subject::of_graph(g, &file.path));
    let subjects: Vec<&Subject> = one_hot.iter().chain([&file]).collect();
    let mut verdicts: Vec<Verdict> = subjects.iter().map(|b| verify::prove(source, b, how)).collect();
    let is_proved = verdicts[0].proved();
    let mut found = Verification::default();
    let open = subjects.iter().zip(&mut verdicts).filter(|(_, v)| v.needs_numbers(how)).map(|(b, v)| (*b, v));
    let (run, mut open): (Vec<&Subject>, Vec<&mut Verdict>) = open.unzip();
    if !run.is_empty() {
        let ran = verify::run(source, &run, &mut open, how);
        found.cannot_compare(ran, is_proved, how, "the file written was not compared with the source")?;
    }
    let mut alone = None;
    verdicts = confirmed(verdicts, how, &mut found.notices, &mut alone, |how, verdicts| {
        let mut open: Vec<&mut Verdict> = verdicts.iter_mut().collect();
        verify::run(source, &subjects, &mut open, how)
    });
    verdicts.iter().for_each(|v| found.take_run(v));
    found.emitted = verdicts.last().and_then(Finding::of);
    found.one_hot = Finding::of(&verdicts[0]).unwrap_or_default();
    if let Some(routers) = routers.filter(|r| o.form == Form::Augment || r.values().any(|r| !r.has_one_hot())) {
        let ran = compare_rows(&file, &routers, how).map(|v| {
            let notices = &mut found.notices;
            let again = |how: &VerifyOptions, v: &mut [Verdict]| compare_rows(&file, &routers, how).map(|w| v[0] = w);
            for v in confirmed(vec![v], how, notices, &mut alone, again) {
                found.take_run(&v);
                found.rows = v.numeric.map(|n| n.report.verdict);
            }
        });
        found.cannot_compare(ran, true, how, "the routes' sums were not recomputed")?;
    }
    let worst = found.rows.iter().chain([&found.one_hot.verdict]).find(|c| !c.equivalent);
    if let Some(worst) = worst {
        let at = first_at(&verdicts[0]);
        let (whose, why) = alone.unwrap_or_default();
        return Err(Failure::check(format!(
            "the rewritten graph does not equal the source when the router is one-hot (outputs differ by up to {:.3e}{at}{why}); this is a fault of ancre-rewrite{whose}, nothing was written",
            worst.max_abs,
        ))
        .help("report the model's architecture; --chains IDS leaves a chain out")
        .at(model));
    }
    Ok(found)
}

/// `, first at …`, where that is known.
fn first_at(v: &Verdict) -> String {
    v.divergence.as_ref().map(|d| format!(", first at {}", verify::report::divergence_line(d))).unwrap_or_default()
}

/// The engine by whose numbers a rewrite is not its source.
fn against(v: &Verdict) -> Option<&'static str> {
    let ran = v.numeric.as_ref().filter(|n| !n.report.verdict.equivalent)?;
    ran.failing.as_ref().map(|f| f.engine)
}

/// What was found of a rewrite (first in the list), or where one engine speaks against it and the other does not, what the other
/// says: an engine for which one function is two is off. Where the other cannot be asked, or the first one was asked for by name, `alone` takes
/// whose numbers they are.
fn confirmed(
    first: Vec<Verdict>,
    how: &VerifyOptions,
    notices: &mut Vec<String>,
    alone: &mut Option<(String, String)>,
    again: impl FnOnce(&VerifyOptions, &mut [Verdict]) -> Result<(), Failure>,
) -> Vec<Verdict> {
    let Some(off) = first.first().and_then(against) else { return first };
    let (other, name) = if off == "tract" { (EngineChoice::Ort, "ort") } else { (EngineChoice::Tract, "tract") };
    let unrun = |v: &Verdict| Verdict { numeric: None, divergence: None, ..v.clone() };
    let mut second: Vec<Verdict> = first.iter().map(unrun).collect();
    if let Err(e) = again(&VerifyOptions { engine: Some(other), ..how.clone() }, &mut second) {
        *alone = Some((format!(" or of {off}"), format!(" by {off} alone, as {name} could not be asked: {}", e.what)));
        return first;
    }
    if against(&second[0]).is_some() {
        return first;
    }
    if how.engine.is_some() {
        // The answer of an engine that was asked for stands.
        *alone =
            Some((format!(" or of {off}"), format!(" by {off}, which --verify asked for, while by {name} they are equal")));
        return first;
    }
    let distance = first[0].numeric.as_ref().map_or(0.0, |n| n.report.verdict.max_abs);
    notices.push(format!(
        "by {off} the rewritten graph does not equal the source (outputs differ by up to {distance:.3e}{}), by {name} it does: {off} is off",
        first_at(&first[0])
    ));
    second
}

impl Verification {
    /// Takes a comparison that no engine could make: a notice where there is a proof and no engine was asked for, else an error.
    fn cannot_compare(
        &mut self,
        ran: Result<(), Failure>,
        proved: bool,
        how: &VerifyOptions,
        what: &str,
    ) -> Result<(), Failure> {
        match ran {
            Ok(()) => Ok(()),
            Err(e) if e.status == 1 && proved && how.engine.is_none() => {
                self.notices.push(format!("{what}, as no engine at hand runs it: {}", e.what));
                Ok(())
            }
            Err(e) if e.status == 1 => {
                let proof =
                    (proved && how.engine.is_some()).then(|| "leave --verify out: the rewrite is proved".to_string());
                let other = proof.or_else(|| numeric::other_engine(how.engine, "--verify"));
                let help = other.into_iter().chain(["--verify none writes it unchecked".to_string()]).collect::<Vec<_>>();
                Err(Failure { what: format!("{}; nothing was written", e.what), ..e }.help(help.join("; or ")))
            }
            Err(e) => Err(e),
        }
    }
}

/// Compares every route with Σ w·h, recomputed from the sources' values in the same run.
fn compare_rows(file: &Subject, routers: &Routers, how: &VerifyOptions) -> Result<Verdict, Failure> {
    let mut g = file.graph.clone();
    let mut rows = Vec::new();
    let unreadable = |e: bake::BakeError| Failure::input(e.to_string()).at(&file.path);
    for r in routers.values() {
        let attends = r.rule == Rule::Attention;
        let weights = if attends { Vec::new() } else { bake::router_weights(&g, r).map_err(unreadable)? };
        let name = |v: ValueId| g.name(v).to_string();
        for &(row, route) in &r.rows {
            let (first, count) = (row * r.width(), r.reads(row));
            let weights = match attends {
                true => Weights::Attention(bake::attention_row(&g, r, row).map_err(unreadable)?),
                false => Weights::Fixed(weights[first..first + count].to_vec()),
            };
            rows.push(Row { route: name(route), sources: r.columns().take(count).map(name).collect(), weights });
        }
        for v in r.columns().chain(r.rows.iter().map(|(_, v)| *v)) {
            if !g.is_output(v) {
                g.add_output(v, None);
            }
        }
    }
    let recomputed = Subject::of_graph(g.clone(), &file.path)
        .wrapped(Box::new(move |session| Box::new(Recomputed { session, rows: rows.clone() })));
    let rows = Subject::of_graph(g, &file.path);
    let how = VerifyOptions { proof: verify::ProofMode::Never, ..how.clone() };
    verify::compare_subjects(&recomputed, &rows, &how)
}

/// A route, and what it is the sum of.
#[derive(Clone)]
struct Row {
    route: String,
    sources: Vec<String>,
    weights: Weights,
}

/// What its weights are.
#[derive(Clone)]
enum Weights {
    Fixed(Vec<f64>),
    Attention(AttentionRow),
}

/// A run of the file whose outputs are the routes, recomputed.
struct Recomputed {
    session: Box<dyn Session>,
    rows: Vec<Row>,
}

impl Session for Recomputed {
    fn run(&mut self, inputs: &Tensors) -> Result<Tensors, EngineError> {
        let values = self.session.run(inputs)?;
        let get = |name: &str| {
            let missing = || EngineError::Run { engine: "the engine", why: format!("`{name}` was not observed") };
            values.get(name).ok_or_else(missing)
        };
        let mut rows = Tensors::new();
        let mut floats: IndexMap<&str, Vec<f64>> = IndexMap::new();
        for row in &self.rows {
            let got = get(&row.route)?;
            let mut want = vec![0f64; got.len()];
            for source in &row.sources {
                if !floats.contains_key(source.as_str()) {
                    floats.insert(source, get(source)?.to_f64());
                }
            }
            let sources = row.sources.iter().map(|s| floats[s.as_str()].as_slice());
            match &row.weights {
                Weights::Fixed(weights) => {
                    for (w, source) in weights.iter().zip(sources) {
                        want.iter_mut().zip(source).for_each(|(x, h)| *x += w * h);
                    }
                }
                Weights::Attention(row) => want = row.sum(&sources.collect::<Vec<_>>(), got.shape()),
            }
            rows.extend(NpTensor::from_f64s(got.dtype(), got.shape(), &want).map(|t| (row.route.clone(), t)));
        }
        Ok(rows)
    }
}

/// A finding in words: `proved for all inputs` or `compared on 2 inputs (tract): …`.
pub(super) fn words(found: &Verification, f: &Finding) -> String {
    let proved = if f.proved { "proved for all inputs" } else { "" };
    if !f.compared {
        return proved.into();
    }
    let (engine, n) = (found.engine.unwrap_or_default(), found.trials);
    let and = if f.proved { ", and " } else { "" };
    let s = if n == 1 { "" } else { "s" };
    format!("{proved}{and}compared on {n} input{s} ({engine}): max |difference| {:.1e}", f.verdict.max_abs)
}

#[cfg(test)]
#[cfg(all(feature = "ort", feature = "tract"))]
mod tests {
    use super::*;
    use ancre_passes::text::parse;
    use std::cell::Cell;
    use std::path::Path;

    /// A session whose outputs are off by one.
    struct Off(Box<dyn Session>);

    impl Session for Off {
        fn run(&mut self, inputs: &Tensors) -> Result<Tensors, EngineError> {
            let outputs = self.0.run(inputs)?;
            let moved = |t: &NpTensor| {
                let values: Vec<f64> = t.to_f64().iter().map(|v| v + 1.0).collect();
                NpTensor::from_f64s(t.dtype(), t.shape(), &values).unwrap()
            };
            Ok(outputs.iter().map(|(name, t)| (name.clone(), moved(t))).collect())
        }
    }

    /// A rewrite that equals its source but in the first engines that load it.
    fn verified(off: usize, engine: Option<EngineChoice>) -> Result<Verification, Failure> {
        let graph = || parse("g (float[2, 3] x) => (float[2, 3] y) { a = Tanh (x) y = Add (a, x) }").unwrap();
        let (source, loads) = (Subject::of_graph(graph(), Path::new("m.onnx")), Cell::new(0));
        let file = Subject::of_graph(graph(), Path::new("m.ancre.onnx")).wrapped(Box::new(move |session| {
            loads.set(loads.get() + 1);
            if loads.get() > off { session } else { Box::new(Off(session)) }
        }));
        let how = VerifyOptions { proof: verify::ProofMode::Never, engine, ..VerifyOptions::default() };
        verify(&source, file, false, &RouteOptions::default(), &how)
    }

    #[test]
    fn an_engine_that_alone_speaks_against_a_rewrite_is_called_off() {
        if let Err(e) = crate::engine::ort() {
            eprintln!("skipped: {e}");
            return;
        }
        let found = verified(1, None).unwrap();
        assert_eq!((found.engine, found.one_hot.verdict.equivalent), (Some("ort"), true));
        assert!(found.notices[0].contains("by tract") && found.notices[0].ends_with("by ort it does: tract is off"));
        let e = verified(1, Some(EngineChoice::Tract)).unwrap_err();
        assert!(e.status == 1 && e.what.contains("by tract, which --verify asked for, while by ort they are equal"), "{e}");
        let e = verified(2, None).unwrap_err();
        assert!(e.status == 1 && e.what.contains("this is a fault of ancre-rewrite, nothing"), "{e}");
    }
}
