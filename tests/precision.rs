//! Less memory: what the backward pass computes again.

use crate::common::{advance, first_state, model, open_file, random_data, text, tool_ok};
use ancre_rewrite::engine::Tensors;
use std::path::Path;

/// The outputs of the second step of a model's training graph.
fn second_step(name: &str, dir: &Path, flags: &[&str]) -> (Tensors, serde_json::Value) {
    std::fs::create_dir_all(dir).unwrap();
    let out = text(dir) + "/";
    let source = text(&model(name));
    let run = tool_ok(&[&[source.as_str(), "-o", &out, "--verify", "none", "--json"], flags].concat());
    let path = dir.join(format!("{name}.ancre.train.onnx"));
    let (feeds, mut state) = (random_data(&path), first_state(&path));
    let mut session = open_file(&path).bare();
    advance(&mut session, feeds.clone(), &mut state);
    (advance(&mut session, feeds, &mut state), run.json())
}

/// Losses, norms and every next state are the same to the bit: batch normalisations, router and all.
#[test]
fn what_is_computed_again_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for (name, flags) in [
        ("resnet_cifar", &[][..]),
        ("resnet_cifar", &["--chains", "none", "--recompute", "3"]),
        ("llama", &[]),
        ("deep_mlp", &["--loss", "mse", "--preset", "paper"]),
    ] {
        let plain: Vec<&str> = flags.iter().copied().filter(|f| !["--recompute", "3"].contains(f)).collect();
        let again =
            if flags.contains(&"--recompute") { flags.to_vec() } else { [flags, &["--recompute", "blocks"]].concat() };
        let (want, _) = second_step(name, &dir.path().join("plain"), &plain);
        let (got, report) = second_step(name, &dir.path().join("again"), &again);
        assert_eq!(want.keys().collect::<Vec<_>>(), got.keys().collect::<Vec<_>>());
        for (output, value) in &want {
            assert_eq!(got[output].bytes(), value.bytes(), "{name} {flags:?}: `{output}`");
        }
        let said = &report["training"]["recompute"];
        assert!(said["blocks"].as_u64().unwrap() > 1 && said["nodes"].as_u64().unwrap() > 10, "{said}");
        let coefficient = |key: &str| -> f64 {
            let first = said[key].to_string();
            first.trim_matches('"').split('*').next().unwrap().parse().unwrap_or_default()
        };
        assert!(coefficient("kept_bytes") < coefficient("kept_bytes_before"), "{said}");
    }
}
