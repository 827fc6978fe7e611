//! Guards of the forward pass guard the gradient: where another value was chosen, or a ReLU cut off, an infinite slope counts for
//! nothing. The numbers are PyTorch's where it has any, and 0 where it multiplies 0 by infinity.

use crate::common::{emit, floats, max_abs, open};
use ancre_passes::ir::DType;
use ancre_passes::pipeline::PassManager;
use ancre_passes::pipeline::training::TrainingOptions;
use ancre_passes::text::parse;
use ancre_passes::transform::loss::{LossKind, LossOptions};
use ancre_passes::transform::optimizer::{OptimizerKind, OptimizerOptions};
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::tensor::NpTensor;

/// The outputs of a training graph whose loss adds up |y + 9|: every y above -9 has the cotangent 1.
fn trained(network: &str, loss: LossOptions, feeds: &[(&str, NpTensor)]) -> Tensors {
    let optimizer = OptimizerOptions::of(OptimizerKind::None);
    let o = {
        let mut made = TrainingOptions::of(loss, optimizer);
        made.grad_outputs = true;
        made
    };
    let g = PassManager::default().training_graph(parse(network).unwrap(), &o).unwrap().graph;
    let feeds = feeds.iter().map(|(n, t)| (n.to_string(), t.clone())).collect();
    open(&emit(&g)).unwrap().run(&feeds).unwrap()
}

fn sum_of_outputs() -> LossOptions {
    let mut made = LossOptions::of(LossKind::L1);
    made.sum = true;
    made
}

#[test]
fn what_a_choice_or_a_cut_left_out_has_no_gradient() {
    let (nine, zero) = (floats(DType::F32, &[3], &[-9.0; 3]), floats(DType::F32, &[3], &[0.0; 3]));
    for (body, values, want) in [
        ("r = Relu (a) y = Sqrt (r)", [0.0, 4.0, -1.0], [0.0, 0.25, 0.0]),
        ("r = Relu (a) s = Sqrt (r) y = Mul (s, one)", [0.0, 4.0, -1.0], [0.0, 0.25, 0.0]),
        ("r = Relu (a) y = Pow (r, half)", [0.0, 4.0, -1.0], [0.0, 0.25, 0.0]),
        ("r = Max (a, zero) p = Greater (r, zero) l = Log (r) y = Where (p, l, zero)", [0.0, 4.0, -1.0], [0.0, 0.25, 0.0]),
        ("p = Greater (a, zero) s = Sqrt (a) y = Where (p, s, zero)", [0.0, 4.0, -1.0], [0.0, 0.25, 0.0]),
        ("p = Greater (a, zero) s = Sqrt (a) l = Log (s) y = Where (p, l, zero)", [0.0, 4.0, -1.0], [0.0, 0.125, 0.0]),
        ("p = Equal (a, zero) d = Div (one, a) y = Where (p, zero, d)", [0.0, 4.0, -1.0], [0.0, -0.0625, -1.0]),
        ("p = Equal (a, zero) l = Log (a) m = Mul (a, l) y = Where (p, zero, m)", [0.0, 4.0, 1.0], [0.0, 2.386_294, 1.0]),
        ("m = ReduceL2 <keepdims = 1> (a) y = Add (a, m)", [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]),
    ] {
        let [w0, w1, w2] = values;
        let network = format!(
            "net (float[3] x) => (y) <float[3] w = {{{w0:?}, {w1:?}, {w2:?}}}, float[3] zero = {{0.0, 0.0, 0.0}},
             float[3] one = {{1.0, 1.0, 1.0}}, float half = {{0.5}}> {{ a = Add (x, w) {body} }}"
        );
        let out = trained(&network, sum_of_outputs(), &[("x", zero.clone()), ("target", nine.clone())]);
        let got = out["w.grad"].to_f64();
        assert!(max_abs(&got, &want) < 1e-5 && got.iter().all(|v| v.is_finite()), "{body}: {got:?}, {want:?}");
    }
}

