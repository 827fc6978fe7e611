//! The router beyond one chain: network scope, old operator sets, files of logits, names that are taken.

use crate::common::{Random, emit, floats, max_abs, open, route, text, tool, tool_ok, write_npz};
use ancre_passes::analysis::residual::find_residuals;
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Tensor, TensorType, ValueId};
use ancre_passes::ops::build::Builder;
use ancre_passes::pipeline::training::TrainingOptions;
use ancre_passes::pipeline::{self, PassManager};
use ancre_passes::transform::loss::{LossKind, LossOptions};
use ancre_passes::transform::optimizer::{OptimizerKind, OptimizerOptions};
use ancre_passes::transform::route::{
    ChainChoice, Form, Granularity, Init, Normalize, RouteOptions, RouterSpec, Rule, Scope, one_hot_parameters,
};
use ancre_passes::verify;
use ancre_rewrite::engine::{self, Session, Tensors};
use ancre_rewrite::io::files::read_model;
use onnx_protobuf::{Message, ModelProto};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

// ---- a small convolutional network ------------------------------------------------------------------------------------

/// Blocks, width and extent of each chain: the second chain pools by 2 and pads, the third pools by 4 and 2 and truncates.
const CHAINS: [(usize, i64, i64); 3] = [(6, 4, 8), (1, 7, 4), (2, 3, 2)];

struct Net<'g> {
    b: Builder<'g>,
    random: Random,
}

impl Net<'_> {
    fn conv(&mut self, x: ValueId, from: i64, to: i64, stride: i64, name: &str) -> ValueId {
        let deviation = 1.0 / (from as f64 * 9.0).sqrt();
        let values: Vec<f64> = self.random.normals((to * from * 9) as usize).iter().map(|v| v * deviation).collect();
        let w = Tensor::floats(DType::F32, &[to, from, 3, 3], &values);
        let w = self.b.graph.add_initializer(&format!("{name}.weight"), w, false);
        let attrs = Attrs::new()
            .with("kernel_shape", vec![3, 3])
            .with("pads", vec![1, 1, 1, 1])
            .with("strides", vec![stride, stride]);
        self.b.op_with("Conv", attrs, &[x, w]).unwrap()
    }
}

/// Three chains of smooth convolutional blocks between strided convolutions. `aux` is read off the middle of the first chain.
fn conv_net(opset: i64, batch: Dim) -> Graph {
    let mut g = Graph::default();
    g.opsets.insert(String::new(), opset);
    let dims = [batch, Dim::from(3), Dim::from(8), Dim::from(8)];
    let x = g.add_input("x", TensorType::new(DType::F32, dims).into(), None);
    let mut n = Net { b: Builder::new(&mut g, "stem"), random: Random(7) };
    let (mut h, mut width, mut extent) = (x, 3, 8);
    let mut aux = x;
    for (c, (blocks, to, size)) in CHAINS.into_iter().enumerate() {
        n.b.prefix = format!("down{c}");
        h = n.conv(h, width, to, extent / size, &format!("down{c}"));
        h = n.b.op("Tanh", &[h]).unwrap();
        (width, extent) = (to, size);
        for k in 0..blocks {
            let name = format!("chain{c}.block{k}");
            n.b.prefix = name.clone();
            let f = n.conv(h, width, width, 1, &name);
            let f = n.b.op("Tanh", &[f]).unwrap();
            h = n.b.add(h, f).unwrap();
            if (c, k) == (0, 2) {
                aux = h;
            }
        }
    }
    for (name, h, width) in [("y", h, width), ("aux", aux, CHAINS[0].1)] {
        n.b.prefix = format!("head.{name}");
        let pooled = n.b.op("GlobalAveragePool", &[h]).unwrap();
        let flat = n.b.op_with("Flatten", Attrs::new().with("axis", 1), &[pooled]).unwrap();
        let values = n.random.normals((width * 5) as usize);
        let w = n.b.graph.add_initializer(
            &format!("head.{name}.weight"),
            Tensor::floats(DType::F32, &[width, 5], &values),
            false,
        );
        let bias =
            n.b.graph.add_initializer(&format!("head.{name}.bias"), Tensor::floats(DType::F32, &[5], &[0.1; 5]), false);
        let out = n.b.op("Gemm", &[flat, w, bias]).unwrap();
        n.b.graph.rename(out, name);
        n.b.graph.add_output(out, None);
    }
    g
}

