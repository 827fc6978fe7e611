//! `freeze --adapter`: adapters as files beside a base that stays as it is.
//!
//! | file | for |
//! |---|---|
//! | `FILE.safetensors`, `adapter_config.json` | PEFT, and what reads its files: `base_model.model.<module>.lora_A.weight` [rank, in], `lora_B.weight` [out, rank] |
//! | `FILE.onnx_adapter` | ONNX Runtime's `LoraAdapter`: the tensors as the graph has them, in its flatbuffer format |
//! | `FILE.onnx` | the base, whose adapters are optional inputs that start as zeros |

use crate::engine::Tensors;
use crate::error::Failure;
use crate::io::arrays::stored;
use crate::io::outputs::Outputs;
use crate::io::tensor::NpTensor;
use ancre_passes::contract::{AdapterKind, AdapterRecord, AdaptersRecord, Layout, Record};
use ancre_passes::ir::{Graph, Tensor};
use ancre_passes::transform::fresh;
use flatbuffers::FlatBufferBuilder;
use serde_json::json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// The files of an adapter.
pub(super) struct AdapterFiles {
    stem: PathBuf,
    peft: Vec<u8>,
    config: Vec<u8>,
    runtime: Vec<u8>,
}

impl AdapterFiles {
    /// Takes the adapters out of a graph, in which they become optional inputs of zeros.
    pub(super) fn take(g: &mut Graph, file: &Path, model: &Path) -> Result<AdapterFiles, Failure> {
        let fail = |e: String| Failure::input(e).at(model);
        let record = AdaptersRecord::read(g).map_err(|e| fail(e.to_string()))?;
        let record = record.ok_or_else(|| fail("holds no adapters: --lora RANK of the main job adds them".into()))?;
        let (mut ours, mut peft) = (Tensors::new(), Tensors::new());
        for adapter in &record.adapters {
            let [a, b] = [&adapter.a, &adapter.b].map(|name| taken(g, name));
            let (a, b) = (a.map_err(fail)?, b.map_err(fail)?);
            let shape =
                g.find(&adapter.weight).and_then(|v| g.initializer(v)).map(|t| t.dims().to_vec()).unwrap_or_default();
            for (name, t) in
                peft_tensors(adapter, &a, &b, &shape).ok_or_else(|| fail(format!("`{}` is no matrix", adapter.a)))?
            {
                if peft.insert(name.clone(), t).is_some() {
                    return Err(fail(format!(
                        "two adapters are both `{name}` in PEFT's names, since their modules have one name"
                    ))
                    .help("name other weights with --lora-on, or merge the adapters: freeze without --adapter"));
                }
            }
            ours.insert(adapter.a.clone(), a);
            ours.insert(adapter.b.clone(), b);
        }
        let about = Some(HashMap::from([("format".to_string(), "pt".to_string())]));
        let peft = safetensors::serialize(stored(&peft).map_err(fail)?, about).map_err(|e| fail(e.to_string()))?;
        let mut config = serde_json::to_vec_pretty(&config(&record, model)).map_err(|e| fail(e.to_string()))?;
        config.push(b'\n');
        Ok(AdapterFiles { stem: stem(file), peft, config, runtime: flatbuffer(&ours) })
    }

    /// Where the base goes unless another place is asked for.
    pub(super) fn base(&self) -> PathBuf {
        named(&self.stem, "onnx")
    }

    /// Adds the files to what is written; their names. Fails where PEFT's description of another adapter would go.
    pub(super) fn add(&self, outputs: &mut Outputs) -> Result<Vec<PathBuf>, Failure> {
        let (peft, config) = (named(&self.stem, "safetensors"), self.stem.with_file_name("adapter_config.json"));
        if std::fs::read(&config).is_ok_and(|there| there != self.config) && !is_alone(&peft) {
            return Err(Failure::input("describes another adapter, and PEFT looks for no other name")
                .at(&config)
                .help("give each adapter a directory of its own, or remove the file"));
        }
        let files = [(peft, &self.peft), (config, &self.config), (named(&self.stem, "onnx_adapter"), &self.runtime)];
        files.into_iter().map(|(path, bytes)| outputs.add_bytes(bytes, &path).map(|()| path)).collect()
    }
}

