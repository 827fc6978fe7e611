//! Graph IR, residual analysis, router and differentiation of `ancre-rewrite`. Links no runtime.

pub mod analysis;
pub mod ir;
pub mod onnx;
pub mod ops;
pub mod pipeline;
pub mod proof;
pub mod transform;
