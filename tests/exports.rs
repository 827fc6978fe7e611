//! Faults that exports of unseen networks showed, made small. Each test is named after the network.

use crate::common::{Random, emit, text, tool_ok};
use ancre_passes::text::parse;
use serde_json::Value;

/// A matrix of random numbers in the text form.
fn weights(name: &str, dims: [usize; 2], random: &mut Random) -> String {
    let values: Vec<String> = random.normals(dims[0] * dims[1]).iter().map(|v| format!("{:.4}", 0.5 * v)).collect();
    format!("float[{}, {}] {name} = {{{}}}", dims[0], dims[1], values.join(", "))
}

/// Runs the main job on a graph in text form, holds the training graph's gradients against finite differences, and returns the report.
fn trained(source: &str, flags: &[&str], sizes: &[&str]) -> Value {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.onnx");
    std::fs::write(&path, emit(&parse(source).unwrap())).unwrap();
    let (model, out) = (text(&path), text(dir.path()));
    let report = tool_ok(&[&[model.as_str(), "-o", &out, "--json", "--state", "inline"], flags].concat()).json();
    let train = text(&dir.path().join("net.ancre.train.onnx"));
    tool_ok(&[&["verify", "--gradient", &train], sizes].concat());
    report
}

/// A block whose trace wrote the sequence's length down, between blocks that leave it open. With [funnel]'s pooling the lengths are
/// different formulas of one number.
#[test]
fn mamba_a_length_that_one_block_knows() {
    let mut random = Random(1);
    let [w, v, u] = ["w", "v", "u"].map(|n| weights(n, [4, 4], &mut random));
    let source = format!(
        "g (float[batch, length, 4] x) => (float[batch, m, 4] y) <{w}, {v}, {u}, int64[3] eight = {{0, 8, 4}}> {{
            a = MatMul (x, w) ta = Tanh (a) h1 = Add (x, ta)
            b = MatMul (h1, v) b8 = Reshape (b, eight) tb = Tanh (b8) h2 = Add (h1, tb)
            c = MatMul (h2, u) tc = Tanh (c) y = Add (h2, tc)
        }}"
    );
    let report = trained(&source, &["--loss", "mse"], &["--dim", "length=8"]);
    assert_eq!(report["chains"][0]["blocks"], 3);
    assert_eq!(report["verify"]["emitted"]["proved"], true);
}

/// The kernels of a network without normalisation are standardised by a batch normalisation in training mode. The exporter folds a second,
/// transposed copy of the kernel into the statistics beside it, which decide nothing.
#[test]
fn nfnet_kernels_that_a_batch_normalisation_standardises_train() {
    let mut random = Random(2);
    let kernel = random.normals(16);
    let list = |v: &[f64]| v.iter().map(|v| format!("{v:.4}")).collect::<Vec<_>>().join(", ");
    let turned: Vec<f64> = (0..16).map(|i| kernel[i % 4 * 4 + i / 4]).collect();
    let (kernel, turned) = (list(&kernel), list(&turned));
    let source = format!(
        "<opset_import: [\"\" : 17]> g (float[n, 4, 3, 3] x) => (float[n, 4, 3, 3] y) <float[1, 4, 4] w = {{{kernel}}}, float[1, 4, 4] copy = {{{turned}}},
         float[4] gain = {{1.0, 0.5, 1.5, 2.0}}, float[4] zero = {{0, 0, 0, 0}}, int64[4] shape = {{4, 4, 1, 1}}> {{
            m = ReduceMean <axes = [0, 1], keepdims = 0> (copy)
            m1 = ReduceMean <axes = [0, 1], keepdims = 1> (copy)
            d = Sub (copy, m1) dd = Mul (d, d) v = ReduceMean <axes = [0, 1], keepdims = 0> (dd)
            s, rm, rv = BatchNormalization <epsilon = 0.00001, momentum = 1.0, training_mode = 1> (w, gain, zero, m, v)
            k = Reshape (s, shape) c = Conv (x, k) t = Tanh (c) y = Add (x, t)
        }}"
    );
    for flags in [&["--loss", "mse"][..], &["--loss", "mse", "--frozen-bn"]] {
        let report = trained(&source, flags, &[]);
        let mut trainable: Vec<&str> =
            report["training"]["trainable"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        trainable.retain(|n| !n.starts_with("ancre."));
        assert_eq!(trainable, ["w", "gain", "zero"]);
    }
}

/// `--fix` gives the operand's extents numbers, while the result's type still says `(length+1)/2`.
#[test]
fn funnel_a_pool_over_an_extent_that_is_fixed() {
    let w = weights("w", [4, 4], &mut Random(3));
    let source = format!(
        "g (float[batch, length, 4] x) => (float[batch, m, 4] y) <{w}, int64[1] one = {{1}}> {{
            a = MatMul (x, w) u = Unsqueeze (a, one)
            p = AveragePool <ceil_mode = 1, count_include_pad = 1, kernel_shape = [2, 1], strides = [2, 1]> (u)
            y = Squeeze (p, one)
        }}"
    );
    trained(&source, &["--loss", "mse", "--fix", "length=7", "--dim", "length=7"], &[]);
}
