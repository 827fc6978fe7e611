//! Engines run in processes of their own: what they die of, in loops, without memory, by signals, is a message with status 1.

use crate::common::{emit, runtime, text, tool};
use ancre_passes::text::parse;
use tempfile::TempDir;

fn model(graph: &str) -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    std::fs::write(&path, emit(&parse(graph).unwrap_or_else(|e| panic!("{graph}: {e}")))).unwrap();
    (dir, text(&path))
}

/// The message of a comparison that an engine does not survive.
fn dies(graph: &str, more: &[&str]) -> String {
    let (_dir, m) = model(graph);
    let ran = tool(&[&["verify", &m, &m, "--no-proof"], more].concat());
    assert_eq!(ran.status, 1, "{graph} {more:?}: {}{}", ran.out, ran.err);
    assert!(ran.err.contains("m.onnx") && !ran.err.contains("fault of ancre-rewrite"), "{}", ran.err);
    ran.err
}

#[test]
fn an_engine_that_does_not_end_is_ended() {
    // tract goes through a window of 2^40 elements one by one.
    let pool = "g (float[1, 1, 4, 4] x) => (float y) { y = AveragePool <kernel_shape = [1099511627776, 2], pads = [1099511627776, 0, 1099511627776, 0]> (x) }";
    let said = dies(pool, &["--engine", "tract", "--engine-timeout", "2"]);
    assert!(said.contains("tract took more than 2 s (--engine-timeout)"), "{said}");
}

#[test]
fn an_engine_without_bound_is_bounded() {
    // 2 GiB of ones.
    let (_dir, m) =
        model("g (float[1] x) => (float y) <int64[1] s = {536870912}> { c = Expand (x, s) e = Exp (c) y = ReduceSum (e) }");
    let ran = tool(&[&m, "--no-train", "--dry-run", "--verify", "tract", "--max-memory", "300M"]);
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(ran.err.contains("tract used more than 300.0 MB of memory (--max-memory)"), "{}", ran.err);
}

#[test]
fn an_engine_that_panics_or_divides_by_zero_is_survived() {
    runtime();
    for (graph, engine) in [
        // A dilation of 2^62: the kernel's extent overflows.
        (
            "g (float[1, 3, 8, 8] x) => (float y) { y = MaxPool <kernel_shape = [2, 2], dilations = [4611686018427387904, 4611686018427387904]> (x) }",
            "ort",
        ),
        ("g (int64[4] x) => (int64[4] y) { z = Sub (x, x) y = Mod (x, z) }", "ort"),
    ] {
        let said = dies(graph, &["--engine", engine]);
        assert!(said.contains("ort cannot run it: "), "{said}");
    }
}

#[test]
fn a_batch_norm_of_a_vector_is_survived() {
    // tract's rule reads an axis that is not there.
    let (_dir, m) = model(
        "g (float[4] x) => (float[4] y) <float[4] a = {1, 1, 1, 1}, float[4] b = {1, 2, 3, 4}> { y = BatchNormalization (x, a, b, a, b) }",
    );
    let ran = tool(&["inspect", &m]);
    assert_eq!(ran.status, 0, "{}", ran.err);
}

#[test]
fn a_process_of_its_own_says_the_same() {
    runtime();
    // Errors come through as they are, and several models live in one process.
    let graph = "g (float[N, 3] x) => (float y) <float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}> { y = MatMul (x, w) }";
    for engine in ["tract", "ort"] {
        let said = dies(graph, &["--engine", engine]);
        assert!(said.contains("MatMul") || said.contains("dimension"), "{said}");
    }
    let (_dir, m) = model("g (float[N, 3] x) => (float[N, 3] y) { y = Tanh (x) }");
    for engine in ["tract", "ort", "both"] {
        let ran = tool(&["verify", &m, &m, "--no-proof", "--engine", engine]);
        assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
    }
}
