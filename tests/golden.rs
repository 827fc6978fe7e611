//! The emitted graphs against PyTorch: forward values, losses, all gradients, running statistics and training curves of
//! `golden/` (its README says what the files hold), for the files of both of PyTorch's exporters.

use crate::common::{advance, data, floats, max_abs, norm, open_file, read_npz, text, tool_ok, write_npz};
use ancre_passes::ir::DType;
use ancre_rewrite::engine::{Session, Tensors};
use ancre_rewrite::io::tensor::NpTensor;
use indexmap::IndexMap;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Which exporter's file.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Exporter {
    First,
    Second,
}

/// One family of goldens.
pub struct Family {
    dir: PathBuf,
    pub meta: Value,
    pub inputs: Tensors,
    exporter: Exporter,
}

/// A K × K matrix and which of its entries are given.
struct Matrix {
    k: usize,
    values: Vec<f64>,
    given: Vec<bool>,
}

/// What a file's name says.
struct Setting {
    form: String,
    outgoing: bool,
    grain: String,
    init: String,
}

impl Setting {
    /// Of `expected_augment_outgoing_block_random` or `curve_reassign_stage`.
    fn parse(stem: &str) -> Setting {
        let mut words: Vec<&str> = stem.split('_').skip(1).collect();
        let outgoing = words.contains(&"outgoing");
        words.retain(|w| *w != "outgoing");
        let init = words.get(2).unwrap_or(&"uniform").to_string();
        Setting { form: words[0].to_string(), outgoing, grain: words[1].to_string(), init }
    }

    fn granularity(&self) -> &str {
        if self.outgoing { "outgoing" } else { &self.grain }
    }
}

impl Family {
    pub fn open(name: &str, exporter: Exporter) -> Family {
        let dir = data("golden").join(name);
        let meta = serde_json::from_slice(&std::fs::read(dir.join("meta.json")).unwrap()).unwrap();
        let inputs = read_npz(&dir.join("inputs.npz"));
        Family { dir, meta, inputs, exporter }
    }

