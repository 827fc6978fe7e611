//! The numbers of `ancre_passes::target::CPU`: the formulations between which each chooses, in ONNX Runtime.
//!
//! `cargo bench --bench costs` measures all, `cargo bench --bench costs -- conv_weight` one. A number is right where the way that
//! it chooses ("as chosen") is the faster one, or near it, in every size.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use ancre_passes::ir::Graph;
use ancre_passes::ops::build::Builder;
use ancre_passes::target::{CPU, CPU_BLOCKS, ConvWeight, Target};
use ancre_passes::text::parse;
use ancre_passes::transform::block_convolutions::block_convolutions;
use ancre_passes::transform::optimizer::{OptimizerKind, OptimizerOptions, Trained, append_optimizer};
use ancre_passes::transform::{differentiate, eliminate, lower_abstract::lower_abstract};
use ancre_passes::{contract::StateKind, onnx};
use ancre_rewrite::engine::{self, Tensors};
use ancre_rewrite::io::tensor::NpTensor;
use divan::{Bencher, black_box};
use std::fmt;

fn main() {
    divan::main();
}

/// A computation of some size, in one way.
struct Case {
    size: &'static str,
    /// The graph as text, with a scalar `l`.
    text: String,
    way: &'static str,
    target: Target,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.size, self.way)
    }
}

/// All sizes in all ways, and as the CPU's numbers choose.
fn cases(sizes: &[(&'static str, String)], ways: &[(&'static str, Target)]) -> Vec<Case> {
    cases_of(&CPU, sizes, ways)
}

/// All sizes in all ways, and as a target chooses.
fn cases_of(target: &Target, sizes: &[(&'static str, String)], ways: &[(&'static str, Target)]) -> Vec<Case> {
    let chosen = ("as chosen", target.clone());
    let all = sizes.iter().flat_map(|size| ways.iter().chain([&chosen]).map(move |way| (size.clone(), way.clone())));
    all.map(|((size, text), (way, target))| Case { size, text, way, target }).collect()
}

fn run(b: Bencher, mut g: Graph) {
    eliminate::eliminate_dead(&mut g, |_, _| false);
    let model = onnx::emit(&g).unwrap().to_bytes().unwrap();
    // Without a runtime there is nothing to measure.
    let Ok(runtime) = engine::ort() else { return };
    let mut session = runtime.load(&model, None).unwrap();
    let feed = |v| {
        let shape: Vec<usize> = g.tensor_type(v).unwrap().known_dims().unwrap().iter().map(|d| *d as usize).collect();
        (g.name(v).to_string(), NpTensor::f32s(&shape, &vec![0.01; shape.iter().product()]).unwrap())
    };
    let inputs: Tensors = g.required_inputs().map(feed).collect();
    b.bench_local(|| session.run(black_box(&inputs)).unwrap());
}

/// The gradient of `l` with respect to one value, alone.
fn gradient(b: Bencher, case: &Case, wrt: &str) {
    run(b, with_gradients(case, &[wrt]));
}

/// The gradients of `l` with respect to some values, without `l`.
fn with_gradients(case: &Case, wrt: &[&str]) -> Graph {
    let target: &'static Target = Box::leak(Box::new(case.target.clone()));
    let mut g = parse(&case.text).unwrap();
    let loss = g.find("l").unwrap();
    let values: Vec<_> = wrt.iter().map(|name| g.find(name).unwrap()).collect();
    let gradients = differentiate(&mut g, target, loss, &values).unwrap();
    lower_abstract(&mut g, target).unwrap();
    g.clear_outputs();
    // One number comes back, so that copying the gradient is not measured. It needs the gradient in the value's own layout.
    for (name, v) in wrt.iter().zip(values) {
        let gradient = g.find(&format!("{name}.ct")).unwrap_or(gradients[&v]);
        let mut builder = Builder::new(&mut g, "sum");
        let product = builder.mul(gradient, v).unwrap();
        let sum = builder.reduce_all("ReduceSum", product).unwrap();
        g.add_output(sum, None);
    }
    block_convolutions(&mut g, target).unwrap();
    g
}

