//! Low-rank adapters: they start as nothing, train in the weights' place, and become part of the weights.

use crate::common::{Random, emit, max_abs, open};
use ancre_passes::contract::{AdaptersRecord, Record};
use ancre_passes::ir::{DType, Graph, Tensor};
use ancre_passes::pipeline::{Cx, PassManager, run_words};
use ancre_passes::proof::{ProofOptions, prove_equal};
use ancre_passes::text::parse;
use ancre_passes::transform::adapters::merge_adapters;
use ancre_passes::verify;
use ancre_rewrite::engine::random_inputs::{Sizes, random_inputs, sizes};
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::tensor::NpTensor;

/// Every form in which a node reads a weight.
const FORMS: &str = "<opset_import: [\"\" : 18, \"com.microsoft\" : 1]>
g (int64[5] ids, float[2, 5, 3] s, float[2, 4, 6, 6] x) => (a, b, c, d, e, f, i, j, k, l, m)
    <float[7, 3] table = {…}, float[3, 6] w = {…}, float[2, 5] left = {…}, float[6, 3] turned = {…}, float[2, 4, 3, 3] kernel = {…},
     float[5, 4, 1, 1] point = {…}, float[5] bias = {…}, float[6] vector = {…}, int64[1] zero = {0}, int64[1] two = {2}>
{
    h = Gather (table, ids)
    t = Transpose <perm = [1, 0]> (table)
    a = MatMul (h, t)
    b = MatMul (s, w)
    c = MatMul (left, s)
    d = Gemm <transB = 1, alpha = 0.5> (h, turned, vector)
    p = Transpose <perm = [1, 0]> (h)
    e = Gemm <transA = 1> (p, w)
    two_rows = Slice (h, zero, two)
    f = Gemm <transA = 1> (left, two_rows)
    i = Conv <kernel_shape = [3, 3], pads = [1, 0, 1, 1], strides = [2, 1]> (x, kernel)
    j = Conv (x, point, bias)
    k = Conv <auto_pad = \"SAME_UPPER\", strides = [2, 2]> (x, kernel)
    l = MatMul (d, turned)
    m = com.microsoft.FusedMatMul <transB = 1, alpha = 0.25> (s, turned)
}";
fn adapted(text: &str, words: &str) -> (Graph, Graph) {
    let source = parse(text).unwrap();
    let mut g = source.clone();
    run_words(words, &mut g, &mut Cx::default(), &mut PassManager::default()).unwrap();
    verify::verify(&g, verify::Stage::Legal).unwrap_or_else(|e| panic!("{}", e.join("; ")));
    (source, g)
}

fn run(g: &Graph, feeds: &Tensors) -> Tensors {
    open(&emit(g)).unwrap().run(feeds).unwrap()
}

fn feeds(g: &Graph) -> Tensors {
    let mut feeds = random_inputs(g, &sizes(g, &Sizes::new())[0], 3).unwrap();
    feeds.retain(|name, _| g.inputs().iter().any(|n| g.name(g.result(*n, 0)) == name));
    feeds
}

/// Gives every B numbers, so that the adapters count.
fn trained(g: &mut Graph) {
    let mut random = Random(9);
    for adapter in AdaptersRecord::read(g).unwrap().unwrap().adapters {
        let b = g.find(&adapter.b).unwrap();
        let old = g.initializer(b).unwrap().clone();
        assert!(old.to_f64().unwrap().iter().all(|v| *v == 0.0));
        let values = random.normals(old.len());
        g.set_initializer(b, Tensor::floats(old.dtype(), old.dims(), &values), false);
    }
}

/// The largest difference, in parts of the largest value of its output.
fn distance(a: &Tensors, b: &Tensors) -> f64 {
    assert_eq!(a.len(), b.len());
    let each = |(name, t): (&String, &NpTensor)| {
        let (got, want) = (t.to_f64(), b[name].to_f64());
        max_abs(&got, &want) / want.iter().fold(1e-30, |m: f64, v| m.max(v.abs()))
    };
    a.iter().map(each).fold(0.0, f64::max)
}

#[test]
fn adapters_start_as_nothing_and_merge_into_their_weights() {
    let (source, mut g) = adapted(FORMS, "add-adapters rank=2 alpha=3 on=*");
    let record = AdaptersRecord::read(&g).unwrap().unwrap();
    let names: Vec<&str> = record.adapters.iter().map(|a| a.weight.as_str()).collect();
    assert_eq!(names.len(), 6, "{names:?}");
    let feeds = feeds(&source);
    let before = run(&source, &feeds);
    assert_eq!(distance(&before, &run(&g, &feeds)), 0.0);
    let proof = prove_equal(&source, &g, &ProofOptions::default());
    assert!(proof.proved, "{:?}", proof.reason);
    trained(&mut g);
    let with = run(&g, &feeds);
    for (name, t) in &with {
        assert!(max_abs(&t.to_f64(), &before[name].to_f64()) > 1e-2, "`{name}` does not depend on its adapter");
    }
    let nodes = g.op_count();
    assert_eq!(merge_adapters(&mut g).unwrap().merged, 6);
    assert!(g.op_count() < nodes && !AdaptersRecord::is_in(&g));
    assert!(g.nodes().all(|n| !g.node(n).name.contains("lora")));
    let apart = distance(&with, &run(&g, &feeds));
    assert!(apart < 2e-6, "{apart}");
}

/// Adapters and their masters' types: a half-precision network has half-precision adapters, rounded once when merged.
#[test]
fn adapters_of_a_half_precision_weight_are_of_its_type() {
    let text = "g (float16[2, 3] x) => (float16[2, 3] y) <float16[3, 3] w = {…}> { f = MatMul (x, w) y = Add (x, f) }";
    let (source, mut g) = adapted(text, "add-adapters rank=2");
    let ty = |name: &str| g.initializer(g.find(name).unwrap()).unwrap().dtype();
    assert_eq!([ty("w.lora_a"), ty("w.lora_b")], [DType::F16; 2]);
    trained(&mut g);
    let feeds = feeds(&source);
    let with = run(&g, &feeds);
    merge_adapters(&mut g).unwrap();
    assert_eq!(g.initializer(g.find("w").unwrap()).unwrap().dtype(), DType::F16);
    assert!(distance(&with, &run(&g, &feeds)) < 2e-3);
}