/// `net.onnx` in a folder.
fn folder(opset: i64) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("net.onnx");
    std::fs::write(&model, emit(&conv_net(opset, Dim::symbol("batch")))).unwrap();
    (dir, model)
}

/// The network as a file gives it, with types: its nodes are a source's.
fn loaded(opset: i64) -> Graph {
    let (_dir, model) = folder(opset);
    let (mut g, _) = read_model(&model).unwrap();
    engine::find_types(&mut g);
    g
}

fn options(form: Form, rule: Rule, scope: Scope, normalize: Normalize, tau: f32) -> RouteOptions {
    let init = if rule == Rule::Free { Init::Identity } else { Init::Uniform };
    let mut made = RouteOptions::default();
    made.form = form;
    made.granularity = Granularity::Add;
    made.scope = scope;
    made.rule = rule;
    made.normalize = normalize;
    made.init = init;
    made.tau = tau;
    made.chains = ChainChoice::All;
    made
}

fn feeds(random: &mut Random) -> Tensors {
    Tensors::from([("x".to_string(), floats(DType::F32, &[2, 3, 8, 8], &random.normals(2 * 3 * 64)))])
}

fn run_tract(g: &Graph, feeds: &Tensors) -> Tensors {
    engine::tract().load(&emit(g), None).unwrap().run(feeds).unwrap()
}

fn same(a: &Tensors, b: &Tensors, tolerance: f64, what: &str) {
    for (name, a) in a {
        let error = max_abs(&a.to_f64(), &b[name].to_f64());
        assert!(error <= tolerance, "{what}: `{name}` is off by {error:.2e}");
    }
}

fn set_one_hot(g: &mut Graph, routers: &[RouterSpec], o: &RouteOptions) {
    for r in routers {
        let (matrix, gate) = one_hot_parameters(r.blocks(), r.sources.len(), o);
        let (k, width) = (r.blocks() as i64, (r.blocks() + r.sources.len()) as i64);
        g.set_initializer(r.logits, Tensor::f32s(&[k, width], &matrix), false);
        if let Some(v) = r.gate {
            g.set_initializer(v, Tensor::f32s(&[k], &gate), false);
        }
    }
}

/// Random logits and gates, far from one-hot.
fn randomise(g: &mut Graph, routers: &[RouterSpec], random: &mut Random, spread: f64) {
    for r in routers {
        let width = r.blocks() + r.sources.len();
        let used = |i: usize| i % width <= r.sources.len() + i / width;
        let values: Vec<f64> =
            (0..r.blocks() * width).map(|i| if used(i) { spread * random.normal() } else { 0.0 }).collect();
        g.set_initializer(r.logits, Tensor::floats(DType::F32, &[r.blocks() as i64, width as i64], &values), false);
        if let Some(v) = r.gate {
            let values: Vec<f64> = (0..r.blocks()).map(|_| 0.2 + 0.6 * random.unit()).collect();
            g.set_initializer(v, Tensor::floats(DType::F32, &[r.blocks() as i64], &values), false);
        }
    }
}

// ---- every operator set -----------------------------------------------------------------------------------------------