/// The name without the suffix of one of the files; PEFT's own in a directory.
fn stem(file: &Path) -> PathBuf {
    if file.is_dir() || file.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return file.join("adapter_model");
    }
    let known = ["safetensors", "onnx_adapter", "onnx"];
    if file.extension().is_some_and(|e| known.iter().any(|k| e == *k)) {
        file.with_extension("")
    } else {
        file.to_path_buf()
    }
}

/// Is a file there, and no other of its kind beside it?
fn is_alone(file: &Path) -> bool {
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|e| e.file_name());
    let alike: Vec<_> = entries.filter(|name| Path::new(name).extension() == file.extension()).collect();
    alike.len() == 1 && Some(alike[0].as_os_str()) == file.file_name()
}

fn named(stem: &Path, suffix: &str) -> PathBuf {
    let mut name = stem.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{suffix}"));
    stem.with_file_name(name)
}

/// The value of an initializer, which becomes an optional input of zeros.
fn taken(g: &mut Graph, name: &str) -> Result<NpTensor, String> {
    let missing = || format!("lacks `{name}`, which its `ancre.adapters` metadata names");
    let v = g.find(name).ok_or_else(missing)?;
    let tensor: Tensor = g.initializer(v).cloned().ok_or_else(missing)?;
    let value = NpTensor::from_constant(&tensor)?;
    g.set_initializer(v, fresh::constant(tensor.dtype(), tensor.dims(), 0.0), true);
    Ok(value)
}

/// A and B by PEFT's names, in its layouts; `None` if they are no matrices.
fn peft_tensors(adapter: &AdapterRecord, a: &NpTensor, b: &NpTensor, weight: &[i64]) -> Option<[(String, NpTensor); 2]> {
    let module = format!("base_model.model.{}", module(adapter));
    let (mut a, mut b) = (turned(a)?, turned(b)?);
    if adapter.kind == AdapterKind::Conv {
        let window: Vec<usize> = weight.iter().skip(1).map(|d| *d as usize).collect();
        let ones = vec![1; window.len().saturating_sub(1)];
        a = NpTensor::from_f64s(a.dtype(), &[&a.shape()[..1], &window].concat(), &a.to_f64())?;
        b = NpTensor::from_f64s(b.dtype(), &[b.shape(), &ones].concat(), &b.to_f64())?;
    }
    Some(match adapter.kind {
        AdapterKind::Embedding => [(format!("{module}.lora_embedding_A"), a), (format!("{module}.lora_embedding_B"), b)],
        _ => [(format!("{module}.lora_A.weight"), a), (format!("{module}.lora_B.weight"), b)],
    })
}

fn turned(t: &NpTensor) -> Option<NpTensor> {
    let [rows, columns] = *t.shape() else { return None };
    let values = t.to_f64();
    let moved: Vec<f64> = (0..columns).flat_map(|j| (0..rows).map(move |i| i * columns + j)).map(|at| values[at]).collect();
    NpTensor::from_f64s(t.dtype(), &[columns, rows], &moved)
}

/// The module that a weight belongs to: by the weight's name or, where an exporter has replaced that by a number, by the node's.
fn module(adapter: &AdapterRecord) -> String {
    let weight = adapter.weight.as_str();
    let numbered = weight.starts_with("onnx::") || weight.starts_with("val_") || !weight.contains('.');
    let path = adapter.node.trim_start_matches('/');
    if numbered && let Some((scopes, _)) = path.rsplit_once('/') {
        return of_scopes(scopes);
    }
    let known = ["weight", "weight_quantized", "weight_q", "weight_q4", "weight_Q4", "qweight", "kernel"];
    match weight.rsplit_once('.') {
        Some((module, last)) if known.contains(&last) => module.into(),
        _ => weight.replace('/', "."),
    }
}

/// `layer1/layer1.0/conv1` is `layer1.0.conv1`: a scope of PyTorch's exporter repeats the one around it.
fn of_scopes(scopes: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in scopes.split('/').filter(|p| !p.is_empty()) {
        if parts.last().is_some_and(|last| part.strip_prefix(last).is_some_and(|rest| rest.starts_with('.'))) {
            parts.pop();
        }
        parts.push(part);
    }
    parts.join(".")
}

