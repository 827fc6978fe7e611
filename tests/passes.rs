//! The passes on random residual networks: the verifier after each, what each promises of the outputs, and the router against
//! plain formulas.

use crate::common::nets::{Plan, network};
use crate::common::{Random, emit, floats, max_abs, model, open, route};
use crate::golden::{Exporter, Family};
use ancre_passes::analysis::residual::find_residuals;
use ancre_passes::contract::{Record, StateKind, Ties};
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Op, Tensor, TensorType, ValueId};
use ancre_passes::ops::build::Builder;
use ancre_passes::pipeline::training::TrainingOptions;
use ancre_passes::pipeline::{self, Contract, PassManager};
use ancre_passes::target::CPU;
use ancre_passes::transform::loss::{LossKind, LossOptions, append_loss};
use ancre_passes::transform::optimizer::{OptimizerKind, OptimizerOptions, Trained, append_optimizer};
use ancre_passes::transform::route::{
    ChainChoice, Form, Granularity, Init, Normalize, RouteOptions, RouterSpec, Rule, Scope, one_hot_parameters,
};
use ancre_passes::transform::{
    align_scalars::align_scalars, differentiate, eliminate, fold, lower_routes, separate, tie, widen,
};
use ancre_passes::verify;
use ancre_rewrite::engine::random_inputs::{Sizes, random_inputs, sizes};
use ancre_rewrite::engine::{self, Session, Tensors, tract};
use ancre_rewrite::io::files::read_model;

const FORMS: [Form; 3] = [Form::Reassign, Form::Augment, Form::Input];
const RULES: [Rule; 4] = [Rule::Softmax, Rule::Gated, Rule::Free, Rule::Constant];
const NORMALIZATIONS: [Normalize; 2] = [Normalize::Incoming, Normalize::Outgoing];

fn options(form: Form, rule: Rule, normalize: Normalize, tau: f32) -> RouteOptions {
    let init = if rule == Rule::Free { Init::Identity } else { Init::Uniform };
    let mut made = RouteOptions::default();
    made.form = form;
    made.granularity = Granularity::Add;
    made.scope = Scope::Stage;
    made.rule = rule;
    made.normalize = normalize;
    made.init = init;
    made.tau = tau;
    made.chains = ChainChoice::All;
    made
}

pub(crate) fn verified(g: &Graph, stage: verify::Stage, what: &str) {
    verify::verify(g, stage).unwrap_or_else(|found| panic!("after {what}: {}", found.join("; ")));
}

/// Runs a graph, which may still have abstract operators, in tract.
fn outputs(g: &Graph, feeds: &Tensors) -> Tensors {
    let mut g = g.clone();
    pipeline::lower_forward(&mut g).unwrap();
    tract().load(&emit(&g), None).unwrap().run(feeds).unwrap()
}

/// Compares the outputs that `before` has.
pub(crate) fn same(before: &Tensors, after: &Tensors, tolerance: f64, what: &str) {
    for (name, want) in before {
        let got = after.get(name).unwrap_or_else(|| panic!("{what}: the output `{name}` is gone"));
        assert_eq!(got.shape(), want.shape(), "{what}: `{name}`");
        let (got, want) = (got.to_f64(), want.to_f64());
        let largest = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
        let error = max_abs(&got, &want) / largest;
        assert!(error <= tolerance, "{what}: `{name}` is off by {error:.2e}");
    }
}

fn data(plan: &Plan, random: &mut Random) -> Tensors {
    let shape: &[usize] = if plan.sequence { &[2, 3, 4] } else { &[2, 4] };
    let x = floats(DType::F32, shape, &random.normals(shape.iter().product()));
    Tensors::from([("x".to_string(), x)])
}

/// Random logits and gates; the softmaxes they give are far from one-hot.
fn randomise(g: &mut Graph, routers: &[RouterSpec], o: &RouteOptions, random: &mut Random) {
    for r in routers {
        let k = r.blocks();
        let spread = if o.rule == Rule::Free { 0.5 } else { o.tau as f64 };
        // A block that normalises a route near zero has no derivative that differences could show.
        let nearest = (o.rule == Rule::Free && o.form == Form::Input) as u8 as f64;
        let logit = |i: usize, random: &mut Random| match (i % k).cmp(&(i / k)) {
            std::cmp::Ordering::Less => spread * random.normal(),
            std::cmp::Ordering::Equal => nearest + (1.0 - nearest / 2.0) * spread * random.normal(),
            std::cmp::Ordering::Greater => 0.0,
        };
        let values: Vec<f64> = (0..k * k).map(|i| logit(i, random)).collect();
        g.set_initializer(r.logits, Tensor::floats(DType::F32, &[k as i64, k as i64], &values), false);
        if let Some(gate) = r.gate {
            let values: Vec<f64> = (0..k).map(|_| random.unit()).collect();
            g.set_initializer(gate, Tensor::floats(DType::F32, &[k as i64], &values), false);
        }
    }
}

