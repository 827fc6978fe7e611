//! petgraph's visit traits on `&Graph`, so that its algorithms run on it, and the orders made with them.

use super::{Graph, Node, NodeId, Use, ValueId};
use petgraph::Direction;
use petgraph::algo::toposort;
use petgraph::stable_graph::{NodeIndex, StableDiGraph};
use petgraph::visit::{
    Dfs, DfsPostOrder, GraphBase, IntoNeighbors, IntoNeighborsDirected, IntoNodeIdentifiers, NodeCount, NodeIndexable,
    Reversed, VisitMap, Visitable, Walker,
};
use std::collections::HashSet;

impl Graph {
    /// All nodes, producers before consumers, otherwise in file order; a node that was added later stands right before its
    /// first reader.
    ///
    /// No graph that was imported, or passes the [verifier](crate::verify), has a cycle.
    pub fn topological_order(&self) -> Vec<NodeId> {
        let mut roots: Vec<NodeId> = self.nodes().collect();
        roots.sort_unstable_by_key(|n| (self.node(*n).position, n.index()));
        let mut order = Vec::with_capacity(roots.len());
        let producers = Reversed(self);
        let mut walk = DfsPostOrder::empty(producers);
        for root in roots {
            walk.move_to(root);
            while let Some(node) = walk.next(producers) {
                order.push(node);
            }
        }
        order
    }

    /// These nodes and all that they depend on.
    pub fn ancestors(&self, of: impl IntoIterator<Item = NodeId>) -> HashSet<NodeId> {
        Dfs::from_parts(of.into_iter().collect(), self.visit_map()).iter(Reversed(self)).collect()
    }

    /// These nodes and all that depend on them.
    pub fn descendants(&self, of: impl IntoIterator<Item = NodeId>) -> HashSet<NodeId> {
        Dfs::from_parts(of.into_iter().collect(), self.visit_map()).iter(self).collect()
    }

    /// The nodes that depend on data a caller must feed.
    pub fn fed(&self) -> HashSet<NodeId> {
        self.descendants(self.required_inputs().map(|v| v.node))
    }

    /// A node on a cycle, if the graph has one.
    pub fn node_on_cycle(&self) -> Option<NodeId> {
        toposort(self, None).err().map(|cycle| cycle.node_id())
    }
}

impl GraphBase for Graph {
    type NodeId = NodeId;
    type EdgeId = petgraph::stable_graph::EdgeIndex<u32>;
}

impl NodeCount for Graph {
    fn node_count(&self) -> usize {
        self.g.node_count()
    }
}

impl NodeIndexable for Graph {
    fn node_bound(&self) -> usize {
        self.g.node_bound()
    }

    fn to_index(&self, node: NodeId) -> usize {
        node.index()
    }

    fn from_index(&self, i: usize) -> NodeId {
        self.id(NodeIndex::new(i))
    }
}

impl<'g> IntoNodeIdentifiers for &'g Graph {
    type NodeIdentifiers = Box<dyn Iterator<Item = NodeId> + 'g>;

    fn node_identifiers(self) -> Self::NodeIdentifiers {
        Box::new(self.nodes())
    }
}

impl<'g> IntoNeighbors for &'g Graph {
    type Neighbors = Neighbors<'g>;

    fn neighbors(self, node: NodeId) -> Neighbors<'g> {
        self.neighbors_directed(node, Direction::Outgoing)
    }
}

impl<'g> IntoNeighborsDirected for &'g Graph {
    type NeighborsDirected = Neighbors<'g>;

    fn neighbors_directed(self, node: NodeId, direction: Direction) -> Neighbors<'g> {
        Neighbors(match direction {
            Direction::Outgoing => Side::Readers(self, self.g.neighbors(node.index)),
            Direction::Incoming => Side::Producers(self.node(node).reads.iter()),
        })
    }
}

/// The readers of a node, or the producers of what it reads. A node comes once for each edge.
#[derive(Clone)]
pub struct Neighbors<'g>(Side<'g>);

#[derive(Clone)]
enum Side<'g> {
    /// By the edges.
    Readers(&'g Graph, petgraph::stable_graph::Neighbors<'g, Use, u32>),
    /// By the operands, in reverse: a depth-first walk of petgraph visits the neighbour that comes last first.
    Producers(std::slice::Iter<'g, Option<ValueId>>),
}

impl Iterator for Neighbors<'_> {
    type Item = NodeId;

    fn next(&mut self) -> Option<NodeId> {
        match &mut self.0 {
            Side::Readers(g, all) => all.next().map(|i| g.id(i)),
            Side::Producers(reads) => loop {
                if let Some(v) = reads.next_back()? {
                    return Some(v.node);
                }
            },
        }
    }
}

/// The nodes a walk has seen.
pub struct Seen(<StableDiGraph<Node, Use, u32> as Visitable>::Map);

impl VisitMap<NodeId> for Seen {
    fn visit(&mut self, node: NodeId) -> bool {
        self.0.visit(node.index)
    }

    fn is_visited(&self, node: &NodeId) -> bool {
        self.0.is_visited(&node.index)
    }

    fn unvisit(&mut self, node: NodeId) -> bool {
        self.0.unvisit(node.index)
    }
}

impl Visitable for Graph {
    type Map = Seen;

    fn visit_map(&self) -> Seen {
        Seen(self.g.visit_map())
    }

    fn reset_map(&self, map: &mut Seen) {
        self.g.reset_map(&mut map.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::parse;
    use petgraph::algo::{dominators::simple_fast, has_path_connecting, tarjan_scc};

    #[test]
    fn algorithms_of_petgraph_run_on_the_graph_and_its_reverse() {
        let g =
            parse("g (float[2] x) => (float[2] d) { a = Relu (x)  b = Tanh (a)  c = Neg (a)  d = Add (b, c)  e = Exp (a) }");
        let g = g.expect("a graph");
        let [x, a, b, c, d, e] = ["x", "a", "b", "c", "d", "e"].map(|n| g.find(n).expect("a value").node);
        assert_eq!(g.topological_order(), [x, a, b, c, d, e]);
        assert_eq!(simple_fast(&g, x).immediate_dominator(d), Some(a));
        assert_eq!(simple_fast(Reversed(&g), d).immediate_dominator(a), Some(d), "its post-dominator");
        assert!(has_path_connecting(&g, a, d, None) && !has_path_connecting(&g, e, d, None));
        assert!(has_path_connecting(Reversed(&g), d, x, None));
        assert_eq!(tarjan_scc(&g).len(), 6, "no cycle");
    }

    #[test]
    #[cfg(debug_assertions)]
    #[should_panic(expected = "was removed, and its id is used")]
    fn the_id_of_a_removed_node_is_caught_though_its_index_is_taken_again() {
        let mut g = parse("g (float[2] x) => (float[2] a) { a = Relu (x)  b = Tanh (x) }").expect("a graph");
        let b = g.find("b").expect("a value").node;
        g.remove(b);
        let new = g.add_op("c", crate::ir::Op::new("Neg", Default::default()), &[]);
        assert_eq!(new.index(), b.index());
        g.node(b);
    }
}
