//! Our own shape rules and the declarations of the file type every value of every model of `models/`: no engine is asked.

#![allow(clippy::unwrap_used)]

use ancre_passes::analysis::types::{Coverage, resolve_types};
use ancre_passes::ir::SharedBytes;
use ancre_passes::onnx::{inline, read_prepared};
use std::path::{Path, PathBuf};

#[test]
fn every_value_of_every_model_is_typed_without_an_engine() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|p| p.extension().is_some_and(|e| e == "onnx"));
    files.sort();
    assert!(files.len() > 20);
    let mut open = Vec::new();
    for path in files {
        let bytes = SharedBytes::new(std::fs::read(&path).unwrap());
        let mut g = read_prepared(&bytes, path.parent().map(Into::into), |model| inline::inline(model).map(|_| ())).unwrap();
        let Coverage { values, unresolved } = resolve_types(&mut g, None);
        assert!(values > 0);
        open.extend(unresolved.iter().map(|v| format!("{}: `{v}` is {}", path.display(), g.value(g.find(v).unwrap()).ty)));
    }
    assert!(open.is_empty(), "{} values are open:\n{}", open.len(), open.join("\n"));
}