/// A sum over rows, as it comes from a broadcast operand.
fn row_sum_cases() -> Vec<Case> {
    let text = |rows: i64, columns: i64| {
        format!(
            "g (float[{rows}, {columns}] x, float[{columns}] b) => (l) {{ y = Add (x, b) z = Mul (y, y) l = ReduceSum <keepdims = 0> (z) }}"
        )
    };
    let sizes = [
        ("1024x16", text(1024, 16)),
        ("1024x64", text(1024, 64)),
        ("1024x768", text(1024, 768)),
        ("16x2048", text(16, 2048)),
        ("64x36864", text(64, 36864)),
    ];
    let ways =
        [("ones", Target { ones_columns: 0, ..CPU.clone() }), ("sum", Target { ones_columns: i64::MAX, ..CPU.clone() })];
    cases(&sizes, &ways)
}

#[divan::bench(args = row_sum_cases(), max_time = 2)]
fn row_sum(b: Bencher, case: &Case) {
    gradient(b, case, "b");
}

/// A convolution [batch, channels, extent, extent], of which each element counts as much as an input `c` says: its gradients do not
/// need its result.
fn conv(batch: i64, channels: i64, out: i64, extent: i64, kernel: i64, stride: i64, group: i64) -> String {
    let (per, pad) = (channels / group, kernel / 2);
    let windows = (extent + 2 * pad - kernel) / stride + 1;
    format!(
        "g (float[{batch}, {channels}, {extent}, {extent}] x, float[{out}, {per}, {kernel}, {kernel}] w,
            float[{batch}, {out}, {windows}, {windows}] c) => (l) {{
            y = Conv <pads = [{pad}, {pad}, {pad}, {pad}], strides = [{stride}, {stride}], group = {group}> (x, w)
            z = Mul (y, c) l = ReduceSum <keepdims = 0> (z) }}"
    )
}

fn batch_product_cases() -> Vec<Case> {
    let sizes = [
        ("64x64@28", conv(8, 64, 64, 28, 1, 1, 1)),
        ("256x256@14", conv(8, 256, 256, 14, 1, 1, 1)),
        ("512x512@7", conv(8, 512, 512, 7, 1, 1, 1)),
    ];
    let ways =
        [("long", Target { long_product: 1 << 32, ..CPU.clone() }), ("batch", Target { long_product: 0, ..CPU.clone() })];
    cases(&sizes, &ways)
}

#[divan::bench(args = batch_product_cases(), max_time = 2)]
fn batch_product(b: Bencher, case: &Case) {
    gradient(b, case, "w");
}

fn conv_input_cases() -> Vec<Case> {
    let sizes = [
        ("64x64@56", conv(8, 64, 64, 56, 3, 1, 1)),
        ("256x256@14", conv(8, 256, 256, 14, 3, 1, 1)),
        ("512x512@7", conv(8, 512, 512, 7, 3, 1, 1)),
        ("144@28", conv(8, 144, 144, 28, 3, 1, 144)),
    ];
    let ways = [
        ("reversed", Target { reversed_weight: 1, batch: 1 << 20, ..CPU.clone() }),
        ("transposed", Target { reversed_weight: 0, ..CPU.clone() }),
    ];
    cases(&sizes, &ways)
}

#[divan::bench(args = conv_input_cases(), max_time = 2)]
fn conv_input(b: Bencher, case: &Case) {
    gradient(b, case, "x");
}

/// The convolution itself, which takes as many products and sums as the gradient of its weight.
const FLOOR: &str = "floor";

/// Convolutions of networks for images.
fn conv_sizes() -> Vec<(&'static str, String)> {
    vec![
        // ResNet-20 and ResNet-110 on CIFAR, ResNet-18 and ResNet-50 at 224.
        ("3x16@32", conv(64, 3, 16, 32, 3, 1, 1)),
        ("16x16@32", conv(64, 16, 16, 32, 3, 1, 1)),
        ("16x32/2@32", conv(64, 16, 32, 32, 3, 2, 1)),
        ("64x64@8", conv(64, 64, 64, 8, 3, 1, 1)),
        ("3x64k7/2@224", conv(4, 3, 64, 224, 7, 2, 1)),
        ("64x64@56", conv(4, 64, 64, 56, 3, 1, 1)),
        ("64x128/2@56", conv(4, 64, 128, 56, 3, 2, 1)),
        ("128x128@28", conv(4, 128, 128, 28, 3, 1, 1)),
        ("256x256@14", conv(4, 256, 256, 14, 3, 1, 1)),
        ("512x512@7", conv(4, 512, 512, 7, 3, 1, 1)),
        ("64x256k1@56", conv(4, 64, 256, 56, 1, 1, 1)),
        ("2048x512k1@7", conv(4, 2048, 512, 7, 1, 1, 1)),
        // ConvNeXt, MobileNetV2, EfficientNet-B0.
        ("96k7@56", conv(4, 96, 96, 56, 7, 1, 96)),
        ("768k7@7", conv(4, 768, 768, 7, 7, 1, 768)),
        ("96/2@112", conv(4, 96, 96, 112, 3, 2, 96)),
        ("144@56", conv(4, 144, 144, 56, 3, 1, 144)),
        ("960@7", conv(4, 960, 960, 7, 3, 1, 960)),
        ("240k5@28", conv(4, 240, 240, 28, 5, 1, 240)),
    ]
}

