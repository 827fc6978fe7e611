//! Routes in whatever form come down to the state they read, where their weights are one-hot.

use super::{differ, equal, graph, of_x, prove};
use crate::ir::{DType, Graph, Tensor};

const STATES: &str = "float[n, 4]";

/// The state that each of these forms of `route = h` must come to, with weights `w` over `a`, `b`, `c`.
const FORMS: &[&str] = &[
    // Pairs.
    "w0 = Slice (w, i0, i1, ax) w1 = Slice (w, i1, i2, ax) w2 = Slice (w, i2, i3, ax) p = Mul (a, w0) q = Mul (b, w1) r = Mul (c, w2) \
     s = Add (p, q) y = Add (s, r)",
    // One product over stacked states.
    "fa = Reshape (a, flat) fb = Reshape (b, flat) fc = Reshape (c, flat) st = Concat <axis = 0> (fa, fb, fc) wm = Reshape (w, row) \
     m = MatMul (wm, st) y = Reshape (m, back)",
    // States as columns.
    "fa = Reshape (a, col) fb = Reshape (b, col) fc = Reshape (c, col) st = Concat <axis = 1> (fa, fb, fc) wm = Reshape (w, col) \
     m = MatMul (st, wm) y = Reshape (m, back)",
    // Weighted and summed over a new axis.
    "fa = Unsqueeze (a, i0) fb = Unsqueeze (b, i0) fc = Unsqueeze (c, i0) st = Concat <axis = 0> (fa, fb, fc) \
     wm = Reshape (w, three) p = Mul (st, wm) y = ReduceSum <keepdims = 0> (p, i0)",
    // A matrix with more rows, of which one is taken.
    "fa = Flatten <axis = 0> (a) fb = Flatten <axis = 0> (b) fc = Flatten <axis = 0> (c) st = Concat <axis = 0> (fa, fb, fc) \
     wm = Reshape (w, row) w4 = Concat <axis = 0> (other, wm) g = Gemm (w4, st) t = Slice (g, i1, i2, i0) y = Reshape (t, back)",
    // Transposed by the product.
    "fa = Reshape (a, flat) fb = Reshape (b, flat) fc = Reshape (c, flat) st = Concat <axis = 0> (fa, fb, fc) wm = Reshape (w, col) \
     m = Gemm <transA = 1> (wm, st) y = Reshape (m, back)",
    // Two blocks, the first one's part added by the second one's product.
    "fa = Reshape (a, flat) fb = Reshape (b, flat) fc = Reshape (c, flat) st = Concat <axis = 0> (fa, fb) wm = Reshape (w, row) \
     lo = Slice (wm, i0, i2, i1) hi = Slice (wm, i2, i3, i1) m = MatMul (lo, st) g = Gemm (hi, fc, m) y = Reshape (g, back)",
];

fn states(weights: &str, body: &str) -> Graph {
    graph(&format!(
        "(float[n, 4] a, float[n, 4] b, float[n, 4] c) => (y) <float[3] w = {weights}, int64[1] i0 = {{0}}, int64[1] i1 = {{1}}, int64[1] i2 = {{2}}, \
         int64[1] i3 = {{3}}, int64[1] ax = {{0}}, int64[2] flat = {{1, -1}}, int64[2] back = {{-1, 4}}, int64[2] row = {{1, 3}}, int64[2] col = {{-1, 1}}, \
         int64[3] three = {{3, 1, 1}}, float[1, 3] other = {{0.5, 0.25, 0.25}}> {{ {body} }}"
    ))
}

#[test]
fn every_form_is_the_state_it_chooses() {
    for form in FORMS {
        for (weights, state) in [("{1, 0, 0}", "a"), ("{0, 1, 0}", "b"), ("{0, 0, 1}", "c")] {
            let g = states(weights, form);
            for other in ["a", "b", "c"] {
                let proof = prove(&g, &states(weights, &format!("y = Identity ({other})")));
                assert_eq!(proof.proved, other == state, "{form} with {weights} against {other}: {}", proof.reason);
            }
        }
    }
}

#[test]
fn every_form_with_other_weights_is_no_state() {
    for form in FORMS {
        for weights in
            ["{0.9999999, 0, 0}", "{1, 1, 0}", "{1, 1e-30, 0}", "{0, 0, 0}", "{-1, 0, 0}", "{nan, 1, 0}", "{1, inf, 0}"]
        {
            let g = states(weights, form);
            for other in ["a", "b", "c"] {
                assert!(!prove(&g, &states(weights, &format!("y = Identity ({other})"))).proved, "{form} with {weights}");
            }
        }
        // A scale is a scale.
        let half = prove(
            &states("{0, 0.5, 0}", form),
            &states("{0, 0.5, 0}", "h = Constant <value = float {0.5}> () y = Mul (h, b)"),
        );
        assert!(half.proved, "{form}: {}", half.reason);
    }
}

