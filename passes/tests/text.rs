//! Golden cases of the passes in the textual form of `text`, and the properties of that form.
//!
//! A case is a file of `text/`: `// RUN: <pass or pipeline> [options] | …`, comments that say what it shows, a graph, `// EXPECT`, and
//! what comes out. `BLESS=1 cargo test -p ancre-passes --test text` writes the last part anew; read what changed before it is
//! committed.

#![allow(clippy::unwrap_used)]

use ancre_passes::analysis::residual::{Join, ResidualStructure, find_residuals};
use ancre_passes::ir::{Attrs, DType, Dim, Graph, Op, Tensor, TensorType};
use ancre_passes::ops::build::Builder;
use ancre_passes::pipeline::{Cx, PIPELINES, Pass, PassManager, passes, run_words};
use ancre_passes::text::{body, outline, parse, print};
use ancre_passes::verify::{Stage, verify};
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn here(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(below)
}

// ---- golden cases -----------------------------------------------------------------------------------------------------

#[test]
fn golden_cases() {
    let mut files: Vec<PathBuf> = std::fs::read_dir(here("tests/text")).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    let bless = std::env::var_os("BLESS").is_some();
    let mut differ = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let (input, expected) = text.split_once("// EXPECT\n").unwrap_or((&text, ""));
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        let got = run_case(input).unwrap_or_else(|e| panic!("{name}: {e}"));
        if got == expected {
            continue;
        }
        if bless {
            std::fs::write(&file, format!("{}\n\n// EXPECT\n{got}", input.trim_end())).unwrap();
        } else {
            differ.push(format!("{name}: expected\n{expected}\ngot\n{got}"));
        }
    }
    assert!(differ.is_empty(), "{}", differ.join("\n\n"));
}

fn run_case(input: &str) -> Result<String, String> {
    let run = input.lines().find_map(|l| l.strip_prefix("// RUN: ")).ok_or("no line `// RUN: …`")?;
    // Comments become empty lines, so that errors name the file's own lines.
    let text: Vec<&str> = input.lines().map(|l| if l.starts_with("//") { "" } else { l }).collect();
    let mut g = parse(&text.join("\n")).map_err(|e| e.to_string())?;
    verify(&g, Stage::Open).map_err(|e| format!("the input is not well formed: {}", e.join("; ")))?;
    let mut out = String::new();
    let mut printed = false;
    let mut cx = Cx::default();
    for stage in run.split('|').map(str::trim) {
        printed = stage_of(stage, &mut g, &mut cx, &mut out)?;
        verify(&g, Stage::Open).map_err(|e| format!("after {stage}: {}", e.join("; ")))?;
        let text = print(&g);
        assert_eq!(print(&parse(&text).map_err(|e| format!("after {stage}: {e}\n{text}"))?), text);
    }
    if !printed {
        out += &outline(&g);
    }
    Ok(out)
}

/// Runs a pass or a pipeline by name, or shows the graph; whether it wrote what is to be seen itself.
fn stage_of(stage: &str, g: &mut Graph, cx: &mut Cx, out: &mut String) -> Result<bool, String> {
    match stage {
        "print" => return Ok(false),
        "body" => *out += &body(g),
        "residuals" => *out += &residuals(g, &find_residuals(g)),
        _ => {
            let mut manager = PassManager::default();
            let known = (cx.aliases.len(), cx.refused.len());
            run_words(stage, g, cx, &mut manager).map_err(|e| e.to_string())?;
            let ran = |name: &str| manager.runs.iter().any(|r| r.pass == name);
            for run in manager.runs.iter().filter(|r| r.changed > 0 && r.pass != "route-skips") {
                let _ = writeln!(out, "# {}: {}", run.pass, run.changed);
            }
            if ran("route-skips") && g.routers.is_empty() {
                *out += "# no router\n";
            }
            for (id, r) in g.routers.iter().filter(|_| ran("route-skips")) {
                let note = cx.routed.notes.get(id).map(|n| format!("; {n}")).unwrap_or_default();
                let _ = writeln!(out, "# chain {id}: {} blocks of {} adds{note}", r.blocks(), r.adds_per_block);
            }
            for (new, old) in cx.aliases.iter().skip(known.0) {
                let _ = writeln!(out, "# {new} was {old}");
            }
            for t in cx.trained.iter().filter(|_| ran("differentiate")) {
                let _ = writeln!(out, "# {} has the gradient {}", g.name(t.value), g.name(t.gradient));
            }
            cx.refused.iter().skip(known.1).for_each(|r| out.push_str(&format!("# refused: {r}\n")));
            return Ok(false);
        }
    }
    Ok(true)
}

