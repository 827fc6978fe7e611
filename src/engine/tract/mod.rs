//! tract: the source of shape facts, and the embedded engine that proves a rewrite.

mod facts;
mod operators;
mod run;

pub(super) const NAME: &str = "tract";

pub use facts::TractOracle;
pub use run::TractEngine;

use crate::engine::EngineError;
use crate::io::tensor::with_type;
use ancre_passes::ir::DType;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use tract_onnx::model::Onnx;
use tract_onnx::prelude::{DatumType, Tensor, TractResult};
use tract_onnx::tract_hir::internal::{anyhow, f16};

use operators::framework;

/// Does tract know this operator? tract looks at the name only, which may mean something else in another domain.
fn is_known(framework: &Onnx, domain: &str, name: &str) -> bool {
    const MICROSOFT: [&str; 8] = [
        "BiasGelu",
        "FastGelu",
        "Gelu",
        "GroupQueryAttention",
        "MatMulNBits",
        "MultiHeadAttention",
        "QuickGelu",
        "SkipLayerNormalization",
    ];
    match domain {
        "" | "ai.onnx" => framework.op_register.0.contains_key(name),
        "com.microsoft" => MICROSOFT.contains(&name),
        _ => false,
    }
}

/// A tract tensor from little-endian bytes.
fn to_tract(dtype: DType, shape: &[usize], bytes: &[u8]) -> TractResult<Tensor> {
    macro_rules! elements {
        ($t:ty) => {
            bytes.as_chunks::<{ size_of::<$t>() }>().0.iter().map(|c| <$t>::from_le_bytes(*c)).collect::<Vec<$t>>()
        };
    }
    match dtype {
        DType::F16 => Tensor::from_shape(shape, &elements!(f16)),
        DType::Bool => Tensor::from_shape(shape, &bytes.iter().map(|b| *b != 0).collect::<Vec<_>>()),
        other => with_type!(
            other,
            T => Tensor::from_shape(shape, &elements!(T)),
            Err(anyhow!("tract has no element type {other}"))
        ),
    }
}

fn to_datum(t: DType) -> Option<DatumType> {
    PAIRS.iter().find(|(ours, _)| *ours == t).map(|(_, theirs)| *theirs)
}

/// The inverse of [`to_datum`]. Shape arithmetic has a type of its own in tract and is int64 to ONNX.
fn from_datum(t: DatumType) -> Option<DType> {
    let t = if t == DatumType::TDim { DatumType::I64 } else { t };
    PAIRS.iter().find(|(_, theirs)| *theirs == t).map(|(ours, _)| *ours)
}

const PAIRS: [(DType, DatumType); 13] = [
    (DType::F32, DatumType::F32),
    (DType::F64, DatumType::F64),
    (DType::F16, DatumType::F16),
    (DType::I8, DatumType::I8),
    (DType::I16, DatumType::I16),
    (DType::I32, DatumType::I32),
    (DType::I64, DatumType::I64),
    (DType::U8, DatumType::U8),
    (DType::U16, DatumType::U16),
    (DType::U32, DatumType::U32),
    (DType::U64, DatumType::U64),
    (DType::Bool, DatumType::Bool),
    (DType::Str, DatumType::String),
];

thread_local!(static QUIET: Cell<bool> = const { Cell::new(false) });

/// Runs engine code that may panic on unexpected input. A panic leaves no message on stderr.
fn quietly<T>(f: impl FnOnce() -> T) -> Result<T, EngineError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                previous(info);
            }
        }));
    });
    let outer = QUIET.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    QUIET.set(outer);
    result.map_err(|said| {
        let why = said.downcast_ref::<String>().cloned().or_else(|| said.downcast_ref::<&str>().map(|s| s.to_string()));
        EngineError::Panicked { engine: NAME, why: why.unwrap_or_else(|| "it did not say why".into()) }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_keeps_its_text() {
        let said = |panic: fn()| quietly(panic).unwrap_err().to_string();
        assert_eq!(said(|| panic!("no axis {}", 7)), "tract panicked: no axis 7");
        assert_eq!(said(|| panic!("no axis")), "tract panicked: no axis");
        assert_eq!(quietly(|| 7).unwrap(), 7);
    }
}
