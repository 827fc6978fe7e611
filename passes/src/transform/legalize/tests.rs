//! Forms and attributes after each rewrite; the numbers were compared in an engine.

use super::*;
use crate::ir::{DType, Dim, Tensor, TensorType, ValueType};
use crate::verify::{Stage, verify};

fn f32s(dims: &[i64]) -> ValueType {
    TensorType::fixed(DType::F32, dims).into()
}

/// A graph of one node `y = op(inputs…)` at an opset; further results are named `y1`, `y2`, ….
fn graph(opset: i64, op: Op, inputs: &[ValueType], results: usize) -> Graph {
    let mut g = Graph::default();
    g.opsets.insert(String::new(), opset);
    let operands: Vec<_> =
        inputs.iter().enumerate().map(|(i, t)| Some(g.add_input(&format!("x{i}"), t.clone(), None))).collect();
    let n = g.add_op("n", op, &operands);
    for i in 0..results {
        let name = if i == 0 { "y".to_string() } else { format!("y{i}") };
        g.push_result(n, &name, ValueType::default());
    }
    let y = g.result(n, 0);
    g.add_output(y, None);
    g
}

fn legal(g: &mut Graph) -> i64 {
    let opset = to_opset(g, TARGET, &mut Applied::default()).unwrap();
    crate::transform::eliminate::eliminate_dead(g, |_, _| false);
    verify(g, Stage::Legal).unwrap();
    assert_eq!(g.name(g.outputs()[0].value), "y");
    opset
}

fn decomposed(g: &mut Graph) -> Applied {
    let mut applied = Applied::default();
    decompose_contrib(g, &mut applied);
    applied
}

fn ops(g: &Graph) -> Vec<String> {
    let order = g.topological_order();
    order.iter().filter_map(|n| g.op(*n)).map(Op::full_name).collect()
}

fn producer(g: &Graph) -> NodeId {
    g.outputs()[0].value.node
}

fn ints(g: &Graph, i: usize) -> Vec<i64> {
    let v = g.operand(producer(g), i).unwrap();
    g.constant(v).unwrap().to_i64().unwrap()
}

#[test]
fn listed_attributes_become_operands() {
    for (name, opset, attr) in [
        ("ReduceMean", 17, "axes"),
        ("ReduceSum", 11, "axes"),
        ("Squeeze", 12, "axes"),
        ("Unsqueeze", 12, "axes"),
        ("Split", 12, "split"),
    ] {
        let (dims, list): (&[i64], &[i64]) = if name == "Split" { (&[3, 1], &[2, 1]) } else { (&[3, 1], &[1]) };
        let mut g = graph(opset, Op::new(name, Attrs::new().with(attr, list)), &[f32s(dims)], list.len());
        assert_eq!(legal(&mut g), 18, "{name}");
        assert_eq!(ints(&g, 1), list, "{name}");
        assert!(g.op(producer(&g)).unwrap().attrs.get(attr).is_none(), "{name}");
    }
}

#[test]
fn an_equal_split_counts_its_parts() {
    let mut g = graph(13, Op::new("Split", Attrs::new()), &[f32s(&[4])], 2);
    legal(&mut g);
    assert_eq!(g.op(producer(&g)).unwrap().attrs.int("num_outputs"), Some(2));
}

#[test]
fn a_softmax_over_a_matrix_keeps_its_meaning() {
    let softmax = |axis: i64, dims: &[i64]| {
        let mut g = graph(11, Op::new("Softmax", Attrs::new().with("axis", axis)), &[f32s(dims)], 1);
        legal(&mut g);
        g
    };
    assert_eq!(ops(&softmax(1, &[2, 3, 4])), ["Flatten", "Softmax", "Reshape"]);
    let last = softmax(2, &[2, 3, 4]);
    assert_eq!((ops(&last), last.op(producer(&last)).unwrap().attrs.int("axis")), (vec!["Softmax".to_string()], Some(2)));
    // The other columns have extent 1: nothing to flatten.
    assert_eq!(ops(&softmax(1, &[2, 3, 1])), ["Softmax"]);
}

#[test]
fn bounds_and_amounts_become_operands() {
    let mut g = graph(10, Op::new("Clip", Attrs::new().with("max", 6.0f32)), &[f32s(&[2])], 1);
    legal(&mut g);
    let operands = g.operands(producer(&g));
    assert_eq!((operands.len(), operands[1]), (3, None));
    assert_eq!(g.constant(operands[2].unwrap()).unwrap().scalar(), Some(6.0));

    let attrs = Attrs::new().with("pads", vec![1, 2]).with("value", 0.5f32).with("mode", "constant");
    let mut g = graph(10, Op::new("Pad", attrs), &[f32s(&[2])], 1);
    legal(&mut g);
    assert_eq!(ints(&g, 1), [1, 2]);
    assert_eq!(g.op(producer(&g)).unwrap().attrs.0.keys().collect::<Vec<_>>(), ["mode"]);
}