// ---- promises ---------------------------------------------------------------------------------------------------------

#[test]
fn every_pass_s_promise_is_tested() {
    let tested = [
        ("route-skips", Contract::EqualAtOneHot),   // routing_keeps_the_function_at_one_hot
        ("add-adapters", Contract::Exact),          // adapters::adapters_start_as_nothing_and_merge_into_their_weights
        ("fix-inputs", Contract::Changes),          // passes/tests/text/fix_inputs.onnxtxt
        ("inline-control-flow", Contract::Exact),   // control_flow::what_takes_the_place_of_control_flow_computes_the_same
        ("master-copies", Contract::Exact),         // losses::half_precision_trains_in_float32
        ("fold-constants", Contract::Exact),        // folding_keeps_the_function
        ("activate-dropout", Contract::Changes),    // dropout::masks_are_random_and_repeat
        ("train-batch-norm", Contract::Changes),    // the goldens: statistics and gradients in training mode
        ("append-loss", Contract::Extends),         // a_training_graph_extends_the_forward_graph
        ("append-cotangents", Contract::Extends),   // grad::a_vector_jacobian_product_is_the_training_graph_s_gradient
        ("differentiate", Contract::Extends),       // a_training_graph_extends_the_forward_graph
        ("narrow-products", Contract::Changes),     // precision::narrow_products_have_…
        ("recompute", Contract::Exact),             // precision::what_is_computed_again_is_the_same
        ("append-optimizer", Contract::Extends),    // the same
        ("declare-outputs", Contract::Extends),     // the same
        ("declare-gradients", Contract::Extends),   // passes/tests/text/grad.onnxtxt
        ("choose-parameters", Contract::Exact),     // a_training_graph_extends_the_forward_graph
        ("mark-in-place", Contract::Exact),         // the same: it changes no node
        ("describe", Contract::Exact),              // the same
        ("convert-opset", Contract::Rounding),      // opset::the_forward_graph_is_of_the_operator_set_asked_for
        ("lower-attention", Contract::Rounding),    // rules::routes_and_their_gradients_are_those_of_the_formulas
        ("lower-routes", Contract::Rounding),       // routes_are_the_weighted_sums_of_the_formulas
        ("lower-abstract", Contract::Rounding),     // the goldens
        ("eliminate-dead", Contract::Exact),        // eliminating_keeps_the_function
        ("align-scalars", Contract::Exact),         // aligning_keeps_the_function
        ("block-convolutions", Contract::Rounding), // blocks::blocking_keeps_the_function
        ("separate-parameters", Contract::Exact),   // separating_keeps_the_function
        ("tie-parameters", Contract::Exact),        // tying_keeps_the_function
        ("legalize", Contract::Rounding),           // zoo::preparing_keeps_the_function
        ("rebatch", Contract::EverySample),         // batch::every_sample_as_by_itself
        ("float-weights", Contract::Rounding),      // qat::quantised_models_keep_their_function_and_deploy_as_they_came
        ("fake-quantize", Contract::Exact),         // the same
        ("widen", Contract::Rounding),              // widening_keeps_the_function
    ];
    for pass in pipeline::passes() {
        let known = tested.iter().find(|(name, _)| *name == pass.name);
        let (_, contract) = known.unwrap_or_else(|| panic!("the promise of `{}` has no test", pass.name));
        assert_eq!(*contract, pass.contract, "`{}` promises something else than is tested", pass.name);
    }
}

/// A number has as many axes as the tensor beside it, on either side, whether stored or computed.
#[test]
fn aligning_keeps_the_function() {
    let mut g = ancre_passes::text::parse(
        "g (float[300, 1] x, float n) => (float[300, 1] y, float[300, 1] z) <float two = {2}> {
            a = Sub (two, x) y = Mul (a, n) z = Div (x, two) }",
    )
    .unwrap();
    let mut random = Random(6);
    let feeds = Tensors::from([
        ("x".to_string(), floats(DType::F32, &[300, 1], &random.normals(300))),
        ("n".to_string(), floats(DType::F32, &[], &[0.3])),
    ]);
    let before = open(&emit(&g)).unwrap().run(&feeds).unwrap();
    assert_eq!(align_scalars(&mut g).unwrap(), 3);
    verified(&g, verify::Stage::Legal, "aligned");
    same(&before, &open(&emit(&g)).unwrap().run(&feeds).unwrap(), 0.0, "aligned");
}

