//! What a case goes through: import, types, residual structure, router, training graph, emission, and the proof of each. What must
//! hold on the way is checked as it goes.

use crate::case::{Case, Plan};
use crate::guard::caught;
use ancre_passes::analysis::residual::{ResidualStructure, find_residuals};
use ancre_passes::analysis::{dot, explain, picture, report};
use ancre_passes::contract::{
    Chains, LossRecord, Names, OptimizerRecord, Record, RouterRecord, StateFrom, StateRecord, States, Ties,
};
use ancre_passes::ir::{Graph, NodeId, SharedBytes};
use ancre_passes::onnx;
use ancre_passes::ops::is_random;
use ancre_passes::pipeline::rewrite::read_model;
use ancre_passes::pipeline::training::Training;
use ancre_passes::pipeline::{self, Cx, FORWARD, PassError, PassManager, ROUTE};
use ancre_passes::proof::{Proof, ProofOptions, prove_equal};
use ancre_passes::transform::initial_state::{first_values, init_graph, require_state};
use ancre_passes::transform::rebatch;
use ancre_passes::transform::route::{self, Form};
use ancre_passes::transform::{bake, dropout, eliminate, tie};
use ancre_passes::verify::{Stage, verify};
use ancre_passes::{placement, text};
use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What it is one of: findings of one kind have one cause.
    pub kind: String,
    /// The case's own words.
    pub detail: String,
}

/// What came of a case.
#[derive(Default)]
pub struct Outcome {
    /// Hashes of what was seen: refusals, structures, operators that were differentiated.
    pub features: HashSet<u64>,
    /// What must not be.
    pub faults: Vec<Fault>,
    /// The graph as it was read, with types, where it could be read.
    pub source: Option<Graph>,
    /// The files that came out.
    pub emitted: Vec<Vec<u8>>,
}

/// Where external data of a case would lie: nowhere.
const ROOT: &str = "/nonexistent";

/// Runs a case.
pub fn run(case: &Case) -> Outcome {
    let mut outcome = Outcome::default();
    if let Err((place, what)) = caught(|| outcome.take(case)) {
        outcome.fault(format!("panic at {place}"), &what);
    }
    outcome
}

/// Reads a model as the tool does, with types.
///
/// # Errors
/// What is said of the file.
pub fn read(bytes: Vec<u8>) -> Result<Graph, String> {
    read_model(&SharedBytes::new(bytes), Some(Path::new(ROOT))).map_err(|e| e.to_string())
}

