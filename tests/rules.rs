//! The router's rules beside those of the paper (attention, deltas, sparse rows) against values that `rules/make.py` computed in float64 from
//! the formulas, and as the tool writes, trains and freezes them.

use crate::common::{Random, emit, max_abs, model, runtime, text, tool, tool_ok};
use ancre_passes::analysis::residual::find_residuals;
use ancre_passes::ir::{DType, Dim, Form, Graph, Rule, Sources, Sparsity, Tensor, TensorType, ValueId};
use ancre_passes::ops::build::Builder;
use ancre_passes::target::CPU;
use ancre_passes::text::parse;
use ancre_passes::transform::differentiate;
use ancre_passes::transform::lower_attention::lower_attention;
use ancre_passes::transform::lower_routes::{Lowering, lower_routes};
use ancre_passes::transform::route::{RouteOptions, route_skips};
use ancre_rewrite::engine::{Tensors, tract};
use ancre_rewrite::io::files::read_arrays;
use ancre_rewrite::io::tensor::NpTensor;
use ancre_rewrite::rewrite;
use indexmap::IndexMap;
use onnx_protobuf::attribute_proto::AttributeType;
use onnx_protobuf::{AttributeProto, GraphProto, Message, ModelProto, NodeProto, ValueInfoProto};
use std::path::Path;