/// Between casts to float32 and back, a half-precision network is what it was but for its roundings.
#[test]
fn widening_keeps_the_function() {
    let mut random = Random(5);
    let mut g = Graph::default();
    let x = g.add_input("x", TensorType::new(DType::F16, [Dim::symbol("n"), Dim::from(4)]).into(), None);
    let w = g.add_initializer("w", Tensor::floats(DType::F16, &[4, 4], &random.normals(16)), false);
    let mut b = Builder::new(&mut g, "net");
    let h = b.matmul(x, w).unwrap();
    let t = b.op("Tanh", &[h]).unwrap();
    let mask = b.op("Greater", &[h, t]).unwrap();
    let y = b.select(mask, h, t).unwrap();
    let z = b.add(y, x).unwrap();
    [y, z].into_iter().for_each(|v| g.add_output(v, None));
    let feeds = Tensors::from([("x".to_string(), floats(DType::F16, &[3, 4], &random.normals(12)))]);
    let before = open(&emit(&g)).unwrap().run(&feeds).unwrap();
    let nodes: Vec<_> = g.topological_order().into_iter().filter(|n| g.op(*n).is_some()).collect();
    assert_eq!(widen::compute_in_float32(&mut g, &nodes), 5);
    verified(&g, verify::Stage::Open, "widened");
    let after = open(&emit(&g)).unwrap().run(&feeds).unwrap();
    assert!(after.values().all(|t| t.dtype() == DType::F16));
    same(&before, &after, 2e-3, "widened");
}

#[test]
fn routing_keeps_the_function_at_one_hot() {
    for seed in 0..40 {
        let mut random = Random(seed);
        let plan = Plan::random(&mut random);
        let what = format!("seed {seed}, {plan:?}");
        let g = network(&plan, seed);
        verified(&g, verify::Stage::Open, &what);
        let feeds = data(&plan, &mut random);
        let reference = outputs(&g, &feeds);
        let structure = find_residuals(&g);
        let blocks: Vec<usize> = structure.chains.iter().map(|c| c.joins.len()).collect();
        assert_eq!(blocks, plan.chains, "{what}");
        for rule in RULES {
            for normalize in NORMALIZATIONS {
                let o = options(Form::Reassign, rule, normalize, 0.01);
                let mut routed = g.clone();
                let routers = route(&mut routed, &structure.chains, &o);
                assert_eq!(routers.len(), plan.chains.iter().filter(|k| **k > 1).count(), "{what}");
                verified(&routed, verify::Stage::Open, &what);
                if matches!(rule, Rule::Gated | Rule::Free) {
                    // They start at one-hot.
                    same(&reference, &outputs(&routed, &feeds), 2e-6, &format!("{what}, {rule:?} at its start"));
                }
                for r in &routers {
                    let (matrix, gate) = one_hot_parameters(r.blocks(), 0, &o);
                    let k = r.blocks() as i64;
                    routed.set_initializer(r.logits, Tensor::f32s(&[k, k], &matrix), false);
                    if let Some(v) = r.gate {
                        routed.set_initializer(v, Tensor::f32s(&[k], &gate), false);
                    }
                }
                same(&reference, &outputs(&routed, &feeds), 2e-6, &format!("{what}, {rule:?} {normalize:?} at one-hot"));
                let mut lowered = routed;
                lower_routes::lower_routes(&mut lowered, &CPU, None).unwrap();
                verified(&lowered, verify::Stage::Open, &format!("lower-routes, {what}"));
                eliminate::eliminate_dead(&mut lowered, |_, _| false);
                verified(&lowered, verify::Stage::Legal, &format!("eliminate-dead, {what}"));
            }
        }
    }
}

#[test]
fn augmenting_without_routes_keeps_the_function() {
    for seed in 0..10 {
        let mut random = Random(seed);
        let plan = Plan::random(&mut random);
        let g = network(&plan, seed);
        let feeds = data(&plan, &mut random);
        let reference = outputs(&g, &feeds);
        // With the parametrisation `free` and all weights zero nothing is added.
        let o = options(Form::Augment, Rule::Free, Normalize::Incoming, 0.01);
        let mut routed = g.clone();
        let routers = route(&mut routed, &find_residuals(&g).chains, &o);
        for r in &routers {
            let k = r.blocks();
            routed.set_initializer(r.logits, Tensor::f32s(&[k as i64, k as i64], &vec![0.0; k * k]), false);
        }
        verified(&routed, verify::Stage::Open, "augment");
        same(&reference, &outputs(&routed, &feeds), 1e-6, &format!("seed {seed}, {plan:?}"));
    }
}

