//! ONNX messages to IR and back: the only place that reads or writes node, graph and model messages.
//! [`schema`] has what the standard says of each operator.

mod emit;
mod external;
mod import;
pub mod inline;
mod scan;
pub mod schema;
#[cfg(test)]
mod tests;

pub use emit::{Emission, EmitError, MOST_BYTES, Placement, emit, node as node_message};
pub use external::external_files;
pub use import::{ImportError, NEWEST_IR, NEWEST_OPSET, OLDEST_OPSET, import, op_of, read, read_prepared, read_value_info};