fn conv_weight_cases() -> Vec<Case> {
    let never = ConvWeight {
        few_channels: 0,
        depthwise_taps: i64::MAX,
        depthwise_copies: 0,
        strided_taps: i64::MAX,
        shifted_copies: i64::MAX,
        transposed_samples: 0,
    };
    let by = |conv_weight: ConvWeight| Target { conv_weight, ..CPU.clone() };
    let ways = [
        (FLOOR, CPU.clone()),
        ("taps or shifts", by(never.clone())),
        ("columns", by(ConvWeight { few_channels: 1 << 20, transposed_samples: 1 << 20, ..never.clone() })),
        ("shifts by channel", by(ConvWeight { depthwise_taps: 0, depthwise_copies: 64, ..never.clone() })),
        ("one convolution", by(ConvWeight { depthwise_taps: 0, strided_taps: 0, shifted_copies: 0, ..never })),
    ];
    cases(&conv_sizes(), &ways)
}

#[divan::bench(args = conv_weight_cases(), max_time = 1)]
fn conv_weight(b: Bencher, case: &Case) {
    if case.way != FLOOR {
        return gradient(b, case, "w");
    }
    run(b, parse(&case.text).unwrap());
}

fn conv_blocks_cases() -> Vec<Case> {
    let mut sizes = conv_sizes();
    sizes.push(("512x512@7, batch 32", conv(32, 512, 512, 7, 3, 1, 1)));
    let ways = [("plain", CPU.clone()), ("in blocks", Target { blocked_weight: 1 << 20, ..CPU_BLOCKS.clone() })];
    cases_of(&CPU_BLOCKS, &sizes, &ways)
}

/// Result and gradients of a convolution.
#[divan::bench(args = conv_blocks_cases(), max_time = 1)]
fn conv_blocks(b: Bencher, case: &Case) {
    // The loss's own result is needed only if its cotangent is a value: z = y · y.
    let text = case.text.replace("Mul (y, c)", "Mul (y, y)");
    run(b, with_gradients(&Case { text, target: case.target.clone(), ..*case }, &["w", "x"]));
}

fn small_update_cases() -> Vec<Case> {
    let sizes = [("256", "256".into()), ("4096", "4096".into()), ("65536", "65536".into())];
    let ways = [
        ("end to end", Target { small_update: i64::MAX, ..CPU.clone() }),
        ("each", Target { small_update: 0, ..CPU.clone() }),
    ];
    cases(&sizes, &ways)
}

/// AdamW over 32 tensors of one size.
#[divan::bench(args = small_update_cases(), max_time = 2)]
fn small_updates(b: Bencher, case: &Case) {
    let target: &'static Target = Box::leak(Box::new(case.target.clone()));
    let n = &case.text;
    let inputs: Vec<String> = (0..32).map(|i| format!("float[{n}] g{i}, float[{n}] w{i}")).collect();
    let mut g = parse(&format!("g (float x, {}) => (x) {{ }}", inputs.join(", "))).unwrap();
    let find = |g: &Graph, name: String| g.find(&name).unwrap();
    let trained: Vec<Trained> = (0..32)
        .map(|i| Trained {
            value: find(&g, format!("w{i}")),
            gradient: find(&g, format!("g{i}")),
            kind: StateKind::Parameter,
        })
        .collect();
    let loss = find(&g, "x".into());
    let update =
        append_optimizer(&mut g, loss, &trained, &OptimizerOptions::of(OptimizerKind::AdamW), None, target).unwrap();
    g.clear_outputs();
    update.states.iter().filter_map(|s| s.next).for_each(|v| g.add_output(v, None));
    run(b, g);
}