const BLOCKS: usize = 4;
const RULES: [(&str, &str); 12] = [
    ("free_deltas", r#"rule = "free", sources = "deltas""#),
    ("softmax_deltas", r#"rule = "softmax", sources = "deltas""#),
    ("gated_deltas", r#"rule = "gated", sources = "deltas""#),
    ("constant_deltas", r#"rule = "constant", sources = "deltas""#),
    ("attention_states", r#"rule = "attention", axis = 2"#),
    ("attention_deltas", r#"rule = "attention", axis = 2, sources = "deltas""#),
    ("free_dilation", r#"rule = "free", dilation = 2"#),
    ("free_period", r#"rule = "free", period = 2"#),
    ("free_dilation_period", r#"rule = "free", dilation = 2, period = 2"#),
    ("attention_blocks", r#"rule = "attention", axis = 2, summaries = 2"#),
    ("attention_blocks_deltas", r#"rule = "attention", axis = 2, sources = "deltas", summaries = 2"#),
    ("free_blocks", r#"rule = "free", summaries = 2"#),
];

type Golden = IndexMap<String, (Vec<usize>, Vec<f32>)>;

/// A router over states that are inputs, with these parameters; the rows that have a golden route are outputs.
fn routes(golden: &Golden, name: &str, attrs: &str) -> Graph {
    let of = |what: &str| golden.get(&format!("{name}.{what}"));
    let key = if of("query").is_some() { "query" } else { "logits" };
    let columns = of(key).unwrap().0[1];
    let gate = if of("gate").is_some() { "a" } else { "" };
    let rows: Vec<usize> = (0..BLOCKS).filter(|row| of(&format!("r{row}")).is_some()).collect();
    let states: Vec<String> = (0..BLOCKS).map(|i| format!("h{i}")).collect();
    let route = |row: &usize| {
        format!("r{row} = ancre.Route <router = 0, row = {row}> (p, {gate}, {})\n", states[..=*row].join(", "))
    };
    let of_row = |row: usize| if rows.contains(&row) { format!("r{row}") } else { String::new() };
    let declared = if gate.is_empty() { String::new() } else { format!(", float[{BLOCKS}] a = {{…}}") };
    let inputs: Vec<String> = states.iter().map(|h| format!("float[2, 3, 5] {h}")).collect();
    let source = format!(
        "g ({}) => ({}, h4) <float[{BLOCKS}, {columns}] p = {{…}}{declared}> {{\n{}h4 = Tanh (h3)\n@0 <form = \"reassign\", {attrs}, normalize = \"incoming\", scope = \"stage\", tau = 0.5> (p, {gate}) () () ({}, h4) ({})\n}}",
        inputs.join(", "),
        rows.iter().map(|r| format!("r{r}")).collect::<Vec<_>>().join(", "),
        rows.iter().map(route).collect::<String>(),
        states.join(", "),
        (0..BLOCKS).map(of_row).collect::<Vec<_>>().join(", "),
    );
    let mut g = parse(&source).unwrap_or_else(|e| panic!("{source}: {e}"));
    for (value, key) in [("p", key), ("a", "gate")] {
        if let (Some(v), Some((shape, values))) = (g.find(value), of(key)) {
            let dims: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
            g.set_initializer(v, Tensor::f32s(&dims, values), false);
        }
    }
    g
}

/// Adds Σ ⟨c_k, r_k⟩ and its gradients as outputs.
fn with_gradients(g: &mut Graph, golden: &Golden, name: &str) -> Vec<String> {
    let rows: Vec<(usize, ValueId)> = g.routers[0].rows.clone();
    let mut b = Builder::new(g, "loss");
    let mut terms = Vec::new();
    for (row, route) in rows {
        let ty = TensorType::new(DType::F32, [2, 3, 5].map(Dim::from).to_vec());
        let c = b.graph.add_input(&format!("c{row}"), ty.into(), None);
        let product = b.mul(route, c).unwrap();
        terms.push(b.reduce_all("ReduceSum", product).unwrap());
    }
    let loss = b.sum(&terms).unwrap();
    let wanted = ["p", "a", "h0", "h1", "h2", "h3"];
    let wrt: Vec<ValueId> = wanted.iter().filter_map(|n| g.find(n)).collect();
    let wrt: Vec<ValueId> = wrt.into_iter().filter(|v| name != "constant_deltas" || g.name(*v) != "p").collect();
    lower_attention(g, &CPU).unwrap();
    let gradients = differentiate(g, &CPU, loss, &wrt).unwrap();
    let mut out = Vec::new();
    for (value, gradient) in gradients {
        let key = format!("{}.grad", g.name(value));
        g.rename(gradient, &key);
        g.add_output(gradient, None);
        out.push(key);
    }
    // A state that no row reads has no gradient here and a zero there.
    let stored = |key: &str| key.replace("query", "p").replace("logits", "p").replace("gate", "a");
    let own = golden.iter().filter_map(|(key, v)| Some((key.strip_prefix(name)?.strip_prefix('.')?, v)));
    let wanted = own.filter(|(key, v)| key.ends_with(".grad") && v.1.iter().any(|v| *v != 0.0));
    let missing: Vec<&str> = wanted.map(|(key, _)| key).filter(|key| !out.contains(&stored(key))).collect();
    assert!(missing.is_empty(), "{name}: {missing:?}");
    out
}

#[test]
fn routes_and_their_gradients_are_those_of_the_formulas() {
    let golden = read_arrays(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rules/golden.npz")).unwrap();
    for (name, attrs) in RULES {
        for lowering in [None, Some(Lowering::Blocks(2, None)), Some(Lowering::Blocks(4, Some(2)))] {
            let mut g = routes(&golden, name, attrs);
            let rows: Vec<String> = g.routers[0].rows.iter().map(|(row, _)| format!("r{row}")).collect();
            let gradients = with_gradients(&mut g, &golden, name);
            lower_routes(&mut g, &CPU, lowering).unwrap();
            let inputs = g.inputs().iter().map(|n| g.name(g.result(*n, 0)).to_string());
            let fed = |input: String| {
                let (shape, values) = &golden[&format!("{name}.{input}")];
                (input, NpTensor::f32s(shape, values).unwrap())
            };
            let feeds: Tensors = inputs.map(fed).collect();
            let found = tract().load(&emit(&g), None).unwrap().run(&feeds).unwrap();
            for key in rows.iter().chain(&gradients) {
                let stored = key.replace("p.grad", if name.starts_with("attention") { "query.grad" } else { "logits.grad" });
                let want: Vec<f64> = golden[&format!("{name}.{}", stored.replace("a.grad", "gate.grad"))]
                    .1
                    .iter()
                    .map(|v| f64::from(*v))
                    .collect();
                let largest = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
                let error = max_abs(&found[key].to_f64(), &want) / largest;
                assert!(error < 2e-6, "{name}, {lowering:?}: {key} is off by {error:.1e}");
            }
        }
    }
}

/// Networks of form `input`, with the options that `make.py` computed them by: the rule, deltas, dilation and period, summaries.
const NETWORKS: [(&str, Rule, bool, [usize; 3]); 7] = [
    ("input_dense", Rule::Free, false, [1, 1, 1]),
    ("input_dense_sparse", Rule::Free, false, [2, 2, 1]),
    ("input_softmax", Rule::Softmax, false, [1, 1, 1]),
    ("input_gated", Rule::Gated, false, [1, 1, 1]),
    ("input_softmax_deltas", Rule::Softmax, true, [1, 1, 1]),
    ("input_attention_deltas", Rule::Attention, true, [1, 1, 1]),
    ("input_attention_blocks", Rule::Attention, true, [1, 1, 2]),
];

/// Blocks h ← h + tanh(h w).
fn blocks_of_tanh() -> Graph {
    let block = |k: usize| format!("p{k} = MatMul (h{k}, w{k}) f{k} = Tanh (p{k}) h{} = Add (h{k}, f{k})\n", k + 1);
    let weights: Vec<String> = (0..BLOCKS).map(|k| format!("float[5, 5] w{k} = {{…}}")).collect();
    let body: String = (0..BLOCKS).map(block).collect();
    parse(&format!("g (float[2, 3, 5] h0) => (float[2, 3, 5] h4) <{}> {{ {body} }}", weights.join(", "))).unwrap()
}

#[test]
fn networks_whose_blocks_read_routes_and_their_gradients_are_those_of_the_formulas() {
    let golden = read_arrays(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/rules/golden.npz")).unwrap();
    for (name, rule, deltas, [dilation, period, summaries]) in NETWORKS {
        let mut g = blocks_of_tanh();
        let mut o = RouteOptions::default();
        (o.form, o.rule, o.tau) = (Form::Input, rule, 0.5);
        o.sources = if deltas { Sources::Deltas } else { Sources::States };
        o.sparsity = Sparsity { dilation, period, summaries };
        let chains = find_residuals(&g).chains;
        route_skips(&mut g, &chains, &o).unwrap();
        let of = |what: &str| &golden[&format!("{name}.{what}")];
        let held = ["ancre.0.logits", "ancre.0.query", "ancre.0.gate", "w0", "w1", "w2", "w3"];
        let held: Vec<ValueId> = held.iter().filter_map(|n| g.find(n)).collect();
        for v in &held {
            let (shape, values) = of(g.name(*v).trim_start_matches("ancre.0."));
            let dims: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
            g.set_initializer(*v, Tensor::f32s(&dims, values), false);
        }
        let wrt: Vec<ValueId> = held.into_iter().chain(g.find("h0")).collect();
        let end = g.outputs()[0].value;
        let mut b = Builder::new(&mut g, "loss");
        let ty = TensorType::new(DType::F32, [2, 3, 5].map(Dim::from).to_vec());
        let c = b.graph.add_input("c", ty.into(), None);
        let product = b.mul(end, c).unwrap();
        let loss = b.reduce_all("ReduceSum", product).unwrap();
        lower_attention(&mut g, &CPU).unwrap();
        let mut read = vec![(g.name(end).to_string(), "y".to_string())];
        for (value, gradient) in differentiate(&mut g, &CPU, loss, &wrt).unwrap() {
            let key = format!("{}.grad", g.name(value).trim_start_matches("ancre.0."));
            g.rename(gradient, &key);
            g.add_output(gradient, None);
            read.push((key.clone(), key));
        }
        lower_routes(&mut g, &CPU, None).unwrap();
        let feeds: Tensors = ["h0", "c"]
            .map(|input| (input.to_string(), NpTensor::f32s(&of(input).0, &of(input).1).unwrap()))
            .into_iter()
            .collect();
        let found = tract().load(&emit(&g), None).unwrap().run(&feeds).unwrap();
        assert_eq!(read.len(), 1 + wrt.len(), "{name}");
        for (value, key) in &read {
            let want: Vec<f64> = of(key).1.iter().map(|v| f64::from(*v)).collect();
            let largest = want.iter().fold(1.0, |m: f64, v| m.max(v.abs()));
            let error = max_abs(&found[value].to_f64(), &want) / largest;
            // Four blocks in float32.
            assert!(error < 1e-5, "{name}: {key} is off by {error:.1e}");
        }
    }
}

#[test]
fn every_rule_is_written_verified_trained_and_frozen() {
    runtime();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| text(&dir.path().join(name));
    let net = text(&model("resnet_batch1"));
    let base = ["--classes", "10", "--batch", "dynamic", "--eval-graph", "--json"];
    let data = ["digits_train.npz", "digits_val.npz"]
        .map(|f| text(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models/data").join(f)));
    // The function is kept at the start, or not.
    let cases: [(&str, bool); 9] = [
        ("--parametrization attention --scope network", false),
        ("--parametrization attention --sources deltas", false),
        ("--parametrization attention --sources deltas --summaries 2", false),
        ("--parametrization free --summaries 2", true),
        ("--form input", true),
        ("--form input --parametrization attention --sources deltas --summaries 2", false),
        ("--form input --parametrization free --sources deltas --scope network", true),
        ("--sources deltas", true),
        ("--parametrization free --sources deltas", true),
    ];
    for (options, keeps) in cases {
        let forward = file("m.onnx");
        let words = [&[net.as_str(), "-o", &forward][..], &base, &options.split(' ').collect::<Vec<_>>()].concat();
        let report = tool_ok(&words).json();
        assert_eq!(report["verify"]["one_hot"]["equivalent"], true, "{options}");
        assert_eq!(report["verify"]["emitted"]["equivalent"], keeps, "{options}");
        let run = file("run");
        let trained = tool_ok(&[
            "train",
            &file("m.train.onnx"),
            "--data",
            &data[0],
            "--val",
            &data[1],
            "--steps",
            "12",
            "--device",
            "cpu",
            "--threads",
            "1",
            "--out",
            &run,
            "--overwrite",
            "--json",
        ])
        .json();
        let loss = |key: &str| trained["loss"][key].as_f64().unwrap();
        assert!(loss("last_epoch") < loss("first"), "{options}: {trained}");
        // The frozen model computes what the trained one does.
        let state = text(&dir.path().join("run/last.safetensors"));
        let (frozen, kept) = (file("frozen.onnx"), file("kept.onnx"));
        tool_ok(&["freeze", &forward, "--state", &state, "--prune", "0", "-o", &frozen]);
        tool_ok(&["freeze", &forward, "--state", &state, "--keep-router", "-o", &kept]);
        let same = tool(&["verify", &kept, &frozen, "--atol", "1e-4"]);
        assert_eq!(same.status, 0, "{options}: {}{}", same.out, same.err);
        let shown = tool(&["topology", &run, "--json"]);
        if options.contains("attention") {
            assert!(shown.status == 2 && shown.err.contains("--input DATA.npz"), "{}", shown.err);
        } else {
            let rows = shown.json()["chains"][0]["weights"].clone();
            assert_eq!(rows.as_array().unwrap().len(), 3, "{rows}");
        }
        let inspected = tool_ok(&["inspect", &kept]).out;
        assert!(inspected.contains("Routed by ancre-rewrite"), "{inspected}");
    }
}

/// Groups of blocks with a skip around each, as in RCAN; `between` stands before the second group.
fn groups(between: &str) -> Graph {
    let mut body = String::from("h0 = Sigmoid (x)\n");
    for k in 0..3 {
        let begin = if k == 1 && !between.is_empty() { "stage".to_string() } else { format!("h{k}") };
        let mut state = begin.clone();
        for i in 0..3 {
            body += &format!(
                "p{k}.{i} = MatMul ({state}, w{i}) f{k}.{i} = Tanh (p{k}.{i}) u{k}.{i} = Add ({state}, f{k}.{i})\n"
            );
            state = format!("u{k}.{i}");
        }
        body += &format!("p{k} = MatMul ({state}, w3) f{k} = Tanh (p{k}) h{} = Add ({begin}, f{k})\n", k + 1);
        if k == 0 {
            body += between;
        }
    }
    let w = "float[4, 4] w0 = {0.3, -0.2, 0.5, 0.1, …}, float[4, 4] w1 = {-0.4, 0.2, 0.1, …}, float[4, 4] w2 = {0.1, 0.6, -0.3, …}, float[4, 4] w3 = {0.2, 0.2, -0.5, …}";
    parse(&format!("g (float[3, 4] x) => (float[3, 4] h3) <{w}> {{ {body} }}")).unwrap()
}

/// With other parameters than those of the start, a frozen router computes what the router does.
#[test]
fn chains_inside_of_blocks_read_what_their_block_reads() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| text(&dir.path().join(name));
    let nets = [("nest.onnx", groups("")), ("stages.onnx", groups("stage = MatMul (h1, w3)\n"))];
    for (name, net) in &nets {
        std::fs::write(file(name), emit(net)).unwrap();
        for options in [
            "--scope network",
            "--parametrization softmax --tau 1 --scope network",
            "--parametrization free",
            "--parametrization free --chains 1,2",
            "--parametrization softmax --tau 1 --normalize outgoing",
            "--parametrization free --sources deltas",
            "--parametrization softmax --tau 1 --sources deltas --scope network",
            "--parametrization attention --sources deltas --summaries 2",
            "--parametrization attention --scope network",
        ] {
            let what = format!("{name}, {options}");
            let (source, routed) = (file(name), file("routed.onnx"));
            let words = [
                &[source.as_str(), "-o", &routed, "--form", "input", "--no-train", "--json"][..],
                &options.split(' ').collect::<Vec<_>>(),
            ]
            .concat();
            let report = tool_ok(&words).json();
            assert_eq!(report["verify"]["one_hot"]["equivalent"], true, "{what}");
            let (mut g, _) = rewrite::load(routed.as_ref()).unwrap();
            let mut random = Random(7);
            let parts = ["logits", "gate", "query"];
            let names = (0..8).flat_map(|id| parts.map(|part| format!("ancre.{id}.{part}")));
            let held: Vec<ValueId> = names.filter_map(|n| g.find(&n)).collect();
            for v in held {
                let dims = g.tensor_type(v).unwrap().known_dims().unwrap().to_vec();
                let values: Vec<f32> = (0..dims.iter().product()).map(|_| (0.5 + 0.5 * random.normal()) as f32).collect();
                g.set_initializer(v, Tensor::f32s(&dims, &values), false);
            }
            std::fs::write(&routed, emit(&g)).unwrap();
            let frozen = file("frozen.onnx");
            tool_ok(&["freeze", &routed, "-o", &frozen]);
            let same = tool(&["verify", &routed, &frozen, "--atol", "1e-5"]);
            assert_eq!(same.status, 0, "{what}: {}{}", same.out, same.err);
        }
    }
}

#[test]
fn a_block_whose_subgraph_reads_its_state_cannot_read_a_route() {
    let net = "g (float[2, 4] x, bool c) => (float[2, 4] h3) <float[4, 4] w = {0.3, -0.2, 0.5, 0.1, …}> {
        p0 = MatMul (x, w) h1 = Add (x, p0)
        p1 = MatMul (h1, w) chosen = Identity (p1) q1 = Add (p1, chosen) f1 = Tanh (q1) h2 = Add (h1, f1)
        p2 = MatMul (h2, w) h3 = Add (h2, p2) }";
    let mut m = ModelProto::parse_from_bytes(&emit(&parse(net).unwrap())).unwrap();
    let node = m.graph.as_mut().unwrap().node.iter_mut().find(|n| n.op_type == "Identity").unwrap();
    (node.op_type, node.input) = ("If".into(), vec!["c".into()]);
    for (name, op) in [("then_branch", "Relu"), ("else_branch", "Tanh")] {
        let inner =
            NodeProto { op_type: op.into(), input: vec!["h1".into()], output: vec![name.into()], ..Default::default() };
        let result = ValueInfoProto { name: name.into(), ..Default::default() };
        let body = GraphProto { name: name.into(), node: vec![inner], output: vec![result], ..Default::default() };
        let graph = AttributeProto {
            name: name.into(),
            type_: AttributeType::GRAPH.into(),
            g: Some(body).into(),
            ..Default::default()
        };
        node.attribute.push(graph);
    }
    let dir = tempfile::tempdir().unwrap();
    let file = text(&dir.path().join("m.onnx"));
    std::fs::write(&file, m.write_to_bytes().unwrap()).unwrap();
    let ran = tool(&[&file, "--form", "input", "--no-train", "--dry-run"]);
    assert!(
        ran.status == 0 && ran.out.contains("reads its state `h1` by name") && ran.out.contains("--form reassign"),
        "{}{}",
        ran.out,
        ran.err
    );
    let other = tool_ok(&[&file, "--no-train", "--dry-run", "--json"]).json();
    assert_eq!(other["router"]["chains"][0]["K"], 3);
}

/// Whoever moves a parameter that no row reads changes nothing, and its gradient is zero.
#[test]
fn weights_that_no_row_reads_are_without_effect() {
    let dir = tempfile::tempdir().unwrap();
    let net = text(&model("deep_mlp"));
    let out = text(dir.path()) + "/";
    for options in ["--dilation 2", "--summaries 3", "--period 2 --dilation 2", "--form input --summaries 3"] {
        let words = [
            &[net.as_str(), "--parametrization", "free", "--batch", "4", "--loss", "mse", "-o", &out][..],
            &options.split(' ').collect::<Vec<_>>(),
        ]
        .concat();
        tool_ok(&words);
        let ran = tool(&["verify", "--gradient", &format!("{out}deep_mlp.ancre.train.onnx")]);
        assert_eq!(ran.status, 0, "{options}: {}{}", ran.out, ran.err);
    }
}

#[test]
fn metadata_without_a_router_s_deltas_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let routed = text(&dir.path().join("m.ancre.onnx"));
    tool_ok(&[
        &text(&model("deep_mlp")),
        "--form",
        "input",
        "--parametrization",
        "free",
        "--sources",
        "deltas",
        "--no-train",
        "-o",
        &routed,
    ]);
    let mut m = ModelProto::parse_from_bytes(&std::fs::read(&routed).unwrap()).unwrap();
    let record = m.metadata_props.iter_mut().find(|p| p.key == "ancre.router").unwrap();
    record.value = record.value.replace("\"ancre/0/delta_1\",", "");
    std::fs::write(&routed, m.write_to_bytes().unwrap()).unwrap();
    let ran = tool(&["freeze", &routed, "-o", &text(&dir.path().join("f.onnx"))]);
    assert!(ran.status == 2 && ran.err.contains("the deltas of chain 0"), "{}{}", ran.out, ran.err);
}

#[test]
fn combinations_that_mean_nothing_are_refused() {
    let net = text(&model("deep_mlp"));
    for (options, said) in [
        ("--parametrization attention --init identity", "no query makes a row its nearest source"),
        ("--parametrization attention --normalize outgoing", "normalises over a row's sources"),
        ("--sources deltas --init near-identity", "has no start at the identity"),
        ("--dilation 2", "only free weights of states can be sparse"),
        ("--form input --sources deltas", "a gate leaves the nearest state"),
        ("--summaries 2", "only attention and free weights of states read summaries"),
        ("--parametrization free --sources deltas --period 2", "only free weights of states can be sparse"),
    ] {
        let words = [&[net.as_str(), "--no-train", "--dry-run"][..], &options.split(' ').collect::<Vec<_>>()].concat();
        let ran = tool(&words);
        assert!(ran.status == 2 && ran.err.contains(said) && ran.err.contains("try:"), "{options}: {}", ran.err);
    }
}

/// The sizes of `Split` are an attribute below opset 13, which canonical graphs do not hold.
#[test]
fn attention_is_lowered_in_graphs_of_old_opsets() {
    let source = r#"<opset_import: ["" : 11]>
        net (float[2, 2] x) => (float[2, 2] y) <float[2, 2] w = {1, -0.5, 0.25, 2}>
        { a = MatMul (x, w) h = Add (x, a) b = MatMul (h, w) k = Add (h, b) c = MatMul (k, w) y = Add (k, c) }"#;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("old.onnx");
    std::fs::write(&file, emit(&parse(source).unwrap())).unwrap();
    let ran = tool(&[&text(&file), "--parametrization", "attention", "--no-train", "-o", &(text(dir.path()) + "/")]);
    assert!(ran.status == 0 && ran.out.contains("without its routes equals the source: proved"), "{} {}", ran.out, ran.err);
}
