//! `grad`: gradients of any model's outputs.

use crate::common::{data, emit, floats, max_abs, model, open_file, random_data, read_npz, text, tool, tool_ok};
use ancre_passes::ir::DType;
use ancre_passes::text::parse;
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::tensor::NpTensor;
use std::path::PathBuf;
use tempfile::TempDir;

fn file(graph: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.onnx");
    std::fs::write(&path, emit(&parse(graph).unwrap())).unwrap();
    (dir, path)
}

/// The cotangent of a mean cross-entropy makes of the vector-Jacobian product the training graph's gradients, which PyTorch's numbers
/// check elsewhere.
#[test]
fn a_vector_jacobian_product_is_the_training_graph_s_gradient() {
    for name in ["resnet_cifar", "vit", "convnext", "mixer"] {
        let dir = tempfile::tempdir().unwrap();
        let (m, o) = (text(&model(name)), format!("{}/", text(dir.path())));
        let flags =
            ["--chains", "none", "--frozen-bn", "--optimizer", "none", "--loss", "cross-entropy", "--verify", "none"];
        tool_ok(&[&[m.as_str(), "-o", &o][..], &flags].concat());
        let report = tool_ok(&["grad", &m, "-o", &o, "--wrt", "*", "--json"]).json();
        let train = dir.path().join(format!("{name}.ancre.train.onnx"));
        let data = random_data(&train);
        let want = open_file(&train).run(&data).unwrap();
        let (output, ct) = (report["of"][0]["output"].as_str().unwrap(), report["of"][0]["cotangent"].as_str().unwrap());
        let logits = &want[output];
        let (n, classes) = (logits.shape()[0], logits.shape()[1]);
        let (z, labels) = (logits.to_f64(), data["labels"].to_i64());
        let mut cotangent = Vec::new();
        for (row, label) in z.chunks(classes).zip(&labels) {
            let sum: f64 = row.iter().map(|v| v.exp()).sum();
            let p = |c: usize| row[c].exp() / sum - f64::from(c as i64 == *label);
            cotangent.extend((0..classes).map(|c| p(c) / n as f64));
        }
        let mut feeds = data.clone();
        feeds.shift_remove("labels");
        feeds.insert(ct.into(), floats(DType::F32, &[n, classes], &cotangent));
        let got = open_file(&dir.path().join(format!("{name}.grad.onnx"))).run(&feeds).unwrap();
        assert!(max_abs(&got[output].to_f64(), &z) < 1e-5, "{name}: the model's own output stays");
        let mut count = 0;
        let all: Vec<f64> = want.iter().filter(|(n, _)| n.ends_with(".grad")).flat_map(|(_, t)| t.to_f64()).collect();
        let largest = all.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        for (name_of, t) in want.iter().filter(|(n, _)| n.ends_with(".grad")) {
            // A parameter that the exporter had merged with another has no gradient of its own here.
            let Some(have) = got.get(name_of).filter(|h| h.shape() == t.shape()) else { continue };
            let error = max_abs(&have.to_f64(), &t.to_f64()) / largest;
            assert!(error < 1e-4, "{name}: `{name_of}` is off by {error:.1e} of the largest gradient");
            count += 1;
        }
        assert!(count > 15, "{name}: {count} gradients");
        assert!(report["gradients"].as_array().unwrap().len() >= count, "{name}");
    }
}

/// The gradients of inputs and of all parameters, and of a gradient (an energy's, whose first are forces), as PyTorch computes them in
/// float64 of the same modules: `torch_numbers/gradients.py`. An error is in parts of the gradient's largest element.
#[test]
fn gradients_are_pytorch_s() {
    for (name, second) in [
        ("resnet", None),
        ("convnext", Some("x")),
        ("transformer", Some("x")),
        ("recurrent", None),
        ("unet", None),
        ("energy", Some("positions")),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let numbers = read_npz(&data(&format!("torch_numbers/gradients/{name}.npz")));
        let part = |prefix: &str| -> Tensors {
            numbers.iter().filter_map(|(k, t)| Some((k.strip_prefix(prefix)?.to_string(), t.clone()))).collect()
        };
        // Writes a gradient graph and compares what it gives with what PyTorch does.
        let check = |from: &str, to: &str, of: &str, feeds: &Tensors, want: &Tensors| {
            let wrt: Vec<&str> = want.keys().flat_map(|n| ["--wrt", n]).collect();
            let report = tool_ok(&[&["grad", from, "-o", to, "--of", of, "--json"][..], &wrt].concat()).json();
            let got = open_file(to.as_ref()).run(feeds).unwrap();
            let listed = report["gradients"].as_array().unwrap();
            assert_eq!(listed.len(), want.len());
            let norm = |v: &[f64]| v.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
            let top = want.values().map(|t| norm(&t.to_f64())).fold(0.0, f64::max);
            for g in listed {
                let (of, output) = (g["name"].as_str().unwrap(), g["output"].as_str().unwrap());
                let (have, want) = (got[output].to_f64(), want[of].to_f64());
                let error = max_abs(&have, &want) / norm(&want).max(1e-3 * top);
                assert!(error < 1e-5, "{name}: `{output}` is off by {error:.1e}");
            }
            got
        };
        let (once, twice) = (text(&dir.path().join("once.onnx")), text(&dir.path().join("twice.onnx")));
        let mut feeds = part("in/");
        feeds.insert("y.ct".into(), numbers["ct/y"].clone());
        let got =
            check(&text(&data(&format!("torch_numbers/gradients/{name}.onnx"))), &once, "y=ct", &feeds, &part("grad/"));
        assert!(max_abs(&got["y"].to_f64(), &numbers["out/y"].to_f64()) < 1e-5, "{name}");
        if let Some(by) = second {
            feeds.insert(format!("{by}.grad.ct"), numbers[&format!("ct2/{by}")].clone());
            check(&once, &twice, &format!("{by}.grad=ct"), &feeds, &part("second/"));
        }
    }
}