#[test]
fn upsample_is_an_asymmetric_resize() {
    let attrs = Attrs::new().with("mode", "nearest").with("scales", Attr::Floats(vec![1.0, 1.0, 2.0, 2.0]));
    let mut g = graph(7, Op::new("Upsample", attrs), &[f32s(&[1, 1, 2, 2])], 1);
    legal(&mut g);
    assert_eq!(ops(&g), ["Resize"]);
    assert_eq!(g.op(producer(&g)).unwrap().attrs.str("coordinate_transformation_mode"), Some("asymmetric"));
    assert!(g.operand(producer(&g), 1).is_none() && g.operand(producer(&g), 2).is_some());
}

#[test]
fn batch_statistics_of_the_old_form_are_dropped_only_unread() {
    let s = f32s(&[3]);
    let inputs = [f32s(&[2, 3]), s.clone(), s.clone(), s.clone(), s];
    let mut g = graph(9, Op::new("BatchNormalization", Attrs::new()), &inputs, 5);
    legal(&mut g);
    assert_eq!(g.node(producer(&g)).results().len(), 1);

    let mut g = graph(9, Op::new("BatchNormalization", Attrs::new()), &inputs, 5);
    let mean = g.result(producer(&g), 1);
    g.add_output(mean, None);
    assert!(to_opset(&mut g, TARGET, &mut Applied::default()).is_err());
}

#[test]
fn newer_operators_become_plain_ones() {
    let x = f32s(&[2, 3, 8]);
    let mut g = graph(20, Op::new("Gelu", Attrs::new()), std::slice::from_ref(&x), 1);
    assert_eq!(legal(&mut g), 18);
    assert_eq!(ops(&g), ["Div", "Erf", "Add", "Mul", "Mul"]);

    let mut g = graph(23, Op::new("RMSNormalization", Attrs::new()), &[x.clone(), f32s(&[8])], 1);
    assert_eq!(legal(&mut g), 18);
    assert_eq!(ops(&g), ["Mul", "ReduceMean", "Add", "Sqrt", "Div", "Mul"]);

    let heads = |h: i64| -> ValueType {
        TensorType::new(DType::F32, [Dim::symbol("b"), Dim::from(h), Dim::symbol("t"), Dim::from(8)]).into()
    };
    let causal = Op::new("Attention", Attrs::new().with("is_causal", 1));
    let mut g = graph(23, causal, &[heads(4), heads(2), heads(2)], 1);
    assert_eq!(legal(&mut g), 18);
    assert_eq!(g.tensor_type(g.outputs()[0].value), heads(4).tensor());
}

#[test]
fn what_has_no_plain_form_raises_the_opset() {
    let h = f32s(&[1, 2, 3, 4]);
    let inputs = vec![h.clone(), h.clone(), h.clone(), f32s(&[3, 6]), h.clone(), h];
    let mut g = graph(24, Op::new("Attention", Attrs::new()), &inputs, 1);
    assert_eq!(legal(&mut g), 23);
    assert_eq!(ops(&g), ["Attention"]);

    let conv = || Op::new("Conv", Attrs::new());
    let of =
        |t: DType| vec![ValueType::from(TensorType::fixed(t, &[1, 1, 4, 4])), TensorType::fixed(t, &[1, 1, 3, 3]).into()];
    assert_eq!(legal(&mut graph(24, conv(), &of(DType::BF16), 1)), 22);
    assert_eq!(legal(&mut graph(24, conv(), &of(DType::F16), 1)), 18);
}

#[test]
fn attributes_that_say_nothing_are_left_out() {
    let pool = |dilation: i64| {
        let attrs = Attrs::new().with("kernel_shape", vec![2, 2]).with("dilations", vec![dilation; 2]);
        graph(20, Op::new("AveragePool", attrs), &[f32s(&[1, 1, 4, 4])], 1)
    };
    let mut g = pool(1);
    assert_eq!(legal(&mut g), 18);
    assert!(g.op(producer(&g)).unwrap().attrs.get("dilations").is_none());
    let mut g = pool(2);
    assert_eq!(legal(&mut g), 19);
    assert!(g.op(producer(&g)).unwrap().attrs.get("dilations").is_some());
}

