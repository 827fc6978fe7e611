//! What the main job says of its file: proved, compared, in which engine; and that an engine's gaps stop nothing that is proved.

use super::{folder, with, with_unknown_operator};
use crate::common::{emit, listing, model, runtime, text, tool, tool_ok};
use ancre_passes::text::parse;
use onnx_protobuf::{Message, ModelProto};
use std::path::{Path, PathBuf};

/// Writes a model given as text.
fn written(dir: &Path, graph: &str) -> PathBuf {
    let path = dir.join("m.onnx");
    std::fs::write(&path, emit(&parse(graph).unwrap_or_else(|e| panic!("{graph}: {e}")))).unwrap();
    path
}

/// Six blocks on `s0` of a type, then a head.
fn chain(dtype: &str, shape: &str, input: &str, head: &str) -> String {
    let blocks: String =
        (1..7).map(|i| format!("t{i} = Tanh (s{0}) f{i} = MatMul (t{i}, w{i}) s{i} = Add (s{0}, f{i}) ", i - 1)).collect();
    let weight = |i| (0..16).map(|k| format!("{}", (k * i) % 7 - 3)).collect::<Vec<_>>().join(", ");
    let weights: Vec<String> = (1..7).map(|i| format!("{dtype}[4, 4] w{i} = {{{}}}", weight(i))).collect();
    format!("g ({dtype}{shape} x) => ({dtype} y) <{}> {{ {input} {blocks} {head} }}", weights.join(", "))
}

#[test]
fn the_default_is_proved_and_an_engine_runs_when_asked_for() {
    runtime();
    let (_dir, model) = folder();
    let said = |more: &[&str]| tool_ok(&with(&model, &[more, &["--dry-run", "--json"]].concat())).json()["verify"].clone();
    let proved = said(&[]);
    assert!(proved["engine"].is_null() && proved["trials"] == 0, "{proved}");
    for what in ["one_hot", "emitted"] {
        assert!(proved[what]["method"] == "proof" && proved[what]["max_abs"] == 0.0, "{proved}");
        assert!(proved[what]["assumptions"].as_array().is_some_and(|a| !a.is_empty()), "{proved}");
    }
    for engine in ["tract", "ort", "both"] {
        let compared = said(&["--verify", engine, "--trials", "3"]);
        assert!(compared["engine"] == engine && compared["trials"] == 3, "{compared}");
        for what in ["one_hot", "emitted"] {
            assert!(compared[what]["method"] == "numeric" && compared[what]["proved"] == true, "{compared}");
        }
    }
    // A softmax that starts elsewhere is the source at one-hot and another function as written.
    let other = said(&["--parametrization", "softmax"]);
    assert!(other["one_hot"]["method"] == "proof" && other["engine"] == "tract", "{other}");
    assert!(other["emitted"]["method"] == "numeric" && other["emitted"]["equivalent"] == false, "{other}");
    // The sums of `augment` are recomputed outside the graph, which no proof does.
    let paper = said(&["--preset", "paper"]);
    assert!(paper["one_hot"]["method"] == "numeric" && paper["one_hot"]["proved"] == true, "{paper}");
    assert!(paper["one_hot"]["max_abs"].as_f64().is_some_and(|d| d < 1e-5), "{paper}");
    let text = tool_ok(&with(&model, &["--dry-run"])).out;
    assert!(text.contains("router at one-hot equals the source: proved for all inputs"), "{text}");
    let text = tool_ok(&with(&model, &["--dry-run", "--verify", "ort"])).out;
    assert!(text.contains("proved for all inputs, and compared on 2 inputs (ort): max |difference|"), "{text}");
}

