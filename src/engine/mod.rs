//! Engines that run models: tract, embedded and independent of ONNX Runtime.

pub mod tract;