#[test]
fn fused_operators_of_the_runtime_become_plain_ones() {
    let x = f32s(&[2, 3, 8]);
    let skip = Op::in_domain("com.microsoft", "SkipLayerNormalization", Attrs::new());
    let mut g = graph(14, skip, &[x.clone(), x.clone(), f32s(&[8])], 4);
    let sum = g.result(producer(&g), 3);
    g.add_output(sum, None);
    assert_eq!(decomposed(&mut g).changed, 1);
    legal(&mut g);
    assert_eq!(ops(&g), ["Add", "LayerNormalization"]);
    assert_eq!(g.name(g.outputs()[1].value), "y3");

    let packed = Op::in_domain("com.microsoft", "Attention", Attrs::new().with("num_heads", 2));
    let mut g = graph(14, packed, &[x.clone(), f32s(&[8, 24]), f32s(&[24])], 1);
    assert_eq!(decomposed(&mut g).changed, 1);
    legal(&mut g);
    assert!(ops(&g).iter().all(|op| !op.contains('.')));
    assert_eq!(g.tensor_type(g.outputs()[0].value), x.tensor());
}

#[test]
fn an_activation_fused_into_a_product_comes_after_it() {
    let fused = |name: &str, attrs: Attrs| Op::in_domain("com.microsoft", name, attrs);
    let named = |name: &str| Attrs::new().with("activation", name);
    let (x, w) = (f32s(&[2, 3, 5, 5]), f32s(&[4, 3, 3, 3]));
    let conv = fused("FusedConv", named("LeakyRelu").with("activation_params", vec![0.3_f32]));
    let mut g = graph(14, conv, &[x.clone(), w.clone(), f32s(&[4]), f32s(&[2, 4, 3, 3])], 1);
    assert_eq!(decomposed(&mut g).changed, 1);
    assert_eq!(ops(&g), ["Conv", "Add", "LeakyRelu"]);
    assert_eq!(g.op(producer(&g)).unwrap().attrs.float("alpha"), Some(0.3));
    let mut g = graph(14, fused("FusedGemm", named("Tanh").with("transB", 1)), &[f32s(&[2, 3]), f32s(&[4, 3])], 1);
    assert_eq!(decomposed(&mut g).changed, 1);
    assert_eq!(ops(&g), ["Gemm", "Tanh"]);
    // An activation that has no form here keeps the operator.
    let mut g = graph(14, fused("FusedConv", named("Softmax")), &[x, w], 1);
    assert_eq!(decomposed(&mut g).changed, 0);
}

#[test]
fn a_fused_operator_whose_statistics_are_read_stays() {
    let x = f32s(&[2, 3, 8]);
    let skip = Op::in_domain("com.microsoft", "SkipLayerNormalization", Attrs::new());
    let mut g = graph(14, skip, &[x.clone(), x, f32s(&[8])], 2);
    let mean = g.result(producer(&g), 1);
    g.add_output(mean, None);
    let applied = decomposed(&mut g);
    assert_eq!((applied.changed, applied.refused[0].why.clone()), (0, Why::Feature("the statistics it reports")));
}

#[test]
fn no_derivative_quotes_why_an_operator_stays_fused() {
    let x = f32s(&[2, 3, 8]);
    let past = f32s(&[2, 2, 4, 3, 4]);
    let attention = Op::in_domain("com.microsoft", "Attention", Attrs::new().with("num_heads", 2));
    let mut g = graph(18, attention, &[x.clone(), f32s(&[8, 24]), f32s(&[24]), x, past], 1);
    let x = g.operand(producer(&g), 0).unwrap();
    decomposed(&mut g);
    let y = g.outputs()[0].value;
    let loss = Builder::new(&mut g, "loss").reduce_all("ReduceSum", y).unwrap();
    let e = crate::transform::differentiate(&mut g, &crate::target::CPU, loss, &[x]).unwrap_err().to_string();
    assert!(e.contains("no derivative here: it uses a key cache"), "{e}");
}

#[test]
fn a_constant_bound_keeps_the_operand_s_type() {
    let half = TensorType::fixed(DType::F16, &[2]).into();
    let mut g = graph(9, Op::new("Clip", Attrs::new().with("min", 0.0f32)), &[half], 1);
    legal(&mut g);
    let low = g.operand(producer(&g), 1).unwrap();
    assert_eq!(g.constant(low).map(Tensor::dtype), Some(DType::F16));
}

