//! What an error says: the node in the way by name, the operator, and advice that leads somewhere.

use super::with;
use crate::common::{emit, runtime, text, tool, tool_ok, tool_where, write_npz};
use ancre_passes::text::parse;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, GraphProto, Message, ModelProto, NodeProto};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Three blocks `s0` to `s3` of [N, 4] on the float input `x`, then `tail`; `more` are further inputs and constants.
fn model(inputs: &str, output: &str, constants: &str, tail: &str) -> (TempDir, PathBuf) {
    let blocks: String =
        (1..4).map(|i| format!("t{i} = Tanh (s{0}) m{i} = MatMul (t{i}, w{i}) s{i} = Add (s{0}, m{i}) ", i - 1)).collect();
    let weights: String =
        (1..4).map(|i| format!("float[4, 4] w{i} = {{{}}}", ["0.5"; 16].join(", "))).collect::<Vec<_>>().join(", ");
    let graph =
        format!("g (float[N, 4] x{inputs}) => ({output} y) <{weights}{constants}> {{ s0 = Relu (x) {blocks} {tail} }}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    std::fs::write(&path, emit(&parse(&graph).unwrap_or_else(|e| panic!("{graph}: {e}")))).unwrap();
    (dir, path)
}

/// What the tool says of a model with these options, which it must not take.
fn refused(model: &Path, more: &[&str]) -> String {
    let ran = tool(&with(model, more));
    assert_eq!(ran.status, 2, "{more:?}: {}{}", ran.out, ran.err);
    for internal in ["?[", "[…]", "building ", " under `"] {
        assert!(!ran.err.contains(internal), "{}", ran.err);
    }
    ran.err
}

#[test]
fn what_stands_in_the_way_of_a_loss_is_named() {
    let (_dir, m) = model("", "float[2, K]", "", "z = NonZero (s3) y = Cast <to = 1> (z)");
    let said = refused(&m, &["--loss", "mse"]);
    assert!(said.contains("nothing would train") && said.contains("node `z` (NonZero)"), "{said}");
    let (_dir, m) = model("", "int64[N, 1]", "", "y = ArgMax <axis = 1> (s3)");
    let said = refused(&m, &["--loss", "mse"]);
    assert!(said.contains("node `y` (ArgMax) has no derivative: cut the model before it, at `s3`"), "{said}");
    // Without a loss the advice to choose one would lead there.
    let (_dir, m) = model("", "float", "", "y = Det (s3)");
    let said = tool_ok(&with(&m, &["--dry-run"])).out;
    assert!(said.contains("node `y` (Det) has no derivative") && !said.contains("choose with --loss"), "{said}");
}

#[test]
fn a_model_without_weights_says_where_its_numbers_are() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    std::fs::write(&path, emit(&parse("g (float[N, 4] x) => (float[N, 1] y) { y = Tanh (x) }").unwrap())).unwrap();
    let said = refused(&path, &["--loss", "mse"]);
    assert!(said.contains("the model holds no float tensor") && !said.contains("--trainable"), "{said}");
    let mut forest = ModelProto::parse_from_bytes(&std::fs::read(&path).unwrap()).unwrap();
    let mut domain = forest.opset_import[0].clone();
    (domain.domain, domain.version) = ("ai.onnx.ml".into(), 3);
    forest.opset_import.push(domain);
    let node = &mut forest.graph.as_mut().unwrap().node[0];
    (node.op_type, node.domain, node.name) = ("TreeEnsembleRegressor".into(), "ai.onnx.ml".into(), "forest".into());
    std::fs::write(&path, forest.write_to_bytes().unwrap()).unwrap();
    let said = refused(&path, &["--loss", "mse"]);
    assert!(said.contains("node `forest` (ai.onnx.ml.TreeEnsembleRegressor) are attributes"), "{said}");
}

#[test]
fn freezing_is_advised_where_something_is_left_to_train() {
    let (_dir, m) = model("", "float[N, 4]", "", "y = NoSuchOperator (s3)");
    let said = refused(&m, &["--loss", "mse"]);
    assert!(said.contains("all that trains lies before it") && !said.contains("--frozen"), "{said}");
    // A map behind the node goes on training; the advice is followed.
    let (_dir, m) = model(
        "",
        "float d, float[1, 2]",
        ", float[1, 2] v = {1, 2}, int64[2] one = {1, 1}",
        "tr = Transpose (s3) sq = MatMul (tr, s3) d = Det (sq) r = Reshape (d, one) y = MatMul (r, v)",
    );
    let said = refused(&m, &["--loss", "mse", "--output", "y"]);
    assert!(said.contains("node `d` (Det)") && said.contains("--frozen GLOB") && said.contains("--chains none"), "{said}");
    let more = ["--loss", "mse", "--output", "y", "--frozen", "w*", "--chains", "none", "--dry-run", "--json"];
    let report = tool_ok(&with(&m, &more)).json();
    assert_eq!(report["training"]["trainable"], serde_json::json!(["v"]));
}