/// Every pass stands in a golden text, by its own name or in a pipeline.
#[test]
fn every_pass_has_a_golden_text() {
    let mut ran: Vec<String> = Vec::new();
    for file in std::fs::read_dir(here("tests/text")).unwrap() {
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let run = text.lines().find_map(|l| l.strip_prefix("// RUN: ")).unwrap();
        ran.extend(run.split('|').filter_map(|s| s.split_whitespace().next()).map(str::to_string));
    }
    let in_pipeline =
        |p: &Pass| PIPELINES.iter().any(|(name, all)| ran.iter().any(|r| r == name) && all.iter().any(|q| q.name == p.name));
    let missing: Vec<&str> =
        passes().into_iter().filter(|p| !ran.iter().any(|r| r == p.name) && !in_pipeline(p)).map(|p| p.name).collect();
    assert!(missing.is_empty(), "no golden text runs {missing:?}");
}

fn residuals(g: &Graph, found: &ResidualStructure) -> String {
    let mut out = String::new();
    let join = |j: &Join| {
        let scaled = if j.scaled_skip { " (scaled)" } else { "" };
        let adds: Vec<String> = j.also.iter().chain([&j.node]).map(|n| g.site(*n).name).collect();
        format!("{}: skip {}{scaled}, branch {}", adds.join(" + "), g.name(j.state), j.signature.join("·"))
    };
    for c in &found.chains {
        let _ = writeln!(out, "chain {}: {} joins, post {}, period {}", c.id, c.joins.len(), c.post, c.period);
        c.joins.iter().for_each(|j| out += &format!("    {}\n", join(j)));
    }
    found.projections.iter().for_each(|j| out += &format!("projection\n    {}\n", join(j)));
    for r in &found.rejected {
        let _ = writeln!(out, "no join: {}\n    {}", g.site(r.node).name, r.reason);
    }
    out
}

// ---- the textual form ---------------------------------------------------------------------------------------------------

#[test]
fn every_part_of_the_syntax_is_read() {
    let text = r#"<ir_version: 9, opset_import: ["" : 17, "custom" : 1], metadata_props: ["note" : "a \"b\"\nc"]>
main (float[batch, 2*time+1] x, float c = {0.5}, ?[] any, float[n] m = float[1] {0}) => (float[batch, 2*time+1] y, ?[] z)
<
    bool[2] flags = {0, 1},
    float16[2] halves = {0.5, -1},
    int64[0] none = {},
    float[3] "odd name" = {inf, NaN, 1e-7},
    float["a b", 2] half
>
{
    [node/a] half,  "" = custom.Split <axis = -1, fill = float[2, 1] {1, 2}, mode = "x, y", no : ints = [], scale = 1.0, w = [0, 1]> (x, , "odd name")
    y = Add (x, c)
    z = custom.Last ("")
}
"#
    .replace("half,  \"\"", "half, \"\"");
    let g = parse(&text).unwrap();
    assert_eq!(print(&g), text);
    assert_eq!(g.value(g.find("half").unwrap()).ty.shape.as_ref().unwrap()[0], Dim::symbol("a b"));
    assert_eq!(g.required_inputs().count(), 2);
    assert_eq!(g.find("none").and_then(|v| g.constant(v)).unwrap().len(), 0);
}

#[test]
fn elided_elements_have_values() {
    let g =
        parse("g (float x) => (x) <float[4] up = {…}, float[2, 2] fill = {1, 0, …}, float[20] long = {7, …}> {}").unwrap();
    let values = |name: &str| g.constant(g.find(name).unwrap()).unwrap().to_f32().unwrap();
    assert_eq!(values("up"), [0.0, 1.0, 2.0, 3.0]);
    assert_eq!(values("fill"), [1.0, 0.0, 0.0, 0.0]);
    let short = outline(&g);
    assert!(short.contains("long = {7, …}"), "{short}");
    assert_eq!(outline(&parse(&short).unwrap()), short);
}

#[test]
fn errors_name_the_line_and_what_was_expected() {
    for (text, want) in [
        ("", "line 1: expected the graph's name, found the end of the text"),
        ("g (float[2] x)\n => (x) { y = Relu x }", "line 2: expected `(`, found `x`"),
        ("g (x) => () {}", "line 1: expected a type such as `float[2, 3]`, found `x`"),
        ("g (float[2 x) => (x) {}", "line 1: expected `,` or `]`, found the end of the text"),
        ("g (float[-2] x) => (x) {}", "line 1: expected a dimension that is not negative, found `-2`"),
        ("g (float[2] x) -> (x) {}", "line 1: expected `=>`, found `-`"),
        ("g () => () <float[2] w = {1}> {}", "line 1: expected 2 elements, found 1"),
        ("g () => () <float[n] w = {1}> {}", "line 1: an initializer needs a type without symbols"),
        ("g () => () <uint8[1] w = {300}> {}", "line 1: elements of type uint8 cannot be read from this text"),
        ("g () => () <float[9999999, 99999999] w = {…}> {}", "is too large"),
        ("g (float x, float x) => () {}", "line 1: `x` is declared twice"),
        ("g () => (y) {}", "line 1: the output `y` is not defined"),
        ("g () => ()\n<float y> {}", "line 2: `y` is declared but no node defines it"),
        ("g () => () {\n y = Relu (x) }", "line 2: `x` is not defined before it is read"),
        ("g (float x) => () {\n y = Relu (x)\n\n y = Relu (x) }", "line 4: `y` is defined twice"),
        ("g (float[2] x, float[3] w) => () {\n\n y = Add (x, w) }", "line 3: Add: "),
        ("g (float x) => () { y = Relu <axis 3> (x) }", "line 1: expected `=`, found `3`"),
        ("g (float x) => () { y = Relu <a = @b> (x) }", "line 1: expected a number, found `@`"),
        ("g (float x) => () { y = Relu <a = …> (x) }", "line 1: the attribute `a` is elided"),
        ("g (float x) => () { y = Relu <a = [1, 2> (x) }", "line 1: expected `,` or `]`, found `>`"),
        ("g (float x) => () { y = Relu <a = 99999999999999999999> (x)", "line 1: expected the name of a result"),
        ("g (float \"x) => ()", "line 1: expected a closing `\"`, found the end of the text"),
        ("g () => () {} more", "line 1: expected the end of the text, found `more`"),
        ("<opset 3> g () => () {}", "line 1: expected `ir_version`, `opset_import` or `metadata_props`, found `opset`"),
    ] {
        let e = parse(text).expect_err(text).to_string();
        assert!(e.contains(want), "{text}\n  {e}\n  expected {want}");
    }
}

