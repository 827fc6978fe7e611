//! The integration tests, one binary. They need an ONNX Runtime: one that is installed, or network to fetch one.
#![allow(clippy::unwrap_used, unreachable_pub)]

#[cfg(feature = "ort")]
mod cli;
#[cfg(feature = "ort")]
mod common;
#[cfg(feature = "ort")]
mod golden;
#[cfg(feature = "ort")]
mod ops;
#[cfg(feature = "ort")]
mod train_loop;