#[test]
fn a_route_is_lowered_for_every_operator_set() {
    for opset in [9, 10, 11, 12, 13, 17, 18, 21] {
        let g = loaded(opset);
        let mut random = Random(3);
        let feeds = feeds(&mut random);
        let reference = run_tract(&g, &feeds);
        let chains = find_residuals(&g).chains;
        assert_eq!(chains.iter().map(|c| c.joins.len()).collect::<Vec<_>>(), CHAINS.map(|c| c.0));
        let cases = [
            (Rule::Gated, Scope::Network, Normalize::Incoming),
            (Rule::Softmax, Scope::Network, Normalize::Incoming),
            (Rule::Free, Scope::Network, Normalize::Incoming),
            (Rule::Gated, Scope::Stage, Normalize::Outgoing),
            (Rule::Softmax, Scope::Stage, Normalize::Outgoing),
        ];
        for (rule, scope, normalize) in cases {
            let o = options(Form::Reassign, rule, scope, normalize, 0.01);
            let what = format!("opset {opset}, {rule:?}, {scope:?}, {normalize:?}");
            let mut routed = g.clone();
            let routers = route(&mut routed, &chains, &o);
            let sources: Vec<usize> = routers.iter().map(|r| r.sources.len()).collect();
            assert_eq!(sources, if scope == Scope::Network { vec![0, 7, 9] } else { vec![0, 0] }, "{what}");
            set_one_hot(&mut routed, &routers, &o);
            pipeline::lower_forward(&mut routed).unwrap();
            verify::verify(&routed, verify::Stage::Legal).unwrap_or_else(|e| panic!("{what}: {}", e.join("; ")));
            assert_eq!(routed.opsets[""], opset, "{what}: the forward graph keeps its operator set");
            same(&reference, &run_tract(&routed, &feeds), 2e-6, &what);
            let of_ort = open(&emit(&routed)).unwrap_or_else(|e| panic!("{what}: {e}")).run(&feeds).unwrap();
            same(&reference, &of_ort, 1e-5, &format!("{what} in ONNX Runtime"));
        }
    }
}

#[test]
fn the_router_s_values_are_declared() {
    let (dir, model) = folder(13);
    tool_ok(&[text(&model), "--no-train".into(), "--scope".into(), "network".into(), "--verify".into(), "none".into()]);
    let bytes = std::fs::read(dir.path().join("net.ancre.onnx")).unwrap();
    let model = ModelProto::parse_from_bytes(&bytes).unwrap();
    let declared = |name: &str| model.graph.value_info.iter().find(|v| v.name == name).cloned();
    for name in ["ancre/0/route_2", "ancre/1/source_0", "ancre/1/source_0/AveragePool", "ancre/2/route_1", "ancre/2/weights"]
    {
        let info = declared(name).unwrap_or_else(|| panic!("`{name}` is not declared"));
        let shape = info.type_.tensor_type().shape.clone().unwrap();
        if shape.dim.len() == 4 {
            assert_eq!(shape.dim[0].dim_param(), "batch", "the batch of `{name}` stays dynamic");
        }
    }
}

// ---- network scope ----------------------------------------------------------------------------------------------------

#[test]
fn network_rows_are_weighted_sums_of_pooled_and_fitted_states() {
    for (form, rule) in [(Form::Reassign, Rule::Softmax), (Form::Reassign, Rule::Gated), (Form::Augment, Rule::Softmax)] {
        let what = format!("{form:?}, {rule:?}");
        let o = options(form, rule, Scope::Network, Normalize::Incoming, 0.5);
        let mut g = loaded(18);
        let mut random = Random(4);
        let feeds = feeds(&mut random);
        let chains = find_residuals(&g).chains;
        let routers = route(&mut g, &chains, &o);
        randomise(&mut g, &routers, &mut random, 0.5);
        for r in &routers {
            for v in r.sources.iter().map(|s| &s.state).chain(&r.states).chain(r.rows.iter().map(|(_, v)| v)) {
                if !g.is_output(*v) {
                    g.add_output(*v, None);
                }
            }
        }
        let read = |v: ValueId| g.initializer(v).unwrap().to_f64().unwrap();
        let parameters: Vec<(Vec<f64>, Option<Vec<f64>>)> =
            routers.iter().map(|r| (read(r.logits), r.gate.map(read))).collect();
        let name = |v: &ValueId| g.name(*v).to_string();
        let names: Vec<(Vec<String>, Vec<String>)> = routers
            .iter()
            .map(|r| (r.sources.iter().map(|s| name(&s.state)).collect(), r.states.iter().map(name).collect()))
            .collect();
        let rows: Vec<Vec<(usize, String)>> =
            routers.iter().map(|r| r.rows.iter().map(|(row, v)| (*row, name(v))).collect()).collect();
        let mut lowered = g.clone();
        pipeline::lower_forward(&mut lowered).unwrap();
        let values = run_tract(&lowered, &feeds);
        for (i, (sources, states)) in names.iter().enumerate() {
            let shape = values[&states[0]].shape().to_vec();
            let columns: Vec<Vec<f64>> = sources.iter().chain(states).map(|s| fitted(&values, s, &shape)).collect();
            let (logits, gate) = &parameters[i];
            let width = columns.len() - 1;
            for (row, route) in &rows[i] {
                let n = sources.len() + row + 1;
                let e: Vec<f64> = (0..n).map(|c| (logits[row * width + c] / 0.5).exp()).collect();
                let total: f64 = e.iter().sum();
                let mut want = vec![0.0; columns[0].len()];
                for c in 0..n {
                    let hot = if c + 1 == n { 1.0 } else { 0.0 };
                    let a = gate.as_ref().map_or(1.0, |g| g[*row]);
                    let w = hot + a * (e[c] / total - hot);
                    want.iter_mut().zip(&columns[c]).for_each(|(x, h)| *x += w * h);
                }
                let error = max_abs(&values[route].to_f64(), &want);
                assert!(error < 5e-6, "{what}: {route} is off by {error:.2e}");
            }
        }
    }
}

