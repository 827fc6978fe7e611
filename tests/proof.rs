//! Every model of `models/`, routed in every way that keeps its function, is proved equal to its source; changed ones are not.

use crate::common::{Random, emit, max_abs, models, open, route};
use ancre_passes::analysis::residual::find_residuals;
use ancre_passes::ir::{Attr, Graph, Kind, NodeId, SharedBytes, Tensor};
use ancre_passes::onnx;
use ancre_passes::proof::{Proof, ProofOptions, prove_equal};
use ancre_passes::target::CPU;
use ancre_passes::transform::eliminate;
use ancre_passes::transform::lower_routes::{Lowering, lower_routes};
use ancre_passes::transform::route::{
    ChainChoice, Form, Granularity, Init, Normalize, RouteOptions, RouterSpec, Rule, Scope,
};
use ancre_rewrite::engine::random_inputs;
use ancre_rewrite::engine::{self, Session};
use std::path::Path;

fn read(bytes: Vec<u8>) -> Graph {
    let mut g = onnx::read(&SharedBytes::new(bytes), None).unwrap();
    engine::find_types(&mut g);
    g
}

fn load(path: &Path) -> Graph {
    read(std::fs::read(path).unwrap())
}

/// The graph as a file gives it.
fn reread(g: &Graph) -> Graph {
    read(onnx::emit(g).unwrap().to_bytes().unwrap())
}

fn options(granularity: Granularity, rule: Rule, init: Init) -> RouteOptions {
    let mut made = RouteOptions::default();
    made.form = Form::Reassign;
    made.granularity = granularity;
    made.scope = Scope::Stage;
    made.rule = rule;
    made.normalize = Normalize::Incoming;
    made.init = init;
    made.tau = 0.01;
    made.chains = ChainChoice::All;
    made
}

fn routed(source: &Graph, o: &RouteOptions, lowering: Option<Lowering>) -> (Graph, Vec<RouterSpec>) {
    let mut g = source.clone();
    let routers = route(&mut g, &find_residuals(source).chains, o);
    lower_routes(&mut g, &CPU, lowering).unwrap();
    eliminate::eliminate_dead(&mut g, |_, _| false);
    (g, routers)
}

fn prove(a: &Graph, b: &Graph) -> Proof {
    prove_equal(a, b, &ProofOptions::default())
}

/// The routers in the graphs of a test, which must have some.
#[derive(Default)]
struct Tally {
    routers: usize,
    failed: Vec<String>,
}

impl Tally {
    fn expect(&mut self, what: &str, proof: &Proof) {
        if !proof.proved {
            self.failed.push(format!("{what}: {}; {:?}", proof.reason, proof.parting));
        }
    }