/// PEFT's description of an adapter.
fn config(record: &AdaptersRecord, model: &Path) -> serde_json::Value {
    let modules: Vec<String> = record.adapters.iter().map(module).collect();
    let named = |a: &&AdapterRecord| a.kind == AdapterKind::Linear && a.weight.ends_with(".weight");
    let (mut linear, mut stored_in_out) = (0, 0);
    for a in record.adapters.iter().filter(named) {
        linear += 1;
        stored_in_out += usize::from(a.layout == Layout::InOut);
    }
    let alpha = if record.alpha.fract() == 0.0 { json!(record.alpha as i64) } else { json!(record.alpha) };
    json!({
        "peft_type": "LORA", "task_type": null, "base_model_name_or_path": model.file_name().and_then(|n| n.to_str()),
        "r": record.rank, "lora_alpha": alpha, "lora_dropout": 0.0, "bias": "none", "target_modules": modules,
        // A matrix that kept its parameter's name is stored as the parameter was.
        "fan_in_fan_out": linear > 0 && linear == stored_in_out,
        "use_rslora": false, "use_dora": false, "init_lora_weights": true, "inference_mode": true, "modules_to_save": null,
    })
}

/// Version of ONNX Runtime's adapter format.
const FORMAT: i32 = 1;

/// ONNX Runtime's adapter file (`onnxruntime/lora/adapter_format/adapter_schema.fbs`): a table of versions and a list of tables,
/// each a tensor's name, shape, element type and bytes.
fn flatbuffer(tensors: &Tensors) -> Vec<u8> {
    // The place of a table's n-th field in its table of offsets.
    const fn field(n: u16) -> u16 {
        4 + 2 * n
    }
    let mut b = FlatBufferBuilder::new();
    let mut list = Vec::new();
    for (name, t) in tensors {
        let bytes = t.bytes();
        // The bytes start at a multiple of 8. The buffer grows towards its front.
        let over = (b.unfinished_data().len() + bytes.len()) % 8;
        for _ in 0..(8 - over) % 8 {
            b.push(0u8);
        }
        let data = b.create_vector(bytes);
        let dims: Vec<i64> = t.shape().iter().map(|d| *d as i64).collect();
        let (dims, name) = (b.create_vector(&dims), b.create_string(name));
        let table = b.start_table();
        b.push_slot_always(field(0), name);
        b.push_slot_always(field(1), dims);
        b.push_slot(field(2), t.dtype().onnx(), 0);
        b.push_slot_always(field(3), data);
        list.push(b.end_table(table));
    }
    let list = b.create_vector(&list);
    let table = b.start_table();
    b.push_slot(field(0), FORMAT, 0);
    b.push_slot(field(1), 1, 0);
    b.push_slot(field(2), 1, 0);
    b.push_slot_always(field(3), list);
    let root = b.end_table(table);
    b.finish(root, Some("TORT"));
    b.finished_data().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(weight: &str, node: &str) -> AdapterRecord {
        AdapterRecord {
            weight: weight.into(),
            a: String::new(),
            b: String::new(),
            node: node.into(),
            kind: AdapterKind::Linear,
            layout: Layout::InOut,
            quantised: false,
        }
    }

    #[test]
    fn modules_have_the_names_that_pytorch_gave_them() {
        for (weight, node, expected) in [
            ("h.0.attn.c_attn.weight", "/h.0/attn/c_attn/MatMul", "h.0.attn.c_attn"),
            ("onnx::MatMul_12", "/layer1/layer1.0/conv1/Conv", "layer1.0.conv1"),
            ("val_7", "/model/layers.3/mlp/up_proj/MatMul", "model.layers.3.mlp.up_proj"),
            ("onnx::Conv_3", "Conv_3", "onnx::Conv_3"),
            ("h.1.mlp.weight_q4", "n", "h.1.mlp"),
            ("w", "", "w"),
        ] {
            assert_eq!(module(&record(weight, node)), expected);
        }
    }

    #[test]
    fn files_are_named_after_what_was_given() {
        for given in ["a/b", "a/b.safetensors", "a/b.onnx_adapter", "a/b.onnx"] {
            assert_eq!(named(&stem(Path::new(given)), "onnx"), Path::new("a/b.onnx"));
        }
        assert_eq!(named(&stem(Path::new("a/b.v2")), "onnx"), Path::new("a/b.v2.onnx"));
    }
}