/// A state averaged over windows and with channels cut or filled with zeros, written down a second time.
fn fitted(values: &Tensors, name: &str, shape: &[usize]) -> Vec<f64> {
    let (state, from) = (values[name].to_f64(), values[name].shape().to_vec());
    let (rh, rw) = (from[2] / shape[2], from[3] / shape[3]);
    let mut out = Vec::new();
    for n in 0..shape[0] {
        for c in 0..shape[1] {
            for y in 0..shape[2] {
                for x in 0..shape[3] {
                    let mut sum = 0.0;
                    if c < from[1] {
                        for dy in 0..rh {
                            for dx in 0..rw {
                                sum += state[((n * from[1] + c) * from[2] + y * rh + dy) * from[3] + x * rw + dx];
                            }
                        }
                    }
                    out.push(sum / (rh * rw) as f64);
                }
            }
        }
    }
    out
}

#[test]
fn network_scope_s_gradients_are_the_derivatives() {
    const STEP: f64 = 2e-2;
    for (rule, output) in [(Rule::Softmax, "y"), (Rule::Gated, "y"), (Rule::Free, "y"), (Rule::Gated, "aux")] {
        let what = format!("{rule:?}, loss on {output}");
        let o = options(Form::Reassign, rule, Scope::Network, Normalize::Incoming, 0.5);
        let mut g = loaded(18);
        let mut random = Random(5);
        let chains = find_residuals(&g).chains;
        let routers = route(&mut g, &chains, &o);
        randomise(&mut g, &routers, &mut random, 0.3);
        let (loss, optimizer) = (LossOptions::of(LossKind::Mse), OptimizerOptions::of(OptimizerKind::None));
        let training = {
            let mut made = TrainingOptions::of(loss, optimizer);
            made.output = Some(output.into());
            made.grad_outputs = true;
            made
        };
        let training = PassManager::default().training_graph(g, &training).unwrap().graph;
        let mut session = open(&emit(&training)).unwrap();
        let mut feeds = feeds(&mut random);
        feeds.insert("target".into(), floats(DType::F32, &[2, 5], &random.normals(10)));
        let got = session.run(&feeds).unwrap();
        let names: Vec<String> = got
            .keys()
            .filter_map(|n| n.strip_suffix(".grad").filter(|n| n.starts_with("ancre.")).map(str::to_string))
            .collect();
        let wanted = (if output == "y" { 3 } else { 1 }) * (if rule == Rule::Gated { 2 } else { 1 });
        assert_eq!(names.len(), wanted, "{what}: {names:?}");
        for name in &names {
            let start = training.initializer(training.find(name).unwrap()).unwrap();
            let shape: Vec<usize> = start.dims().iter().map(|d| *d as usize).collect();
            let start = start.to_f64().unwrap();
            let have = got[&format!("{name}.grad")].to_f64();
            let largest = have.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            assert!(largest > 1e-5, "{what}: the gradient of {name} vanishes");
            for i in 0..start.len() {
                let mut loss = |sign: f64| {
                    let mut moved = start.clone();
                    moved[i] += sign * STEP;
                    let mut feeds = feeds.clone();
                    feeds.insert(name.clone(), floats(DType::F32, &shape, &moved));
                    session.run(&feeds).unwrap()["loss"].to_f64()[0]
                };
                let (near, far) = (loss(1.0) - loss(-1.0), loss(2.0) - loss(-2.0));
                let want = (8.0 * near - far) / (12.0 * STEP);
                let error = (have[i] - want).abs();
                assert!(
                    error < 3e-3 * largest.max(1e-2),
                    "{what}: gradient of {name}[{i}] is {}, differences give {want}",
                    have[i]
                );
            }
        }
    }
}