/// `--fix` gives integer inputs and extents one value, no others.
#[test]
fn an_if_that_floats_decide_is_not_to_be_fixed() {
    let branch = |op: &str, out: &str| {
        let mut result = onnx_protobuf::ValueInfoProto { name: out.into(), ..Default::default() };
        let (_dir, m) = model("", "float[N, 4]", "", "y = Relu (s3)");
        let m = ModelProto::parse_from_bytes(&std::fs::read(m).unwrap()).unwrap();
        result.type_ = m.graph.output[0].type_.clone();
        let node =
            NodeProto { op_type: op.into(), input: vec!["s3".into()], output: vec![out.into()], ..Default::default() };
        GraphProto { name: out.into(), node: vec![node], output: vec![result], ..Default::default() }
    };
    let said = |inputs: &str, condition: &str| {
        let (_dir, path) =
            model(inputs, "float[N, 4]", ", float zero = {0.0}, int64 one = {1}", &format!("{condition} y = Not (c)"));
        let mut m = ModelProto::parse_from_bytes(&std::fs::read(&path).unwrap()).unwrap();
        let node = m.graph.as_mut().unwrap().node.iter_mut().find(|n| n.op_type == "Not").unwrap();
        (node.op_type, node.name) = ("If".into(), "gate".into());
        for (name, op) in [("then_branch", "Relu"), ("else_branch", "Tanh")] {
            let graph = Some(branch(op, name)).into();
            node.attribute.push(AttributeProto {
                name: name.into(),
                type_: AttributeType::GRAPH.into(),
                g: graph,
                ..Default::default()
            });
        }
        m.graph.as_mut().unwrap().value_info.clear();
        std::fs::write(&path, m.write_to_bytes().unwrap()).unwrap();
        refused(&path, &["--loss", "mse"])
    };
    let floats = said("", "r = ReduceSum <keepdims = 0> (x) c = Greater (r, zero)");
    assert!(floats.contains("node `gate` (If)") && floats.contains("from `x`") && !floats.contains("--fix"), "{floats}");
    let integers = said(", int64 n", "c = Greater (n, one)");
    assert!(integers.contains("from `n`") && integers.contains("--fix NAME=N"), "{integers}");
}

#[test]
fn an_unknown_type_is_laid_to_the_node_or_input_that_lost_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    let graph = "g (float[N, 4] x) => (float y) <float[4, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}>
        { z = NoSuchOperator (x) t = MatMul (z, w) y = Add (z, t) }";
    std::fs::write(&path, emit(&parse(graph).unwrap())).unwrap();
    let said = refused(&path, &["--loss", "mse"]);
    assert!(said.contains("NoSuchOperator") && said.contains("value_info"), "{said}");
    let graph = graph.replace("NoSuchOperator", "Tanh");
    let mut m = ModelProto::parse_from_bytes(&emit(&parse(&graph).unwrap())).unwrap();
    let g = m.graph.as_mut().unwrap();
    g.value_info.clear();
    for v in g.input.iter_mut().chain(&mut g.output) {
        v.type_.as_mut().unwrap().mut_tensor_type().shape.clear();
    }
    std::fs::write(&path, m.write_to_bytes().unwrap()).unwrap();
    let said = refused(&path, &["--loss", "mse"]);
    assert!(said.contains("the file does not declare that of its input `x`"), "{said}");
}

