//! `grad`: a model with the gradients of its outputs beside them.

use crate::cli::{GradArgs, VerifyArg};
use crate::engine::memory::bytes;
use crate::error::Failure;
use crate::io::files::Outputs;
use crate::io::lines::{Lines, put};
use crate::rewrite::{self, Opening};
use crate::verify::{self, ProofMode, Subject, VerifyOptions};
use ancre_passes::analysis::roles::initializer_roles;
use ancre_passes::ir::{Graph, Kind, ValueId};
use ancre_passes::onnx;
use ancre_passes::pipeline::gradient::{GradientOptions, Seed};
use ancre_passes::pipeline::{PassManager, glob};
use ancre_passes::transform::{dropout, eliminate};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// A gradient graph that was written.
pub struct Differentiated {
    model: PathBuf,
    path: PathBuf,
    bytes: u64,
    nodes: usize,
    /// Outputs, and the input that takes each one's cotangent if it is not ones.
    of: Vec<(String, Option<String>)>,
    /// Inputs and initializers, each with the output that is its gradient and its type.
    gradients: Vec<(String, String, String)>,
    /// How the model's own outputs compare with the source's.
    compared: Option<String>,
    opened: Option<&'static str>,
    notices: Vec<String>,
}

/// Runs `grad`. Errors have status 2 where the model has no such outputs or inputs or an operator on the way has no derivative, 1 where the
/// model's own outputs are not the source's. Nothing is written then.
pub fn grad(a: &GradArgs) -> Result<Differentiated, Failure> {
    let (mut source, ..) = rewrite::load_inlined(&a.model)?;
    dropout::evaluation_mode(&mut source);
    let fail = |e: Failure| e.at(&a.model);
    let of = outputs(&source, &a.of).map_err(fail)?;
    let wrt = chosen(&source, &a.wrt).map_err(fail)?;
    let mut options = GradientOptions::new(of, wrt);
    options.opset = a.opset;
    let g = PassManager::default()
        .gradient_graph(source.clone(), &options)
        .map_err(|e| Failure::from(e).help("--wrt and --of choose what is differentiated").at(&a.model))?;

    let path = rewrite::output_path(&a.model, a.out.as_deref(), "grad");
    let mut files = Outputs::sparing(&[&a.model]);
    let emission = onnx::emit(&g).map_err(|e| Failure::input(e.to_string()).hint(e.hint()).at(&path))?;
    let size = files.add_model(&emission, &path)?;
    let mut notices = Vec::new();
    let subject = Subject::of_graph(source, &a.model);
    let (mut compared, mut opened) = (None, None);
    if a.verify != Some(VerifyArg::None) {
        let mut opening = Opening::start();
        opening.add("grad", &g, &path, Some(&files))?;
        compared = Some(compare(&subject, &g, &path, a.verify)?);
        opened = opening.finish(&subject, &mut notices)?.first().map(|(_, engine)| *engine);
    }
    files.commit()?;
    let named = |suffix: &str, name: &str| {
        let plain = format!("{name}.{suffix}");
        let second = format!("ancre.{plain}");
        if g.find(&second).is_some() { second } else { plain }
    };
    let ct = |(name, seed): &(String, Seed)| (name.clone(), (*seed == Seed::Input).then(|| named("ct", name)));
    let gradient = |name: &String| {
        let output = named("grad", name);
        let ty = g.find(&output).map(|v| g.value(v).ty.to_string()).unwrap_or_default();
        (name.clone(), output, ty)
    };
    Ok(Differentiated {
        model: a.model.clone(),
        path,
        bytes: size,
        nodes: emission.nodes,
        of: options.of.iter().map(ct).collect(),
        gradients: options.wrt.iter().map(gradient).collect(),
        compared,
        opened,
        notices,
    })
}

