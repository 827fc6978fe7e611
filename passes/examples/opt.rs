//! Runs passes by name on a model and prints the graph as text, in the manner of `mlir-opt`.
//!
//! ```text
//! cargo run -p ancre-passes --example opt -- MODEL.onnx|GRAPH.onnxtxt [--print-after NAME|all] [--max-changes N] 'PASS [option…] | PASS …'
//! cargo run -p ancre-passes --example opt -- models/bert.onnx 'route augment | prepare | train loss=mse optimizer=sgd'
//! ```
//!
//! Without passes it lists them. Refusals and the count of changes go to stderr.

use ancre_passes::analysis::types::resolve_types;
use ancre_passes::pipeline::{Cx, Debugging, PIPELINES, PassManager, passes, run_words};
use ancre_passes::{onnx, text};
use onnx_protobuf::Message;
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let mut debugging = Debugging::default();
    let mut words = Vec::new();
    let mut args = std::env::args().skip(1);
    while let Some(a) = args.next() {
        match a.as_str() {
            "--print-after" => debugging.print_after.extend(args.next()),
            "--max-changes" => debugging.max_changes = args.next().map(|n| n.parse()).transpose()?,
            _ => words.push(a),
        }
    }
    let [file, stages] = words.as_slice() else {
        passes().iter().for_each(|p| eprintln!("{:20} {:?}: {}", p.name, p.contract, p.why));
        PIPELINES
            .iter()
            .for_each(|(name, p)| eprintln!("{name}: {}", p.iter().map(|p| p.name).collect::<Vec<_>>().join(", ")));
        return Err(
            "usage: opt MODEL.onnx|GRAPH.onnxtxt [--print-after NAME|all] [--max-changes N] 'PASS [option…] | …'".into()
        );
    };
    let bytes = std::fs::read(file)?;
    let mut g = if file.ends_with(".onnx") {
        let mut g = onnx::import(onnx_protobuf::ModelProto::parse_from_bytes(&bytes)?, Path::new(file).parent())?;
        resolve_types(&mut g, None);
        g
    } else {
        // As the golden texts have it: the case's head is a comment, and what is expected is not read.
        let text = String::from_utf8(bytes)?;
        let input: Vec<&str> = text.split("// EXPECT").next().into_iter().flat_map(str::lines).collect();
        text::parse(&input.iter().map(|l| if l.starts_with("//") { "" } else { l }).collect::<Vec<_>>().join("\n"))?
    };
    let show = |text: &str| eprint!("{text}");
    let mut manager = PassManager::new(debugging, &show);
    let mut cx = Cx::default();
    for stage in stages.split('|') {
        run_words(stage, &mut g, &mut cx, &mut manager)?;
    }
    manager
        .runs
        .iter()
        .for_each(|r| eprintln!("# {}: {} changes, {} refused, {:.3} s", r.pass, r.changed, r.refused, r.seconds));
    cx.refused.iter().for_each(|r| eprintln!("# refused: {r}"));
    print!("{}", text::outline(&g));
    Ok(())
}
