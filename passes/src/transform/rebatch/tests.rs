use super::*;
use crate::text::{body, parse};
use crate::transform::eliminate::eliminate_dead;
use crate::verify;

/// The graph rebuilt from batch 1, or why not.
fn rebuilt(text: &str, to: Batch) -> Result<Graph, String> {
    let mut g = parse(text).unwrap();
    let Current::Fixed(before) = current(&g).map_err(|e| e.to_string())? else { panic!("the batch is fixed") };
    let plan = plan(&g, before).map_err(|e| e.to_string())?;
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
    for (inputs, y, node, more, why) in [
        ("float[1] x", "float[1] y", "Softmax <axis = 0> (x)", "", "computes over the samples"),
        ("float[1] x", "float[1] y", "ReduceMean <keepdims = 1> (x, a)", "<int64[1] a = {0}>", "reduces over the samples"),
        ("float[1, 3] x", "float[] y", "ReduceSum <keepdims = 0> (x)", "", "the samples too"),
        ("float[1] x", "float[] y", "Squeeze (x, a)", "<int64[1] a = {0}>", "removes the axis of the samples"),
        ("float[1] x", "float[] y", "Gather <axis = 0> (x, a)", "<int64 a = {0}>", "takes one sample"),
        ("float[1] x", "float[2] y", "Concat <axis = 0> (x, x)", "", "joins along the samples"),
        ("float[1] x", "float[2] y", "MatMul (w, x)", "<float[2, 1] w = {…}>", "contracts the samples"),
        ("float[1] x", "float[1] y", "CumSum (x, a)", "<int64 a = {0}>", "computes over the samples"),
        ("float[2, 3] x", "float[4, 3] y", "Concat <axis = 0> (x, x)", "", "joins along the samples"),
        ("float[2, 3] x", "float[2, 3] y", "Softmax <axis = 0> (x)", "", "computes over the samples"),
        ("float[1, 3] x", "float[1] y", "NonZero (x)", "", "no rule says"),
    ] {
        let text = format!("g ({inputs}) => ({y}) {more} {{\n    y = {node}\n}}");
        let e = rebuilt(&text, Batch::Dynamic).err().unwrap_or_else(|| panic!("{node} is no refusal"));
        assert!(e.contains(why) && e.contains("node `y`"), "{node}: {e}");
    }
}

/// The type of `y` for any batch, and the operators of the graph in order.
fn moved(inputs: &str, y: &str, body: &str) -> (String, Vec<String>) {
    let g = rebuilt(&format!("g ({inputs}) => ({y}) {body}"), Batch::Dynamic).unwrap_or_else(|e| panic!("{body}: {e}"));
    let ops = g.topological_order().iter().filter_map(|n| g.op(*n).map(|op| op.name.clone())).collect();
    (shape(&g, "y"), ops)
}

#[test]
fn samples_go_to_another_axis_where_an_operator_needs_theirs() {
    for (inputs, y, body, want) in [
        ("float[1, 3] x", "float[1, 3] y", "{ y = Softmax <axis = 0> (x) }", "1,3*batch"),
        ("float[1, 3] x", "float[3] y", "<int64[1] a = {0}> { y = Squeeze (x, a) }", "3*batch"),
        ("float[1, 3] x", "float[3] y", "<int64 a = {0}> { y = Gather <axis = 0> (x, a) }", "3*batch"),
        ("float[1, 3] x", "float[2, 3] y", "{ y = Concat <axis = 0> (x, x) }", "2,3*batch"),
        ("float[1, 3] x", "float[2, 3] y", "<float[2, 1] w = {…}> { y = MatMul (w, x) }", "2,3*batch"),
        (
            "float[1, 2, 3] x",
            "float[1, 2, 3] y",
            "<float[2] s = {…}> { t = Transpose <perm = [1, 0, 2]> (x) c = Relu (t) p = Transpose <perm = [1, 0, 2]> (c) y = InstanceNormalization (p, s, s) }",
            "batch,2,3",
        ),
    ] {
        assert_eq!(moved(inputs, y, body).0, want, "{body}");
    }
    // No element moves: one reshape.
    let (y, ops) = moved("float[1, 3] x", "float[1, 3] y", "{ y = Softmax <axis = 0> (x) }");
    assert_eq!((y.as_str(), ops), ("1,3*batch", vec!["Reshape".to_string(), "Softmax".into()]));
}

#[test]
fn a_product_of_samples_in_two_places_brings_them_together() {
    // Heads are an axis of their own on one side and joined to the batch on the other.
    let (y, ops) = moved(
        "float[1, 4, 3, 2] q, float[1, 4, 3, 2] k",
        "float[1, 4, 3, 3] y",
        "<int64[3] h = {4, 3, 2}> { r = Reshape (k, h) t = Transpose <perm = [0, 2, 1]> (r) y = MatMul (q, t) }",
    );
    assert_eq!((y.as_str(), ops.iter().filter(|o| *o == "Transpose").count()), ("batch,4,3,3", 1), "{ops:?}");
}