/// The outputs that were named, or the only float one.
fn outputs(g: &Graph, given: &[String]) -> Result<Vec<(String, Seed)>, Failure> {
    let all: Vec<ValueId> = g.outputs().iter().map(|o| o.value).collect();
    let floats: Vec<&str> = all.iter().filter(|v| g.is_float(**v)).map(|v| g.name(*v)).collect();
    let seed = |name: &str| {
        let scalar = g.find(name).and_then(|v| g.tensor_type(v)).is_some_and(|t| t.rank() == 0);
        if scalar { Seed::Ones } else { Seed::Input }
    };
    if given.is_empty() {
        return match floats[..] {
            [only] => Ok(vec![(only.to_string(), seed(only))]),
            _ => Err(Failure::input(format!("has {} float outputs: {}", floats.len(), listed(&floats)))
                .help("choose with --of OUTPUT; several are added up")),
        };
    }
    let one = |text: &String| {
        let is_output = |name: &str| all.iter().any(|v| g.name(*v) == name);
        let (name, how) = match text.rsplit_once('=') {
            Some((name, how)) if !is_output(text) => (name, Some(how)),
            _ => (text.as_str(), None),
        };
        if !is_output(name) {
            let known: Vec<&str> = all.iter().map(|v| g.name(*v)).collect();
            return Err(
                Failure::input(format!("has no output `{name}`")).help(format!("its outputs are {}", listed(&known)))
            );
        }
        let seed = match how {
            None => seed(name),
            Some("sum") => Seed::Ones,
            Some("ct") => Seed::Input,
            Some(other) => {
                return Err(Failure::input(format!("--of {text}: `{other}` is neither sum nor ct")));
            }
        };
        Ok((name.to_string(), seed))
    };
    let of: Vec<(String, Seed)> = given.iter().map(one).collect::<Result<_, _>>()?;
    let named: HashSet<&String> = of.iter().map(|(name, _)| name).collect();
    if named.len() < of.len() {
        return Err(Failure::input("--of names an output twice"));
    }
    Ok(of)
}

/// The float inputs and initializers that match, in the model's order; without patterns every float input. A pattern takes inputs and
/// parameters; constants, such as the scalars that an exporter folded, only where it matches nothing else.
fn chosen(g: &Graph, patterns: &[String]) -> Result<Vec<String>, Failure> {
    let values = g.nodes().filter(|n| !matches!(g.node(*n).kind, Kind::Op(_))).map(|n| g.result(n, 0));
    let floats: Vec<ValueId> = values.filter(|v| g.is_float(*v)).collect();
    let is_input = |v: &ValueId| matches!(g.node(v.node).kind, Kind::Input(_));
    if patterns.is_empty() {
        let inputs: Vec<String> = floats.iter().filter(|v| is_input(v)).map(|v| g.name(*v).to_string()).collect();
        if inputs.is_empty() {
            return Err(Failure::input("has no float input").help("--wrt NAME|GLOB chooses initializers: --wrt '*.weight'"));
        }
        return Ok(inputs);
    }
    if let Some(p) = patterns.iter().find(|p| !floats.iter().any(|v| glob(p, g.name(*v)))) {
        let inputs: Vec<&str> = floats.iter().filter(|v| is_input(v)).map(|v| g.name(*v)).collect();
        let others = floats.len() - inputs.len();
        let near = near(p, floats.iter().map(|v| g.name(*v)));
        let near = near.map(|name| format!("did you mean `{name}`? ")).unwrap_or_default();
        return Err(Failure::input(format!("--wrt {p}: no float input or initializer matches"))
            .help(format!("{near}float inputs: {}; and {others} float initializers", listed(&inputs))));
    }
    let parameters: HashSet<ValueId> =
        initializer_roles(g).into_iter().filter(|(_, role)| role.trains()).map(|(v, _)| v).collect();
    let mut matched = HashSet::new();
    for p in patterns {
        let all = floats.iter().copied().filter(|v| glob(p, g.name(*v)));
        let (proper, others): (Vec<_>, Vec<_>) = all.partition(|v| is_input(v) || parameters.contains(v) || p == g.name(*v));
        matched.extend(if proper.is_empty() { others } else { proper });
    }
    Ok(floats.iter().filter(|v| matched.contains(*v)).map(|v| g.name(*v).to_string()).collect())
}

