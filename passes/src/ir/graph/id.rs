//! Ids of nodes and values.
//!
//! petgraph gives a removed node's index to the next node. A debug build notes in an id which node it was made for, and panics
//! where the id of a removed node is used.

use super::Graph;
use petgraph::stable_graph::NodeIndex;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

/// A node of the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    pub(super) index: NodeIndex<u32>,
    born: Born,
}

/// One result of one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId {
    /// The producer.
    pub node: NodeId,
    /// Which of its results.
    pub slot: u32,
}

impl NodeId {
    /// A dense number, for tables indexed by node; below [`Graph::node_bound`].
    pub fn index(self) -> usize {
        self.index.index()
    }

    /// Panics in a debug build if the id was made for a node that was removed since.
    #[track_caller]
    pub(super) fn check(self, node: Born) {
        debug_assert!(self.is(node), "node {} was removed, and its id is used", self.index());
    }

    pub(super) fn is(self, node: Born) -> bool {
        self.born.number() == node.number()
    }
}

impl Graph {
    pub(super) fn id(&self, index: NodeIndex<u32>) -> NodeId {
        NodeId { index, born: self.g[index].born }
    }
}

/// The number of a node among all that were ever added to the graph; empty in a release build. Two ids are equal if their indices are,
/// so that both builds compute the same.
#[derive(Clone, Copy, Debug)]
pub(super) struct Born(#[cfg(debug_assertions)] u64);

impl Born {
    #[cfg(debug_assertions)]
    pub(super) fn nth(number: u64) -> Born {
        Born(number)
    }

    #[cfg(not(debug_assertions))]
    pub(super) fn nth(_: u64) -> Born {
        Born()
    }

    #[cfg(debug_assertions)]
    fn number(self) -> u64 {
        self.0
    }

    #[cfg(not(debug_assertions))]
    fn number(self) -> u64 {
        0
    }
}

impl PartialEq for Born {
    fn eq(&self, _: &Born) -> bool {
        true
    }
}

impl Eq for Born {}

impl Hash for Born {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl PartialOrd for Born {
    fn partial_cmp(&self, other: &Born) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Born {
    fn cmp(&self, _: &Born) -> Ordering {
        Ordering::Equal
    }
}