#[test]
fn a_file_of_another_kind_is_called_what_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    for (bytes, is) in [
        (&b"<!DOCTYPE html><html><body>404</body></html>"[..], "a web page"),
        (b"PK\x03\x04 and more of an archive", "a zip archive"),
        (b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01K\x01s.", "a Python pickle"),
        (b"GGUF\x03\x00\x00\x00 and more", "a GGUF file"),
        (b"\x0a\x00\x00\x00\x00\x00\x00\x00{\"a\":null} and more", "a .safetensors file"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let said = refused(&path, &[]);
        assert!(said.contains(&format!("is {is}")) && said.contains("not an ONNX model"), "{said}");
    }
}

/// No engine is advised that was asked already, and no extent where no extent is at fault.
#[test]
fn advice_names_no_engine_that_failed() {
    runtime();
    let (_dir, m) = model("", "float[N, 4]", "", "y = NoSuchOperator (s3)");
    let verify = |more: &[&str]| tool(&[&["verify", &text(&m), &text(&m), "--no-proof"], more].concat());
    let both = verify(&[]);
    assert!(both.status == 2 && both.err.contains("tract cannot") && both.err.contains("ort cannot"), "{}", both.err);
    assert!(!both.err.contains("try:"), "{}", both.err);
    assert!(verify(&["--engine", "tract"]).err.contains("try: --engine ort"));
    assert!(verify(&["--engine", "ort"]).err.contains("try: --engine tract"));
}

/// Each advice is followed: the variable goes before what is fetched, and a training graph is no model to start from.
#[test]
fn advice_fits_what_was_given() {
    runtime();
    let (dir, m) = model("", "float[N, 4]", "", "y = Tanh (s3)");
    let bogus = [("ORT_DYLIB_PATH", m.to_str().unwrap())];
    let said = tool_where(&bogus, &["runtime"]);
    assert!(said.status == 1 && said.err.contains("correct or unset ORT_DYLIB_PATH"), "{} {}", said.status, said.err);
    let said = tool_where(&bogus, &["verify", &text(&m), &text(&m), "--no-proof", "--engine", "ort"]);
    assert!(said.status == 2 && said.err.contains("correct or unset ORT_DYLIB_PATH"), "{} {}", said.status, said.err);
    tool_ok(&with(&m, &["--loss", "mse"]));
    let said = refused(&dir.path().join("m.ancre.train.onnx"), &[]);
    assert!(said.contains("is a training") && said.contains("`ancre-rewrite train`"), "{said}");
    std::fs::write(dir.path().join("file"), "").unwrap();
    let out = text(&dir.path().join("file/"));
    let said = refused(&m, &["-o", &format!("{out}/")]);
    assert!(said.contains("file is a file, no directory"), "{said}");
}

/// The tensor that was the first to be no number, and its node; and no lower rate, which would change nothing.
#[test]
fn a_nan_is_laid_to_the_tensor_that_went_first() {
    runtime();
    let tail = "n = Neg (s3) l = Log (n) y = MatMul (l, v)";
    let (dir, m) = model("", "float[N, 2]", ", float[4, 2] v = {1, 2, 3, 4, 5, 6, 7, 8}", tail);
    // Whatever comes in, the logarithm is of no positive number.
    let data = |name: &str, value: f32| {
        let path = dir.path().join(name);
        let x = |i: usize| if i == 22 { value } else { -1.0 };
        write_npz(
            &path,
            &[("x".into(), vec![8, 4], (0..32).map(x).collect()), ("target".into(), vec![8, 2], vec![0.0; 16])],
        );
        text(&path)
    };
    tool_ok(&with(&m, &["--loss", "mse"]));
    let train = text(&dir.path().join("m.ancre.train.onnx"));
    let run = |data: &str| {
        let out = text(&dir.path().join("run"));
        let ran =
            tool(&["train", &train, "--data", data, "--steps", "2", "--batch-size", "4", "--out", &out, "--overwrite"]);
        assert_eq!(ran.status, 1, "{}{}", ran.out, ran.err);
        assert!(ran.err.contains("step 1") && !ran.err.contains("--lr"), "{}", ran.err);
        ran.err
    };
    let said = run(&data("good.npz", -1.0));
    assert!(said.contains("`l`, which node `l` (Log) computes of `n`, is the first to hold"), "{said}");
    let said = run(&data("bad.npz", f32::NAN));
    assert!(said.contains("the input `x` holds NaN") && said.contains("mend the data"), "{said}");
    // Validation data are looked at too.
    let (dir, m) = model("", "float[N, 4]", "", "y = Tanh (s3)");
    tool_ok(&with(&m, &["--loss", "mse"]));
    let train_2 = text(&dir.path().join("m.ancre.train.onnx"));
    let data = |name: &str, value: f32| {
        let path = dir.path().join(name);
        let x = |i: usize| if i == 22 { value } else { 1.0 };
        write_npz(
            &path,
            &[("x".into(), vec![8, 4], (0..32).map(x).collect()), ("target".into(), vec![8, 4], vec![0.0; 32])],
        );
        text(&path)
    };
    let (good, bad) = (data("good.npz", 1.0), data("bad.npz", f32::NAN));
    let out = text(&dir.path().join("run"));
    let arguments = ["train", &train_2, "--data", &good, "--val", &bad, "--steps", "2", "--batch-size", "4", "--out", &out];
    let ran = tool(&arguments);
    assert!(
        ran.status == 1 && ran.err.contains("bad.npz: the loss in evaluation is NaN: the input `x` holds NaN"),
        "{}",
        ran.err
    );
    assert!(!ran.err.contains("--lr") && ran.err.contains("mend the data"), "{}", ran.err);

    let said = tool(&["verify", "--gradient", &train]);
    assert!(said.status == 2 && said.err.contains("node `l` (Log)"), "{} {}", said.status, said.err);
}
