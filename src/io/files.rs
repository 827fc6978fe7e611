//! Reading models and arrays.

pub use crate::io::outputs::Outputs;

use crate::error::Failure;
use crate::io::arrays::{self, read_tensors};
use crate::io::tensor::{NpTensor, Tensors};
use ancre_passes::contract::{Names, Record, StateFrom};
use ancre_passes::ir::{DType, Graph, Home, Kind, LFS_POINTER, SharedBytes};
use ancre_passes::onnx;
use ancre_passes::onnx::inline::inline;
use ancre_passes::transform::initial_state::first_values;
use ancre_passes::transform::legalize::from_old;
use indexmap::IndexMap;
use std::path::{Path, PathBuf};

/// Reads a model file into the IR. The graph's initializers refer to the bytes, which are the file's, mapped. Errors:
/// unreadable file, not an ONNX model, or a model this tool cannot take.
pub fn read_model(path: &Path) -> Result<(Graph, SharedBytes), Failure> {
    read_at(path, path)
}

/// Reads a file that will become `path`: external data lies beside `path`, and messages name it.
pub(super) fn read_at(file: &Path, path: &Path) -> Result<(Graph, SharedBytes), Failure> {
    let bytes = read_bytes(file)?;
    let graph = parse_model(&bytes, path)?;
    Ok((graph, bytes))
}

fn read_bytes(path: &Path) -> Result<SharedBytes, Failure> {
    if path.is_dir() {
        return Err(Failure::input("is a directory, an .onnx file was expected").at(path));
    }
    arrays::map(path)
}

/// Parses a model's bytes into the IR.
pub fn parse_model(bytes: &SharedBytes, path: &Path) -> Result<Graph, Failure> {
    if bytes.is_empty() {
        return Err(Failure::input("is empty, an .onnx file was expected").at(path));
    }
    if bytes.starts_with(LFS_POINTER) {
        let help = "`git lfs pull` in its repository (in a GitHub workflow: actions/checkout with `lfs: true`), or download the file itself";
        return Err(Failure::input("is a Git LFS pointer, not the model").help(help).at(path));
    }
    modern(onnx::read_prepared(bytes, Some(Home::of(path)), |_| Ok(())), path)
}

/// Brings a graph that was read into the forms that the passes take.
fn modern(g: Result<Graph, onnx::ImportError>, path: &Path) -> Result<Graph, Failure> {
    let mut g = g.map_err(|e| import_failure(e, path))?;
    from_old(&mut g).map_err(|e| Failure::input(e.to_string()).at(path))?;
    Ok(g)
}

/// The graph of a model's bytes with its calls of local functions inlined; `true` if it had any. Fails when functions call
/// themselves.
pub fn inlined(g: Graph, bytes: &SharedBytes, path: &Path) -> Result<(Graph, bool), Failure> {
    if g.shell.functions.is_empty() {
        return Ok((g, false));
    }
    let mut calls = 0;
    let inlined = onnx::read_prepared(bytes, Some(Home::of(path)), |model| {
        calls = inline(model)?;
        Ok(())
    });
    let inlined = modern(inlined, path)?;
    Ok(if calls > 0 { (inlined, true) } else { (g, false) })
}

fn import_failure(e: onnx::ImportError, path: &Path) -> Failure {
    let kind = arrays::map(path).ok().and_then(|bytes| other_kind(&bytes));
    if let Some((what, help)) = kind.filter(|_| matches!(e, onnx::ImportError::Damaged(_))) {
        return Failure::input(format!("is {what}, not an ONNX model")).help(help).at(path);
    }
    let failure = Failure::input(e.to_string()).at(path);
    match e {
        onnx::ImportError::Damaged(_) => {
            failure.help("check that the file is complete, and that it is .onnx and not .pt, .safetensors or .onnx.data")
        }
        _ => failure,
    }
}

