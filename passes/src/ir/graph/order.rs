//! File order and execution order.

use super::{Graph, NodeId, NodeSite, ValueId};
use smallvec::SmallVec;

impl Graph {
    /// All nodes, producers before consumers, otherwise in file order; a node that was added later stands right before its
    /// first reader.
    ///
    /// # Errors
    /// The name of a node on a cycle.
    pub fn topological_order(&self) -> Result<Vec<NodeId>, NodeSite> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            White,
            Open,
            Done,
        }
        let mut marks = vec![Mark::White; self.node_bound()];
        let mut by_position: Vec<NodeId> = self.nodes().collect();
        by_position.sort_unstable_by_key(|n| (self.g[n.0].position, n.index()));
        let mut order = Vec::with_capacity(by_position.len());
        // Explicit stack: source graphs may be tens of thousands of nodes deep.
        let mut stack: Vec<(NodeId, SmallVec<[ValueId; 4]>, usize)> = Vec::new();
        for root in by_position {
            if marks[root.index()] != Mark::White {
                continue;
            }
            marks[root.index()] = Mark::Open;
            stack.push((root, self.reads(root), 0));
            while let Some((node, reads, next)) = stack.last_mut() {
                if let Some(v) = reads.get(*next) {
                    *next += 1;
                    let producer = v.node;
                    match marks[producer.index()] {
                        Mark::Done => {}
                        Mark::Open => return Err(self.site(producer)),
                        Mark::White => {
                            marks[producer.index()] = Mark::Open;
                            let its = self.reads(producer);
                            stack.push((producer, its, 0));
                        }
                    }
                } else {
                    marks[node.index()] = Mark::Done;
                    order.push(*node);
                    stack.pop();
                }
            }
        }
        Ok(order)
    }
}
