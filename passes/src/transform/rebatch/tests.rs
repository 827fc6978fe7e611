use super::*;
use crate::ir::text::{body, parse};
use crate::ir::verify;
use crate::transform::eliminate::eliminate_dead;

/// The graph rebuilt from batch 1, or why not.
fn rebuilt(text: &str, to: Batch) -> Result<Graph, String> {
    let mut g = parse(text).unwrap();
    let Current::Fixed(before) = current(&g)? else { panic!("the batch is fixed") };
    let plan = plan(&g, before)?;
    plan.apply(&mut g, to).unwrap();
    eliminate_dead(&mut g, |_, _| false);
    verify::verify(&g, verify::Stage::Legal).unwrap();
    Ok(g)
}

fn shape(g: &Graph, name: &str) -> String {
    let ty = g.tensor_type(g.find(name).unwrap()).unwrap();
    ty.shape.iter().map(Dim::to_string).collect::<Vec<_>>().join(",")
}

/// A class token, positions, and attention with the sequence first, as exporters write them for batch 1.
const VISION: &str = "g (float[1, 6, 4] x) => (float[1, 7, 4] y)
    <float[1, 1, 4] cls = {…}, float[1, 7, 4] pos = {…}, float[4, 4] w = {…}, int64[3] split = {7, 2, 2}, int64[2] rows = {7, 4}, int64[3] back = {7, 1, 4}> {
    t = Concat <axis = 1> (cls, x)
    p = Add (t, pos)
    first = Transpose <perm = [1, 0, 2]> (p)
    q = MatMul (first, w)
    heads = Reshape (q, split)
    by_head = Transpose <perm = [1, 0, 2]> (heads)
    back_again = Transpose <perm = [1, 0, 2]> (by_head)
    flat = Reshape (back_again, rows)
    o = Gemm (flat, w)
    seq = Reshape (o, back)
    y = Transpose <perm = [1, 0, 2]> (seq)
}";

#[test]
fn every_axis_is_found_and_choices_are_taken_back() {
    let g = rebuilt(VISION, Batch::Dynamic).unwrap();
    let shapes: Vec<String> =
        ["x", "t", "first", "heads", "by_head", "flat", "o", "seq", "y"].iter().map(|n| shape(&g, n)).collect();
    assert_eq!(
        shapes,
        [
            "batch,6,4",
            "batch,7,4",
            "7,batch,4",
            "7,2*batch,2",
            "2*batch,7,2",
            "7*batch,4",
            "7*batch,4",
            "7,batch,4",
            "batch,7,4"
        ]
    );
    let text = body(&g);
    assert!(text.contains("Expand (cls, "), "{text}");
}

#[test]
fn a_number_takes_the_symbol_s_place() {
    let g = rebuilt(VISION, Batch::Fixed(5)).unwrap();
    assert_eq!((shape(&g, "x"), shape(&g, "heads")), ("5,6,4".into(), "7,10,2".into()));
    let heads = g.find("heads").unwrap();
    assert_eq!(crate::ops::constant_ints(&g, g.operand(heads.node, 1).unwrap()).unwrap(), [7, 10, 2]);
}

#[test]
fn indices_of_the_one_sample_become_each_sample_s_own() {
    // A padding mask read by (sample, position), as attention masks are.
    let nd = "g (int64[1, 3] m, float[1, 3] x) => (float[1, 1, 3] y) <int64[1, 1, 3, 2] at = {0, 0, 0, 1, 0, 2}> {
        c = Cast <to = 1> (m)
        g1 = GatherND (c, at)
        y = Add (g1, x)
    }";
    // `x` aligns with the last axes, so the first of the two free axes of the indices is the wrong one.
    assert_eq!(shape(&rebuilt(nd, Batch::Dynamic).unwrap(), "y"), "1,batch,3");
    let g = rebuilt(&nd.replace("float[1, 3] x", "float[1, 1, 3] x"), Batch::Dynamic).unwrap();
    assert_eq!(shape(&g, "y"), "batch,1,3");
    let flat = "g (float[1, 3] x) => (float[1, 1, 3] y) <int64[1] all = {-1}, int64[1, 1, 3] at = {2, 0, 1}> {
        f = Reshape (x, all)
        y = Gather <axis = 0> (f, at)
    }";
    let g = rebuilt(flat, Batch::Dynamic).unwrap();
    assert_eq!((shape(&g, "f"), shape(&g, "y")), ("3*batch".into(), "batch,1,3".into()));
}

