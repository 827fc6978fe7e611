//! Movement of elements, conversions, constants, order.

use super::{differ, equal, graph, of_x, prove};

const X: &str = "float[n, 4]";

#[test]
fn what_does_nothing_is_gone() {
    for nothing in [
        "y = Identity (x)",
        "y = Cast <to = 1> (x)",
        "y = Reshape (x, s)",
        "y = Transpose <perm = [0, 1]> (x)",
        "y = Mul (x, one)",
        "y = Mul (one, x)",
        "y = Mul (x, ones)",
        "y = Add (x, zero)",
        "y = Sub (x, zero)",
        "y = Div (x, one)",
        "a = Unsqueeze (x, axes) y = Squeeze (a, axes)",
        "a = Transpose <perm = [1, 0]> (x) y = Transpose (a)",
        "a = Concat <axis = 1> (x, x) y = Slice (a, s0, s4, axes1)",
        "a, b = Split <axis = 1, num_outputs = 2> (x) y = Concat <axis = 1> (a, b)",
        "a = Cast <to = 11> (x) y = Cast <to = 1> (a)",
        "a = Neg (x) y = Neg (a)",
        "y = Sum (x, zero)",
        "y = Max (x)",
        "y = Dropout (x)",
        "y = Where (yes, x, ones)",
        "y = Expand (x, ones_i)",
        "y = Tile (x, ones_i)",
        "y = Pad (x, no_pads)",
        "a = Shape (x) y = Reshape (x, a)",
        "a = Unsqueeze (x, axes) b = Transpose <perm = [1, 0, 2]> (a) y = Reshape (b, s)",
        "a = Mul (x, zero) b = Add (x, a) y = Add (a, b)",
    ] {
        let constants = "float one = {1}, float[4] ones = {1, 1, 1, 1}, float zero = {0}, int64[2] s = {-1, 4}, int64[1] axes = {0}, \
                         int64[1] s0 = {0}, int64[1] s4 = {4}, int64[1] axes1 = {1}, bool yes = {1}, int64[2] ones_i = {1, 1}, \
                         int64[4] no_pads = {0, 0, 0, 0}";
        equal(X, constants, nothing, "y = Identity (x)");
    }
}

#[test]
fn what_does_something_stays() {
    let constants = "float one = {1}, float two = {2}, float[1, 1, 1] wide = {1}, float zero = {0}, int64[2] s = {4, -1}, int64[1] z = {0}, \
                     int64[1] s3 = {3}, int64[1] axes1 = {1}, int64[1] one_i = {1}, int64[2] e = {2, 1}, float[3, 4] zeros = {0, …}, float minus = {-1}, \
                     int64[4] pads = {0, 1, 0, 0}, bool no = {0}, float[4] nearly = {1, 1, 1.0000001, 1}, float tiny = {1e-45}";
    for something in [
        "y = Reshape (x, s)",
        "y = Transpose <perm = [1, 0]> (x)",
        "y = Mul (x, two)",
        "y = Mul (x, wide)",
        "y = Mul (x, nearly)",
        "y = Mul (x, minus)",
        "y = Add (x, tiny)",
        "y = Add (x, zeros)",
        "y = Sub (zero, x)",
        "y = Div (one, x)",
        "y = Pow (one, x)",
        "a = Slice (x, z, s3, axes1) y = Identity (a)",
        "a = Cast <to = 10> (x) y = Cast <to = 1> (a)",
        "a = Cast <to = 7> (x) y = Cast <to = 1> (a)",
        "y = Neg (x)",
        "y = Relu (x)",
        "y = Max (x, zero)",
        "y = Expand (x, e)",
        "y = Pad (x, pads)",
        "y = Where (no, x, one)",
        "y = Mul (x, zero)",
        "y = Concat <axis = 0> (x, x)",
    ] {
        differ(X, constants, something, "y = Identity (x)");
    }
}

#[test]
fn a_transpose_of_symbols_is_none_even_if_they_may_be_equal() {
    differ("float[n, m]", "", "y = Transpose <perm = [1, 0]> (x)", "y = Identity (x)");
    differ("float[n, n]", "", "y = Transpose <perm = [1, 0]> (x)", "y = Identity (x)");
    equal("float[n, 1]", "int64[2] s = {1, -1}", "y = Transpose <perm = [1, 0]> (x)", "y = Reshape (x, s)");
}

#[test]
fn extents_that_may_broadcast_are_not_known() {
    // n may be 1 where m is not: the sum then has m rows, and the reshape to x's shape is none that does nothing.
    let text = |last: &str| graph(&format!("(float[n, 4] x, float[m, 4] z) => (y) {{ s = Add (x, z) {last} }}"));
    let proof = prove(&text("t = Shape (x) y = Reshape (s, t)"), &text("y = Identity (s)"));
    assert!(!proof.proved);
    let text = |last: &str| {
        graph(&format!("(float[n, 4] x, float[m, 4] z) => (y) <float zero = {{0}}> {{ o = Mul (z, zero) {last} }}"))
    };
    assert!(!prove(&text("y = Add (x, o)"), &text("y = Identity (x)")).proved);
    let text = |last: &str| {
        graph(&format!("(float[n, 4] x, float[n, 4] z) => (y) <float zero = {{0}}> {{ o = Mul (z, zero) {last} }}"))
    };
    assert!(prove(&text("y = Add (x, o)"), &text("y = Identity (x)")).proved);
}