/// Runs the tool on a model; the report.
fn report(model: &Path, more: &[&str]) -> Value {
    tool_ok(&[&[model.to_str().unwrap(), "--json"], more].concat()).json()
}

#[test]
fn network_scope_is_reported_recorded_and_frozen() {
    let (dir, model) = folder(17);
    let said = report(&model, &["--scope", "network", "--no-train"]);
    let router = &said["router"];
    assert_eq!(router["scope"], "network");
    // 6 own states; 7 + 1; 9 + 1 and 9 + 2.
    assert_eq!(router["coefficients"], 21 + 8 + 21);
    assert_eq!(router["gates"], 5 + 1 + 2);
    let counts: Vec<(i64, i64)> =
        router["chains"].as_array().unwrap().iter().map(|c| (c["K"].as_i64().unwrap(), c["S"].as_i64().unwrap())).collect();
    assert_eq!(counts, [(6, 0), (1, 7), (2, 9)]);
    assert_eq!(said["verify"]["one_hot"]["max_abs"], 0.0);
    assert_eq!(said["verify"]["emitted"]["max_abs"], 0.0);

    let file = dir.path().join("logits.npz");
    let mut random = Random(6);
    let mut arrays = Vec::new();
    for (id, (k, s)) in [(6, 0), (1, 7), (2, 9)].into_iter().enumerate() {
        let n: usize = k * (s + k);
        let logits = random.normals(n).iter().map(|v| 0.01 * *v as f32).collect();
        arrays.push((format!("ancre.{id}.logits"), vec![k, s + k], logits));
        arrays.push((format!("ancre.{id}.gate"), vec![k], random.normals(k).iter().map(|v| *v as f32).collect()));
    }
    write_npz(&file, &arrays);
    let init = format!("file:{}", text(&file));
    for more in [&["--scope", "network", "--init", &init][..], &["--scope", "network", "--form", "augment"]] {
        report(&model, &[more, &["--no-train"]].concat());
        let forward = dir.path().join("net.ancre.onnx");
        tool_ok(&["freeze", forward.to_str().unwrap()]);
        let run = |path: &Path| {
            let (g, _) = read_model(path).unwrap();
            run_tract(&g, &feeds(&mut Random(8)))
        };
        same(&run(&forward), &run(&dir.path().join("net.frozen.onnx")), 5e-6, "frozen");
    }
}

#[test]
fn states_that_cannot_be_brought_to_a_shape_are_reported() {
    // Rank 3: no channels and no spatial axes.
    let plan = crate::common::nets::Plan { chains: vec![2, 2], sequence: true, ..crate::common::nets::Plan::of(2) };
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("net.onnx");
    std::fs::write(&model, emit(&crate::common::nets::network(&plan, 1))).unwrap();
    let said = report(&model, &["--scope", "network", "--no-train"]);
    assert_eq!(said["router"]["coefficients"], 6);
    let note = said["router"]["chains"][1]["note"].as_str().unwrap();
    assert!(note.starts_with("3 of 3 earlier states cannot be brought to f32[batch,3,8]"), "{note}");
    let refused = tool(&[text(&model), "--scope".into(), "network".into(), "--normalize".into(), "outgoing".into()]);
    assert_eq!(refused.status, 2);
    assert!(refused.err.contains("--normalize incoming"), "{}", refused.err);
}
