//! ONNX messages to IR and back: the only place that reads or writes node, graph and model messages.

mod emit;
mod external;
mod import;
mod scan;

pub use emit::{Emission, EmitError, MOST_BYTES, Placement, emit, node as node_message};
pub use external::external_files;
pub use import::{ImportError, NEWEST_IR, NEWEST_OPSET, OLDEST_OPSET, import, read, read_value_info};
