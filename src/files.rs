//! Reading models and arrays.

pub use crate::outputs::Outputs;

use crate::error::Failure;
use ancre_passes::ir::{Graph, Kind, SharedBytes};
use ancre_passes::onnx;
use indexmap::IndexMap;
use std::path::Path;

/// Reads a model file into the IR. The graph's initializers refer to the bytes, which are the file's, mapped.
///
/// # Errors
/// Unreadable file, not an ONNX model, or a model this tool cannot take.
pub fn read_model(path: &Path) -> Result<(Graph, SharedBytes), Failure> {
    let bytes = read_bytes(path)?;
    let graph = parse_model(&bytes, path)?;
    Ok((graph, bytes))
}

fn read_bytes(path: &Path) -> Result<SharedBytes, Failure> {
    if path.is_dir() {
        return Err(Failure::input("is a directory, an .onnx file was expected").at(path));
    }
    let bytes = std::fs::File::open(path).and_then(|mut file| SharedBytes::of_file(&mut file));
    bytes.map_err(|e| Failure::input(format!("cannot be read: {e}")).at(path))
}

/// Parses a model's bytes into the IR.
///
/// # Errors
/// As [`read_model`].
pub fn parse_model(bytes: &SharedBytes, path: &Path) -> Result<Graph, Failure> {
    if bytes.is_empty() {
        return Err(Failure::input("is empty, an .onnx file was expected").at(path));
    }
    onnx::read(bytes, path.parent()).map_err(|e| {
        let failure = Failure::input(e.to_string()).at(path);
        match e {
            onnx::ImportError::Damaged(_) => {
                failure.help("check that the file is complete, and that it is .onnx and not .pt, .safetensors or .onnx.data")
            }
            _ => failure,
        }
    })
}

/// Checks that the external data of a model's initializers is there.
///
/// # Errors
/// The first tensor whose data is missing, cut off or in a place where it may not be.
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

/// Reads the float arrays of an .npz or .safetensors file.
///
/// # Errors
/// When the file cannot be read or holds another element type than float32 or float64.
pub fn read_arrays(path: &Path) -> Result<Arrays, Failure> {
    let fail = |e: String| Failure::input(e).at(path);
    match path.extension().and_then(|e| e.to_str()) {
        Some("npz") => {
            let file = std::fs::File::open(path).map_err(|e| fail(format!("cannot be read: {e}")))?;
            let mut npz = ndarray_npy::NpzReader::new(file).map_err(|e| fail(format!("is not a readable .npz: {e}")))?;
            let names = npz.names().map_err(|e| fail(e.to_string()))?;
            let mut out = Arrays::new();
            for name in names {
                let key = name.trim_end_matches(".npy").to_string();
                let array: Result<ndarray::ArrayD<f32>, _> = npz.by_name(&name);
                let array = match array {
                    Ok(a) => a,
                    Err(_) => npz
                        .by_name::<ndarray::OwnedRepr<f64>, ndarray::IxDyn>(&name)
                        .map(|a| a.mapv(|v| v as f32))
                        .map_err(|e| fail(format!("`{key}` is not a float array: {e}")))?,
                };
                out.insert(key, (array.shape().to_vec(), array.iter().copied().collect()));
            }
            out.sort_keys();
            Ok(out)
        }
        Some("safetensors") => {
            let bytes = read_bytes(path)?;
            let tensors = safetensors::SafeTensors::deserialize(&bytes)
                .map_err(|e| fail(format!("is not a readable .safetensors: {e}")))?;
            let mut out = Arrays::new();
            for (name, view) in tensors.tensors() {
                let values = match view.dtype() {
                    safetensors::Dtype::F32 => {
                        view.data().as_chunks::<4>().0.iter().map(|c| f32::from_le_bytes(*c)).collect()
                    }
                    safetensors::Dtype::F64 => {
                        view.data().as_chunks::<8>().0.iter().map(|c| f64::from_le_bytes(*c) as f32).collect()
                    }
                    // Counters travel in the same file.
                    safetensors::Dtype::I64 => {
                        view.data().as_chunks::<8>().0.iter().map(|c| i64::from_le_bytes(*c) as f32).collect()
                    }
                    other => return Err(fail(format!("`{name}` has element type {other:?}, float32 was expected"))),
                };
                out.insert(name, (view.shape().to_vec(), values));
            }
            out.sort_keys();
            Ok(out)
        }
        _ => Err(fail("has an unknown suffix, .npz or .safetensors was expected".into())),
    }
}