    fn file(&self) -> &'static str {
        if self.exporter == Exporter::First { "cascaded.onnx" } else { "cascaded_alt.onnx" }
    }

    pub fn model(&self) -> PathBuf {
        self.dir.join(self.file())
    }

    fn tolerance(&self, what: &str) -> f64 {
        self.meta["tolerance"][what].as_f64().unwrap()
    }

    /// The half sum of squares of the formulas is half the summed squared error; all others are as they are.
    pub fn loss(&self) -> &'static str {
        match self.meta["loss"].as_str().unwrap() {
            "mse" => "mse",
            "cross_entropy" => "cross-entropy",
            "next_token_cross_entropy" => "next-token",
            other => panic!("loss {other}"),
        }
    }

    /// The name an initializer of the first exporter's file has in this one.
    fn own(&self, initializer: &str) -> String {
        let alt = &self.meta["alt"][initializer]["initializer"];
        if self.exporter == Exporter::First { initializer.to_string() } else { alt.as_str().unwrap().to_string() }
    }

    /// An array in this file's layout, brought to that of the first exporter's.
    fn layout(&self, initializer: &str, t: &NpTensor) -> Vec<f64> {
        let values = t.to_f64();
        let flipped = self.meta["alt"][initializer]["transposed"].as_bool() == Some(true);
        if self.exporter == Exporter::First || !flipped {
            return values;
        }
        let (rows, columns) = (t.shape()[0], t.shape()[1]);
        (0..values.len()).map(|i| values[(i % rows) * columns + i / rows]).collect()
    }

    /// The router matrices that `<prefix><chain>.c.<k>` (rows) or `.c_out.<i>` (columns) give, by initializer.
    fn matrices(&self, arrays: &Tensors, prefix: &str, granularity: &str) -> IndexMap<String, Matrix> {
        let mut out = IndexMap::new();
        let chains = self.meta["chains"][granularity].as_object().unwrap();
        for (id, (chain, k)) in chains.iter().enumerate() {
            let k = k.as_u64().unwrap() as usize;
            if k == 1 {
                continue;
            }
            let mut m = Matrix { k, values: vec![0.0; k * k], given: vec![false; k * k] };
            let mut set = |row: usize, column: usize, v: f64| {
                m.values[row * k + column] = v;
                m.given[row * k + column] = true;
            };
            for (key, array) in arrays {
                let Some(rest) = key.strip_prefix(&format!("{prefix}{chain}.")) else { continue };
                let values = array.to_f64();
                if let Some(row) = rest.strip_prefix("c.").and_then(|n| n.parse::<usize>().ok()) {
                    values.iter().enumerate().for_each(|(i, v)| set(row - 1, i, *v));
                } else if let Some(source) = rest.strip_prefix("c_out.").and_then(|n| n.parse::<usize>().ok()) {
                    values.iter().enumerate().for_each(|(j, v)| set(source + j, source, *v));
                }
            }
            out.insert(format!("ancre.{id}.logits"), m);
        }
        out
    }

    /// Runs the tool; returns forward and training graph.
    fn build(&self, s: &Setting, dir: &Path, more: &[&str]) -> (PathBuf, PathBuf) {
        let names: Vec<&str> =
            self.meta["trainable"][self.file()].as_array().unwrap().iter().map(|n| n.as_str().unwrap()).collect();
        std::fs::write(dir.join("trainable.txt"), names.join("\n")).unwrap();
        let mut a: Vec<String> = vec![text(&self.model()), "-o".into(), text(dir)];
        let grain = if ["stage", "sublayer"].contains(&s.grain.as_str()) { "add" } else { "block" };
        let tau = self.meta["tau"].to_string();
        let trainable = text(&dir.join("trainable.txt"));
        let fixed = ["--form", &s.form, "--granularity", grain, "--tau", &tau, "--verify", "none", "--grad-outputs"];
        a.extend(fixed.iter().chain(&["--loss", self.loss(), "--trainable-from", &trainable]).map(|s| s.to_string()));
        a.extend(more.iter().map(|s| s.to_string()));
        match s.init.as_str() {
            "constant" => a.extend(["--parametrization", "constant"].map(String::from)),
            // Logits of one instead of zero: the same function and gradient.
            "hadamard" => a.extend(["--parametrization", "softmax", "--init", "uniform"].map(String::from)),
            setting => {
                let given = self.matrices(&self.inputs, &format!("c/{}/{setting}/", s.granularity()), s.granularity());
                let arrays: Vec<_> = given
                    .iter()
                    .map(|(name, m)| (name.clone(), vec![m.k, m.k], m.values.iter().map(|v| *v as f32).collect()))
                    .collect();
                let path = dir.join("logits.npz");
                write_npz(&path, &arrays);
                a.extend(["--parametrization".into(), "softmax".into(), "--init".into(), format!("file:{}", text(&path))]);
            }
        }
        if s.outgoing {
            a.extend(["--normalize".into(), "outgoing".into()]);
        }
        tool_ok(&a);
        let stem = self.file().trim_end_matches(".onnx");
        (dir.join(format!("{stem}.ancre.onnx")), dir.join(format!("{stem}.ancre.train.onnx")))
    }

    /// The model's inputs.
    pub fn data(&self) -> Tensors {
        self.inputs.iter().filter_map(|(k, v)| Some((k.strip_prefix("input/")?.to_string(), v.clone()))).collect()
    }

    /// The inputs, and the target under its name.
    fn feeds(&self, required: &[String]) -> Tensors {
        let mut feeds = self.data();
        let target = required.iter().find(|n| ["labels", "target"].contains(&n.as_str())).unwrap();
        feeds.insert(target.clone(), self.inputs["target"].clone());
        feeds
    }

    /// Compares one `expected_…` file; returns what is off.
    fn check_expected(&self, path: &Path) -> Vec<String> {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let setting = Setting::parse(stem);
        let want = read_npz(path);
        let dir = tempfile::tempdir().unwrap();
        let (forward, train) = self.build(&setting, dir.path(), &["--optimizer", "none"]);
        let mut off = Vec::new();
        let mut judge = |what: String, error: f64, allowed: f64| {
            if error.is_nan() || error > allowed {
                off.push(format!("{stem}: {what} off by {error:.2e}, allowed {allowed:.1e}"));
            }
        };

        let out = open_file(&forward).run(&self.data()).unwrap()[0].to_f64();
        let logits = want.get("logits_eval").unwrap_or(&want["logits"]).to_f64();
        let largest = logits.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
        judge("forward".into(), max_abs(&out, &logits) / largest, self.tolerance("logits"));

        let mut session = open_file(&train);
        let got = session.run(&self.feeds(session.inputs())).unwrap();
        let (loss, reference) = (got["loss"].to_f64()[0], want["loss"].to_f64()[0]);
        judge("loss".into(), (loss - reference).abs() / reference.abs(), self.tolerance("loss"));

        let mut largest = 0f64;
        let is_weight = |n: &str| !n.contains(".c.") && !n.contains(".c_out.");
        let weights: Vec<(&str, Vec<f64>)> =
            want.iter().filter_map(|(k, v)| Some((k.strip_prefix("grad/").filter(|n| is_weight(n))?, v.to_f64()))).collect();
        let logits = self.matrices(&want, "grad/", setting.granularity());
        for g in weights.iter().map(|(_, g)| g).chain(logits.values().map(|m| &m.values)) {
            largest = largest.max(norm(g));
        }
        let error = |got: &[f64], want: &[f64]| {
            let d: Vec<f64> = got.iter().zip(want).map(|(a, b)| a - b).collect();
            norm(&d) / norm(want).max(1e-3 * largest)
        };
        assert_eq!(weights.len(), self.meta["trainable"]["cascaded.onnx"].as_array().unwrap().len(), "{stem}");
        for (name, g) in &weights {
            let own = format!("{}.grad", self.own(name));
            let have = self.layout(name, got.get(&own).unwrap_or_else(|| panic!("{stem}: no output `{own}`")));
            judge(format!("gradient of {name}"), error(&have, g), self.tolerance("gradient"));
        }
        for (name, m) in logits.iter().filter(|(_, m)| m.given.contains(&true)) {
            let have = got[&format!("{name}.grad")].to_f64();
            let have: Vec<f64> = have.iter().zip(&m.given).map(|(v, g)| if *g { *v } else { 0.0 }).collect();
            judge(format!("gradient of {name}"), error(&have, &m.values), self.tolerance("gradient"));
        }
        for (key, statistic) in want.iter().filter(|(k, _)| k.starts_with("running/")) {
            let name = &key["running/".len()..];
            let statistic = statistic.to_f64();
            let largest = statistic.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
            let have = got[&format!("{}.next", self.own(name))].to_f64();
            judge(format!("statistic {name}"), max_abs(&have, &statistic) / largest, self.tolerance("running"));
        }
        off
    }

    /// Trains along one optimiser's curve; returns what is off.
    fn check_curve(&self, path: &Path, optimizer: &str, flags: &[&str]) -> Vec<String> {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let setting = Setting::parse(stem);
        let want = read_npz(path);
        let dir = tempfile::tempdir().unwrap();
        let (_, train) = self.build(&setting, dir.path(), flags);
        let mut session = open_file(&train);
        let mut feeds = self.feeds(session.inputs());
        feeds.insert("lr".into(), floats(DType::F32, &[], &[self.meta["learning_rate"][optimizer].as_f64().unwrap()]));
        let mut state = Tensors::new();
        let (reference, spread) =
            (want[&format!("{optimizer}/loss")].to_f64(), want[&format!("{optimizer}/spread")].to_f64());
        let mut off = Vec::new();
        let mut widest = 0f64;
        for (step, (reference, spread)) in reference.iter().zip(&spread).enumerate() {
            let loss = advance(&mut session, feeds.clone(), &mut state)["loss"].to_f64()[0];
            widest = widest.max(*spread);
            let error = (loss - reference).abs() / reference.abs();
            let allowed = self.tolerance("curve").max(self.tolerance("spread") * widest);
            if error.is_nan() || error > allowed {
                off.push(format!(
                    "{stem} {optimizer} step {step}: loss {loss} for {reference}, off by {error:.2e}, allowed {allowed:.1e}"
                ));
                return off;
            }
        }
        // Where correct float32 runs part, final values mean nothing.
        if widest >= 1e-4 {
            return off;
        }
        for (name, m) in self.matrices(&want, &format!("{optimizer}/final/"), setting.granularity()) {
            let have = state[&name].to_f64();
            for (i, (v, want)) in have.iter().zip(&m.values).enumerate().filter(|(i, _)| *i >= m.k && m.given[*i]) {
                if (v - want).abs() > self.tolerance("final") {
                    off.push(format!("{stem} {optimizer}: final {name}[{i}] is {v}, expected {want}"));
                }
            }
        }
        for (key, want_final) in &want {
            let Some(name) = key.strip_prefix(&format!("{optimizer}/final/")).filter(|n| !n.contains(".c.")) else {
                continue;
            };
            let ill = want.get(&format!("{optimizer}/ill/{name}")).map(|t| t.to_f64());
            let have = self.layout(name, &state[&self.own(name)]);
            for (i, (v, w)) in have.iter().zip(want_final.to_f64()).enumerate() {
                let skipped = ill.as_ref().is_some_and(|ill| ill[i] != 0.0);
                if !skipped && (v - w).abs() > self.tolerance("final") {
                    off.push(format!("{stem} {optimizer}: final {name}[{i}] is {v}, expected {w}"));
                }
            }
        }
        for (key, statistic) in want.iter().filter(|(k, _)| k.starts_with(&format!("{optimizer}/running/"))) {
            let name = self.own(key.rsplit('/').next().unwrap());
            let (have, statistic) = (state[&name].to_f64(), statistic.to_f64());
            let largest = statistic.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
            if max_abs(&have, &statistic) / largest > 1e-3 {
                off.push(format!("{stem} {optimizer}: final statistic {name} is off"));
            }
        }
        off
    }

    fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(&self.dir).unwrap().flatten().map(|e| e.path());
        let mut all: Vec<PathBuf> =
            entries.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix))).collect();
        all.sort();
        assert!(!all.is_empty(), "no {prefix} files in {}", self.dir.display());
        all
    }

    fn check_all_expected(&self) {
        let off: Vec<String> = self.files("expected_").iter().flat_map(|p| self.check_expected(p)).collect();
        assert!(off.is_empty(), "{}", off.join("\n"));
    }

    fn check_all_curves(&self) {
        let optimizers: [(&str, &[&str]); 3] = [
            ("sgd", &["--optimizer", "sgd", "--momentum", "0.9"]),
            ("adam", &["--optimizer", "adam"]),
            ("adamw", &["--optimizer", "adamw", "--weight-decay", "0.01"]),
        ];
        let files = self.files("curve_");
        let all = files.iter().flat_map(|p| optimizers.iter().map(move |(o, flags)| (p, o, flags)));
        let off: Vec<String> = all.flat_map(|(p, o, flags)| self.check_curve(p, o, flags)).collect();
        assert!(off.is_empty(), "{}", off.join("\n"));
    }
}

macro_rules! families {
    ($($family:ident)*) => {$(
        mod $family {
            use super::{Exporter, Family};

            #[test]
            fn values_and_gradients_are_pytorch_s() {
                Family::open(stringify!($family), Exporter::First).check_all_expected();
            }

            #[test]
            fn values_and_gradients_are_pytorch_s_from_the_other_exporter() {
                Family::open(stringify!($family), Exporter::Second).check_all_expected();
            }

            #[test]
            fn curves_are_pytorch_s() {
                Family::open(stringify!($family), Exporter::First).check_all_curves();
            }

            #[test]
            fn curves_are_pytorch_s_from_the_other_exporter() {
                Family::open(stringify!($family), Exporter::Second).check_all_curves();
            }
        }
    )*};
}

families!(mlp llama resnet);
