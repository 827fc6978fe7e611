//! Rewrites a model with the library alone: `rewrite MODEL.onnx OUT_DIR [paper]` writes the forward graph, the training graph and the
//! graph of its first state, and proves that the router at one-hot is the source. `ancre-rewrite freeze` and `train` take the files.
use ancre_passes::ir::{Graph, SharedBytes};
use ancre_passes::onnx;
use ancre_passes::pipeline::rewrite::{RewriteOptions, read_model, rewrite};
use ancre_passes::pipeline::training::TrainingOptions;
use ancre_passes::proof::{ProofOptions, prove_equal};
use ancre_passes::transform::auto_loss;
use ancre_passes::transform::bake;
use ancre_passes::transform::loss::LossOptions;
use ancre_passes::transform::optimizer::{OptimizerKind, OptimizerOptions};
use ancre_passes::transform::route::{Preset, RouteOptions};
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, out, preset @ ..] = &arguments[..] else { return Err("rewrite MODEL.onnx OUT_DIR [paper]".into()) };
    let (model, out) = (Path::new(model), Path::new(out));
    let source = read_model(&SharedBytes::new(std::fs::read(model)?), model.parent())?;

    let mut options = RewriteOptions::default();
    if preset == ["paper"] {
        options.route = RouteOptions::preset(Preset::Paper);
    }
    let loss = LossOptions::of(auto_loss::choose(&source, None)?);
    options.training = Some(TrainingOptions::of(loss, OptimizerOptions::of(OptimizerKind::AdamW)));
    let made = rewrite(&source, &options)?;
    for chain in &made.routed.left_alone {
        eprintln!("chain {} gets no router: {}", chain.chain, chain.why);
    }
    if !made.untyped.is_empty() {
        eprintln!(
            "{} values have no type, `{}` first; chains behind them may be missing",
            made.untyped.len(),
            made.untyped[0]
        );
    }
    if !made.routers.is_empty() {
        let one_hot = bake::at_one_hot(&made.forward, &bake::read_routers(&made.forward)?, &options.route)?;
        let proof = prove_equal(&source, &one_hot, &ProofOptions::default());
        println!(
            "{} routers; at one-hot the source: {}",
            made.routers.len(),
            if proof.proved { "proved" } else { &proof.reason }
        );
    }

    let stem = model.file_stem().and_then(|s| s.to_str()).unwrap_or("model");
    let training = made.training.as_ref().map(|t| &t.graph);
    let files = [("", Some(&made.forward)), ("train.", training), ("init.", made.init.as_ref())];
    for (kind, g) in files.into_iter().filter_map(|(kind, g)| Some((kind, g?))) {
        write(g, &out.join(format!("{stem}.ancre.{kind}onnx")))?;
    }
    Ok(())
}

fn write(g: &Graph, path: &Path) -> Result<(), Box<dyn Error>> {
    std::fs::write(path, onnx::emit(g)?.to_bytes()?)?;
    println!("{}", path.display());
    Ok(())
}