/// y = x³ elementwise: the gradient is 3 x² ct, and that graph's gradient is 6 x ct.
#[test]
fn gradients_compose() {
    let (dir, path) = file("g (float[n, 2] x) => (float[n, 2] y) { s = Mul (x, x) y = Mul (s, x) }");
    let once = dir.path().join("m.grad.onnx");
    let said = tool_ok(&["grad", &text(&path), "--of", "y=sum"]).out;
    assert!(said.contains("`x.grad` f32[n,2], with respect to `x`") && said.contains("proved for all inputs"), "{said}");
    let x = NpTensor::f32s(&[2, 2], &[1.0, -2.0, 0.5, 3.0]).unwrap();
    let first = open_file(&once).run(&Tensors::from([("x".into(), x.clone())])).unwrap();
    assert_eq!(first["x.grad"].to_f64(), [3.0, 12.0, 0.75, 27.0]);
    tool_ok(&["grad", &text(&once), "--of", "x.grad=sum", "--wrt", "x", "-o", &text(&dir.path().join("twice.onnx"))]);
    let second = open_file(&dir.path().join("twice.onnx")).run(&Tensors::from([("x".into(), x)])).unwrap();
    let name = second.keys().find(|n| n.ends_with("x.grad") && *n != "x.grad").expect("a name of its own").clone();
    assert_eq!(second[&name].to_f64(), [6.0, -12.0, 3.0, 18.0], "{name}");
    assert_eq!(second["x.grad"].to_f64(), [3.0, 12.0, 0.75, 27.0]);
}

/// A gradient of a layer normalisation reads its mean and deviation, whose cotangents the gradient of that gradient needs.
#[test]
fn the_gradient_of_a_layer_normalisation_has_a_gradient() {
    let (dir, path) = file(
        "g (float[2, 4] x) => (float[2, 4] y) <float[4] s = {1, 2, 0.5, 1.5}> { n = LayerNormalization (x, s) y = Mul (n, n) }",
    );
    let (once, twice) = (dir.path().join("m.grad.onnx"), dir.path().join("twice.onnx"));
    tool_ok(&["grad", &text(&path), "--of", "y=ct"]);
    tool_ok(&["grad", &text(&once), "--of", "x.grad=ct", "--wrt", "x", "-o", &text(&twice)]);
    let x = [0.3, -1.2, 0.8, 2.0, 1.1, 0.4, -0.7, 0.2];
    let (ct, along) = ([1.0, -2.0, 0.5, 1.5, 0.3, 1.0, -1.0, 2.0], [0.7, 0.1, -0.4, 1.0, -0.2, 0.9, 0.5, -1.1]);
    let t = |values: &[f64]| floats(DType::F32, &[2, 4], values);
    let mut first = open_file(&once);
    let mut projected = |i: usize, h: f64| {
        let mut moved = x;
        moved[i] += h;
        let got = first.run(&Tensors::from([("x".to_string(), t(&moved)), ("y.ct".to_string(), t(&ct))])).unwrap();
        got["x.grad"].to_f64().iter().zip(&along).map(|(g, a)| g * a).sum::<f64>()
    };
    let want: Vec<f64> = (0..8).map(|i| (projected(i, 1e-2) - projected(i, -1e-2)) / 2e-2).collect();
    let feeds = [("x".to_string(), t(&x)), ("y.ct".to_string(), t(&ct)), ("x.grad.ct".to_string(), t(&along))];
    let got = open_file(&twice).run(&Tensors::from(feeds)).unwrap();
    let name = got.keys().find(|n| n.ends_with("x.grad") && *n != "x.grad").expect("a name of its own");
    let error = max_abs(&got[name].to_f64(), &want);
    assert!(error < 5e-3 && want.iter().any(|w| w.abs() > 0.5), "{error}: {:?} against {want:?}", got[name].to_f64());
}

