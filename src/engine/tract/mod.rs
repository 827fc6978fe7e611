//! tract: the source of shape facts, and the embedded engine that proves a rewrite.

mod facts;

pub use facts::TractOracle;

use ancre_passes::ir::DType;
use tract_onnx::prelude::{Tensor, TractResult};
use tract_onnx::tract_hir::internal::{anyhow, f16};

/// A tract tensor from little-endian bytes.
fn to_tract(dtype: DType, shape: &[usize], bytes: &[u8]) -> TractResult<Tensor> {
    macro_rules! from {
        ($t:ty, $n:literal) => {
            Tensor::from_shape(shape, &bytes.as_chunks::<$n>().0.iter().map(|c| <$t>::from_le_bytes(*c)).collect::<Vec<$t>>())
        };
    }
    match dtype {
        DType::F32 => from!(f32, 4),
        DType::F64 => from!(f64, 8),
        DType::F16 => from!(f16, 2),
        DType::I8 => from!(i8, 1),
        DType::I16 => from!(i16, 2),
        DType::I32 => from!(i32, 4),
        DType::I64 => from!(i64, 8),
        DType::U8 => from!(u8, 1),
        DType::U16 => from!(u16, 2),
        DType::U32 => from!(u32, 4),
        DType::U64 => from!(u64, 8),
        DType::Bool => Tensor::from_shape(shape, &bytes.iter().map(|b| *b != 0).collect::<Vec<_>>()),
        other => Err(anyhow!("tract has no element type {other}")),
    }
}
