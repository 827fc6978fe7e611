//! Writes a model as the training graph sees it: merged parameters separate, fused operators decomposed, everything at opset 18.
//!
//! `cargo run -p ancre-passes --example legalize -- IN.onnx OUT.onnx`

use ancre_passes::analysis::types::resolve_types;
use ancre_passes::onnx;
use ancre_passes::transform::{eliminate, legalize, separate};
use ancre_passes::verify::{Stage, verify};
use onnx_protobuf::Message;
use std::path::Path;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(from), Some(to)) = (args.next(), args.next()) else {
        return Err("usage: legalize IN.onnx OUT.onnx".into());
    };
    let model = onnx_protobuf::ModelProto::parse_from_bytes(&std::fs::read(&from)?)?;
    let mut g = onnx::import(model, Path::new(&from).parent())?;
    legalize::from_old(&mut g)?;
    let coverage = resolve_types(&mut g, None);
    let before = g.op_count();
    for (new, original) in separate::separate_parameters(&mut g, separate::is_own) {
        eprintln!("{original} -> {new}");
    }
    let fused = legalize::decompose_contrib(&mut g).changed;
    let opset = legalize::to_opset(&mut g, legalize::TARGET)?;
    eliminate::eliminate_dead(&mut g, |_, _| false);
    verify(&g, Stage::Legal).map_err(|found| found.join("\n"))?;
    onnx::emit(&g)?.write_to(&mut std::fs::File::create(&to)?)?;
    let open = coverage.unresolved.len();
    eprintln!(
        "{before} -> {} nodes, {fused} fused ones decomposed, opset {opset}, {open} values of unknown type",
        g.op_count()
    );
    Ok(())
}