/// The name that is most like what was asked for, if one is.
fn near<'n>(asked: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    const ALIKE: f64 = 0.6;
    let alike = |name: &'n str| (strsim::normalized_damerau_levenshtein(asked, name), name);
    let best = names.map(alike).max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= ALIKE).then_some(best.1)
}

fn listed(names: &[&str]) -> String {
    if names.is_empty() { "none".into() } else { names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ") }
}

/// Compares the model's own outputs with the source's.
fn compare(source: &Subject, g: &Graph, path: &Path, how: Option<VerifyArg>) -> Result<String, Failure> {
    let own: Vec<String> = source.graph.outputs().iter().map(|o| source.graph.name(o.value).to_string()).collect();
    let mut forward = g.clone();
    let kept: Vec<_> = forward.outputs().iter().filter(|o| own.iter().any(|n| n == g.name(o.value))).cloned().collect();
    forward.clear_outputs();
    kept.into_iter().for_each(|o| forward.add_output(o.value, o.info));
    eliminate::eliminate_dead(&mut forward, |_, _| false);
    let inputs: Vec<String> =
        source.graph.inputs().iter().map(|n| source.graph.name(source.graph.result(*n, 0)).to_string()).collect();
    eliminate::eliminate_inputs(&mut forward, |name| !inputs.iter().any(|n| n == name));
    let options = VerifyOptions {
        engine: how.and_then(VerifyArg::engine),
        proof: if how.is_some() { ProofMode::Beside } else { ProofMode::First },
        ..VerifyOptions::default()
    };
    let verdict = verify::compare_subjects(source, &Subject::of_graph(forward, path), &options)?;
    let numbers =
        verdict.numeric.as_ref().map(|n| format!("within {:.1e} in {} trials", n.report.verdict.max_abs, n.report.trials));
    if !verdict.equivalent {
        let by = numbers.map_or_else(|| "their interfaces differ".to_string(), |n| format!("they differ: {n}"));
        return Err(Failure::check(format!("the model's own outputs are not the source's: {by}; nothing was written"))
            .at(path)
            .help("--verify none writes it all the same; report the model's architecture"));
    }
    Ok(match (verdict.proved(), numbers) {
        (true, _) => "proved for all inputs".into(),
        (false, numbers) => numbers.unwrap_or_default(),
    })
}

impl Differentiated {
    /// The report as JSON.
    pub fn json(&self) -> Value {
        let of: Vec<Value> = self.of.iter().map(|(name, ct)| json!({"output": name, "cotangent": ct})).collect();
        let gradient = |(name, output, ty): &(String, String, String)| json!({"name": name, "output": output, "type": ty});
        let gradients: Vec<Value> = self.gradients.iter().map(gradient).collect();
        json!({"model": self.model.to_string_lossy(), "of": of, "gradients": gradients, "verify": self.compared, "notices": self.notices,
               "outputs": [{"kind": "grad", "path": self.path.to_string_lossy(), "bytes": self.bytes, "nodes": self.nodes, "opened_by": self.opened}]})
    }

    /// The report for people.
    pub fn text(&self) -> String {
        let out = &mut Lines { width: 10, text: String::new() };
        for (name, ct) in &self.of {
            match ct {
                Some(ct) => put!(out, "of", "`{name}`, times the input `{ct}`"),
                None => put!(out, "of", "the sum of `{name}`"),
            }
        }
        for (name, output, ty) in &self.gradients {
            put!(out, "gradient", "`{output}` {ty}, with respect to `{name}`");
        }
        if let Some(compared) = &self.compared {
            put!(out, "verified", "the model's own outputs are the source's: {compared}");
        }
        self.notices.iter().for_each(|n| put!(out, "note", "{n}"));
        let opened = rewrite::opened_by(self.opened);
        put!(out, "graph", "{}  ({}, {} nodes{opened})", self.path.display(), bytes(self.bytes), self.nodes);
        std::mem::take(&mut out.text)
    }
}