#[test]
fn operands_that_commute_may_be_exchanged_and_others_not() {
    let c = "float[4] w = {1, 2, 3, 4}";
    for op in ["Add", "Mul", "Max", "Min"] {
        equal(X, c, &format!("y = {op} (x, w)"), &format!("y = {op} (w, x)"));
    }
    for op in ["Sub", "Div", "Pow"] {
        let why = differ(X, c, &format!("y = {op} (x, w)"), &format!("y = {op} (w, x)"));
        assert!(why.contains(op), "{why}");
    }
    equal(X, c, "y = Greater (x, w)", "y = Less (w, x)");
    differ(X, c, "y = Greater (x, w)", "y = Less (x, w)");
    differ(X, c, "y = Greater (x, w)", "y = GreaterOrEqual (x, w)");
    let square = "float[4, 4] v = {…}";
    let why = differ("float[4, 4]", square, "y = MatMul (x, v)", "y = MatMul (v, x)");
    assert!(why.contains("MatMul"), "{why}");
}

#[test]
fn sums_keep_their_order_unless_told() {
    let c = "float[4] u = {1, 2, 3, 4}, float[4] v = {4, 3, 2, 1}";
    let (a, b) = ("s = Add (x, u) y = Add (s, v)", "s = Add (x, v) y = Add (s, u)");
    differ(X, c, a, b);
    let o = super::ProofOptions { reassociate: true };
    let proof = super::prove_equal(&of_x(X, c, a), &of_x(X, c, b), &o);
    assert!(proof.proved && proof.assumptions.iter().any(|a| a.contains("order")), "{proof:?}");
    for (a, b) in [(a, "s = Sub (x, v) y = Add (s, u)"), (a, "y = Add (x, u)"), (a, "s = Add (x, u) y = Sub (v, s)")] {
        assert!(!super::prove_equal(&of_x(X, c, a), &of_x(X, c, b), &o).proved, "{b}");
    }
}

#[test]
fn constants_are_their_content() {
    let of = |constants: &str| of_x(X, constants, "y = Add (x, w)");
    let w = of("float[4] w = {1, 2, 3, 4}");
    assert!(prove(&w, &of("float[4] w = {1, 2, 3, 4}")).proved);
    assert!(prove(&w, &of_x(X, "float[4] other = {1, 2, 3, 4}", "y = Add (x, other)")).proved);
    assert!(prove(&w, &of_x(X, "", "w = Constant <value = float[4] {1, 2, 3, 4}> () y = Add (w, x)")).proved);
    for other in [
        "float[4] w = {1, 2, 3, 5}",
        "float[4] w = {2, 1, 3, 4}",
        "float[1, 4] w = {1, 2, 3, 4}",
        "float[4] w = {1, 2, 3.0000002, 4}",
    ] {
        let proof = prove(&w, &of(other));
        assert!(!proof.proved, "{other}");
    }
    let why = prove(&w, &of("float[4] w = {1, 2, 3, 5}")).reason;
    assert!(why.contains("1 of 4") && why.contains("[3]") && why.contains("4 and 5"), "{why}");
    // The sign of zero is told apart where it is stored.
    assert!(
        !prove(
            &of_x(X, "float[1] w = {0}", "a = Reciprocal (w) y = Add (x, a)"),
            &of_x(X, "float[1] w = {-0.0}", "a = Reciprocal (w) y = Add (x, a)")
        )
        .proved
    );
}

#[test]
fn constants_are_folded_where_all_engines_agree() {
    let c = "float[2, 4] a = {1, 2, 3, 4, 5, 6, 7, 8}, float[4, 2] b = {1, 5, 2, 6, 3, 7, 4, 8}, float[4] third = {0.1, 0.2, 0.3, 0.4}, float three = {3}, \
             float[4] scaled = {0.3, 0.6, 0.90000004, 1.2}, float[4] rounded = {0.3, 0.6, 0.9, 1.2}, float four = {4}, float two = {2}, float e = {2.7182817}, float one = {1}, \
             int64 i = {7}, int64 j = {-2}, int64[1] k = {-3}";
    equal("float[n, 2]", c, "y = MatMul (x, a)", "t = Transpose (b) y = MatMul (x, t)");
    equal(X, c, "w = Mul (third, three) y = Add (x, w)", "y = Add (x, scaled)");
    differ(X, c, "w = Mul (third, three) y = Add (x, w)", "y = Add (x, rounded)");
    equal(X, c, "w = Sqrt (four) y = Mul (x, w)", "y = Mul (x, two)");
    // How exp rounds is an engine's own business.
    differ(X, c, "w = Exp (one) y = Mul (x, w)", "y = Mul (x, e)");
    equal(
        X,
        c,
        "q = Div (i, j) f = Cast <to = 1> (q) y = Add (x, f)",
        "f = Cast <to = 1> (k) r = Squeeze (f) y = Add (x, r)",
    );
}

#[test]
fn shapes_are_arithmetic_on_extents() {
    let c = "int64[1] zero = {0}, int64[1] four = {4}, int64[2] t = {-1, 2}, int64[1] two = {2}";
    equal(
        X,
        c,
        "s = Shape (x) n = Gather (s, zero) t2 = Concat <axis = 0> (n, four) y = Reshape (x, t2)",
        "y = Identity (x)",
    );
    equal(
        X,
        c,
        "s = Shape (x) n = Gather (s, zero) m = Mul (n, two) t2 = Concat <axis = 0> (m, two) y = Reshape (x, t2)",
        "y = Reshape (x, t)",
    );
    differ(
        X,
        c,
        "s = Shape (x) n = Gather (s, zero) m = Add (n, two) t2 = Concat <axis = 0> (m, two) y = Reshape (x, t2)",
        "y = Reshape (x, t)",
    );
}