/// Models of fixed types on which tract stops: a Gemm of float16 in the lowered router, strided slices around it.
#[test]
fn what_tract_cannot_run_is_proved() {
    runtime();
    for graph in [
        chain("float16", "[N, 4]", "s0 = Relu (x)", "y = Relu (s6)"),
        chain("float", "[1, 8, 4]", "s0 = Relu (x)", "y = Relu (s6)")
            .replace(
                "<float[4, 4] w1",
                "<int64[1] b = {0}, int64[1] e = {8}, int64[1] a = {1}, int64[1] two = {2}, float[4, 4] w1",
            )
            .replace("s0 = Relu (x)", "s0 = Slice (x, b, e, a, two)"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let m = written(dir.path(), &graph);
        let said = tool_ok(&with(&m, &["--json", "--no-train"])).json();
        assert_eq!(said["verify"]["emitted"]["method"], "proof", "{graph}");
        assert_eq!(said["router"]["chains"][0]["K"], 6, "{graph}");
        // Numbers agree too, within the rounding of the type.
        let said = tool_ok(&with(&m, &["--json", "--no-train", "--verify", "ort"])).json();
        assert_eq!(said["verify"]["emitted"]["equivalent"], true, "{said}");
    }
}

/// Where numbers are needed and tract lacks an operator, ONNX Runtime takes over, and the report says so.
#[test]
fn onnx_runtime_takes_over_from_tract() {
    runtime();
    let dir = tempfile::tempdir().unwrap();
    let m = written(
        dir.path(),
        &chain(
            "float",
            "[4, 4]",
            "s0 = Relu (x)",
            "n = Relu (s6) y = ReverseSequence <batch_axis = 0, time_axis = 1> (n, lengths)",
        )
        .replace("<float[4, 4] w1", "<int64[4] lengths = {1, 2, 3, 4}, float[4, 4] w1"),
    );
    let said = tool_ok(&with(&m, &["--json", "--no-train", "--parametrization", "softmax"])).json();
    assert_eq!(said["verify"]["engine"], "ort", "{said}");
    let notices = said["notices"].to_string();
    assert!(notices.contains("compared in ONNX Runtime, since tract cannot run the models"), "{notices}");
    assert!(notices.contains("ReverseSequence"), "{notices}");
}

#[test]
fn no_engine_is_needed_for_what_is_proved() {
    let (dir, model) = folder();
    with_unknown_operator(&model);
    let said = tool_ok(&with(&model, &["--no-train", "--json"])).json();
    assert_eq!(said["verify"]["emitted"]["method"], "proof");
    // The file of another start has no proof, and nothing runs it: it is written, and that is said.
    let softmax = ["--no-train", "--parametrization", "softmax"];
    let said = tool_ok(&with(&model, &[&softmax[..], &["--json"]].concat())).json();
    assert!(said["verify"]["one_hot"]["method"] == "proof" && said["verify"]["emitted"].is_null(), "{said}");
    assert!(said["notices"].to_string().contains("no engine at hand runs it"), "{said}");
    std::fs::remove_file(dir.path().join("net.ancre.onnx")).unwrap();
    let ran = tool(&with(&model, &[&softmax[..], &["--require-equivalent"]].concat()));
    assert!(ran.status == 1 && ran.err.contains("not known to be equivalent"), "{}", ran.err);
    // An engine that was asked for must run it.
    let ran = tool(&with(&model, &["--no-train", "--verify", "tract"]));
    assert_eq!(ran.status, 1, "{}", ran.err);
    assert!(ran.err.contains("NoSuchOperator") && ran.err.contains("--verify none"), "{}", ran.err);
    assert_eq!(listing(dir.path()), ["net.onnx"]);
}

#[test]
fn a_model_with_outside_data_is_read_back_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let m = written(dir.path(), &chain("float", "[N, 4]", "s0 = Relu (x)", "y = Relu (s6)"));
    // The weights move into a file of their own, beside which the output does not lie.
    let mut message = ModelProto::parse_from_bytes(&std::fs::read(&m).unwrap()).unwrap();
    let mut data = Vec::new();
    for t in &mut message.graph.as_mut().unwrap().initializer {
        let mut bytes = std::mem::take(&mut t.raw_data);
        bytes.extend(std::mem::take(&mut t.float_data).iter().flat_map(|v| v.to_le_bytes()));
        let entry = |key: &str, value: String| onnx_protobuf::StringStringEntryProto {
            key: key.into(),
            value,
            ..Default::default()
        };
        t.external_data = vec![
            entry("location", "m.data".into()),
            entry("offset", data.len().to_string()),
            entry("length", bytes.len().to_string()),
        ];
        t.data_location = onnx_protobuf::tensor_proto::DataLocation::EXTERNAL.into();
        data.extend(bytes);
    }
    std::fs::write(dir.path().join("m.data"), data).unwrap();
    std::fs::write(&m, message.write_to_bytes().unwrap()).unwrap();
    for engine in [&[][..], &["--verify", "tract"]] {
        let out = dir.path().join("out/");
        let said = tool_ok(&[&[text(&m).as_str(), "-o", &format!("{}/", text(&out)), "--json"], engine].concat()).json();
        assert_eq!(said["verify"]["emitted"]["equivalent"], true, "{said}");
        // Every file is listed with its size.
        let (files, listed) = (listing(&out), said["outputs"].as_array().unwrap());
        let size = |name: &str| std::fs::metadata(out.join(name)).unwrap().len();
        let told = |name: &str| listed.iter().find(|o| Path::new(o["path"].as_str().unwrap()) == out.join(name)).unwrap();
        assert!(files.len() == listed.len() && files.contains(&"m.data".to_string()), "{files:?} {listed:?}");
        assert!(files.iter().all(|name| told(name)["bytes"] == size(name)), "{listed:?}");
        assert_eq!(told("m.data")["kind"], "data");
        std::fs::remove_dir_all(out).unwrap();
    }
}

/// Float16 outputs may be a unit in the last place apart; `--gradient` allows for what differences of near states lose.
#[test]
fn float16_gradients_are_judged_as_float16() {
    runtime();
    let dir = tempfile::tempdir().unwrap();
    let m = written(dir.path(), &chain("float16", "[3, 4]", "s0 = Relu (x)", "y = Relu (s6)"));
    tool_ok(&with(&m, &["--loss", "mse", "--optimizer", "sgd", "--grad-outputs"]));
    let ran = tool(&["verify", "--gradient", &text(&dir.path().join("m.ancre.train.onnx"))]);
    assert_eq!(ran.status, 0, "{}{}", ran.out, ran.err);
}

#[test]
fn decoders_of_dynamic_length_run_in_tract() {
    // They count positions by a running sum over their mask, which tract does not take as it is.
    for name in ["gpt2", "gpt_neox", "llama_past"] {
        let dir = tempfile::tempdir().unwrap();
        let m = text(&model(name));
        let said = tool_ok(&[&m, "-o", &text(dir.path()), "--no-train", "--json", "--verify", "tract"]).json();
        let said = &said["verify"];
        assert!(said["engine"] == "tract" && said["one_hot"]["max_abs"] == 0.0, "{name}: {said}");
    }
}
