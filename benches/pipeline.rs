//! How long each step takes, over the models of `models/` and over residual networks of growing depth K.
//!
//! `cargo bench --bench pipeline` measures; the last column of a depth's rows should grow with K, except that the router itself has
//! K²/2 pairs (`route_and_lower`, `training`). `cargo bench --bench pipeline -- residuals` runs one step only.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod nets;

use ancre_passes::analysis::residual::find_residuals;
use ancre_passes::ir::{Graph, SharedBytes};
use ancre_passes::pipeline::PassManager;
use ancre_passes::pipeline::training::TrainingOptions;
use ancre_passes::target::CPU;
use ancre_passes::transform::loss::{LossKind, LossOptions};
use ancre_passes::transform::lower_routes::{Lowering, lower_routes};
use ancre_passes::transform::optimizer::{OptimizerKind, OptimizerOptions};
use ancre_passes::transform::route::{
    ChainChoice, Form, Granularity, Init, Normalize, RouteOptions, Rule, Scope, route_skips,
};
use ancre_passes::{onnx, pipeline};
use ancre_rewrite::engine;
use ancre_rewrite::engine::Tensors;
use ancre_rewrite::io::files;
use ancre_rewrite::io::tensor::NpTensor;
use divan::counter::ItemsCount;
use divan::{Bencher, black_box};
use std::fmt;
use std::path::{Path, PathBuf};

fn main() {
    divan::main();
}

/// What is measured: a file, or a network of K blocks.
#[derive(Clone)]
enum Case {
    Model(PathBuf),
    Mlp(usize),
    PreLn(usize),
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Case::Model(path) => f.write_str(&path.file_stem().unwrap_or_default().to_string_lossy()),
            Case::Mlp(k) => write!(f, "mlp K={k}"),
            Case::PreLn(k) => write!(f, "pre-ln K={k}"),
        }
    }
}

fn cases() -> Vec<Case> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let files = std::fs::read_dir(models).unwrap().map(|e| e.unwrap().path());
    let mut files: Vec<PathBuf> = files.filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    files.sort();
    let depths = [8, 64, 256, 1024];
    let models = files.into_iter().map(Case::Model);
    models.chain(depths.map(Case::Mlp)).chain(depths.map(Case::PreLn)).collect()
}

impl Case {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Case::Model(path) => std::fs::read(path).unwrap(),
            Case::Mlp(k) => onnx::emit(&nets::residual_mlp(*k).unwrap()).unwrap().to_bytes().unwrap(),
            Case::PreLn(k) => onnx::emit(&nets::pre_ln(*k).unwrap()).unwrap().to_bytes().unwrap(),
        }
    }

    fn imported(&self) -> Graph {
        let path = if let Case::Model(path) = self { path.as_path() } else { Path::new("synthetic.onnx") };
        files::parse_model(&SharedBytes::new(self.bytes()), path).unwrap()
    }

    fn typed(&self) -> Graph {
        let mut g = self.imported();
        engine::find_types(&mut g);
        g
    }

    fn routed(&self) -> Graph {
        let mut g = self.typed();
        let chains = find_residuals(&g).chains;
        route_skips(&mut g, &chains, &route_options()).unwrap();
        g
    }
}

fn route_options() -> RouteOptions {
    let mut made = RouteOptions::default();
    made.form = Form::Reassign;
    made.granularity = Granularity::Add;
    made.rule = Rule::Gated;
    made.normalize = Normalize::Incoming;
    made.init = Init::Uniform;
    made.tau = 1.0;
    made.scope = Scope::Stage;
    made.chains = ChainChoice::All;
    made
}

fn training_options(g: &Graph) -> TrainingOptions {
    // Any loss does for the time it takes.
    let output = g.outputs().iter().map(|o| o.value).find(|v| g.is_float(*v)).map(|v| g.name(v).to_string());
    let (loss, optimizer) = (LossOptions::of(LossKind::Mse), OptimizerOptions::of(OptimizerKind::AdamW));
    let mut made = TrainingOptions::of(loss, optimizer);
    made.output = output;
    made
}

#[divan::bench(args = cases(), max_time = 2)]
fn import(b: Bencher, case: &Case) {
    let (bytes, path) = (SharedBytes::new(case.bytes()), Path::new("models/model.onnx"));
    b.bench_local(|| files::parse_model(black_box(&bytes), path).unwrap());
}

#[divan::bench(args = cases(), max_time = 2)]
fn find_types(b: Bencher, case: &Case) {
    let g = case.imported();
    b.with_inputs(|| g.clone()).bench_local_refs(engine::find_types);
}

#[divan::bench(args = cases(), max_time = 2)]
fn residuals(b: Bencher, case: &Case) {
    let g = case.typed();
    b.bench_local(|| find_residuals(black_box(&g)));
}

