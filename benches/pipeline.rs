//! How long each step takes, over the models of `models/` and over residual networks of growing depth K.
//!
//! `cargo bench --bench pipeline` measures; the last column of a depth's rows should grow with K, except that the router itself has
//! K²/2 pairs (`route_and_lower`, `training`). `cargo bench --bench pipeline -- residuals` runs one step only.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

mod nets;

use ancre_passes::analysis::residual::find_residuals;
use ancre_passes::ir::{Graph, SharedBytes};
use ancre_passes::transform::loss::{LossKind, LossOptions};
use ancre_passes::transform::optimizer::{OptimizerKind, OptimizerOptions};
use ancre_passes::transform::route::{
    ChainChoice, Form, Granularity, Init, Normalize, RouteOptions, Router, Rule, Scope, route_skips,
};
use ancre_passes::transform::training::{TrainableChoice, TrainingOptions, build_training_graph};
use ancre_passes::{onnx, pipeline};
use ancre_rewrite::{engine, files};
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

    fn routed(&self) -> (Graph, Vec<Router>) {
        let mut g = self.typed();
        let chains = find_residuals(&g).chains;
        let routers = route_skips(&mut g, &chains, &route_options()).unwrap().routers;
        (g, routers)
    }
}

fn route_options() -> RouteOptions {
    RouteOptions {
        form: Form::Reassign,
        granularity: Granularity::Add,
        rule: Rule::Gated,
        normalize: Normalize::Incoming,
        init: Init::Uniform,
        tau: 1.0,
        scope: Scope::Stage,
        chains: ChainChoice::All,
    }
}

fn training_options(g: &Graph) -> TrainingOptions {
    // Any loss does for the time it takes.
    let output = g.outputs().iter().map(|o| o.value).find(|v| g.is_float(*v)).map(|v| g.name(v).to_string());
    TrainingOptions {
        loss: LossOptions {
            kind: LossKind::Mse,
            sum: false,
            smoothing: 0.0,
            ignore_index: None,
            huber_delta: 1.0,
            labels: None,
        },
        optimizer: OptimizerOptions {
            kind: OptimizerKind::AdamW,
            momentum: 0.9,
            nesterov: false,
            weight_decay: None,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            clip_norm: None,
            accumulate: 1,
            router_lr_scale: 1.0,
        },
        output,
        trainable: TrainableChoice::default(),
        grad_outputs: false,
        opset: None,
        seed: 0,
        batch: None,
        frozen_bn: false,
    }
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
        pipeline::lower_forward(g, |_, _| false).unwrap();
    });
}

#[divan::bench(args = cases(), max_time = 2)]
fn training(b: Bencher, case: &Case) {
    let (g, routers) = case.routed();
    let options = training_options(&g);
    // A few models hold operators without a derivative; how fast that is found counts too.
    b.with_inputs(|| g.clone()).bench_local_values(|g| build_training_graph(g, &routers, &options).map(|t| t.graph).ok());
}

#[divan::bench(args = cases(), max_time = 2)]
fn emit(b: Bencher, case: &Case) {
    let (mut g, _) = case.routed();
    pipeline::lower_forward(&mut g, |_, _| false).unwrap();
    b.bench_local(|| onnx::emit(black_box(&g)).unwrap().to_bytes().unwrap());
}