#[test]
fn folding_keeps_the_function() {
    for name in ["mlp", "llama", "resnet"] {
        for exporter in [Exporter::First, Exporter::Second] {
            let family = Family::open(name, exporter);
            let (mut g, _) = read_model(&family.model()).unwrap();
            engine::find_types(&mut g);
            let before = outputs(&g, &family.data());
            let nodes = g.op_count();
            let folded = fold::fold_constants(&mut g);
            verified(&g, verify::Stage::Open, "fold-constants");
            eliminate::eliminate_dead(&mut g, |_, _| false);
            assert!(g.op_count() + folded <= nodes + folded, "{name}");
            same(&before, &outputs(&g, &family.data()), 0.0, name);
            // What is folded once has nothing left to fold.
            assert_eq!(fold::fold_constants(&mut g), 0, "{name}: a second run folds more");
        }
    }
}

#[test]
fn separating_keeps_the_function() {
    for name in ["mlp", "llama", "resnet"] {
        let family = Family::open(name, Exporter::Second);
        let (mut g, _) = read_model(&family.model()).unwrap();
        engine::find_types(&mut g);
        let before = outputs(&g, &family.data());
        separate::separate_parameters(&mut g);
        verified(&g, verify::Stage::Open, "separate-parameters");
        same(&before, &outputs(&g, &family.data()), 0.0, name);
    }
}

#[test]
fn tying_keeps_the_function() {
    let (mut g, _) = read_model(&model("gpt2")).unwrap();
    engine::find_types(&mut g);
    let inputs = random_inputs(&g, &sizes(&g, &Sizes::new())[0], 3).unwrap();
    let before = open(&emit(&g)).unwrap().run(&inputs).unwrap();
    let ties = tie::find_ties(&g);
    assert_eq!(ties.len(), 1);
    Ties(ties.clone()).write(&mut g);
    assert_eq!(tie::tie_parameters(&mut g).unwrap(), ties);
    verified(&g, verify::Stage::Open, "tie-parameters");
    same(&before, &open(&emit(&g)).unwrap().run(&inputs).unwrap(), 1e-6, "tied");
}

#[test]
fn eliminating_keeps_the_function() {
    let mut random = Random(5);
    let plan = Plan::of(3);
    let mut g = network(&plan, 5);
    let feeds = data(&plan, &mut random);
    let before = outputs(&g, &feeds);
    let nodes = g.node_count();
    // A dead chain of three, and a dead initializer.
    let x = g.find("x").unwrap();
    let mut at = x;
    for _ in 0..3 {
        let ty = g.value(at).ty.clone();
        let node = g.add_op("", Op::new("Tanh", Attrs::new()), &[Some(at)]);
        at = g.push_result(node, "dead", ty);
    }
    g.add_initializer("unread", Tensor::f32s(&[2], &[1.0, 2.0]), false);
    assert_eq!(eliminate::eliminate_dead(&mut g, |_, _| false), 4);
    assert_eq!(g.node_count(), nodes);
    verified(&g, verify::Stage::Legal, "eliminate-dead");
    same(&before, &outputs(&g, &feeds), 0.0, "eliminate-dead");
    assert_eq!(eliminate::eliminate_dead(&mut g, |_, _| false), 0, "a second run removes more");
}