#[divan::bench(args = cases(), max_time = 2)]
fn route_and_lower(b: Bencher, case: &Case) {
    let g = case.typed();
    let chains = find_residuals(&g).chains;
    b.with_inputs(|| g.clone()).bench_local_refs(|g| {
        route_skips(g, &chains, &route_options()).unwrap();
        pipeline::lower_forward(g).unwrap();
    });
}

#[divan::bench(args = cases(), max_time = 2)]
fn training(b: Bencher, case: &Case) {
    let g = case.routed();
    let options = training_options(&g);
    // A few models hold operators without a derivative; how fast that is found counts too.
    b.with_inputs(|| g.clone())
        .bench_local_values(|g| PassManager::default().training_graph(g, &options).map(|t| t.graph).ok());
}

#[divan::bench(args = cases(), max_time = 2)]
fn emit(b: Bencher, case: &Case) {
    let mut g = case.routed();
    pipeline::lower_forward(&mut g).unwrap();
    b.bench_local(|| onnx::emit(black_box(&g)).unwrap().to_bytes().unwrap());
}

/// Everything between a typed model and the two files' bytes. The counter is in nodes written: a thousand nodes a millisecond
/// are 1 Mitem/s.
#[divan::bench(args = cases(), max_time = 2)]
fn emission(b: Bencher, case: &Case) {
    let g = case.typed();
    let chains = find_residuals(&g).chains;
    let options = training_options(&g);
    let run = |mut g: Graph| {
        route_skips(&mut g, &chains, &route_options()).unwrap();
        let training = PassManager::default().training_graph(g.clone(), &options).map(|t| t.graph).ok();
        pipeline::lower_forward(&mut g).unwrap();
        let mut nodes = 0;
        for g in [Some(g), training].into_iter().flatten() {
            nodes += g.op_count();
            black_box(onnx::emit(&g).unwrap().to_bytes().unwrap());
        }
        nodes
    };
    let nodes = run(g.clone());
    b.counter(ItemsCount::new(nodes)).with_inputs(|| g.clone()).bench_local_values(run);
}

/// A router in ONNX Runtime: K rows over states of M floats, by each lowering and without one. What `Lowering::choose` says should
/// be the fastest, or near it, in each column of K.
#[divan::bench(args = lowerings(), max_time = 2)]
fn lowering(b: Bencher, case: &Lowered) {
    let mut g = nets::pooled_chain(case.blocks, case.dims).unwrap();
    let model = match case.by {
        None => onnx::emit(&g).unwrap().to_bytes().unwrap(),
        Some(by) => {
            let chains = find_residuals(&g).chains;
            route_skips(&mut g, &chains, &route_options()).unwrap();
            lower_routes(&mut g, &CPU, by).unwrap();
            onnx::emit(&g).unwrap().to_bytes().unwrap()
        }
    };
    // Without a runtime there is nothing to measure.
    let Ok(runtime) = engine::ort() else { return };
    let mut session = runtime.load(&model, None).unwrap();
    let shape: Vec<usize> = case.dims.iter().map(|n| *n as usize).collect();
    let x = NpTensor::f32s(&shape, &vec![0.01; shape.iter().product()]).unwrap();
    let inputs = Tensors::from([("x".to_string(), x)]);
    b.bench_local(|| session.run(black_box(&inputs)).unwrap());
}

struct Lowered {
    blocks: usize,
    dims: [i64; 4],
    /// `None`: without a router; `Some(None)`: as the tool chooses.
    by: Option<Option<Lowering>>,
    name: &'static str,
}

impl fmt::Display for Lowered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "K={} M={} {}", self.blocks, self.dims.iter().product::<i64>(), self.name)
    }
}

fn lowerings() -> Vec<Lowered> {
    let ways = [
        ("no router", None),
        ("as chosen", Some(None)),
        ("pairs", Some(Some(Lowering::Pairwise))),
        ("blocks of 4", Some(Some(Lowering::Blocks(4, None)))),
        ("blocks of 8", Some(Some(Lowering::Blocks(8, None)))),
        ("blocks of 8, chunks of 4", Some(Some(Lowering::Blocks(8, Some(4))))),
        ("blocks of 16, chunks of 4", Some(Some(Lowering::Blocks(16, Some(4))))),
        ("one block, chunks of 4", Some(Some(Lowering::Blocks(1 << 20, Some(4))))),
    ];
    let sizes =
        [(3, [64, 16, 32, 32]), (8, [2, 256, 8, 64]), (18, [16, 16, 32, 32]), (24, [1, 256, 8, 64]), (64, [1, 64, 4, 64])];
    sizes
        .into_iter()
        .flat_map(|(blocks, dims)| ways.into_iter().map(move |(name, by)| Lowered { blocks, dims, by, name }))
        .collect()
}