#[test]
fn what_is_counted_from_the_batch_is_taken_as_it_was() {
    // Rows of the batch are counted to index the flattened values.
    let (y, _) = moved(
        "float[1, 3] x",
        "float[1, 3] y",
        "<int64[1] all = {-1}, int64 zero = {0}, int64 one = {1}, int64[1] first = {0}, int64[1] second = {1}, int64[1, 3] within = {2, 0, 1}, int64[1] rows, int64[1, 1] r, int64[1, 1] starts, int64[1, 3] at> {
            s = Shape (x)
            n = Gather <axis = 0> (s, zero)
            rows = Range (zero, n, one)
            r = Unsqueeze (rows, second)
            w = Gather <axis = 0> (s, second)
            starts = Mul (r, w)
            at = Add (starts, within)
            f = Reshape (x, all)
            y = Gather <axis = 0> (f, at)
        }",
    );
    assert_eq!(y, "batch,3");
}

#[test]
fn slices_and_elements_are_scattered_sample_by_sample() {
    let slices = "<int64[2, 1] at = {0, 2}> { r = Relu (x) s = Slice (x, b, e, a) y = ScatterND (r, at, s) }";
    let slices = slices.replace("> {", ", int64[1] b = {0}, int64[1] e = {2}, int64[1] a = {0}> {");
    // Where no axis of the indices is free, they are repeated.
    let (y, ops) = moved(
        "float[1, 3] x",
        "float[2] y",
        "<int64[1] all = {-1}, int64[2] at = {2, 0}> { f = Reshape (x, all) y = Gather <axis = 0> (f, at) }",
    );
    assert_eq!((y.as_str(), ops.contains(&"Tile".to_string())), ("2*batch", true), "{ops:?}");
    let text = "{ t = Transpose <perm = [1, 0]> (i) x = Identity (t) ";
    let body = slices.replace("{ r = Relu", &format!("{text}r = Relu"));
    assert_eq!(moved("float[1, 3] i", "float[3, 1] y", &body).0, "3,batch");
    // Every element has its coordinates, the sample's among them.
    let whole = "<int64[1, 2, 2] at = {0, 0, 0, 2}, int64[1] b = {0}, int64[1] e = {2}, int64[1] a = {1}> { r = Relu (x) s = Slice (x, b, e, a) y = ScatterND (r, at, s) }";
    assert_eq!(moved("float[1, 3] x", "float[1, 3] y", whole).0, "batch,3");
}

#[test]
fn an_axis_repeated_as_a_whole_repeats_all_samples() {
    let (y, ops) = moved("float[1, 3] x", "float[2, 3] y", "<int64[2] a = {2, 1}> { y = Tile (x, a) }");
    assert_eq!((y.as_str(), ops), ("2*batch,3", vec!["Tile".to_string()]));
    let (y, _) = moved(
        "float[1, 3] x",
        "float[2, 3] y",
        "<int64[2] a = {2, 1}, float[2, 3] w = {…}> { t = Tile (x, a) y = Mul (t, w) }",
    );
    assert_eq!(y, "2,3*batch");
}

/// Exporters that leave their functions as they are cast constants to the type of an activation.
#[test]
fn a_type_taken_from_the_samples_says_nothing_of_their_batch() {
    let g = rebuilt(
        "g (float[1, 4] x) => (float[1, 4] y) <double c = {0.5}> {
            like = CastLike (c, x)  a = Mul (x, like)  y = CastLike (a, like) }",
        Batch::Dynamic,
    );
    assert_eq!(shape(&g.unwrap(), "y"), "batch,4");
}

/// Exporters that leave their functions as they are write `chunk` and `split` with sequences.
#[test]
fn parts_of_a_sequence_keep_the_samples() {
    let g = rebuilt(
        "g (float[1, 4, 3] x) => (float[1, 4, 3] y)
            <int64[2] sizes = {1, 3}, int64 one = {1}, int64 first = {0}, float[1, 1, 3] a, float[1, 3, 3] b> {
            s = SplitToSequence <axis = 1> (x, sizes)  a = SequenceAt (s, first)  b = SequenceAt (s, one)
            y = Concat <axis = 1> (b, a) }",
        Batch::Dynamic,
    );
    let g = g.unwrap();
    assert_eq!([shape(&g, "a"), shape(&g, "b")], ["batch,1,3", "batch,3,3"]);
    let split = "g (float[1, 4] x) => (float[4] y) <int64 first = {0}> {
        s = SplitToSequence <axis = 0, keepdims = 0> (x)  y = SequenceAt (s, first) }";
    assert!(rebuilt(split, Batch::Dynamic).unwrap_err().contains("it splits the samples"));
}
