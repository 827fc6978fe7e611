//! ONNX messages to IR and back: the only place that reads or writes node, graph and model messages.

mod emit;
mod import;

pub use emit::{Emission, EmitError, emit, node as node_message};
pub use import::{ImportError, NEWEST_IR, NEWEST_OPSET, OLDEST_OPSET, import, read_value_info};