#[test]
fn a_damaged_text_is_an_error_or_a_graph_and_never_a_panic() {
    let text = std::fs::read_to_string(here("tests/text/reassign.onnxtxt")).unwrap();
    let text: Vec<char> = text.lines().filter(|l| !l.starts_with("//")).collect::<Vec<_>>().join("\n").chars().collect();
    let mut r = Random(7);
    for _ in 0..400 {
        let mut t = text.clone();
        for _ in 0..=r.below(2) {
            let at = r.below(t.len());
            match r.below(3) {
                0 => drop(t.remove(at)),
                1 => t.insert(at, ['(', ')', '<', '"', '-', '…', '{', '9', '[', ',', '\n'][r.below(11)]),
                _ => t.truncate(at.max(1)),
            }
        }
        let _ = parse(&t.iter().collect::<String>());
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % n
    }
}

/// A graph of operators on matrices with a symbolic extent, with missing operands, strange names and unknown operators.
fn random_graph(seed: u64) -> Graph {
    let mut r = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut g = Graph::default();
    let batch = Dim::symbol(["batch", "n-m", "N"][r.below(3)]);
    let ty = TensorType::new(DType::F32, vec![batch, Dim::from(4)]);
    let mut values = vec![g.add_input("x", ty.clone().into(), None)];
    for i in 0..1 + r.below(3) {
        let data: Vec<f32> = (0..16).map(|_| (r.below(2001) as f32 - 1000.0) / 97.0).collect();
        let name = [format!("w{i}"), format!("layer {i}\"w"), format!("/layer/{i}/w")][r.below(3)].clone();
        let overridable = r.below(3) == 0;
        let w = g.add_initializer(&name, Tensor::f32s(&[4, 4], &data), overridable);
        let v = values[r.below(values.len())];
        values.push(Builder::new(&mut g, "m").matmul(v, w).unwrap());
    }
    for i in 0..r.below(12) {
        let (a, b) = (values[r.below(values.len())], values[r.below(values.len())]);
        let mut builder = Builder::new(&mut g, &format!("b{}", i % 3));
        let v = match r.below(7) {
            0 => builder.add(a, b),
            1 => builder.op("Relu", &[a]),
            2 => builder.scale(a, 1.0 / (1 + r.below(9)) as f64),
            3 => builder.op_with("Softmax", Attrs::new().with("axis", -1), &[a]),
            4 => {
                let rows = builder.op_with("Concat", Attrs::new().with("axis", 1), &[a, b]).unwrap();
                builder.slice(rows, 1, 2, 6)
            }
            5 => builder.node(Op::new("Clip", Attrs::new()), &[Some(a), None, None]).map(|v| v[0]),
            _ => {
                let op = Op::in_domain("custom.ops", "Odd", Attrs::new().with("f", 0.1f32).with("s", "\\\"\n…"));
                let node = g.add_op(["", "label", "a label"][r.below(3)], op, &[Some(a), None, Some(b)]);
                let known = r.below(2) == 0;
                Ok(g.push_result(node, "odd", if known { ty.clone().into() } else { Default::default() }))
            }
        };
        let v = v.unwrap();
        if g.tensor_type(v).is_some() {
            values.push(v);
        }
    }
    for _ in 0..1 + r.below(2) {
        let v = values[r.below(values.len())];
        g.add_output(v, None);
    }
    g
}

#[test]
fn reading_what_was_printed_gives_the_same_graph() {
    for seed in 0..300 {
        let g = random_graph(seed);
        let text = print(&g);
        let again = parse(&text).unwrap_or_else(|e| panic!("seed {seed}: {e}\n{text}"));
        assert_eq!(print(&again), text, "seed {seed}");
        assert_eq!(verify(&again, Stage::Open), verify(&g, Stage::Open), "seed {seed}\n{text}");
    }
}
