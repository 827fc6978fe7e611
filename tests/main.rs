//! The integration tests, one binary. They need an ONNX Runtime: one that is installed, or network to fetch one.
#![cfg(all(feature = "ort", feature = "tract"))]
#![allow(clippy::unwrap_used, unreachable_pub)]

mod adapters;
mod axes;
mod batch;
mod choices;
mod cli;
mod common;
mod control_flow;
mod data;
mod dropout;
mod engines;
mod eval;
mod freeze;
mod golden;
mod grad;
mod guards;
mod losses;
mod mutations;
mod objectives;
mod opset;
mod passes;
mod precision;
mod proof;
mod recurrent;
mod roundtrip;
mod router;
mod rules;
mod runtime;
mod text;
mod ties;
mod topology;
mod train;
mod train_loop;
mod verify;
mod zoo;
