//! `train`: training graphs run in ONNX Runtime.

pub mod data;
