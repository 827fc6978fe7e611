//! Convolutions on channels in blocks: the pass, gradients of its own, and `train`, which lays out by itself.

use crate::common::{Random, emit, floats, model, open, text, tool_ok, write_safetensors};
use crate::passes::{same, verified};
use ancre_passes::analysis::types::resolve_types;
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Tensor, TensorType, ValueId};
use ancre_passes::ops::build::Builder;
use ancre_passes::target::{CPU, CPU_BLOCKS};
use ancre_passes::transform::block_convolutions::block_convolutions;
use ancre_passes::transform::{differentiate, eliminate, lower_abstract};
use ancre_passes::verify;
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::files::read_model;
use ancre_rewrite::io::tensor::NpTensor;
use ancre_rewrite::train::checkpoint;

/// All channels together, few of the input's, one by one; images and sequences; a weight that two convolutions read, an output. What is
/// in groups, of single cells, too heavy for its image or has other channels stays.
#[test]
#[cfg(target_arch = "x86_64")]
fn blocking_keeps_the_function() {
    let mut random = Random(7);
    let mut g = Graph::default();
    let mut image = TensorType::fixed(DType::F32, &[1, 3, 9, 8]);
    image.shape[0] = Dim::symbol("n");
    let x = g.add_input("x", image.into(), None);
    let wave = g.add_input("wave", TensorType::fixed(DType::F32, &[2, 16, 11]).into(), None);
    let weights: Vec<ValueId> = [
        &[16, 3, 3, 3][..],
        &[32, 16, 3, 3],
        &[32, 1, 3, 3],
        &[32, 32, 1, 1],
        &[32, 16, 3, 3],
        &[20, 32, 3, 3],
        &[512, 20, 2, 2],
        &[512, 512, 3, 3],
        &[16, 16, 3],
        &[16, 1, 5],
        &[16],
    ]
    .iter()
    .enumerate()
    .map(|(i, dims)| {
        let tensor = Tensor::floats(DType::F32, dims, &random.normals(dims.iter().product::<i64>() as usize));
        g.add_initializer(&format!("w{i}"), tensor, true)
    })
    .collect();
    let mut b = Builder::new(&mut g, "net");
    let pads = |n: usize, p: i64| Attrs::new().with("pads", vec![p; 2 * n]);
    let mut conv = |x: ValueId, w: usize, attrs: Attrs| b.op_with("Conv", attrs, &[x, weights[w]]).unwrap();
    let few = conv(x, 0, pads(2, 1).with("strides", vec![2, 1]));
    let dense = conv(few, 1, pads(2, 1));
    let again = conv(few, 1, pads(2, 1).with("dilations", vec![1, 1]));
    let single = conv(dense, 2, pads(2, 1).with("group", 32));
    let cells = conv(again, 3, Attrs::new());
    let groups = conv(single, 4, pads(2, 1).with("group", 2));
    let other = conv(groups, 5, pads(2, 1));
    let wide = conv(other, 6, Attrs::new().with("strides", vec![2, 2]));
    let heavy = conv(wide, 7, pads(2, 1));
    let fixed = b.graph.add_initializer("fixed", Tensor::floats(DType::F32, &[16, 16, 3], &random.normals(768)), false);
    let mut conv = |x: ValueId, w: usize, attrs: Attrs| b.op_with("Conv", attrs, &[x, weights[w]]).unwrap();
    let sequence = conv(wave, 8, Attrs::new().with("dilations", vec![2]));
    let along = conv(sequence, 9, pads(1, 2).with("group", 16));
    let biased = b.op_with("Conv", pads(1, 1), &[along, weights[8], weights[10]]).unwrap();
    let still = b.op_with("Conv", pads(1, 1), &[biased, fixed]).unwrap();
    [cells, heavy, still, dense].into_iter().for_each(|v| g.add_output(v, None));
    let feeds = Tensors::from([
        ("x".to_string(), floats(DType::F32, &[2, 3, 9, 8], &random.normals(432))),
        ("wave".to_string(), floats(DType::F32, &[2, 16, 11], &random.normals(352))),
    ]);
    let before = open(&emit(&g)).unwrap().run(&feeds).unwrap();
    assert_eq!(block_convolutions(&mut g, &CPU).unwrap(), 0);
    assert_eq!(block_convolutions(&mut g, &CPU_BLOCKS).unwrap(), 7);
    verified(&g, verify::Stage::Legal, "in blocks");
    let count = |name: &str| g.nodes().filter(|n| g.op(*n).is_some_and(|op| op.name == name)).count();
    // Five images, one of which two convolutions read; two layouts of each of the two dense weights, one of each of the other three. A
    // convolution whose weight is constant stays: the runtime lays that out itself.
    assert_eq!((count("Conv"), count("ReorderOutput"), count("ReorderInput")), (13, 7, 5 + 2 * 2 + 3));
    same(&before, &open(&emit(&g)).unwrap().run(&feeds).unwrap(), 2e-6, "in blocks");
}

