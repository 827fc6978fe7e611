//! The user's own inputs, from `.npy`, `.npz` and `.safetensors` files.

use crate::engine::Tensors;
use crate::error::Failure;
use crate::io::arrays::{read_npy, read_tensors, tensors};
use ancre_passes::ir::Graph;
use std::path::Path;

/// Reads all `--input` options; names must be inputs of the model. The error names the first file that cannot be read, or
/// name that is no input.
pub(crate) fn read_inputs(options: &[String], g: &Graph) -> Result<Tensors, Failure> {
    read(options, g, false)
}

/// As [`read_inputs`], without the arrays of whole files that are no inputs: labels stand beside them in data to train on.
pub(crate) fn read_inputs_among(options: &[String], g: &Graph) -> Result<Tensors, Failure> {
    read(options, g, true)
}

fn read(options: &[String], g: &Graph, spares_others: bool) -> Result<Tensors, Failure> {
    let inputs: Vec<&str> = g.required_inputs().map(|v| g.name(v)).collect();
    let is_input = |name: &str| inputs.contains(&name);
    let mut given = Tensors::new();
    for text in options {
        let (name, file) = match text.split_once('=') {
            Some((name, file)) if !name.is_empty() => (Some(name), file),
            _ => (None, text.as_str()),
        };
        let path = Path::new(file);
        let suffix = path.extension().and_then(|e| e.to_str()).unwrap_or_default().to_ascii_lowercase();
        match (name, suffix.as_str()) {
            (Some(name), "npy") => {
                given.extend(tensors(&[read_npy(path)?], path)?.into_values().map(|t| (name.to_string(), t)));
            }
            (Some(name), "npz" | "safetensors") => {
                let mut all = read_tensors(path)?;
                let t = all.swap_remove(name).ok_or_else(|| {
                    let has = all.keys().cloned().collect::<Vec<_>>().join(", ");
                    Failure::input(format!("--input {text}: holds no array `{name}`, only {has}")).at(path)
                })?;
                given.insert(name.to_string(), t);
            }
            (None, "npz" | "safetensors") => {
                let mut all = read_tensors(path)?;
                if spares_others && all.keys().any(|name| is_input(name)) {
                    all.retain(|name, _| is_input(name));
                }
                given.extend(all);
            }
            _ => {
                let forms = "NAME=FILE.npy, NAME=FILE.npz or FILE.npz (or .safetensors) was expected";
                return Err(Failure::input(format!("--input `{text}` is of no such form: {forms}")));
            }
        }
    }
    match given.keys().find(|name| !is_input(name)) {
        None => Ok(given),
        Some(name) => Err(Failure::input(format!("--input {name}: the model's inputs are {}", inputs.join(", ")))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::tensor::NpTensor;
    use ndarray_npy::WriteNpyExt;

    #[test]
    fn an_array_is_fed_by_name_and_a_wrong_name_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        ndarray::arr2(&[[1f32, 2.0, 3.0], [4.0, 5.0, 6.5]]).write_npy(std::fs::File::create(&path).unwrap()).unwrap();
        let mut g = Graph::default();
        g.add_input("x", ancre_passes::ir::ValueType::default(), None);
        let fed = read_inputs(&[format!("x={}", path.display())], &g).unwrap();
        assert_eq!(fed["x"], NpTensor::f32s(&[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.5]).unwrap());
        let e = read_inputs(&[format!("y={}", path.display())], &g).unwrap_err().to_string();
        assert!(e.contains("`y`") || e.contains("y: the model's inputs are x"), "{e}");
        std::fs::write(&path, b"PK").unwrap();
        assert!(read_inputs(&[format!("x={}", path.display())], &g).unwrap_err().to_string().contains("x.npy"));
    }
}
