//! The graph IR: nodes, values, uses, symbolic dimensions.

mod attr;
mod bytes;
mod dim;
mod external;
mod graph;
mod router;
mod tensor;
mod types;

pub use attr::{Attr, Attrs};
pub use bytes::SharedBytes;
pub use dim::Dim;
pub use external::{ExternalPlace, Home, LFS_POINTER};
pub(crate) use external::{external_path, external_place};
pub use graph::{ANCRE, Graph, Kind, Node, NodeId, NodeSite, Op, Output, Value, ValueId};
pub(crate) use router::words;
pub use router::{Form, Normalize, RouterId, RouterSpec, Rule, Scope, Source, Sources, Sparsity};
pub(crate) use tensor::Parts;
pub use tensor::{Tensor, TensorError};
pub use types::{DType, Shape, TensorType, ValueType, is_absurd};
