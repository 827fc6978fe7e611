//! The graph IR: nodes, values, uses, symbolic dimensions.

mod attr;
mod bytes;
mod dim;
mod graph;
mod router;
mod tensor;
mod types;

pub use attr::{Attr, Attrs};
pub use bytes::SharedBytes;
pub use dim::Dim;
pub use graph::{ANCRE, Graph, Kind, Node, NodeId, NodeSite, Op, Output, Value, ValueId};
pub(crate) use router::words;
pub use router::{Form, Normalize, RouterId, RouterSpec, Rule, Scope, Source, Sources, in_use};
pub use tensor::{ExternalPlace, Home, LFS_POINTER, Tensor, TensorError};
pub(crate) use tensor::{Parts, external_path, external_place};
pub use types::{DType, Shape, TensorType, ValueType, is_absurd};
