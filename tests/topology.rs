//! `topology`: what the page, the pictures and the numbers say of a routed model.

use crate::common::{emit, model, text, tool, tool_ok, write_npz};
use ancre_passes::ir::Tensor;
use ancre_rewrite::engine::{Tensors, tract};
use ancre_rewrite::io::tensor::NpTensor;
use ancre_rewrite::rewrite;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

/// A model of three chains (K = 3, 2, 2) whose rows are softmaxes that are not one-hot.
fn routed() -> (TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = text(&dir.path().join("a & b.ancre.onnx"));
    let how = ["--parametrization", "softmax", "--init", "near-identity=0.25", "--no-train", "--verify", "none"];
    tool_ok(&[&[text(&model("resnet_cifar")), "-o".into(), path.clone()][..], &how.map(String::from)].concat());
    (dir, path)
}

#[test]
fn the_page_and_the_picture_show_every_weight_and_need_nothing_beside_themselves() {
    let (dir, path) = routed();
    let file = |name: &str| text(&dir.path().join(name));
    let asked = ["topology", &path, "--html", &file("t.html"), "--svg", &file("t.svg"), "--png", &file("t.png"), "--json"];
    let report = tool_ok(&asked).json();
    let chains = report["chains"].as_array().unwrap();
    let blocks: Vec<u64> = chains.iter().map(|c| c["K"].as_u64().unwrap()).collect();
    assert_eq!(blocks, [3, 2, 2]);
    assert_eq!(chains[0]["blocks"], serde_json::json!(["convolution", "convolution", "convolution"]));
    assert_eq!(chains[0]["columns"], serde_json::json!(["h0", "h1", "h2"]));
    for name in ["t.html", "t.svg"] {
        let content = std::fs::read_to_string(dir.path().join(name)).unwrap();
        let linked = content.replace("http://www.w3.org/2000/svg", "");
        assert!(!["http", "src=", "href", "url(", "<script", "@import"].iter().any(|w| linked.contains(w)), "{name}");
        assert!(content.contains("a &amp; b.ancre.onnx") && !content.contains("a & b"), "{name}");
        let balanced =
            |tag: &str| content.matches(&format!("<{tag}")).count() == content.matches(&format!("</{tag}>")).count();
        assert!(["svg", "text", "title", "figure", "section"].iter().all(|tag| balanced(tag)), "{name}");
        for (row, weights) in chains.iter().flat_map(|c| c["weights"].as_array().unwrap().iter().enumerate()) {
            let weights = weights.as_array().unwrap();
            let sum: f64 = weights.iter().map(|w| w.as_f64().unwrap()).sum();
            assert!(weights.len() == row + 1 && (sum - 1.0).abs() < 1e-6, "{weights:?}");
            for (column, w) in weights.iter().enumerate() {
                let w = w.as_f64().unwrap();
                assert!(w > 0.01, "{weights:?}");
                // Once beside its arc or in its cell, and exactly to those who point at either.
                assert!(content.contains(&format!(">{w:.2}</text>")), "{name}: {w}");
                assert!(content.contains(&format!("<title>h{column} in block {}: {w:.6}</title>", row + 1)), "{name}: {w}");
            }
        }
    }
    let picture = image::open(dir.path().join("t.png")).unwrap().to_luma8();
    let dark = picture.pixels().filter(|p| p.0[0] < 100).count();
    assert!(dark > 5_000 && dark < picture.pixels().len() / 4, "{dark} dark pixels of {}", picture.pixels().len());
    // The same source gives the same bytes.
    let first = std::fs::read(dir.path().join("t.png")).unwrap();
    tool_ok(&asked);
    assert!(first == std::fs::read(dir.path().join("t.png")).unwrap());
}

#[test]
fn a_browser_shows_the_page_without_texts_that_overlap() {
    let found = ["chromium", "chromium-browser", "google-chrome"].iter().find_map(|name| {
        let paths = std::env::split_paths(&std::env::var_os("PATH")?).collect::<Vec<PathBuf>>();
        paths.iter().map(|p| p.join(name)).find(|p| p.is_file())
    });
    let Some(browser) = found else {
        eprintln!("skipped: no browser is installed");
        return;
    };
    let (dir, path) = routed();
    let page = dir.path().join("t.html");
    tool_ok(&["topology", &path, "--html", &text(&page)]);
    // The browser measures the texts with its own typeface.
    let script = "<script>let n=0,t=[...document.querySelectorAll('svg')].map(s=>[...s.querySelectorAll('text')].map(e=>[e.textContent,e.getBoundingClientRect()]));
        for(const s of t)for(let i=0;i<s.length;i++)for(let j=0;j<i;j++){const a=s[i][1],b=s[j][1];
        if(a.left<b.right-1&&b.left<a.right-1&&a.top<b.bottom-4&&b.top<a.bottom-4)n++}
        document.title='texts '+t.flat().length+' overlaps '+n</script>";
    let content = std::fs::read_to_string(&page).unwrap().replace("</body>", &format!("{script}</body>"));
    std::fs::write(&page, content).unwrap();
    let profile = format!("--user-data-dir={}", text(&dir.path().join("profile")));
    let flags = ["--headless", "--no-sandbox", "--disable-gpu", &profile, "--dump-dom"];
    let out = Command::new(browser).args(flags).arg(format!("file://{}", page.display())).output().unwrap();
    let dom = String::from_utf8_lossy(&out.stdout);
    let title =
        dom.split("<title>texts ").nth(1).and_then(|t| t.split("</title>").next()).unwrap_or_else(|| panic!("{dom}"));
    let count: usize = title.split(' ').next().unwrap().parse().unwrap();
    assert!(count > 60 && title.ends_with("overlaps 0"), "{title}");
}

