//! Prints the residual structure of a model as JSON, with the types the file and our own rules give.
use ancre_passes::analysis::{report, residual, types};
use ancre_passes::onnx;
use onnx_protobuf::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().skip(1).find(|a| !a.starts_with('-') && a != "inspect").ok_or("no model given")?;
    let begin = std::time::Instant::now();
    let model = onnx_protobuf::ModelProto::parse_from_bytes(&std::fs::read(&path)?)?;
    let mut g = onnx::import(model, None)?;
    let parsed = begin.elapsed();
    let coverage = types::resolve_types(&mut g, None);
    let typed = begin.elapsed();
    let s = residual::find_residuals(&g);
    let found = begin.elapsed();
    println!("{}", serde_json::to_string_pretty(&report::inspect_json(&g, &s, &path))?);
    if std::env::args().any(|a| a == "--rejected") {
        for r in &s.rejected {
            eprintln!("{}: {}", g.site(r.node), r.reason);
        }
    }
    if std::env::args().any(|a| a == "--time") {
        eprintln!(
            "parse {parsed:?} types {:?} ({} open) residual {:?}",
            typed - parsed,
            coverage.unresolved.len(),
            found - typed
        );
    }
    Ok(())
}