#[test]
fn a_row_of_attention_with_nothing_to_look_at_has_no_gradient() {
    // The first row is hidden altogether; PyTorch's softmax then gives zeros, which exporters write as a choice.
    let network = "net (float[2, 2] x, float[2, 2] m) => (y) <float[2, 2] w = {1.0, 2.0, 0.5, -1.0},
        float[2, 2] c = {1.0, 2.0, 1.0, 2.0}, float zero = {0.0}> {
        a = Add (x, w) s = Add (a, m) p = Softmax <axis = -1> (s) n = IsNaN (p) q = Where (n, zero, p) y = Mul (q, c) }";
    let low = f64::NEG_INFINITY;
    let feeds = [
        ("x", floats(DType::F32, &[2, 2], &[0.0; 4])),
        ("m", floats(DType::F32, &[2, 2], &[low, low, 0.0, 0.0])),
        ("target", floats(DType::F32, &[2, 2], &[-9.0; 4])),
    ];
    let got = trained(network, sum_of_outputs(), &feeds)["w.grad"].to_f64();
    assert!(max_abs(&got, &[0.0, 0.0, -0.149_146, 0.149_146]) < 1e-5, "{got:?}");
}

/// A choice among the results of an operator that mixes elements says nothing of its operands, whatever their shape.
#[test]
fn a_choice_behind_a_product_or_a_softmax_does_not_choose_among_operands() {
    let network = |body: &str| {
        format!(
            "net (float[2, 2] x) => (y) <float[2, 2] w = {{1.0, 2.0, 3.0, 4.0}}, float[2, 2] c = {{1.0, 3.0, 1.0, 2.0}},
             bool[2, 2] p = {{1, 0, 0, 1}}, float zero = {{0.0}}> {{ a = Add (x, w) {body} }}"
        )
    };
    let feeds = [("x", floats(DType::F32, &[2, 2], &[0.0; 4])), ("target", floats(DType::F32, &[2, 2], &[-99.0; 4]))];
    // The chosen places have the cotangent 1; its product with c transposed is (1 1; 3 2).
    let product = trained(&network("b = MatMul (a, c) y = Where (p, b, zero)"), sum_of_outputs(), &feeds);
    assert_eq!(product["w.grad"].to_f64(), [1.0, 1.0, 3.0, 2.0]);
    // s (1 - s) at the chosen places, and its negative beside them.
    let softmax = trained(&network("s = Softmax <axis = -1> (a) y = Where (p, s, zero)"), sum_of_outputs(), &feeds);
    let slope = 0.196_612;
    assert!(max_abs(&softmax["w.grad"].to_f64(), &[slope, -slope, -slope, slope]) < 1e-5, "{:?}", softmax["w.grad"]);
}

#[test]
fn labels_that_are_all_ignored_have_a_gradient_of_zero() {
    let network = "net (float[2, 2] x) => (y) <float[2] w = {1.0, 2.0}> { y = Add (x, w) }";
    let loss = {
        let mut made = LossOptions::of(LossKind::CrossEntropy);
        made.ignore_index = Some(-100);
        made
    };
    let labels = |all: &[i64]| ("labels", NpTensor::i64s(&[2], all).unwrap());
    let x = || ("x", floats(DType::F32, &[2, 2], &[0.0; 4]));
    let out = trained(network, loss.clone(), &[x(), labels(&[-100, -100])]);
    assert!(out["loss"].to_f64()[0].is_nan());
    assert_eq!((out["w.grad"].to_f64(), out["grad_norm"].to_f64()), (vec![0.0; 2], vec![0.0]));
    let some = trained(network, loss, &[x(), labels(&[1, -100])]);
    assert!(max_abs(&some["w.grad"].to_f64(), &[0.268_941, -0.268_941]) < 1e-5, "{:?}", some["w.grad"].to_f64());
}

#[test]
fn the_norm_of_a_large_gradient_is_summed_by_rows() {
    let network =
        "net (float[1000, 2000] x, float[1, 2000] u) => (y) <float[1000, 2000] v = {…}> { a = Add (x, v) y = Mul (a, u) }";
    let tenth = floats(DType::F32, &[1, 2000], &[0.1; 2000]);
    let x = floats(DType::F32, &[1000, 2000], &vec![0.0; 2_000_000]);
    let target = floats(DType::F32, &[1000, 2000], &vec![-9.0; 2_000_000]);
    let out = trained(network, sum_of_outputs(), &[("x", x), ("u", tenth), ("target", target)]);
    let norm = out["grad_norm"].to_f64()[0];
    assert!((norm / (0.1 * 2e6f64.sqrt()) - 1.0).abs() < 1e-5, "{norm}");
}