/// A weight's gradient is a convolution whose kernel is as long as the batch; its type is known when the file is read again.
#[test]
fn gradients_in_blocks_have_types_when_they_are_read() {
    let text = "g (float[n, 16, 6, 7] x, float[16, 1, 3, 3] w) => (l) {
        y = Conv <pads = [1, 1, 1, 1], group = 16> (x, w) l = ReduceSum <keepdims = 0> (y) }";
    let mut g = ancre_passes::text::parse(text).unwrap();
    let (loss, w) = (g.find("l").unwrap(), g.find("w").unwrap());
    differentiate(&mut g, &CPU_BLOCKS, loss, &[w]).unwrap();
    lower_abstract::lower_abstract(&mut g, &CPU_BLOCKS).unwrap();
    let gradient = g.find("w.ct").unwrap();
    g.add_output(gradient, None);
    eliminate::eliminate_dead(&mut g, |_, _| false);
    verified(&g, verify::Stage::Legal, "lowered");
    let inside = g.nodes().find(|n| g.op(*n).is_some_and(|op| op.name == "ReorderOutput")).unwrap();
    let name = g.name(g.result(inside, 0)).to_string();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("g.onnx");
    std::fs::write(&file, emit(&g)).unwrap();
    let (mut read, _) = read_model(&file).unwrap();
    assert_eq!(resolve_types(&mut read, None).values, read.nodes().filter(|n| read.op(*n).is_some()).count());
    let ty = read.tensor_type(read.find(&name).unwrap()).unwrap();
    assert_eq!((ty.dtype, ty.rank(), ty.shape[1].known()), (DType::F32, 4, Some(16)));
}

/// A training graph of plain operators runs in blocks where the machine has them, says so, and comes to the same state.
#[test]
fn train_lays_out_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| text(&dir.path().join(name));
    tool_ok(&[
        &text(&model("resnet_cifar")),
        "-o",
        &path(""),
        "--loss",
        "cross-entropy",
        "--verify",
        "none",
        "--optimizer",
        "sgd",
    ]);
    let (g, _) = read_model(&model("resnet_cifar")).unwrap();
    let input = g.required_inputs().next().unwrap();
    let mut dims: Vec<usize> = g.tensor_type(input).unwrap().shape.iter().map(|d| d.known().unwrap_or(8) as usize).collect();
    dims[0] = 8;
    let x = floats(DType::F32, &dims, &Random(9).normals(dims.iter().product()));
    let labels = NpTensor::i64s(&[8], &[0, 1, 0, 1, 1, 0, 1, 0]).unwrap();
    let data = Tensors::from([(g.name(input).to_string(), x), ("labels".to_string(), labels)]);
    write_safetensors(&dir.path().join("data.safetensors"), &data, None);
    let mut states = Vec::new();
    for (level, in_blocks) in [("all", cfg!(target_arch = "x86_64")), ("extended", false)] {
        let (graph, data, out) = (path("resnet_cifar.ancre.train.onnx"), path("data.safetensors"), path(level));
        let course = ["--steps", "2", "--batch-size", "8", "--lr", "1e-3", "--threads", "1", "--device", "cpu", "--json"];
        let own = ["train", &graph, "--data", &data, "--out", &out, "--optimization", level];
        let report = tool_ok(&[&own[..], &course].concat()).json();
        assert_eq!(report["in_blocks"], in_blocks, "{level}");
        states.push(checkpoint::read(&dir.path().join(level).join("last.safetensors")).unwrap().0);
    }
    same(&states[1], &states[0], 1e-4, "in blocks");
}