#[test]
fn inspecting_a_routed_model_shows_its_weights() {
    let (_dir, path) = routed();
    let said = tool_ok(&["inspect", &path]).out;
    assert!(said.contains("Routed by ancre-rewrite (reassign, add, stage, softmax, incoming)"), "{said}");
    let report = tool_ok(&["inspect", &path, "--json"]).json();
    assert_eq!(report["router"]["parametrization"], "softmax");
    let weights = report["topology"][0]["weights"].as_array().unwrap();
    assert_eq!(weights.len(), 3);
    let shown = format!("block 3{:>+11.3}", weights[2][0].as_f64().unwrap());
    assert!(said.contains(&shown), "{shown} is not in {said}");
    assert!(tool_ok(&["inspect", &text(&model("resnet_cifar")), "--json"]).json().get("topology").is_none());
}

#[test]
fn what_has_no_router_to_show_is_refused() {
    let (dir, path) = routed();
    let frozen = text(&dir.path().join("frozen.onnx"));
    tool_ok(&["freeze", &path, "-o", &frozen]);
    for (source, why) in [
        (text(&model("gpt2")), "is not routed"),
        (frozen, "its router was baked in"),
        (text(dir.path()), "holds no last.safetensors"),
    ] {
        let ran = tool(&["topology", &source]);
        assert_eq!(ran.status, 2);
        assert!(ran.err.contains(why) && ran.err.contains("try:"), "{}", ran.err);
    }
    let onto = tool(&["topology", &path, "--svg", &path]);
    assert_eq!(onto.status, 2, "the source was replaced: {}", onto.out);
}

/// The weights of attention are means over data: with queries of zero all alike, otherwise those that the values in the graph have.
#[test]
fn weights_of_attention_are_shown_as_means_over_data() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| text(&dir.path().join(name));
    let written = |name: &str, more: &[&str]| {
        let (net, path) = (text(&model("resnet_batch1")), file(name));
        let how = ["--batch", "dynamic", "--parametrization", "attention", "--no-train", "--verify", "none"];
        tool_ok(&[&[net.as_str(), "-o", &path], &how[..], more].concat());
        path
    };
    let path = written("net.ancre.onnx", &[]);
    let said = tool(&["topology", &path]);
    assert!(said.status == 2 && said.err.contains("--input FILE.npz"), "{}", said.err);

    let shape = vec![70, 1, 8, 8];
    let values: Vec<f32> = (0..70 * 64).map(|i| (i as f32 * 0.37).sin()).collect();
    let x = NpTensor::f32s(&shape, &values).unwrap();
    write_npz(&dir.path().join("x.npz"), &[("input".to_string(), shape, values)]);
    let weights = |path: &str| {
        let report = tool_ok(&["topology", path, "--input", &file("x.npz"), "--json"]).json();
        assert_eq!(report["samples"], 70);
        let row = |w: &serde_json::Value| w.as_array().unwrap().iter().map(|w| w.as_f64().unwrap()).collect::<Vec<_>>();
        report["chains"][0]["weights"].as_array().unwrap().iter().map(row).collect::<Vec<_>>()
    };
    for row in weights(&path) {
        assert!(row.iter().all(|w| (w - 1.0 / row.len() as f64).abs() < 1e-6), "{row:?}");
    }

    // Bytes of images are scaled as in training.
    let digits = text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/data/digits_val.npz"));
    assert_eq!(tool_ok(&["topology", &path, "--input", &digits, "--json"]).json()["samples"], 256);

    // A row has no weight of a state inside a whole block.
    let blocks = weights(&written("blocks.ancre.onnx", &["--summaries", "2"]));
    assert!(blocks[2].iter().zip([0.5, 0.0, 0.5]).all(|(w, want)| (w - want).abs() < 1e-6), "{blocks:?}");

    // Queries that choose.
    let (mut g, _) = rewrite::load(path.as_ref()).unwrap();
    let queries = g.find("ancre.0.logits").or_else(|| g.find("ancre.0.query")).expect("the queries");
    let ty = g.tensor_type(queries).unwrap();
    let dims: Vec<i64> = ty.known_dims().unwrap().to_vec();
    let n: i64 = dims.iter().product();
    let numbers: Vec<f32> = (0..n).map(|i| ((i * 7) % 5) as f32 - 2.0).collect();
    g.set_initializer(queries, Tensor::f32s(&dims, &numbers), false);
    let chosen = file("chosen.ancre.onnx");
    std::fs::write(&chosen, emit(&g)).unwrap();
    let found = weights(&chosen);
    g.clear_outputs();
    for row in 2..=3 {
        let v = g.find(&format!("ancre/0/attention_{row}")).expect("the weights");
        g.add_output(v, None);
    }
    let values = tract().load(&emit(&g), None).unwrap().run(&Tensors::from([("input".to_string(), x)])).unwrap();
    for row in 2..=3 {
        let all = values[&format!("ancre/0/attention_{row}")].to_f64();
        let mean = |c: usize| all.iter().skip(c).step_by(row).sum::<f64>() / (all.len() / row) as f64;
        let (mean, found) = ((0..row).map(mean).collect::<Vec<_>>(), &found[row - 1]);
        assert!(mean.iter().zip(found).all(|(a, b)| (a - b).abs() < 1e-5), "{mean:?} {found:?}");
        assert!(found.iter().any(|w| (w - 1.0 / row as f64).abs() > 1e-2), "{found:?}");
    }
}
