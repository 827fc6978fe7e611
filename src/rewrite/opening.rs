//! Every graph that is made for a runtime is opened by one before it is handed over. The forward graph is verified instead.

use super::Rewritten;
use crate::engine::opener::{self, Model, Opener};
use crate::engine::{EngineError, ExternalData};
use crate::error::Failure;
use crate::io::files::Outputs;
use crate::verify::Subject;
use ancre_passes::ir::Graph;
use std::path::{Path, PathBuf};

/// The engine at work while the main job goes on.
pub(crate) struct Opening {
    opener: Opener,
    /// Kind and file of each graph.
    asked: Vec<(&'static str, PathBuf)>,
}

impl Opening {
    pub(crate) fn start() -> Opening {
        Opening { opener: Opener::start(), asked: Vec::new() }
    }

    /// Adds a graph as it lies in `outputs` for this path, or as it would be written there.
    pub(crate) fn add(
        &mut self,
        kind: &'static str,
        g: &Graph,
        path: &Path,
        outputs: Option<&Outputs>,
    ) -> Result<(), Failure> {
        let model = match outputs {
            Some(outputs) => {
                let (bytes, data) = outputs.written(path)?;
                Model { bytes, data }
            }
            None => {
                let (bytes, dir) = Subject::of_graph(g.clone(), path).placed()?;
                let home = g.home.as_ref().map(|home| home.dir.clone());
                let data = dir.or(home).map(|dir| {
                    let bytes = ExternalData::of(g, &dir.join("m")).map_or(0, |d| d.bytes);
                    (dir, bytes)
                });
                Model { bytes, data }
            }
        };
        self.opener.open(model);
        self.asked.push((kind, path.to_path_buf()));
        Ok(())
    }

    /// Waits for the engine. Returns its name by the kinds of the graphs that it opened, and notices of those that it was not able
    /// to say anything about. Fails when it refuses a graph though it takes the source.
    pub(crate) fn finish(
        self,
        source: &Subject,
        notices: &mut Vec<String>,
    ) -> Result<Vec<(&'static str, &'static str)>, Failure> {
        if self.asked.is_empty() {
            return Ok(Vec::new());
        }
        let Some((engine, results)) = self.opener.finish() else { return Ok(Vec::new()) };
        let mut opened = Vec::new();
        for ((kind, path), result) in self.asked.into_iter().zip(results) {
            let error = match result {
                Ok(()) => {
                    opened.push((kind, engine));
                    continue;
                }
                Err(e) => e,
            };
            let name = graph_name(kind);
            match without_fault(&error, engine, source)? {
                Some(why) => notices.push(format!("no engine opened the {name}: {why}")),
                None => {
                    return Err(Failure::check(format!(
                        "the {name} cannot be opened, though the source can: {error}; nothing was written"
                    ))
                    .help("--no-train writes the forward graph alone, --verify none all of it unopened; where the newest ONNX Runtime (`ancre-rewrite runtime install`) refuses it too, report the model's architecture")
                    .at(&path));
                }
            }
        }
        Ok(opened)
    }
}

/// Why a refusal says nothing against the graph, if it does not.
fn without_fault(e: &EngineError, engine: &str, source: &Subject) -> Result<Option<String>, Failure> {
    // tract computes no gradients of convolutions.
    if engine == "tract" {
        return Ok(Some(format!("there is no ONNX Runtime (`ancre-rewrite runtime install` fetches one), and {e}")));
    }
    if let EngineError::Died { limit: Some(_), .. } | EngineError::NoRuntime(_) = e {
        return Ok(Some(e.to_string()));
    }
    let Some(engine) = opener::engine() else { return Ok(None) };
    let (bytes, dir) = source.placed()?;
    let data = ExternalData::of(&source.graph, &source.path);
    let data = data.map(|d| ExternalData { root: dir.as_deref().unwrap_or(d.root), ..d });
    Ok(engine.open(&bytes, data).err().map(|of_source| format!("{e}; nor does it open the source: {of_source}")))
}

/// What a graph of this kind is called.
fn graph_name(kind: &str) -> &'static str {
    match kind {
        "train" => "training graph",
        "eval" => "evaluation graph",
        "infer" => "inference graph",
        "grad" => "gradient graph",
        "update" => "update graph",
        "init" => "graph of the first state",
        _ => "graph",
    }
}

/// The engine that opened the graph of this kind, if one did.
pub(super) fn engine_of(o: &Rewritten, kind: &str) -> Option<&'static str> {
    o.opened.iter().find(|(k, _)| *k == kind).map(|(_, engine)| *engine)
}

/// The same in words that follow the graph's size.
pub(super) fn words(o: &Rewritten, kind: &str) -> String {
    opened_by(engine_of(o, kind))
}

/// Words that follow a graph's size, where an engine opened it.
pub(crate) fn opened_by(engine: Option<&str>) -> String {
    match engine {
        Some("ort") => "; opened by ONNX Runtime".into(),
        Some(engine) => format!("; opened by {engine}"),
        None => String::new(),
    }
}

#[cfg(test)]
#[cfg(feature = "ort")]
mod tests {
    use super::*;
    use ancre_passes::ir::{Attrs, DType, Op, TensorType};

    /// y = x + x, or a sum of two types.
    fn graph(wrong: bool) -> Graph {
        let mut g = Graph::default();
        g.opsets.insert(String::new(), 18);
        let ty = TensorType::fixed(DType::F32, &[2]);
        let x = g.add_input("x", ty.clone().into(), None);
        let n = g.add_input("n", TensorType::fixed(DType::I64, &[2]).into(), None);
        let add = g.add_op("grad/sum", Op::new("Add", Attrs::new()), &[Some(x), Some(if wrong { n } else { x })]);
        let y = g.push_result(add, "y", ty.into());
        g.add_output(y, None);
        g
    }

    #[test]
    fn a_graph_that_no_runtime_opens_is_not_handed_over() {
        if let Err(e) = crate::engine::ort() {
            eprintln!("skipped: {e}");
            return;
        }
        let path = Path::new("m.ancre.train.onnx");
        let opened = |made: bool, source: bool| {
            let mut opening = Opening::start();
            opening.add("train", &graph(made), path, None).unwrap();
            let mut notices = Vec::new();
            opening.finish(&Subject::of_graph(graph(source), Path::new("m.onnx")), &mut notices).map(|o| (o, notices))
        };
        assert_eq!(opened(false, false).unwrap(), (vec![("train", "ort")], vec![]));
        let e = opened(true, false).unwrap_err();
        assert!(e.status == 1 && e.what.contains("m.ancre.train.onnx") && e.what.contains("grad/sum"), "{e}");
        // What the source does as well is no fault of ours.
        let (by, notices) = opened(true, true).unwrap();
        assert!(by.is_empty() && notices[0].contains("nor does it open the source"), "{notices:?}");
    }
}