#[test]
fn several_outputs_add_up_and_what_they_do_not_depend_on_is_zero() {
    let (dir, path) = file(
        "g (float[n] x, float[n] z, int64[n] i) => (float[n] y, float t) <float[1] w = {3}, float[2] unused = {1, 2}> {
            y = Mul (x, w)
            q = Mul (x, x)
            t = ReduceSum <keepdims = 0> (q)
            u = Add (unused, unused)
        }",
    );
    let all = ["grad", &text(&path), "--of", "y", "--of", "t", "--wrt", "x", "--wrt", "z", "--wrt", "w"];
    let report = tool_ok(&[&all[..], &["--json"]].concat()).json();
    assert_eq!(report["of"][0]["cotangent"], "y.ct");
    assert!(report["of"][1]["cotangent"].is_null(), "a scalar needs none: {report}");
    let f = |values: &[f32]| NpTensor::f32s(&[values.len()], values).unwrap();
    let feeds = Tensors::from([
        ("x".to_string(), f(&[1.0, 2.0])),
        ("z".to_string(), f(&[1.0, 1.0])),
        ("i".to_string(), NpTensor::i64s(&[2], &[0, 0]).unwrap()),
        ("y.ct".to_string(), f(&[10.0, 100.0])),
    ]);
    let got = open_file(&dir.path().join("m.grad.onnx")).run(&feeds).unwrap();
    assert_eq!(got["x.grad"].to_f64(), [32.0, 304.0]);
    assert_eq!(got["z.grad"].to_f64(), [0.0, 0.0]);
    assert_eq!(got["w.grad"].to_f64(), [210.0]);
    // The weight is still a constant of the model.
    assert!(!open_file(&dir.path().join("m.grad.onnx")).inputs().contains(&"w".to_string()));
}

/// Training graphs have float32 master copies of such weights; a model that is only differentiated stays what it is.
#[test]
fn a_weight_of_half_precision_and_its_gradient_keep_their_type() {
    let (dir, path) =
        file("g (float16[n, 2] x) => (float16[n, 2] y) <float16[2, 2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }");
    let report = tool_ok(&["grad", &text(&path), "--of", "y=sum", "--wrt", "w", "--json"]).json();
    assert_eq!(report["gradients"][0]["type"], "f16[2,2]", "{report}");
    let x = floats(DType::F16, &[1, 2], &[0.5, -3.0]);
    let got = open_file(&dir.path().join("m.grad.onnx")).run(&Tensors::from([("x".into(), x)])).unwrap();
    assert_eq!((got["w.grad"].dtype(), got["w.grad"].to_f64()), (DType::F16, vec![0.5, 0.5, -3.0, -3.0]));
}

#[test]
fn what_has_no_gradient_is_named() {
    let (dir, path) = file(
        "g (float[n] x, int64[n] i) => (float[n] y, int64[n] k, float[n] v) { y = Exp (x) k = Add (i, i) v = Round (x) }",
    );
    let refused = |flags: &[&str], why: &str| {
        let ran = tool(&[&["grad", &text(&path)], flags].concat());
        assert!(ran.status == 2 && ran.err.contains(why), "{flags:?}: {}", ran.err);
        assert!(ran.err.contains("m.onnx"), "{}", ran.err);
    };
    refused(&[], "has 2 float outputs: `y`, `v`");
    refused(&["--of", "nothing"], "has no output `nothing`");
    refused(&["--of", "y=mean"], "`mean` is neither sum nor ct");
    refused(&["--of", "y", "--of", "y=sum"], "--of names an output twice");
    refused(&["--of", "k"], "gradients are of float tensors");
    refused(&["--of", "y", "--wrt", "i"], "no float input or initializer matches");
    refused(&["--of", "v"], "every gradient is zero");
    assert!(!dir.path().join("m.grad.onnx").exists());
}

/// An exporter folds scalars into initializers beside the parameters; a pattern means the parameters.
#[test]
fn a_pattern_takes_parameters_and_a_name_takes_any_constant() {
    let (_dir, path) = file(
        "g (float[2, 3] x) => (float[2, 3] y) <float[3, 3] layer.weight = {…}, float half = {0.5}, float[3] layer.bias = {1, 2, 3}> {
            m = MatMul (x, layer.weight) b = Add (m, layer.bias) y = Mul (b, half)
        }",
    );
    let chosen = |wrt: &str| -> Vec<String> {
        let report = tool_ok(&["grad", &text(&path), "--wrt", wrt, "--json"]).json();
        report["gradients"].as_array().unwrap().iter().map(|g| g["name"].as_str().unwrap().to_string()).collect()
    };
    assert_eq!(chosen("*"), ["x", "layer.weight", "layer.bias"]);
    assert_eq!(chosen("half"), ["half"]);
    assert_eq!(chosen("h*"), ["half"], "nothing else matches");
    let said = tool(&["grad", &text(&path), "--wrt", "layer.wieght"]).err;
    assert!(said.contains("did you mean `layer.weight`?"), "{said}");
}