#[test]
fn computed_shapes_with_a_baked_batch_follow() {
    let text = "g (float[1, time, 4] x) => (float[1, time, 2, 2] y) <int64[1] one = {1}, int64[1] at = {1}, int64[2] two = {2, 2}> {
        s = Shape (x)
        t = Gather <axis = 0> (s, at)
        target = Concat <axis = 0> (one, t, two)
        y = Reshape (x, target)
        float[1, time, 2, 2] y
    }";
    // The declaration belongs before the body.
    let text = text
        .replace("        float[1, time, 2, 2] y\n", "")
        .replace("two = {2, 2}>", "two = {2, 2}, float[1, time, 2, 2] y>");
    let g = rebuilt(&text, Batch::Dynamic).unwrap();
    assert_eq!(shape(&g, "y"), "batch,time,2,2");
}

#[test]
fn a_batch_of_several_is_rebuilt_too() {
    // The class token was expanded to the batch of two when the file was written.
    let text =
        "g (float[2, 3, 4] x) => (float[2, 16] y) <float[2, 1, 4] cls = {1, 2, 3, 4, 1, 2, 3, 4}, int64[2] to = {2, 16}> {
        t = Concat <axis = 1> (cls, x)
        y = Reshape (t, to)
    }";
    let g = rebuilt(text, Batch::Dynamic).unwrap();
    assert_eq!(shape(&g, "y"), "batch,16");
    let e = rebuilt(&text.replace("1, 2, 3, 4, 1, 2, 3, 4", "1, 2, 3, 4, 5, 6, 7, 8"), Batch::Dynamic).unwrap_err();
    assert!(e.contains("a constant that differs from sample to sample"), "{e}");
}

#[test]
fn recurrences_keep_samples_apart_and_so_do_what_they_start_from() {
    let text = "g (float[5, 1, 3] x) => (float[5, 1, 1, 2] y)
        <float[1, 8, 3] w = {…}, float[1, 8, 2] r = {…}, float[1, 1, 2] h = {…}> {
        y = LSTM <hidden_size = 2> (x, w, r, , , h, h)
    }";
    // The first input's second axis is no batch, so the samples are brought there.
    let text = text
        .replace("float[5, 1, 3] x", "float[1, 5, 3] i")
        .replace("        y = LSTM", "        x = Transpose <perm = [1, 0, 2]> (i)\n        y = LSTM");
    let g = rebuilt(&text, Batch::Dynamic).unwrap();
    assert_eq!(shape(&g, "y"), "5,1,batch,2");
    let n = g.find("y").unwrap().node;
    let start = g.tensor_type(g.operand(n, 5).unwrap()).unwrap();
    assert_eq!(start.shape[1].to_string(), "batch");
    let e = rebuilt(
        &text.replace("perm = [1, 0, 2]", "perm = [0, 1, 2]").replace("[5, 1, 1, 2] y", "[1, 1, 5, 2] y"),
        Batch::Dynamic,
    )
    .unwrap_err();
    assert!(e.contains("runs along the samples"), "{e}");
}

#[test]
fn what_mixes_samples_is_a_refusal() {
    let one = |node: &str, more: &str| {
        let text =
            format!("g (float[1, 3] x) => (float[?] y) <{more}> {{\n    y = {node}\n}}").replace("float[?] y", "float[] y");
        rebuilt(&text, Batch::Dynamic).err().unwrap_or_else(|| panic!("{node} is no refusal"))
    };
    let w = "float[3, 3] w = {…}";
    for (node, more, why) in [
        ("Softmax <axis = 0> (x)", w, "computes over the samples"),
        ("ReduceMean <keepdims = 1> (x, a)", "int64[1] a = {0}", "reduces over the samples"),
        ("ReduceSum (x)", w, "the samples too"),
        ("Squeeze (x, a)", "int64[1] a = {0}", "removes the axis of the samples"),
        ("Gather <axis = 0> (x, a)", "int64 a = {0}", "takes one sample"),
        ("Concat <axis = 0> (x, x)", w, "joins along the samples"),
        ("MatMul (w1, x)", "float[2, 1] w1 = {…}", "contracts the samples"),
        ("Tile (x, a)", "int64[2] a = {2, 1}", "repeats the samples"),
        ("CumSum (x, a)", "int64 a = {0}", "computes over the samples"),
    ] {
        let e = one(node, more);
        assert!(e.contains(why) && e.contains("node `y`"), "{node}: {e}");
    }
}