#[test]
fn a_training_graph_extends_the_forward_graph() {
    for seed in 0..12 {
        let mut random = Random(100 + seed);
        let plan = Plan::random(&mut random);
        let form = FORMS[random.below(2)];
        let o = options(form, RULES[random.below(4)], NORMALIZATIONS[random.below(2)], 0.1);
        let what = format!("seed {seed}, {plan:?}, {o:?}");
        let mut g = network(&plan, seed);
        let chains = find_residuals(&g).chains;
        let routers = route(&mut g, &chains, &o);
        randomise(&mut g, &routers, &o, &mut random);
        let mut feeds = data(&plan, &mut random);
        let reference = outputs(&g, &feeds);
        let y = reference["y"].clone();
        let check = |g: &Graph, feeds: &Tensors, pass: &str| {
            verified(g, verify::Stage::Open, &format!("{pass}, {what}"));
            // tract fuses operators differently where results have more readers.
            same(&reference, &outputs(g, feeds), 1e-5, &format!("{pass}, {what}"));
        };

        let output = g.find("y").unwrap();
        let loss = append_loss(&mut g, output, &LossOptions::of(LossKind::Mse)).unwrap();
        g.add_output(loss.value, None);
        feeds.insert("target".into(), floats(DType::F32, y.shape(), &random.normals(y.len())));
        check(&g, &feeds, "append-loss");

        let mut wrt: Vec<ValueId> = routers.iter().flat_map(|r| [Some(r.logits), r.gate]).flatten().collect();
        wrt.extend(g.nodes().map(|n| g.result(n, 0)).filter(|v| g.name(*v).ends_with(".weight")));
        let gradients = differentiate(&mut g, &CPU, loss.value, &wrt).unwrap();
        check(&g, &feeds, "differentiate");

        let trained: Vec<Trained> = gradients
            .iter()
            .map(|(value, gradient)| Trained { value: *value, gradient: *gradient, kind: StateKind::Parameter })
            .collect();
        let update =
            append_optimizer(&mut g, loss.value, &trained, &OptimizerOptions::of(OptimizerKind::Sgd), None, &CPU).unwrap();
        assert!(trained.len() == wrt.len() && update.states.len() >= trained.len(), "{what}");
        for s in update.states.iter().filter_map(|s| s.next) {
            g.add_output(s, None);
        }
        feeds.insert("lr".into(), floats(DType::F32, &[], &[0.1]));
        check(&g, &feeds, "append-optimizer");
    }
}

// ---- the router -------------------------------------------------------------------------------------------------------

/// The weights of a router by the formulas, written down a second time: `w[row][column]`.
fn weights(logits: &[f64], gate: Option<&[f64]>, k: usize, o: &RouteOptions) -> Vec<Vec<f64>> {
    let c = |row: usize, column: usize| logits[row * k + column];
    let soft = |row: usize, column: usize| {
        let e = |r: usize, i: usize| (c(r, i) / o.tau as f64).exp();
        let total: f64 = match o.normalize {
            Normalize::Incoming => (0..=row).map(|i| e(row, i)).sum(),
            Normalize::Outgoing => (column..k).map(|r| e(r, column)).sum(),
        };
        e(row, column) / total
    };
    let weight = |row: usize, column: usize| {
        let hot = if row == column { 1.0 } else { 0.0 };
        match o.rule {
            Rule::Free | Rule::Constant => c(row, column),
            Rule::Softmax => soft(row, column),
            Rule::Gated if row == 0 => hot,
            Rule::Attention => unreachable!("its weights depend on the states: rules.rs"),
            Rule::Gated => hot + gate.unwrap()[row] * (soft(row, column) - hot),
        }
    };
    (0..k).map(|row| (0..=row).map(|column| weight(row, column)).collect()).collect()
}

#[test]
fn routes_are_the_weighted_sums_of_the_formulas() {
    for k in [2, 3, 5, 9, 17] {
        for form in FORMS {
            for rule in RULES {
                for normalize in NORMALIZATIONS {
                    let o = options(form, rule, normalize, 0.01);
                    let what = format!("K = {k}, {form:?}, {rule:?}, {normalize:?}");
                    let mut random = Random(k as u64);
                    let plan = Plan { sequence: k % 2 == 0, normed: true, ..Plan::of(k) };
                    let mut g = network(&plan, 1);
                    let chains = find_residuals(&g).chains;
                    let routers = route(&mut g, &chains, &o);
                    if rule != Rule::Constant {
                        randomise(&mut g, &routers, &o, &mut random);
                    }
                    let [r] = &routers[..] else { panic!("{what}: {} routers", routers.len()) };
                    let read = |v: ValueId| g.initializer(v).unwrap().to_f64().unwrap();
                    let (logits, gate) = (read(r.logits), r.gate.map(read));
                    let w = weights(&logits, gate.as_deref(), k, &o);
                    if rule == Rule::Constant && normalize == Normalize::Incoming {
                        let uniform = |row: &Vec<f64>| row.iter().all(|v| (v - 1.0 / row.len() as f64).abs() < 1e-7);
                        assert!(w.iter().all(uniform), "{what}");
                    }
                    for v in r.states.iter().chain(r.rows.iter().map(|(_, v)| v)) {
                        g.add_output(*v, None);
                    }
                    let values = outputs(&g, &data(&plan, &mut random));
                    // Rows that need no operator are the first state itself.
                    assert!(r.rows.len() >= k - 1, "{what}");
                    for (row, route) in &r.rows {
                        let got = values[g.name(*route)].to_f64();
                        let mut want = vec![0.0; got.len()];
                        for (column, w) in w[*row].iter().enumerate() {
                            let state = values[g.name(r.states[column])].to_f64();
                            want.iter_mut().zip(state).for_each(|(x, h)| *x += w * h);
                        }
                        let largest = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
                        let error = max_abs(&got, &want) / largest;
                        assert!(error < 3e-6, "{what}: row {row} is off by {error:.2e}");
                    }
                }
            }
        }
    }
}