#[test]
fn a_part_of_a_split_sequence_is_a_slice() {
    // As dynamo writes `x.split(2, 1)` and `x.split((1, 4), 1)` before optimisation.
    for (split, place, range) in [
        (Tensor::i64s(&[], &[2]), 1, [2, 4]),
        (Tensor::i64s(&[], &[2]), -1, [4, 6]),
        (Tensor::i64s(&[2], &[1, 4]), 1, [1, 5]),
        (Tensor::i64s(&[2], &[1, 4]), -2, [0, 1]),
    ] {
        let mut g = Graph::default();
        g.opsets.insert(String::new(), 18);
        let x = g.add_input("x", f32s(&[3, 5]), None);
        let split = g.add_initializer("split", split, false);
        let place = g.add_initializer("place", Tensor::i64s(&[], &[place]), false);
        let parts = g.add_op("n", Op::new("SplitToSequence", Attrs::new().with("axis", 1)), &[Some(x), Some(split)]);
        let parts = g.push_result(parts, "parts", ValueType::default());
        let n = g.add_op("at", Op::new("SequenceAt", Attrs::new()), &[Some(parts), Some(place)]);
        let y = g.push_result(n, "y", ValueType::default());
        g.add_output(y, None);
        assert_eq!(legal(&mut g), 18);
        assert_eq!(ops(&g), ["Slice"]);
        assert_eq!([ints(&g, 1)[0], ints(&g, 2)[0]], range);
    }
}

#[test]
fn spatial_0_beside_one_number_a_channel_means_what_the_parameters_say() {
    let op = || Op::new("BatchNormalization", Attrs::new().with("spatial", 0));
    for (parameters, form) in
        [(&[4i64][..], &["BatchNormalization"][..]), (&[4, 5, 5], &["Sub", "Add", "Sqrt", "Div", "Mul", "Add"])]
    {
        let inputs = [&[2, 4, 5, 5][..], parameters, parameters, parameters, parameters].map(f32s);
        let mut g = graph(7, op(), &inputs, 1);
        legal(&mut g);
        let mut got = ops(&g);
        let mut want: Vec<String> = form.iter().map(|s| s.to_string()).collect();
        got.sort();
        want.sort();
        assert_eq!(got, want);
    }
}

#[test]
fn padding_of_transposed_convolutions_becomes_explicit() {
    let same = || Attrs::new().with("auto_pad", "SAME_UPPER").with("strides", vec![2, 2]);
    for (attrs, pads) in [
        (same().with("output_padding", vec![1, 1]), [1, 1, 1, 1]),
        (same(), [0, 0, 1, 1]),
        (Attrs::new().with("strides", vec![2, 2]).with("output_shape", vec![10, 10]), [1, 1, 0, 0]),
    ] {
        let mut g = graph(18, Op::new("ConvTranspose", attrs), &[f32s(&[1, 4, 5, 5]), f32s(&[4, 3, 3, 3])], 1);
        legal(&mut g);
        let op = g.op(producer(&g)).unwrap();
        assert_eq!(op.attrs.ints("pads"), Some(&pads[..]));
        assert!(op.attrs.get("auto_pad").is_none() && op.attrs.get("output_shape").is_none());
    }
}

/// As Keras exporters write them: padding that follows from an extent which only the run tells.
#[test]
fn padding_to_the_same_extent_is_computed_where_only_the_run_tells_it() {
    for (op, nodes) in
        [("Conv <SAME> (x, k)", 12), ("AveragePool <SAME, count_include_pad = 1> (x)", 12), ("AveragePool <SAME> (x)", 28)]
    {
        let attrs = "kernel_shape = [3, 2], strides = [2, 3], auto_pad = \"SAME_UPPER\"";
        let source = format!(
            "net (float[n, 3, h, w] x) => (y) <float[3, 3, 3, 2] k = {{…}}> {{ y = {} }}",
            op.replace("SAME", attrs)
        );
        let mut g = crate::text::parse(&source).unwrap();
        let (x, y) = (g.find("x").unwrap(), g.find("y").unwrap());
        let before = g.tensor_type(y);
        to_opset(&mut g, TARGET, &mut Applied::default()).unwrap();
        assert_eq!((g.tensor_type(y), g.nodes().filter(|n| g.op(*n).is_some()).count()), (before, nodes), "{op}");
        let loss = Builder::new(&mut g, "loss").reduce_all("ReduceSum", y).unwrap();
        let gradients = crate::transform::differentiate::differentiate(&mut g, &crate::target::CPU, loss, &[x]).unwrap();
        let of_x = g.tensor_type(gradients[&x]).unwrap();
        assert!(of_x.may_be(&g.tensor_type(x).unwrap()), "{op}: {of_x}");
    }
}