/// A text without what is particular to a case: names and numbers.
pub fn general(text: &str) -> String {
    let outside = text.split('`').step_by(2).collect::<Vec<_>>().join("`");
    outside.chars().filter(|c| !c.is_ascii_digit() && *c != '-').take(160).collect()
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

/// The proof of two graphs, without re-association.
pub fn prove(a: &Graph, b: &Graph) -> Proof {
    prove_equal(a, b, &ProofOptions::default())
}

impl Outcome {
    /// Notes something seen.
    pub fn see(&mut self, stage: &str, what: &str) {
        self.features.insert(hash(&(stage, general(what))));
    }

    /// Notes something that must not be.
    pub fn fault(&mut self, kind: String, detail: &str) {
        self.faults.push(Fault { kind: kind.chars().take(200).collect(), detail: detail.chars().take(2000).collect() });
    }

    /// Notes an error that a user would read.
    fn refusal(&mut self, stage: &str, e: &str) {
        self.see(stage, e);
        if e.trim().is_empty() {
            self.fault(format!("{stage}: an error without a word"), e);
        }
    }

    /// Notes an error of a pass.
    fn failure(&mut self, stage: &str, e: &PassError) {
        let said = e.to_string();
        match e {
            PassError::Invalid { pass, found } => {
                let first = found.first().map_or("", String::as_str);
                self.fault(format!("{stage}: after {pass}: {}", general(first)), &said);
            }
            PassError::Missing(_) => self.fault(format!("{stage}: {}", general(&said)), &said),
            _ => self.refusal(stage, &said),
        }
    }

    fn take(&mut self, case: &Case) {
        let mut source = match read(case.bytes.clone()) {
            Ok(g) => g,
            Err(e) => return self.refusal("import", &e),
        };
        let plan = case.plan();
        dropout::evaluation_mode(&mut source);
        self.see_nodes(&source);
        if let Err(found) = verify(&source, Stage::Open) {
            found.iter().for_each(|f| self.see("verify", f));
        }
        self.read_records(&source);
        let structure = find_residuals(&source);
        self.see_structure(&structure);
        if plan.reports {
            self.reports(&source, &structure);
        }
        if let Some((forward, routed)) = self.forward(&source, &structure, &plan) {
            self.training(&source, routed, &plan);
            self.freeze(&forward);
        }
        self.equals_itself(&source);
        self.source = Some(source);
    }

    /// What an earlier run wrote into the file, or what is left of it.
    fn read_records(&mut self, g: &Graph) {
        let whole = [
            Chains::read(g).map(drop),
            Ties::read(g).map(drop),
            Names::read(g).map(drop),
            States::read(g).map(drop),
            LossRecord::read(g).map(drop),
            OptimizerRecord::read(g).map(drop),
        ];
        whole.iter().filter_map(|r| r.as_ref().err()).for_each(|e| self.refusal("record", &e.to_string()));
        self.freeze(g);
    }

    fn see_nodes(&mut self, g: &Graph) {
        for id in g.nodes() {
            let Some(op) = g.op(id) else { continue };
            let Some(ty) = g.results(id).next().map(|v| &g.value(v).ty) else { continue };
            let rank = ty.shape.as_ref().map(|s| s.len().min(6));
            self.features.insert(hash(&("node", op.full_name(), rank, ty.dtype, g.operands(id).len().min(6))));
        }
    }

    fn see_structure(&mut self, s: &ResidualStructure) {
        s.rejected.iter().for_each(|r| self.see("rejected", &r.reason));
        let lengths: Vec<usize> = s.chains.iter().map(|c| c.joins.len().min(4)).take(4).collect();
        self.features.insert(hash(&("chains", lengths, s.projections.len().min(4))));
        for c in &s.chains {
            self.see("chain", &format!("{} {}", c.post, c.scaled));
        }
    }

    fn reports(&mut self, g: &Graph, s: &ResidualStructure) {
        let json = report::inspect_json(g, s, "case.onnx").to_string();
        let drawn = [report::inspect_text(g, s), dot::draw(g, s), picture::svg(g, s, "case"), explain::rejected(g, s)];
        let names = g.nodes().map(|n| g.site(n).name).take(8);
        names.for_each(|name| drop(explain::why(g, s, &name)));
        drop((json, drawn, text::outline(g)));
        placement::cuda_fallbacks(g);
    }

    /// The forward graph as it is read back, and the routed graph.
    fn forward(&mut self, source: &Graph, s: &ResidualStructure, plan: &Plan) -> Option<(Graph, Graph)> {
        let unread = |n: &NodeId| source.results(*n).all(|v| !source.is_read(v) && !source.is_output(v));
        let dead: HashSet<NodeId> = source.nodes().filter(unread).collect();
        let mut manager = PassManager::default();
        manager.starts_from(source);
        let mut routed = source.clone();
        let mut cx = Cx { route: plan.route.clone(), chains: Some(s.chains.clone()), ..Cx::default() };
        if let Err(e) = manager.run(ROUTE, &mut routed, &mut cx) {
            self.failure("route", &e);
            return None;
        }
        cx.routed.left_alone.iter().for_each(|l| self.see("left alone", &l.why));
        cx.routed.notes.values().for_each(|n| self.see("note", n));
        route::describe(&mut routed, &s.chains);
        let ties = tie::find_ties(source);
        if !ties.is_empty() {
            self.see("ties", "some");
            Ties(ties).write(&mut routed);
        }
        let mut forward = routed.clone();
        let mut cx = Cx { keep: dead, opset: plan.opset, ..Cx::default() };
        if let Err(e) = manager.run_to_emit(FORWARD, &mut forward, &mut cx) {
            self.failure("forward", &e);
            return None;
        }
        let forward = self.emit("forward", &forward, source)?;
        self.one_hot(source, &forward, plan);
        Some((forward, routed))
    }

    /// Emits a graph and reads it back. What is emitted has to be a model, and the same one each time.
    fn emit(&mut self, stage: &str, g: &Graph, source: &Graph) -> Option<Graph> {
        let bytes = match onnx::emit(g).and_then(|e| e.to_bytes()) {
            Ok(bytes) => bytes,
            Err(e) => {
                self.refusal(stage, &e.to_string());
                return None;
            }
        };
        if onnx::emit(g).and_then(|e| e.to_bytes()).ok().as_ref() != Some(&bytes) {
            self.fault(format!("{stage}: two emissions differ"), "");
        }
        if g.op_count() == 0 {
            // Nothing is left of a model whose outputs are its inputs.
            return None;
        }
        let read = read(bytes.clone());
        self.emitted.push(bytes);
        let read = match read {
            Ok(read) => read,
            Err(e) => {
                self.fault(format!("{stage}: what was emitted cannot be read: {}", general(&e)), &e);
                return None;
            }
        };
        let mut manager = PassManager::default();
        manager.starts_from(source);
        if let Err(e) = pipeline::ready(&read, source, "emission") {
            self.failure(stage, &e);
        }
        Some(read)
    }

    /// The router at one-hot is the source. A proof may not be found; one that is found says how.
    fn one_hot(&mut self, source: &Graph, forward: &Graph, plan: &Plan) {
        if !RouterRecord::is_in(forward) || plan.route.form == Form::Augment {
            return;
        }
        let routers = match bake::read_routers(forward) {
            Ok(routers) => routers,
            Err(e) => {
                return self.fault(format!("the router cannot be read back: {}", general(&e.to_string())), &e.to_string());
            }
        };
        let g = match bake::at_one_hot(forward, &routers, &plan.route) {
            Ok(g) => g,
            Err(e) => return self.refusal("one-hot", &e.to_string()),
        };
        self.see_proof("one-hot", &prove(source, &g));
    }

    fn see_proof(&mut self, stage: &str, proof: &Proof) {
        self.see(stage, &format!("{} {}", proof.proved, proof.reason));
        proof.assumptions.iter().for_each(|a| self.see("assumes", a));
        proof.rewrites.iter().for_each(|(name, _)| self.see("rewrite", name));
        if !proof.proved && proof.reason.trim().is_empty() {
            self.fault(format!("{stage}: no proof and no reason"), "");
        }
    }

    /// A graph that no pass touched is proved equal to its source.
    fn equals_itself(&mut self, source: &Graph) {
        let Some(again) = self.emit("source", source, source) else { return };
        // A call stays where its function is for another operator set than the file's, but may be of the one that the file was raised to.
        let inlined = again.shell.functions.len() != source.shell.functions.len();
        if inlined
            || source.outputs().is_empty()
            || source.nodes().any(|n| source.op(n).is_some_and(|op| is_random(&op.name)))
        {
            return;
        }
        let proof = prove(source, &again);
        self.see_proof("itself", &proof);
        if !proof.proved {
            self.fault(format!("a model does not equal itself: {}", general(&proof.reason)), &proof.reason);
        }
    }

    fn training(&mut self, source: &Graph, routed: Graph, plan: &Plan) {
        let quantised = |op: &str| op.contains("QuantizeLinear") || op.starts_with("QLinear");
        if routed.nodes().any(|n| routed.op(n).is_some_and(|op| quantised(&op.name))) {
            return;
        }
        let mut o = plan.training.clone();
        o.batch = rebatch::possible(&routed);
        let mut manager = PassManager::default();
        manager.starts_from(source);
        let for_evaluation = routed.clone();
        let built = match manager.training_graph(routed, &o) {
            Ok(built) => built,
            Err(e) => return self.failure("train", &e),
        };
        self.see_training(&built);
        if self.emit("train", &built.graph, source).is_none() {
            return;
        }
        self.first_state(built.graph, &built.cx.states);
        match manager.evaluation_graph(for_evaluation, &built.cx.states, &o) {
            Ok(g) => drop(self.emit("eval", &g, source)),
            Err(e) => self.failure("eval", &e),
        }
    }

    /// What the graph of the first state gives is what a training graph without defaults asks for.
    fn first_state(&mut self, mut training: Graph, states: &[StateRecord]) {
        let first = require_state(&mut training, [], states, StateFrom::Init);
        let init = match init_graph(&training, &first) {
            Ok(init) => init,
            Err(e) => return self.refusal("init", &e.to_string()),
        };
        let Some(init) = self.emit("init", &init, &training) else { return };
        match first_values(&init) {
            Ok(read) if read.iter().map(|f| &f.name).eq(first.iter().map(|f| &f.name)) => {}
            Ok(_) => self.fault("init: other states".into(), ""),
            Err(e) => self.fault(format!("init: {}", general(&e.to_string())), &e.to_string()),
        }
    }

    fn see_training(&mut self, t: &Training) {
        t.cx.frozen.iter().for_each(|(_, why)| self.see("frozen", why));
        let g = &t.graph;
        let ops = g.nodes().filter_map(|n| g.op(n));
        self.features.extend(ops.map(|op| hash(&("trains", op.full_name(), op.source.is_some()))));
        self.features.insert(hash(&(
            "states",
            t.cx.states.len().min(8),
            t.cx.masters.min(2),
            t.cx.widened.min(2),
            t.cx.dropouts.len().min(2),
        )));
    }

    /// Baking a router in, whatever the file's metadata say.
    fn freeze(&mut self, forward: &Graph) {
        if !RouterRecord::is_in(forward) {
            return;
        }
        let mut g = forward.clone();
        if let Err(e) = bake::bake_router(&mut g, 0.1) {
            return self.refusal("freeze", &e.to_string());
        }
        eliminate::eliminate_dead(&mut g, |_, _| false);
        if let Err(e) = pipeline::ready(&g, forward, "bake-router") {
            return self.failure("freeze", &e);
        }
        self.emit("freeze", &g, forward);
    }
}
