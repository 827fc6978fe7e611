//! `freeze`: trained state back into the forward graph, router baked in.

use crate::cli::FreezeArgs;
use crate::error::Failure;
use crate::files::{self, Arrays, Outputs};
use crate::rewrite;
use ancre_passes::ir::{Graph, Kind, Tensor, ValueId};
use ancre_passes::onnx;
use ancre_passes::transform::bake;
use ancre_passes::transform::{eliminate, separate};
use serde_json::json;
use std::path::PathBuf;

/// What freezing did.
pub struct Frozen {
    /// The file written.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Operator nodes.
    pub nodes: usize,
    /// Tensors taken from the state.
    pub restored: usize,
    /// State entries that belong to training only.
    pub unused: Vec<String>,
    /// What baking kept and dropped, if the router was baked.
    pub baked: Option<bake::Baked>,
}

impl Frozen {
    /// The report.
    pub fn json(&self) -> serde_json::Value {
        json!({"output": {"path": self.path, "bytes": self.bytes, "nodes": self.nodes}, "restored": self.restored,
               "unused": self.unused,
               "router": self.baked.as_ref().map(|b| json!({"kept": b.kept, "dropped": b.dropped, "worst_dropped": b.worst_drop}))})
    }
}

/// Runs `freeze`.
///
/// # Errors
/// When the model was not routed by this tool, or the state does not fit it.
pub fn freeze(a: &FreezeArgs) -> Result<Frozen, Failure> {
    if !(a.prune >= 0.0 && a.prune < 1.0) {
        return Err(Failure::input(format!("--prune {} is out of range [0, 1)", a.prune)));
    }
    let (mut g, _) = rewrite::load(&a.model)?;
    let routed = g.metadata.contains_key("ancre.router");
    if !routed && a.state.is_none() {
        return Err(Failure::input("holds no router and no --state is given: there is nothing to freeze")
            .help("give the forward graph that ancre-rewrite wrote, STEM.ancre.onnx")
            .at(&a.model));
    }
    let (mut restored, mut unused) = (0, Vec::new());
    if let Some(path) = &a.state {
        let state = files::read_arrays(path)?;
        (restored, unused) = restore(&mut g, &state).map_err(|e| Failure::input(e).at(path))?;
    }
    let mut baked = None;
    if routed && !a.keep_router {
        baked = Some(bake::bake_router(&mut g, a.prune).map_err(|e| Failure::input(e.to_string()).at(&a.model))?);
        eliminate::eliminate_dead(&mut g, |_, _| false);
    }
    let path = a.output.clone().unwrap_or_else(|| {
        let stem = a.model.file_stem().and_then(|s| s.to_str()).unwrap_or("model");
        a.model.with_file_name(format!("{}.frozen.onnx", stem.trim_end_matches(".ancre")))
    });
    let emission = onnx::emit(&g).map_err(|e| Failure::input(e.to_string()).at(&path))?;
    let mut outputs = Outputs::sparing(&[&a.model]);
    let bytes = outputs.add_model(&emission, &path)?;
    let nodes = emission.nodes;
    outputs.commit()?;
    Ok(Frozen { path, bytes, nodes, restored, unused, baked })
}

/// Puts state tensors into the initializers they belong to: by name.
fn restore(g: &mut Graph, state: &Arrays) -> Result<(usize, Vec<String>), String> {
    let mut restored = 0;
    let mut unused = Vec::new();
    // Parameters that the training graph separated from a tensor the exporter had merged. Optimiser state is not among the
    // model's tensors, so that names remain is no error.
    let _ = separate::separate_in_forward(g, state.keys().map(|n| n.strip_suffix(".next").unwrap_or(n)));
    for (name, (shape, values)) in state {
        let key = name.strip_suffix(".next").unwrap_or(name);
        let Some(v) = g.find(key).filter(|v| matches!(g.node(v.node).kind, Kind::Initializer { .. })) else {
            unused.push(name.clone());
            continue;
        };
        replace(g, v, shape, values).map_err(|e| format!("`{name}` {e}"))?;
        restored += 1;
    }
    if restored == 0 {
        return Err("holds no tensor of the model; its names must be those of the training graph's state inputs".into());
    }
    Ok((restored, unused))
}

fn replace(g: &mut Graph, v: ValueId, shape: &[usize], values: &[f32]) -> Result<(), String> {
    let Some(old) = g.initializer(v) else { return Ok(()) };
    let dims: Vec<i64> = shape.iter().map(|d| *d as i64).collect();
    if old.dims() != dims {
        return Err(format!("has shape {dims:?}, the model's tensor has {:?}", old.dims()));
    }
    let dtype = old.dtype();
    if !dtype.is_float() {
        return Err(format!("replaces a tensor of type {dtype}"));
    }
    let wide: Vec<f64> = values.iter().map(|v| *v as f64).collect();
    g.set_initializer(v, Tensor::floats(dtype, &dims, &wide), false);
    Ok(())
}
