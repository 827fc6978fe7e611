//! Reading models, writing outputs whole or not at all.

use crate::error::Failure;
use ancre_passes::ir::Graph;
use ancre_passes::onnx::{self, Emission};
use indexmap::IndexMap;
use onnx_protobuf::{Message, ModelProto};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Reads a model file into the IR.
///
/// # Errors
/// Unreadable file, not an ONNX model, or a model this tool cannot take.
pub fn read_model(path: &Path) -> Result<(Graph, Vec<u8>), Failure> {
    let bytes = read_bytes(path)?;
    let graph = parse_model(&bytes, path)?;
    Ok((graph, bytes))
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    if path.is_dir() {
        return Err(Failure::input("is a directory, an .onnx file was expected").at(path));
    }
    std::fs::read(path).map_err(|e| Failure::input(format!("cannot be read: {e}")).at(path))
}

/// Parses a model's bytes into the IR.
///
/// # Errors
/// As [`read_model`].
pub fn parse_model(bytes: &[u8], path: &Path) -> Result<Graph, Failure> {
    if bytes.is_empty() {
        return Err(Failure::input("is empty, an .onnx file was expected").at(path));
    }
    let model = ModelProto::parse_from_bytes(bytes).map_err(|e| {
        Failure::input(format!("is not a readable ONNX model: {e}"))
            .help("check that the file is complete, and that it is .onnx and not .pt, .safetensors or .onnx.data")
            .at(path)
    })?;
    onnx::import(model, path.parent()).map_err(|e| Failure::input(e.to_string()).at(path))
}

/// Files to be put in place together: each is written under a temporary name first, so that an error leaves nothing behind.
#[derive(Default)]
pub struct Outputs {
    pending: Vec<(tempfile::NamedTempFile, PathBuf)>,
}

impl Outputs {
    /// Writes a model beside its destination.
    ///
    /// # Errors
    /// When the directory cannot be made or written to.
    pub fn add_model(&mut self, emission: &Emission, path: &Path) -> Result<u64, Failure> {
        self.add(path, |file| emission.write_to(file).map_err(|e| e.to_string()))?;
        Ok(emission.byte_len())
    }

    /// Writes bytes beside their destination.
    ///
    /// # Errors
    /// When the directory cannot be made or written to.
    pub fn add_bytes(&mut self, bytes: &[u8], path: &Path) -> Result<(), Failure> {
        self.add(path, |file| file.write_all(bytes).map_err(|e| e.to_string()))
    }

    fn add(&mut self, path: &Path, write: impl FnOnce(&mut dyn Write) -> Result<(), String>) -> Result<(), Failure> {
        let fail = |e: String| Failure::input(format!("cannot be written: {e}")).at(path);
        if path.is_dir() {
            return Err(fail("it is a directory".into()));
        }
        let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::create_dir_all(dir).map_err(|e| fail(e.to_string()))?;
        let temp = tempfile::Builder::new().prefix(".ancre-").tempfile_in(dir).map_err(|e| fail(e.to_string()))?;
        {
            let mut file = std::io::BufWriter::with_capacity(1 << 20, temp.as_file());
            write(&mut file).map_err(fail)?;
            file.flush().map_err(|e| fail(e.to_string()))?;
        }
        self.pending.push((temp, path.to_path_buf()));
        Ok(())
    }

    /// Puts all files in place.
    ///
    /// # Errors
    /// When a rename fails.
    pub fn commit(self) -> Result<(), Failure> {
        for (temp, path) in self.pending {
            // Temporary files are private; the output has the permissions a new file gets.
            #[cfg(unix)]
            {
                use std::os::unix::fs::PermissionsExt;
                let _ = std::fs::set_permissions(temp.path(), std::fs::Permissions::from_mode(0o644));
            }
            temp.persist(&path).map_err(|e| Failure::input(format!("cannot be written: {}", e.error)).at(&path))?;
        }
        Ok(())
    }
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
