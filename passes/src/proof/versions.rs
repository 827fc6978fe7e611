//! Operator sets: which operators mean the same in all of them.

use super::canonical::{Side, Site};
use crate::ir::{Attr, Op};
use crate::onnx::schema::{meaning::Use, versions};

/// Part of an operator's key: the last operator set that changed its meaning in a way that attributes and operands do not
/// tell; 0 where none did, or the two graphs have the same.
pub(super) fn version_key(side: &Side, op: &Op, site: &Site, has_subgraph: bool) -> i64 {
    if !side.versions_differ {
        return 0;
    }
    if !op.domain.is_empty() {
        return side.graph.opsets.get(&op.domain).copied().unwrap_or(0) + 1;
    }
    let opaque = has_subgraph || op.attrs.0.values().any(|a| matches!(a, Attr::Opaque(_)));
    if opaque || versions("", &op.name).is_empty() {
        return site.opset + 1;
    }
    let node = Use { results: site.types.clone(), ..Use::untyped(op, site.args.len(), 0) };
    node.last_change(0, site.opset, site.opset).unwrap_or(0)
}