    fn finish(self) {
        assert!(self.failed.is_empty(), "{} not proved:\n{}", self.failed.len(), self.failed.join("\n"));
        assert!(self.routers > 20, "{} routers", self.routers);
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn every_model_is_itself() {
    for path in models() {
        let (a, b) = (load(&path), load(&path));
        let proof = prove(&a, &b);
        assert!(proof.proved, "{}: {}", name(&path), proof.reason);
        assert!(!proof.assumptions.iter().any(|a| a.contains("finite")), "{}: {:?}", name(&path), proof.assumptions);
    }
}

#[test]
fn every_rule_at_one_hot_is_proved() {
    let mut tally = Tally::default();
    for path in models() {
        let source = load(&path);
        for (what, o) in [
            ("gated", options(Granularity::Add, Rule::Gated, Init::Uniform)),
            ("softmax", options(Granularity::Add, Rule::Softmax, Init::Identity)),
            ("free", options(Granularity::Add, Rule::Free, Init::Identity)),
            ("block", options(Granularity::Block, Rule::Gated, Init::Uniform)),
            ("outgoing", {
                let mut made = options(Granularity::Add, Rule::Gated, Init::Uniform);
                made.normalize = Normalize::Outgoing;
                made
            }),
            ("network", {
                let mut made = options(Granularity::Add, Rule::Gated, Init::Uniform);
                made.scope = Scope::Network;
                made
            }),
        ] {
            let (g, routers) = routed(&source, &o, None);
            tally.routers += routers.len();
            tally.expect(&format!("{} {what}", name(&path)), &prove(&source, &reread(&g)));
        }
    }
    tally.finish();
}

#[test]
fn every_lowering_is_proved() {
    let mut tally = Tally::default();
    for path in models() {
        let source = load(&path);
        for lowering in [
            Lowering::Pairwise,
            Lowering::Blocks(3, None),
            Lowering::Blocks(8, None),
            Lowering::Blocks(4, Some(2)),
            Lowering::Blocks(64, Some(4)),
        ] {
            for (rule, init) in [(Rule::Gated, Init::Uniform), (Rule::Softmax, Init::Identity)] {
                let (g, routers) = routed(&source, &options(Granularity::Add, rule, init), Some(lowering));
                tally.routers += routers.len();
                tally.expect(&format!("{} {lowering:?} {rule:?}", name(&path)), &prove(&source, &g));
            }
        }
    }
    tally.finish();
}

#[test]
fn chosen_wrongly_a_router_is_not_proved() {
    let mut found = 0;
    for path in models() {
        let source = load(&path);
        let (mut g, routers) = routed(&source, &options(Granularity::Add, Rule::Free, Init::Identity), None);
        for r in routers.iter().filter(|r| r.blocks() > 1) {
            let before = g.initializer(r.logits).unwrap().clone();
            let width = r.blocks() + r.sources.len();
            let mut w = before.to_f32().unwrap();
            // The last row reads the state before its own.
            let row = (r.blocks() - 1) * width;
            w.swap(row + width - 1, row + width - 2);
            g.set_initializer(r.logits, Tensor::f32s(&[r.blocks() as i64, width as i64], &w), false);
            assert!(!prove(&source, &g).proved, "{}: router {}", name(&path), g.name(r.logits));
            // One unit in the last place of the weight.
            let mut w = before.to_f32().unwrap();
            w[row + width - 1] = f32::from_bits(1f32.to_bits() - 1);
            g.set_initializer(r.logits, Tensor::f32s(&[r.blocks() as i64, width as i64], &w), false);
            assert!(!prove(&source, &g).proved, "{}: router {}", name(&path), g.name(r.logits));
            g.set_initializer(r.logits, before, false);
            found += 1;
        }
        assert!(prove(&source, &g).proved, "{}", name(&path));
    }
    assert!(found > 20, "{found}");
}

/// What of a graph may be changed so that the numbers change: seeded, on the graph as it was read.
fn mutate(g: &mut Graph, random: &mut Random) -> Option<String> {
    let ops: Vec<NodeId> = g.nodes().filter(|n| g.op(*n).is_some_and(|o| !o.is("Constant"))).collect();
    let id = ops[random.below(ops.len())];
    let site = g.site(id).to_string();
    let operands = g.operands(id).to_vec();
    match random.below(6) {
        0 if operands.len() == 2 => {
            g.set_operand(id, 0, operands[1]);
            g.set_operand(id, 1, operands[0]);
            Some(format!("{site}: operands exchanged"))
        }
        1 => {
            // Another value of the same type, from before.
            let old = operands.first().copied().flatten()?;
            let ty = g.tensor_type(old)?;
            let order = g.topological_order();
            let before = order.iter().take_while(|n| **n != id).flat_map(|n| g.results(*n));
            let all: Vec<_> = before.filter(|v| *v != old && g.tensor_type(*v).as_ref() == Some(&ty)).collect();
            let new = *all.get(random.below(all.len().max(1)))?;
            g.set_operand(id, 0, Some(new));
            Some(format!("{site}: reads another value"))
        }
        2 => {
            let weight = operands.iter().flatten().copied().find(|v| g.is_float(*v) && g.initializer(*v).is_some())?;
            let t = g.initializer(weight)?.clone();
            let mut v = t.to_f64().ok()?;
            let at = random.below(v.len().max(1));
            *v.get_mut(at)? *= 1.001;
            g.set_initializer(weight, Tensor::floats(t.dtype(), t.dims(), &v), false);
            Some(format!("{site}: a weight is off"))
        }
        3 => {
            let weight =
                operands.iter().flatten().copied().find(|v| g.initializer(*v).is_some_and(|t| t.dims().len() == 2))?;
            let t = g.initializer(weight)?.clone();
            let (v, r, c) = (t.to_f64().ok()?, t.dims()[0], t.dims()[1]);
            if r != c || !t.dtype().is_float() {
                return None;
            }
            let n = r as usize;
            let turned: Vec<f64> = (0..n * n).map(|i| v[i % n * n + i / n]).collect();
            g.set_initializer(weight, Tensor::floats(t.dtype(), t.dims(), &turned), false);
            Some(format!("{site}: a weight is transposed"))
        }
        4 => {
            let (x, y) = (operands.first().copied().flatten()?, g.result(id, 0));
            if g.tensor_type(x) != g.tensor_type(y) || g.is_output(y) {
                return None;
            }
            g.replace_uses(y, x, |_| true);
            Some(format!("{site}: left out"))
        }
        _ => {
            let Kind::Op(op) = &mut g.node_mut(id).kind else { return None };
            let names: Vec<String> = op.attrs.0.keys().cloned().collect();
            let name = names.get(random.below(names.len().max(1)))?.clone();
            let new = match op.attrs.get(&name)? {
                Attr::Int(v) => Attr::Int(v + 1),
                Attr::Float(v) => Attr::Float(v * 1.5),
                Attr::Ints(v) => Attr::Ints(v.iter().rev().copied().collect()),
                _ => return None,
            };
            op.attrs.0.insert(name.clone(), new);
            op.attrs_changed = true;
            Some(format!("{site}: attribute {name}"))
        }
    }
}

/// Of changed models, those that give other numbers are never proved equal. `ANCRE_MUTATIONS` gives the number of changes a
/// model.
#[test]
fn what_changes_the_numbers_is_not_proved() {
    let (mut changed, mut wrong) = (0, Vec::new());
    let trials: usize = std::env::var("ANCRE_MUTATIONS").ok().and_then(|v| v.parse().ok()).unwrap_or(16);
    for (seed, path) in models().into_iter().enumerate() {
        let source = load(&path);
        let o = options(Granularity::Add, Rule::Gated, Init::Uniform);
        let (forward, _) = routed(&source, &o, None);
        let mut random = Random(seed as u64);
        let sizes = random_inputs::sizes(&source, &random_inputs::Sizes::new()).into_iter().next().unwrap();
        let Ok(inputs) = random_inputs::random_inputs(&source, &sizes, 1) else { continue };
        let Ok(before) = open(&emit(&source)).and_then(|mut s| s.run(&inputs).map_err(|e| e.to_string())) else { continue };
        for _ in 0..trials {
            let mut g = forward.clone();
            let Some(what) = mutate(&mut g, &mut random) else { continue };
            let bytes = onnx::emit(&g).unwrap().to_bytes().unwrap();
            let Ok(mut session) = open(&bytes) else { continue };
            let Ok(after) = session.run(&inputs) else { continue };
            let same = before.iter().all(|(n, t)| {
                after[n].shape() == t.shape()
                    && max_abs(&after[n].to_f64(), &t.to_f64())
                        <= 1e-4 * t.to_f64().iter().fold(1e-3, |m: f64, v| m.max(v.abs()))
            });
            if same {
                continue;
            }
            changed += 1;
            let proof = prove(&source, &read(bytes));
            if proof.proved {
                wrong.push(format!("{} {what}", name(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "proved although the numbers differ: {wrong:?}");
    println!("{changed} changed models refused");
    assert!(changed > 70, "{changed}");
}