#[test]
fn two_weights_are_equal_as_reals_only() {
    let o = super::ProofOptions { reassociate: true };
    for form in FORMS {
        for other in FORMS {
            let (a, b) = (states("{0.5, 0.25, 2}", form), states("{0.5, 0.25, 2}", other));
            let proof = super::prove_equal(&a, &b, &o);
            assert!(proof.proved, "{form}\n{other}: {}", proof.reason);
            let c = states("{0.5, 0.25, 2.0000002}", other);
            assert!(!super::prove_equal(&a, &c, &o).proved, "{form}\n{other}");
        }
    }
}

#[test]
fn a_saturated_softmax_and_a_closed_gate_are_exact() {
    let c = "float[1, 2] far = {1.28, 0}, float[1, 2] near = {0.1, 0}, float tau = {0.01}, float[1, 2] hot = {1, 0}, float gate = {0}, float[1, 2] even = {0.3, 0.1}";
    let route = "r = Reshape (x, flat) o = Neg (r) st = Concat <axis = 0> (r, o) m = MatMul (p, st) y = Reshape (m, back)";
    let shapes = ", int64[2] flat = {1, -1}, int64[2] back = {-1, 4}";
    let c = format!("{c}{shapes}");
    equal(STATES, &c, &format!("l = Div (far, tau) p = Softmax <axis = 1> (l) {route}"), "y = Identity (x)");
    super::differ(STATES, &c, &format!("l = Div (near, tau) p = Softmax <axis = 1> (l) {route}"), "y = Identity (x)");
    // Gated: onehot + 0 · (softmax − onehot), whatever the softmax is.
    let gated = "l = Div (even, tau) q = Softmax <axis = 1> (l) d = Sub (q, hot) p = Mul (d, gate)";
    equal(
        STATES,
        &c,
        &format!("{gated} {}", route.replace("y = Reshape", "z = Reshape") + " y = Add (z, x)"),
        "y = Identity (x)",
    );
    let open = c.replace("float gate = {0}", "float gate = {1e-3}");
    super::differ(
        STATES,
        &open,
        &format!("{gated} {}", route.replace("y = Reshape", "z = Reshape") + " y = Add (z, x)"),
        "y = Identity (x)",
    );
}

#[test]
fn a_one_hot_choice_of_half_floats_is_one_too() {
    let c = "float[1, 2] w = {0, 1}, int64[2] flat = {1, -1}, int64[2] back = {-1, 4}";
    let body = "h = Cast <to = 10> (w) r = Reshape (x, flat) o = Tanh (r) st = Concat <axis = 0> (o, r) m = MatMul (h, st) y = Reshape (m, back)";
    equal("float16[n, 4]", c, body, "y = Identity (x)");
}

#[test]
fn overridable_logits_count_with_their_defaults() {
    let mut g = of_x(STATES, "float one = {1}", "y = Mul (x, one)");
    let one = g.find("one").unwrap();
    g.set_initializer(one, Tensor::f32s(&[], &[1.0]), true);
    let proof = prove(&g, &of_x(STATES, "", "y = Identity (x)"));
    assert!(proof.proved && proof.assumptions.iter().any(|a| a.contains("defaults")), "{proof:?}");
    assert_eq!(g.tensor_type(one).unwrap().dtype, DType::F32);
}

/// A class token for each sample is a constant that is broadcast as far as the batch says: its product with a zero is zero too.
#[test]
fn an_expanded_constant_times_zero() {
    let constants = |token: &str| format!("float[1, 1, 2] token = {token}, float[1] none = {{0}}, int64[2] rest = {{1, 2}}");
    let states = "s = Shape <start = 0, end = 1> (x) to = Concat <axis = 0> (s, rest) h = Expand (token, to)";
    let (plain, routed) =
        (format!("{states} y = Add (h, x)"), format!("{states} p = Mul (h, none) r = Add (h, p) y = Add (r, x)"));
    equal("float[n, 1, 2]", &constants("{1, 2}"), &plain, &routed);
    differ("float[n, 1, 2]", &constants("{1, inf}"), &plain, &routed);
}
