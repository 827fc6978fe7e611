//! The graph IR: nodes, values, uses, symbolic dimensions.

mod attr;
pub mod build;
mod dim;
mod graph;
mod tensor;
pub mod text;
mod types;
pub mod verify;

pub use attr::{Attr, Attrs};
pub use dim::Dim;
pub use graph::{ANCRE, Graph, Kind, Node, NodeId, NodeSite, Op, Operands, Output, Value, ValueId};
pub use tensor::{ExternalPlace, Tensor, TensorError};
pub use types::{DType, Shape, TensorType, ValueType};