#[test]
fn router_gradients_are_the_derivatives() {
    // With so high a temperature the softmax is smooth over a step; float32 leaves about 1e-7 / 2e-2 of noise.
    const TAU: f32 = 0.5;
    const STEP: f64 = 2e-2;
    const TOLERANCE: f64 = 2e-3;
    for k in [2, 3, 5, 9, 17] {
        for form in FORMS {
            for rule in [Rule::Softmax, Rule::Gated, Rule::Free] {
                for normalize in NORMALIZATIONS {
                    let o = options(form, rule, normalize, TAU);
                    let what = format!("K = {k}, {form:?}, {rule:?}, {normalize:?}");
                    let mut random = Random(k as u64);
                    let plan = Plan { sequence: true, normed: true, smooth: true, ..Plan::of(k) };
                    let mut g = network(&plan, 1);
                    let chains = find_residuals(&g).chains;
                    let routers = route(&mut g, &chains, &o);
                    randomise(&mut g, &routers, &o, &mut random);
                    let (loss, optimizer) = (LossOptions::of(LossKind::Mse), OptimizerOptions::of(OptimizerKind::None));
                    let options = {
                        let mut made = TrainingOptions::of(loss, optimizer);
                        made.grad_outputs = true;
                        made
                    };
                    let training = PassManager::default().training_graph(g, &options);
                    let training = training.unwrap().graph;
                    let mut session = open(&emit(&training)).unwrap();
                    let mut feeds = data(&plan, &mut random);
                    feeds.insert("target".into(), floats(DType::F32, &[2, 3, 5], &random.normals(30)));
                    let got = session.run(&feeds).unwrap();
                    let names: Vec<&str> = ["ancre.0.logits", "ancre.0.gate"]
                        .into_iter()
                        .filter(|n| got.contains_key(&format!("{n}.grad")))
                        .collect();
                    assert_eq!(names.len(), if rule == Rule::Gated { 2 } else { 1 }, "{what}");
                    for name in names {
                        let start = training.initializer(training.find(name).unwrap()).unwrap().to_f64().unwrap();
                        let have = got[&format!("{name}.grad")].to_f64();
                        let largest = have.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
                        // Here r_1 = p h_0 and r_2 = (1 − p) h_0 + h_1, where h_1 is r_1 and a branch that normalises it: p cancels.
                        let cancels = (k, form, rule, normalize) == (2, Form::Input, Rule::Softmax, Normalize::Outgoing);
                        assert!((largest > 1e-4) != cancels, "{what}: the gradient of {name} is {largest}");
                        let shape: Vec<usize> = if start.len() == k { vec![k] } else { vec![k, k] };
                        // All entries of small routers, some of the larger ones'.
                        let stride = start.len().div_ceil(45);
                        for i in (0..start.len()).step_by(stride) {
                            let mut loss = |sign: f64| {
                                let mut moved = start.clone();
                                moved[i] += sign * STEP;
                                let mut feeds = feeds.clone();
                                feeds.insert(name.into(), floats(DType::F32, &shape, &moved));
                                session.run(&feeds).unwrap()["loss"].to_f64()[0]
                            };
                            // Exact up to the fifth derivative.
                            let (near, far) = (loss(1.0) - loss(-1.0), loss(2.0) - loss(-2.0));
                            let want = (8.0 * near - far) / (12.0 * STEP);
                            let error = (have[i] - want).abs() / largest.max(1e-2);
                            assert!(
                                error < TOLERANCE,
                                "{what}: gradient of {name}[{i}] is {}, differences give {want}",
                                have[i]
                            );
                            if shape.len() == 2 && i % k > i / k {
                                assert_eq!(have[i], 0.0, "{what}: an unused entry has a gradient");
                            }
                        }
                    }
                }
            }
        }
    }
}