/// What a file is that is no ONNX model, by its first bytes, and what to try.
fn other_kind(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    let begins = |marks: &[&[u8]]| marks.iter().any(|mark| bytes.starts_with(mark));
    let export = "export the model to ONNX first (PyTorch: torch.onnx.export)";
    let found = if begins(&[b"<!DOCTYPE", b"<!doctype", b"<html", b"<HTML"]) {
        ("a web page", "download the file itself: its address was answered with a page")
    } else if begins(&[b"PK\x03\x04"]) {
        (
            "a zip archive, as PyTorch's .pt and NumPy's .npz are",
            "unpack it if the model is inside, or export the model to ONNX first",
        )
    } else if begins(&[b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"]) {
        ("a Python pickle, as old .pt files are", export)
    } else if begins(&[b"GGUF"]) {
        ("a GGUF file", export)
    } else if begins(&[b"\x89HDF"]) {
        ("an HDF5 file, as Keras writes", "convert the model to ONNX first (tf2onnx)")
    } else if bytes.get(4..8) == Some(b"TFL3") {
        ("a TensorFlow Lite model", "convert it to ONNX first (tf2onnx --tflite)")
    } else if bytes.get(8) == Some(&b'{') && bytes.first_chunk().is_some_and(|n| u64::from_le_bytes(*n) < bytes.len() as u64)
    {
        ("a .safetensors file", export)
    } else {
        return None;
    };
    Some(found)
}

/// The file of another kind that the main job writes beside a training graph: `X.ancre.KIND.onnx` for `X.ancre.train.onnx` or one of its
/// halves, and `X.ancre.onnx` for no kind.
pub fn beside(train: &Path, kind: &str, suffix: &str) -> Option<PathBuf> {
    let name = train.file_name()?.to_str()?;
    let before = [".train", ".grad.", ".update."].into_iter().filter_map(|mark| Some(name.rsplit_once(mark)?.0));
    let stem = before.max_by_key(|s| s.len()).or_else(|| Some(name.rsplit_once('.').filter(|_| !kind.is_empty())?.0))?;
    let dot = if kind.is_empty() { "" } else { "." };
    Some(train.with_file_name(format!("{stem}{dot}{kind}{suffix}"))).filter(|path| path.is_file())
}

/// The first state of a training graph, where its graph asks for it: the tensors of the file that the main job wrote beside it,
/// and that file; none where there is no such file.
pub fn first_state(train: &Path, graph: &Graph) -> Result<Option<(PathBuf, Tensors)>, Failure> {
    let from = Names::read(graph).ok().flatten().map(|names| names.state_from);
    let init = || beside(train, "init", ".onnx");
    // A file of an earlier rewrite may lie there too.
    let stored = beside(train, "state", ".safetensors");
    if let Some(path) = stored.filter(|_| from == Some(StateFrom::Separate) || init().is_none()) {
        return Ok(Some((path.clone(), read_tensors(&path)?)));
    }
    let Some(path) = init() else { return Ok(None) };
    let (g, _) = read_model(&path)?;
    let fail = |e: String| Failure::input(e).at(&path).help("an init graph as the main job writes it was expected");
    let first = first_values(&g).map_err(|e| fail(e.to_string()))?;
    let tensors: Result<_, String> = first.iter().map(|f| Ok((f.name.clone(), NpTensor::first(f)?))).collect();
    Ok(Some((path.clone(), tensors.map_err(fail)?)))
}

/// Checks that the external data of a model's initializers is there. The error names the first tensor whose data is missing,
/// cut off or in a place where it may not be.
pub fn check_external(g: &Graph, path: &Path) -> Result<(), Failure> {
    for id in g.nodes() {
        if let Kind::Initializer { tensor, .. } = &g.node(id).kind
            && tensor.external().is_some()
        {
            tensor.external_range().map_err(|e| Failure::input(e.to_string()).at(path))?;
        }
    }
    Ok(())
}

/// Named float32 arrays with their shapes.
pub type Arrays = IndexMap<String, (Vec<usize>, Vec<f32>)>;

/// Reads the float arrays of an .npz or .safetensors file, and the counters that travel with them. Fails when the file
/// cannot be read or holds another element type than float32, float64 or int64.
pub fn read_arrays(path: &Path) -> Result<Arrays, Failure> {
    let mut all = Arrays::new();
    for (name, t) in arrays::read_tensors(path)? {
        if !matches!(t.dtype(), DType::F32 | DType::F64 | DType::I64) {
            let has = arrays::numpy_name(t.dtype());
            return Err(Failure::input(format!("`{name}` has element type {has}, float32 was expected")).at(path));
        }
        all.insert(name, (t.shape().to_vec(), t.to_f32()));
    }
    all.sort_keys();
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine;
    use ancre_passes::analysis::residual::find_residuals;
    use ancre_passes::pipeline;
    use ancre_passes::transform::route::route_skips;
    use clap::Parser;

    /// What the main job does to a file's bytes, short of training and running it.
    fn work_on(bytes: Vec<u8>) -> Result<(), String> {
        let mut g = parse_model(&SharedBytes::new(bytes), Path::new("m.onnx")).map_err(|e| e.to_string())?;
        engine::find_types(&mut g);
        let structure = find_residuals(&g);
        let cli = crate::cli::Cli::parse_from(["ancre-rewrite", "m.onnx"]);
        let options = crate::rewrite::config::RewriteConfig::try_from(&cli.rewrite).map_err(|e| e.to_string())?.route;
        route_skips(&mut g, &structure.chains, &options).map_err(|e| e.to_string())?;
        pipeline::lower_forward(&mut g).map_err(|e| e.to_string())?;
        onnx::emit(&g).and_then(|e| e.to_bytes()).map_err(|e| e.to_string())?;
        Ok(())
    }

    /// Flipped bits, cut ends and overwritten stretches are errors or other models; never a panic. `ANCRE_FUZZ` gives the
    /// number of trials a file.
    #[test]
    fn damaged_models_do_not_panic() {
        let trials: u64 = std::env::var("ANCRE_FUZZ").ok().and_then(|v| v.parse().ok()).unwrap_or(6);
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        let mut files: Vec<PathBuf> = std::fs::read_dir(models).unwrap().map(|e| e.unwrap().path()).collect();
        files.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
        files.sort();
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut random = move |below: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as usize % below
        };
        for path in files {
            let source = std::fs::read(&path).unwrap();
            for trial in 0..trials {
                let mut bytes = source.clone();
                // Most of a file is weights, where damage shows nothing; nodes come first.
                let ahead = bytes.len().min(60_000);
                match trial % 3 {
                    0 => (0..1 + random(4)).for_each(|_| bytes[random(ahead)] ^= 1 << random(8)),
                    1 => bytes.truncate(random(source.len())),
                    _ => {
                        let at = random(ahead);
                        let end = (at + 1 + random(8)).min(bytes.len());
                        bytes[at..end].iter_mut().for_each(|b| *b = random(256) as u8);
                    }
                }
                let kept = bytes.clone();
                if std::panic::catch_unwind(|| work_on(bytes)).is_err() {
                    let at = std::env::temp_dir().join("ancre-damaged.onnx");
                    std::fs::write(&at, kept).unwrap();
                    panic!("{} damaged (trial {trial}) panics; see {}", path.display(), at.display());
                }
            }
        }
    }
}
